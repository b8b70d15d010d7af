"""`extproc why`: the story of one request, in sentences, from its row in the ledger."""

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from extproc.accounting.connection import Connection
from extproc.accounting.outcome import Ending, Unjudged
from extproc.accounting.queries import ANONYMOUS
from extproc.accounting.store import connect, name_of
from extproc.accounting.tables import newer_column
from extproc.contract.records import DecisionRecord, VerdictRecord
from extproc.contract.words import NOT_A_COHORT, Bound, CacheWord, Course, Reason, Signal, Undecided

# Ids that clients choose may repeat.
_MOST = 5
_OUTCOME = f"SELECT * FROM outcomes WHERE request = ? AND time >= ? ORDER BY time DESC LIMIT {_MOST}"
# A ledger of an older version may have no index of request ids. Then the index of times finds these hours.
_SCANNED_S = 24 * 3600.0
_REJECTIONS = "SELECT * FROM rejections WHERE outcome = ? ORDER BY attempt"

_SIGNALS = "SELECT kind, score, label FROM signals WHERE request = ? AND principal = ? ORDER BY kind"
_AGAIN: dict[str, str] = {
    Signal.RE_ASKED: "the conversation asked almost the same again",
    Signal.EDITED: "the client changed the ask and sent it again",
    Signal.REPEATED: "the client sent the same ask again",
}

_REASONS: dict[str, str] = {
    Reason.MATCHED: "it is the tier of its cohort",
    Reason.BY_PROMPT: "the predicted gain of the prompt chose between two tiers of its cohort",
    Reason.RULE: "a rule named the tier",
    Reason.BACKGROUND: "an agent made this call by itself, and the cheapest tier that can serve it is enough",
    Reason.TIER_FLOOR: "a cohort or a rule allows no lower tier",
    Reason.CAPABILITY: "the tiers below cannot serve it: it is too long for them, or they lack a capability",
    Reason.BOUND: "the conversation stays at the tier that answered it last",
    Reason.UPGRADE_RATE: "the caller has used up its upgrades, so the default tier serves",
    Reason.BUDGET: "a budget is used up, so its tier serves, or the client got an error",
    Reason.RESIDENCY: "`only` allows no other tier",
    Reason.PINNED: "the client named the model of this tier",
    Reason.PASSTHROUGH: "`retarget` does not list the model that the client named, or the path is not routed",
    Reason.BAD_REQUEST: "no upstream may get its body, so the client got an error",
    Reason.OUT_OF_SCOPE: "no cohort is near enough, so the default tier serves",
    Reason.AMBIGUOUS: "two cohorts are about equally near, so no cohort decides alone",
    Reason.ABSTAINED: "matches of this cohort are wrong too often, so they do not count",
    Reason.NO_TEXT: "it has no text from a person, so the default tier serves",
    Reason.UNREADABLE: "its body could not be read, so the default tier serves",
    Reason.DEADLINE: "the encoder did not answer in time, so the default tier serves",
    Reason.ENCODER: "the encoder failed, so the default tier serves",
    Reason.APP_OFF: "the intents of its app have mistakes",
    Undecided.FAIL_OPEN: "Envoy got no decision from the router in time, so the default tier serves",
    Undecided.NONE: "it was not sent to any upstream",
}
_UNJUDGED: dict[str, str] = {
    Unjudged.NO_COHORT: "the request belongs to no cohort",
    Unjudged.NO_RULE: "its cohort has no rule for answers, or nothing above could give a better one",
    Unjudged.LAST_RUNG: "it came from the last rung of the ladder",
    Unjudged.CACHED: "it is an earlier answer, which was judged then",
    Unjudged.LOST: "the verifier was down, or the verdict came too late",
}
_BOUNDS: dict[str, str] = {
    Bound.LAST_RUNG: "there was no higher rung",
    Bound.COHORT_SHARE: "the cohort has used up its share of escalations",
    Bound.PRINCIPAL_RATE: "the caller has used up its rate of escalations",
}
# The action of the cache in a sentence, by its word.
CACHE_WORDS: dict[str, str] = {
    CacheWord.HIT: "An earlier answer to the same words was served, and no tier was asked",
    CacheWord.SEMANTIC: "An earlier answer to the same question in other words was served, and no tier was asked",
    CacheWord.CHECKED: "An answer was there, and a tier answered again to check it",
    CacheWord.MISS: "No accepted answer to this question was there",
    CacheWord.CLIENT: "Not asked: `cache-control` of the client forbids it",
    CacheWord.PERSONAL: "Not asked: the request is about one person, or has an address or a number of an account",
    CacheWord.MOMENT: "Not asked: the answer depends on the day or the hour",
    CacheWord.SAMPLING: "Not asked: the client wants another answer each time, by its temperature or its words",
    CacheWord.FORM: "Not asked: the request has state, media or hosted tools, or asks for more than one text",
    CacheWord.ANONYMOUS: "Not asked: no header names the principal, and `scope` is principal",
    CacheWord.OFF: "Off: too many of its checked hits were wrong",
}
_COURSES: dict[str, str] = {
    Course.KEPT: "stayed at the tier that answered last",
    Course.KEPT_SEALED: "stayed, because only that tier can read the state in the request",
    Course.KEPT_TOOL_LOOP: "stayed, because the model continues its own turn",
    Course.KEPT_CACHE: "stayed, because a move would give up a prompt cache that is worth more",
    Course.MOVED: "moved to another tier",
    Course.MOVED_STRIPPED: "moved to another tier, without items that this tier cannot read",
    Course.LOST: "continued with state of an unknown tier",
}


