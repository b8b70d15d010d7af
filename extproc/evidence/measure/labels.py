"""Labels against decisions: the tier that each label needs, and labels that a confident match contradicts."""

from collections import Counter

import msgspec
import numpy as np

from extproc.contract.words import Reason
from extproc.evidence.execution import Execution
from extproc.evidence.measure.columns import Columns
from extproc.evidence.measure.metrics import Estimate, share

# Something else than the match decided about these tiers: the client, or a rule of the policy.
_DECIDED_OTHERWISE = frozenset({
    Reason.PINNED, Reason.PASSTHROUGH, Reason.RULE, Reason.BACKGROUND, Reason.BOUND, Reason.RESIDENCY,
    Reason.BAD_REQUEST,
})  # fmt: skip
# A match of a calibrated cohort is confident at this probability.
_CONFIDENT = 0.9
# Without a probability, a match is confident if its margin exceeds this share of the margins of right matches.
_MARGIN_RANK = 0.1
_ROUNDING = 1e-6


class TierMatrix(msgspec.Struct, frozen=True):
    """Labelled rows by the tier that their label needs and the tier of their first attempt.

    A label out of scope needs the default tier. Rows whose tier the client or a rule chose are left out.
    """

    names: list[str]  # every tier, cheapest first
    cells: list[tuple[str, str, int]]  # needed, chosen, rows
    right: Estimate  # of these rows: their tier is the needed one.
    below: Estimate  # of the rows that need more than the cheapest tier: their tier is below the needed one
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
        needed = policy.cohorts[label].tier if label in policy.cohorts else policy.default_tier
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
    labelled = c.trusted & c.labelled
    calibrated = ~np.isnan(c.probability)
    right = labelled & c.right & ~calibrated
    least = float(np.quantile(margin[right], _MARGIN_RANK)) if right.any() else np.inf
    confident = np.where(calibrated, c.probability >= _CONFIDENT, margin >= least - _ROUNDING)
    score = np.where(calibrated, c.probability, margin)
    listed = np.flatnonzero(labelled & ~c.right & confident)
    rows = [
        Disagreement(run.rows[i].line, str(c.label[i]), str(c.nearest[i]), float(score[i])) for i in listed.tolist()
    ]
    return sorted(rows, key=lambda row: (-round(row.score, 3), row.line))
