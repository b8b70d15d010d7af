"""One exchange: what is answered to Envoy's messages, in every processing mode and for every kind of body."""

import asyncio
import gzip
import json
import math
from pathlib import Path
from typing import Any

import msgspec
import pytest

from extproc.config.compile import compile_snapshot
from extproc.config.load import load_config
from extproc.contract.names import CONTRACT, MAX_BODY_BYTES, HeaderName, Namespace
from extproc.contract.words import Reason
from extproc.encoder.protocols import DeadlineError, EncoderError
from extproc.messages import BodyMode, Event, Kind, Opening, Reply
from extproc.routing.exchange import Router, RouterExchange, decision_record
from extproc.routing.limits import Rates, principal_of
from extproc.settings import Evidence, Probability, Upgrades

ASK = "Send my last invoice again"
BODY = b'{"model": "auto", "messages": [{"role": "user", "content": "Send my last invoice again"}]}'
SENT_ON = BODY[:-1].replace(b'"auto"', b'"qwen3-8b"') + b',"max_tokens":200}'
CHAT = {":path": "/v1/chat/completions", ":method": "POST"}


class WordEmbedder:
    """The word encoder at once, or the failure that a text of that name asks for."""

    def __init__(self, encoder, failure: Exception | None = None) -> None:
        self.encoder, self.failure = encoder, failure
        self.asked: list[tuple[str, float]] = []

    async def embed(self, text, deadline_s):
        self.asked.append((text, deadline_s))
        if self.failure is not None:
            raise self.failure
        return self.encoder.encode([text])[0]


@pytest.fixture(scope="module")
def snapshot(words):
    """The good folder of the configuration's tests: billing goes to small with a cap, cooking to large."""
    return compile_snapshot(load_config(Path(__file__).parents[1] / "configs/good"), words)


@pytest.fixture
def router(snapshot, words) -> Router:
    return Router(snapshot, WordEmbedder(words))


def headers(end: bool = False) -> Event:
    return Event("request_headers", end, headers=CHAT)


def body(chunk: bytes, end: bool = True) -> Event:
    return Event("request_body", end, chunk)


TRAILERS = Event("request_trailers", True)


def exchanged(router: Router, mode: BodyMode, *events: Event, response: BodyMode = "NONE", **opening: Any):
    """The exchange after `events`, and the replies to each."""
    exchange = RouterExchange(router, Opening(**{"headers": CHAT, **opening}, request_body_mode=mode,
                                              response_body_mode=response))  # fmt: skip

    async def answered() -> list[list[Reply]]:
        return [await exchange.answer(event) for event in events]

    return exchange, asyncio.run(answered())


def routed_reply(router: Router) -> Reply:
    """The reply to BODY in the plainest mode, to compare other modes with."""
    _, ((reply,),) = exchanged(router, "BUFFERED", body(BODY))
    return reply


def routed_headers(router: Router) -> Reply:
    """The same decision in the reply to a headers message."""
    reply = routed_reply(router)
    return Reply("request_headers", headers=reply.headers, metadata=reply.metadata)


def sent(router: Router, raw: bytes, **opening: Any) -> tuple[str, str, bytes | None]:
    """Reason, cluster and body of the one reply to a buffered body."""
    _, ((reply,),) = exchanged(router, "BUFFERED", body(raw), **opening)
    assert (reply.kind, reply.streamed) == ("request_body", False)
    assert reply.headers is not None and reply.metadata is not None
    record = reply.metadata[Namespace.DECISION]
    assert reply.headers == {HeaderName.CLUSTER: record["cluster"]}
    return record["reason"], record["cluster"], reply.body


# The decision, in the one message of the plainest mode


def test_one_body_message_is_answered_with_route_body_and_record(router, snapshot):
    """BUFFERED without a headers message: one message in, one reply out, and all that Envoy needs is in it."""
    exchange, ((reply,),) = exchanged(router, "BUFFERED", body(BODY))
    assert exchange.routed is not None
    match = exchange.routed.decision.match
    assert match is not None and reply.metadata is not None
    assert (reply.kind, reply.headers, reply.body, reply.streamed) == (
        "request_body",
        {HeaderName.CLUSTER: "small"},
        SENT_ON,
        False,
    )
    assert reply.metadata[Namespace.DECISION] == {
        "cluster": "small",
        "tier": "small",
        "reason": "matched",
        "reasoning": "model",
        "revision": snapshot.revision,
        "mode": "enforce",
        "cohort": "billing",
        "similarity": round(match.similarity, 4),
        "margin": round(match.margin, 4),
        "calibrated": False,
        "ask": "last_user",
        "ask_chars": len(ASK),
        "ask_cut": False,
        "tokens": len(BODY) // 4,
        "contract": CONTRACT,
        "max_retries": 1,
        "escalations": 0,
    }
    assert reply.metadata[Namespace.LADDER] == {
        "priority_groups": [
            {"name": "rung0", "clusters": [{"cluster_name": "small", "weight": 1}]},
            {"name": "rung1", "clusters": [{"cluster_name": "large", "weight": 1}]},
        ]
    }


