"""Every tier gets the path, host, key and model that its provider wants, on each attempt, and within its time."""

import contextlib
import http.client
import os
import re
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from extproc.demo.stack import Stack
from extproc.settings import read_url
from tests.e2e.strict_upstream import FINE, Received, Script, StrictUpstreams
from tests.e2e.test_doors import message_of
from tests.e2e.test_listening import Authority
from tests.e2e.traffic import (
    CHAT,
    EXTRACT,
    MESSAGES,
    REPOSITORY,
    RESPONSES,
    Answer,
    body_of,
    eventually,
    send,
    small_intent,
)

_PAGE = (REPOSITORY / "docs/guides/providers.md").read_text()
RECIPES = {
    tier["name"]: tier
    for text in re.findall(r"```yaml title=\S+.*?\n(.*?)```", _PAGE, re.S)
    for tier in yaml.safe_load(text)
}
# Bottom up. A failed request goes to the next one, and requests name the first one in the header `x-want`.
_TIERS = ("based", "keyed", "plain", "repeated", "narrow", "draining", "out", "tls", "misnamed", "spread",
          "sideways", "patient", "last")  # fmt: skip
_CLIENT = {"authorization": "Bearer of-the-client", "x-api-key": "of-the-client"}
_ATTEMPT_S, _REQUEST_S = 1.5, 3


class World(msgspec.Struct):
    """The stack, its upstreams and the folder of the keys."""

    stack: Stack
    upstreams: StrictUpstreams
    second: StrictUpstreams  # the second endpoint of the tier `spread`
    folder: Path

    def ask(self, tier: str, path: str = CHAT, query: str = "", **more: Any) -> Answer:
        self.upstreams.received.clear()
        body = msgspec.json.encode(body_of(path, "Is it?", "auto") | more)
        return send(self.stack.port, path + query, body, _CLIENT | {"x-want": tier})

    def script(self, **scripts: Script | list[Script]) -> None:
        self.upstreams.scripts = {t: s if isinstance(s, list) else [s] for t, s in scripts.items()}

    @property
    def tiers(self) -> list[str]:
        """The tiers that the last request was sent to."""
        return [received.tier for received in self.upstreams.received]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("providers")
    authority = Authority(folder / "pki", "private")
    certificate, key = authority.sign("upstream", "upstream.test")
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(certificate, key)
    written = folder / "written"
    with contextlib.ExitStack() as ending:
        names = (*_TIERS, *RECIPES)
        upstreams = ending.enter_context(StrictUpstreams(names, {"tls": tls, "misnamed": tls}))
        second = ending.enter_context(StrictUpstreams(["spread"], host=_second_host()))
        _write_intents(written, names)
        stack = Stack(written, folder, upstreams)  # type: ignore[arg-type]  # has what a stack asks for
        ending.callback(stack.stop)
        _write_keys(stack.intents / "keys")
        policy = _policy(
            names, _own_tiers(upstreams.ports, second.ports["spread"], authority.certificate), upstreams
        )
        (stack.intents / "policy.yaml").write_text(yaml.safe_dump(policy, sort_keys=False))
        stack.start_router()
        stack.start_envoy()
        yield World(stack, upstreams, second, stack.intents / "keys")


def _second_host() -> str:
    """An IPv6 address, where the machine has one."""
    with contextlib.suppress(OSError), socket.create_server(("::1", 0), family=socket.AF_INET6):
        return "::1"
    return "127.0.0.1"


