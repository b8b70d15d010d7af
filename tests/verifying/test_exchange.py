"""The verifier's side of an exchange, message by message: what is held, what is let go, and the verdict."""

import asyncio
from typing import Any, cast

import msgspec
import pytest

from extproc.acceptance.requirements import Requirements
from extproc.acceptance.rules import compile_rules
from extproc.api.strip import without_logprobs
from extproc.contract.names import Namespace
from extproc.contract.records import ladder_of
from extproc.messages import Event, Opening, Reply
from extproc.routing.index import Index
from extproc.routing.policy import Cohort, Policy, Snapshot
from extproc.settings import EncoderConfig, Escalate, Escalations, Human, StreamHold
from extproc.verifying.exchange import Verifier, VerifierExchange
from extproc.verifying.rescue import RescueExchange

_RULES = ("complete", "non_empty", "no_refusal")


def snapshot(stream: StreamHold = "early", rules: Any = _RULES, share: float = 1.0, **limits: Any) -> Snapshot:
    cohort = Cohort(
        "c", "small", 0.0, 0.0, True,
        accept=compile_rules(list(rules)), escalate=Escalate("large", share=share), stream=stream,
    )  # fmt: skip
    policy = Policy((), "small", {"c": cohort})
    return Snapshot("r1", policy, cast(Index, None), EncoderConfig(), Escalations(**limits))


# A stream is told in either; what `extproc envoy` renders is the first.
STREAMS = ("STREAMED", "FULL_DUPLEX_STREAMED")


def opening(mode: str = "STREAMED", attempt: int = 1, cohort: str = "c", **facts: Any) -> Opening:
    given = Requirements(stream=mode in STREAMS) if not facts else Requirements(**facts)
    decision = {"cohort": cohort, "rungs": ["small", "large"], "api": "chat", "escalations": 0.0}
    return Opening(
        {"authorization": "Bearer x"}, "NONE", mode,  # type: ignore[arg-type]
        {Namespace.DECISION: decision, Namespace.REQUIREMENTS: {"facts": msgspec.json.encode(given).decode()}},
        attempt,
        body_before_reply=mode == "STREAMED",
    )  # fmt: skip


def headers(kind: str = "text/event-stream", status: str = "200", end: bool = False, **more: str) -> Event:
    return Event("response_headers", end, headers={":status": status, "content-type": kind, **more})


def run(exchange: VerifierExchange, *events: Event) -> list[list[Reply]]:
    """The replies to each event."""

    async def play() -> list[list[Reply]]:
        return [await exchange.answer(event) for event in events]

    return asyncio.run(play())


