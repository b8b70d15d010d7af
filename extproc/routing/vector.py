"""The match of a request's ask, if the request is matched at all."""

import asyncio
from collections.abc import Mapping, Sequence

import msgspec

from extproc.contract.words import Reason
from extproc.encoder.language import is_english
from extproc.encoder.protocols import DeadlineError, Embedder, EncoderError, Vectors
from extproc.routing.ask import Ask
from extproc.routing.by_prompt import match_prompt
from extproc.routing.decision import proposed, untouched
from extproc.routing.findings import Findings, read_findings
from extproc.routing.follow_up import is_short
from extproc.routing.guard import needs_match
from extproc.routing.index import Match
from extproc.routing.policy import is_named
from extproc.routing.routed import Stopwatch
from extproc.routing.signals import Signals
from extproc.routing.snapshot import Snapshot
from extproc.routing.tasks import matched_asks
from extproc.routing.trust import trust


class Embedded(msgspec.Struct, frozen=True):
    """An ask of a request, and its vector."""

    signals: Signals
    vector: Vectors | None
    failure: Reason  # why there is no vector


class Matched(msgspec.Struct, frozen=True):
    """The match of a request, with the ask that was matched."""

    signals: Signals
    vector: Vectors | None
    match: Match | None
    failure: Reason  # why there is no match
    asks: tuple[Embedded, ...] = ()  # every ask that was looked at


async def match_ask(
    embedder: Embedder,
    snapshot: Snapshot,
    signals: Signals,
    headers: Mapping[str, str],
    principal: str,
    clock: Stopwatch,
) -> Matched:
    """Match the ask of a request, if it is matched at all."""
    reason = _unmatched(snapshot, signals)
    if reason is not None:
        return Matched(signals, None, None, reason)
    asks = matched_asks(signals.ask)
    each = [_embed(embedder, snapshot, ask, principal) for ask in asks]
    embedded = [await each[0]] if len(each) == 1 else await asyncio.gather(*each)
    clock.lap("embed")
    looked_at = tuple(
        Embedded(msgspec.structs.replace(signals, ask=ask), vector, failure)
        for ask, (vector, failure) in zip(asks, embedded, strict=True)
    )
    return match_asks(snapshot, looked_at, headers)


def match_asks(snapshot: Snapshot, asks: Sequence[Embedded], headers: Mapping[str, str]) -> Matched:
    """Match an ask, or several: a follow-up together with the asks before it and alone, or the prompts of a list.

    The highest tier counts, within the guards of both. A part of a text, a reply, or a few words alone count only
    if their match is trusted.
    """
    highest, *alone = [_match(snapshot, ask, asks) for ask in asks]
    for place, each in enumerate(alone, 1):
        matched = _after(each, highest, place)
        if _needs_more(snapshot, matched, highest, headers):
            highest = matched
    return highest


def _after(alone: Matched, joined: Matched, place: int) -> Matched:
    """An ask alone, in the guard that it has with the others."""
    if alone.match is None or joined.match is None:
        return alone
    return msgspec.structs.replace(
        alone, match=msgspec.structs.replace(alone.match, joined=joined.match, place=place)
    )


def _match(snapshot: Snapshot, ask: Embedded, asks: Sequence[Embedded]) -> Matched:
    match = match_prompt(snapshot, ask.vector, ask.signals.ask) if ask.vector is not None else None
    return Matched(ask.signals, ask.vector, match, ask.failure, tuple(asks))


def _needs_more(snapshot: Snapshot, alone: Matched, joined: Matched, headers: Mapping[str, str]) -> bool:
    """Whether an ask alone asks for a higher tier than with the asks before it."""
    if joined.match is None or alone.match is None:
        return False
    ask = alone.signals.ask
    if (ask.guess or is_short(ask.text)) and trust(snapshot.policy, alone.match) is not Reason.MATCHED:
        return False
    above, below = (
        read_findings(snapshot.policy, matched.signals, matched.match, headers, matched.failure)
        for matched in (alone, joined)
    )
    if above.guard.only == frozenset():  # no tier is in the sets of both
        return False
    return _needed(snapshot, above, alone.match) > _needed(snapshot, below, joined.match)


def _needed(snapshot: Snapshot, findings: Findings, match: Match) -> int:
    """The rank that a rule, the prompt or the match asks for, or the floor above it."""
    return max(proposed(snapshot.policy, findings, match).rank, findings.guard.floor)


def _unmatched(snapshot: Snapshot, signals: Signals) -> Reason | None:
    """The reason why a request is not matched, or None."""
    policy = snapshot.policy
    if is_named(policy, signals.model):
        if not needs_match(policy, policy.rank(untouched(policy, Reason.PASSTHROUGH, signals.model).tier.name)):
            return Reason.NO_TEXT
    elif signals.background is not None:
        return Reason.BACKGROUND
    if snapshot.off is not None:
        return Reason.APP_OFF
    return Reason.OUT_OF_SCOPE if signals.no_task else None


async def _embed(embedder: Embedder, snapshot: Snapshot, ask: Ask, principal: str) -> tuple[Vectors | None, Reason]:
    """The vector of the ask, or None and the reason why there is none."""
    if not ask.text:
        return None, Reason.NO_TEXT
    if snapshot.english_only and not is_english(ask.text):
        return None, Reason.OUT_OF_SCOPE
    try:
        return await embedder.embed(ask.text, snapshot.encoder.deadline_ms / 1000, principal), Reason.MATCHED
    except DeadlineError:
        return None, Reason.DEADLINE
    except EncoderError:
        return None, Reason.ENCODER
