"""Cases from real use, where they are beside the checkout: through the real Envoy, each gets what it wants."""

import gzip
import http.client
import json
import os
import socket
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import msgspec
import pytest
import yaml

from extproc.config.load import load_config
from extproc.demo.sample_upstream import Received
from extproc.envoy.bootstrap import render_envoy
from tests.cases.world import (
    ATTEMPT_S,
    BASE,
    CASES,
    MAX_BODY_MB,
    REQUEST_S,
    WANT,
    Body,
    World,
    chat,
    events,
    hang_up,
    late,
    running_world,
    whole,
    words,
    write,
)
from tests.e2e.faulty_upstream import frames_of
from tests.e2e.test_doors import message_of
from tests.e2e.traffic import CHAT, MESSAGES, RESPONSES, Answer, body_of, eventually
from tests.providers import refusals

pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason="the cases are not beside this checkout")
REQUESTS = {path.name[:2]: path for path in sorted((CASES / "requests").glob("*.json"))}
AGENTS = {path.stem: path for path in sorted((CASES / "agents").glob("*.json"))}
OWN_KEYS = {"small": {"authorization": "Bearer sk-small"}, "large": {"authorization": "Bearer sk-large"},
            "frontier": {"x-api-key": "sk-frontier"}}  # fmt: skip
MODEL = {"small": "qwen3-8b", "large": "qwen3-32b", "frontier": "frontier-1", "claude": "claude-opus-4-8"}
LEGAL = "Does the GDPR allow us to keep job applicants' CVs for three years without consent?"
Case = dict[str, Any]
Check = Callable[[World, Case], None]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with running_world(tmp_path_factory.mktemp("cases")) as world:
        yield world


def send_case(world: World, case: Case, body: Any = None, **headers: str) -> Answer:
    """Send the request of the case with its own principal. `body` takes the place of its body."""
    own = case["raw_body"].encode() if "raw_body" in case else case.get("body")
    sent = own if body is None else body
    principal = {"authorization": f"Bearer {case['number']}"}
    return world.post(case["path"], sent, principal | case.get("headers", {}) | headers, case["method"])


def keys_of(received: Received) -> dict[str, str]:
    """The headers that a client or the router may have put a key into."""
    names = ("authorization", "x-api-key", "api-key", "x-goog-api-key", "cookie", "openai-organization")
    return {name: received.headers[name] for name in names if name in received.headers}


def is_served(world: World, answer: Answer, tier: str, reason: str = "matched") -> None:
    """One attempt, at this tier, with its model and its key alone."""
    assert (answer.status, answer.said.get("x-router-tier"), answer.said.get("x-router-reason"), world.tiers) == (
        200, tier, reason, [tier],
    ), answer  # fmt: skip
    assert world.arrived["model"] == MODEL[tier]
    assert keys_of(world.received[0]) == OWN_KEYS[tier]


def is_refused(world: World, answer: Answer, status: int, path: str = CHAT) -> str:
    """No upstream got it. Returns the message, which has the shape of the API."""
    assert (answer.status, world.tiers) == (status, [])
    return message_of(answer, path)


# --- requests: checks of one kind ---------------------------------------------------------------------------


def serves(tier: str, reason: str, world: World, case: Case) -> None:
    """The tier gets the request with its own model and key."""
    is_served(world, send_case(world, case), tier, reason)


def with_members(expected: Body, absent: tuple[str, ...], tier: str, world: World, case: Case) -> None:
    """The tier gets these members, and none of the others."""
    is_served(world, send_case(world, case), tier)
    assert {name: world.arrived.get(name) for name in expected} == expected
    assert not world.arrived.keys() & set(absent)


def each_part(tier: str, reason: str, parts: tuple[Body, ...], world: World, case: Case) -> None:
    """The case, and the same request with each of these members, which have their own path beside them."""
    serves(tier, reason, world, case)
    for i, part in enumerate(parts):
        path = str(part.get("path", case["path"]))
        body = (case["body"] if path == case["path"] else {}) | {k: v for k, v in part.items() if k != "path"}
        answer = world.post(path, {"model": "auto"} | body, {"authorization": f"Bearer {case['number']} {i}"})
        is_served(world, answer, tier, reason)


