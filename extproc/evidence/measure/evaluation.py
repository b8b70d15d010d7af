"""An execution -> how well it matches, where it sends what, what that keeps and costs; each with its interval."""

from collections import Counter
from typing import Any

import msgspec
import numpy as np

from extproc.evidence.execution import Execution
from extproc.evidence.measure import metrics
from extproc.evidence.measure.columns import NO_COHORT, OUT_OF_SCOPE, Columns, columns
from extproc.evidence.measure.controls import ControlLine, Point, frontier, lines
from extproc.evidence.measure.metrics import NOTHING, Bin, Bools, Estimate, Floats, Ratio, mean, share
from extproc.evidence.measure.notes import notes_on
from extproc.evidence.perturb.robustness import Robustness

# A curve drawn with more points looks no different.
_CURVE_POINTS = 100


class Group(msgspec.Struct, frozen=True):
    """The measures of some rows."""

    name: str
    rows: int
    accuracy: Estimate  # of rows in scope: nearest to their label's cohort
    accepted: Estimate  # trusted matches among all rows
    wrong: Estimate  # of trusted matches that landed here: not their label's cohort
    fallback: Estimate
    escalated: Estimate  # of judged
    corrected: Estimate  # of escalated: the served answer is better than the one rejected first
    quality: Estimate
    per_1000: Estimate  # dollars
    per_success: Estimate  # dollars
    tiers: dict[str, int]  # where the first attempt goes
    reasons: dict[str, int]
    rejections: dict[str, int]


class Evaluation(msgspec.Struct, frozen=True):
    """Everything that `extproc eval` shows."""

    data: dict[str, Any]
    groups: list[Group]
    overall: Group
    scope_recall: Estimate  # of rows out of scope: not trusted
    scope_recall_at_5: float  # with one threshold that rejects 5 % of the rows in scope
    auroc: Estimate
    score: str  # what AUROC and the curve rank by
    calibration_error: float
    reliability: list[Bin]
    risk_coverage: list[tuple[float, float]]
    confusion: list[tuple[str, str, int]]  # label, where it landed, rows; most first
    lines: list[ControlLine]
    frontier: list[Point]
    latency_s: dict[str, tuple[int, float, float]]  # by path: rows, p50, p95
    notes: list[str]
    robustness: Robustness | None = None  # where it was asked for


def evaluate(run: Execution, seed: int = 0) -> Evaluation:
    """Measure an execution; the same seed gives the same report."""
    c = columns(run)
    everything = np.ones(len(c.group), dtype=bool)
    names = [name for name in [*run.snapshot.policy.cohorts, OUT_OF_SCOPE, NO_COHORT] if name in c.group]
    scores, score = _scores(c)
    known = ~np.isnan(scores)
    inside = c.labelled & ~c.outside
    calibrated = ~np.isnan(c.probability) & c.labelled
    trusted, ranked = c.trusted & c.labelled, known & c.labelled
    return Evaluation(
        data=_data(run, c),
        groups=[_group(run, c, name, np.array([g == name for g in c.group]), seed) for name in names],
        overall=_group(run, c, "all", everything, seed),
        scope_recall=share(~c.trusted, c.outside).estimate(seed, c.conversation),
        scope_recall_at_5=metrics.recall_at_rejection(scores[known & inside], scores[known & c.outside]),
        auroc=metrics.auroc_estimate(scores[ranked], inside[ranked], seed, c.conversation[ranked]),
        score=score,
        calibration_error=metrics.ece(c.probability[calibrated], c.right[calibrated]),
        reliability=metrics.reliability(c.probability[calibrated], c.right[calibrated]),
        risk_coverage=_risk_coverage(scores[trusted], c.right[trusted], int(c.labelled.sum())),
        confusion=_confusion(c),
        lines=lines(run, c.quality, c.cost, seed),
        frontier=frontier(run, c.nearest),
        latency_s=_latency(run),
        notes=notes_on(run),
    )


