"""One exchange: the replies to Envoy's messages, in every processing mode and for every kind of body."""

import asyncio
import gzip
import json
import math
from pathlib import Path
from typing import Any

import msgspec
import pytest

from extproc.api.parts import MAX_ITEMS
from extproc.api.paths import SIDE_PATHS
from extproc.api.splice import MAX_NAME_CHARS
from extproc.api.structure import MAX_COMMAS, MAX_CONTAINERS, TooManyValues
from extproc.config.compile import compile_snapshot
from extproc.config.load import load_config
from extproc.contract.names import CONTRACT, HeaderName, Namespace
from extproc.contract.records import REPEATING_CLUSTER
from extproc.contract.words import Reason
from extproc.encoder.protocols import DeadlineError, EncoderError
from extproc.messages import BodyMode, Event, Kind, Opening, Reply
from extproc.routing.conversations import Conversations
from extproc.routing.exchange import RouterExchange
from extproc.routing.limits import Rates, principal_of
from extproc.routing.routed import Refusal
from extproc.routing.router import Router
from extproc.routing.store import MemoryStore
from extproc.settings import Conditions, Evidence, Probability, Rule, Upgrades

ASK = "Send my last invoice again"
BODY = b'{"model": "auto", "messages": [{"role": "user", "content": "Send my last invoice again"}]}'
SENT_ON = BODY[:-1].replace(b'"auto"', b'"qwen3-8b"') + b',"max_tokens":200}'
CHAT = {":path": "/v1/chat/completions", ":method": "POST"}


class WordEmbedder:
    """Embeds with the word encoder, or raises `failure`."""

    def __init__(self, encoder, failure: Exception | None = None) -> None:
        self.encoder, self.failure = encoder, failure
        self.asked: list[tuple[str, float]] = []

    async def embed(self, text, deadline_s, principal=""):
        self.asked.append((text, deadline_s))
        if self.failure is not None:
            raise self.failure
        return self.encoder.encode([text])[0]


@pytest.fixture(scope="module")
def snapshot(words):
    """The folder configs/good with floors: billing goes to small with a cap, and cooking goes to large."""
    config = load_config(Path(__file__).parents[1] / "configs/good")
    intents = tuple(msgspec.structs.replace(intent, floor=0.1) for intent in config.intents)
    return compile_snapshot(msgspec.structs.replace(config, intents=intents), words)


@pytest.fixture
def router(snapshot, words) -> Router:
    return Router(snapshot, WordEmbedder(words))


def headers(end: bool = False) -> Event:
    return Event("request_headers", end, headers=CHAT)


def body(chunk: bytes, end: bool = True) -> Event:
    return Event("request_body", end, chunk)


TRAILERS = Event("request_trailers", True)


def exchanged(router: Router, mode: BodyMode, *events: Event, response: BodyMode = "NONE", **opening: Any):
    """The exchange after `events`, and the replies to each of them."""
    exchange = RouterExchange(router, Opening(**{"headers": CHAT, **opening}, request_body_mode=mode,
                                              response_body_mode=response))  # fmt: skip

    async def answered() -> list[list[Reply]]:
        return [await exchange.answer(event) for event in events]

    return exchange, asyncio.run(answered())


def routed_reply(router: Router) -> Reply:
    """The reply to BODY in the simplest mode, for comparison with other modes."""
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


# The decision, in the simplest mode: one message


def test_one_body_message_is_answered_with_route_body_and_record(router, snapshot):
    """BUFFERED without a headers message: the one reply holds everything that Envoy needs."""
    exchange, ((reply,),) = exchanged(router, "BUFFERED", body(BODY))
    assert exchange.routed is not None
    match = exchange.routed.decision.match
    assert match is not None and match.chance is not None and reply.metadata is not None
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
        "counted_as": "billing",
        "runner_up": match.runner_up,
        "floor": round(snapshot.policy.cohorts["billing"].floor, 4),
        "similarity": round(match.similarity, 4),
        "margin": round(match.margin, 4),
        "chance": round(match.chance, 4),
        "background": 0.0,
        "calibrated": False,
        "ask": "last_user",
        "ask_chars": len(ASK),
        "ask_cut": False,
        "tokens": len(BODY) // 4,
        "contract": CONTRACT,
        "max_retries": 4,  # for the next rung, and for broken connections: two at the first one, one at the last
        "escalations": 0,
    }
    assert reply.metadata[Namespace.LADDER] == {
        "priority_groups": [
            {"name": "rung0", "clusters": [{"cluster_name": "small", "weight": 1}]},
            {"name": "rung0", "clusters": [{"cluster_name": REPEATING_CLUSTER, "weight": 1}]},
            {"name": "rung0", "clusters": [{"cluster_name": "small", "weight": 1}]},
            {"name": "rung1", "clusters": [{"cluster_name": "large", "weight": 1}]},
        ]
    }


