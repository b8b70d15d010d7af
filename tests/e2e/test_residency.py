"""`only` holds end to end: with a tier down, with the router dead, and whatever a request names."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import yaml

from extproc.config.load import load_config
from extproc.demo.sample_upstream import SampleUpstreams
from extproc.demo.stack import Stack
from extproc.envoy.bootstrap import render_envoy
from extproc.envoy.unsupported import Cascade
from tests.e2e.traffic import (
    APIS,
    CHAT,
    FAILED_OPEN,
    LEGAL,
    MESSAGES,
    MODELS,
    PROVE,
    Answer,
    arrived,
    body_of,
    send,
    small_intent,
    write_small_intents,
)

EU = {"x-region": "eu-west"}
# The legal question may only go to the frontier tier, where nothing listens. Requests from the EU stay at small.
_RULES = "rules:\n  - {name: eu, when: {headers: {x-region: 'eu-*'}}, only: [small], otherwise: refuse}\n"
_COMPLIANCE = "tier: frontier\nonly: [frontier]\notherwise: refuse"
_PICTURE = [
    {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
    {"type": "text", "text": PROVE},
]


def _write(folder: Path, compliance: str) -> Path:
    write_small_intents(folder)
    policy = (folder / "policy.yaml").read_text()
    (folder / "policy.yaml").write_text(policy[: policy.index("rules:")] + _RULES)
    (folder / "compliance.yaml").write_text(small_intent("compliance", compliance))
    return folder


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("residency")
    with contextlib.ExitStack() as ending:
        upstreams = ending.enter_context(SampleUpstreams(MODELS))
        stack = Stack(_write(folder / "written", _COMPLIANCE), folder, upstreams)
        ending.callback(stack.stop)
        policy = stack.intents / "policy.yaml"
        policy.write_text(policy.read_text().replace(f":{upstreams.ports['frontier']}", ":1"))
        stack.start_router()
        stack.start_envoy()
        yield stack


def _ask(
    stack: Stack, path: str, prompt: object, headers: dict[str, str] | None = None, model: str = "auto"
) -> Answer:
    """Send a request. No upstream may get one that is answered with 503."""
    before = len(stack.upstreams.received)
    answer = send(stack.port, path, msgspec.json.encode(body_of(path, prompt, model)), headers)  # type: ignore[arg-type]
    assert (answer.status == 503) == (len(stack.upstreams.received) == before)
    return answer


def test_a_tier_that_is_down_has_no_failover_out_of_the_set(stack: Stack) -> None:
    """The client gets the failure of the only tier that may get the question."""
    answer = _ask(stack, CHAT, LEGAL)
    assert (answer.status, answer.headers["x-router-reason"]) == (503, "matched")


@pytest.mark.parametrize("model", ["auto", "qwen3-32b", "gpt-5"])
def test_whatever_model_is_named_the_request_stays_in_the_set(stack: Stack, model: str) -> None:
    """A tier's model is replaced. Any other name is kept."""
    answer = _ask(stack, CHAT, PROVE, EU, model)
    received = arrived(stack)
    assert (received.tier, answer.said["x-router-reason"]) == ("small", "residency")
    assert msgspec.json.decode(received.body)["model"] == ("gpt-5" if model == "gpt-5" else "qwen3-8b")


def test_an_unreadable_body_stays_in_the_set(stack: Stack) -> None:
    """Its headers are known. Its intent is not, so the set of the intent holds, too, and no tier is left."""
    answer = send(stack.port, CHAT, b"no JSON", EU)
    assert (answer.status, answer.headers["x-router-reason"]) == (503, "residency")


@pytest.mark.parametrize("path", [CHAT, MESSAGES])
def test_what_no_allowed_tier_can_serve_is_refused(stack: Stack, path: str) -> None:
    """The error has the shape of the API."""
    answer = _ask(stack, path, _PICTURE, EU)
    assert (answer.status, answer.headers["x-router-reason"]) == (503, "residency")
    error = msgspec.json.decode(answer.body)["error"]
    message = "The policy keeps this request to some of its tiers, and none of them can serve it."
    expected: dict[str, str | None] = {"type": "api_error", "message": message}
    if path == CHAT:
        expected = {"type": "server_error", "message": message, "param": None, "code": "residency"}
    assert error == expected


@pytest.fixture(scope="class")
def dead_router(stack: Stack) -> None:
    assert stack.router is not None
    stack.router.kill()
    stack.router.wait(10)


@pytest.mark.usefixtures("dead_router")
class TestDeadRouter:
    """The router was killed."""

    @pytest.mark.parametrize("path", APIS)
    def test_envoy_refuses_if_an_intent_excludes_the_default_tier(self, stack: Stack, path: str) -> None:
        """The router does not know whether the request belongs to the intent."""
        answer = _ask(stack, path, PROVE)
        assert (answer.status, answer.headers["x-router-reason"]) == (503, "residency")
        assert "x-router-tier" not in answer.headers

    def test_envoy_refuses_a_request_about_a_response(self, stack: Stack) -> None:
        """The default tier may have an answer to such a request, too."""
        before = len(stack.upstreams.received)
        answer = send(stack.port, "/v1/responses/resp_1", None, {}, "GET")
        assert (answer.status, answer.headers["x-router-reason"]) == (503, "residency")
        assert len(stack.upstreams.received) == before

    @pytest.mark.parametrize("cascade", ["priority-group", "composite", "none"])
    def test_envoy_refuses_by_headers_if_only_a_rule_does(
        self, stack: Stack, tmp_path: Path, cascade: Cascade
    ) -> None:
        """Requests with other headers go to the default tier. Other paths to that tier are closed, too."""
        beside = Stack(_write(tmp_path / "written", "tier: frontier"), tmp_path, stack.upstreams)
        beside.router_port = stack.router_port
        rendered = render_envoy(
            load_config(beside.intents), f"127.0.0.1:{beside.port}", [f"127.0.0.1:{stack.router_port}"],
            f"127.0.0.1:{beside.admin_port}", None, cascade=cascade,
        )  # fmt: skip
        try:
            beside.start_envoy(yaml.load(rendered, yaml.CSafeLoader))
            for headers in (EU, {"x-region": "eu-"}):
                answer = _ask(beside, CHAT, PROVE, headers)
                assert (answer.status, answer.headers["x-router-reason"]) == (503, "residency")
            for headers in ({}, {"x-region": "us"}, {"x-region": "eu"}):
                answer = _ask(beside, CHAT, PROVE, headers)
                assert (answer.said, arrived(beside).tier) == (FAILED_OPEN, "large")
        finally:
            beside.stop()
