"""Measures of an execution: matching, routing, quality and cost, each with its interval."""

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from extproc.evidence.execution import Execution
from extproc.evidence.measure import metrics
from extproc.evidence.measure.columns import NO_COHORT, OUT_OF_SCOPE, Columns, columns
from extproc.evidence.measure.controls import ControlLine, Point, controls, frontier
from extproc.evidence.measure.headlines import Headline, evaluation_headlines, wrong_headline
from extproc.evidence.measure.labels import Disagreement, TierMatrix, disagreements, tier_matrix
from extproc.evidence.measure.metrics import NOTHING, Bin, Bools, Estimate, Floats, Ratio, mean, quantile, share
from extproc.evidence.measure.notes import notes_on
from extproc.evidence.measure.recording import MISSING, Bounds
from extproc.evidence.measure.switching import SwitchLine, switching
from extproc.evidence.perturb.robustness import Robustness

# More points would not change how the curve looks.
_CURVE_POINTS = 100


class Group(msgspec.Struct, frozen=True):
    """The measures of a group of rows."""

    name: str
    rows: int
    accuracy: Estimate  # of rows in scope: the nearest cohort is the label's
    accepted: Estimate  # of all rows: the match is trusted
    wrong: Estimate  # of trusted matches with this cohort: the label is another
    fallback: Estimate  # of all rows
    escalated: Estimate  # of rows with a judged answer
    corrected: Estimate  # of escalated rows: the answer served is better than the one that was rejected first
    quality: Estimate
    per_1000: Estimate  # dollars per 1,000 requests
    per_success: Estimate  # dollars per success
    tiers: dict[str, int]  # rows by the tier of the first attempt
    reasons: dict[str, int]
    rejections: dict[str, int]


class Evaluation(msgspec.Struct, frozen=True):
    """Everything that `extproc eval` shows."""

    data: dict[str, Any]
    groups: list[Group]
    overall: Group
    scope_recall: Estimate  # of rows out of scope: the match is not trusted
    scope_recall_at_5: float  # the same with one threshold that rejects 5 % of the rows in scope
    auroc: Estimate
    score: str  # the score that AUROC and the curve rank by
    calibration_error: float
    reliability: list[Bin]
    risk_coverage: list[tuple[float, float]]
    confusion: list[tuple[str, str, int]]  # label, matched cohort, rows. Most rows first
    lines: list[ControlLine]  # the configuration and its controls, on all rows with outcomes
    bounds: list[Bounds]  # of every path whose answers were recorded only on chosen rows
    paired: list[ControlLine]  # the same lines on the rows that have every answer, if the others lack some
    estimated: bool  # `lines` are doubly robust estimates from propensities
    tiers: TierMatrix
    disagreements: list[Disagreement]
    frontier: list[Point]
    latency_s: dict[str, tuple[int, float, float]]  # by path: rows, p50, p95
    notes: list[str]
    switching: list[SwitchLine] = []  # if the policy has a switch budget
    robustness: Robustness | None = None  # if it was asked for
    verdicts: list[Headline] = []


def evaluate(run: Execution, seed: int = 0) -> Evaluation:
    """Measure an execution. The same seed gives the same intervals."""
    c = columns(run)
    everything = np.ones(len(c.group), dtype=bool)
    names = [name for name in [*run.snapshot.policy.cohorts, OUT_OF_SCOPE, NO_COHORT] if name in c.group]
    scores, score = _scores(c)
    matched = ~np.isnan(scores)
    inside = c.labelled & ~c.outside
    calibrated = ~np.isnan(c.probability) & c.labelled
    trusted, ranked = c.trusted & c.labelled, matched & c.labelled
    compared = controls(run, c.quality, c.cost, seed)
    evaluation = Evaluation(
        data=_data(run, c),
        groups=[_group(run, c, name, np.array([g == name for g in c.group]), seed) for name in names],
        overall=_group(run, c, "all", everything, seed),
        scope_recall=share(~c.trusted, c.outside, c.weight).estimate(seed, c.conversation),
        scope_recall_at_5=metrics.recall_at_rejection(
            scores[matched & inside],
            scores[matched & c.outside],
            weights=(c.weight[matched & inside], c.weight[matched & c.outside]),
        ),
        auroc=metrics.auroc_estimate(
            scores[ranked], inside[ranked], seed, c.conversation[ranked], c.weight[ranked]
        ),
        score=score,
        calibration_error=metrics.ece(c.probability[calibrated], c.right[calibrated], weights=c.weight[calibrated]),
        reliability=metrics.reliability(
            c.probability[calibrated], c.right[calibrated], weights=c.weight[calibrated]
        ),
        risk_coverage=_risk_coverage(
            scores[trusted], c.right[trusted], c.weight[trusted], float(c.weight[c.labelled].sum())
        ),
        confusion=_confusion(c),
        lines=compared.lines,
        bounds=compared.bounds,
        paired=compared.paired,
        estimated=compared.estimated,
        tiers=tier_matrix(run, c, seed),
        disagreements=disagreements(run, c),
        frontier=frontier(run, c.nearest),
        latency_s=_latency(run),
        notes=notes_on(run),
        switching=switching(run),
    )
    return msgspec.structs.replace(evaluation, verdicts=_verdicts(evaluation))


def _verdicts(evaluation: Evaluation) -> list[Headline]:
    e, wrong = evaluation, evaluation.overall.wrong
    matches = [wrong_headline(wrong, e.data["risk"], e.data["weighted"])] if wrong.known else []
    return evaluation_headlines(e.lines, e.bounds, matches, e.tiers, e.disagreements, e.data["labelled"])


