"""The output of `extproc envoy` for Envoy Gateway and Istio: its names, the extensions that it needs, refusals."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from extproc.cli.main import main
from extproc.config.load import load_config
from extproc.envoy.shared import ROUTER, SOCKET, UNPATCHED_HOST
from tests.e2e.gateways import TRANSLATED

SAMPLES = Path(__file__).parents[2] / "intents"
HOST = "llm.example.com"
_GATEWAY_API = ["--host", HOST, "--gateway", "infra/public/https"]
# The extensions of Envoy that the form for Istio needs, by the type of their settings. Before you add one, look for
# it in the list of Istio's build (bazel/extension_config/extensions_build_config.bzl of istio/proxy).
ISTIO_NEEDS = {
    "envoy.extensions.access_loggers.filters.cel.v3.ExpressionFilter",
    "envoy.extensions.access_loggers.grpc.v3.HttpGrpcAccessLogConfig",
    "envoy.extensions.access_loggers.stream.v3.StdoutAccessLog",
    "envoy.extensions.common.matching.v3.ExtensionWithMatcher",
    "envoy.extensions.compression.brotli.decompressor.v3.Brotli",
    "envoy.extensions.compression.gzip.decompressor.v3.Gzip",
    "envoy.extensions.compression.zstd.decompressor.v3.Zstd",
    "envoy.extensions.filters.common.matcher.action.v3.SkipFilter",
    "envoy.extensions.filters.http.buffer.v3.Buffer",
    "envoy.extensions.filters.http.buffer.v3.BufferPerRoute",
    "envoy.extensions.filters.http.decompressor.v3.Decompressor",
    "envoy.extensions.filters.http.ext_proc.v3.ExtProcPerRoute",
    "envoy.extensions.filters.http.ext_proc.v3.ExternalProcessor",
    "envoy.extensions.filters.http.header_mutation.v3.HeaderMutation",
    "envoy.extensions.filters.http.header_mutation.v3.HeaderMutationPerRoute",
    "envoy.extensions.filters.http.lua.v3.Lua",
    "envoy.extensions.filters.http.lua.v3.LuaPerRoute",
    "envoy.extensions.filters.http.router.v3.Router",
    "envoy.extensions.filters.http.set_filter_state.v3.Config",
    "envoy.extensions.filters.http.upstream_codec.v3.UpstreamCodec",
    "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
    "envoy.extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation",
    "envoy.extensions.matching.common_inputs.network.v3.DynamicMetadataInput",
    "envoy.extensions.matching.input_matchers.metadata.v3.Metadata",
    "envoy.extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig",
    "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer",
    "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
    "envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
}


def edited(folder: Path, **large: Any) -> Path:
    """The sample intents, with other settings of the tier `large`."""
    shutil.copytree(SAMPLES, folder / "intents")
    file = folder / "intents" / "policy.yaml"
    policy = yaml.safe_load(file.read_text())
    policy["tiers"] = [tier | (large if tier["name"] == "large" else {}) for tier in policy["tiers"]]
    file.write_text(yaml.safe_dump(policy))
    return folder / "intents"


def rendered(capsys: pytest.CaptureFixture[str], intents: Path, *options: str) -> str:
    capsys.readouterr()
    assert main(["envoy", "--intents", str(intents), *options]) == 0
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], intents: Path, *options: str) -> str:
    capsys.readouterr()
    assert main(["envoy", "--intents", str(intents), *options]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    return printed.err


APPS = """
apps:
  care: {hosts: ["*.example.com"], headers: {x-app: care}, tiers: [large]}
  support:
    hosts:
      - llm.example.com
      - support.example.com