def chunk(content: str | None = None, finish: str | None = None) -> bytes:
    delta = {} if content is None else {"content": content}
    return (
        b"data: "
        + msgspec.json.encode({"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})
        + b"\n\n"
    )


def transcript(*said: str, finish: str | None = "stop", done: bool = True) -> bytes:
    ending = [chunk(finish=finish)] if finish else []
    return b"".join([*map(chunk, said), *ending, *([b"data: [DONE]\n\n"] if done else [])])


def streamed(pieces: list[bytes], trailers: bool = False) -> list[Event]:
    events = [headers(), *(Event("response_body", body=piece) for piece in pieces)]
    if trailers:
        return [*events, Event("response_trailers", True)]
    return [*events[:-1], Event("response_body", True, pieces[-1])]


def checked(replies: list[Reply], pieces: list[bytes], trailers: bool = False) -> dict[str, str]:
    """The verdict's headers, once it is sure that not one byte was lost, repeated, reordered or sent too soon."""
    kinds = [reply.kind for reply in replies]
    assert kinds.count("response_headers") == 1 and kinds[0] == "response_headers"
    bodies = [reply for reply in replies if reply.kind == "response_body"]
    if bodies[0].streamed:  # what it does not give back is lost
        assert all(reply.streamed for reply in bodies)
        assert b"".join(reply.body or b"" for reply in bodies) == b"".join(pieces)
        assert [reply.end for reply in bodies] == [False] * (len(bodies) - 1) + [not trailers]
    else:  # one to a message, and what it does not change passes
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
    "no done": (transcript("All of it.", done=False), rejected("incomplete")),
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
def test_every_split_of_a_stream_is_passed_on_whole(mode: str, hold: StreamHold, name: str, trailers: bool) -> None:
    """Cut at any byte, a byte at a time, or in one piece: the same bytes, in order, under the same verdict."""
    whole, verdict = TRANSCRIPTS[name]
    splits = [[whole[:i], whole[i:]] for i in range(len(whole) + 1)]
    splits += [[whole], [whole, b""], [whole[i : i + 1] for i in range(len(whole))] or [b""]]
    for pieces in splits:
        exchange = VerifierExchange(Verifier(lambda: snapshot(hold), None), opening(mode))
        replies = [reply for some in run(exchange, *streamed(pieces, trailers)) for reply in some]
        got = checked(replies, pieces, trailers)
        assert exchange.ruling is not None
        if hold == "record":
            assert got == {}
            assert exchange.ruling.word == ("accept" if verdict == ACCEPT else "recorded")
            assert exchange.ruling.verdict.accept == (verdict == ACCEPT)
        else:
            assert got == verdict, pieces


def test_an_early_judgement_lets_go_as_soon_as_it_may() -> None:
    """Nothing leaves before 200 characters; then all that was held, and from there every piece as it comes."""
    pieces = [chunk(said) for said in LONG] + [transcript()]
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
    assert exchange.ruling is None  # a stream that has left is not accepted before it has ended
    answers += run(exchange, *last)
    assert [len(replies) for replies in answers[6:]] == [1, 1]
    assert checked([r for some in answers for r in some], pieces) == ACCEPT
    # What it turned out to be in the end is written down, too.
    ruling: Any = exchange.ruling
    assert (ruling.word, ruling.verdict.accept) == ("accept", True)


def test_what_breaks_after_it_was_let_go_is_passed_as_it_broke() -> None:
    """No ending is made up, and nothing is taken back."""
    pieces = [chunk(said) for said in LONG] + [b"data: {half a fr"]
    exchange = VerifierExchange(Verifier(lambda: snapshot(), None), opening())
    assert checked([r for some in run(exchange, *streamed(pieces)) for r in some], pieces) == ACCEPT
    assert exchange.ruling is not None
    assert (exchange.ruling.word, exchange.ruling.verdict.reason) == ("recorded", "incomplete")


def test_a_refusal_is_rejected_before_its_end() -> None:
    """At the first token after which nothing can change it."""
    exchange = VerifierExchange(Verifier(lambda: snapshot(), None), opening())
    answers = run(
        exchange, headers(), Event("response_body", body=chunk("I'm sorry, but I can't help with that request. ")),
        Event("response_body", body=chunk("It is not something I may do. ")),
    )  # fmt: skip
    assert answers[0] == [] and next(r for some in answers for r in some).headers == rejected("refusal")


def test_a_buffered_stream_is_held_to_its_end_but_not_beyond_four_megabytes() -> None:
    """Beyond that it leaves as it is, marked degraded, for its rules were not run."""
    pieces = [chunk("x" * 400_000) for _ in range(12)] + [transcript()]
    exchange = VerifierExchange(Verifier(lambda: snapshot("buffer"), None), opening())
    answers = run(exchange, *streamed(pieces))
    assert [len(replies) for replies in answers[:11]] == [0] * 11
    assert len(answers[11]) == 12
    assert checked([r for some in answers for r in some], pieces) == {"x-cascade-verdict": "degraded"}


def test_a_recorded_stream_is_never_held() -> None:
    pieces = [chunk("I'm sorry, "), chunk("but I can't help with that."), transcript()]
    exchange = VerifierExchange(Verifier(lambda: snapshot("record"), None), opening())
    assert [len(replies) for replies in run(exchange, *streamed(pieces))] == [1, 1, 1, 1]
    assert exchange.ruling is not None
    assert (exchange.ruling.word, exchange.ruling.verdict.reason) == ("recorded", "refusal")


def test_where_the_body_waits_for_our_reply_nothing_is_held() -> None:
    """Each would wait for the other: what could not be held is recorded."""
    pieces = [chunk("I'm sorry, "), chunk("but I can't help with that."), transcript()]
    given = msgspec.structs.replace(opening(), body_before_reply=False)
    exchange = VerifierExchange(Verifier(lambda: snapshot(), None), given)
    replies = run(exchange, *streamed(pieces))
    assert [len(some) for some in replies] == [1, 1, 1, 1]
    assert checked([reply for some in replies for reply in some], pieces) == {}
    assert exchange.ruling is not None and exchange.ruling.word == "recorded"


def test_a_server_that_is_lost_at_any_message_costs_no_client_a_frame() -> None:
    """Envoy passes on what was not answered; log-probabilities that nobody asked for are all that may be in it."""
    frame = {"index": 0, "delta": {"content": "An answer "}, "logprobs": {"content": [{"logprob": -0.5}]}}
    whole = (b"data: " + msgspec.json.encode({"choices": [frame]}) + b"\n\n") * 4 + transcript()
    bare = [without_logprobs("chat", line[5:]) for line in whole.split(b"\n\n")]
    opened = opening()
    opened.metadata[Namespace.DECISION]["logprobs_added"] = True
    for size in (9, 60, 107, 1000):
        pieces = [whole[i : i + size] for i in range(0, len(whole), size)]
        for trailers in (False, True):
            events = streamed(pieces, trailers)
            for known in range(1, len(events) + 1):
                exchange = VerifierExchange(Verifier(lambda: snapshot("record"), None), opened)
                replies = [reply for some in run(exchange, *events[:known]) for reply in some]
                ours = [reply.body for reply in replies if reply.kind == "response_body"]
                got = b"".join(body or b"" for body in ours) + b"".join(pieces[len(ours) :])
                assert [without_logprobs("chat", line[5:]) for line in got.split(b"\n\n")] == bare
            assert b"-0.5" not in got


# --- whole answers ------------------------------------------------------------------------------------------


def answer(content: str | None, finish: str = "stop") -> bytes:
    message = {"role": "assistant", "content": content}
    return msgspec.json.encode({"choices": [{"index": 0, "message": message, "finish_reason": finish}]})


def judged(body: bytes, exchange: VerifierExchange, kind: str = "application/json", **more: str) -> dict[str, str]:
    """The verdict on a buffered body; it must not be touched."""
    first, second = run(exchange, headers(kind, "200", False, **more), Event("response_body", True, body))
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
def test_an_error_of_the_upstreams_is_not_judged(mode: str, status: str) -> None:
    """It is Envoy's to retry, and passes as it is."""
    exchange = VerifierExchange(Verifier(lambda: snapshot(), None), opening(mode))
    body = Event("response_body", True, b'{"error":{}}')
    first, second = run(exchange, headers("application/json", status), body)
    assert [r.headers for r in (*first, *second)] == [None, None]
    assert exchange.ruling is None


@pytest.mark.parametrize("mode", ["BUFFERED", *STREAMS])
def test_a_200_without_a_body_is_rejected(mode: str) -> None:
    """No client could read it; no body message will come."""
    exchange = VerifierExchange(Verifier(lambda: snapshot(), None), opening(mode))
    [[reply]] = run(exchange, headers(end=True))
    assert (reply.kind, reply.headers) == ("response_headers", rejected("malformed"))


@pytest.mark.parametrize("mode", ["BUFFERED", *STREAMS])
def test_a_cohort_that_is_gone_holds_nothing_against_an_answer(mode: str) -> None:
    exchange = VerifierExchange(Verifier(lambda: snapshot(), None), opening(mode, cohort="gone"))
    answers = run(exchange, headers(), Event("response_body", True, b"<html>"))
    assert [r.headers for some in answers for r in some] == [None, None]
    assert exchange.ruling is None


def test_a_compressed_answer_is_rejected() -> None:
    exchange = VerifierExchange(Verifier(lambda: snapshot(), None), opening("BUFFERED"))
    assert judged(b"\x1f\x8b...", exchange, **{"content-encoding": "gzip"}) == rejected("malformed")


def test_the_policy_of_the_moment_judges_to_the_end() -> None:
    """A reload in the middle of an answer changes nothing about it."""
    now = [snapshot()]
    verifier = Verifier(lambda: now[0], None)
    exchange = VerifierExchange(verifier, opening("BUFFERED"))
    now[0] = snapshot(rules=[{"min_chars": 100}])
    assert judged(answer("Fine."), exchange) == ACCEPT
    assert judged(answer("Fine."), VerifierExchange(verifier, opening("BUFFERED"))) == rejected("too_short")


@pytest.mark.parametrize("facts", [{}, {"facts": "no JSON"}, {"facts": 7}, {"facts": '{"tools": 5}'}])
def test_facts_that_cannot_be_read_are_none(facts: Any) -> None:
    given = opening("BUFFERED")
    exchange = VerifierExchange(
        Verifier(lambda: snapshot(rules=["complete", "json_schema"]), None),
        msgspec.structs.replace(given, metadata=given.metadata | {Namespace.REQUIREMENTS: facts}),
    )
    assert judged(answer("Fine."), exchange) == ACCEPT
    assert exchange.ruling is not None and exchange.ruling.verdict.unavailable == ("json_schema",)


@pytest.mark.parametrize(
    "odd", [{"rungs": "many"}, {"api": "evil"}, {"escalations": None}, {"cohort": 7.0}, {"logprobs_added": {}}]
)
def test_a_decision_that_is_not_the_routers_holds_nothing_against_an_answer(odd: dict[str, Any]) -> None:
    """Metadata of the wrong kind is another filter's mistake: the answer passes, and no exchange is lost."""
    given = opening()
    given.metadata[Namespace.DECISION].update(odd)
    exchange = VerifierExchange(Verifier(snapshot), given)
    whole = transcript("I'm sorry, but I can't help ", "with that request.")
    replies = [reply for some in run(exchange, *streamed([whole])) for reply in some]
    assert checked(replies, [whole]) == {}
    assert exchange.ruling is None


def test_a_case_is_put_aside_once_whatever_comes_after_it() -> None:
    """What Envoy had sent before it read our answer to the client gets none, and makes no second case."""
    aside = snapshot()
    cohort = msgspec.structs.replace(aside.policy.cohorts["c"], escalate=Escalate("human"))
    policy = msgspec.structs.replace(aside.policy, cohorts={"c": cohort})
    aside = msgspec.structs.replace(aside, policy=policy, human=Human())
    cases: list[str] = []

    def enqueue(_: Human, __: dict[str, Any], ___: str, answer: str) -> str:
        cases.append(answer)
        return "case1"

    given = opening(attempt=2)
    exchange = VerifierExchange(Verifier(lambda: aside, enqueue=enqueue), given)
    whole = transcript("I'm sorry, but I can't help ", "with that request.")
    replies = run(exchange, *streamed([whole, b": bye\n\n"], trailers=True))
    assert [[reply.status for reply in some] for some in replies] == [[], [422], [], []]
    assert cases == ["I'm sorry, but I can't help with that request."]


def test_without_any_metadata_everything_passes() -> None:
    exchange = VerifierExchange(Verifier(lambda: snapshot(), None), Opening({}, "NONE", "BUFFERED"))
    answers = run(exchange, headers(), Event("response_body", True, b"<html>"))
    assert [r.headers for some in answers for r in some] == [None, None]


def test_the_requests_schema_reaches_the_judge() -> None:
    schema = {"type": "object", "required": ["total"]}
    for content, expected in (('{"total": 1}', ACCEPT), ('{"sum": 1}', rejected("schema"))):
        exchange = VerifierExchange(
            Verifier(lambda: snapshot(rules=["json_schema"]), None), opening("BUFFERED", json_schema=schema)
        )
        assert judged(answer(content), exchange) == expected


def test_messages_that_are_not_ours_are_answered_in_kind() -> None:
    exchange = VerifierExchange(Verifier(lambda: snapshot(), None), opening("BUFFERED"))
    for kind in ("request_headers", "request_body", "request_trailers", "response_trailers"):
        assert run(exchange, Event(kind)) == [[Reply(kind)]]  # type: ignore[arg-type]


# --- bounds -------------------------------------------------------------------------------------------------

REFUSED = answer("I'm sorry, but I can't help with that.")


@pytest.mark.parametrize("attempt", [2, 3])
def test_the_last_rung_does_not_climb(attempt: int) -> None:
    exchange = VerifierExchange(Verifier(lambda: snapshot(), None), opening("BUFFERED", attempt))
    assert judged(REFUSED, exchange) == rejected("refusal", "degraded")
    assert exchange.ruling is not None and exchange.ruling.bound == "last_rung"


def test_a_principal_over_its_burst_is_degraded_and_another_climbs() -> None:
    verifier = Verifier(lambda: snapshot(burst=2, per_minute=0), None)
    words = [
        judged(REFUSED, VerifierExchange(verifier, opening("BUFFERED")))["x-cascade-verdict"] for _ in range(4)
    ]
    assert words == ["escalate", "escalate", "degraded", "degraded"]
    other = msgspec.structs.replace(opening("BUFFERED"), headers={"authorization": "Bearer y"})
    assert judged(REFUSED, VerifierExchange(verifier, other))["x-cascade-verdict"] == "escalate"


def test_a_cohort_over_its_share_is_degraded() -> None:
    verifier = Verifier(lambda: snapshot(share=0.001, burst=1000), None)
    words = [
        judged(REFUSED, VerifierExchange(verifier, opening("BUFFERED")))["x-cascade-verdict"] for _ in range(12)
    ]
    assert words == ["escalate"] * 10 + ["degraded"] * 2


def climbing(attempt: int, skipped: float | None, to: tuple[str, ...], answered: bytes = REFUSED) -> Any:
    """What a verdict under `skip: [no_refusal]` tells Envoy, with small, large and frontier for a ladder."""
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
        namespace: said
        for namespace, said in reply.metadata.items()
        if namespace not in (Namespace.ANSWER, Namespace.LEDGER)
    }


UP = {"verdict": "escalate", "verdict_reason": "refusal", "escalations": 1}
OUT = {"verdict": "degraded", "verdict_reason": "refusal", "bound": "last_rung"}
THREE = ("large", "frontier")


def test_a_rule_that_skips_climbs_past_a_rung() -> None:
    """The next attempt's place in the ladder is taken by the rung above it; that is one climb."""
    assert climbing(1, None, THREE) == {
        Namespace.DECISION: UP | {"skipped": 1},
        Namespace.LADDER: ladder_of(["large", "frontier"]),  # its second is where the second attempt goes
    }
    four = ("large", "frontier", "best")
    assert climbing(2, None, four) == {Namespace.DECISION: UP | {"skipped": 1}, Namespace.LADDER: ladder_of(four)}
    assert climbing(2, 1.0, (*four, "last")) == {
        Namespace.DECISION: UP | {"skipped": 2, "escalations": 2},
        Namespace.LADDER: ladder_of(["frontier", "best", "last"]),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("attempt", "skipped", "to", "answered", "expected"),
    [(2, None, THREE, REFUSED, UP), (2, 1.0, THREE, REFUSED, OUT), (3, 1.0, THREE, REFUSED, OUT),
     (1, None, THREE, answer(""), UP | {"verdict_reason": "empty"}), (1, None, ("large",), REFUSED, UP),
     (1, None, ("large", "human"), REFUSED, OUT)],
    ids=["nothing above the next", "at the end after a jump", "again at the end", "another rule", "one rung",
         "straight to a person"],
)  # fmt: skip
def test_a_rung_is_jumped_only_where_one_is_above_it(
    attempt: int, skipped: float | None, to: tuple[str, ...], answered: bytes, expected: dict[str, Any]
) -> None:
    """Otherwise it is a climb like any other; the ladder stays as the router wrote it."""
    assert climbing(attempt, skipped, to, answered) == {Namespace.DECISION: expected}


def test_what_a_verdict_tells_envoy() -> None:
    """The verdict, its reason, the count of climbs, the bound where one held it; and the ledger's entry."""
    for attempt, expected in (
        (1, {"verdict": "escalate", "verdict_reason": "refusal", "escalations": 1}),
        (2, {"verdict": "degraded", "verdict_reason": "refusal", "bound": "last_rung"}),
    ):
        opened = msgspec.structs.replace(opening("BUFFERED", attempt), tier="small")
        exchange = VerifierExchange(Verifier(lambda: snapshot(), None), opened)
        _, [reply] = run(exchange, headers("application/json"), Event("response_body", True, REFUSED))
        kept = {"body": REFUSED.decode(), "type": "application/json", "tier": "small"}
        entry = {str(attempt): {"verdict": expected["verdict"], "reason": "refusal", "tier": "small"}}
        told = {Namespace.DECISION: expected, Namespace.LEDGER: entry}
        assert reply.metadata == told | ({Namespace.ANSWER: kept} if attempt == 1 else {})


def kept_of(pieces: list[bytes], rules: Any = _RULES) -> Any:
    """What is kept of a stream."""
    opened = msgspec.structs.replace(opening(), tier="small")
    exchange = VerifierExchange(Verifier(lambda: snapshot("buffer", rules), None), opened)
    replies = [reply for some in run(exchange, *streamed(pieces)) for reply in some]
    assert (replies[0].headers or {})["x-cascade-verdict"] == "escalate"
    return (replies[0].metadata or {}).get(Namespace.ANSWER)


def test_a_rejected_answer_is_kept_if_a_client_could_use_it() -> None:
    """Whole, as it came, and bounded: no half answer, no empty one, none that no client could read."""
    refused = TRANSCRIPTS["refusal"][0]
    assert kept_of([refused[:50], refused[50:]]) == {
        "body": refused.decode(), "type": "text/event-stream", "tier": "small",
    }  # fmt: skip
    for name in TRANSCRIPTS.keys() - {"good", "refusal", "length"}:
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


def test_a_failure_is_answered_with_the_answer_that_was_kept() -> None:
    """Under its own tier's name, marked, and counted."""
    [reply], exchange = rescued()
    said = {
        "content-type": "application/json", "x-cascade-verdict": "degraded", "x-cascade-reason": "refusal",
        "x-router-cohort": "c", "x-router-reason": "matched", "x-router-tier": "small", "x-router-attempts": "2",
        "x-router-escalations": "1",
    }  # fmt: skip
    assert reply == Reply(
        "response_headers", said, REFUSED, status=200, metadata={Namespace.DECISION: {"verdict": "rescued"}}
    )
    assert exchange.ruling is not None
    assert (exchange.ruling.word, exchange.ruling.attempt) == ("rescued", 2)


@pytest.mark.parametrize(
    "given",
    [{"status": "200"}, {"answer": {}}, {"x-cascade-verdict": "human"}],
    ids=["an answer", "nothing kept", "put aside for a person, whatever the status"],
)
def test_what_needs_no_rescue_passes(given: Any) -> None:
    assert rescued(**given)[0] == [Reply("response_headers")]


def test_the_ledger_is_told_what_an_attempt_cost() -> None:
    """The tier, and the tokens that its answer counts."""
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
def test_a_stream_that_was_let_go_is_told_of_at_its_end(trailers: bool) -> None:
    """The client has it already: its verdict and its tokens reach the ledger with the last message."""
    counted = b'data: {"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":70}}\n\n'
    pieces = [chunk(said) for said in LONG] + [chunk(finish="length") + counted + b"data: [DONE]\n\n"]
    exchange = VerifierExchange(Verifier(lambda: snapshot(), None), opening())
    *_, last = (reply for some in run(exchange, *streamed(pieces, trailers)) for reply in some)
    assert last.metadata == {
        Namespace.DECISION: {"verdict": "recorded", "verdict_reason": "cut"},
        Namespace.LEDGER: {"1": {"verdict": "recorded", "reason": "cut", "input": 9, "output": 70}},
    }


def test_a_stream_cut_at_its_first_words_has_no_count() -> None:
    """Anthropic counts the output again at the end: the first count is not the last, so it is none."""
    start = {"type": "message_start", "message": {"usage": {"input_tokens": 9, "output_tokens": 1}}}
    block = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
    said = {"type": "text_delta", "text": "I'm sorry, but I can't help with that request."}
    delta = {"type": "content_block_delta", "index": 0, "delta": said}
    frames = [b"data: " + msgspec.json.encode(event) + b"\n\n" for event in (start, block, delta)]
    opened = opening()
    opened.metadata[Namespace.DECISION]["api"] = "messages"
    exchange = VerifierExchange(Verifier(lambda: snapshot(), None), opened)
    *_, first = run(exchange, headers(), *(Event("response_body", body=frame) for frame in frames))[-1][:1]
    assert first.metadata is not None
    assert first.metadata[Namespace.LEDGER] == {"1": {"verdict": "escalate", "reason": "refusal"}}