def why(place: Path | str, request: str) -> str:
    """Return the story of each request with this id, the newest first. Raises OSError with a remedy."""
    with contextlib.closing(connect(place)) as ledger:
        indexed = ledger.finds_requests()
        since = 0.0 if indexed else time.time() - _SCANNED_S
        stories = [_story(row, ledger) for row in list(ledger.select(_OUTCOME, (request, since)))]
    if not stories and not indexed:
        raise OSError(
            f"{name_of(place)} has no request {request} in the last 24 hours. Only these were searched, because "
            "this ledger of an earlier release has no index of request ids: `extproc serve --ledger` builds it"
        )
    if not stories:
        raise OSError(
            f"{name_of(place)} has no request {request}: the id is in the answer's header x-request-id. A row "
            "comes a few seconds after the answer, and is deleted after `extproc serve --ledger-days`"
        )
    return "\n\n".join(stories)


def _story(row: Mapping[str, Any], ledger: Connection) -> str:
    rejections = list(ledger.select(_REJECTIONS, (row["id"],)))
    values = msgspec.json.decode(newer_column(row, "decision") or "{}")
    decision, verdict = DecisionRecord.from_metadata(values), VerdictRecord.from_metadata(values)
    lines = [
        *_opening(row),
        *_decision(row, decision),
        *_app(decision),
        *_match(row, decision),
        *_cache(row, decision),
        *_attempts(row, rejections, verdict),
        *_cost(row, rejections),
        *_place(row, decision),
        *_after(row, list(ledger.select(_SIGNALS, (row["request"], row["principal"] or ANONYMOUS)))),
    ]
    return "\n".join(lines)


def _opening(row: Mapping[str, Any]) -> Iterator[str]:
    when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(row["time"]))
    took = f" after {row['duration_s']:.2f} s" if row["duration_s"] is not None else ""
    yield f"request   {row['request']}, {row['api']}, {when}"
    yield f"ended     {_ending(row)}{took}"


def _ending(row: Mapping[str, Any]) -> str:
    if row["ending"] == Ending.ACCEPTED:
        return f"The client got an answer with status {row['status']}"
    texts: dict[str, str] = {
        Ending.DEGRADED: "The client got an answer that a rule rejected or could not judge in full",
        Ending.HUMAN: "The answer was queued for a person",
        Ending.FAILED: f"The client got an error or a cut answer, with status {row['status']}",
        Ending.CANCELLED: "The client left",
    }
    return texts[row["ending"]]


def _decision(row: Mapping[str, Any], decision: DecisionRecord) -> Iterator[str]:
    reason = _REASONS.get(row["reason"], "see docs/reference/reasons.md")
    first = f"Tier {decision.tier} was asked first" if decision.tier else f"Tier {row['tier'] or 'none'} was asked"
    if decision.tier and not row["attempts"]:
        first = f"Tier {decision.tier} was chosen"
    yield f"decision  {first}, because {reason} ({row['reason']})"
    if decision.rule is not None:
        yield f"          Rule `{decision.rule}` applied"
    if decision.proposed_tier is not None:
        yield f"          `mode: shadow`: `enforce` would have asked tier {decision.proposed_tier}"
    if decision.withheld is not None:
        yield f"          The match is a guess, so these keys of the intent were not applied: {decision.withheld}"


def _app(decision: DecisionRecord) -> Iterator[str]:
    if decision.app is not None:
        yield f"app       {decision.app}" + (f", team {decision.team}" if decision.team is not None else "")
    if decision.budget is not None:
        yield f"budget    {decision.budget} is used up"
    if decision.limits is not None:
        yield "limits    Those of one process, because the store of `state` could not be reached"