def _own_tiers(ports: dict[str, int], second: int, ca: Path) -> dict[str, dict[str, Any]]:
    second_host = "[::1]" if _second_host() == "::1" else "127.0.0.1"
    at = {name: f"//127.0.0.1:{port}" for name, port in ports.items()}
    return {
        "based": {"url": f"http:{at['based']}/openai/v1/", "key": {"file": "keys/swapped", "header": "api-key"}},
        "keyed": {"url": f"http:{at['keyed']}/v1beta/openai", "key": {"file": "keys/renamed"}},
        "plain": {"url": f"http:{at['plain']}"},
        "repeated": {"url": f"http:{at['repeated']}", "retry": {"same": 1}},
        "narrow": {"url": f"http:{at['narrow']}", "escalate_on": [418], "apis": ["messages"]},
        "draining": {"url": f"http:{at['draining']}", "state": "drain"},
        "out": {"url": f"http:{at['out']}", "state": "out"},
        "tls": {"url": f"https:{at['tls']}", "ca": str(ca), "sni": "upstream.test", "idle_s": 0.5},
        "misnamed": {"url": f"https:{at['misnamed']}", "ca": str(ca)},
        "spread": {"endpoints": [{"url": f"http:{at['spread']}", "weight": 3},
                                 {"url": f"http://{second_host}:{second}", "weight": 1}]},
        "sideways": {"url": f"http:{at['sideways']}", "failover": ["plain", "narrow", "last"]},
        # The requests of the others pass listeners that close silent connections, because their limit is shorter.
        "patient": {"url": f"http:{at['patient']}", "timeouts": {"attempt_s": _REQUEST_S}},
        "last": {"url": f"http:{at['last']}", "key": {"file": "keys/renamed"}},
    }  # fmt: skip


def _policy(names: tuple[str, ...], own: dict[str, dict[str, Any]], upstreams: StrictUpstreams) -> dict[str, Any]:
    rest = {"context": 1_000_000, "price": {"input": 1, "output": 1}}
    recipes = {name: _at_home(tier, upstreams.ports[name]) for name, tier in RECIPES.items()}
    tiers = [{"name": name, "model": f"{name}-1", **rest, **(own | recipes)[name]} for name in (*RECIPES, *own)]
    return {
        "version": 1,
        "default_tier": "plain",
        "tiers": tiers,
        "encoder": {"deadline_ms": 20_000},
        "timeouts": {"attempt_s": _ATTEMPT_S, "request_s": _REQUEST_S},
        "passthrough": [{"path": f"/v1/images/{name}", "tier": name} for name in ("plain", "last")],
        "rules": [{"name": name, "when": {"headers": {"x-want": name}}, "tier": name} for name in names],
    }


def _at_home(tier: dict[str, Any], port: int) -> dict[str, Any]:
    """A recipe whose provider is here. Its path, key and model stay."""
    [url, *_] = [endpoint["url"] for endpoint in tier.get("endpoints", ())] or [tier["url"]]
    return {key: value for key, value in tier.items() if key != "endpoints"} | {
        "url": f"http://127.0.0.1:{port}{read_url(url).base}"
    }


def _write_intents(folder: Path, names: tuple[str, ...]) -> None:
    folder.mkdir()
    judged = small_intent("extraction", "tier: plain\naccept: [no_refusal]\nescalate: {to: [tls, last]}")
    (folder / "extraction.yaml").write_text(judged.replace("floor: 0.05", "floor: 0.5"))
    tiers = [
        {"name": n, "model": n, "url": "http://x", "context": 9, "price": {"input": 1, "output": 1}} for n in names
    ]
    policy = {"version": 1, "default_tier": "plain", "tiers": tiers}
    (folder / "policy.yaml").write_text(yaml.safe_dump(policy))


def _write_keys(folder: Path) -> None:
    """Write a key for each recipe, and one as Kubernetes mounts Secrets: behind two symbolic links."""
    folder.mkdir()
    for name in (*RECIPES, "renamed"):
        (folder / name).write_text(f"sk-{name}\n")
    _swap(folder, 1)
    (folder / "swapped").symlink_to("..data/swapped")


def _swap(folder: Path, version: int) -> None:
    (folder / f"..v{version}").mkdir()
    (folder / f"..v{version}" / "swapped").write_text(f"sk-swapped-{version}")
    (folder / "..new").symlink_to(f"..v{version}")
    os.rename(folder / "..new", folder / "..data")


def _keys(received: Received) -> dict[str, str]:
    names = ("authorization", "x-api-key", "api-key")
    return {name: received.headers[name] for name in names if name in received.headers}


