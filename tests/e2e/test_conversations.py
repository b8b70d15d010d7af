"""Conversations through the real Envoy: the state that a tier made goes back to that tier."""

import http.client
import re
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from extproc.demo.sample_upstream import SampleUpstreams
from extproc.demo.stack import Stack
from tests.e2e.traffic import (
    CHAT,
    COMPLETIONS,
    EXTRACT,
    LEGAL,
    MESSAGES,
    MODELS,
    RESPONSES,
    Answer,
    arrived,
    body_of,
    envoy_beside,
    send,
)

REFUSED = "I forgot my password and cannot get into my account, what can I do?"
RUN = {"type": "function", "function": {"name": "run", "parameters": {"type": "object", "properties": {}}}}
CALL = {"id": "c1", "type": "function", "function": {"name": "run", "arguments": "{}"}}


def post(stack: Stack, path: str, body: dict[str, Any], key: str, **headers: str) -> Answer:
    """Send a request of the principal with this key."""
    return send(stack.port, path, msgspec.json.encode(body), {"authorization": f"Bearer {key}", **headers})


def about(stack: Stack, method: str, path: str, key: str) -> Answer:
    """Send a request without a body."""
    return send(stack.port, path, None, {"authorization": f"Bearer {key}"}, method)


def response_id(answer: Answer) -> str:
    """Return the id of a response, whole or streamed."""
    return re.findall(rb'"id": ?"(resp_[^"]+)"', answer.body)[0].decode()


def test_a_follow_up_goes_to_the_tier_that_made_the_response(stack: Stack) -> None:
    """It does so immediately, and only for that principal. By itself, the follow-up would go to the small tier."""
    for number, stream in enumerate([False, True] * 5):
        made = post(stack, RESPONSES, body_of(RESPONSES, LEGAL) | {"stream": stream}, "a")
        assert made.said["x-router-tier"] == "frontier"
        follow_up = body_of(RESPONSES, EXTRACT) | {"previous_response_id": response_id(made)}
        answer = post(stack, RESPONSES, follow_up, "a")
        assert (answer.said["x-router-tier"], answer.said["x-router-reason"]) == ("frontier", "bound"), number
        stranger = post(stack, RESPONSES, follow_up, "b")
        assert (stranger.said["x-router-tier"], stranger.said["x-router-reason"]) == ("large", "bound")


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_thread_goes_to_the_tier_that_keeps_it(stack: Stack, stream: bool) -> None:
    """A continued request has only the new turn. By itself, it would go to the small tier."""
    key = f"thread {stream}"
    post(stack, MESSAGES, body_of(MESSAGES, LEGAL) | {"thread": {"type": "create"}, "stream": stream}, key)
    continued = {"type": "continue", "previous_message_id": "msg_1"}
    answer = post(stack, MESSAGES, body_of(MESSAGES, EXTRACT) | {"thread": continued}, key)
    assert (answer.said["x-router-tier"], answer.said["x-router-reason"]) == ("frontier", "bound")
    assert msgspec.json.decode(arrived(stack).body)["thread"] == continued


def test_a_reply_to_a_question_of_the_model_is_decided_by_its_conversation(stack: Stack) -> None:
    """The reply belongs to no cohort by itself."""
    turns = [("user", LEGAL), ("assistant", "How long was the notice?"), ("user", "Two years, after redundancy")]
    body = body_of(CHAT, "") | {"messages": [{"role": role, "content": text} for role, text in turns]}
    answer = post(stack, CHAT, body, "reply")
    assert (answer.said["x-router-tier"], answer.said["x-router-cohort"]) == ("frontier", "compliance")


