"""How late the event loop is: everything that a stream waits for waits for that, too."""

import asyncio
import logging
import time
from collections.abc import Callable

log = logging.getLogger(__name__)

_INTERVAL_S = 0.1
# Half of the encoder's usual deadline: with more, requests begin to miss it though the encoder is quick.
WARN_S = 0.1
# One line is enough to know, and a log that floods is no help to a loop that is late.
_QUIET_S = 10.0


async def watch_lag(report: Callable[[float], None]) -> None:
    """Until cancelled: report, ten times a second, by how many seconds the loop woke us too late.

    A lag beyond WARN_S is logged, too: something blocked the loop, or the process got no CPU.
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
                "the event loop stood still for %.0f ms: streams waited, and some may have failed open", lag * 1e3
            )