# --- requests: single checks --------------------------------------------------------------------------------


def base_path(world: World, case: Case) -> None:
    is_served(world, world.post(f"{CHAT}?x=1", body_of(CHAT, LEGAL)), "frontier")
    assert world.providers.paths == [f"{BASE}{CHAT}?x=1"]
    is_served(world, world.post(MESSAGES, body_of(MESSAGES, LEGAL)), "frontier")
    assert world.providers.paths == [f"{BASE}{MESSAGES}"]


def key_header(world: World, case: Case) -> None:
    answer = world.post(case["path"], body_of(CHAT, LEGAL), {"authorization": "Bearer of-the-client"})
    is_served(world, answer, "frontier")


def claude_thinks_adaptively(world: World, case: Case) -> None:
    """Nothing is added by itself, because a client did not ask. A budget becomes what the model knows."""
    wants = {WANT: "claude"}
    answer = send_case(world, case, **wants)
    assert (answer.status, world.tiers, "thinking" in world.arrived) == (200, ["claude"], False)
    assert refusals(MODEL["claude"], "messages", world.arrived) == []
    asked = {"thinking": {"type": "enabled", "budget_tokens": 4096}}
    answer = send_case(world, case, case["body"] | asked, **wants)
    assert (answer.status, world.arrived["thinking"]) == (200, {"type": "adaptive"})
    assert world.arrived["output_config"].keys() == {"effort"}
    assert refusals(MODEL["claude"], "messages", world.arrived) == []


def stays_with_its_maker(opening: Body, world: World, case: Case) -> None:
    """The frontier tier made the state for one principal. For another one it is unknown who made it."""
    maker, stranger = f"Bearer maker of {case['number']}", f"Bearer stranger to {case['number']}"
    world.script(frontier=whole({"id": "resp_frontier_1", "object": "response", "output": []}))
    answer = world.post(case["path"], opening, {"authorization": maker, WANT: "frontier"})
    assert (answer.status, world.tiers) == (200, ["frontier"])
    is_served(world, send_case(world, case, authorization=maker), "frontier", "bound")
    is_served(world, send_case(world, case, authorization=stranger), "large", "bound")


def opens(world: World, case: Case) -> None:
    """The conversation began with the first turn of the case."""
    member = "messages" if case["path"] == MESSAGES else "input"
    stays_with_its_maker(case["body"] | {member: case["body"][member][:1]}, world, case)


def follows(world: World, case: Case) -> None:
    stays_with_its_maker(body_of(RESPONSES, LEGAL), world, case)


def one_job(world: World, case: Case) -> None:
    answer = send_case(world, case)
    is_served(world, answer, "small")
    job = json.loads(answer.body)
    assert job["status"] == "queued"
    poll = case | {"path": f"{RESPONSES}/{job['id']}", "method": "GET", "body": None}
    answer = send_case(world, poll)
    assert (answer.status, world.tiers) == (200, ["small"])


def is_renamed(tier: str, world: World, case: Case) -> None:
    """A body that is not quite JSON is routed, and the upstream does not see the name that only we know."""
    world.script(**{tier: chat()})
    is_served(world, send_case(world, case), tier)


def member_twice(world: World, case: Case) -> None:
    message = is_refused(world, send_case(world, case), 400)
    assert message == "a member of the body appears more than once"


def unpacked(world: World, case: Case) -> None:
    """Deflate is answered with 415."""
    plain = msgspec.json.encode(case["body"])
    for encoding, packed in (("zstd", as_zstd(plain)), ("gzip", gzip.compress(plain))):
        is_served(world, send_case(world, case, packed, **{"content-encoding": encoding}), "small")
        assert "content-encoding" not in world.received[0].headers
    answer = send_case(world, case, b"\x78\x9c\x00", **{"content-encoding": "deflate"})
    assert "gzip" in is_refused(world, answer, 415)