def _group(run: Execution, c: Columns, name: str, rows: Bools, seed: int) -> Group:
    matched = c.trusted & c.labelled & np.array([name in ("all", n) for n in c.nearest], dtype=bool)
    recorded = rows & ~np.isnan(c.quality) & ~np.isnan(c.cost)
    if c.weight[rows & c.answered & ~recorded].sum() > MISSING * c.weight[rows & c.answered].sum():
        recorded = np.zeros_like(rows)  # the answers were recorded on a chosen part of these rows
    compared = ~np.isnan(c.quality) & ~np.isnan(c.first_quality)
    quality, cost = (np.where(recorded, values * c.weight, 0.0) for values in (c.quality, c.cost))
    return Group(
        name=name,
        rows=int(rows.sum()),
        accuracy=share(c.right, rows & c.labelled & ~c.outside, c.weight).estimate(seed, c.conversation),
        accepted=share(c.trusted, rows, c.weight).estimate(seed, c.conversation),
        wrong=share(~c.right, matched, c.weight).estimate(seed, c.conversation),
        fallback=share(c.fallback, rows, c.weight).estimate(seed, c.conversation),
        escalated=share(c.escalated, rows & c.judged, c.weight).estimate(seed, c.conversation),
        corrected=share(c.quality > c.first_quality, rows & c.escalated & compared, c.weight).estimate(
            seed, c.conversation
        ),
        quality=mean(c.quality, recorded, weights=c.weight).estimate(seed, c.conversation),
        per_1000=mean(1000 * c.cost, recorded, least=None, weights=c.weight).estimate(seed, c.conversation),
        per_success=Ratio(cost, quality, least=None).estimate(seed, c.conversation) if quality.sum() else NOTHING,
        tiers=_counts(run.routed.column(lambda decision: decision.tier.name), rows),
        reasons=_counts(run.routed.column(lambda decision: decision.reason.value), rows),
        rejections=_rejections(run, rows),
    )


def _counts(names: Sequence[str], rows: Bools) -> dict[str, int]:
    return dict(Counter(itertools.compress(names, rows.tolist())).most_common())


def _rejections(run: Execution, rows: Bools) -> dict[str, int]:
    escalated = rows & run.served.where(lambda served: bool(served.rejections))
    served = [run.served[i] for i in np.flatnonzero(escalated).tolist()]
    return dict(Counter(reason for s in served if s is not None for reason in s.rejections).most_common())


def _scores(c: Columns) -> tuple[Floats, str]:
    """The score of a match, and its name: the probability that it is right, if every match has one.

    Otherwise it is the chance against the background, or the similarity if there is no background.
    """
    matched = ~np.isnan(c.similarity)
    if matched.any() and not np.isnan(c.probability[matched]).any():
        return c.probability, "probability"
    return c.scope, "chance against the background" if c.background else "similarity"


def _risk_coverage(scores: Floats, right: Bools, weights: Floats, labelled: float) -> list[tuple[float, float]]:
    """(share of all labelled rows accepted, share of these that are wrong), from the highest score down."""
    if not len(scores):
        return []
    order = np.argsort(-scores, kind="stable")
    count = np.cumsum(weights[order])
    wrong = np.cumsum(weights[order] * ~right[order]) / count
    # Rows with equal scores are accepted together.
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)
    keep = ends[np.unique(np.linspace(0, len(ends) - 1, _CURVE_POINTS).astype(int))]
    return [(float(count[i] / labelled), float(wrong[i])) for i in keep]


def _confusion(c: Columns) -> list[tuple[str, str, int]]:
    matched = [name if above and name else "fallback" for name, above in zip(c.nearest, c.trusted, strict=True)]
    pairs = Counter((label, cohort) for label, cohort in zip(c.label, matched, strict=True) if label is not None)
    return [(label, cohort, rows) for (label, cohort), rows in pairs.most_common()]


def _latency(run: Execution) -> dict[str, tuple[int, float, float]]:
    latency_s, weight = run.served.column("latency_s"), run.weights()
    paths: dict[str, list[int]] = {}
    for i, path in enumerate(run.served.paths()):
        if path and not math.isnan(latency_s[i]):
            paths.setdefault(" > ".join(path), []).append(i)
    return {
        path: (len(at), quantile(latency_s[at], 0.5, weight[at]), quantile(latency_s[at], 0.95, weight[at]))
        for path, at in sorted(paths.items(), key=lambda item: -len(item[1]))
    }


def _data(run: Execution, c: Columns) -> dict[str, Any]:
    return {
        "traffic": run.digest,
        "rows": len(run.rows),
        "skipped": len(run.bad),
        "verbatim": run.verbatim,
        "labelled": int(c.labelled.sum()),
        "out_of_scope": int(c.outside.sum()),
        "with_outcomes": int((~np.isnan(c.quality)).sum()),
        "with_any_outcome": int(c.answered.sum()),
        "weighted": bool((c.weight != 1).any()),
        "risk": max((i.evidence.risk for i in run.config.intents if i.evidence is not None), default=None),
        "revision": run.snapshot.revision,
        "sealed": run.sealed,
        "encoder": run.snapshot.encoder.name,
        "cohorts": len(run.snapshot.policy.cohorts),
        "calibrated": sum(cohort.calibrated for cohort in run.snapshot.policy.cohorts.values()),
        "prices": {tier.name: (tier.price.input, tier.price.output) for tier in run.snapshot.policy.tiers},
        "token_counts": run.token_counts,
    }