def _match(row: Mapping[str, Any], decision: DecisionRecord) -> Iterator[str]:
    counted = row["cohort"]
    if newer_column(row, "decision") is None and counted not in NOT_A_COHORT:
        yield f"cohort    {counted}. An older release wrote this row, without the record of the match"
        return
    if decision.cohort is None or decision.similarity is None:
        yield f"cohort    None was compared, so it counts as {counted}"
        return
    floor = f" (floor {decision.floor:.3f})" if decision.floor is not None else ""
    yield f"cohort    {decision.cohort} is nearest, with a similarity of {decision.similarity:.3f}{floor}"
    if decision.runner_up is not None and decision.margin is not None:
        least = f" (least margin {decision.least_margin:.3f})" if decision.least_margin is not None else ""
        yield f"          {decision.runner_up} is second, and the margin is {decision.margin:.3f}{least}"
    if decision.chance is not None and decision.background is not None:
        yield (
            f"          Chance of {decision.cohort}: {100 * decision.chance:.0f} %; that it belongs to no intent: "
            f"{100 * decision.background:.0f} %"
        )
    if decision.gain is not None and decision.least_gain is not None:
        least = f"and it serves from {100 * decision.least_gain:+.1f}"
        gain = f"{100 * decision.gain:+.1f} points for the mean extra cost"
        yield f"          The predicted gain of the costlier tier is {gain}, {least}"
    if decision.probability is not None:
        yield f"          The match is right with a probability of {100 * decision.probability:.0f} %"
    verb = f"does not count, so the request counts as {counted}" if counted in NOT_A_COHORT else "counts"
    yield f"          The match {verb}"


def _cache(row: Mapping[str, Any], decision: DecisionRecord) -> Iterator[str]:
    word = newer_column(row, "cache") or decision.cache
    if word is None:
        return
    yield f"cache     {CACHE_WORDS.get(word, 'See docs/guides/cache.md')} ({word})"
    saved = newer_column(row, "saved")
    if saved is not None:
        yield f"          Tier {row['tier'] or '-'} gave the answer. It saved ${saved:.6f}"


def _attempts(
    row: Mapping[str, Any], rejections: Sequence[Mapping[str, Any]], verdict: VerdictRecord
) -> Iterator[str]:
    failed = f", {row['failed_attempts']} of them failed without an answer" if row["failed_attempts"] else ""
    yield f"attempts  {row['attempts']}{failed}"
    for rejected in rejections:
        yield (
            f"          Attempt {rejected['attempt']}, tier {rejected['tier'] or '-'}: rejected "
            f"({rejected['reason']}){_paid(rejected)}"
        )
    if row["attempts"]:
        first = f", first byte after {row['first_byte_s']:.2f} s" if row["first_byte_s"] is not None else ""
        judged = _last(row, verdict)
        yield f"          Attempt {row['attempts']}, tier {row['tier'] or '-'}: {judged}{first}{_paid(row)}"
    if verdict.bound is not None:
        because = _BOUNDS.get(verdict.bound, "a limit was reached")
        yield f"          It did not escalate, because {because} ({verdict.bound})"


def _last(row: Mapping[str, Any], verdict: VerdictRecord) -> str:
    if row["judged"]:
        reason = (
            f" ({verdict.verdict_reason})" if verdict.verdict_reason and row["ending"] != Ending.ACCEPTED else ""
        )
        return f"{verdict.verdict or 'judged'}{reason}"
    why_not = newer_column(row, "unjudged")
    return f"not judged, because {_UNJUDGED[why_not]}" if why_not in _UNJUDGED else "not judged"


def _paid(row: Mapping[str, Any]) -> str:
    if row["input"] is None or row["output"] is None:
        return ", tokens unknown"
    cost = f", ${row['cost']:.6f}" if row["cost"] is not None else ""
    return f", {row['input']:,} tokens in and {row['output']:,} out{cost}"


def _cost(row: Mapping[str, Any], rejections: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    costs = [part["cost"] for part in (*rejections, row)]
    known = [cost for cost in costs if cost is not None]
    if not known and not row["attempts"]:
        yield "cost      Nothing, because no tier was asked"
        return
    if not known:
        yield "cost      Unknown: no tokens were reported, or the tier has no price"
        return
    unknown = ", without the answers whose tokens are unknown" if len(known) < len(costs) else ""
    default = ""
    if row["default_cost"] is not None:
        default = f". The default tier alone: ${row['default_cost']:.6f}"
    yield f"cost      ${sum(known):.6f}{unknown}{default}"


def _place(row: Mapping[str, Any], decision: DecisionRecord) -> Iterator[str]:
    if row["revision"] is not None:
        yield f"revision  {row['revision']}, mode {row['mode']}"
    course = decision.conversation or newer_column(row, "conversation")
    if course is not None:
        yield f"history   The conversation {_COURSES.get(course, course)} ({course})"


def _after(row: Mapping[str, Any], signals: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    sentences = [_AGAIN[signal["kind"]] for signal in signals if signal["kind"] in _AGAIN]
    for signal in signals:
        if signal["score"] is not None:
            sentences.append(f"feedback rated the answer {signal['score']:g} (0 is bad, 1 is good)")
        if signal["label"] is not None:
            sentences.append(f"feedback named {signal['label']} as the right cohort")
    if sentences:
        text = "; ".join(sentences)
        yield f"after     {text[0].upper()}{text[1:]}"