def as_zstd(plain: bytes) -> bytes:
    """A frame with one block that is not compressed (RFC 8878, section 3.1.1)."""
    assert len(plain) < 256
    return b"\x28\xb5\x2f\xfd\x20" + bytes([len(plain)]) + (len(plain) << 3 | 1).to_bytes(3, "little") + plain


def nine_mebibytes(world: World, case: Case) -> None:
    """It is below the limit of the policy. A body above it gets an error that names the key."""

    def body(mebibytes: int) -> Body:
        image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{'A' * (mebibytes << 20)}"}}
        return {
            "model": "auto",
            "messages": [{"role": "user", "content": [image, {"type": "text", "text": LEGAL}]}],
        }

    is_served(world, send_case(world, case, body(9)), "frontier")
    assert len(world.received[0].body) > 9 << 20
    assert "`max_body_mb`" in is_refused(world, send_case(world, case, body(MAX_BODY_MB + 1)), 413)


def timeouts_hold(world: World, case: Case) -> None:
    """No shorter limit than the policy's ends a request, and the policy's does."""
    for script in (late(0.6 * ATTEMPT_S), words(1, 0.6 * ATTEMPT_S)):
        world.script(large=script)
        is_served(world, send_case(world, case), "large")
    world.script(large=late(9))
    assert (send_case(world, case).said["x-router-tier"], world.tiers) == ("frontier", ["large", "frontier"])
    folder = world.stack.folder / "timeouts"
    folder.mkdir()
    (folder / "extraction.yaml").write_text((world.stack.intents / "extraction.yaml").read_text())
    (folder / "keys").symlink_to(world.keys)
    write(folder, world.policies["requests"] | {"timeouts": case["config"]["timeouts"], "passthrough": []})
    rendered = render_envoy(load_config(folder), "127.0.0.1:1", ["127.0.0.1:2"], "127.0.0.1:3", None)
    listener = yaml.load(rendered, yaml.CSafeLoader)["static_resources"]["listeners"][0]
    manager = listener["filter_chains"][0]["filters"][0]
    assert manager["typed_config"]["stream_idle_timeout"] == "5400s"
    assert "per_try_idle_timeout: 1800s" in rendered and " 300s" not in rendered


def stream_flows_on(world: World, case: Case) -> None:
    """It takes longer than `request_s`."""
    count = REQUEST_S * 10 + 5
    world.script(large=words(count, 0.1))
    answer = send_case(world, case)
    is_served(world, answer, "large")
    assert answer.body.count(b"data: ") == count + 1 and b"error" not in answer.body


def stale_connection(world: World, case: Case) -> None:
    """Once more at the same tier. `idle_s` of the tier, one second, ends idle connections."""
    for tier, body in (("frontier", case["body"]), ("small", body_of(CHAT, EXTRACT))):
        world.providers.scripts = {tier: [None, hang_up]}
        is_served(world, send_case(world, case, body), tier)
        answer = send_case(world, case, body)
        assert (answer.status, answer.said["x-router-tier"], world.tiers) == (200, tier, [tier, tier])
    active = "cluster.frontier.upstream_cx_active"
    eventually(lambda: world.stack.stats(active)[active] == 0, "Envoy closes it", within_s=9)


def closed_path(world: World, case: Case) -> None:
    assert "`passthrough` in policy.yaml" in is_refused(world, send_case(world, case), 404)


def query_is_not_logged(world: World, case: Case) -> None:
    """The last test of this module reads the log, because Envoy writes it every ten seconds."""
    is_served(world, send_case(world, case), "large")
    assert world.providers.paths == [CHAT]
    world.secret_sent = world.sent


def host_of_the_upstream(world: World, case: Case) -> None:
    world.script(frontier=whole({"data": []}))
    answer = send_case(world, case)
    assert (answer.status, world.tiers, world.arrived) == (200, ["frontier"], case["body"])
    assert world.received[0].headers["host"] == "127.0.0.1"