"""


@pytest.mark.parametrize("form", ["envoy-gateway", "istio"])
def test_an_app_whose_host_does_not_reach_the_router_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, form: str
) -> None:
    """Its requests would never come. The other apps and hosts are rendered."""
    intents = edited(tmp_path)
    policy = intents / "policy.yaml"
    text = policy.read_text() + APPS
    policy.write_text(text)
    line = text.splitlines().index("      - support.example.com") + 1
    assert refused(capsys, intents, "--for", form, "--host", HOST) == (
        f"{policy}:{line}: app `support` has the host `support.example.com`, and only requests of --host {HOST} "
        "reach the router: remove it, distinguish apps by `headers`, or use a separate Envoy\n"
        f"1 problem in {intents}\n"
    )
    policy.write_text(text.replace("      - support.example.com\n", ""))
    assert "request.headers['x-app']" in rendered(capsys, intents, "--for", form, "--host", HOST)


def test_nothing_of_a_tier_vanishes_in_a_gateway(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The base path, the name for TLS, the header and scheme of the key, and the weights are in the patch."""
    intents = edited(
        tmp_path, url="https://api.example/openai/v1", sni="tls.example",
        key={"file": "/secret/large", "header": "x-goog-api-key", "scheme": "Token"},
    )  # fmt: skip
    text = rendered(capsys, intents, "--for", "envoy-gateway", "--host", HOST)
    for part in ("/openai/v1", "sni: tls.example", "header: x-goog-api-key", '"Token "', "httproutefilter"):
        assert part in text.replace('\\"', '"'), part
    istio = edited(tmp_path / "istio", url="https://api.example/openai/v1", sni="tls.example")
    text = rendered(capsys, istio, "--for", "istio", "--host", HOST)
    assert "/openai/v1" in text and "sni: tls.example" in text