# Providers


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_sends_what_its_provider_wants(world: World, name: str) -> None:
    """The provider gets its own path, host, key and model, and nothing of the client's keys."""
    tier = RECIPES[name]
    [url, *_] = [endpoint["url"] for endpoint in tier.get("endpoints", ())] or [tier["url"]]
    world.script()
    path = MESSAGES if tier["apis"] == ["messages"] else CHAT
    answer = world.ask(name, path)
    assert (answer.status, answer.headers["x-router-tier"]) == (200, name)
    [received] = world.upstreams.received
    assert received.path == read_url(url).base + path.removeprefix("/v1")
    assert received.body["model"] == tier["model"]
    assert received.headers["host"] == "127.0.0.1"
    key = tier.get("key", {})
    value = f"sk-{name}" if key.get("header") else f"Bearer sk-{name}"
    assert _keys(received) == ({key.get("header", "authorization"): value} if key else _CLIENT)


def test_each_attempt_has_the_path_and_the_keys_of_its_own_tier(world: World) -> None:
    """Another base path, another header and the client's own keys, in one request. The query is kept."""
    world.script(based=Script(status=500), keyed=Script(status=429))
    answer = world.ask("based", query="?api-version=1&x=%20")
    assert (answer.status, answer.headers["x-router-attempts"]) == (429, "2")  # there is no third rung
    based, keyed = world.upstreams.received
    assert (based.path, keyed.path) == (
        "/openai/v1/chat/completions?api-version=1&x=%20", "/v1beta/openai/chat/completions?api-version=1&x=%20",
    )  # fmt: skip
    assert (_keys(based), _keys(keyed)) == (
        {"api-key": "sk-swapped-1"}, {"authorization": "Bearer sk-renamed"},
    )  # fmt: skip
    world.script(keyed=Script(status=500))
    assert world.ask("keyed").status == 200
    assert [r.path for r in world.upstreams.received] == ["/v1beta/openai/chat/completions", CHAT]
    assert _keys(world.upstreams.received[1]) == _CLIENT


def test_a_key_is_followed_when_it_is_replaced(world: World) -> None:
    """By a rename over it, and by the link that Kubernetes swaps."""
    world.script()
    (world.folder / ".new").write_text("sk-renamed-2\n")
    os.rename(world.folder / ".new", world.folder / "renamed")
    _swap(world.folder, 2)

    def key_of(tier: str) -> dict[str, str]:
        world.ask(tier)
        return _keys(world.upstreams.received[0])

    eventually(lambda: key_of("keyed") == {"authorization": "Bearer sk-renamed-2"}, "the renamed key is sent")
    eventually(lambda: key_of("based") == {"api-key": "sk-swapped-2"}, "the key behind the swapped link is sent")


# Failures


@pytest.mark.parametrize(
    ("status", "body", "own_key", "clients_key"),
    [(401, b"", True, False), (403, b"", True, False), (402, b"", True, True), (404, b"", True, True),
     (408, b"", True, True), (429, b"", True, True), (500, b"", True, True), (529, b"", True, True),
     (400, b'{"error":{"code":"bad"}}', False, False), (422, b"", False, False),
     (400, b'{"error":{"code":"context_length_exceeded"}}', True, True)],
)  # fmt: skip
def test_a_failure_that_is_the_tiers_moves_to_the_next_one(
    world: World, status: int, body: bytes, own_key: bool, clients_key: bool
) -> None:
    """A refused key counts if the tier has its own key. The client gets the error about a wrong request."""
    world.script(keyed=Script(status, body), plain=Script(status, body))
    answer = world.ask("keyed", x=1) if not own_key else None
    if answer is not None:
        assert (answer.status, answer.body, world.tiers) == (status, body, ["keyed"])
    world.script(keyed=Script(status, body))
    if own_key:
        assert (world.ask("keyed").status, world.tiers) == (200, ["keyed", "plain"])
    world.script(plain=Script(status, body))
    answer = world.ask("plain")
    assert (answer.status, world.tiers) == ((200, ["plain", "repeated"]) if clients_key else (status, ["plain"]))
    assert "x-router-failed" not in answer.headers


