"""Notes that a reader of an evaluation needs to read its numbers correctly."""

from collections import Counter
from collections.abc import Container, Iterator

import numpy as np

from extproc.contract.words import Reason
from extproc.evidence.data.groups import distinct
from extproc.evidence.data.setting import SUFFIXES, tier_of
from extproc.evidence.data.tokens import TOKENIZER
from extproc.evidence.execution import Execution
from extproc.evidence.measure.recording import without_chance

REPETITIONS = (
    "asks that repeat, also with another number, id or name, and the asks of one session or user count once"
)
# A note lists at most this many names.
_MOST_NAMES = 5


def notes_on(run: Execution) -> list[str]:
    """Every note on an execution."""
    notes = [
        "All decisions were made before a label or an outcome was read. The hash of the files, centroids, "
        f"thresholds and decisions is {run.sealed}."
    ]
    notes += unused(run)
    if (independent := distinct(run.groups)) < len(run.rows):
        notes.append(f"In the intervals {len(run.rows):,} rows count as {independent:,}: {REPETITIONS}.")
    if fitted := list(_fitted_here(run)):
        notes.append(
            f"Rows of this file were used to fit {', '.join(fitted)}, so these numbers look better than they are. "
            "`extproc calibrate` reported on rows that it did not fit on."
        )
    counts = run.token_counts
    if counts["estimated"]:
        notes.append(f"The tokens of {counts['estimated']} answers were estimated with {TOKENIZER}.")
    if counts["input only"]:
        notes.append(
            f"{counts['input only']} answers were recorded without text and token counts, so only their input is "
            "priced."
        )
    notes += _impossible(run)
    unavailable: Counter[str] = Counter()
    for served, rows in run.served.counts():
        for rule in served.unavailable:
            unavailable[rule] += rows
    for rule, rows in unavailable.items():
        notes.append(f"Rule `{rule}` could not run on {rows} recorded answers, so its declared outcome was used.")
    bounds = int(run.served.where(lambda served: served.bound is not None).sum())
    if bounds:
        notes.append(f"{bounds} rejected answers were served: their cohort had used its share of escalations.")
    if left_out := int(without_chance(run).sum()):
        notes.append(
            f"{left_out:,} rows had no chance to be explored. The lines that compare tiers are about the other "
            "rows."
        )
    persons = int(run.served.where(lambda served: served.person).sum())
    if persons:
        notes.append(f"{persons} answers went to review by a person. They have no quality here.")
    missing = int((run.revealed.where(bool) & ~run.served.where(lambda served: True)).sum())
    if missing:
        notes.append(
            f"{missing} rows lack the answer of a tier that they were sent to. They count as rows without outcomes."
        )
    return notes


def _impossible(run: Execution) -> Iterator[str]:
    """Notes on token counts that no answer of the tier can have."""
    counts = {name: run.answers.column(name, "impossible") for name in run.answers.names}
    found = sorted((int(i), name) for name, column in counts.items() for i in np.flatnonzero(~np.isnan(column)))
    cases = [
        f"line {run.rows.lines[i]}: {int(counts[name][i]):,} tokens of `{name}`, whose context is "
        f"{run.snapshot.policy.tier(tier_of(name)).context:,}"
        for i, name in found[:_MOST_NAMES]
    ]
    if cases:
        more = f", and {len(found) - _MOST_NAMES} more" if len(found) > _MOST_NAMES else ""
        yield (
            f"{len(found)} answers have more tokens than the context of their tier, and count as the context: "
            f"{'; '.join(cases)}{more}."
        )


def _fitted_here(run: Execution) -> Iterator[str]:
    """The parts of the configuration that were fitted or chosen on this traffic, by the hash of the data."""
    fitted = run.config.fitted
    if fitted is not None and fitted.header.data == run.digest:
        yield "the centroids"
    kinds = {"floors": "evidence", "acceptance scores": "scorer", "tiers": "chosen"}
    for part, key in kinds.items():
        stamps = [getattr(intent, key) for intent in run.config.intents]
        count = sum(stamp is not None and stamp.data == run.digest for stamp in stamps)
        if count:
            yield f"the {part} of {count} cohorts"


def unused(run: Execution, beside: Container[str] = ()) -> Iterator[str]:
    """Notes on rows that were left out, and on names in the rows that this configuration does not have.

    `beside`: intents that another execution in the same comparison has.
    """
    if run.verbatim:
        yield f"{run.verbatim} rows were left out because they repeat an utterance of the intents word for word."
    policy = run.snapshot.policy
    labels = {name: rows for name, rows in run.revealed.intents.counts() if isinstance(name, str)}
    foreign = Counter({n: rows for n, rows in labels.items() if n not in policy.cohorts and n not in beside})
    if foreign:
        yield f"These labels are not intents here and count as out of scope: {_counted(foreign)}."
    names = {name + suffix for tier in policy.tiers for name in (tier.name, tier.model) for suffix in SUFFIXES}
    tiers: Counter[str] = Counter()
    for marks, rows in run.revealed.marks.counts():
        for mark in marks:
            if mark.name not in names:
                tiers[mark.name] += rows
    if tiers:
        yield f"Outcomes under these names are ignored, as no tier or model has the name: {_counted(tiers)}."
    passed = np.array(run.routed.column(lambda decision: decision.reason is Reason.PASSTHROUGH), dtype=np.bool_)
    requests = (run.routed[int(i)].request for i in np.flatnonzero(passed))
    models = Counter(request.model or "no model" for request in requests if request is not None)
    if models:
        yield (
            "Requests for these models pass through unmatched, as `retarget` in policy.yaml does not list them: "
            f"{_counted(models)}."
        )


def _counted(names: Counter[str]) -> str:
    """The most frequent names, each with its number of rows."""
    shown = ", ".join(f"{name or repr(name)} ({rows})" for name, rows in names.most_common(_MOST_NAMES))
    return shown + (f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else "")