def test_the_ledger_gets_principal_and_conversation_as_hashes(router):
    """The principal is the first header of the policy's list. The conversation is its first user message."""

    def asker(raw: bytes, **headers: str) -> dict[str, str]:
        _, ((reply,),) = exchanged(router, "BUFFERED", body(raw), headers=CHAT | headers)
        assert reply.metadata is not None
        return reply.metadata[Namespace.LEDGER]

    first = asker(BODY, authorization="Bearer a")
    assert first == {"principal": principal_of("Bearer a"), "session": first["session"]}
    later = BODY.replace(
        b"}]}", b'}, {"role": "assistant", "content": "Which?"}, {"role": "user", "content": "May"}]}'
    )
    assert asker(later, authorization="Bearer a") == first
    assert asker(later, authorization="Bearer b")["session"] != first["session"]
    assert asker(BODY)["principal"] == "anonymous"
    assert asker(b"{") == {"principal": "anonymous"}


def test_the_record_of_a_calibrated_match_has_its_probability_and_evidence(snapshot, words):
    """Without evidence there is no probability. The record also names the data of the evidence."""
    curve = Probability(similarity=3, margin=2, offset=-1)
    evidence = Evidence("2026-11-22", "3f2a9c0d1e4b", 240, "m", "c", 0.05, (0.0, 0.04), 0.9, curve)
    billing = msgspec.structs.replace(snapshot.policy.cohorts["billing"], calibrated=True, evidence=evidence)
    policy = msgspec.structs.replace(snapshot.policy, cohorts=snapshot.policy.cohorts | {"billing": billing})
    calibrated = Router(msgspec.structs.replace(snapshot, policy=policy), WordEmbedder(words))
    exchange, _ = exchanged(calibrated, "BUFFERED", body(BODY))
    assert exchange.routed is not None and exchange.routed.decision.match is not None
    match, record = exchange.routed.decision.match, exchange.routed.record
    assert (record.calibrated, record.probability, record.evidence) == (
        True,
        round(1 / (1 + math.exp(1 - 3 * match.similarity - 2 * match.margin)), 4),
        "3f2a9c0d1e4b 2026-11-22",
    )


def test_the_record_has_no_text_of_the_prompt(router):
    """Prompts are private, so logs and traces hold only lengths and numbers."""
    marked = BODY.replace(b"again", b"zebra")
    exchange, _ = exchanged(router, "BUFFERED", body(marked))
    assert exchange.routed is not None
    record = exchange.routed.record
    assert "zebra" not in repr(record) and "invoice" not in repr(record)


def test_only_the_ask_is_embedded_once_within_the_policys_deadline(router):
    """The deadline of the test configuration is 200 ms."""
    exchanged(router, "BUFFERED", body(BODY))
    assert router.embedder.asked == [(ASK, 0.2)]


def test_rules_use_the_headers_of_the_stream(router):
    """They come as attributes or in the headers message."""
    cooking = BODY.replace(ASK.encode(), b"How long do I boil an egg")
    gold = {**CHAT, "x-user-tier": "gold"}
    exchange, _ = exchanged(router, "BUFFERED", body(cooking), headers=gold)
    assert exchange.routed is not None and exchange.routed.decision.rule == "cooks"


def test_a_request_uses_one_snapshot(router, snapshot):
    """A reload during a decision does not mix two revisions."""
    newer = msgspec.structs.replace(snapshot, revision="newer")

    class Reloading(WordEmbedder):
        async def embed(self, text, deadline_s, principal=""):
            router.swap(newer)
            return await super().embed(text, deadline_s)

    router.embedder = Reloading(router.embedder.encoder)
    first, _ = exchanged(router, "BUFFERED", body(BODY))
    second, _ = exchanged(router, "BUFFERED", body(BODY))
    assert first.routed is not None and second.routed is not None
    assert (first.routed.snapshot, second.routed.snapshot) == (snapshot, newer)


