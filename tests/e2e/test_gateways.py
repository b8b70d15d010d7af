"""The cascade in the Envoys of Envoy Gateway and Istio, from the resources that `extproc envoy` renders for them.

There is no cluster here. `gateways` translates the resources by hand, and the Envoy that runs the result is that of
the gateway's version. All of them share a router and upstreams.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from extproc.config.load import load_config
from extproc.demo.stack import Stack
from extproc.envoy.bootstrap import as_yaml
from extproc.envoy.envoy_gateway import envoy_gateway
from extproc.envoy.istio import istio
from extproc.envoy.shared import SOCKET, Gateway
from tests.conftest import SUMMARY
from tests.e2e import gateways
from tests.e2e.faulty_upstream import (
    CHAT,
    FaultyUpstreams,
    ask,
    body_of,
    new_id,
    post,
    text_of,
    write_intents,
)  # fmt: skip
from tests.e2e.picker import Picker
from tests.e2e.test_conformance import (
    COHORTS,
    COLUMNS,
    FAULTS,
    FINE,
    JSON_FAULTS,
    SSE_FAULTS,
    Cell,
    Table,
    one_cell,
)  # fmt: skip
from tests.e2e.traffic import REPOSITORY

Dict = dict[str, Any]
HOST = "llm.example.com"
_RULES = "accept: [complete, non_empty, no_refusal]"
_COHORTS = COHORTS | {
    "three": f"tier: small\nreasoning: off\n{_RULES}\n"
    "escalate: {to: [{tier: small, reasoning: on}, large, frontier], max: 3, share: 1}",
    "person": f"tier: small\n{_RULES}\nescalate: {{to: human}}",
}
# The gateways and the releases of Envoy that they ship.
FORMS = {
    "envoy-gateway 1.7": "1.37", "envoy-gateway 1.8": "1.38", "envoy-gateway 1.9": "1.39", "istio 1.29": "1.37",
}  # fmt: skip
# The faults without a wait, so that the whole table takes seconds. `make bench-faults` runs the others, too.
_QUICK = tuple(
    fault
    for fault in (*FINE, *FAULTS, *JSON_FAULTS, *SSE_FAULTS)
    if "stalled" not in fault and "_in_time" not in fault
)


def binary_of(release: str) -> str | None:
    """Return an Envoy of this release, which `make` installs, or None for that of the product."""
    found = sorted((REPOSITORY / ".venv").glob(f"envoy-{release}.*/envoy/_bin/envoy"))
    return str(found[-1]) if found else None


def bootstrap_for(
    form: str, stack: Stack, keys: dict[str, Path], patched: bool = True, host: str = HOST, more: str = ""
) -> Dict:
    """Return the bootstrap of a gateway in front of a router and upstreams. `more` are further resources."""
    gateway = Gateway("semantic-router", "llm", "http", host)
    render = envoy_gateway if form.startswith("envoy-gateway") else istio
    config = load_config(stack.intents)
    documents = render(config, gateway, [f"127.0.0.1:{stack.router_port}"], None)
    # As users apply them, except for the socket: these gateways are not in pods, so each needs another name.
    applied = as_yaml(documents, config).replace(SOCKET, f"{SOCKET}-{stack.port}")
    documents = [*yaml.load_all(applied, yaml.CSafeLoader), *yaml.safe_load_all(more)]
    if not patched:
        documents = [
            d | ({"spec": d["spec"] | {"jsonPatches": []}} if "Patch" in d["kind"] else {}) for d in documents
        ]
    other = stack.upstreams.ports["large"]
    if render is istio:
        return gateways.istio(documents, stack.port, stack.admin_port, other)
    secrets = {f"extproc-key-{tier}": path for tier, path in keys.items()}
    return gateways.envoy_gateway(documents, stack.port, stack.admin_port, other, secrets)


class Gateways:
    """A router and upstreams, and the gateways that were started in front of them."""

    def __init__(self, folder: Path, stack: Stack, prompts: dict[str, str]) -> None:
        self.folder, self.stack, self.prompts = folder, stack, prompts
        self.upstreams: FaultyUpstreams = stack.upstreams  # type: ignore[assignment]
        self._running: dict[Any, Stack] = {}

    def envoy(self, form: str, patched: bool = True, router: bool = True) -> Stack:
        """Return a running gateway."""
        key = (form, patched, router)
        if key not in self._running:
            beside = Stack(self.stack.intents, self.folder / "-".join(map(str, key)), self.stack.upstreams)
            policy, keys = beside.intents / "policy.yaml", {}
            if form.startswith("istio"):  # it has no way to send a key
                written = yaml.safe_load(policy.read_text())
                written["tiers"] = [{k: v for k, v in tier.items() if k != "key"} for tier in written["tiers"]]
                policy.write_text(yaml.safe_dump(written))
            else:
                keys = {"small": self.folder / "key"}
            if router:
                beside.router_port, beside.router = self.stack.router_port, self.stack.router
            self._running[key] = beside
            beside.start_envoy(bootstrap_for(form, beside, keys, patched), binary=binary_of(FORMS[form]))
        return self._running[key]

    def ask(self, envoy: Stack, cohort: str, stream: bool = False, **script: Any) -> Any:
        """Send a request with this script. Return (the requests that arrived upstream, wire, reading)."""
        more, headers = script.pop("more", {}), script.pop("headers", {})
        script.setdefault("id", new_id())
        own = {"authorization": f"Bearer {script['id']}", "host": HOST} | headers
        wire, reading = ask(envoy, self.prompts[cohort], script, stream, headers=own, **more)
        return self.upstreams.attempts(script["id"]), wire, reading

    def stop(self) -> None:
        for beside in self._running.values():
            beside.router = None  # the other stack ends it
            beside.stop()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateways]:
    folder = tmp_path_factory.mktemp("gateways")
    policy = (
        f"escalations: {{per_minute: 1000000, burst: 1000000}}\nhuman: {{queue: '{folder}/review.jsonl'}}\n"
        "timeouts: {attempt_s: 6, request_s: 14}\n"
    )
    prompts = write_intents(folder / "written", _COHORTS, policy)
    (folder / "key").write_text("of the small tier\n")
    file = folder / "written" / "policy.yaml"
    file.write_text(file.read_text().replace("{name: small,", f"{{name: small, key: {{file: {folder / 'key'}}},"))
    with contextlib.ExitStack() as ending:
        stack = Stack(folder / "written", folder, ending.enter_context(FaultyUpstreams()))  # type: ignore[arg-type]
        ending.callback(stack.stop)
        stack.start_router()
        found = Gateways(folder, stack, prompts)
        ending.callback(found.stop)
        yield found


FORM = pytest.mark.parametrize("form", FORMS)


@FORM
@pytest.mark.parametrize("stream", [False, True], ids=["json", "sse"])
def test_each_rung_of_a_ladder_is_climbed(running: Gateways, form: str, stream: bool) -> None:
    """The body is larger than the gateway's buffer. Each attempt has its tier's model, and the last one's bytes."""
    arrived, wire, reading = running.ask(
        running.envoy(form), "three", stream, small=["refuses", "empty_content"], large="status_500",
        more={"pad": "x" * 3_000_000},
    )  # fmt: skip
    bodies = [msgspec.json.decode(r.body) for r in arrived]
    assert [(r.tier, body["model"]) for r, body in zip(arrived, bodies, strict=True)] == [
        ("small", "qwen3-8b"), ("small", "qwen3-8b"), ("large", "qwen3-32b"), ("frontier", "frontier-1"),
    ]  # fmt: skip
    assert (reading.problems, reading.text) == ([], text_of("frontier", bodies[0]["metadata"]["id"], 6))
    said = {n: v for n, v in wire.headers.items() if n.startswith(("x-router-", "x-cascade-"))}
    assert (said["x-router-tier"], said["x-router-attempts"], said["x-router-escalations"]) == (
        "frontier",
        "4",
        "2",
    )
    assert not [n for r in arrived for n in r.headers if n.startswith(("x-router-", "x-cascade-", "x-envoy-"))]


