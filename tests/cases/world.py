"""The stack that the cases are sent through: the sample intents, three providers that each test scripts, and Envoy.

The policy has what the cases' `config` wants: a base path, keys of tiers, a private authority and IPv6.
"""

import asyncio
import contextlib
import json
import os
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import yaml
from aiohttp import web

from extproc.demo.sample_upstream import TIER, Received, SampleUpstreams
from extproc.demo.stack import Stack
from tests.e2e.test_listening import Authority
from tests.e2e.traffic import INTENTS, MODELS, Answer, eventually, send

Body = dict[str, Any]
Script = Callable[[web.Request], Awaitable[web.StreamResponse]]

CASES = INTENTS.parents[1] / "shared" / "cases"
BASE = "/api"  # the frontier tier is at BASE/v1
ATTEMPT_S, REQUEST_S = 2, 3
MAX_BODY_MB = 10
UTTERANCES = 24  # of each sample intent
WANT = "x-want"  # a request may name its tier in this header
# Claude sits below the small tier, so no failure and no need of a request reaches it.
_MODELS = MODELS | {"claude": "claude-opus-4-8"}


def whole(body: Body | bytes, status: int = 200, kind: str = "application/json") -> Script:
    """Answer with this body."""

    async def answer(request: web.Request) -> web.StreamResponse:
        raw = body if isinstance(body, bytes) else msgspec.json.encode(body)
        return web.Response(body=raw, status=status, content_type=kind)

    return answer


def chat(**choice: Any) -> Script:
    """Answer with one choice of Chat Completions."""
    message = {"role": "assistant", "content": "Nordwind, 420 EUR"}
    return whole({"choices": [{"index": 0, "message": message, "finish_reason": "stop", **choice}]})


def events(*frames: bytes) -> Script:
    return whole(b"".join(frames), kind="text/event-stream")