@pytest.mark.parametrize("path", [CHAT, MESSAGES])
@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_key_of_the_last_tier_is_not_the_clients_fault(world: World, path: str, status: int) -> None:
    """The client gets a 502 in the shape of its API."""
    for body in (b'{"error":{"message":"Incorrect API key provided: sk-renamed"}}', b""):
        world.script(last=Script(status, body))
        answer = world.ask("last", path)
        assert (answer.status, world.tiers) == (502, ["last"])
        assert message_of(answer, path) == (
            "the upstream refused the key that this gateway has for it: its operator has to replace the key "
            f"(status {status})"
        )
        assert "www-authenticate" not in answer.headers
    world.script(narrow=Script(status, b"{}"))  # the client's own key
    answer = world.ask("narrow", MESSAGES)
    assert (answer.status, answer.body, world.tiers) == (status, b"{}", ["narrow"])


def test_a_tier_may_name_its_own_statuses(world: World) -> None:
    world.script(narrow=Script(418))
    assert (world.ask("narrow", MESSAGES).status, world.tiers) == (200, ["narrow", "tls"])
    world.script(narrow=Script(503))
    assert (world.ask("narrow", MESSAGES).status, world.tiers) == (503, ["narrow"])


def test_a_broken_connection_is_tried_once_more_at_the_last_tier(world: World) -> None:
    world.script(last=[FINE, Script(hang_up=True)])
    assert world.ask("last").status == 200
    answer = world.ask("last")
    assert (answer.status, answer.headers["x-router-attempts"], world.tiers) == (200, "2", ["last", "last"])
    world.script(last=[Script(hang_up=True)] * 3)
    assert (world.ask("last").status, world.tiers) == (503, ["last", "last"])
    world.script(last=[Script(503), FINE])
    assert (world.ask("last").status, world.tiers) == (503, ["last"])


def test_a_reused_connection_that_breaks_costs_no_tier(world: World) -> None:
    """The same tier is asked once more. A new connection that breaks moves to the next tier."""
    broken = Script(hang_up=True)
    world.script(plain=[FINE, broken])
    assert (world.ask("plain").status, world.tiers) == (200, ["plain"])
    answer = world.ask("plain")
    assert (answer.status, answer.headers["x-router-tier"], world.tiers) == (200, "plain", ["plain", "plain"])
    assert [r.body["model"] for r in world.upstreams.received] == ["plain-1", "plain-1"]
    world.script(plain=[broken] * 3)
    for tiers in (["plain", "plain", "repeated"], ["plain", "repeated"]):
        answer = world.ask("plain")
        assert (answer.status, answer.headers["x-router-tier"], world.tiers) == (200, "repeated", tiers)
        assert [r.body["model"] for r in world.upstreams.received] == [f"{tier}-1" for tier in tiers]


def test_a_broken_connection_is_tried_once_more_where_the_tier_says_so(world: World) -> None:
    """A status moves to the next tier, also after a repeated attempt."""
    broken, failed = Script(hang_up=True), Script(503)
    for scripts, tiers in (
        ([broken, FINE], ["repeated", "repeated"]),
        ([broken, broken], ["repeated", "repeated", "tls"]),
        ([failed], ["repeated", "tls"]),
        ([broken, failed], ["repeated", "repeated", "tls"]),
    ):
        world.script(repeated=scripts)
        answer = world.ask("repeated")
        assert (answer.status, world.tiers) == (200, tiers)
        assert [r.body["model"] for r in world.upstreams.received] == [f"{tier}-1" for tier in tiers]


@pytest.mark.parametrize("stream", [False, True])
def test_a_rejected_answer_is_not_asked_for_again_at_the_same_tier(world: World, stream: bool) -> None:
    """Neither the first one, nor that of a repeated attempt."""
    broken, refusal = Script(hang_up=True), Script(body=FINE.body.replace(b"ok", b"I cannot help with that."))
    for scripts, tiers in (([refusal], ["repeated", "tls"]), ([broken, refusal], ["repeated", "repeated", "tls"])):
        world.script(repeated=scripts)
        messages = [{"role": "user", "content": EXTRACT}]
        answer = world.ask("repeated", messages=messages, stream=stream)
        assert (answer.status, answer.headers["x-router-escalations"], world.tiers) == (200, "1", tiers)
        assert [r.body["model"] for r in world.upstreams.received] == [f"{tier}-1" for tier in tiers]


# Failover sideways and down