def side_paths(world: World, case: Case) -> None:
    """Counts get the name of the model. Other ways to write a path are read, and the rest says what to write."""
    world.script(large=whole({"input_tokens": 9}))
    answer = send_case(world, case)
    assert (answer.status, world.tiers, world.providers.paths) == (200, ["large"], [case["path"]])
    assert world.arrived == case["body"] | {"model": MODEL["large"]}
    for path in (f"{CHAT}/", f"/{CHAT}", "/chat/completions", f"/openai{CHAT}"):
        is_served(world, world.post(path, body_of(CHAT, EXTRACT)), "small")
        assert world.providers.paths == [CHAT]
    deployment = "/openai/deployments/D/chat/completions?api-version=2024-10-21"
    assert "base URL" in is_refused(world, world.post(deployment, body_of(CHAT, EXTRACT)), 404)
    models = json.loads(world.post("/v1/models", None, method="GET").body)["data"]
    assert "auto" in {model["id"] for model in models}


def stream_of_wrong_tools(world: World, case: Case) -> None:
    """The answer calls a tool that was not offered, so the next tier is asked."""
    fields = {
        f"field_{i}": {"type": "string", "description": "What the field of the tool means. " * 2} for i in range(10)
    }
    tools = [tool(f"tool_{i}", fields) for i in range(8)]
    assert len(msgspec.json.encode(tools)) > 8192
    world.script(small=events(*frames_of(CHAT, MODEL["small"], "", {"other": "{}"})))
    answer = send_case(world, case, case["body"] | {"tools": tools})
    assert (answer.status, world.tiers, answer.headers["x-router-escalations"]) == (200, ["small", "large"], "1")


def tool(name: str, properties: Body) -> Body:
    function = {"name": name, "description": name, "parameters": {"type": "object", "properties": properties}}
    return {"type": "function", "function": function}


