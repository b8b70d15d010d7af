"""Labels against decisions: the tier that each label needs, and labels that a confident match contradicts."""

from collections import Counter

import msgspec
import numpy as np

from extproc.contract.words import Reason
from extproc.evidence.execution import Execution
from extproc.evidence.measure.columns import Columns
from extproc.evidence.measure.metrics import Bools, Estimate, Floats, share

# Something else than the match decided about these tiers: the client, or a rule of the policy.
_DECIDED_OTHERWISE = frozenset({
    Reason.PINNED, Reason.PASSTHROUGH, Reason.RULE, Reason.BACKGROUND, Reason.BOUND, Reason.RESIDENCY,
    Reason.BAD_REQUEST,
})  # fmt: skip
# Matches are confident down to the score at which at least this share of them agrees with the labels. Below it, a
# disagreement is more likely a wrong match than a wrong label.
_AGREEMENT = 0.85
_LEAST_ROWS = 10
_DECIMALS = 6  # of a score


class TierMatrix(msgspec.Struct, frozen=True):
    """Labelled rows by the tier that their label needs and the tier of their first attempt.

    A label out of scope needs the default tier. Rows whose tier the client or a rule chose are left out.
    """

    names: list[str]  # every tier, cheapest first
    cells: list[tuple[str, str, int]]  # needed, chosen, rows
    right: Estimate  # the share of these rows whose tier is the needed one
    below: Estimate  # the share of the rows that need more than the cheapest tier whose tier is too low
    below_rows: int  # the number of those rows


class Disagreement(msgspec.Struct, frozen=True):
    """A row whose label is not the cohort of its confident match."""

    line: int
    label: str
    cohort: str
    score: float  # the probability of the match, or its margin without one


def tier_matrix(run: Execution, c: Columns, seed: int) -> TierMatrix:
    """Count the labelled rows by the tier that they need and the tier that they got."""
    policy = run.snapshot.policy
    pairs: list[tuple[int, int]] = []
    rows = np.zeros(len(c.label), dtype=bool)
    for i, (label, routed) in enumerate(zip(c.label, run.routed, strict=True)):
        decision = routed.decision
        if label is None or decision.reason in _DECIDED_OTHERWISE:
            continue
        own = routed.snapshot.policy  # of the row's app, if it has one
        needed = own.cohorts[label].tier if label in own.cohorts else own.default_tier
        rows[i] = True
        pairs.append((policy.rank(needed), policy.rank(decision.tier.name)))
    table = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    counts = Counter(map(tuple, table.tolist()))
    names = [tier.name for tier in policy.tiers]
    weight, together = c.weight[rows], c.conversation[rows]
    everything, above = np.ones(len(table), dtype=bool), table[:, 0] > 0
    return TierMatrix(
        names,
        [(names[a], names[b], n) for (a, b), n in sorted(counts.items())],
        share(table[:, 0] == table[:, 1], everything, weight).estimate(seed, together),
        share(table[:, 1] < table[:, 0], above, weight).estimate(seed, together),
        int((table[:, 1] < table[:, 0]).sum()),
    )


def disagreements(run: Execution, c: Columns) -> list[Disagreement]:
    """Rows whose label a confident match contradicts, most confident first."""
    margin = np.array([r.decision.match.margin if r.decision.match else None for r in run.routed], dtype=np.float64)
    labelled, calibrated = c.trusted & c.labelled, ~np.isnan(c.probability)
    score: Floats = np.round(np.where(calibrated, c.probability, margin), _DECIMALS).astype(np.float64)
    confident = np.zeros(len(score), dtype=bool)
    for kind in (calibrated, ~calibrated):
        rows = labelled & kind
        confident[rows] = score[rows] >= _least_confident(score[rows], c.right[rows])
    listed = np.flatnonzero(confident & ~c.right)
    found = [
        Disagreement(run.rows[i].line, str(c.label[i]), str(c.nearest[i]), float(score[i])) for i in listed.tolist()
    ]
    return sorted(found, key=lambda row: (-row.score, row.line))


def _least_confident(score: Floats, right: Bools) -> float:
    """The lowest score down to which enough matches agree with their labels. Infinite if there is none."""
    order = np.argsort(-score, kind="stable")
    agreement = np.cumsum(right[order]) / np.arange(1, len(order) + 1)
    ends = np.append(np.diff(score[order]) != 0, True)[: len(order)]  # equal scores are confident together
    enough = np.flatnonzero(ends & (agreement >= _AGREEMENT) & (np.arange(1, len(order) + 1) >= _LEAST_ROWS))
    return float(score[order[enough[-1]]]) if len(enough) else np.inf
