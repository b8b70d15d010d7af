"""The rendering for Envoys before 1.40, on the oldest of them, and the API keys that tiers see, on any Envoy."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from extproc.config.load import load_config
from extproc.demo.stack import Stack
from extproc.envoy.bootstrap import render_envoy
from extproc.envoy.unsupported import Cascade
from tests.e2e.faulty_upstream import FaultyUpstreams, ask, new_id, text_of, write_intents
from tests.e2e.nameserver import NameServer
from tests.e2e.traffic import CHAT, REPOSITORY, eventually

_RULES = "accept: [complete, non_empty, no_refusal]"
_COHORTS = {
    "plain": "tier: small",
    "large": "tier: large",
    "climb": f"tier: small\nreasoning: off\n{_RULES}\nescalate:\n  to: [{{tier: small, reasoning: on}}, large]\n"
    "  max: 2\n  share: 1",
    "three": f"tier: small\n{_RULES}\nescalate: {{to: [large, frontier], max: 2, share: 1}}",
}
_PERSON = f"tier: small\n{_RULES}\nescalate: {{to: human}}"
# `make` installs them there, separate from the one that the product needs.
_OLD = sorted((REPOSITORY / ".venv").glob("envoy-*/envoy/_bin/envoy"))
_OLDEST: dict[Cascade, str] = {"none": "envoy-1.36", "composite": "envoy-1.37", "priorities": "envoy-1.37"}


def _on(*cascades: Cascade) -> list[Any]:
    """Run with each of these cascades, on the oldest Envoy that supports it, or on the installed one."""
    pairs: list[tuple[Cascade, str | None]] = []
    for cascade in cascades:
        fit = [path for path in _OLD if path.parents[2].name.startswith(_OLDEST.get(cascade, "ours"))]
        pairs.append((cascade, str(fit[0]) if fit else None))
    return [pytest.param(pair, id=pair[0]) for pair in pairs]


class Older:
    """A router and upstreams that all Envoys here share, and the Envoys, which start on demand."""

    def __init__(self, folder: Path, stack: Stack, prompts: dict[str, str]) -> None:
        self.folder, self.stack, self.prompts = folder, stack, prompts
        self.upstreams: FaultyUpstreams = stack.upstreams  # type: ignore[assignment]
        self._running: dict[Any, Stack] = {}

    def envoy(
        self, cascade: Cascade, binary: str | None, router: bool = True, lacks: str = "",
        names: NameServer | None = None,
    ) -> Stack:  # fmt: skip
        """Return an Envoy with that cascade. `lacks` is an intent that it was rendered without.

        With `names`, the first tier has a name, which that server resolves.
        """
        key = (cascade, router, lacks, names is not None)
        if key not in self._running:
            folder = self.folder / "-".join(map(str, key))
            beside = Stack(self.stack.intents, folder, self.stack.upstreams)
            (beside.intents / f"{lacks}.yaml").unlink(missing_ok=True)
            if router:
                beside.router_port, beside.router = self.stack.router_port, self.stack.router
            config = load_config(beside.intents)
            addresses = f"127.0.0.1:{beside.port}", [f"127.0.0.1:{beside.router_port}"]
            rendered = render_envoy(config, *addresses, f"127.0.0.1:{beside.admin_port}", None, cascade=cascade)
            self._running[key] = beside
            bootstrap = yaml.load(rendered, yaml.CSafeLoader)
            if names is not None:
                name_first_tier(bootstrap, names)
            beside.start_envoy(bootstrap, binary=binary)
        return self._running[key]

    def ask(self, envoy: Stack, cohort: str, stream: bool = False, **script: Any) -> Any:
        """Send a request with this script. Return (the tier that served it, wire, reading)."""
        more, headers = script.pop("more", {}), script.pop("headers", None)
        script.setdefault("id", new_id())
        wire, reading = ask(envoy, self.prompts[cohort], script, stream, headers=headers, **more)
        return self.upstreams.attempts(script["id"]), wire, reading

    def stop(self) -> None:
        for beside in self._running.values():
            beside.router = None  # the other stack ends it
            beside.stop()


def name_first_tier(bootstrap: dict[str, Any], names: NameServer) -> None:
    """Let Envoy find the first host of the tier `small` by a name, in every cluster that has it."""
    resolver = {
        "@type": "type.googleapis.com/envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig",
        "resolvers": [{"socket_address": {"address": "127.0.0.1", "port_value": names.port}}],
        "dns_resolver_options": {"no_default_search_domain": True},
    }
    for cluster in bootstrap["static_resources"]["clusters"]:
        if cluster["name"] == "small" or (cluster["name"].startswith("small+") and "load_assignment" in cluster):
            first = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]
            first["address"]["socket_address"]["address"] = "small.test"
            cluster |= {"type": "STRICT_DNS", "dns_refresh_rate": "0.1s"}
            cluster["typed_dns_resolver_config"] = {
                "name": "envoy.network.dns_resolver.cares",
                "typed_config": resolver,
            }


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Older]:
    folder = tmp_path_factory.mktemp("older")
    policy = f"escalations: {{per_minute: 1000000, burst: 1000000}}\nhuman: {{queue: '{folder}/review.jsonl'}}\n"
    prompts = write_intents(folder / "written", _COHORTS | {"person": _PERSON}, policy)
    (folder / "key").write_text("Bearer of the small tier")
    file = folder / "written" / "policy.yaml"
    key = f"{{file: {folder / 'key'}, scheme: none}}"
    file.write_text(file.read_text().replace("{name: small,", f"{{name: small, key: {key},"))
    with contextlib.ExitStack() as ending:
        stack = Stack(folder / "written", folder, ending.enter_context(FaultyUpstreams()))  # type: ignore[arg-type]
        ending.callback(stack.stop)
        stack.start_router()
        found = Older(folder, stack, prompts)
        ending.callback(found.stop)
        yield found


@pytest.mark.parametrize("stream", [False, True], ids=["json", "sse"])
@pytest.mark.parametrize("on", _on("composite", "priorities"))
def test_each_rung_of_a_ladder_is_climbed(older: Older, on: tuple[Cascade, str | None], stream: bool) -> None:
    """The same tier with reasoning, then the next one. Each is judged and has its own model and exact bytes."""
    arrived, wire, reading = older.ask(
        older.envoy(*on), "climb", stream, small=["refuses", "empty_content"], more={"pad": "x" * 5_000_000}
    )
    bodies = [msgspec.json.decode(r.body) for r in arrived]
    assert [(r.tier, body["model"]) for r, body in zip(arrived, bodies, strict=True)] == [
        ("small", "qwen3-8b"), ("small", "qwen3-8b"), ("large", "qwen3-32b"),
    ]  # fmt: skip
    assert [b["chat_template_kwargs"]["enable_thinking"] for b in bodies] == [False, True, False]
    assert (reading.problems, reading.text) == ([], text_of("large", bodies[0]["metadata"]["id"], 6))
    assert {n: v for n, v in wire.headers.items() if n.startswith(("x-router-", "x-cascade-"))} == {
        "x-router-cohort": "climb", "x-router-reason": "matched", "x-router-tier": "large",
        "x-router-attempts": "3", "x-router-escalations": "2", "x-cascade-reason": "empty",
    }  # fmt: skip


@pytest.mark.parametrize("on", _on("composite", "priorities"))
def test_failures_climb_and_what_is_left_is_the_best_answer(older: Older, on: tuple[Cascade, str | None]) -> None:
    """A refused connection goes one rung up. If the last rung fails, the client gets the rejected answer."""
    arrived, wire, _ = older.ask(older.envoy(*on), "plain", small="reset_before_headers")
    assert ([r.tier for r in arrived], wire.headers["x-router-tier"]) == (["small", "large"], "large")
    arrived, wire, _ = older.ask(
        older.envoy(*on), "three", small="refuses", large="status_503", frontier="status_503"
    )
    assert ([r.tier for r in arrived], wire.status) == (["small", "large", "frontier"], 200)
    assert (wire.headers["x-router-tier"], wire.headers["x-cascade-verdict"]) == ("small", "degraded")


@pytest.mark.parametrize("on", _on("composite", "priorities"))
def test_a_tier_without_hosts_is_climbed_over(older: Older, on: tuple[Cascade, str | None]) -> None:
    """The next tier gets its own body and not the key of the first. While the first has a host, it is asked."""
    with NameServer("127.0.0.1") as names:
        envoy = older.envoy(*on, names=names)
        for _ in range(10):
            [one], *_ = older.ask(envoy, "plain")
            assert one.tier == "small"
        names.host = None

        def climbed() -> Any:
            asked = older.ask(envoy, "plain")
            return asked if asked[0][0].tier == "large" else None

        arrived, wire, reading = eventually(climbed, "the name has no host")
        assert (len(arrived), wire.headers["x-router-attempts"], reading.problems) == (1, "2", [])
        assert msgspec.json.decode(arrived[0].body)["model"] == "qwen3-32b"
        assert "small tier" not in arrived[0].headers["authorization"]


@pytest.mark.parametrize("on", _on("composite", "priorities"))
def test_a_case_for_a_person_is_put_aside(older: Older, on: tuple[Cascade, str | None]) -> None:
    """It is queued for review, although its ladder has a single rung."""
    _, wire, _ = older.ask(older.envoy(*on), "person", True, small="refuses")
    assert (wire.status, wire.headers["x-cascade-verdict"]) == (422, "human")


@pytest.mark.parametrize("on", _on("composite", "priorities"))
def test_a_ladder_newer_than_the_file_is_served_and_not_climbed(
    older: Older, on: tuple[Cascade, str | None]
) -> None:
    """The intent was written after Envoy's bootstrap was rendered."""
    envoy = older.envoy(*on, lacks="three")
    arrived, wire, _ = older.ask(envoy, "three", small="refuses")
    assert ([r.tier for r in arrived], wire.status) == (["small"], 200)
    assert wire.headers["x-cascade-verdict"] == "degraded"