# Every processing mode


def test_headers_then_a_buffered_body(router):
    """The headers pass. The body is routed, and its old length is removed. Later messages pass."""
    _, replies = exchanged(router, "BUFFERED", headers(), body(BODY, end=False), TRAILERS)
    assert replies == [
        [Reply("request_headers")],
        [msgspec.structs.replace(routed_reply(router), remove=("content-length",))],
        [Reply("request_trailers")],
    ]


def test_a_body_that_was_cut_off_is_passed_on(router):
    """BUFFERED_PARTIAL may send half of a JSON text, which cannot be rewritten."""
    _, ((passed,), (reply,)) = exchanged(router, "BUFFERED_PARTIAL", headers(), body(BODY[:50], end=False))
    assert passed == Reply("request_headers")
    assert reply == Reply("request_body")


@pytest.mark.parametrize("first", [[headers()], []])
def test_chunks_of_a_streamed_body_pass(router, first):
    """Nothing is decided without the whole body, and a part is never used as the whole."""
    exchange, replies = exchanged(router, "STREAMED", *first, body(BODY, end=False), body(b""), TRAILERS)
    assert replies[len(first) :] == [
        [Reply("request_body")],
        [Reply("request_body")],
        [Reply("request_trailers")],
    ]
    assert replies[: len(first)] == [[Reply("request_headers")]] * len(first)
    assert exchange.routed is None


def test_without_a_body_mode_the_headers_pass(router):
    """There is nothing to read, so nothing is decided."""
    exchange, replies = exchanged(router, "NONE", headers(), TRAILERS)
    assert replies == [[Reply("request_headers")], [Reply("request_trailers")]]
    assert exchange.routed is None


@pytest.mark.parametrize("chunks", [[BODY], [BODY[:10], BODY[10:]], [bytes([b]) for b in BODY], [BODY, b""]])
def test_a_full_duplex_body_is_answered_at_its_end(router, chunks):
    """Headers wait until the route is known. Then they are answered, and after them the body in one reply."""
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
    """Then no chunk is marked as the last one. The trailers are answered after the body."""
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
    """Envoy treats a reply to headers that it did not send as a protocol error."""
    _, replies = exchanged(router, "FULL_DUPLEX_STREAMED", body(BODY[:10], end=False), body(BODY[10:]))
    assert [[reply.kind for reply in answer] for answer in replies] == [[], ["request_body"]]


def test_a_full_duplex_body_that_is_not_routed_is_sent_on_unchanged(router):
    """Every byte is sent on in order, for any size of the chunks."""
    other = BODY.replace(b"auto", b"gpt-5")
    events = (headers(), body(other[:30], end=False), body(other[30:]))
    _, (_, _, (head, tail)) = exchanged(router, "FULL_DUPLEX_STREAMED", *events)
    assert (head.kind, head.headers) == ("request_headers", {HeaderName.CLUSTER: "large"})
    assert tail == Reply("request_body", body=other, streamed=True, end=True)


def test_a_full_duplex_body_that_is_too_long_is_answered_with_413(snapshot, words):
    """Above the limit of the policy, in the shape of the API. No upstream gets a part of it."""
    policy = msgspec.structs.replace(snapshot.policy, max_body_bytes=2**20)
    router = Router(msgspec.structs.replace(snapshot, policy=policy), WordEmbedder(words))
    events = (body(b"x" * 2**20, end=False), body(b"y", end=False))
    exchange, replies = exchanged(router, "FULL_DUPLEX_STREAMED", headers(), *events)
    message = (
        "the body is larger than 1 MiB: send a smaller one, or ask the operator of this gateway to raise "
        "`max_body_mb` in policy.yaml"
    )
    error = {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None}}
    answer = Reply(
        "request_headers", status=413, body=msgspec.json.encode(error),
        headers={"content-type": "application/json", HeaderName.REASON: "bad_request"},
    )  # fmt: skip
    assert (replies, exchange.routed) == ([[], [], [answer]], None)