def test_requests_about_a_response_go_to_the_tier_that_made_it(stack: Stack) -> None:
    made = response_id(post(stack, RESPONSES, body_of(RESPONSES, LEGAL), "a"))
    for method, path in (("GET", ""), ("GET", "/input_items?limit=2"), ("POST", "/cancel"), ("DELETE", "")):
        answer = about(stack, method, f"/v1/responses/{made}{path}", "a")
        assert (answer.status, arrived(stack).tier, arrived(stack).path) == (
            200, "frontier", f"/v1/responses/{made}{path}"
        )  # fmt: skip
        assert answer.said == {"x-router-cohort": "bound", "x-router-tier": "frontier", "x-router-reason": "bound"}
    for written in (
        f"/responses/{made}?a=b", f"/openai/v1/responses/{made}/?a=b", f"/v1beta/openai/responses/{made}?a=b",
    ):  # fmt: skip
        assert about(stack, "GET", written, "a").said["x-router-tier"] == "frontier"
        assert arrived(stack).path == f"/v1/responses/{made}?a=b"
    for path, key in ((f"/v1/responses/{made}", "b"), ("/v1/responses/resp_unknown", "a")):
        assert about(stack, "GET", path, key).status == 200 and arrived(stack).tier == "large"


@pytest.mark.parametrize("path", ["/v1/responses/input_tokens", "/v1/responses/compact"])
def test_a_side_path_follows_the_state_of_its_maker(stack: Stack, path: str) -> None:
    """A response id and encrypted reasoning, under the model of their tier. Strangers get the default tier."""
    session = {"session-id": f"side {path}"}
    made = post(stack, RESPONSES, body_of(RESPONSES, LEGAL), "side", **session)
    assert made.said["x-router-tier"] == "frontier"
    sealed = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": f"enc {path}"}
    items = [{"role": "user", "content": LEGAL}, sealed, {"role": "user", "content": "And now?"}]
    bound: dict[str, Any]
    for bound in ({"previous_response_id": response_id(made), "input": "x"}, {"input": items}):
        for key, tier in (("side", "frontier"), ("stranger", "large")):
            answer = post(stack, path, {"model": "auto"} | bound, key, **session)
            assert answer.said == {"x-router-cohort": "bound", "x-router-tier": tier, "x-router-reason": "bound"}
            received = arrived(stack)
            assert (received.tier, received.path) == (tier, path)
            assert msgspec.json.decode(received.body) == {"model": MODELS[tier]} | bound
    if path.endswith("compact"):  # the sealed item stands for the turns, and the opening is gone
        rest = [{"type": "compaction", "encrypted_content": "sum"}, {"role": "user", "content": EXTRACT}]
        follow_up = post(stack, RESPONSES, {"model": "auto", "input": rest}, "side", **session)
        assert follow_up.said == {"x-router-tier": "frontier", "x-router-reason": "bound",
                                  "x-router-cohort": "extraction"}  # fmt: skip


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "r_1", "GET, DELETE"), ("POST", "r_1", "GET, DELETE"), ("DELETE", "r_1/input_items", "GET"),
        ("GET", "r_1/cancel", "POST"), ("GET", "compact", "POST"), ("DELETE", "input_tokens", "POST"),
    ],
)  # fmt: skip
def test_a_wrong_method_is_answered(stack: Stack, method: str, path: str, allowed: str) -> None:
    before = len(stack.upstreams.received)
    answer = about(stack, method, f"/v1/responses/{path}", "a")
    assert (answer.status, answer.headers["allow"]) == (405, allowed)
    assert len(stack.upstreams.received) == before


def test_a_background_job_is_asked_for_once_and_polled_where_it_runs(stack: Stack) -> None:
    """Its first answer is queued, and no rule judges that."""
    before = len(stack.upstreams.received)
    queued = post(stack, RESPONSES, body_of(RESPONSES, EXTRACT) | {"background": True}, "a")
    assert (queued.status, queued.said["x-router-tier"]) == (200, "small")
    assert msgspec.json.decode(queued.body)["status"] == "queued"
    assert len(stack.upstreams.received) == before + 1
    assert about(stack, "GET", f"/v1/responses/{response_id(queued)}", "a").status == 200
    assert arrived(stack).tier == "small"


