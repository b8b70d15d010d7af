"""Hostile request bodies: they are read or refused with a known error, and only our members are changed."""

import json
import time
from typing import get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.acceptance.requirements import read_requirements
from extproc.acceptance.rules import compile_rules
from extproc.api.paths import APIS
from extproc.api.reasoning import REASONING_MEMBERS
from extproc.api.repair import BOM, repaired
from extproc.api.request import Request, RequestError, parse_request
from extproc.api.splice import SpliceError, apply
from extproc.contract.words import Reason
from extproc.routing.decision import Decision
from extproc.routing.dialects import DIALECTS, SAMPLING
from extproc.routing.mutation import Mutation, mutate, rename_model
from extproc.routing.policy import Cohort, Rung
from extproc.routing.signals import read_signals
from extproc.settings import Budget, Dialect, Price, Tier
from tests.fuzz.shapes import BODIES, DOCUMENTS, PATHS, Document, Member, corpus

_FORMS = [form for forms in DIALECTS.values() for form in forms]
# The members that a decision may write or remove.
OURS = {
    "model", "max_tokens", "max_completion_tokens", "max_output_tokens", "include", "context_management", *SAMPLING,
    *(name.partition(".")[0] for name in REASONING_MEMBERS), *(name for form in _FORMS for name in form.drop),
    *(name for form in _FORMS for fields in form.apis.values() for name in fields.drop),
}  # fmt: skip
_DIALECTS = get_args(Dialect)
_MODELS = ("qwen3-8b", 'q"uo\\te', "ünï", "m" * 300, "gpt-5.4", "gpt-5-nano", "claude-haiku-4-5", "claude-opus-5")
_TIERS = st.builds(
    lambda dialect, model: Tier(dialect, model, "http://h", 1000, Price(0, 0), dialect),
    st.sampled_from(_DIALECTS), st.sampled_from(_MODELS),
)  # fmt: skip
_REASONING = st.sampled_from((None, True, False, Budget(0), Budget(2048), Budget(10**9)))
_RULES = compile_rules(["complete", "json_schema", "tool_calls", {"logprob": -1}, {"grounded": 0.5}])
_DECISIONS = st.builds(
    lambda tier, reasoning, forced, cap, ladder, judged: Decision(
        tier, Reason.MATCHED, cohort=Cohort("c", tier.name, 0, 0, True, accept=_RULES), reasoning=reasoning,
        reasoning_forced=forced, max_output_tokens=cap, ladder=tuple(ladder), judged=judged,
    ),
    _TIERS, _REASONING, st.booleans(), st.sampled_from((None, 1, 512)), st.lists(st.builds(Rung, _TIERS,
        _REASONING), max_size=2),
    st.booleans(),
)  # fmt: skip
_USUAL = Decision(
    Tier("t", "qwen3-8b", "http://h", 1000, Price(0, 0), "qwen3"),
    Reason.MATCHED,
    reasoning=False,
    max_output_tokens=64,
)


def read(path: str, body: bytes) -> Request | None:
    """Return the request, or None if it is refused with RequestError."""
    try:
        request = parse_request(path, body)
    except RequestError as error:
        assert len(str(error)) < 1000 + len(path)  # a short message, without the body
        return None
    if request is not None:
        signals = read_signals(request, 512)
        signals.ask.text.encode()
        assert len(signals.ask.text) <= 512 and signals.tokens >= 0
        msgspec.json.encode(read_requirements(request, _RULES))
    return request


def written(decision: Decision, request: Request) -> list[bytes]:
    """Return the body of each attempt, or no body if it is refused with SpliceError."""
    try:
        mutation: Mutation = mutate(decision, request)
    except SpliceError:
        return []
    assert mutation.body is not None
    return [mutation.body, *(apply(mutation.body, rung) for rung in mutation.rungs)]


def members(body: bytes) -> dict[str, bytes]:
    """Return the top-level members with the bytes of their values, which are repaired as the router does it."""
    body = repaired(body.removeprefix(BOM))
    return {name: bytes(raw) for name, raw in msgspec.json.decode(body, type=dict[str, msgspec.Raw]).items()}