def packed(end: object) -> dict[str, Any]:
    """The metadata in which Envoy notes how a gzip body ended."""
    return {"metadata": {Namespace.PACKED: {"end": end}}}


@pytest.mark.parametrize("mode", ["BUFFERED", "FULL_DUPLEX_STREAMED"])
def test_a_gzip_body_that_was_decoded_whole_is_routed_as_if_it_were_plain(router, mode):
    exchange, _ = exchanged(router, mode, body(BODY), **packed(gzip.compress(BODY)[-8:].hex()))
    assert exchange.routed.mutation.body == SENT_ON


def test_an_empty_body_is_not_a_damaged_one(router):
    """A client may name an encoding and send nothing. Paths that the policy opens need no body."""
    plain, _ = exchanged(router, "BUFFERED", body(b""))
    for end in ("", gzip.compress(b"")[-8:].hex()):
        exchange, _ = exchanged(router, "BUFFERED", body(b""), **packed(end))
        assert exchange.routed.refusal == plain.routed.refusal


@pytest.mark.parametrize("mode", ["BUFFERED", "FULL_DUPLEX_STREAMED"])
@pytest.mark.parametrize(
    "end",
    [gzip.compress(b" ")[-8:].hex(), b"trailing"[-8:].hex(), gzip.compress(BODY)[-7:].hex(), "", None, 7.0, "xyz"],
    ids=["another member", "other bytes", "cut", "nothing", "null", "a number", "no hex"],
)
def test_a_gzip_body_that_was_not_decoded_whole_is_answered_with_400(router, mode, end):
    """Envoy decodes the first member only. What was meant is not known, so no upstream gets a part of it."""
    exchange, replies = exchanged(router, mode, body(BODY), **packed(end))
    [reply] = [reply for each in replies for reply in each]
    assert (reply.status, reply.headers[HeaderName.REASON]) == (400, "bad_request")
    message = msgspec.json.decode(reply.body)["error"]["message"]
    assert message.startswith(
        "the gzip body is damaged, or has bytes after its first member: send all of it as one"
    )
    assert exchange.routed.decision.reason == "bad_request"


@pytest.mark.parametrize("mode", ["NONE", "STREAMED", "BUFFERED", "BUFFERED_PARTIAL", "FULL_DUPLEX_STREAMED"])
def test_a_request_without_a_body_passes_at_its_headers(router, mode):
    """A GET request has no body message to wait for."""
    exchange, replies = exchanged(router, mode, headers(end=True))
    assert replies == [[Reply("request_headers")]]
    assert exchange.routed is None


# The response


@pytest.mark.parametrize("mode", ["STREAMED", "BUFFERED"])
def test_every_response_message_gets_a_reply_of_its_kind(router, mode):
    """The router changes no answers."""
    kinds: list[Kind] = ["response_headers", "response_body", "response_body", "response_trailers"]
    events = [Event(kind, body=b"{}" if kind == "response_body" else b"") for kind in kinds]
    _, replies = exchanged(router, "BUFFERED", body(BODY), *events, response=mode)
    assert replies[1:] == [[Reply(kind)] for kind in kinds]


def test_a_full_duplex_response_is_echoed(router):
    """In this mode, Envoy drops a chunk that is not sent back."""
    events = [Event("response_headers"), Event("response_body", False, b"a"), Event("response_body", True, b"")]
    _, replies = exchanged(router, "BUFFERED", body(BODY), *events, response="FULL_DUPLEX_STREAMED")
    assert replies[1:] == [
        [Reply("response_headers")],
        [Reply("response_body", body=b"a", streamed=True, end=False)],
        [Reply("response_body", body=b"", streamed=True, end=True)],
    ]


@pytest.mark.parametrize("mode", ["NONE", "BUFFERED", "FULL_DUPLEX_STREAMED"])
def test_a_stream_may_start_with_the_response(router, mode):
    """Envoy answers some requests before it asks us, so there is nothing to route."""
    exchange, replies = exchanged(router, mode, Event("response_headers", True), headers={})
    assert (replies, exchange.routed) == ([[Reply("response_headers")]], None)


# Upgrades


