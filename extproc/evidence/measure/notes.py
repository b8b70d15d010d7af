"""Notes that a reader of an evaluation needs to read its numbers correctly."""

from collections import Counter
from collections.abc import Container, Iterator

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
    unavailable = Counter(rule for s in run.served if s is not None for rule in s.unavailable)
    for rule, rows in unavailable.items():
        notes.append(f"Rule `{rule}` could not run on {rows} recorded answers, so its declared outcome was used.")
    bounds = sum(s is not None and s.bound is not None for s in run.served)
    if bounds:
        notes.append(f"{bounds} rejected answers were served: their cohort had used its share of escalations.")
    if left_out := int(without_chance(run).sum()):
        notes.append(
            f"{left_out:,} rows had no chance to be explored. The lines that compare tiers are about the other "
            "rows."
        )
    persons = sum(s is not None and s.person for s in run.served)
    if persons:
        notes.append(f"{persons} answers went to review by a person. They have no quality here.")
    missing = sum(bool(row.outcomes) and s is None for row, s in zip(run.revealed, run.served, strict=True))
    if missing:
        notes.append(
            f"{missing} rows lack the answer of a tier that they were sent to. They count as rows without outcomes."
        )
    return notes


def _impossible(run: Execution) -> Iterator[str]:
    """Notes on token counts that no answer of the tier can have."""
    cases = [
        f"line {row.line}: {answer.impossible:,} tokens of `{name}`, whose context is "
        f"{run.snapshot.policy.tier(tier_of(name)).context:,}"
        for row, answers in zip(run.rows, run.answers, strict=True)
        for name, answer in answers.items()
        if answer.impossible is not None
    ]
    if cases:
        more = f", and {len(cases) - _MOST_NAMES} more" if len(cases) > _MOST_NAMES else ""
        yield (
            f"{len(cases)} answers have more tokens than the context of their tier, and count as the context: "
            f"{'; '.join(cases[:_MOST_NAMES])}{more}."
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
    labels = Counter(row.intent for row in run.revealed if isinstance(row.intent, str))
    foreign = Counter({n: rows for n, rows in labels.items() if n not in policy.cohorts and n not in beside})
    if foreign:
        yield f"These labels are not intents here and count as out of scope: {_counted(foreign)}."
    names = {name + suffix for tier in policy.tiers for name in (tier.name, tier.model) for suffix in SUFFIXES}
    if tiers := Counter(name for row in run.revealed for name in row.outcomes if name not in names):
        yield f"Outcomes under these names are ignored, as no tier or model has the name: {_counted(tiers)}."
    models = Counter(
        routed.request.model or "no model"
        for routed in run.routed
        if routed.request is not None and routed.decision.reason is Reason.PASSTHROUGH
    )
    if models:
        yield (
            "Requests for these models pass through unmatched, as `retarget` in policy.yaml does not list them: "
            f"{_counted(models)}."
        )


def _counted(names: Counter[str]) -> str:
    """The most frequent names, each with its number of rows."""
    shown = ", ".join(f"{name or repr(name)} ({rows})" for name, rows in names.most_common(_MOST_NAMES))
    return shown + (f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else "")