def test_the_ledger_is_told_who_asks_as_hashes(router):
    """The principal by the first of the policy's headers, and the conversation by its first words."""

    def told(raw: bytes, **headers: str) -> dict[str, str]:
        _, ((reply,),) = exchanged(router, "BUFFERED", body(raw), headers=CHAT | headers)
        assert reply.metadata is not None
        return reply.metadata[Namespace.LEDGER]

    first = told(BODY, authorization="Bearer a")
    assert first == {"principal": principal_of("Bearer a"), "session": first["session"]}
    later = BODY.replace(
        b"}]}", b'}, {"role": "assistant", "content": "Which?"}, {"role": "user", "content": "May"}]}'
    )
    assert told(later, authorization="Bearer a") == first
    assert told(later, authorization="Bearer b")["session"] != first["session"]
    assert told(BODY)["principal"] == "anonymous"
    assert told(b"{") == {"principal": "anonymous"}


def test_a_calibrated_match_says_how_likely_it_is_and_by_which_evidence(snapshot, words):
    """A similarity is no probability; with evidence there is one, beside the stamp of the data behind it."""
    curve = Probability(similarity=3, margin=2, offset=-1)
    evidence = Evidence("2026-11-22", "3f2a9c0d1e4b", 240, "m", "c", 0.05, (0.0, 0.04), 0.9, curve)
    billing = msgspec.structs.replace(snapshot.policy.cohorts["billing"], calibrated=True, evidence=evidence)
    policy = msgspec.structs.replace(snapshot.policy, cohorts=snapshot.policy.cohorts | {"billing": billing})
    calibrated = Router(msgspec.structs.replace(snapshot, policy=policy), WordEmbedder(words))
    exchange, _ = exchanged(calibrated, "BUFFERED", body(BODY))
    assert exchange.routed is not None and exchange.routed.decision.match is not None
    match, record = exchange.routed.decision.match, decision_record(exchange.routed)
    assert (record.calibrated, record.probability, record.evidence) == (
        True,
        round(1 / (1 + math.exp(1 - 3 * match.similarity - 2 * match.margin)), 4),
        "3f2a9c0d1e4b 2026-11-22",
    )


def test_the_record_has_no_word_of_the_prompt(router):
    """Prompts are private: what is logged and traced holds lengths and numbers only."""
    marked = BODY.replace(b"again", b"zebra")
    exchange, _ = exchanged(router, "BUFFERED", body(marked))
    assert exchange.routed is not None
    record = decision_record(exchange.routed)
    assert "zebra" not in repr(record) and "invoice" not in repr(record)


def test_the_ask_is_embedded_once_within_the_policys_deadline(router):
    """Not the whole body, and no second look."""
    exchanged(router, "BUFFERED", body(BODY))
    assert router.embedder.asked == [(ASK, 0.2)]


def test_rules_see_the_headers_that_came_with_the_stream(router):
    """A trusted header reaches the rule whether it came as an attribute or in the headers message."""
    cooking = BODY.replace(ASK.encode(), b"How long do I boil an egg")
    gold = {**CHAT, "x-user-tier": "gold"}
    exchange, _ = exchanged(router, "BUFFERED", body(cooking), headers=gold)
    assert exchange.routed is not None and exchange.routed.decision.rule == "cooks"


def test_a_stream_keeps_the_snapshot_that_it_started_with(router, snapshot):
    """A reload in the middle of a decision does not mix two revisions."""
    newer = msgspec.structs.replace(snapshot, revision="newer")

    class Reloading(WordEmbedder):
        async def embed(self, text, deadline_s):
            router.swap(newer)
            return await super().embed(text, deadline_s)

    router.embedder = Reloading(router.embedder.encoder)
    first, _ = exchanged(router, "BUFFERED", body(BODY))
    second, _ = exchanged(router, "BUFFERED", body(BODY))
    assert first.routed is not None and second.routed is not None
    assert (first.routed.snapshot, second.routed.snapshot) == (snapshot, newer)