def test_a_principal_goes_above_the_default_tier_as_often_as_the_policy_says(snapshot, words):
    """After its burst, the default tier serves it with the reason. Other principals are not affected."""
    cohorts = dict(snapshot.policy.cohorts)
    cohorts["billing"] = msgspec.structs.replace(cohorts["billing"], tier="large")
    policy = msgspec.structs.replace(
        snapshot.policy, cohorts=cohorts, default_tier="small", upgrades=Upgrades(per_minute=0, burst=2)
    )
    router = Router(msgspec.structs.replace(snapshot, policy=policy), WordEmbedder(words), Rates())

    def routed(key: str, times: int) -> list[tuple[str, str]]:
        return [sent(router, BODY, headers=CHAT | {"authorization": key})[:2] for _ in range(times)]

    expensive, cheap = ("matched", "large"), ("upgrade_rate", "small")
    assert routed("Bearer greedy", 4) == [expensive, expensive, cheap, cheap]
    assert routed("Bearer modest", 1) == [expensive]
    assert sent(router, BODY.replace(b'"auto"', b'"qwen3-32b"'))[:2] == ("pinned", "large")


# Bodies that cannot be routed


@pytest.mark.parametrize(
    "raw",
    [
        b"hello",
        b"[]",
        b"null",
        b'{"model": "auto", "messages": [{"role": "us',
        gzip.compress(BODY),
        BODY.decode().encode("utf-16"),
    ],
    ids=lambda raw: repr(raw[-40:]),
)
def test_an_unreadable_body_is_answered_with_400(router, raw):
    """It is not JSON, cut off, compressed, or too deep, so nobody knows which model it names."""
    for path in ("/v1/chat/completions", "/v1/messages/count_tokens"):
        routed = asyncio.run(router.route(raw, {":path": path}))
        assert routed.decision.reason == "bad_request"
        assert routed.refusal is not None and routed.refusal.message.startswith("the body is not a JSON object")


def test_an_empty_body_names_no_model_and_is_sent_on(router):
    """The upstream answers it."""
    for raw in (b"", b" \n"):
        assert sent(router, raw) == ("unreadable", "large", None)


def test_a_body_that_cannot_be_read_keeps_the_floor_that_its_headers_set(router):
    """Only a rule about headers alone can be known to apply. Nothing lowers the floor."""
    rules = (
        Rule("gold", Conditions(headers={"x-user-tier": "gold"}), tier_floor="large"),
        Rule("cheap", Conditions(headers={"x-user-tier": "*"}), tier="small"),
        Rule("gold-tools", Conditions(headers={"x-user-tier": "*"}, tools=True), tier_floor="large"),
    )
    policy = msgspec.structs.replace(router.snapshot.policy, rules=rules, default_tier="small")
    floored = Router(msgspec.structs.replace(router.snapshot, policy=policy), router.embedder)
    tiers = []
    many_messages = b'{"model": "auto", "messages": [' + b"{}," * MAX_ITEMS + b"{}]}"
    for user in ("gold", "silver"):
        headers = {":path": "/v1/chat/completions", "x-user-tier": user}
        tiers.append(asyncio.run(floored.route(many_messages, headers)).decision.tier.name)
    assert tiers == ["large", "small"]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b'{"model": "auto", "x": ' + b"[" * 50_000 + b"]" * 50_000 + b"}", "the body is nested too deeply"),
        (b'{"model": "auto", "x": ' + b'{"a":' * 50_000, "the body is nested too deeply"),
        (b'{"model": "auto", "x": [' + b"[]," * MAX_CONTAINERS + b"0]}", str(TooManyValues())),
        (b'{"model": "auto", "prompt": [' + b"1," * (MAX_COMMAS + 1) + b"0]}", str(TooManyValues())),
        (BODY[:-1] + b', "' + rb"\n" * (MAX_NAME_CHARS + 1) + b'": 1}', "name of more than 1000 characters"),
    ],
    ids=lambda value: repr(value[-20:]),
)
def test_a_body_with_more_values_than_any_request_is_answered_with_400(router, raw, message):
    """It is not decoded, so its model cannot be replaced. The name `auto` reaches no upstream."""
    routed = asyncio.run(router.route(raw, {":path": "/v1/completions"}))
    assert routed.decision.reason == "bad_request"
    assert routed.refusal is not None and message in routed.refusal.message
    assert routed.mutation.body is None