def test_a_tool_loop_stays_at_the_tier_that_an_escalation_reached(stack: Stack) -> None:
    """The decision of the first request names the small tier, whose answer is rejected."""
    first = body_of(CHAT, REFUSED) | {"tools": [RUN]}
    answer = post(stack, CHAT, first, "loop", session_id="s1")
    assert (answer.headers["x-router-tier"], answer.headers["x-router-attempts"]) == ("large", "2")
    called = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    done = {"role": "tool", "tool_call_id": "c1", "content": "3"}
    loop = first | {"messages": [*first["messages"], called, done]}
    same = post(stack, CHAT, loop, "loop", session_id="s1").headers
    assert (same["x-router-tier"], same["x-router-attempts"], same["x-router-reason"]) == ("large", "1", "bound")
    for key, session in (("other", "s1"), ("loop", "s2")):  # their loops begin at the small tier
        assert post(stack, CHAT, loop, key, session_id=session).headers["x-router-attempts"] == "2"


def test_a_request_that_only_fills_the_prompt_cache_is_not_judged(stack: Stack) -> None:
    """It asks for no token, so there is no answer that a rule could reject. Its tier is that of its ask."""
    for cap, attempts in ((0, "1"), (500, "2")):
        answer = post(stack, MESSAGES, body_of(MESSAGES, REFUSED) | {"max_tokens": cap}, "warm")
        assert (answer.headers["x-router-cohort"], answer.headers["x-router-attempts"]) == ("support_faq", attempts)


def test_signed_thinking_goes_back_to_the_tier_that_signed_it(stack: Stack) -> None:
    first = body_of(MESSAGES, LEGAL)
    post(stack, MESSAGES, first, "signed")
    thinking = {"type": "thinking", "thinking": "", "signature": "EqQB"}
    signed = {"role": "assistant", "content": [thinking, {"type": "text", "text": "Done."}]}
    second = first | {"messages": [*first["messages"], signed, {"role": "user", "content": EXTRACT}]}
    answer = post(stack, MESSAGES, second, "signed")
    assert (answer.said["x-router-tier"], answer.said["x-router-reason"]) == ("frontier", "bound")


@pytest.mark.parametrize(
    ("last", "tier"),
    [
        ("Why?", "frontier"),
        ("Are you quite sure about that answer?", "frontier"),
        ("Und was ist, wenn sie nicht zustimmen?", "frontier"),
        (EXTRACT, "small"),
    ],
)
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_a_follow_up_keeps_the_tier_of_its_conversation(stack: Stack, path: str, last: str, tier: str) -> None:
    """An ask with another task does not. Clients of Completions write the whole conversation into the prompt."""
    turns = [("system", "You write Python."), ("user", LEGAL), ("assistant", "It depends."), ("user", last)]
    body: dict[str, Any] = {"messages": [{"role": role, "content": text} for role, text in turns]}
    if path == COMPLETIONS:
        prompt = "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in turns)
        body = {"prompt": f"{prompt}<|im_start|>assistant\n"}
    answer = post(stack, path, {"model": "auto"} | body, "follow-up")
    assert (answer.status, answer.said["x-router-tier"], arrived(stack).tier) == (200, tier, tier)


def test_a_stream_flows_while_its_id_is_read(stack: Stack, tmp_path: Path) -> None:
    """The first word reaches the client long before the last one is written."""
    with (
        SampleUpstreams(MODELS, chunk_s=0.1) as slow,
        envoy_beside(stack, tmp_path, lambda _: None, slow) as beside,
    ):
        connection = http.client.HTTPConnection("127.0.0.1", beside.port, timeout=30)
        body = msgspec.json.encode(body_of(RESPONSES, LEGAL) | {"stream": True})
        connection.request("POST", RESPONSES, body, {"content-type": "application/json"})
        answer = connection.getresponse()
        began, times = time.monotonic(), []
        while chunk := answer.read1():
            times.append((time.monotonic() - began, chunk))
        connection.close()
    assert len(times) >= 4 and b"response.created" in times[0][1] and b"response.completed" in times[-1][1]
