"""What a reader of an evaluation has to know to read its numbers rightly."""

from collections import Counter
from collections.abc import Container, Iterator

from extproc.contract.words import Reason
from extproc.evidence.data.setting import SUFFIXES
from extproc.evidence.data.tokens import TOKENIZER
from extproc.evidence.execution import Execution

# Of names that are none here, so many are told.
_MOST_NAMES = 5


def notes_on(run: Execution) -> list[str]:
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
    here = {name + suffix for tier in policy.tiers for name in (tier.name, tier.model) for suffix in SUFFIXES}
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