@pytest.mark.parametrize("more", [b', "model": "auto"}', b', "messages": []}', b', "\\u006dodel": "auto"}'])
@pytest.mark.parametrize("model", [b'"auto"', b'"qwen3-8b"', b'"gpt-5"'])
def test_a_member_that_appears_twice_is_answered_with_400(router, model, more):
    """Two readers of this body may read different requests, also if the model may not be replaced."""
    raw = BODY.replace(b'"auto"', model)[:-1] + more
    for path in ("/v1/chat/completions", "/v1/messages"):
        routed = asyncio.run(router.route(raw, {":path": path}))
        assert routed.decision.reason == "bad_request"
        assert routed.refusal == Refusal(400, "a member of the body appears more than once")


@pytest.mark.parametrize(
    "body",
    [
        BODY[:-1] + b', "\xff": 1}',
        BODY[:-1] + b', "\\ud800": 1}',
        BODY[:-1] + b', "temperature": NaN}',
        BODY[:-1] + b', "temperature": "0.2"}',
        b"\xef\xbb\xbf" + BODY,
    ],
)
def test_odd_bytes_and_members_are_routed(router, body):
    """No upstream gets the name that only the router knows, and all other bytes stay."""
    reason, _, sent_body = sent(router, body)
    assert reason == "matched"
    assert sent_body is not None and b'"auto"' not in sent_body
    assert (b"\xff" in sent_body, b"NaN" in sent_body) == (b"\xff" in body, b"NaN" in body)


@pytest.mark.parametrize("path", ["/v1/embeddings", "/", "", "/v1/chat/completionsx"])
def test_an_unknown_path_passes_through(router, path):
    """The default tier serves, and nothing is replaced. It may also be that Envoy sends no attributes."""
    batches = (b'{"requests": [{"params": {"model": "gpt-5", "metadata": {"model": "auto"}}}]}', b'{"requests": 5}')
    for raw in (
        BODY.replace(b"auto", b"gpt-5"),
        BODY.replace(b"auto", b"qwen3-32b"),
        b"",
        b"model=tts-1",
        b"{}",
        *batches,
    ):
        assert sent(router, raw, headers={":path": path}) == ("passthrough", "large", None)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (BODY, "no upstream of this path knows the model `auto`"),
        (b"input=x&model=a%75to&y", "no upstream of this path knows the model `auto`"),
        (
            b'{"requests": [{"custom_id": "1", "params": {"model": "gpt-5"}}, {"params": {"model": "auto"}}]}',
            "no upstream of this path knows the model `auto`",
        ),
        (b'{"model": "gpt-5", "requests": [{"body": {"model": "auto"}}]}', "no upstream of this path knows"),
        (BODY[:-9], "the body is not a JSON object"),
        (BODY.decode().encode("utf-16"), "the body is not a JSON object"),
    ],
)
def test_a_name_that_only_the_policy_knows_is_refused_on_an_unknown_path(router, raw, message):
    """It is answered with 400, also if the body may name it and cannot be read."""
    routed = asyncio.run(router.route(raw, {":path": "/v1/embeddings"}))
    assert routed.decision.reason == "bad_request"
    assert routed.refusal is not None and routed.refusal.message.startswith(message)


@pytest.mark.parametrize(
    "path",
    [
        "/v1/chat/completions/", "//v1//chat/completions", "/chat/completions", "/openai/v1/chat/completions?a=b",
        "/v1beta/openai/chat/completions", "/v1beta/openai//v1/chat/completions/",
    ],
)  # fmt: skip
def test_the_path_of_an_api_is_written_in_several_ways(router, path):
    """Clients differ in the base URL, and in slashes."""
    assert sent(router, BODY, headers={":path": path})[:2] == ("matched", "small")


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (b"auto", ("passthrough", "large", b"qwen3-32b")),
        (b"qwen3-8b", ("pinned", "small", None)),
        (b"gpt-5", ("passthrough", "large", None)),
    ],
)
@pytest.mark.parametrize("path", SIDE_PATHS)
def test_a_path_without_an_answer_gets_the_name_of_the_model(router, path, model, expected):
    """It goes to the tier that the model names, or to the default tier."""
    raw = b'{"model": "%s", "messages": []}'
    *where, name = expected
    changed = None if name is None else raw % name
    assert sent(router, raw % model, headers={":path": f"{path}?beta=true"}) == (*where, changed)