def test_a_failed_request_goes_where_its_tier_says(world: World) -> None:
    """To cheaper tiers, and then to one above. A tier of the list that lacks the API is left out."""
    failed = Script(503)
    for path, failing, tiers in (
        (CHAT, ["sideways"], ["sideways", "plain"]),
        (CHAT, ["sideways", "plain"], ["sideways", "plain", "last"]),
        (MESSAGES, ["sideways", "plain"], ["sideways", "plain", "narrow"]),
    ):
        world.script(**dict.fromkeys(failing, failed))
        answer = world.ask("sideways", path)
        assert (answer.status, answer.headers["x-router-tier"], world.tiers) == (200, tiers[-1], tiers)
        assert (answer.headers["x-router-attempts"], answer.headers["x-router-escalations"]) == (
            str(len(tiers)),
            "0",
        )
        assert [r.body["model"] for r in world.upstreams.received] == [f"{tier}-1" for tier in tiers]


@pytest.mark.parametrize("stream", [False, True])
def test_a_rejected_answer_moves_up_past_the_failover_tiers(world: World, stream: bool) -> None:
    """Also that of a failover tier."""
    refusal = Script(body=FINE.body.replace(b"ok", b"I cannot help with that."))
    messages = [{"role": "user", "content": EXTRACT}]
    for scripts, tiers in (
        ({"sideways": refusal}, ["sideways", "last"]),
        ({"sideways": Script(503), "plain": refusal}, ["sideways", "plain", "last"]),
    ):
        world.script(**scripts)
        answer = world.ask("sideways", messages=messages, stream=stream)
        assert (answer.status, answer.headers["x-router-escalations"], world.tiers) == (200, "1", tiers)
        assert [r.body["model"] for r in world.upstreams.received] == [f"{tier}-1" for tier in tiers]


def test_an_idle_connection_is_closed(world: World) -> None:
    """The tier's `idle_s` is half a second."""
    world.script()
    world.ask("tls")
    active = "cluster.tls.upstream_cx_active"
    eventually(lambda: world.stack.stats(active)[active] == 0, "Envoy closes it", within_s=4)


# States, and several endpoints


@pytest.mark.parametrize(
    ("wanted", "served"),
    [("draining", "tls"), ("out", "tls"), ("narrow", "tls")],
    ids=["drain", "out", "no such api"],
)
def test_a_tier_that_does_not_serve_is_passed_over(world: World, wanted: str, served: str) -> None:
    world.script()
    assert (world.ask(wanted).status, world.tiers) == (200, [served])


def test_a_model_that_is_asked_for_by_name_is_served_while_its_tier_drains(world: World) -> None:
    world.script()
    assert (world.ask("", model="draining-1").headers["x-router-tier"]) == "draining"
    assert (world.ask("", model="out-1").headers["x-router-tier"]) == "plain"


def test_endpoints_share_the_requests(world: World) -> None:
    world.script()
    world.second.received.clear()
    first = 0
    for _ in range(16):
        assert world.ask("spread").headers["x-router-tier"] == "spread"
        first += len(world.tiers)
    assert (first, len(world.second.received)) == (12, 4)


# TLS


def test_a_private_authority_is_trusted_for_the_name_that_was_asked_for(world: World) -> None:
    world.script()
    assert (world.ask("tls").status, world.tiers) == (200, ["tls"])


def test_a_certificate_for_another_name_is_refused(world: World) -> None:
    """The upstream's certificate is for upstream.test, and the URL has an IP address. The next tier serves."""
    world.script()
    answer = world.ask("misnamed")
    assert (answer.status, "misnamed" in world.tiers, world.tiers[:1]) == (200, False, world.tiers)


# Time


def test_a_flowing_stream_is_not_cut(world: World) -> None:
    """It takes longer than `request_s`."""
    world.script(last=Script(words=35, gap_s=0.1))
    began = time.monotonic()
    answer = world.ask("last", stream=True)
    assert (answer.status, answer.body.count(b"data: ")) == (200, 36)
    assert time.monotonic() - began > _REQUEST_S


def test_a_stream_that_stalls_is_ended(world: World) -> None:
    """By the limit of its tier, and not by that of any idle exchange."""
    world.script(last=Script(words=9, gap_s=0.1, stall_after=3))
    ended = "tcp.silence.idle_timeout"
    before = world.stack.stats(ended)[ended]
    with pytest.raises(http.client.IncompleteRead):
        world.ask("last", stream=True)
    eventually(lambda: world.stack.stats(ended)[ended] > before, "the limit of the tier ended it")