def words(count: int, gap_s: float) -> Script:
    """Answer with a stream that sends a word every `gap_s` seconds."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for _ in range(count):
            await asyncio.sleep(gap_s)
            await response.write(b'data: {"choices":[{"index":0,"delta":{"content":"word "}}]}\n\n')
        await response.write(b"data: [DONE]\n\n")
        return response

    return answer


def late(wait_s: float) -> Script:
    """Answer after this time."""

    async def answer(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(wait_s)
        return await chat()(request)

    return answer


async def hang_up(request: web.Request) -> web.StreamResponse:
    """Close the connection without an answer, as a server does whose keepalive time is over."""
    assert request.transport is not None
    request.transport.close()
    return web.Response()


class Providers(SampleUpstreams):
    """Sample servers that answer as a test asks. The frontier has TLS and a base path, the large one IPv6."""

    def __init__(self, tls: ssl.SSLContext) -> None:
        super().__init__(_MODELS)
        self.scripts: dict[str, list[Script | None]] = {}  # for the next requests of a tier. None: as usual
        self.paths: list[str] = []  # of the requests, as they arrived
        self._tls = tls

    async def _start_tier(self, tier: str) -> None:
        app = web.Application(client_max_size=64 * 1024 * 1024)
        app[TIER] = tier
        app.router.add_route("*", "/{path:.*}", self._answer)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
        await runner.setup()
        host = ipv6() or "127.0.0.1" if tier == "large" else "127.0.0.1"
        await web.TCPSite(runner, host, 0, ssl_context=self._tls if tier == "frontier" else None).start()
        self._runners[tier] = runner
        self.ports[tier] = runner.addresses[0][1]

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        tier, path = request.app[TIER], request.raw_path
        waiting = self.scripts.get(tier, [])
        script = waiting.pop(0) if waiting else None
        self.paths.append(path)
        if script is not None:
            headers = {name.lower(): value for name, value in request.headers.items()}
            self.received.append(Received(tier, path, headers, await request.read()))
            return await script(request)
        if path.startswith(BASE):
            request = request.clone(rel_url=path.removeprefix(BASE))
        return await super()._answer(request)


def ipv6() -> str | None:
    """The loopback address of IPv6, where the machine has one."""
    with contextlib.suppress(OSError), socket.create_server(("::1", 0), family=socket.AF_INET6):
        return "::1"
    return None


class World:
    """The stack, with one of several policies."""

    def __init__(self, stack: Stack, providers: Providers, policies: dict[str, Body]) -> None:
        self.stack, self.providers, self.policies = stack, providers, policies
        self.policy = "requests"
        self.sent = self.secret_sent = 0  # requests, and those up to the one that has a key in its query
        self.keys = stack.intents / "keys"

    def use(self, policy: str) -> None:
        """Reload the router with this policy, if it has another one."""
        if policy == self.policy:
            return
        before = self.stack.log("router.log").count("reloaded: revision")
        write(self.stack.intents, self.policies[policy])
        self.providers.models = {tier["name"]: tier["model"] for tier in self.policies[policy]["tiers"]}
        eventually(lambda: self.stack.log("router.log").count("reloaded: revision") > before, "the policy serves")
        self.policy = policy

    def post(
        self, path: str, body: Body | bytes | None, headers: dict[str, str] | None = None, method: str = "POST"
    ) -> Answer:
        """Send one request and forget the earlier ones."""
        self.sent += 1
        self.received.clear()
        self.providers.paths.clear()
        raw = body if isinstance(body, bytes) or body is None else msgspec.json.encode(body)
        return send(self.stack.port, path, raw, headers, method)

    def script(self, **scripts: Script | list[Script | None]) -> None:
        """Set what the next requests of these tiers get."""
        self.providers.scripts = {t: s if isinstance(s, list) else [s] for t, s in scripts.items()}

    @property
    def received(self) -> list[Received]:
        return self.providers.received

    @property
    def tiers(self) -> list[str]:
        """The tiers that the last request was sent to."""
        return [received.tier for received in self.received]

    @property
    def arrived(self) -> Body:
        """The body that the last upstream got."""
        body: Body = json.loads(self.received[-1].body)
        return body


@contextlib.contextmanager
def running_world(folder: Path) -> Iterator[World]:
    """Start providers, router and Envoy."""
    authority = Authority(folder / "pki", "private")
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(*authority.sign("upstream", "upstream.test"))
    providers = Providers(tls)
    with providers:
        stack = Stack(INTENTS, folder, providers)
        _write_keys(stack.intents / "keys")
        for intent in stack.intents.glob("*.yaml"):
            _keep_the_first(intent, UTTERANCES)
        _judge_tools(stack.intents / "extraction.yaml")
        addresses = _addresses(providers.ports, authority.certificate)
        policies = {"requests": _policy(addresses)}
        policies |= {name: _agents_policy(policies["requests"], name) for name in "ABC"}
        write(stack.intents, policies["requests"])
        try:
            stack.start_router()
            stack.start_envoy()
            yield World(stack, providers, policies)
        finally:
            stack.stop()


def write(folder: Path, policy: Body) -> None:
    """Replace the policy in one step."""
    (folder / ".new").write_text(yaml.safe_dump(policy, sort_keys=False))
    os.rename(folder / ".new", folder / "policy.yaml")


def _write_keys(folder: Path) -> None:
    folder.mkdir()
    for tier in MODELS:
        (folder / tier).write_text(f"sk-{tier}\n")


def _keep_the_first(intent: Path, count: int) -> None:
    """Shorten the intent's list of utterances, which is the end of the file. A router then starts sooner.

    With a floor, every setting of a matched intent applies.
    """
    head, mark, utterances = intent.read_text().partition("utterances:\n")
    head += "floor: 0\n" if mark else ""
    intent.write_text(head + mark + "".join(utterances.splitlines(keepends=True)[:count]))


def _judge_tools(extraction: Path) -> None:
    """Every rejected answer may escalate, so the cases do not depend on each other."""
    text = extraction.read_text()
    accept, share = "accept: [complete, non_empty, json_schema]", "share: 0.35"
    assert accept in text and share in text
    text = text.replace(accept, "accept: [complete, non_empty, json_schema, tool_calls]")
    extraction.write_text(text.replace(share, "share: 1"))


def _addresses(ports: dict[str, int], ca: Path) -> dict[str, Body]:
    """Return the address and the key of each tier. They are the same in every policy."""
    large = "[::1]" if ipv6() is not None else "127.0.0.1"
    return {
        "claude": {"url": f"http://127.0.0.1:{ports['claude']}"},
        "small": {"url": f"http://127.0.0.1:{ports['small']}", "key": {"file": "keys/small"}},
        "large": {"url": f"http://{large}:{ports['large']}", "key": {"file": "keys/large"}},
        "frontier": {
            "url": f"https://127.0.0.1:{ports['frontier']}{BASE}/v1", "ca": str(ca), "sni": "upstream.test",
            "key": {"file": "keys/frontier", "header": "x-api-key"}, "idle_s": 1,
        },
    }  # fmt: skip


def _policy(addresses: dict[str, Body]) -> Body:
    policy: Body = yaml.safe_load((INTENTS / "policy.yaml").read_text())
    claude = {"name": "claude", "model": _MODELS["claude"], "reasoning": "anthropic", "context": 200_000,
              "price": {"input": 0.01, "output": 0.1}, "capabilities": ["tools"]}  # fmt: skip
    wanted = [{"name": f"wants-{name}", "when": {"headers": {WANT: name}}, "tier": name} for name in addresses]
    return policy | {
        "retarget": ["auto", "claude-x"],
        "encoder": {"deadline_ms": 20_000},
        "timeouts": {"attempt_s": ATTEMPT_S, "request_s": REQUEST_S},
        "max_body_mb": MAX_BODY_MB,
        "passthrough": [{"path": "/v1/embeddings", "methods": ["POST"], "tier": "frontier"}],
        "tiers": [tier | addresses[tier["name"]] for tier in (claude, *policy["tiers"])],
        "rules": [*wanted, *policy["rules"]],
    }


def _agents_policy(requests: Body, name: str) -> Body:
    """The tiers and rules of a policy that the agents' bodies come with, at the addresses of the stack."""
    file = CASES / "agents" / f"policy_{name}.yaml"
    given: Body = yaml.safe_load(file.read_text()) if file.exists() else {}
    kept = ("url", "key", "ca", "sni", "retry", "idle_s")
    at_home = {tier["name"]: {k: tier[k] for k in kept if k in tier} for tier in requests["tiers"]}
    tiers = [tier | at_home[tier["name"]] for tier in given.get("tiers", ())]
    for tier in tiers:
        tier.pop("endpoint", None)
    wanted = [rule for rule in requests["rules"] if rule.get("tier") in MODELS]
    return requests | {
        "retarget": given.get("retarget"), "tiers": tiers, "rules": [*wanted, *given.get("rules", ())],
    }  # fmt: skip