@pytest.mark.parametrize("path", [*SIDE_PATHS, "/v1/embeddings"])
@pytest.mark.parametrize("model", [b'"auto","model":"gpt-5"', b'"gpt-5","model":"auto"', b'"gpt-5","x":1,"x":2'])
def test_a_member_that_appears_twice_is_answered_with_400_on_every_path(router, path, model):
    routed = asyncio.run(router.route(b'{"model": %s, "messages": []}' % model, {":path": path}))
    assert routed.refusal == Refusal(400, "a member of the body appears more than once")


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b'{"messages": []}', ("passthrough", "large", None)),
        (BODY.replace(b'"auto"', b"null"), ("passthrough", "large", None)),
        (BODY.replace(b'"auto"', b'""'), ("passthrough", "large", None)),
        (BODY.replace(b'"auto"', b'"gpt-5"'), ("passthrough", "large", None)),
        (BODY.replace(b'"auto"', b'"qwen3-32b"'), ("pinned", "large", None)),
    ],
)
def test_a_model_that_may_not_be_replaced_keeps_its_bytes(router, raw, expected):
    """It is absent or unknown, or it is the model of a tier, which then serves the request."""
    assert sent(router, raw) == expected
    assert router.embedder.asked == []


def test_a_pinned_request_is_matched_if_a_cohort_has_a_higher_floor(router):
    """Only then does the match cost time, and only the floor could move the request."""
    assert sent(router, BODY.replace(b'"auto"', b'"qwen3-8b"')) == ("pinned", "small", None)
    assert [text for text, _ in router.embedder.asked] == ["Send my last invoice again"]


def test_a_request_without_text_goes_to_the_default_tier_with_its_model(router):
    """It may be routed, but there is no text to match."""
    raw = b'{"model": "auto", "messages": []}'
    assert sent(router, raw) == ("no_text", "large", raw.replace(b"auto", b"qwen3-32b"))
    assert router.embedder.asked == []


@pytest.mark.parametrize(
    ("failure", "reason"),
    [(DeadlineError("no vector within 200 ms"), Reason.DEADLINE), (EncoderError("broken"), Reason.ENCODER)],
)
def test_without_a_vector_the_default_tier_serves(snapshot, words, failure, reason):
    """The body gets the model of that tier, and the record has the failure as its reason."""
    router = Router(snapshot, WordEmbedder(words, failure))
    assert sent(router, BODY) == (reason.value, "large", BODY.replace(b"auto", b"qwen3-32b"))


def test_a_text_that_the_encoder_cannot_read_is_out_of_scope(snapshot, words):
    """Nothing is embedded, and the default tier serves. The vector of an English encoder would be arbitrary."""
    raw = BODY.replace(b"Send my last invoice again", "请再次发送我的发票".encode())
    asked = WordEmbedder(words)
    english = Router(msgspec.structs.replace(snapshot, english_only=True), asked)
    assert sent(english, raw) == ("out_of_scope", "large", raw.replace(b"auto", b"qwen3-32b"))
    assert asked.asked == []
    assert sent(english, BODY) == ("matched", "small", SENT_ON)
    asked = WordEmbedder(words)
    sent(Router(msgspec.structs.replace(snapshot, english_only=False), asked), raw)
    assert [text for text, _ in asked.asked] == ["请再次发送我的发票"]


@pytest.mark.parametrize("text", ["Hello there, thank you!", "yes", "नमस्ते", "?"])
@pytest.mark.parametrize("english_only", [False, True])
def test_a_request_that_names_no_task_is_out_of_scope_and_costs_no_encoding(snapshot, words, text, english_only):
    """It is like the courtesies of every intent, so no similarity could say where it belongs."""
    raw = BODY.replace(b"Send my last invoice again", text.encode())
    embedder = WordEmbedder(words)
    router = Router(msgspec.structs.replace(snapshot, english_only=english_only), embedder)
    assert sent(router, raw) == ("out_of_scope", "large", raw.replace(b"auto", b"qwen3-32b"))
    assert embedder.asked == []


