"""The verifier's side of an exchange, message by message: the hold, the release and the verdict."""

import asyncio
import gzip
import threading
from typing import Any, cast

import msgspec
import pytest

from extproc.acceptance.requirements import Requirements
from extproc.acceptance.rules import compile_rules
from extproc.api.answer import AnswerReader
from extproc.api.observation import Usage
from extproc.api.strip import without_logprobs
from extproc.contract.names import Namespace
from extproc.contract.records import ladder_of
from extproc.messages import Event, Opening, Reply
from extproc.routing.index import Index
from extproc.routing.policy import Cohort, Policy
from extproc.routing.snapshot import AppRoute, Rollout, Snapshot
from extproc.settings import Candidate, EncoderConfig, Escalate, Escalations, Human, StreamHold, Timeouts
from extproc.verifying.exchange import Verifier, VerifierExchange
from extproc.verifying.rescue import RescueExchange
from extproc.verifying.ruling import Ruling

_RULES = ("complete", "non_empty", "no_refusal")


def snapshot(stream: StreamHold = "early", rules: Any = _RULES, share: float = 1.0, **limits: Any) -> Snapshot:
    cohort = Cohort(
        "c", "small", 0.0, 0.0, True,
        accept=compile_rules(list(rules)), escalate=Escalate("large", share=share), stream=stream,
    )  # fmt: skip
    policy = Policy((), "small", {"c": cohort})
    return Snapshot("r1", policy, cast(Index, None), EncoderConfig(), Escalations(**limits))


# The modes of a stream. `extproc envoy` renders the first one.
STREAMS = ("STREAMED", "FULL_DUPLEX_STREAMED")


def opening(
    mode: str = "STREAMED",
    attempt: int = 1,
    cohort: str = "c",
    counts_tokens: bool = False,
    reads_endings: bool = False,
    **facts: Any,
) -> Opening:
    given = Requirements(stream=mode in STREAMS) if not facts else Requirements(**facts)
    decision = {"cohort": cohort, "rungs": ["small", "large"], "api": "chat", "escalations": 0.0}
    return Opening(
        {"authorization": "Bearer x"}, "NONE", mode,  # type: ignore[arg-type]
        {Namespace.DECISION: decision, Namespace.REQUIREMENTS: {"facts": msgspec.json.encode(given).decode()}},
        attempt,
        body_before_reply=mode == "STREAMED",
        counts_tokens=counts_tokens,
        reads_endings=reads_endings,
    )  # fmt: skip


def headers(kind: str = "text/event-stream", status: str = "200", end: bool = False, encoding: str = "") -> Event:
    more = {"content-encoding": encoding} if encoding else {}
    return Event("response_headers", end, headers={":status": status, "content-type": kind, **more})


def run(exchange: VerifierExchange, *events: Event) -> list[list[Reply]]:
    """Return the replies to each event, until the exchange is over."""

    async def play() -> list[list[Reply]]:
        return [await exchange.answer(event) for event in events if not exchange.over]

    return asyncio.run(play())