@pytest.mark.parametrize("form", [form for form in FORMS if form.startswith("envoy-gateway")])
def test_only_the_tier_itself_sees_its_key(running: Gateways, form: str) -> None:
    """The gateway delivers it as a secret. Tiers without a key see the client's."""
    arrived, *_ = running.ask(running.envoy(form), "three", small="refuses", large="status_500",
                              headers={"authorization": "Bearer of a client"})  # fmt: skip
    assert [(r.tier, r.headers["authorization"]) for r in arrived] == [
        ("small", "Bearer of the small tier"), ("small", "Bearer of the small tier"),
        ("large", "Bearer of a client"), ("frontier", "Bearer of a client"),
    ]  # fmt: skip


@FORM
def test_a_case_for_a_person_is_put_aside(running: Gateways, form: str) -> None:
    _, wire, _ = running.ask(running.envoy(form), "person", True, small="refuses")
    assert (wire.status, wire.headers["x-cascade-verdict"]) == (422, "human")


@FORM
def test_a_client_cannot_name_a_tier(running: Gateways, form: str) -> None:
    """Headers of the contract are taken from clients, and they reach the cohort's tier."""
    spoofed = {"x-router-ladder": "frontier", "x-router-cluster": "frontier", "x-envoy-max-retries": "9"}
    [one], *_ = running.ask(running.envoy(form), "unjudged", headers=spoofed)
    assert one.tier == "small"


