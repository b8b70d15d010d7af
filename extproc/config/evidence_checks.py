"""Checks of the evidence that `extproc calibrate` wrote into an intent."""

import math
from collections.abc import Iterator

from extproc.config.ranges import Finding, is_interval, within
from extproc.settings import Evidence


def check_evidence(evidence: Evidence, floor: float | None) -> Iterator[Finding]:
    """Every mistake of the evidence in an intent with this floor."""
    again = "run `extproc calibrate` again"
    if floor is None and not evidence.abstains:
        yield ".evidence", f"there is `evidence`, but no `floor` that it is about: {again}"
    yield from within(".evidence.probability.similarity", evidence.probability.similarity, least=0, hint=again)
    yield from within(".evidence.probability.margin", evidence.probability.margin, least=0, hint=again)
    yield from within(".evidence.risk", evidence.risk, least=0, most=1, hint=again)
    yield from within(".evidence.accepted", evidence.accepted, least=0, most=1, hint=again)
    yield from is_interval(".evidence.wrong", evidence.wrong)
    yield from within(".evidence.rows", evidence.rows, least=0 if evidence.deciles is None else 1, hint=again)
    deciles = evidence.deciles if evidence.deciles is not None else (0.0,)
    if not deciles or list(deciles) != sorted(deciles) or not all(map(math.isfinite, deciles)):
        yield ".evidence.deciles", f"`deciles` must be finite numbers, and none below the one before: {again}"
