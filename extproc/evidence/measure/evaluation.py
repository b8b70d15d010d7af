"""An execution -> how well it matches, where it sends what, what that keeps and costs; each with its interval."""

from collections import Counter
from collections.abc import Container, Iterator, Sequence
from typing import Any

import msgspec
import numpy as np

from extproc.evidence.data.answers import SETTINGS
from extproc.evidence.data.tokens import TOKENIZER
from extproc.evidence.execution import Execution
from extproc.evidence.measure import metrics
from extproc.evidence.measure.controls import ControlLine, Point, frontier, lines
from extproc.evidence.measure.metrics import NOTHING, Bin, Bools, Estimate, Floats, Places, Ratio, mean, share
from extproc.evidence.perturb.robustness import Robustness
from extproc.routing.policy import Reason, trust

OUT_OF_SCOPE = "out of scope"
NO_COHORT = "no cohort"  # neither labelled nor trusted to be in one
# A curve drawn with more points looks no different.
_CURVE_POINTS = 100
# Of names that are none here, so many are told.
_MOST_NAMES = 5


class Columns(msgspec.Struct, frozen=True):
    """An execution as arrays, one entry a row."""

    group: list[str]  # the label, or the cohort where it landed, if nobody labelled it
    label: list[str | None]  # OUT_OF_SCOPE, or None: not labelled
    nearest: list[str | None]
    trusted: Bools  # above its cohort's floors
    similarity: Floats  # NaN without a match
    probability: Floats  # NaN without evidence
    fallback: Bools
    judged: Bools
    escalated: Bools
    quality: Floats  # of what was served; NaN where it is not known
    first_quality: Floats
    cost: Floats  # dollars a request; NaN where it is not known
    conversation: Places  # rows of one are resampled together

    @property
    def labelled(self) -> Bools:
        return np.array([label is not None for label in self.label], dtype=bool)

    @property
    def outside(self) -> Bools:
        return np.array([label == OUT_OF_SCOPE for label in self.label], dtype=bool)

    @property
    def right(self) -> Bools:
        """Nearest to its label's cohort."""
        pairs = zip(self.label, self.nearest, strict=True)
        return np.array([label is not None and label == nearest for label, nearest in pairs], dtype=bool)


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
        notes=list(_notes(run, c)),
    )


def columns(run: Execution) -> Columns:
    """The execution as arrays."""
    cohorts = run.snapshot.policy.cohorts
    decisions = [one.decision for one in run.routed]
    labels = [_label(known.intent, cohorts) for known in run.known]
    trusted = [trust(d.cohort, d.match) is Reason.MATCHED for d in decisions]
    nearest = [d.cohort.name if d.cohort is not None else None for d in decisions]
    landed = [name if sure else None for name, sure in zip(nearest, trusted, strict=True)]
    chances = [d.cohort.probability(d.match) if d.cohort and d.match else None for d in decisions]

    def served(member: str) -> Floats:
        values = [getattr(s, member) if s is not None else None for s in run.served]
        return np.array(values, dtype=np.float64)  # None becomes NaN

    return Columns(
        group=[a or b or NO_COHORT for a, b in zip(labels, landed, strict=True)],
        label=labels,
        nearest=nearest,
        trusted=np.array(trusted, dtype=bool),
        similarity=np.array([d.match.similarity if d.match else None for d in decisions], dtype=np.float64),
        probability=np.array(chances, dtype=np.float64),
        fallback=np.array([d.reason.is_fallback for d in decisions], dtype=bool),
        judged=np.array([s is not None and s.judged > 0 for s in run.served], dtype=bool),
        escalated=np.array([s is not None and bool(s.rejections) for s in run.served], dtype=bool),
        quality=served("quality"),
        first_quality=served("first_quality"),
        cost=served("cost"),
        conversation=run.conversations(),
    )


def _label(intent: Any, cohorts: Any) -> str | None:
    if intent is msgspec.UNSET:
        return None
    return intent if intent in cohorts else OUT_OF_SCOPE


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


def _notes(run: Execution, c: Columns) -> Sequence[str]:
    """What a reader has to know to read the numbers rightly."""
    notes = [
        f"Decided before a label or an outcome was read: files, centroids, thresholds and decisions hash to "
        f"{run.sealed}."
    ]
    notes += unused(run)
    if fitted := list(_fitted_here(run)):
        notes.append(
            f"Fitted on rows of this very file: {', '.join(fitted)}. These numbers flatter it; what "
            "`extproc calibrate` reported is of rows that it was not fitted on."
        )
    counts = run.token_counts
    if counts["estimated"]:
        notes.append(f"Tokens of {counts['estimated']} answers are estimated with {TOKENIZER}.")
    if counts["input only"]:
        notes.append(f"{counts['input only']} answers have neither text nor tokens: only their input is priced.")
    unavailable = Counter(rule for s in run.served if s is not None for rule in s.unavailable)
    for rule, rows in unavailable.items():
        notes.append(f"Rule `{rule}` could not run on {rows} recorded answers and took its declared outcome.")
    bounds = sum(s is not None and s.bound is not None for s in run.served)
    if bounds:
        notes.append(f"{bounds} rejected answers were served: their cohort's share of escalations was spent.")
    persons = sum(s is not None and s.person for s in run.served)
    if persons:
        notes.append(f"{persons} answers went to a person; they have no quality here.")
    missing = sum(bool(k.outcomes) and s is None for k, s in zip(run.known, run.served, strict=True))
    if missing:
        notes.append(f"{missing} rows lack the answer of a tier they were sent to: they count as not recorded.")
    return notes


def _fitted_here(run: Execution) -> Iterator[str]:
    """What of the configuration was fitted or chosen on this traffic, by the hash of the data."""
    fitted = run.config.fitted
    if fitted is not None and fitted.header.data == run.digest:
        yield "the centroids"
    kinds = {"floors": "evidence", "acceptance scores": "scorer", "tiers": "chosen"}
    for what, key in kinds.items():
        stamps = [getattr(intent, key) for intent in run.config.intents]
        count = sum(stamp is not None and stamp.data == run.digest for stamp in stamps)
        if count:
            yield f"{what} of {count} cohorts"


def unused(run: Execution, beside: Container[str] = ()) -> Iterator[str]:
    """What of the rows does not count as whoever wrote them may think: names that are none here, and whole rows.

    `beside`: intents that another execution of the same comparison has.
    """
    if run.verbatim:
        yield f"{run.verbatim} rows were left out: they are utterances of the intents, word by word."
    policy = run.snapshot.policy
    named = Counter(known.intent for known in run.known if isinstance(known.intent, str))
    if labels := Counter({n: rows for n, rows in named.items() if n not in policy.cohorts and n not in beside}):
        yield f"Labels that are no intent here count as out of scope: {_counted(labels)}."
    here = {name + said for tier in policy.tiers for name in (tier.name, tier.model) for said in SETTINGS}
    if tiers := Counter(name for known in run.known for name in known.outcomes if name not in here):
        yield f"Outcomes under names that are no tier here, nor its model, are not used: {_counted(tiers)}."
    models = Counter(
        one.request.model or "no model"
        for one in run.routed
        if one.request is not None and one.decision.reason is Reason.PASSTHROUGH
    )
    if models:
        yield (
            "Requests for a model that `retarget` in policy.yaml does not list pass through, matched with nothing: "
            f"{_counted(models)}."
        )


def _counted(names: Counter[str]) -> str:
    told = ", ".join(f"{name or repr(name)} ({rows})" for name, rows in names.most_common(_MOST_NAMES))
    return told + (f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else "")
