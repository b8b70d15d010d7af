"""Follows the comparison of a candidate in the ledger, and acts on its verdict.

Nothing is kept between two runs of a router: the rows of the ledger give the same verdict again.
"""

import asyncio
import logging
from pathlib import Path

from extproc.accounting.rollout import Comparison, RolloutReader
from extproc.accounting.rollout_text import verdict_sentence
from extproc.accounting.sequential import RolloutVerdict
from extproc.routing.router import Router
from extproc.routing.snapshot import Rollout

log = logging.getLogger(__name__)

# Each look reads only the new rows, by their id.
_INTERVAL_S = 5.0
# The share of the conversations that a verdict gives to the candidate.
_SHARES = {RolloutVerdict.STOP: 0.0, RolloutVerdict.PROMOTE: 1.0}


async def follow_rollout(router: Router, ledger: Path | str) -> None:
    """Until cancelled: compare the candidate that decides now, and change its share after a verdict."""
    reader: RolloutReader | None = None
    compared: Rollout | None = None
    failing = False  # and already logged
    while True:
        rollout = router.snapshot.rollout
        if rollout is not compared:
            reader, compared = _reader(ledger, rollout), rollout
        try:
            if reader is not None and rollout is not None:
                _act(router, await asyncio.to_thread(reader.read), rollout)
            failing = False
        except OSError as error:
            if not failing:
                log.warning("the candidate cannot be compared, and keeps its share: %s", error)
            failing = True
        await asyncio.sleep(_INTERVAL_S)


def _reader(ledger: Path | str, rollout: Rollout | None) -> RolloutReader | None:
    """The reader for a candidate that gets conversations. None: there is none."""
    if rollout is None or rollout.revision is None or rollout.spec.shadow:
        return None
    return RolloutReader(ledger, Comparison(rollout.revision, rollout.spec.loss, rollout.alike))


def _act(router: Router, comparison: Comparison, rollout: Rollout) -> None:
    """Change the share of the candidate, if the verdict is new."""
    share = _SHARES.get(comparison.verdict)
    if share is None or router.shares.get(comparison.revision) == share:
        return
    router.shares = {comparison.revision: share}
    sentence = verdict_sentence(comparison, rollout.spec.percent / 100)
    log.warning("rollout of %s: %s", comparison.revision, sentence)
