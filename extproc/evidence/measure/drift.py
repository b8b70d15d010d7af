"""Whether the traffic of the last day differs from the week before, and from the rows of the evidence.

A ledger has the decision about each request: the nearest cohort, its similarity and margin, and whether the match
counts. Only rows of the revision that serves now are compared, since other floors or centroids change them.
Each conversation counts once in a window, and the cohorts of an app count by themselves. Each number has one test.
All tests of a run together give a false alarm with a probability of at most `FALSE_ALARM`, if conversations do not
depend on each other.
"""

import contextlib
import math
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from scipy import stats

from extproc.accounting.drift_limits import LEAST_RANK, LEAST_RECENT
from extproc.accounting.queries import FALLBACKS, FROM_CLIENTS, OWN_SIGNAL
from extproc.accounting.store import connect
from extproc.contract.names import CANDIDATE_PREFIX
from extproc.contract.words import Reason, Signal

FALSE_ALARM = 0.001
DAY_S = 86_400.0
BASE_DAYS = 7
# A week with fewer conversations in a group is not tested, and neither are fewer labels.
LEAST_BASE, LEAST_LABELS = 100, 50
# A difference of a share below this is not worth an alarm, even if it is sure.
LEAST_SHARE = 0.05

Kind = Literal["fallbacks", "margins", "evidence", "probability"]
ALL = "all"

_NO_DECISION = (Reason.PINNED, Reason.PASSTHROUGH, Reason.BAD_REQUEST, Reason.BACKGROUND, Reason.NO_TEXT)
_REASONS = ", ".join(f"'{reason}'" for reason in _NO_DECISION)
_NEWEST = f"SELECT revision FROM outcomes WHERE revision NOT LIKE '{CANDIDATE_PREFIX}%' ORDER BY id DESC LIMIT 1"
_ROWS = f"""
  SELECT o.time, o.reason, o.session, o.decision, {{app}} AS app, s.label
  FROM outcomes o LEFT JOIN signals s ON s.kind = '{Signal.FEEDBACK}' AND {OWN_SIGNAL}
  WHERE o.time >= ? AND o.revision = ? AND {FROM_CLIENTS} AND o.reason NOT IN ({_REASONS}) ORDER BY o.id
"""


class Observed(msgspec.Struct, frozen=True):
    """One decision of the ledger."""

    cohort: str  # the nearest one
    fell_back: bool
    similarity: float
    margin: float
    probability: float | None = None  # that the match is right
    right: bool | None = None  # by the label of feedback. None: there is none


class Finding(msgspec.Struct, frozen=True):
    """One number, before and now."""

    kind: Kind
    group: str  # a cohort, or `all`
    before: float
    now: float
    rows: tuple[int, int]  # before and now
    p: float  # chance of a difference of this size without drift
    drifted: bool = False


class Drift(msgspec.Struct, frozen=True):
    """The result of one run."""

    revision: str | None
    rows: tuple[int, int]  # conversations before and now
    findings: list[Finding]  # those that drifted first
    verdict: str  # a sentence

    @property
    def drifted(self) -> bool:
        """Whether a number drifted."""
        return any(finding.drifted for finding in self.findings)


def read_drift(place: Path | str, evidence: Mapping[str, Sequence[float]] | None = None, now: float = 0.0) -> Drift:
    """Compare the last day with the week before it. `evidence` are similarities by cohort. Raises OSError."""
    now = now or time.time()
    with contextlib.closing(connect(place)) as ledger:
        newest = [row["revision"] for row in ledger.select(_NEWEST)] if ledger.has_column("decision") else []
        if not newest:
            return Drift(None, (0, 0), [], "NO TRAFFIC: the ledger has no decision")
        since = now - (BASE_DAYS + 1) * DAY_S
        query = _ROWS.format(app="o.app" if ledger.has_column("app") else "NULL")
        base, recent = _windows(ledger.select(query, (since, newest[0])), now - DAY_S)
    return compare(newest[0], base, recent, evidence or {})


def _windows(rows: Iterable[Mapping[str, Any]], border: float) -> tuple[list[Observed], list[Observed]]:
    """The decisions before `border` and after it, the first one of each conversation."""
    windows: tuple[list[Observed], list[Observed]] = ([], [])
    seen: tuple[set[str], set[str]] = (set(), set())
    for row in rows:
        at = int(row["time"] >= border)
        if row["session"] is not None:
            if row["session"] in seen[at]:
                continue
            seen[at].add(row["session"])
        observed = _observed(row)
        if observed is not None:
            windows[at].append(observed)
    return windows


def _observed(row: Mapping[str, Any]) -> Observed | None:
    decision = msgspec.json.decode(row["decision"] or "{}")
    values = [decision.get(name) for name in ("similarity", "margin")]
    if not isinstance(decision.get("cohort"), str) or None in values:
        return None
    similarity, margin = map(float, values)
    right = None if row["label"] is None else row["label"] == decision["cohort"]
    fell_back = row["reason"] in FALLBACKS
    cohort = decision["cohort"] if row["app"] is None else f"{row['app']}/{decision['cohort']}"
    return Observed(cohort, fell_back, similarity, margin, decision.get("probability"), right)


