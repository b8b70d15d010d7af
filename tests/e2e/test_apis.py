"""Four APIs, whole and streamed, through the real Envoy with the official clients and with raw bytes."""

from collections.abc import Iterator
from typing import Any

import anthropic
import msgspec
import openai
import pytest

from extproc.demo.stack import Stack
from tests.e2e.traffic import (
    AT_ONCE,
    CHAT,
    COMPLETIONS,
    EXTRACT,
    EXTRACTED,
    INTENTS,
    JUDGED,
    LEGAL,
    MESSAGES,
    MODELS,
    PROVE,
    PROVED,
    RESPONSES,
    arrived,
    ask,
    body_of,
    contract_headers,
    send,
)  # fmt: skip

_OFF, _ON = (
    {"chat_template_kwargs": {"enable_thinking": False}},
    {"chat_template_kwargs": {"enable_thinking": True}},
)

# Prompt, the headers of the decision, and the fields that are written in addition to the model, by API.
_COHORTS: dict[str, Any] = {
    "extraction": (EXTRACT, EXTRACTED, {
        CHAT: _OFF | {"max_tokens": 512},
        COMPLETIONS: {"max_tokens": 512},
        RESPONSES: _OFF | {"max_output_tokens": 512},
        MESSAGES: _OFF | {"max_tokens": 512},
    }),
    "math_reasoning": (PROVE, PROVED, {CHAT: _ON, COMPLETIONS: {}, RESPONSES: _ON, MESSAGES: {}}),
    "compliance": (LEGAL, JUDGED, {
        CHAT: {"reasoning_effort": "medium"},
        COMPLETIONS: {},
        RESPONSES: {"reasoning": {"effort": "medium"}},
        MESSAGES: {},
    }),
}  # fmt: skip


@pytest.fixture(scope="module")
def openai_client(shared_stack: Stack) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{shared_stack.url}/v1", api_key="k", max_retries=0, timeout=30) as client:
        yield client


@pytest.fixture(scope="module")
def anthropic_client(shared_stack: Stack) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=shared_stack.url, api_key="k", max_retries=0, timeout=30) as client:
        yield client


def _ask_officially(
    openai_client: openai.OpenAI, anthropic_client: anthropic.Anthropic, path: str, body: dict[str, Any]
) -> tuple[Any, str]:
    """Send a request with the official client of the API. Return the headers and the text that it reads."""
    apis: dict[str, Any] = {
        CHAT: openai_client.chat.completions,
        COMPLETIONS: openai_client.completions,
        RESPONSES: openai_client.responses,
        MESSAGES: anthropic_client.messages,
    }
    raw = apis[path].with_raw_response.create(**body)
    answer = raw.parse()
    text = "".join(map(_delta, answer)) if body.get("stream") else _whole(answer)
    return raw.headers, text


def _whole(answer: Any) -> str:
    match answer.__class__.__name__:
        case "ChatCompletion":
            return str(answer.choices[0].message.content)
        case "Completion":
            return str(answer.choices[0].text)
        case "Response":
            return str(answer.output_text)
    return str(answer.content[0].text)