def foreign(body: bytes) -> dict[str, bytes]:
    """Return the members that a decision must not change."""
    return {name: raw for name, raw in members(body).items() if name not in OURS}


def follows(document: Document, body: bytes) -> bool:
    """Whether `body` is the document, except for our members: their values, removed ones and new ones."""
    if {member.name for member in document.members if member.name in OURS} <= members(body).keys():
        return _follows_whole(document, body)
    at = len(document.lead) + 1
    for member in document.members:
        if member.name not in OURS:
            piece = member.head.lstrip() + member.value
            at = body.find(piece, at) + len(piece)
            if at < len(piece):
                return False
    return body.startswith(document.lead + b"{") and body.endswith(b"}" + document.tail)


def _follows_whole(document: Document, body: bytes) -> bool:
    """Whether `body` is the document, except for the values of our members and for new ones at its end."""
    text, at = body.decode("latin-1"), 0  # one character per byte

    def take(piece: bytes) -> bool:
        nonlocal at
        matches = body.startswith(piece, at)
        at += len(piece) if matches else 0
        return matches

    def take_value(member: Member) -> bool:
        nonlocal at
        if member.name not in OURS:
            return take(member.value)
        try:
            _, at = json.JSONDecoder().raw_decode(text, at)
        except ValueError:  # the router did not write this value
            return take(member.value)
        return True

    if not take(document.lead + b"{"):
        return False
    for place, member in enumerate(document.members):
        if (place and not take(b",")) or not (take(member.head) and take_value(member)):
            return False
        if member is not document.members[-1] and not take(member.gap):
            return False
    rest = body[at:].removesuffix(document.members[-1].gap + b"}" + document.tail)
    return members(b"{" + rest.removeprefix(b",") + b"}").keys() <= OURS


@given(st.sampled_from(PATHS), BODIES, _DECISIONS)
def test_any_bytes_are_read_or_refused_by_name(path: str, body: bytes, decision: Decision) -> None:
    """Only RequestError and SpliceError are raised. A changed body is JSON with the same other members."""
    request = read(path, body)
    for attempt in written(decision, request) if request is not None else ():
        assert foreign(attempt) == foreign(body)
    try:
        renamed = rename_model(body, decision.tier, lambda _: True)
    except SpliceError:  # the client gets an error
        return
    if renamed is not None:
        assert members(renamed) == members(body) | {"model": msgspec.json.encode(decision.tier.model)}


@given(st.sampled_from(list(APIS)), DOCUMENTS, _DECISIONS)
def test_every_byte_that_is_not_ours_survives(path: str, document: Document, decision: Decision) -> None:
    """In every attempt, other members keep their order, white space, escapes and number forms."""
    request = read(path, document.body)
    for attempt in written(decision, request) if request is not None else ():
        assert follows(document, attempt), attempt


def test_the_two_tests_above_meet_bodies_that_are_written() -> None:
    """A usual document is read, changed and recognised. With another byte changed, it is not recognised."""
    head, messages = b'"model" : ', b'[{"role":"user","content":"Hi"}]'
    document = Document(
        b" ", (Member("model", head, b'"auto"', b" "), Member("messages", b'"messages":', messages, b"\n")), b"\n"
    )
    request = read("/v1/chat/completions", document.body)
    assert request is not None
    (attempt,) = written(_USUAL, request)
    assert attempt == (
        b' {"model" : "qwen3-8b" ,"messages":[{"role":"user","content":"Hi"}],"max_tokens":64,'
        b'"chat_template_kwargs":{"enable_thinking":false}\n}\n'
    )
    assert follows(document, attempt)
    assert not follows(document, attempt.replace(b"Hi", b"Ho"))


@pytest.mark.parametrize("name", corpus("bodies"))
@pytest.mark.parametrize("path", APIS)
def test_the_corpus_of_bodies(path: str, name: str) -> None:
    """Each body is read or refused, quickly."""
    body, began = corpus("bodies")[name], time.process_time()
    request = read(path, body)
    for attempt in written(_USUAL, request) if request is not None else ():
        assert foreign(attempt) == foreign(body)
    assert time.process_time() - began < 1
