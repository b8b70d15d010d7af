"""Measure the lag of the event loop, which delays every stream."""

import asyncio
import logging
import time
from collections.abc import Callable

log = logging.getLogger(__name__)

_INTERVAL_S = 0.1
# Half of the encoder's usual deadline. With a longer lag, requests miss the deadline although the encoder is fast.
WARN_S = 0.1
# At most one line in this time, because writing the log also delays the loop.
_QUIET_S = 10.0


async def watch_lag(report: Callable[[float], None]) -> None:
    """Report ten times a second by how many seconds the loop woke this task too late, until cancelled.

    A lag above WARN_S is also logged. The cause is a call that blocks the loop, or a process without CPU time.
    """
    quiet_until = 0.0
    while True:
        due = time.monotonic() + _INTERVAL_S
        await asyncio.sleep(_INTERVAL_S)
        now = time.monotonic()
        lag = max(now - due, 0.0)
        report(lag)
        if lag > WARN_S and now >= quiet_until:
            quiet_until = now + _QUIET_S
            log.warning(
                "the event loop was blocked for %.0f ms: streams waited, and some may have failed open", lag * 1e3
            )