def test_a_greeting_before_a_task_is_matched(router):
    """Only the courtesies are left out of the ask."""
    raw = BODY.replace(b"Send", b"Hello! Send")
    assert sent(router, raw)[:2] == ("matched", "small")


def test_a_body_of_five_megabytes_is_routed_and_kept(router):
    """Only its ask is embedded, and every other byte is sent on."""
    filler = '", \\"pasted\\" ü ' * 50_000
    turns = [{"role": "user", "content": filler * 6}, {"role": "assistant", "content": "Ok"}]
    raw = json.dumps({"model": "auto", "messages": [*turns, {"role": "user", "content": ASK}]}).encode()
    assert len(raw) > 5_000_000
    reason, tier, body = sent(router, raw)
    # No tier has this context, so the largest one reports the error.
    assert (reason, tier) == ("capability", "large")
    assert body == raw.replace(b'"auto"', b'"qwen3-32b"', 1)[:-1] + b',"max_tokens":200}'


def test_invalid_bytes_in_a_field_that_we_do_not_read_are_sent_on(router):
    """The upstream decides what to do with them."""
    raw = BODY[:-1] + b', "user": "\xff\xfe"}'
    assert sent(router, raw) == ("matched", "small", SENT_ON.replace(b',"max', b', "user": "\xff\xfe","max'))


def test_trailers_without_a_body_get_no_reply_for_a_body(router):
    """Envoy accepts no reply to a message that it did not send."""
    _, replies = exchanged(router, "FULL_DUPLEX_STREAMED", headers(), TRAILERS)
    assert [[reply.kind for reply in answer] for answer in replies] == [[], ["request_headers", "request_trailers"]]


# Conversations


def test_a_background_job_is_not_asked_for_again(router):
    """A failed attempt may have started the job, so Envoy makes no other one, at no tier."""
    job = b'{"model": "auto", "background": true, "input": "Send my last invoice again"}'
    _, ((reply,),) = exchanged(router, "BUFFERED", body(job), headers=CHAT | {":path": "/v1/responses"})
    assert reply.metadata is not None
    assert reply.metadata[Namespace.DECISION]["max_retries"] == 0
    assert len(reply.metadata[Namespace.LADDER]["priority_groups"]) == 1


@pytest.mark.parametrize(
    ("path", "known"),
    [("/v1/responses/resp_1", True), ("/v1/responses/resp_1/cancel", True), ("/v1/responses/resp_2", False)],
)
def test_a_request_about_a_response_goes_to_its_maker(snapshot, words, path, known):
    """It has no body. The reply to its headers has the route."""
    conversations = Conversations(MemoryStore())
    router = Router(snapshot, WordEmbedder(words), conversations=conversations)
    asyncio.run(router.answered(f"{principal_of('k')}\nc\nsmall\nresp_1".encode()))
    sent_headers = CHAT | {":path": path, "authorization": "k"}
    _, ((reply,),) = exchanged(router, "NONE", headers(end=True), headers=sent_headers)
    assert (reply.kind, reply.headers) == (
        "request_headers", {HeaderName.CLUSTER: "small" if known else "large"}
    )  # fmt: skip
    assert reply.metadata is not None
    record = reply.metadata[Namespace.DECISION]
    assert (record["reason"], record["conversation"]) == ("bound", "kept_sealed" if known else "lost")


def test_a_request_about_a_response_that_no_tier_may_get_is_refused(snapshot, words):
    tiers = tuple(msgspec.structs.replace(tier, state="out") for tier in snapshot.policy.tiers[:1])
    in_eu = Rule("eu", Conditions(headers={"x-region": "eu"}), only=("small",))
    policy = msgspec.structs.replace(snapshot.policy, tiers=(*tiers, *snapshot.policy.tiers[1:]), rules=(in_eu,))
    router = Router(msgspec.structs.replace(snapshot, policy=policy), WordEmbedder(words))
    sent_headers = CHAT | {":path": "/v1/responses/resp_1", "x-region": "eu"}
    _, ((reply,),) = exchanged(router, "NONE", headers(end=True), headers=sent_headers)
    assert reply.headers is not None and reply.body is not None
    assert (reply.kind, reply.status, reply.headers[HeaderName.REASON]) == ("request_headers", 503, "residency")
    assert json.loads(reply.body)["error"]["code"] == "residency"