def _delta(event: Any) -> str:
    match event.__class__.__name__:
        case "ChatCompletionChunk":
            return event.choices[0].delta.content or ""
        case "Completion":
            return str(event.choices[0].text)
        case "ResponseTextDeltaEvent":
            return str(event.delta)
        case "RawContentBlockDeltaEvent":
            return str(event.delta.text)
    return ""


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, RESPONSES, MESSAGES])
@pytest.mark.parametrize("cohort", _COHORTS)
def test_official_clients_are_served_by_the_tier_of_their_cohort(
    stack: Stack,
    openai_client: openai.OpenAI,
    anthropic_client: anthropic.Anthropic,
    cohort: str,
    path: str,
    stream: bool,
) -> None:
    """The cohort's tier gets its own model name and reasoning. The client gets the answer and three headers."""
    prompt, headers_wanted, written = _COHORTS[cohort]
    tier = headers_wanted["x-router-tier"]
    body = body_of(path, prompt) | ({"stream": True} if stream else {})

    headers, text = _ask_officially(openai_client, anthropic_client, path, body)

    received = arrived(stack)
    assert {k: v for k, v in headers.items() if k.startswith("x-router-")} == headers_wanted | AT_ONCE
    assert (received.tier, received.path) == (tier, path)
    assert msgspec.json.decode(received.body) == body | {"model": MODELS[tier]} | written[path]
    assert contract_headers(received) == {}
    assert received.headers["content-length"] == str(len(received.body))
    reasoning = {k: v for k, v in written[path].items() if not k.startswith("max_")}
    said = msgspec.json.encode(reasoning).decode() if reasoning else "unset"
    assert text.strip() == f"{MODELS[tier]} here, reasoning {said}"


@pytest.mark.parametrize("prompts", [[EXTRACT, PROVE, LEGAL], [LEGAL, PROVE, EXTRACT]], ids=["last", "first"])
def test_the_costliest_of_several_prompts_decides(stack: Stack, prompts: list[str]) -> None:
    body = {"model": "auto", "prompt": prompts, "max_tokens": 100}
    answer = send(stack.port, COMPLETIONS, msgspec.json.encode(body))
    assert answer.said == JUDGED
    assert msgspec.json.decode(arrived(stack).body) == body | {"model": MODELS["frontier"]}


_TOO_LONG = PROVED | {"x-router-tier": "frontier", "x-router-reason": "capability"}
_ODD = (
    b' \r\n{ "temperature" :2.50 ,"n":1E+0,\n\t"model"\t:  "gpt-4o-mini" , "z":{"b":[ 1.0,1e3 ],"a":null},'
    b'"messages":[ {"content":"Prove that 17 is prime. \\u00e9\\ud83d\\ude00 caf\xc3\xa9 \\/ \\u0041",'
    b'"role":"user"} ],'
    b'"seed":123456789012345678901234567890,"":"" \n}\r\n '
)
_ODD_ROUTED = _ODD.replace(b'"gpt-4o-mini"', b'"qwen3-32b"').replace(
    b'"":"" \n}', b'"":"","chat_template_kwargs":{"enable_thinking":true} \n}'
)


@pytest.mark.parametrize(
    "body", [_ODD, [_ODD[:1], _ODD[1:60], _ODD[60:200], _ODD[200:]]], ids=["content-length", "chunked"]
)
def test_every_other_byte_survives(stack: Stack, body: Any) -> None:
    """White space, order, number spellings and escapes reach the upstream as the client wrote them."""
    answer = send(stack.port, CHAT, body)
    received = arrived(stack)
    assert received.body == _ODD_ROUTED
    assert (answer.status, answer.said, received.tier) == (200, PROVED, "large")
    assert received.headers["content-length"] == str(len(_ODD_ROUTED))
    assert "transfer-encoding" not in received.headers


def test_a_streamed_answer_passes_as_the_upstream_wrote_it(stack: Stack) -> None:
    """Server-sent events have the same bytes as without the router."""
    routed = ask(stack.port, PROVE, stream=True)
    plain = send(stack.plain_port, CHAT, arrived(stack).body, {"x-plain-cluster": "large"})
    assert routed.headers["content-type"] == "text/event-stream"
    assert (routed.status, routed.body) == (200, plain.body)


def test_reasoning_that_the_client_chose_stands(stack: Stack) -> None:
    """The client's choice is kept, in the dialect of the tier that serves the request."""
    answer = send(
        stack.port, CHAT, b'{"model":"auto","reasoning_effort":"none","messages":[{"role":"user","content":"'
        + PROVE.encode() + b'"}]}',
    )  # fmt: skip
    assert answer.said == PROVED
    assert msgspec.json.decode(arrived(stack).body)["chat_template_kwargs"] == {"enable_thinking": False}