def chunk(content: str | None = None, finish: str | None = None) -> bytes:
    delta = {} if content is None else {"content": content}
    return (
        b"data: "
        + msgspec.json.encode({"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})
        + b"\n\n"
    )


def transcript(*texts: str, finish: str | None = "stop", done: bool = True) -> bytes:
    ending = [chunk(finish=finish)] if finish else []
    return b"".join([*map(chunk, texts), *ending, *([b"data: [DONE]\n\n"] if done else [])])


def streamed(pieces: list[bytes], trailers: bool = False) -> list[Event]:
    events = [headers(), *(Event("response_body", body=piece) for piece in pieces)]
    if trailers:
        return [*events, Event("response_trailers", True)]
    return [*events[:-1], Event("response_body", True, pieces[-1])]


def checked(
    replies: list[Reply], pieces: list[bytes], trailers: bool = False, over: bool = False
) -> dict[str, str]:
    """Check that no byte is lost, repeated, reordered or sent too soon, and return the verdict's headers.

    `over`: the exchange ended before the answer, and Envoy sends all of its bytes.
    """
    kinds = [reply.kind for reply in replies]
    if over:
        assert kinds == ["response_headers"]
        return replies[0].headers or {}
    assert kinds.count("response_headers") == 1 and kinds[0] == "response_headers"
    bodies = [reply for reply in replies if reply.kind == "response_body"]
    if bodies[0].streamed:  # Envoy sends only the bytes that are returned
        assert all(reply.streamed for reply in bodies)
        assert b"".join(reply.body or b"" for reply in bodies) == b"".join(pieces)
        assert [reply.end for reply in bodies] == [False] * (len(bodies) - 1) + [not trailers]
    else:  # one for each message; Envoy sends unchanged bytes itself
        assert bodies == [Reply("response_body", metadata=reply.metadata) for reply in bodies]
        assert len(bodies) == len(pieces)
    assert kinds[-1] == ("response_trailers" if trailers else "response_body")
    assert kinds.count("response_trailers") == trailers
    return replies[0].headers or {}


ACCEPT = {"x-cascade-verdict": "accept"}


def rejected(reason: str, word: str = "escalate") -> dict[str, str]:
    return {"x-cascade-verdict": word, "x-cascade-reason": reason}


LONG = ("An answer of some length that goes on and on, ",) * 6
TRANSCRIPTS = {
    "good": (transcript("Zoë ", "says 🙂."), ACCEPT),
    "refusal": (transcript("I'm sorry, but I can't help ", "with that request."), rejected("refusal")),
    "empty": (transcript(""), rejected("empty")),
    "cut": (transcript("Half an ans", finish=None, done=False), rejected("incomplete")),
    "no finish": (transcript("Half an ans", finish=None), rejected("incomplete")),
    "length": (transcript("Half an ans", finish="length"), rejected("cut")),
    "no done": (transcript("All of it.", done=False), ACCEPT),
    "error": (
        transcript("Ha", finish=None, done=False) + b'data: {"error":{"code":"overloaded"}}\n\n',
        rejected("upstream_error"),
    ),
    "html": (b"<html>busy</html>", rejected("malformed")),
    "json": (b'{"choices":[{"message":{"content":"Hi"},"finish_reason":"stop"}]}', rejected("wrong_type")),
    "nothing": (b"", rejected("malformed")),
}


@pytest.mark.parametrize("trailers", [False, True], ids=["end", "trailers"])
@pytest.mark.parametrize("name", TRANSCRIPTS)
@pytest.mark.parametrize("hold", ["early", "buffer", "record"])
@pytest.mark.parametrize("mode", STREAMS)
def test_every_split_of_a_stream_is_released_complete(
    mode: str, hold: StreamHold, name: str, trailers: bool
) -> None:
    """A stream cut at any byte gives the same bytes in the same order, with the same verdict."""
    whole, verdict = TRANSCRIPTS[name]
    splits = [[whole[:i], whole[i:]] for i in range(len(whole) + 1)]
    splits += [[whole], [whole, b""], [whole[i : i + 1] for i in range(len(whole))] or [b""]]
    for pieces in splits:
        exchange = VerifierExchange(Verifier(lambda: snapshot(hold), None), opening(mode))
        replies = [reply for batch in run(exchange, *streamed(pieces, trailers)) for reply in batch]
        verdict_headers = checked(replies, pieces, trailers, exchange.over)
        assert exchange.ruling is not None
        assert not exchange.over or (hold != "record" and mode == "STREAMED" and whole)
        if hold == "record":
            assert verdict_headers == {}
            assert exchange.ruling.word == ("accept" if verdict == ACCEPT else "recorded")
            assert exchange.ruling.verdict.accept == (verdict == ACCEPT)
        else:
            assert verdict_headers == verdict, pieces


def test_an_early_judgement_releases_the_answer_as_soon_as_possible() -> None:
    """At 200 characters, the buffered messages are released. From then on, each piece passes when it arrives."""
    pieces = [chunk(text) for text in LONG] + [transcript()]
    exchange = VerifierExchange(Verifier(lambda: snapshot(), None), opening())
    first, last = streamed(pieces)[:6], streamed(pieces)[6:]
    answers = run(exchange, *first)
    assert [len(replies) for replies in answers] == [
        0,
        0,
        0,
        0,
        0,
        6,
    ]  # five pieces of 46 characters, and the headers
    assert exchange.ruling is None  # a released stream is not accepted before its end
    answers += run(exchange, *last)
    assert [len(replies) for replies in answers[6:]] == [1, 1]
    assert checked([r for batch in answers for r in batch], pieces) == ACCEPT
    # The final verdict is recorded.
    final = cast(Ruling, exchange.ruling)
    assert (final.word, final.verdict.accept) == ("accept", True)


@pytest.mark.parametrize(
    ("options", "facts", "verdict"),
    [
        ({}, {"left_out": ["json_schema"]}, {"x-cascade-verdict": "degraded", "x-cascade-reason": "unavailable"}),
        ({"on_unavailable": "reject"}, {"left_out": ["json_schema"]}, rejected("unavailable")),
        ({}, {"tools": {}}, ACCEPT),
    ],
    ids=["too large", "too large to pass", "no schema"],
)
def test_a_released_stream_is_not_accepted_if_a_rule_cannot_run(
    options: Any, facts: dict[str, Any], verdict: dict[str, str]
) -> None:
    """It is known before the end of the answer that the schema of the request is too large."""
    rules = ["complete", {"json_schema": options}]
    exchange = VerifierExchange(Verifier(lambda: snapshot(rules=rules), None), opening(**facts))
    pieces = [chunk(text) for text in LONG]
    replies = [reply for batch in run(exchange, *streamed([*pieces, transcript()])) for reply in batch]
    assert next(reply.headers for reply in replies if reply.headers) == verdict


def test_a_released_stream_that_breaks_is_passed_broken() -> None:
    """No ending is invented, and nothing is withdrawn."""
    pieces = [chunk(text) for text in LONG] + [b"data: {half a fr"]
    exchange = VerifierExchange(Verifier(lambda: snapshot(), None), opening())
    assert checked([r for batch in run(exchange, *streamed(pieces)) for r in batch], pieces) == ACCEPT
    assert exchange.ruling is not None
    assert (exchange.ruling.word, exchange.ruling.verdict.reason) == ("recorded", "incomplete")


@pytest.mark.parametrize("rules", [_RULES, ("non_empty", "no_refusal")])
def test_an_ending_without_a_finish_reason_is_rejected_before_the_stream_closes(rules: Any) -> None:
    """It comes in one message with the whole text. Envoy sends the end of the stream as another message."""
    for texts in (("All of it.",), LONG):
        exchange = VerifierExchange(Verifier(lambda: snapshot(rules=rules), None), opening(**_HELPFUL))
        answers = run(exchange, headers(), Event("response_body", body=transcript(*texts, finish=None)))
        assert answers[-1][0].headers == rejected("incomplete")


def test_a_refusal_is_rejected_before_its_end() -> None:
    """The verdict comes with the first token after which it cannot change."""
    exchange = VerifierExchange(Verifier(lambda: snapshot(), None), opening())
    answers = run(
        exchange, headers(), Event("response_body", body=chunk("I'm sorry, but I can't help with that request. ")),
        Event("response_body", body=chunk("It is not something I may do. ")),
    )  # fmt: skip
    assert answers[0] == [] and next(r for batch in answers for r in batch).headers == rejected("refusal")


_CERTAIN = ("non_empty", "no_refusal")


def released(rules: Any, opened: Opening) -> tuple[list[Reply], VerifierExchange]:
    """Return the replies to a long stream that does not refuse, and the exchange."""
    pieces = [chunk(text) for text in LONG] + [transcript()]
    exchange = VerifierExchange(Verifier(lambda: snapshot(rules=rules), None), opened)
    return [reply for batch in run(exchange, *streamed(pieces)) for reply in batch], exchange


def test_a_stream_whose_verdict_is_certain_is_left_to_envoy() -> None:
    """The messages that were kept back get no reply, and the rest is not read. The ledger has the verdict."""
    [reply], exchange = released(_CERTAIN, opening(counts_tokens=True))
    assert exchange.over
    final = cast(Ruling, exchange.ruling)
    assert (final.word, final.final, final.usage) == ("accept", True, Usage())
    assert reply == Reply("response_headers", headers=ACCEPT, metadata=final.metadata)
    assert list(final.metadata) == [Namespace.DECISION, Namespace.LEDGER]


@pytest.mark.parametrize("rules", [_RULES, _CERTAIN])
def test_a_stream_with_white_space_and_markdown_is_left_at_its_release(rules: Any) -> None:
    """They hardly count for the rule about refusals. It is certain at the first word, and holds 200 characters."""
    pieces = [chunk("## Steps\n\n\n"), *9 * [chunk("**One:**\n\n    `make`\n\n")]]
    exchange = VerifierExchange(Verifier(lambda: snapshot(rules=rules), None), opening(**_HELPFUL))
    answers = run(exchange, *streamed([*pieces, transcript()]))
    assert exchange.over and [len(replies) for replies in answers] == [*10 * [0], 1]


def test_a_stream_that_becomes_certain_after_its_release_is_left_to_envoy_then() -> None:
    """The message that makes it certain carries the verdict. The next one with bytes gets no reply."""
    rules = (*_CERTAIN, {"min_chars": 300})  # the release comes first, after 200
    exchange = VerifierExchange(Verifier(lambda: snapshot(rules=rules), None), opening(counts_tokens=True))
    answers = run(exchange, *streamed([*12 * [chunk(8 * "word ")], transcript()]))
    assert exchange.over and answers[-1] == []
    final = cast(Ruling, exchange.ruling)
    assert (final.word, final.final, answers[-2][-1].metadata) == ("accept", True, final.metadata)
    assert len(answers) < 13 and [reply.metadata for reply in answers[-3]] != [final.metadata]


@pytest.mark.parametrize(
    "delta", [{"content": "\n"}, {"tool_calls": [{"index": 0, "function": {"arguments": "1"}}]}]
)
def test_a_long_stream_that_stays_uncertain_is_not_judged_at_every_piece(
    delta: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look joins the whole answer, so the work would grow with the square of its length."""
    looks, observation = [], AnswerReader.observation
    monkeypatch.setattr(AnswerReader, "observation", lambda reader: looks.append(1) or observation(reader))  # type: ignore[func-returns-value]
    exchange = VerifierExchange(Verifier(lambda: snapshot("record", _CERTAIN), None), opening(counts_tokens=True))
    piece = b"data: " + msgspec.json.encode({"choices": [{"index": 0, "delta": delta}]}) + b"\n\n"
    run(exchange, *streamed([*500 * [piece], transcript("")]))
    assert exchange.ruling is not None and not exchange.over
    assert len(looks) < 50


@pytest.mark.parametrize("rules", [_RULES, _CERTAIN])
def test_words_that_cannot_change_the_verdict_are_not_judged(rules: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look joins the text and runs the rules. Only the end of the answer is open after the first words."""
    looks, observation = [], AnswerReader.observation
    monkeypatch.setattr(AnswerReader, "observation", lambda reader: looks.append(1) or observation(reader))  # type: ignore[func-returns-value]
    exchange = VerifierExchange(Verifier(lambda: snapshot(rules=rules), None), opening(**_HELPFUL))
    answers = run(exchange, *streamed([*40 * [chunk("word ")], transcript()]))
    assert exchange.over and [len(replies) for replies in answers] == [*40 * [0], 1]
    assert len(looks) <= 3  # at the first word and at the release


@pytest.mark.parametrize("rules", [_RULES, _CERTAIN])
@pytest.mark.parametrize(
    ("piece", "reason"),
    [
        (b"data: {half a frame}\n\n", "malformed"),
        (b'data: {"error": {"message": "overloaded"}}\n\n', "upstream_error"),
        (b"data: [DONE]\n\n", "incomplete"),
        (b'data: {"choices": [{"index": 0, "delta": {"refusal": "No."}}]}\n\n', "refusal"),
    ],
)
def test_what_is_no_text_is_judged_as_soon_as_it_comes(piece: bytes, reason: str, rules: Any) -> None:
    """The words before it were certain."""
    exchange = VerifierExchange(Verifier(lambda: snapshot(rules=rules), None), opening(**_HELPFUL))
    last = Event("response_body", reason == "incomplete", piece)
    answers = run(exchange, headers(), *4 * [Event("response_body", body=chunk("word "))], last)
    assert [len(replies) for replies in answers[:-1]] == 5 * [0]
    assert answers[-1][0].headers == rejected(reason)


def test_a_certain_stream_that_only_ends_gets_a_reply_to_its_end() -> None:
    """Envoy does not pass on an end without bytes by itself."""
    for ending in (Event("response_body", True), Event("response_trailers", True)):
        exchange = VerifierExchange(
            Verifier(lambda: snapshot("record", _CERTAIN), None), opening(counts_tokens=True)
        )
        answers = run(exchange, headers(), Event("response_body", body=chunk("".join(LONG))), ending)
        assert exchange.ruling is not None and not exchange.over
        assert [reply.kind for reply in answers[-1]] == [ending.kind]


_HELPFUL: dict[str, Any] = {"counts_tokens": True, "reads_endings": True}
# The answer has one choice, so `complete` rejects it.
_TWO_CHOICES = opening(choices=2, stream=True, **_HELPFUL)


@pytest.mark.parametrize("rules", [_RULES, ("complete",), ("complete", "json_schema")])
def test_a_stream_of_which_only_the_end_is_open_is_left_to_envoy(rules: Any) -> None:
    """The verifier has no verdict then. The ledger gets the attempt that Envoy completes."""
    opened = msgspec.structs.replace(opening(attempt=2, **_HELPFUL), tier="small")
    [reply], exchange = released(rules, opened)
    assert exchange.over and exchange.ruling is None
    metadata: dict[str, Any] = {
        Namespace.DECISION: {"verdict": "accept"},
        Namespace.LEDGER: {"open": "2 small"},
    }
    assert reply == Reply("response_headers", headers=ACCEPT, metadata=metadata)


def test_a_recorded_stream_is_left_to_envoy_as_soon_as_only_its_end_is_open() -> None:
    """Its end without bytes gets a reply, and no second verdict."""
    ends = [
        [Event("response_body", body=chunk("more")), Event("response_body", True, transcript())],
        [Event("response_body", True)],
        [Event("response_trailers", True)],
    ]
    for ending in ends:
        exchange = VerifierExchange(Verifier(lambda: snapshot("record"), None), opening(**_HELPFUL))
        answers = run(exchange, headers(), Event("response_body", body=chunk("".join(LONG))), *ending)
        assert exchange.ruling is None
        metadata = [reply.metadata for replies in answers for reply in replies if reply.metadata is not None]
        assert metadata == [{Namespace.DECISION: {"verdict": "accept"}, Namespace.LEDGER: {"open": "1 "}}]
        if ending[0].body:
            assert exchange.over and len(answers) == 3 and answers[-1] == []
        else:
            assert not exchange.over and [reply.kind for reply in answers[-1]] == [ending[0].kind]


@pytest.mark.parametrize("stream", ["early", "record"])
def test_a_stream_with_a_finish_reason_in_every_chunk_is_read_to_its_end(stream: StreamHold) -> None:
    """Envoy looks for the first one, and may have found it before the verifier leaves."""
    exchange = VerifierExchange(Verifier(lambda: snapshot(stream), None), opening(**_HELPFUL))
    run(exchange, *streamed([*(chunk(text, "stop") for text in LONG), transcript("The end.")]))
    assert not exchange.over
    assert exchange.ruling is not None and exchange.ruling.word == "accept"


@pytest.mark.parametrize("finish", ["length", "content_filter"])
def test_an_end_that_comes_before_the_release_is_still_rejected_in_time(finish: str) -> None:
    """The release waits for 200 characters as before."""
    exchange = VerifierExchange(Verifier(lambda: snapshot(), None), opening(**_HELPFUL))
    pieces = [chunk(LONG[0]), transcript(finish=finish)]
    replies = [reply for batch in run(exchange, *streamed(pieces)) for reply in batch]
    assert exchange.ruling is not None and exchange.ruling.word == "escalate"
    assert (replies[0].headers or {})["x-cascade-verdict"] == "escalate"


@pytest.mark.parametrize(
    ("rules", "opened"),
    [
        (_RULES, _TWO_CHOICES),
        (("complete", "tool_calls"), opening(**_HELPFUL)),
        (("complete", {"max_chars": 4000}), opening(**_HELPFUL)),
        (_RULES, opening("FULL_DUPLEX_STREAMED", **_HELPFUL)),
        (_RULES, opening(reads_endings=True)),
        (_RULES, opening(counts_tokens=True)),
        (_CERTAIN, opening()),
        (_CERTAIN, opening("FULL_DUPLEX_STREAMED", counts_tokens=True)),
    ],
)
def test_a_stream_of_which_more_is_needed_is_read_to_its_end(rules: Any, opened: Opening) -> None:
    replies, exchange = released(rules, opened)
    assert not exchange.over
    assert [reply.kind for reply in replies] == ["response_headers", *["response_body"] * 7]
    assert exchange.ruling is not None
    assert exchange.ruling.word == ("recorded" if opened.metadata == _TWO_CHOICES.metadata else "accept")


def test_a_stream_whose_logprobs_are_removed_is_read_to_its_end() -> None:
    opened = opening(counts_tokens=True)
    opened.metadata[Namespace.DECISION]["logprobs_added"] = True
    replies, exchange = released(_CERTAIN, opened)
    assert not exchange.over and len(replies) == 8


def test_a_rejected_stream_that_goes_on_gets_one_reply() -> None:
    """Envoy asks the next tier. If it does not, it sends on the rest of this answer by itself."""
    exchange = VerifierExchange(Verifier(lambda: snapshot(), None), opening())
    refusing = [chunk("I'm sorry, but I can't help with that request. "), chunk("It is not something I may do. ")]
    [reply] = [reply for batch in run(exchange, *streamed([*refusing, transcript()])) for reply in batch]
    assert exchange.over and reply.kind == "response_headers" and reply.headers == rejected("refusal")


def test_a_buffered_stream_is_held_to_its_end_or_up_to_four_megabytes() -> None:
    """Above the limit it is released unchanged and marked degraded, because its rules did not run."""
    pieces = [chunk("x" * 400_000) for _ in range(12)] + [transcript()]
    exchange = VerifierExchange(Verifier(lambda: snapshot("buffer"), None), opening())
    answers = run(exchange, *streamed(pieces))
    assert [len(replies) for replies in answers[:11]] == [0] * 11
    assert len(answers[11]) == 12
    assert checked([r for batch in answers for r in batch], pieces) == {"x-cascade-verdict": "degraded"}


@pytest.mark.parametrize("mode", STREAMS)
def test_an_early_hold_ends_while_the_model_still_thinks(mode: str) -> None:
    """The client gets the headers and what has come, and the answer is recorded at its end."""
    now_s = [100.0]
    verifier = Verifier(lambda: snapshot(), None, clock=lambda: now_s[0])
    exchange = VerifierExchange(verifier, opening(mode))
    thinking = b'data: {"choices":[{"index":0,"delta":{"reasoning_content":"Hm."},"finish_reason":null}]}\n\n'
    pieces = [*3 * [thinking], transcript("I'm sorry, but I can't help with that request.")]
    opened, first, second, third, last = streamed(pieces)
    assert run(exchange, opened, first) == [[], []]
    now_s[0] += 24
    assert run(exchange, second) == [[]]
    now_s[0] += 1
    [released] = run(exchange, third)
    assert [reply.kind for reply in released] == ["response_headers", *3 * ["response_body"]]
    assert exchange.ruling is None
    [rest] = run(exchange, last)
    assert checked([*released, *rest], pieces) == rejected("slow", "degraded")
    assert exchange.ruling is not None
    assert (exchange.ruling.word, exchange.ruling.verdict.reason) == ("recorded", "refusal")


@pytest.mark.parametrize("rules", [_RULES, _CERTAIN])
@pytest.mark.parametrize(
    ("text", "verdict"), [("It", rejected("slow", "degraded")), ("I'm sorry, but I can't", rejected("refusal"))]
)
def test_an_early_hold_that_is_due_ends_with_the_next_message(
    rules: Any, text: str, verdict: dict[str, str]
) -> None:
    """The first piece comes after the time. A rejection that is certain still escalates."""
    now_s = [100.0]
    exchange = VerifierExchange(Verifier(lambda: snapshot(rules=rules), clock=lambda: now_s[0]), opening())
    assert run(exchange, headers()) == [[]]
    now_s[0] += 60
    [replies] = run(exchange, Event("response_body", body=chunk(f"{text} help with that request. ")))
    assert replies[0].headers == verdict


def test_the_hold_of_a_whole_answer_has_no_limit() -> None:
    now_s = [100.0]
    exchange = VerifierExchange(Verifier(lambda: snapshot("buffer"), None, clock=lambda: now_s[0]), opening())
    assert run(exchange, headers()) == [[]]
    now_s[0] += 60
    assert run(exchange, Event("response_body", body=chunk("It helps "))) == [[]]


def test_a_hold_ends_before_its_attempt() -> None:
    """Envoy takes a hold that is longer than the attempt for a tier that does not answer."""
    assert (Timeouts().early_s, Timeouts(attempt_s=10).early_s) == (25, 5)


def test_a_recorded_stream_is_never_held() -> None:
    pieces = [chunk("I'm sorry, "), chunk("but I can't help with that."), transcript()]
    exchange = VerifierExchange(Verifier(lambda: snapshot("record"), None), opening())
    assert [len(replies) for replies in run(exchange, *streamed(pieces))] == [1, 1, 1, 1]
    assert exchange.ruling is not None
    assert (exchange.ruling.word, exchange.ruling.verdict.reason) == ("recorded", "refusal")


def test_a_stream_is_not_held_if_its_body_waits_for_our_reply() -> None:
    """Envoy and we would wait for each other. The verdict is only recorded."""
    pieces = [chunk("I'm sorry, "), chunk("but I can't help with that."), transcript()]
    given = msgspec.structs.replace(opening(), body_before_reply=False)
    exchange = VerifierExchange(Verifier(lambda: snapshot(), None), given)
    replies = run(exchange, *streamed(pieces))
    assert [len(batch) for batch in replies] == [1, 1, 1, 1]
    assert checked([reply for batch in replies for reply in batch], pieces) == {}
    assert exchange.ruling is not None and exchange.ruling.word == "recorded"


def test_no_frame_is_lost_if_the_server_ends_at_any_message() -> None:
    """Envoy sends the messages that have no reply. They may only add log-probabilities."""
    frame = {"index": 0, "delta": {"content": "An answer "}, "logprobs": {"content": [{"logprob": -0.5}]}}
    whole = (b"data: " + msgspec.json.encode({"choices": [frame]}) + b"\n\n") * 4 + transcript()
    bare = [without_logprobs("chat", line[5:]) for line in whole.split(b"\n\n")]
    opened = opening()
    opened.metadata[Namespace.DECISION]["logprobs_added"] = True
    for size in (9, 60, 107, 1000):
        pieces = [whole[i : i + size] for i in range(0, len(whole), size)]
        for trailers in (False, True):
            events = streamed(pieces, trailers)
            for answered in range(1, len(events) + 1):
                exchange = VerifierExchange(Verifier(lambda: snapshot("record"), None), opened)
                replies = [reply for batch in run(exchange, *events[:answered]) for reply in batch]
                ours = [reply.body for reply in replies if reply.kind == "response_body"]
                received = b"".join(body or b"" for body in ours) + b"".join(pieces[len(ours) :])
                assert [without_logprobs("chat", line[5:]) for line in received.split(b"\n\n")] == bare
            assert b"-0.5" not in received


# --- whole answers ------------------------------------------------------------------------------------------


def answer(content: str | None, finish: str = "stop") -> bytes:
    message = {"role": "assistant", "content": content}
    return msgspec.json.encode({"choices": [{"index": 0, "message": message, "finish_reason": finish}]})


def judged(
    body: bytes, exchange: VerifierExchange, kind: str = "application/json", encoding: str = ""
) -> dict[str, str]:
    """The verdict on a buffered body; it must not be touched."""
    first, second = run(exchange, headers(kind, encoding=encoding), Event("response_body", True, body))
    assert first == [Reply("response_headers")]
    assert len(second) == 1 and second[0].kind == "response_body"
    assert second[0].body is None and not second[0].streamed
    return second[0].headers or {}


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (answer("Fine."), ACCEPT),
        (answer("I'm sorry, but I can't help with that."), rejected("refusal")),
        (answer(""), rejected("empty")),
        (answer(None), rejected("empty")),
        (answer("Half", "length"), rejected("cut")),
        (answer("Fine.")[:-5], rejected("malformed")),
        (b"", rejected("malformed")),
        (b'{"error":{"code":"overloaded"}}', rejected("upstream_error")),
        (transcript("Fine."), rejected("wrong_type")),
    ],
)
def test_a_whole_answer(body: bytes, expected: dict[str, str]) -> None:
    exchange = VerifierExchange(Verifier(lambda: snapshot(), None), opening("BUFFERED"))
    assert judged(body, exchange) == expected
    assert exchange.ruling is not None
    assert exchange.ruling.word == expected["x-cascade-verdict"]


@pytest.mark.parametrize("mode", ["BUFFERED", *STREAMS])
@pytest.mark.parametrize("status", ["400", "404", "429", "500", "503"])
def test_an_error_of_the_upstream_is_not_judged(mode: str, status: str) -> None:
    """It passes unchanged, and Envoy may retry it."""
    exchange = VerifierExchange(Verifier(lambda: snapshot(), None), opening(mode))
    body = Event("response_body", True, b'{"error":{}}')
    first, second = run(exchange, headers("application/json", status), body)
    assert [r.headers for r in (*first, *second)] == [None, None]
    assert exchange.ruling is None


@pytest.mark.parametrize("status", ["200", "202", "204"])
@pytest.mark.parametrize("mode", ["BUFFERED", *STREAMS])
def test_a_success_without_a_body_is_rejected(mode: str, status: str) -> None:
    """No client could read it, and no body message will follow."""
    exchange = VerifierExchange(Verifier(lambda: snapshot(), None), opening(mode))
    [[reply]] = run(exchange, headers(status=status, end=True))
    assert (reply.kind, reply.headers) == ("response_headers", rejected("malformed"))


@pytest.mark.parametrize("mode", ["BUFFERED", *STREAMS])
def test_an_answer_passes_if_its_cohort_was_removed(mode: str) -> None:
    exchange = VerifierExchange(Verifier(lambda: snapshot(), None), opening(mode, cohort="gone"))
    answers = run(exchange, headers(), Event("response_body", True, b"<html>"))
    assert [r.headers for batch in answers for r in batch] == [None, None]
    assert exchange.ruling is None


@pytest.mark.parametrize("status", ["201", "206"])
def test_any_success_is_judged(status: str) -> None:
    """A client takes it for the answer."""
    exchange = VerifierExchange(Verifier(lambda: snapshot(), None), opening("BUFFERED"))
    body = Event("response_body", True, answer(""))
    _, [reply] = run(exchange, headers("application/json", status), body)
    assert reply.headers == rejected("empty")


@pytest.mark.parametrize(
    ("body", "encoding"),
    [(b"\x1f\x8b...", "gzip"), (b"\x0b\x02\x80", "br"), (gzip.compress(b"{}"), ""), (answer("Fine."), "gzip")],
    ids=["damaged", "another encoding", "not declared", "not compressed"],
)
def test_a_compressed_answer_that_cannot_be_decoded_is_rejected(body: bytes, encoding: str) -> None:
    exchange = VerifierExchange(Verifier(lambda: snapshot(), None), opening("BUFFERED"))
    assert judged(body, exchange, encoding=encoding) == rejected("malformed")


@pytest.mark.parametrize(("text", "verdict"), [("Fine.", ACCEPT), ("", rejected("empty"))], ids=["good", "empty"])
@pytest.mark.parametrize("mode", ["BUFFERED", *STREAMS])
def test_a_gzipped_answer_is_judged_decoded_and_passed_unchanged(
    mode: str, text: str, verdict: dict[str, str]
) -> None:
    """At any cut of a stream. Envoy cannot count its tokens, so it is read to its end."""
    kind = "text/event-stream" if mode in STREAMS else "application/json"
    whole = gzip.compress(transcript(text) if mode in STREAMS else answer(text), mtime=0)
    for cut in range(1, len(whole)) if mode in STREAMS else [len(whole)]:
        pieces = [piece for piece in (whole[:cut], whole[cut:]) if piece]
        exchange = VerifierExchange(Verifier(lambda: snapshot(), None), opening(mode, counts_tokens=True))
        events = [Event("response_body", piece is pieces[-1], piece) for piece in pieces]
        first = headers(kind, encoding="gzip")
        replies = [reply for batch in run(exchange, first, *events) for reply in batch]
        if mode == "BUFFERED":
            headers_reply, reply = replies
            assert (headers_reply.headers, reply.headers, reply.body) == (None, verdict, None)
        else:
            assert checked(replies, pieces, over=exchange.over) == verdict
        assert exchange.ruling is not None


def test_a_compressed_answer_is_read_off_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few bytes may unpack to millions. A plain answer is read on the loop, unless it is large."""
    threads: list[bool] = []
    feed = AnswerReader.feed

    def watched(reader: AnswerReader, piece: bytes) -> None:
        threads.append(threading.current_thread() is threading.main_thread())
        feed(reader, piece)

    monkeypatch.setattr(AnswerReader, "feed", watched)
    for body, encoding in (
        (gzip.compress(answer("Fine.")), "gzip"),
        (answer("Fine."), ""),
        (answer("F" * 300_000), ""),
    ):
        exchange = VerifierExchange(Verifier(lambda: snapshot(), None), opening("BUFFERED"))
        assert judged(body, exchange, encoding=encoding) == ACCEPT
    assert threads == [False, True, False]


@pytest.mark.parametrize("mode", STREAMS)
def test_a_gzipped_stream_of_which_envoy_counts_no_tokens_is_read_to_its_end(mode: str) -> None:
    """A certain verdict on a plain stream would leave the rest to Envoy."""
    pieces = [gzip.compress(chunk(text)) for text in LONG] + [gzip.compress(transcript())]
    exchange = VerifierExchange(Verifier(lambda: snapshot(rules=_CERTAIN), None), opening(mode, counts_tokens=True))
    events = streamed(pieces)
    events[0] = headers(encoding="gzip")
    assert checked([reply for batch in run(exchange, *events) for reply in batch], pieces) == ACCEPT
    assert not exchange.over and exchange.ruling is not None and exchange.ruling.word == "accept"


def test_a_rejected_gzipped_answer_is_kept_decoded() -> None:
    """The rescue serves it without the header of its encoding."""
    exchange = VerifierExchange(Verifier(lambda: snapshot(rules=[{"min_chars": 100}]), None), opening("BUFFERED"))
    body = Event("response_body", True, gzip.compress(answer("Fine.")))
    _, [reply] = run(exchange, headers("application/json", encoding="gzip"), body)
    assert reply.headers == rejected("too_short")
    assert (reply.metadata or {})[Namespace.ANSWER]["body"] == answer("Fine.").decode()


def test_an_exchange_keeps_the_policy_that_it_began_with() -> None:
    """A reload during an answer does not change its verdict."""
    now = [snapshot()]
    verifier = Verifier(lambda: now[0], None)
    exchange = VerifierExchange(verifier, opening("BUFFERED"))
    now[0] = snapshot(rules=[{"min_chars": 100}])
    assert judged(answer("Fine."), exchange) == ACCEPT
    assert judged(answer("Fine."), VerifierExchange(verifier, opening("BUFFERED"))) == rejected("too_short")


@pytest.mark.parametrize("facts", [{}, {"facts": "no JSON"}, {"facts": 7}, {"facts": '{"tools": 5}'}])
def test_with_unreadable_facts_an_answer_is_not_fully_judged(facts: Any) -> None:
    given = opening("BUFFERED")
    exchange = VerifierExchange(
        Verifier(lambda: snapshot(rules=["complete", "json_schema"]), None),
        msgspec.structs.replace(given, metadata=given.metadata | {Namespace.REQUIREMENTS: facts}),
    )
    unjudged = {"x-cascade-verdict": "degraded", "x-cascade-reason": "unavailable"}
    assert judged(answer("Fine."), exchange) == unjudged
    assert exchange.ruling is not None and exchange.ruling.verdict.unavailable == ("json_schema",)


@pytest.mark.parametrize(
    "odd", [{"rungs": "many"}, {"api": "evil"}, {"escalations": None}, {"cohort": 7.0}, {"logprobs_added": {}}]
)
def test_an_answer_passes_if_the_decision_is_damaged(odd: dict[str, Any]) -> None:
    """Metadata of the wrong type is the mistake of another filter. The exchange goes on."""
    given = opening()
    given.metadata[Namespace.DECISION].update(odd)
    exchange = VerifierExchange(Verifier(snapshot), given)
    whole = transcript("I'm sorry, but I can't help ", "with that request.")
    replies = [reply for batch in run(exchange, *streamed([whole])) for reply in batch]
    assert checked(replies, [whole]) == {}
    assert exchange.ruling is None


def test_a_case_is_queued_for_review_once() -> None:
    """Messages that Envoy sent before it read our reply get no reply and make no second case."""
    with_review = snapshot()
    cohort = msgspec.structs.replace(with_review.policy.cohorts["c"], escalate=Escalate("human"))
    policy = msgspec.structs.replace(with_review.policy, cohorts={"c": cohort})
    with_review = msgspec.structs.replace(with_review, policy=policy, human=Human())
    cases: list[str] = []

    def enqueue(_: Human, __: dict[str, Any], ___: str, answer: str) -> str:
        cases.append(answer)
        return "case1"

    given = opening(attempt=2)
    exchange = VerifierExchange(Verifier(lambda: with_review, enqueue=enqueue), given)
    whole = transcript("I'm sorry, but I can't help ", "with that request.")
    replies = run(exchange, *streamed([whole, b": bye\n\n"], trailers=True))
    assert [[reply.status for reply in batch] for batch in replies] == [[], [422], [], []]
    assert cases == ["I'm sorry, but I can't help with that request."]


def test_without_any_metadata_everything_passes() -> None:
    exchange = VerifierExchange(Verifier(lambda: snapshot(), None), Opening({}, "NONE", "BUFFERED"))
    answers = run(exchange, headers(), Event("response_body", True, b"<html>"))
    assert [r.headers for batch in answers for r in batch] == [None, None]


def test_the_requests_schema_reaches_the_judge() -> None:
    schema = {"type": "object", "required": ["total"]}
    for content, expected in (('{"total": 1}', ACCEPT), ('{"sum": 1}', rejected("schema"))):
        exchange = VerifierExchange(
            Verifier(lambda: snapshot(rules=["json_schema"]), None), opening("BUFFERED", json_schema=schema)
        )
        assert judged(answer(content), exchange) == expected


def test_other_messages_are_answered_in_kind() -> None:
    exchange = VerifierExchange(Verifier(lambda: snapshot(), None), opening("BUFFERED"))
    for kind in ("request_headers", "request_body", "request_trailers", "response_trailers"):
        assert run(exchange, Event(kind)) == [[Reply(kind)]]  # type: ignore[arg-type]


# --- bounds -------------------------------------------------------------------------------------------------

REFUSED = answer("I'm sorry, but I can't help with that.")


@pytest.mark.parametrize("attempt", [2, 3])
def test_the_last_rung_does_not_escalate(attempt: int) -> None:
    exchange = VerifierExchange(Verifier(lambda: snapshot(), None), opening("BUFFERED", attempt))
    assert judged(REFUSED, exchange) == rejected("refusal", "degraded")
    assert exchange.ruling is not None and exchange.ruling.bound == "last_rung"


def test_a_principal_over_its_burst_is_degraded_and_another_escalates() -> None:
    verifier = Verifier(lambda: snapshot(burst=2, per_minute=0), None)
    words = [
        judged(REFUSED, VerifierExchange(verifier, opening("BUFFERED")))["x-cascade-verdict"] for _ in range(4)
    ]
    assert words == ["escalate", "escalate", "degraded", "degraded"]
    other = msgspec.structs.replace(opening("BUFFERED"), headers={"authorization": "Bearer y"})
    assert judged(REFUSED, VerifierExchange(verifier, other))["x-cascade-verdict"] == "escalate"


def test_the_principal_is_the_one_that_the_router_saw() -> None:
    """The request of an attempt may carry the key of the tier, which is the same for all clients."""
    verifier = Verifier(lambda: snapshot(burst=1, per_minute=0), None)
    words = []
    for principal in ("a", "a", "b"):
        opened = opening("BUFFERED")
        opened.metadata[Namespace.LEDGER] = {"principal": principal}
        words.append(judged(REFUSED, VerifierExchange(verifier, opened))["x-cascade-verdict"])
    assert words == ["escalate", "degraded", "escalate"]


def test_a_cohort_over_its_share_is_degraded() -> None:
    verifier = Verifier(lambda: snapshot(share=0.001, burst=1000), None)
    words = [
        judged(REFUSED, VerifierExchange(verifier, opening("BUFFERED")))["x-cascade-verdict"] for _ in range(12)
    ]
    assert words == ["escalate"] * 10 + ["degraded"] * 2


def test_the_share_of_an_app_is_counted_by_itself() -> None:
    """Its cohort may have the name of another one."""
    own = snapshot(share=0.001, burst=1000)
    app = AppRoute("support", msgspec.structs.replace(own, app="support"))
    verifier = Verifier(lambda: msgspec.structs.replace(own, apps=(app,)), None)
    words = []
    for of_app in (*[{}] * 11, {"app": "support"}):
        opened = opening("BUFFERED")
        opened.metadata[Namespace.DECISION].update(of_app)
        words.append(judged(REFUSED, VerifierExchange(verifier, opened))["x-cascade-verdict"])
    assert words == ["escalate"] * 10 + ["degraded", "escalate"]


def decided(attempt: int, skipped: float | None, to: tuple[str, ...], answered: bytes = REFUSED) -> Any:
    """Return the metadata of a verdict under `skip: [no_refusal]`, without the ledger and the kept answer."""
    given = snapshot()
    up = Escalate(to, max=2, share=1.0, skip=("no_refusal",))
    cohort = msgspec.structs.replace(given.policy.cohorts["c"], escalate=up)
    given = msgspec.structs.replace(given, policy=Policy((), "small", {"c": cohort}))
    opened = opening("BUFFERED", attempt)
    opened.metadata[Namespace.DECISION]["rungs"] = ["small", *(rung for rung in to if rung != "human")]
    if skipped is not None:
        opened.metadata[Namespace.DECISION] |= {"skipped": skipped, "escalations": 1.0}
    exchange = VerifierExchange(Verifier(lambda: given, None), opened)
    _, [reply] = run(exchange, headers("application/json"), Event("response_body", True, answered))
    assert reply.metadata is not None
    return {
        namespace: content
        for namespace, content in reply.metadata.items()
        if namespace not in (Namespace.ANSWER, Namespace.LEDGER)
    }


UP = {"verdict": "escalate", "verdict_reason": "refusal", "escalations": 1}
OUT = {"verdict": "degraded", "verdict_reason": "refusal", "bound": "last_rung"}
THREE = ("large", "frontier")


def test_a_rule_can_skip_a_rung() -> None:
    """The rung above takes the place of the next attempt in the ladder. It is one escalation."""
    assert decided(1, None, THREE) == {
        Namespace.DECISION: UP | {"skipped": 1},
        Namespace.LADDER: ladder_of(["large", "frontier"]),  # the second attempt goes to the second cluster
    }
    four = ("large", "frontier", "best")
    assert decided(2, None, four) == {Namespace.DECISION: UP | {"skipped": 1}, Namespace.LADDER: ladder_of(four)}
    assert decided(2, 1.0, (*four, "last")) == {
        Namespace.DECISION: UP | {"skipped": 2, "escalations": 2},
        Namespace.LADDER: ladder_of(["frontier", "best", "last"]),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("attempt", "skipped", "to", "answered", "expected"),
    [(2, None, THREE, REFUSED, UP), (2, 1.0, THREE, REFUSED, OUT), (3, 1.0, THREE, REFUSED, OUT),
     (1, None, THREE, answer(""), UP | {"verdict_reason": "empty"}), (1, None, ("large",), REFUSED, UP),
     (1, None, ("large", "human"), REFUSED, OUT)],
    ids=["nothing above the next", "at the end after a skip", "again at the end", "another rule", "one rung",
         "straight to a person"],
)  # fmt: skip
def test_a_rung_is_skipped_only_if_one_is_above_it(
    attempt: int, skipped: float | None, to: tuple[str, ...], answered: bytes, expected: dict[str, Any]
) -> None:
    """Otherwise it is an ordinary escalation, and the ladder does not change."""
    assert decided(attempt, skipped, to, answered) == {Namespace.DECISION: expected}


def test_the_metadata_of_a_verdict() -> None:
    """The verdict, its reason, the number of escalations, the limit that applied and the ledger's entry."""
    for attempt, expected in (
        (1, {"verdict": "escalate", "verdict_reason": "refusal", "escalations": 1}),
        (2, {"verdict": "degraded", "verdict_reason": "refusal", "bound": "last_rung"}),
    ):
        opened = msgspec.structs.replace(opening("BUFFERED", attempt), tier="small")
        exchange = VerifierExchange(Verifier(lambda: snapshot(), None), opened)
        _, [reply] = run(exchange, headers("application/json"), Event("response_body", True, REFUSED))
        kept = {"body": REFUSED.decode(), "type": "application/json", "tier": "small"}
        entry = {str(attempt): {"verdict": expected["verdict"], "reason": "refusal", "tier": "small"}}
        always = {Namespace.DECISION: expected, Namespace.LEDGER: entry}
        assert reply.metadata == always | ({Namespace.ANSWER: kept} if attempt == 1 else {})


def kept_of(pieces: list[bytes], rules: Any = _RULES) -> Any:
    """Return the kept answer of a stream."""
    opened = msgspec.structs.replace(opening(), tier="small")
    exchange = VerifierExchange(Verifier(lambda: snapshot("buffer", rules), None), opened)
    replies = [reply for batch in run(exchange, *streamed(pieces)) for reply in batch]
    assert (replies[0].headers or {})["x-cascade-verdict"] == "escalate"
    return (replies[0].metadata or {}).get(Namespace.ANSWER)


def test_a_rejected_answer_is_kept_if_a_client_could_use_it() -> None:
    """It is kept unchanged if it is complete, readable, not empty and below the limit."""
    refused = TRANSCRIPTS["refusal"][0]
    assert kept_of([refused[:50], refused[50:]]) == {
        "body": refused.decode(), "type": "text/event-stream", "tier": "small",
    }  # fmt: skip
    for name in TRANSCRIPTS.keys() - {"good", "refusal", "length", "no done"}:
        assert kept_of([TRANSCRIPTS[name][0]]) is None, name
    most = 64 * 1024 - len(transcript(""))
    assert len(kept_of([transcript("x" * most)], [{"max_chars": 1}])["body"]) == 64 * 1024
    assert kept_of([transcript("x" * (most + 1))], [{"max_chars": 1}]) is None


def test_a_stream_rejected_before_its_end_is_not_kept() -> None:
    exchange = VerifierExchange(Verifier(lambda: snapshot(), None), opening())
    refused = chunk("I'm sorry, but I can't help with that request. It is not something I may do. ")
    *_, replies = run(exchange, headers(), Event("response_body", body=refused))
    assert replies[0].headers == rejected("refusal")
    assert (replies[0].metadata or {}).keys() == {Namespace.DECISION, Namespace.LEDGER}


# --- rescue -------------------------------------------------------------------------------------------------

KEPT = {"body": REFUSED.decode(), "type": "application/json", "tier": "small"}
RECORD = {"cohort": "c", "reason": "matched", "verdict_reason": "refusal", "escalations": 1.0}


def rescued(status: str = "503", answer: Any = KEPT, **more: str) -> tuple[list[Reply], RescueExchange]:
    exchange = RescueExchange(
        Opening({}, "NONE", "NONE", {Namespace.DECISION: RECORD, Namespace.ANSWER: answer}, 2)
    )
    event = Event("response_headers", headers={":status": status, **more})
    return asyncio.run(exchange.answer(event)), exchange


def test_the_kept_answer_replaces_a_failure() -> None:
    """It has the name of its tier and the mark of a degraded answer, and it is counted."""
    [reply], exchange = rescued()
    expected = {
        "content-type": "application/json", "x-cascade-verdict": "degraded", "x-cascade-reason": "refusal",
        "x-router-cohort": "c", "x-router-reason": "matched", "x-router-tier": "small", "x-router-attempts": "2",
        "x-router-escalations": "1",
    }  # fmt: skip
    assert reply == Reply(
        "response_headers", expected, REFUSED, status=200, metadata={Namespace.DECISION: {"verdict": "rescued"}}
    )
    assert exchange.ruling is not None
    assert (exchange.ruling.word, exchange.ruling.attempt) == ("rescued", 2)


@pytest.mark.parametrize(
    "given",
    [{"status": "200"}, {"status": "201"}, {"answer": {}}, {"x-cascade-verdict": "human"}],
    ids=["an answer", "another success", "nothing kept", "queued for review, with any status"],
)
def test_a_response_that_needs_no_rescue_passes(given: Any) -> None:
    assert rescued(**given)[0] == [Reply("response_headers")]


def test_the_ledger_gets_the_cost_of_an_attempt() -> None:
    """The tier, and the token counts of the answer."""
    usage = {"prompt_tokens": 9, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 3}}
    body = msgspec.json.encode(msgspec.json.decode(REFUSED) | {"usage": usage})
    opened = msgspec.structs.replace(opening("BUFFERED"), tier="small")
    exchange = VerifierExchange(Verifier(lambda: snapshot(), None), opened)
    _, [reply] = run(exchange, headers("application/json"), Event("response_body", True, body))
    assert reply.metadata is not None
    assert reply.metadata[Namespace.LEDGER] == {
        "1": {"verdict": "escalate", "reason": "refusal", "tier": "small", "input": 9, "output": 4, "cached": 3}
    }