# Every processing mode


def test_headers_then_a_buffered_body(router):
    """The headers pass, the body decides, and takes the old length with it; a later message passes, too."""
    _, replies = exchanged(router, "BUFFERED", headers(), body(BODY, end=False), TRAILERS)
    assert replies == [
        [Reply("request_headers")],
        [msgspec.structs.replace(routed_reply(router), remove=("content-length",))],
        [Reply("request_trailers")],
    ]


def test_a_body_that_was_cut_off_is_passed_on(router):
    """BUFFERED_PARTIAL may send half a JSON text: nothing can be rewritten in it."""
    _, ((passed,), (reply,)) = exchanged(router, "BUFFERED_PARTIAL", headers(), body(BODY[:50], end=False))
    assert passed == Reply("request_headers")
    assert reply == Reply("request_body")


@pytest.mark.parametrize("first", [[headers()], []])
def test_chunks_of_a_streamed_body_pass(router, first):
    """Without the whole body nothing is decided, and half of one is never taken for the whole."""
    exchange, replies = exchanged(router, "STREAMED", *first, body(BODY, end=False), body(b""), TRAILERS)
    assert replies[len(first) :] == [
        [Reply("request_body")],
        [Reply("request_body")],
        [Reply("request_trailers")],
    ]
    assert replies[: len(first)] == [[Reply("request_headers")]] * len(first)
    assert exchange.routed is None


def test_without_a_body_mode_the_headers_pass(router):
    """NONE: nothing to read, nothing decided."""
    exchange, replies = exchanged(router, "NONE", headers(), TRAILERS)
    assert replies == [[Reply("request_headers")], [Reply("request_trailers")]]
    assert exchange.routed is None


@pytest.mark.parametrize("chunks", [[BODY], [BODY[:10], BODY[10:]], [bytes([b]) for b in BODY], [BODY, b""]])
def test_a_full_duplex_body_is_answered_at_its_end(router, chunks):
    """Headers are held until the route is known; then they go, and the body in one piece after them."""
    events = [body(chunk, end=False) for chunk in chunks[:-1]] + [body(chunks[-1])]
    _, replies = exchanged(router, "FULL_DUPLEX_STREAMED", headers(), *events)
    assert replies == [
        *([[]] * len(chunks)),
        [
            routed_headers(router),
            Reply("request_body", body=SENT_ON, streamed=True, end=True),
        ],
    ]


def test_trailers_end_a_full_duplex_body(router):
    """No chunk says that it is the last one then: the trailers do, and are answered after it."""
    _, replies = exchanged(router, "FULL_DUPLEX_STREAMED", headers(), body(BODY, end=False), TRAILERS)
    assert replies == [
        [],
        [],
        [
            routed_headers(router),
            Reply("request_body", body=SENT_ON, streamed=True, end=False),
            Reply("request_trailers"),
        ],
    ]


def test_a_full_duplex_body_without_a_headers_message_gets_no_reply_to_one(router):
    """Headers that Envoy did not send are not answered: it would take that for a protocol error."""
    _, replies = exchanged(router, "FULL_DUPLEX_STREAMED", body(BODY[:10], end=False), body(BODY[10:]))
    assert [[reply.kind for reply in answer] for answer in replies] == [[], ["request_body"]]


def test_a_full_duplex_body_that_is_not_ours_goes_on_as_it_is(router):
    """Every byte of it, in order, however it was cut."""
    other = BODY.replace(b"auto", b"gpt-5")
    events = (headers(), body(other[:30], end=False), body(other[30:]))
    _, (_, _, (head, tail)) = exchanged(router, "FULL_DUPLEX_STREAMED", *events)
    assert (head.kind, head.headers) == ("request_headers", {HeaderName.CLUSTER: "large"})
    assert tail == Reply("request_body", body=other, streamed=True, end=True)