@FORM
def test_other_paths_are_closed(running: Gateways, form: str) -> None:
    """On our host, a path that is not served is answered with 404, as in a separate Envoy, and asks no upstream."""
    before = len(running.upstreams.received)
    wire = asyncio.run(post(running.envoy(form).port, "/v1/embeddings", b"{}", {"host": HOST}))
    assert (wire.status, len(running.upstreams.received)) == (404, before)
    assert msgspec.json.decode(wire.body)["error"]["type"] == "invalid_request_error"


@FORM
def test_other_hosts_of_the_gateway_are_left_alone(running: Gateways, form: str) -> None:
    """Their requests keep every byte and header, on the path of an API, too, and the router sees none of them."""
    envoy = running.envoy(form)
    request_id = new_id()
    body = body_of(CHAT, running.prompts["early"], False, {"id": request_id})
    headers = {"host": "other.test", "authorization": "Bearer of a client", "x-router-cluster": "kept"}
    wire = asyncio.run(post(envoy.port, CHAT, body, headers))
    [arrived] = running.upstreams.attempts(request_id)
    assert (arrived.tier, arrived.body, arrived.headers["x-router-cluster"]) == ("large", body, "kept")
    assert not [name for name in wire.headers if name.startswith(("x-router-", "x-cascade-"))]


@pytest.mark.parametrize("form", ["envoy-gateway 1.9", "istio 1.29"])
def test_without_the_router_the_default_tier_serves(running: Gateways, form: str) -> None:
    """It gets its own model name."""
    [one], wire, reading = running.ask(running.envoy(form, router=False), "early")
    assert (one.tier, msgspec.json.decode(one.body)["model"]) == ("large", "qwen3-32b")
    assert (reading.problems, wire.headers["x-router-reason"]) == ([], "fail_open")


@pytest.mark.parametrize("form", ["envoy-gateway 1.9"])
def test_without_our_patch_nothing_leaves_the_gateway(running: Gateways, form: str) -> None:
    """The client gets an error. No upstream sees its key, or the tier's."""
    arrived, wire, _ = running.ask(running.envoy(form, patched=False, router=False), "early")
    assert (arrived, wire.status) == ([], 503)