@pytest.mark.parametrize("trailers", [False, True], ids=["end", "trailers"])
def test_a_released_stream_is_recorded_at_its_end(trailers: bool) -> None:
    """The verdict and the token counts reach the ledger with the last message."""
    counted = b'data: {"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":70}}\n\n'
    pieces = [chunk(text) for text in LONG] + [chunk(finish="length") + counted + b"data: [DONE]\n\n"]
    exchange = VerifierExchange(Verifier(lambda: snapshot(), None), opening())
    *_, last = (reply for batch in run(exchange, *streamed(pieces, trailers)) for reply in batch)
    assert last.metadata == {
        Namespace.DECISION: {"verdict": "recorded", "verdict_reason": "cut"},
        Namespace.LEDGER: {"1": {"verdict": "recorded", "reason": "cut", "input": 9, "output": 70}},
    }


def test_a_stream_cut_at_its_first_words_has_no_count() -> None:
    """Anthropic counts the output again at the end, so the first count is not used."""
    start = {"type": "message_start", "message": {"usage": {"input_tokens": 9, "output_tokens": 1}}}
    block = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
    text = {"type": "text_delta", "text": "I'm sorry, but I can't help with that request."}
    delta = {"type": "content_block_delta", "index": 0, "delta": text}
    frames = [b"data: " + msgspec.json.encode(event) + b"\n\n" for event in (start, block, delta)]
    opened = opening()
    opened.metadata[Namespace.DECISION]["api"] = "messages"
    exchange = VerifierExchange(Verifier(lambda: snapshot(), None), opened)
    *_, first = run(exchange, headers(), *(Event("response_body", body=frame) for frame in frames))[-1][:1]
    assert first.metadata is not None
    assert first.metadata[Namespace.LEDGER] == {"1": {"verdict": "escalate", "reason": "refusal"}}


def test_an_answer_is_judged_by_the_arm_that_decided() -> None:
    """A candidate has its own rules. A candidate that is gone is judged by the policy that serves."""
    strict = msgspec.structs.replace(snapshot(rules=["complete", {"max_chars": 5}]), revision="candidate-1")
    both = msgspec.structs.replace(snapshot(), rollout=Rollout(Candidate("next"), "/next", snapshot=strict))
    answer = Event("response_body", True, chunk("Longer than that.", "stop") + b"data: [DONE]\n\n")
    verdicts = {}
    for revision in ("r1", "candidate-1", "candidate-2"):
        first = opening()
        first.metadata[Namespace.DECISION]["revision"] = revision
        _, replies = run(VerifierExchange(Verifier(lambda: both, None), first), headers(), answer)
        verdicts[revision] = next(reply.headers["x-cascade-verdict"] for reply in replies if reply.headers)
    assert verdicts == {"r1": "accept", "candidate-1": "escalate", "candidate-2": "accept"}