def test_a_full_duplex_body_that_is_too_long_goes_on_unrouted(router):
    """What is held is let go at the limit, and what follows passes chunk by chunk; no byte is lost."""
    half = b"x" * (MAX_BODY_BYTES // 2)
    events = (body(half, end=False), body(half, end=False), body(b"y", end=False), body(b"z", end=False), body(b""))
    exchange, replies = exchanged(router, "FULL_DUPLEX_STREAMED", headers(), *events, TRAILERS)
    assert replies == [
        [],
        [],
        [],
        [Reply("request_headers"), Reply("request_body", body=half + half + b"y", streamed=True, end=False)],
        [Reply("request_body", body=b"z", streamed=True, end=False)],
        [Reply("request_body", body=b"", streamed=True, end=True)],
        [Reply("request_trailers")],
    ]
    assert exchange.routed is None


@pytest.mark.parametrize("mode", ["NONE", "STREAMED", "BUFFERED", "BUFFERED_PARTIAL", "FULL_DUPLEX_STREAMED"])
def test_a_request_without_a_body_passes_at_its_headers(router, mode):
    """GET: no body message will ever come, so nothing waits for one."""
    exchange, replies = exchanged(router, mode, headers(end=True))
    assert replies == [[Reply("request_headers")]]
    assert exchange.routed is None


# The response


@pytest.mark.parametrize("mode", ["STREAMED", "BUFFERED"])
def test_every_response_message_is_answered_in_kind(router, mode):
    """The router has nothing to say about answers."""
    kinds: list[Kind] = ["response_headers", "response_body", "response_body", "response_trailers"]
    events = [Event(kind, body=b"{}" if kind == "response_body" else b"") for kind in kinds]
    _, replies = exchanged(router, "BUFFERED", body(BODY), *events, response=mode)
    assert replies[1:] == [[Reply(kind)] for kind in kinds]


def test_a_full_duplex_response_is_echoed(router):
    """In that mode silence would lose the bytes: each chunk is sent back as it came."""
    events = [Event("response_headers"), Event("response_body", False, b"a"), Event("response_body", True, b"")]
    _, replies = exchanged(router, "BUFFERED", body(BODY), *events, response="FULL_DUPLEX_STREAMED")
    assert replies[1:] == [
        [Reply("response_headers")],
        [Reply("response_body", body=b"a", streamed=True, end=False)],
        [Reply("response_body", body=b"", streamed=True, end=True)],
    ]


@pytest.mark.parametrize("mode", ["NONE", "BUFFERED", "FULL_DUPLEX_STREAMED"])
def test_a_stream_may_start_with_the_response(router, mode):
    """Envoy answers some requests itself before we saw them; there is no request to decide about."""
    exchange, replies = exchanged(router, mode, Event("response_headers", True), headers={})
    assert (replies, exchange.routed) == ([[Reply("response_headers")]], None)


# Upgrades


def test_a_principal_goes_above_the_default_tier_as_often_as_the_policy_says(snapshot, words):
    """Past its burst the default tier serves it, and says why; others do not pay for it."""
    cohorts = dict(snapshot.policy.cohorts)
    cohorts["billing"] = msgspec.structs.replace(cohorts["billing"], tier="large")
    policy = msgspec.structs.replace(
        snapshot.policy, cohorts=cohorts, default_tier="small", upgrades=Upgrades(per_minute=0, burst=2)
    )
    router = Router(msgspec.structs.replace(snapshot, policy=policy), WordEmbedder(words), Rates())

    def asked(key: str, times: int) -> list[tuple[str, str]]:
        return [sent(router, BODY, headers=CHAT | {"authorization": key})[:2] for _ in range(times)]

    dear, cheap = ("matched", "large"), ("upgrade_rate", "small")
    assert asked("Bearer greedy", 4) == [dear, dear, cheap, cheap]
    assert asked("Bearer modest", 1) == [dear]
    assert sent(router, BODY.replace(b'"auto"', b'"qwen3-32b"'))[:2] == ("pinned", "large")


# Bodies that cannot be routed go on as they are, to the default tier, with the reason


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"hello",
        b"[]",
        b"null",
        b'{"model": "auto", "messages": [{"role": "us',
        b'{"model": ["auto"]}',
        b'{"model": "gpt-5", "messages": "Send my invoice"}',
        b'{"model": "auto", "x": ' + b"[" * 200_000 + b"]" * 200_000 + b"}",
        b'{"model": "auto", "x": ' + b'{"a":' * 200_000,
        gzip.compress(BODY),
        BODY[:-1] + b', "model": "auto"}',
        BODY[:-1] + b', "messages": []}',
        BODY[:-1] + b', "\\u006dodel": "auto"}',
        BODY[:-1] + b', "\xff": 1}',
        BODY[:-1] + b', "\\ud800": 1}',
    ],
    ids=lambda raw: repr(raw[-40:]),
)
def test_an_unreadable_body_goes_on_as_it_is(router, raw):
    """Not JSON, cut off, compressed, too deep, of the wrong types, no UTF-8, or with a member twice."""
    assert sent(router, raw) == ("unreadable", "large", None)