def _group(run: Execution, c: Columns, name: str, rows: Bools, seed: int) -> Group:
    landed = c.trusted & c.labelled & np.array([name in ("all", n) for n in c.nearest], dtype=bool)
    known = rows & ~np.isnan(c.quality) & ~np.isnan(c.cost)
    compared = ~np.isnan(c.quality) & ~np.isnan(c.first_quality)
    quality, cost = np.where(known, c.quality, 0.0), np.where(known, c.cost, 0.0)
    some = np.flatnonzero(rows)
    rejections = [reason for i in some for s in [run.served[i]] if s is not None for reason in s.rejections]
    return Group(
        name=name,
        rows=int(rows.sum()),
        accuracy=share(c.right, rows & c.labelled & ~c.outside).estimate(seed, c.conversation),
        accepted=share(c.trusted, rows).estimate(seed, c.conversation),
        wrong=share(~c.right, landed).estimate(seed, c.conversation),
        fallback=share(c.fallback, rows).estimate(seed, c.conversation),
        escalated=share(c.escalated, rows & c.judged).estimate(seed, c.conversation),
        corrected=share(c.quality > c.first_quality, rows & c.escalated & compared).estimate(seed, c.conversation),
        quality=mean(c.quality, known).estimate(seed, c.conversation),
        per_1000=mean(1000 * c.cost, known, least=None).estimate(seed, c.conversation),
        per_success=Ratio(cost, quality, least=None).estimate(seed, c.conversation) if quality.sum() else NOTHING,
        tiers=dict(Counter(run.routed[i].decision.tier.name for i in some).most_common()),
        reasons=dict(Counter(run.routed[i].decision.reason.value for i in some).most_common()),
        rejections=dict(Counter(rejections).most_common()),
    )


def _scores(c: Columns) -> tuple[Floats, str]:
    """What says how sure a match is: its probability if every match has one, else its similarity."""
    matched = ~np.isnan(c.similarity)
    if matched.any() and not np.isnan(c.probability[matched]).any():
        return c.probability, "probability"
    return c.similarity, "similarity"


def _risk_coverage(scores: Floats, right: Bools, labelled: int) -> list[tuple[float, float]]:
    """(share of all labelled rows accepted, share of those that are wrong), surest first."""
    if not len(scores):
        return []
    order = np.argsort(-scores, kind="stable")
    count = np.arange(1, len(order) + 1)
    wrong = np.cumsum(~right[order]) / count
    # A run of equal scores is accepted together.
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)
    keep = ends[np.unique(np.linspace(0, len(ends) - 1, _CURVE_POINTS).astype(int))]
    return [(float(count[i] / labelled), float(wrong[i])) for i in keep]


def _confusion(c: Columns) -> list[tuple[str, str, int]]:
    landed = [name if sure and name else "fallback" for name, sure in zip(c.nearest, c.trusted, strict=True)]
    pairs = Counter((label, at) for label, at in zip(c.label, landed, strict=True) if label is not None)
    return [(label, at, rows) for (label, at), rows in pairs.most_common()]


def _latency(run: Execution) -> dict[str, tuple[int, float, float]]:
    paths: dict[str, list[float]] = {}
    for served in run.served:
        if served is not None and served.latency_s is not None:
            paths.setdefault(" > ".join(served.path), []).append(served.latency_s)
    found = sorted(paths.items(), key=lambda item: -len(item[1]))
    return {path: (len(v), *(float(q) for q in np.quantile(v, (0.5, 0.95)))) for path, v in found}  # type: ignore[misc]


def _data(run: Execution, c: Columns) -> dict[str, Any]:
    return {
        "traffic": run.digest,
        "rows": len(run.rows),
        "skipped": len(run.bad),
        "verbatim": run.verbatim,
        "labelled": int(c.labelled.sum()),
        "out_of_scope": int(c.outside.sum()),
        "with_outcomes": int((~np.isnan(c.quality)).sum()),
        "revision": run.snapshot.revision,
        "sealed": run.sealed,
        "encoder": run.snapshot.encoder.name,
        "cohorts": len(run.snapshot.policy.cohorts),
        "calibrated": sum(cohort.calibrated for cohort in run.snapshot.policy.cohorts.values()),
        "prices": {tier.name: (tier.price.input, tier.price.output) for tier in run.snapshot.policy.tiers},
        "token_counts": run.token_counts,
    }