@pytest.mark.parametrize("chunked", [False, True], ids=["content-length", "chunked"])
def test_a_five_megabyte_body_is_routed(stack: Stack, chunked: bool) -> None:
    """A text too long for every tier goes to the tier with the largest context. Only model and reasoning change."""
    system = b"This is background reading. " * (5 * 1024 * 1024 // 28)
    head = b'{"model":"auto","messages":[{"role":"system","content":"' + system + b'"},'
    body = head + b'{"role":"user","content":"' + PROVE.encode() + b'"}]}'
    answer = send(stack.port, CHAT, [body[i : i + 65536] for i in range(0, len(body), 65536)] if chunked else body)
    received = arrived(stack)
    assert (answer.status, answer.said) == (200, _TOO_LONG)
    wanted = body.replace(b'"auto"', b'"frontier-1"', 1)[:-1] + b',"reasoning_effort":"medium"}'
    assert received.body == wanted
    assert received.headers["content-length"] == str(len(wanted))


@pytest.mark.parametrize("chunked", [False, True], ids=["content-length", "chunked"])
def test_a_body_of_33_megabytes_is_refused(stack: Stack, chunked: bool) -> None:
    """Envoy answers 413 to a body above the limit, and no upstream receives it."""
    before = len(stack.upstreams.received)
    body = b'{"model":"auto","messages":[{"role":"user","content":"' + b"a " * (33 * 512 * 1024) + b'"}]}'
    answer = send(stack.port, CHAT, [body[i : i + 65536] for i in range(0, len(body), 65536)] if chunked else body)
    assert answer.status == 413
    assert len(stack.upstreams.received) == before


def test_a_body_of_nine_megabytes_is_routed(stack: Stack) -> None:
    """A picture may be as large. The router reads the ask beside it."""
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * (9 * 1024 * 1024)}}
    message = {"role": "user", "content": [{"type": "text", "text": EXTRACT}, picture]}
    answer = send(stack.port, CHAT, msgspec.json.encode({"model": "auto", "messages": [message]}))
    assert (answer.status, answer.said["x-router-cohort"], arrived(stack).tier) == (200, "extraction", "frontier")


def test_a_gold_user_is_lifted_by_the_trusted_header(stack: Stack) -> None:
    """A header that a rule names reaches the rule. Gold users get at least the large tier."""
    answer = send(stack.port, CHAT, msgspec.json.encode(body_of(CHAT, EXTRACT)), {"x-user-tier": "gold"})
    assert answer.said == EXTRACTED | {"x-router-tier": "large", "x-router-reason": "tier_floor"}


def test_a_picture_goes_to_a_tier_that_sees(stack: Stack) -> None:
    """A request with a picture goes to the next tier that has the capability."""
    content = [
        {"type": "text", "text": EXTRACT},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 100_000}},
    ]
    body = {"model": "auto", "messages": [{"role": "user", "content": content}]}
    answer = send(stack.port, CHAT, msgspec.json.encode(body))
    assert answer.said == EXTRACTED | {"x-router-tier": "frontier", "x-router-reason": "capability"}
    assert arrived(stack).tier == "frontier"


def test_a_query_on_the_path_changes_nothing(stack: Stack) -> None:
    """A query string like Azure's reaches the upstream, and the request is routed."""
    answer = send(stack.port, f"{CHAT}?api-version=2026-01-01", msgspec.json.encode(body_of(CHAT, PROVE)))
    assert (answer.status, answer.said) == (200, PROVED)


def test_the_samples_are_what_the_stack_serves(stack: Stack) -> None:
    """The stack serves the folder that the README shows, and each tier knows its model."""
    assert {p.name for p in stack.intents.glob("*.yaml")} == {p.name for p in INTENTS.glob("*.yaml")}
    assert stack.upstreams.models == MODELS