def test_an_endpoint_picker_behind_a_tier_is_asked_for_each_attempt(running: Gateways, tmp_path: Path) -> None:
    """It gets the body of the attempt, with the tier's model. Attempts at other tiers do not ask it."""
    overlay = REPOSITORY / "deploy/k8s/overlays/envoy-gateway/inference-pool.yaml"
    with Picker(f"127.0.0.1:{running.upstreams.ports['small']}") as picker:
        service = "{address: small-epp.semantic-router.svc.cluster.local, port_value: 9002}"
        assert service in overlay.read_text()
        pool = overlay.read_text().replace(service, f"{{address: 127.0.0.1, port_value: {picker.port}}}")
        beside = Stack(running.stack.intents, tmp_path / "pool", running.stack.upstreams)
        beside.router_port, beside.router = running.stack.router_port, running.stack.router
        pool = pool.replace(SOCKET, f"{SOCKET}-{beside.port}")
        bootstrap = bootstrap_for("envoy-gateway 1.9", beside, {"small": running.folder / "key"}, more=pool)
        try:
            beside.start_envoy(bootstrap, binary=binary_of("1.39"))
            spoofed = {"x-gateway-destination-endpoint": f"127.0.0.1:{running.upstreams.ports['frontier']}"}
            arrived, _, reading = running.ask(
                beside, "three", True, small=["refuses", "empty_content"], headers=spoofed
            )
        finally:
            beside.router = None  # the other stack ends it
            beside.stop()
    assert ([r.tier for r in arrived], reading.problems) == (["small", "small", "large"], [])
    assert [msgspec.json.decode(body)["model"] for body in picker.bodies] == ["qwen3-8b", "qwen3-8b"]
    assert picker.bodies == [r.body for r in arrived[:2]]


def test_ai_gateway_behind_the_tiers_routes_each_attempt_by_its_model(running: Gateways, tmp_path: Path) -> None:
    """Its own filter copies the model of the body into a header, and its routes match that header.

    A listener takes its place here, with that filter in Lua. Both tiers have its address.
    """
    beside = Stack(running.stack.intents, tmp_path / "ai", running.stack.upstreams)
    beside.router_port, beside.router = running.stack.router_port, running.stack.router
    policy = beside.intents / "policy.yaml"
    written = yaml.safe_load(policy.read_text())
    for tier in written["tiers"]:
        tier["url"] = f"http://127.0.0.1:{beside.plain_port}"
    policy.write_text(yaml.safe_dump(written))
    bootstrap = bootstrap_for("envoy-gateway 1.9", beside, {"small": running.folder / "key"})
    models = {"qwen3-8b": "small", "qwen3-32b": "large", "frontier-1": "frontier"}
    ports = {f"ai/{model}": running.upstreams.ports[tier] for model, tier in models.items()}
    gateways.add_ai_gateway(bootstrap, beside.plain_port, ports)
    try:
        beside.start_envoy(bootstrap, binary=binary_of("1.39"))
        arrived, wire, reading = running.ask(beside, "three", small="refuses", large="status_500")
    finally:
        beside.router = None  # the other stack ends it
        beside.stop()
    assert [r.headers["x-ai-eg-model"] for r in arrived] == ["qwen3-8b", "qwen3-8b", "qwen3-32b", "frontier-1"]
    assert [r.tier for r in arrived] == ["small", "small", "large", "frontier"]
    assert (wire.headers["x-router-tier"], reading.problems) == ("frontier", [])


@FORM
def test_the_faults_of_the_first_tier(
    running: Gateways, form: str, record_property: Callable[[str, object], None]
) -> None:
    """Every fault before the first byte is recovered, as without a gateway, and no judged answer is wrong."""
    table = asyncio.run(_quick_table(running, running.envoy(form)))
    counts = {kind: sum(c.outcome == kind for c in table.cells) for kind in ("recovered", "served", "honest")}
    record_property(SUMMARY, f"{form}, Envoy {FORMS[form]}, faults of the first tier: {counts}")
    wrong = {
        (c.fault, c.column): c.detail or c.outcome for c in table.cells if c.outcome not in ("recovered", "served")
    }
    assert set(wrong) <= {("length_too_long", "judged sse, early")}
    assert counts["recovered"] >= 50


async def _quick_table(running: Gateways, envoy: Stack) -> Table:
    """Return the outcomes of the faults that take no time, for judged JSON and streams judged early."""
    enough = asyncio.Semaphore(12)

    async def one(column: tuple[str, str, bool], fault: str) -> Cell:
        async with enough:
            return await one_cell(envoy, running.prompts, column, fault, 6, CHAT, {"host": HOST})

    left_out = {False: SSE_FAULTS, True: JSON_FAULTS}
    jobs = [
        one(column, fault) for column in COLUMNS[:2] for fault in _QUICK if fault not in left_out[column[2]]
    ]  # fmt: skip
    return Table(list(await asyncio.gather(*jobs)))