@pytest.mark.parametrize("thoughts", [0, 10], ids=["silent", "thinking"])
def test_a_client_is_answered_while_a_judged_model_thinks(world: World, thoughts: int) -> None:
    """The model needs 2 s for its first words, and writes the last one when the client has the headers."""
    world.upstreams.received.clear()
    gap_s, answered = 2 / thoughts if thoughts else 1.0, threading.Event()
    world.script(plain=Script(words=3, thoughts=thoughts, gap_s=gap_s, until=answered))
    connection = http.client.HTTPConnection("127.0.0.1", world.stack.port, timeout=30)
    body = msgspec.json.encode(body_of(CHAT, EXTRACT) | {"stream": True})
    connection.request("POST", CHAT, body, _CLIENT | {"content-type": "application/json"})
    answer = connection.getresponse()
    answered.set()
    verdict = (answer.headers["x-cascade-verdict"], answer.headers["x-cascade-reason"])
    assert (answer.status, verdict, answer.read().count(b"data: ")) == (200, ("degraded", "slow"), thoughts + 4)
    connection.close()
    assert world.tiers == ["plain"]


def test_requests_about_a_response_have_the_path_and_the_keys_of_its_tier(world: World) -> None:
    world.script(based=Script(body=b'{"id": "resp_based", "object": "response", "output": []}'))
    assert world.ask("based", RESPONSES).headers["x-router-tier"] == "based"
    path = "/v1/responses/resp_based/input_items?limit=2"
    eventually(lambda: _asked(world, path).headers["x-router-tier"] == "based", "its maker is known")
    received = world.upstreams.received[-1]
    assert (received.path, *_keys(received)) == (path.replace("/v1", "/openai/v1"), "api-key")
    assert _asked(world, path.replace("based", "unknown")).headers["x-router-tier"] == "plain"
    assert world.upstreams.received[-1].path == path.replace("based", "unknown")


def _asked(world: World, path: str) -> Answer:
    return send(world.stack.port, path, None, _CLIENT, "GET")


def test_a_tier_may_have_its_own_limit(world: World) -> None:
    """Its answer comes after the limit of the others."""
    world.script(patient=Script(wait_s=_ATTEMPT_S + 0.4))
    assert (world.ask("patient").status, world.tiers) == (200, ["patient"])


@pytest.mark.parametrize("name", ["plain", "last"])
def test_the_limit_of_attempts_does_not_hold_on_opened_paths(world: World, name: str) -> None:
    """An upstream that draws a picture is silent for as long as it takes. The second tier has a key of its own."""
    world.script(**{name: Script(wait_s=_ATTEMPT_S + 0.4)})
    answer = send(world.stack.port, f"/v1/images/{name}", b"{}", _CLIENT)
    assert (answer.status, world.upstreams.received[-1].tier) == (200, name)
    assert _keys(world.upstreams.received[-1]) == _CLIENT


def test_a_late_answer_moves_on_and_the_last_tier_is_not_asked_twice(world: World) -> None:
    world.script(plain=[FINE, Script(wait_s=9)])
    world.ask("plain")  # its connection is reused
    assert (world.ask("plain").status, world.tiers) == (200, ["plain", "repeated"])
    world.script(last=[Script(wait_s=9)] * 2)
    answer = world.ask("last")
    assert answer.status == 504
    assert world.tiers == ["last"]


def test_the_log_has_the_path_of_the_client(world: World) -> None:
    """Not the one below the base path of a tier. A refused key is logged under the name of its tier."""
    world.script(keyed=Script(401))
    world.ask("keyed")
    eventually(lambda: '"path":"/v1/chat/completions"' in world.stack.log("envoy.log"), "it is logged")
    assert "openai/chat" not in world.stack.log("envoy.log")
    refused = "tier keyed: the upstream refused the key of this tier with status 401"
    eventually(lambda: refused in world.stack.log("envoy.err"), "it is logged")
    assert "sk-" not in world.stack.log("envoy.err") + world.stack.log("envoy.log")