@pytest.mark.parametrize("on", _on("none"))
@pytest.mark.parametrize(("cohort", "model"), [("climb", "qwen3-8b"), ("large", "qwen3-32b")])
def test_without_a_cascade_requests_are_routed(
    older: Older, on: tuple[Cascade, str | None], cohort: str, model: str
) -> None:
    """They go to the cohort's tier with its model name and reasoning. The answer is not judged."""
    [one], wire, reading = older.ask(older.envoy(*on, lacks="person"), cohort, small="refuses")
    body = msgspec.json.decode(one.body)
    assert (body["model"], one.headers["content-length"]) == (model, str(len(one.body)))
    assert body.get("chat_template_kwargs") == ({"enable_thinking": False} if cohort == "climb" else None)
    assert (reading.problems, wire.headers["x-router-cohort"]) == ([], cohort)
    assert "x-cascade-verdict" not in wire.headers


@pytest.mark.parametrize("on", _on("none", "composite", "priorities"))
def test_a_client_cannot_name_the_ladder(older: Older, on: tuple[Cascade, str | None]) -> None:
    """A client cannot set the header between the Lua filter and the route."""
    lacks = "person" if on[0] == "none" else ""
    spoofed = {"x-router-ladder": "frontier", "x-router-cluster": "frontier"}
    [one], *_ = older.ask(older.envoy(*on, lacks=lacks), "plain", headers=spoofed)
    assert one.tier == "small"