def compare(
    revision: str, base: Sequence[Observed], recent: Sequence[Observed], evidence: Mapping[str, Sequence[float]]
) -> Drift:
    """Test every number for which both windows have enough conversations."""
    findings = [*_findings(base, recent), *_from_evidence(recent, evidence), *_calibration([*base, *recent])]
    level = FALSE_ALARM / max(len(findings), 1)
    judged = [msgspec.structs.replace(f, drifted=f.p < level and _is_large(f)) for f in findings]
    judged.sort(key=lambda finding: (not finding.drifted, finding.p))
    return Drift(revision, (len(base), len(recent)), judged, _verdict(judged, base, recent))


def _is_large(finding: Finding) -> bool:
    least = LEAST_RANK if finding.kind in ("margins", "evidence") else LEAST_SHARE
    return abs(finding.now - finding.before) >= least


def _findings(base: Sequence[Observed], recent: Sequence[Observed]) -> Iterator[Finding]:
    groups = [_by_cohort(window) for window in (base, recent)]
    for group in sorted(groups[0].keys() & groups[1].keys()):
        before, now = groups[0][group], groups[1][group]
        if len(before) < LEAST_BASE or len(now) < LEAST_RECENT:
            continue
        sizes = len(before), len(now)
        fell = [sum(row.fell_back for row in window) for window in (before, now)]
        table = [[fell[0], sizes[0] - fell[0]], [fell[1], sizes[1] - fell[1]]]
        p = float(stats.fisher_exact(table)[1])
        yield Finding("fallbacks", group, fell[0] / sizes[0], fell[1] / sizes[1], sizes, p)
        if group != ALL:
            rank, p = _ranks([row.margin for row in before], [row.margin for row in now])
            yield Finding("margins", group, 0.5, rank, sizes, p)


def _from_evidence(recent: Sequence[Observed], evidence: Mapping[str, Sequence[float]]) -> Iterator[Finding]:
    """How near the traffic is to its cohort, against the rows that the floors were fitted on."""
    for group, now in sorted(_by_cohort(recent).items()):
        fitted = evidence.get(group, ())
        if group != ALL and len(fitted) >= LEAST_RECENT and len(now) >= LEAST_RECENT:
            rank, p = _ranks(fitted, [row.similarity for row in now])
            yield Finding("evidence", group, 0.5, rank, (len(fitted), len(now)), p)


def _calibration(rows: Sequence[Observed]) -> Iterator[Finding]:
    """Whether as many labelled matches are right as their probabilities say."""
    labelled = [
        (row.probability, row.right) for row in rows if row.probability is not None and row.right is not None
    ]
    if len(labelled) < LEAST_LABELS:
        return
    chances, right = np.array([c for c, _ in labelled]), np.array([r for _, r in labelled], dtype=float)
    spread = math.sqrt(float((chances * (1 - chances)).sum()) or 1e-9)
    # Half a row is the correction for counts.
    z = max(abs(float(right.sum() - chances.sum())) - 0.5, 0.0) / spread
    sizes = len(labelled), len(labelled)
    yield Finding(
        "probability", ALL, float(chances.mean()), float(right.mean()), sizes, float(2 * stats.norm.sf(z))
    )


def _ranks(before: Sequence[float], now: Sequence[float]) -> tuple[float, float]:
    """(the chance that a value of now is above one of before, the p-value of Mann and Whitney's test)."""
    result = stats.mannwhitneyu(now, before, alternative="two-sided", method="asymptotic")
    return float(result.statistic) / (len(now) * len(before)), float(result.pvalue)


def _by_cohort(rows: Sequence[Observed]) -> dict[str, list[Observed]]:
    groups = defaultdict[str, list[Observed]](list)
    for row in rows:
        groups[row.cohort].append(row)
        groups[ALL].append(row)
    return groups


def _verdict(findings: Sequence[Finding], base: Sequence[Observed], recent: Sequence[Observed]) -> str:
    drifted = [finding for finding in findings if finding.drifted]
    if drifted:
        first = drifted[0]
        more = f"; and {len(drifted) - 1} more" if len(drifted) > 1 else ""
        return f"DRIFT: {sentence(first)}{more}"
    if not findings:
        return (
            f"NOT ENOUGH: {len(base)} conversations in the week before and {len(recent)} in the last day, with the "
            f"revision that serves now; {LEAST_BASE} and {LEAST_RECENT} are needed"
        )
    return f"NO DRIFT: {len(findings)} numbers are as before, by {len(recent):,} conversations of the last day"


def sentence(finding: Finding) -> str:
    """One finding in words."""
    place = "all requests" if finding.group == ALL else f"`{finding.group}`"
    match finding.kind:
        case "fallbacks":
            return f"{finding.now:.1%} of {place} fall back, after {finding.before:.1%} in the week before"
        case "margins":
            return f"a margin of {place} is above one of the week before in {finding.now:.0%} of the pairs"
        case "evidence":
            return (
                f"a request of {place} is nearer to it than a row of the evidence in {finding.now:.0%} of the pairs"
            )
        case _:
            return f"{finding.now:.1%} of the labelled matches are right, and {finding.before:.1%} are expected"