def test_two_tiers_with_one_secret_are_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Names of Kubernetes have fewer characters than those of tiers."""
    intents = edited(tmp_path, key={"file": "/secret/large"})
    policy = intents / "policy.yaml"
    tiers = yaml.safe_load(policy.read_text())
    large = next(tier for tier in tiers["tiers"] if tier["name"] == "large")
    tiers["tiers"] += [large | {"name": "Large", "url": "http://other:8000"}]
    policy.write_text(yaml.safe_dump(tiers))
    said = refused(capsys, intents, "--for", "envoy-gateway", "--host", HOST)
    assert "the Secret of the key of tier `Large` would be extproc-key-large, as that of `large`: rename" in said


@pytest.mark.parametrize("version", ["1.7", "1.8", "1.9"])
def test_envoy_gateway_gets_a_patch_by_the_names_of_its_version(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, version: str
) -> None:
    """The patch adds one listener and clusters, and changes one route. A key is named, and its file is not read."""
    intents = edited(tmp_path, key={"file": "/secret/large", "header": "x-api-key"})
    text = rendered(capsys, intents, "--for", "envoy-gateway", "--version", version, *_GATEWAY_API)
    documents = {d["kind"]: d for d in yaml.load_all(text, yaml.CSafeLoader)}
    assert documents.keys() <= TRANSLATED.keys()
    route, patch, key = (documents[kind] for kind in ("HTTPRoute", "EnvoyPatchPolicy", "HTTPRouteFilter"))
    assert route["spec"]["parentRefs"] == [{"name": "public", "namespace": "infra", "sectionName": "https"}]
    assert route["spec"]["hostnames"] == [HOST]
    assert documents["Backend"]["spec"]["endpoints"] == [{"fqdn": {"hostname": UNPATCHED_HOST, "port": 80}}]
    assert (patch["metadata"]["namespace"], patch["spec"]["targetRef"]["name"]) == ("infra", "public")
    assert key["spec"]["credentialInjection"]["credential"]["valueRef"]["name"] == "extproc-key-large"
    operations = [(p["type"].rpartition(".")[2], p["name"], p["operation"]) for p in patch["spec"]["jsonPatches"]]
    listener, *others = operations
    assert (listener[0], listener[2]["value"]["address"]) == ("Listener", {"pipe": {"path": SOCKET}})
    here = "..routes[?(@.name=='httproute/semantic-router/llm/rule/0/match/0/llm_example_com')]"
    changed = [(name, op["op"], op["jsonPath"], op["path"], op["value"]) for _, name, op in others if op["path"]]
    assert changed == [
        ("infra/public/https", "add", here, "/route/idle_timeout", "0s"),
        ("infra/public/https", "replace", here, "/route/cluster", f"extproc/{HOST}"),
    ]
    assert all(kind == "Cluster" and op["op"] == "add" for kind, _, op in others if not op["path"])
    assert "/secret/large" not in text
    assert text.count("credential_injector/credential/httproutefilter/semantic-router/extproc-key-large") >= 1


def test_istio_gets_what_its_build_of_envoy_has(capsys: pytest.CaptureFixture[str]) -> None:
    """It lacks the composite cluster, the priority-group specifier, and the filters for tokens and the model."""
    text = rendered(capsys, SAMPLES, "--for", "istio", *_GATEWAY_API)
    assert set(re.findall(r"type.googleapis.com/(envoy\.extensions\.[\w.]+)", text)) == ISTIO_NEEDS
    documents = {d["kind"]: d for d in yaml.load_all(text, yaml.CSafeLoader)}
    assert documents.keys() <= TRANSLATED.keys()
    assert documents["VirtualService"]["spec"]["gateways"] == ["infra/public"]
    patches = documents["EnvoyFilter"]["spec"]["configPatches"]
    assert [p["match"] for p in patches if p["applyTo"] == "HTTP_ROUTE"] == [
        {
            "context": "GATEWAY",
            "routeConfiguration": {"vhost": {"name": f"{HOST}:{port}", "route": {"name": "llm"}}},
        }
        for port in (80, 443)
    ]
    assert {(p["applyTo"], p["patch"]["operation"]) for p in patches if p["applyTo"] != "HTTP_ROUTE"} == {
        ("LISTENER", "ADD"), ("CLUSTER", "ADD"),
    }  # fmt: skip


def test_services_have_their_whole_names(capsys: pytest.CaptureFixture[str]) -> None:
    """The gateway's pods are in another namespace than the tiers and the router."""
    text = rendered(capsys, SAMPLES, "--for", "istio", *_GATEWAY_API)
    addresses = set(re.findall(r"address: ([a-z][\w.-]*)$", text, re.M))
    tiers = {tier.addresses[0].host for tier in load_config(SAMPLES).policy.tiers}
    inside = "semantic-router.svc.cluster.local"
    assert addresses == {host if "." in host else f"{host}.{inside}" for host in tiers} | {ROUTER.partition(":")[0]}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--for", "envoy-gateway", "--version", "1.6", "--host", HOST],
            "--version 1.6: expected one of 1.7, 1.8, 1.9 for envoy-gateway: give the last one if yours is newer",
        ),
        (
            ["--version", "1.41"],
            "--version 1.41: expected one of 1.36, 1.37, 1.38, 1.39, 1.40 for envoy: give the last",
        ),
        (["--for", "istio"], "--for istio needs the host that clients send to: give --host, as in llm.example.com"),
        (["--host", HOST], "--host is for a gateway in Kubernetes: give --for envoy-gateway or --for istio, too"),
        (
            ["--for", "istio", "--host", HOST, "--admin", "127.0.0.1:9901"],
            "--admin is for --for envoy: remove it, as the gateway has its own setting",
        ),
    ],
)
def test_options_that_do_not_fit_are_refused(
    capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert message in refused(capsys, SAMPLES, *options)


@pytest.mark.parametrize("given", ["1.8.4", "v1.8.4", "v1.8"])
def test_a_patch_release_is_that_of_its_version(capsys: pytest.CaptureFixture[str], given: str) -> None:
    options = ["--for", "envoy-gateway", "--host", HOST, "--version"]
    rendered = []
    for version in ("1.8", given):
        assert main(["envoy", "--intents", str(SAMPLES), *options, version]) == 0
        rendered.append(capsys.readouterr().out)
    assert rendered[0] == rendered[1]