@pytest.mark.parametrize("on", _on("none", "composite", "priorities"))
def test_without_a_router_the_default_tier_serves(older: Older, on: tuple[Cascade, str | None]) -> None:
    """It gets its own model name."""
    envoy = older.envoy(*on, router=False, lacks="person" if on[0] == "none" else "")
    [one], wire, reading = older.ask(envoy, "plain")
    assert (one.tier, msgspec.json.decode(one.body)["model"]) == ("large", "qwen3-32b")
    assert (reading.problems, wire.headers["x-router-reason"]) == ([], "fail_open")


@pytest.mark.parametrize("on", _on("priority-group", "composite", "priorities"))
@pytest.mark.parametrize(
    "key", [{"authorization": "Bearer of a client", "cookie": "s=1"}, {"x-api-key": "a", "api-key": "b"}, {}]
)
def test_a_key_is_seen_by_the_tiers_that_it_is_for(
    older: Older, on: tuple[Cascade, str | None], key: dict[str, str]
) -> None:
    """Only the tier itself sees its key. Tiers without a key see the client's, in any order of attempts."""
    query = {"query": "?beta=true&key=K&a%70i_key=L"}
    arrived, *_ = older.ask(
        older.envoy(*on), "three", small="refuses", large="status_500", headers={"a": "b"} | key, more=query
    )
    names = ("authorization", "cookie", "x-api-key", "api-key")
    seen = [(r.tier, r.path, {k: v for k, v in r.headers.items() if k in names}) for r in arrived]
    whole = CHAT + query["query"]
    assert seen == [
        ("small", f"{CHAT}?beta=true", {"authorization": "Bearer of the small tier"}),
        ("large", whole, key), ("frontier", whole, key),
    ]  # fmt: skip
    assert not [n for r in arrived for n in r.headers if n.startswith(("x-router-", "x-cascade-", "x-envoy-"))]


@pytest.mark.parametrize(
    ("version", "settings", "line", "what"),
    [
        (
            "1.39", "escalate: {to: [large, frontier], max: 2, skip: [no_refusal]}", 5,
            "`skip` needs Envoy 1.40, because older ones cannot leave out a rung: remove it, or render for 1.40",
        ),
        (
            "1.36", "escalate: {to: human}", 5,
            "`to: human` needs a verifier, which Envoy has from 1.37 on: remove it, or render for a newer Envoy",
        ),
        (
            "1.36", "escalate: {to: large}", 4,
            "`logprob`, or a `score` with it, needs a verifier, which Envoy has from 1.37 on: remove it, or render "
            "for a newer Envoy",
        ),
    ],
    ids=["skip", "human", "logprob"],
)  # fmt: skip
def test_what_a_release_cannot_do_is_refused(
    tmp_path: Path, version: str, settings: str, line: int, what: str
) -> None:
    """The error has the line of the intent and a remedy. Nothing is printed to stdout."""
    accept = "accept: [no_refusal, {logprob: -3}]" if "logprob" in what else "accept: [no_refusal]"
    write_intents(tmp_path, {"odd": f"tier: small\n{accept}\n{settings}"}, "human: {}\n")
    command = [sys.executable, "-m", "extproc", "envoy", "--intents", str(tmp_path), "--version", version]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    wanted = f"{tmp_path}/odd.yaml:{line}: {what}\n1 problem in {tmp_path}\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", wanted)
