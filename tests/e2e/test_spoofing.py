"""Only the router sets the contract's headers. Neither clients nor upstreams can."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web

from extproc.demo.loop_thread import LoopThread
from extproc.demo.stack import Stack
from tests.e2e.traffic import (
    AT_ONCE,
    CHAT,
    EXTRACT,
    EXTRACTED,
    FAILED_OPEN,
    MESSAGES,
    PROVE,
    PROVED,
    arrived,
    body_of,
    contract_headers,
    envoy_beside,
    send,
)  # fmt: skip

_SPOOFED = {
    "x-router-cluster": "frontier",
    "x-router-ladder": "frontier",
    "x-router-cohort": "evil",
    "x-router-tier": "evil",
    "x-router-reason": "evil",
    "x-router-anything": "evil",
    "x-cascade-verdict": "escalate",
    "x-cascade-anything": "evil",
    "x-envoy-max-retries": "97",
    "x-envoy-retry-on": "5xx",
    "x-envoy-original-path": "/evil",
    "x-envoy-upstream-rq-timeout-ms": "31",
    "x-envoy-decorator-operation": "evil",
}


@pytest.mark.parametrize("names", [str.lower, str.upper, str.title], ids=["lower", "upper", "title"])
@pytest.mark.parametrize(
    ("prompt", "said"), [(EXTRACT, EXTRACTED), (PROVE, PROVED)], ids=["extraction", "math_reasoning"]
)
def test_a_client_cannot_set_the_contract_headers(
    stack: Stack, prompt: str, said: dict[str, str], names: Any
) -> None:
    """The router chooses the route, and no contract header of the client reaches the upstream."""
    spoofed = {names(name): value for name, value in _SPOOFED.items()}
    answer = send(stack.port, CHAT, msgspec.json.encode(body_of(CHAT, prompt)), spoofed)
    received = arrived(stack)
    assert (answer.status, answer.said, received.tier) == (200, said, said["x-router-tier"])
    assert contract_headers(received) == {}
    assert not (set(_SPOOFED.values()) - {"frontier"}) & set(received.headers.values())


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", f"{MESSAGES}/count_tokens", b"{}"),
        ("POST", CHAT, b""),
        ("POST", CHAT, b'{"model":"nobody\'s"}'),
    ],
)
def test_nor_on_requests_that_pass(stack: Stack, method: str, path: str, body: bytes | None) -> None:
    """A request that is not routed goes to the default tier, regardless of the client's headers."""
    send(stack.port, path, body, _SPOOFED, method)
    received = arrived(stack)
    assert received.tier == "large"
    assert contract_headers(received) == {}
    assert not (set(_SPOOFED.values()) - {"frontier"}) & set(received.headers.values())


class _Liar:
    """An upstream that sends the router's headers. It serves as the `upstreams` of a second Envoy."""

    def __init__(self, tiers: Any) -> None:
        self._loop = LoopThread("liar")
        self._loop.start()
        port = self._loop.run(self._start())
        self.ports = dict.fromkeys(tiers, port)
        self.received: list[Any] = []

    async def _start(self) -> int:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        port: int = self._runner.addresses[0][1]
        return port

    async def _answer(self, request: web.Request) -> web.Response:
        await request.read()
        self.received.append(request.path)
        return web.json_response(
            {}, headers={k: v for k, v in _SPOOFED.items() if k.startswith(("x-router", "x-cas"))}
        )

    def close(self) -> None:
        self._loop.run(self._runner.cleanup())
        self._loop.stop()


@pytest.fixture(scope="module")
def lied_to(shared_stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Stack, _Liar]]:
    liar = _Liar(shared_stack.upstreams.models)
    try:
        folder: Path = tmp_path_factory.mktemp("liar")
        with envoy_beside(shared_stack, folder, lambda _: None, liar) as beside:  # type: ignore[arg-type]
            yield beside, liar
    finally:
        liar.close()


def test_an_upstream_is_not_believed(stack: Stack, lied_to: tuple[Stack, _Liar]) -> None:
    """The client gets the router's decision, with one attempt, and not the upstream's headers."""
    beside, liar = lied_to
    liar.received.clear()
    answer = send(beside.port, CHAT, msgspec.json.encode(body_of(CHAT, PROVE)))
    assert (answer.status, answer.contract) == (200, PROVED | AT_ONCE)
    assert liar.received == [CHAT]


def test_nor_where_nothing_was_decided(stack: Stack, lied_to: tuple[Stack, _Liar]) -> None:
    """Without a body the router decides nothing. The upstream's contract headers are removed, too."""
    answer = send(lied_to[0].port, CHAT, b"")
    assert (answer.status, answer.contract) == (200, FAILED_OPEN | {"x-router-attempts": "1"})