def custom_tool(world: World, case: Case) -> None:
    call = {"id": "c", "type": "custom", "custom": {"name": "edit", "input": "x"}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    world.script(small=chat(message=message, finish_reason="tool_calls"))
    is_served(world, send_case(world, case), "small")
    calls_with_one_index(world, case)


def calls_with_one_index(world: World, case: Case) -> None:
    """Two calls with the index 0, of which one has no arguments. The tool takes none."""

    def frame(finish: str | None, **delta: Any) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return b"data: %b\n\n" % msgspec.json.encode({"choices": [choice]})

    calls = [
        [{"index": 0, "id": name, "type": "function", "function": {"name": "now", "arguments": arguments}}]
        for name, arguments in (("a", "{}"), ("b", ""))
    ]
    frames = [*(frame(None, tool_calls=call) for call in calls), frame("tool_calls"), b"data: [DONE]\n\n"]
    world.script(small=events(*frames))
    is_served(world, send_case(world, case, case["body"] | {"stream": True, "tools": [tool("now", {})]}), "small")


def fault_of_the_tier(world: World, case: Case) -> None:
    for status in (401, 402, 403, 404, 408):
        world.script(small=whole({"error": {"message": "no"}}, status))
        answer = send_case(world, case)
        assert (answer.status, world.tiers) == (200, ["small", "large"]), status


def no_done(world: World, case: Case) -> None:
    """A server also sends half of an emoji, when a token ends within it."""
    frames = frames_of(CHAT, MODEL["small"], "Nordwind, 420 EUR")
    world.script(small=events(*frames[:-1]))
    is_served(world, send_case(world, case), "small")
    world.script(small=events(*(f.replace(b"EUR", rb"\ud83d") for f in frames)))
    is_served(world, send_case(world, case), "small")


def finish_words(world: World, case: Case) -> None:
    """`MAX_TOKENS` is an answer that was cut, in any case."""
    for word in ("STOP", "eos", "pause_turn", "queued", "FINISH_REASON_STOP"):
        world.script(small=chat(finish_reason=word))
        is_served(world, send_case(world, case), "small")
    for word in ("max_tokens", "MAX_TOKENS"):
        world.script(small=chat(finish_reason=word))
        assert (send_case(world, case).status, world.tiers) == (200, ["small", "large"])


def ipv6_tier(world: World, case: Case) -> None:
    is_served(world, world.post(case["path"], body_of(CHAT, PROVE)), "large")
    assert world.received[0].headers["host"] in ("[::1]", "127.0.0.1")


def private_authority(world: World, case: Case) -> None:
    """Envoy trusts the certificate of the frontier tier, which this authority signed."""
    is_served(world, world.post(case["path"], body_of(CHAT, LEGAL)), "frontier")
    assert world.stack.stats("cluster.frontier.ssl.handshake")["cluster.frontier.ssl.handshake"] > 0


def replaced_key(world: World, case: Case) -> None:
    def key() -> str:
        world.post(case["path"], body_of(CHAT, LEGAL))
        return world.received[0].headers["x-api-key"]

    for value in ("sk-replaced", "sk-frontier"):
        (world.keys / ".new").write_text(f"{value}\n")
        os.rename(world.keys / ".new", world.keys / "frontier")
        eventually(lambda value=value: key() == value, "the key is followed")  # type: ignore[misc]


def large_judged_answer(world: World, case: Case) -> None:
    text = "x" * (9 << 20)
    world.script(small=chat(message={"role": "assistant", "content": text}))
    answer = send_case(world, case)
    is_served(world, answer, "small")
    assert len(answer.body) > len(text)


def websocket(world: World, case: Case) -> None:
    assert "use HTTP" in is_refused(world, send_case(world, case), 426)


def http_1_0(world: World, case: Case) -> None:
    body = msgspec.json.encode(case["body"])
    head = f"POST {case['path']} HTTP/1.0\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    world.received.clear()
    with socket.create_connection(("127.0.0.1", world.stack.port), timeout=30) as connection:
        connection.sendall(head.encode() + body)
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        text = answer.read()
    is_served(world, Answer(answer.status, {n.lower(): v for n, v in answer.headers.items()}, text), "small")


# --- requests: the table ------------------------------------------------------------------------------------

EXTRACT = "Extract the sender and the total as JSON: Invoice from Nordwind, 420 EUR, due 3 May."
PROVE = "Prove that 17 is prime."
_TEXT = {"type": "text", "text": EXTRACT}
_ODD: tuple[Body, ...] = (
    {"tools": {}}, {"max_tokens": 1024.0}, {"max_tokens": "1024"}, {"thinking": True},
    {"chat_template_kwargs": {"enable_thinking": "true"}}, {"text": "x"}, {"prompt": {}}, {"input": 5},
    {"instructions": ["x"]},
)  # fmt: skip
_AS_FILES: tuple[Body, ...] = (
    {"path": RESPONSES, "input": [{"role": "user", "content": [
        {"type": "input_file", "file_data": "AAAA"}, {"type": "input_text", "text": EXTRACT}]}]},
    *({"path": CHAT, "messages": [{"role": "user", "content": [part, _TEXT]}]} for part in (
        {"type": "file", "file": {"file_data": "AAAA"}}, {"type": "video_url", "video_url": {"url": "http://x/v"}},
        {"type": "audio_url", "audio_url": {"url": "http://x/a"}},
    )),
    {"path": CHAT, "modalities": ["text", "audio"], "messages": [{"role": "user", "content": EXTRACT}]},
)  # fmt: skip
_SCREENSHOT: Body = {"input": [
    {"role": "user", "content": EXTRACT},
    {"type": "computer_call", "call_id": "a", "action": {"type": "screenshot"}},
    {"type": "computer_call_output", "call_id": "a",
     "output": {"type": "computer_screenshot", "image_url": "data:image/png;base64,AAAA"}},
]}  # fmt: skip
_WEB_SEARCH: Body = {
    "path": MESSAGES, "max_tokens": 9, "tools": [{"type": "web_search_20250305", "name": "web_search"}],
    "messages": [{"role": "user", "content": EXTRACT}],
}  # fmt: skip
CHECKS: dict[str, Check] = {
    "01": base_path,
    "02": key_header,
    "03": partial(with_members, {"max_completion_tokens": 100}, ("max_tokens",), "frontier"),
    "04": partial(with_members, {"reasoning_effort": "none"}, (), "frontier"),
    "05": partial(with_members, {"reasoning_effort": "low"}, ("thinking", "chat_template_kwargs"), "frontier"),
    "06": claude_thinks_adaptively,
    "07": follows,
    "08": opens,
    "09": opens,
    "10": one_job,
    "11": partial(is_renamed, "large"),
    "12": partial(is_renamed, "small"),
    "13": partial(is_renamed, "large"),
    "14": member_twice,
    "15": unpacked,
    "16": partial(serves, "small", "matched"),
    "17": partial(each_part, "small", "matched", _ODD),
    "18": partial(each_part, "small", "matched", (
        {"messages": [{"role": "user", "content": ["Now:", _TEXT]}]},
        {"messages": [{"role": "user", "content": _TEXT}]},
        {"messages": {"role": "user", "content": EXTRACT}},
        {"messages": [{"content": EXTRACT}]},
        {"messages": [{"role": "user", "content": EXTRACT}, {"role": "ipython", "content": LEGAL}]},
        {"path": RESPONSES, "input": [{"type": "input_text", "text": EXTRACT}]},
        {"path": RESPONSES, "messages": [{"role": "user", "content": EXTRACT}]},
        {"path": CHAT, "input": EXTRACT},
    )),
    "19": partial(serves, "frontier", "matched"),
    "20": partial(each_part, "frontier", "capability", (
        {"messages": [{"role": "user", "content": [{"image": "https://x/y.png"}, _TEXT]}]},
        {"messages": [{"role": "user", "content": [{"inlineData": {"data": "AAAA"}}, _TEXT]}]},
        {"messages": [{"role": "user", "content": EXTRACT, "images": ["AAAA"]}]},
    )),
    "21": partial(serves, "frontier", "capability"),
    "22": partial(each_part, "frontier", "capability", (_SCREENSHOT,)),
    "23": partial(each_part, "frontier", "capability", _AS_FILES),
    "24": partial(each_part, "frontier", "capability", (_WEB_SEARCH,)),
    "25": nine_mebibytes,
    "26": timeouts_hold,
    "27": stream_flows_on,
    "28": stale_connection,
    "29": partial(serves, "frontier", "matched"),
    "30": closed_path,
    "31": query_is_not_logged,
    "32": host_of_the_upstream,
    "33": side_paths,
    "34": stream_of_wrong_tools,
    "35": custom_tool,
    "36": fault_of_the_tier,
    "37": no_done,
    "38": finish_words,
    "39": partial(serves, "small", "matched"),
    "40": ipv6_tier,
    "41": private_authority,
    "42": replaced_key,
    "43": large_judged_answer,
    "44": websocket,
    "45": http_1_0,
}  # fmt: skip


def test_every_request_has_a_check() -> None:
    assert CHECKS.keys() == REQUESTS.keys()


@pytest.mark.parametrize("number", CHECKS)
def test_a_request_gets_what_its_case_wants(world: World, number: str) -> None:
    world.use("requests")
    world.script()
    CHECKS[number](world, msgspec.json.decode(REQUESTS[number].read_bytes()) | {"number": number})


# --- agents -------------------------------------------------------------------------------------------------

# Name of the case -> its API, the reason, the tier, and the policies that replace its model.
_BOUND = ("bound", "large")
# How much of the body opens the session. The last one follows another request.
_RESUMED = {"claude_code_switch": 1, "codex_resume": 3, "previous_response_id": 0}
DECISIONS: dict[str, tuple[str, tuple[str, str], str]] = {
    "agent_cap": (CHAT, ("matched", "small"), "AC"),
    "claude_code_count_fallback": (MESSAGES, ("background", "small"), "AB"),
    "claude_code_count_fallback_harness": (MESSAGES, ("background", "small"), "AB"),
    "claude_code_resumed": (MESSAGES, ("matched", "frontier"), "AB"),
    "claude_code_small": (MESSAGES, ("matched", "small"), "AB"),
    # The tier that signed is unknown, so the default tier would serve. The risk of the last ask lifts that.
    "claude_code_switch": (MESSAGES, ("tier_floor", "frontier"), "AB"),
    "claude_code_title": (MESSAGES, ("background", "small"), "AB"),
    "codex_resume": (RESPONSES, _BOUND, "AC"),
    "effort_none": (CHAT, ("matched", "small"), "AC"),
    "opencode_title": (CHAT, ("background", "small"), "AC"),
    "previous_response_id": (RESPONSES, _BOUND, "AC"),
    "qwen_memory_task": (CHAT, ("background", "small"), "AC"),
    "router_adds_thinking": (MESSAGES, ("matched", "large"), "AB"),
}
_CAPS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
_THINKING = ("thinking", "output_config", "reasoning_effort", "reasoning", "chat_template_kwargs")


def test_every_agent_has_a_decision() -> None:
    assert DECISIONS.keys() == AGENTS.keys()


@pytest.mark.parametrize(
    ("policy", "name"),
    [(policy, name) for policy in "ABC" for name, (*_, fit) in DECISIONS.items() if policy in fit],
)
def test_an_agents_request_is_decided_as_its_case_wants(world: World, policy: str, name: str) -> None:
    """Its provider takes what arrives, and the cap of the client stays."""
    world.use(policy)
    world.script()
    path, (reason, tier), _ = DECISIONS[name]
    body = msgspec.json.decode(AGENTS[name].read_bytes())
    answer = world.post(path, body, {"authorization": f"Bearer {name} {policy}"})
    assert (answer.status, answer.said["x-router-reason"], answer.said["x-router-tier"], world.tiers) == (
        200, reason, tier, [tier],
    )  # fmt: skip
    assert world.arrived["model"] == world.providers.models[tier]
    assert refusals_of(world.arrived, path) == []
    for member in ("messages", "input", "system", "tools"):
        assert world.arrived.get(member) == body.get(member)
    assert caps(world.arrived) == (caps(body) or ([512] if name in ("effort_none", "previous_response_id") else []))
    if name == "router_adds_thinking":
        assert not world.arrived.keys() & set(_THINKING)
    if name in _RESUMED:
        resumes(world, path, body, name, policy)


def resumes(world: World, path: str, body: Body, name: str, policy: str) -> None:
    """The frontier tier answered the first part of the session. So it gets the next part."""
    member = "messages" if path == MESSAGES else "input"
    turns = _RESUMED[name]
    opening = body | {member: body[member][:turns]} if turns else body_of(RESPONSES, LEGAL)
    headers = {"authorization": f"Bearer resumes {name} {policy}"}
    if name == "previous_response_id":
        world.script(frontier=whole({"id": body[name], "object": "response", "output": []}))
    assert world.post(path, opening, headers | {WANT: "frontier"}).status == 200
    answer = world.post(path, body, headers)
    assert (answer.said["x-router-reason"], answer.said["x-router-tier"], world.tiers) == (
        "bound", "frontier", ["frontier"],
    )  # fmt: skip


def caps(body: Body) -> list[int]:
    return [body[name] for name in _CAPS if name in body]


def refusals_of(body: Body, path: str) -> list[str]:
    """Why the provider of the model would refuse it. OpenAI has no Messages API, so nothing is known there."""
    api = {CHAT: "chat", RESPONSES: "responses", MESSAGES: "messages"}[path]
    model: str = body["model"]
    # These two members also hold settings that do not choose the reasoning.
    for member, other in (("output_config", "format"), ("reasoning", "summary")):
        choice = {key: value for key, value in body.get(member, {}).items() if key != other}
        body = {key: value for key, value in body.items() if key != member} | ({member: choice} if choice else {})
    return [] if api == "messages" and model.startswith("gpt") else refusals(model, api, body)


def test_no_key_is_logged(world: World) -> None:
    """Neither the one in the query of a case, nor one of a tier or a client."""
    if not world.secret_sent:
        test_a_request_gets_what_its_case_wants(world, "31")
    eventually(lambda: world.stack.log("envoy.log").count("\n") >= world.secret_sent, "the access log is written")
    logs = "".join(world.stack.log(name) for name in ("envoy.log", "envoy.err", "router.log"))
    assert not [key for key in ("SECRET", "sk-small", "sk-large", "sk-frontier", "Bearer ") if key in logs]