@pytest.mark.parametrize(
    "rest", [b'"messages": "Send my invoice"}', b'"messages": [{"role": "user", "content": "\xc3\x28"}]}']
)
def test_an_unreadable_body_whose_model_can_be_read_is_renamed(router, rest):
    """The default tier knows no model called auto: its own complaint about the rest is the better answer."""
    expected = ("unreadable", "large", b'{"model": "qwen3-32b", ' + rest)
    assert sent(router, b'{"model": "auto", ' + rest) == expected


@pytest.mark.parametrize("path", ["/v1/embeddings", "/", "", "/v1/chat/completionsx"])
def test_an_unknown_path_passes_through(router, path):
    """Whatever the body: it is no API of ours."""
    assert sent(router, BODY, headers={":path": path}) == ("passthrough", "large", None)


def test_a_stream_that_tells_no_path_passes_through(router):
    """An operator who asked for no attributes gets the default tier, not an error."""
    assert sent(router, BODY, headers={}) == ("passthrough", "large", None)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b'{"messages": []}', ("passthrough", "large", None)),
        (BODY.replace(b'"auto"', b"null"), ("passthrough", "large", None)),
        (BODY.replace(b'"auto"', b'""'), ("passthrough", "large", None)),
        (BODY.replace(b'"auto"', b'"gpt-5"'), ("passthrough", "large", None)),
        (BODY.replace(b'"auto"', b'"qwen3-8b"'), ("pinned", "small", None)),
        (BODY.replace(b'"auto"', b'"qwen3-32b"'), ("pinned", "large", None)),
    ],
)
def test_a_model_that_may_not_be_replaced_keeps_its_bytes(router, raw, expected):
    """Missing, unknown, or a tier's own: which then serves it."""
    assert sent(router, raw) == expected
    assert router.embedder.asked == []


def test_a_request_without_words_goes_to_the_default_tier_under_its_model(router):
    """It is ours to route, and nothing was there to match."""
    raw = b'{"model": "auto", "messages": []}'
    assert sent(router, raw) == ("no_text", "large", raw.replace(b"auto", b"qwen3-32b"))
    assert router.embedder.asked == []


@pytest.mark.parametrize(
    ("failure", "reason"),
    [(DeadlineError("no vector within 200 ms"), Reason.DEADLINE), (EncoderError("broken"), Reason.ENCODER)],
)
def test_without_a_vector_the_default_tier_serves(snapshot, words, failure, reason):
    """The request goes on under that tier's model, and the record says what failed."""
    router = Router(snapshot, WordEmbedder(words, failure))
    assert sent(router, BODY) == (reason.value, "large", BODY.replace(b"auto", b"qwen3-32b"))


def test_a_body_of_five_megabytes_is_routed_and_kept(router):
    """Only its ask is read; every other byte goes on."""
    filler = '", \\"pasted\\" ü ' * 50_000
    turns = [{"role": "user", "content": filler * 6}, {"role": "assistant", "content": "Ok"}]
    raw = json.dumps({"model": "auto", "messages": [*turns, {"role": "user", "content": ASK}]}).encode()
    assert len(raw) > 5_000_000
    reason, tier, body = sent(router, raw)
    assert (reason, tier) == ("capability", "large")  # no tier has that context: the largest may say so
    assert body == raw.replace(b'"auto"', b'"qwen3-32b"', 1)[:-1] + b',"max_tokens":200}'


def test_unreadable_bytes_that_nobody_reads_go_on_as_they_came(router):
    """Invalid UTF-8 in a field that we do not look at is the upstream's to judge."""
    raw = BODY[:-1] + b', "user": "\xff\xfe"}'
    assert sent(router, raw) == ("matched", "small", SENT_ON.replace(b',"max', b', "user": "\xff\xfe","max'))


def test_trailers_without_a_body_are_answered_without_one(router):
    """FULL_DUPLEX_STREAMED: a reply of a kind that Envoy did not send is one that it does not wait for."""
    _, replies = exchanged(router, "FULL_DUPLEX_STREAMED", headers(), TRAILERS)
    assert [[reply.kind for reply in some] for some in replies] == [[], ["request_headers", "request_trailers"]]
