"""Kubernetes accepts the manifests in deploy/k8s, and they have the properties that an operator needs."""

import base64
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from extproc.config.load import Config, ConfigError, load_config
from extproc.routing.centroid_file import CENTROIDS_FILE, Header, Matcher, encode_centroids
from tests.deploy.manifests import (
    MESH_KINDS,
    OVERLAYS,
    REPOSITORY,
    VERSIONS,
    Manifest,
    build,
    build_with,
    built,
    containers,
    copied,
    executable,
    of_kind,
    refused_by_mesh,
    render,
    render_module,
)

# The kinds of a mesh, for which Kubernetes has no schema.
CUSTOM = {
    "standalone": set(),
    "sidecar": set(),
    "envoy-gateway": {
        "Gateway", "HTTPRoute", "Backend", "BackendTrafficPolicy", "EnvoyPatchPolicy",
    },
    "istio": {"Gateway", "VirtualService", "EnvoyFilter"},
}  # fmt: skip


def deployments(overlay: str) -> list[Manifest]:
    return list(of_kind(built(overlay), "Deployment").values())


def test_what_is_rendered_is_up_to_date() -> None:
    """The rendered files are those of `make manifests`, except for their first lines, which name the revision."""
    config = load_config(REPOSITORY / "intents")
    for path, text in render_module().rendered(config).items():
        kept = (REPOSITORY / "deploy/k8s" / path).read_text()
        assert kept.splitlines()[1:] == text.splitlines()[1:], path


@pytest.mark.parametrize(
    ("tier", "overlays", "what"),
    [
        (
            {"key": {"file": "/k"}},
            ("istio",),
            "tier `large` has a `key`, a file that the pods of Istio's gateway do not have: remove it",
        ),
        (
            {"url": "https://a.example", "ca": "/ca"},
            ("istio", "envoy-gateway"),
            "tier `large` has a private `ca`, a file that the pods of the gateway do not have: use a public",
        ),
    ],
)
def test_a_gateway_is_not_rendered_without_a_setting(
    tmp_path: Path, tier: dict[str, Any], overlays: tuple[str, ...], what: str
) -> None:
    """A key that vanished would send requests without one. The error has the line, and the rest is rendered."""
    config = edited(tmp_path, large=tier)
    refused = {}
    for path, write in render_module().FILES.items():
        try:
            write(config)
        except ConfigError as error:
            refused[path.split("/")[1]] = str(error)
    assert tuple(refused) == overlays
    for message in refused.values():
        assert re.match(rf"policy.yaml:[0-9]+: {re.escape(what)}", message)


def edited(folder: Path, rules: Any = None, **tiers: dict[str, Any]) -> Config:
    """The sample intents, with other settings of these tiers."""
    shutil.copytree(REPOSITORY / "intents", folder / "intents")
    file = folder / "intents" / "policy.yaml"
    policy = yaml.safe_load(file.read_text())
    policy["tiers"] = [tier | tiers.get(tier["name"], {}) for tier in policy["tiers"]]
    file.write_text(yaml.safe_dump(policy | ({"rules": rules} if rules is not None else {})))
    return load_config(folder / "intents")


def test_every_intent_is_in_the_config_map() -> None:
    """A file of intents that is not listed would reach no pod."""
    generator = yaml.safe_load((REPOSITORY / "intents/Kustomization").read_text())["configMapGenerator"][0]
    assert sorted(generator["files"]) == sorted(path.name for path in (REPOSITORY / "intents").glob("*.y*ml"))


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kubernetes_accepts_every_document_strictly(overlay: str, version: str) -> None:
    """All fields are known and of the right type, in the oldest and newest version, except in a mesh's kinds."""
    validator = pytest.importorskip("kubernetes_validate", reason="the Kubernetes schemas are not installed")
    unknown = set()
    for document in built(overlay):
        try:
            validator.validate(document, version, strict=True)
        except validator.SchemaNotFoundError:
            unknown.add(document["kind"])
    assert unknown == CUSTOM[overlay]


def test_the_meshes_accept_their_own_kinds_strictly(tmp_path: Path) -> None:
    """The published types of the kinds know all fields, their types and their limits."""
    documents = [d for overlay in OVERLAYS for d in built(overlay) if d["apiVersion"] in MESH_KINDS]
    with_key = edited(tmp_path, large={"key": {"file": "/k", "header": "api-key"}})
    documents += yaml.safe_load_all(render_module().FILES["overlays/envoy-gateway/routes.yaml"](with_key))
    documents += yaml.safe_load_all(
        (REPOSITORY / "deploy/k8s/overlays/envoy-gateway/inference-pool.yaml").read_text()
    )
    assert {d["kind"] for d in documents} == {"HTTPRouteFilter"}.union(*CUSTOM.values())
    assert refused_by_mesh(documents, tmp_path) == ""


@pytest.mark.parametrize(
    ("right", "wrong", "said"),
    [
        ("mergeType", "mergeTyp", ["BackendTrafficPolicy", "'\"mergeTyp\"' does not exist in type"]),
        ("MERGE", "MERGES", ["EnvoyFilter", "Type '\"MERGES\"' is not assignable to type"]),
        ("0s", "0 s", ["HTTPRoute", "timeouts/request must match pattern"]),
    ],
    ids=lambda given: given if isinstance(given, str) else "",
)
def test_a_mistake_in_a_mesh_s_kind_is_refused(right: str, wrong: str, said: list[str], tmp_path: Path) -> None:
    """The check above finds an unknown field, a word outside of an enum, and an invalid value."""
    kind, problem = said
    documents = [d for overlay in OVERLAYS for d in built(overlay) if d["kind"] == kind]
    written = json.dumps(documents)
    assert f'"{right}"' in written
    assert problem in refused_by_mesh(json.loads(written.replace(f'"{right}"', f'"{wrong}"')), tmp_path)


def test_a_misspelt_field_is_refused() -> None:
    """The check of Kubernetes' own kinds finds an unknown field."""
    validator = pytest.importorskip("kubernetes_validate", reason="the Kubernetes schemas are not installed")
    [deployment] = deployments("sidecar")
    deployment = yaml.safe_load(yaml.safe_dump(deployment))
    deployment["spec"]["template"]["spec"]["terminationGracePeriod"] = 1
    with pytest.raises(validator.ValidationError, match="terminationGracePeriod"):
        validator.validate(deployment, VERSIONS[-1], strict=True)


@pytest.mark.parametrize("overlay", ["standalone", "sidecar"])
def test_the_real_envoy_accepts_its_bootstrap(overlay: str, tmp_path: Path) -> None:
    """The bootstrap that the Envoy container mounts is a complete and valid configuration."""
    envoy = executable("envoy")
    assert envoy is not None
    [mounted] = [m for name, m in of_kind(built(overlay), "ConfigMap").items() if name.startswith("envoy-")]
    path = tmp_path / "bootstrap.yaml"
    path.write_text(mounted["data"]["bootstrap.yaml"])
    command = [envoy, "--mode", "validate", "-c", str(path), "-l", "error"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_containers_may_do_no_more_than_they_need(overlay: str) -> None:
    """No root, new privileges, capabilities, writable root or token, and the runtime's seccomp profile."""
    for deployment in deployments(overlay):
        pod = deployment["spec"]["template"]["spec"]
        assert pod["securityContext"] == {
            "runAsNonRoot": True, "runAsUser": 65532, "runAsGroup": 65532,
            "seccompProfile": {"type": "RuntimeDefault"},
        }  # fmt: skip
        assert pod["automountServiceAccountToken"] is False
        for container in containers(deployment):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_pod_is_probed_scaled_spread_and_guarded(overlay: str) -> None:
    """Each Deployment has an autoscaler that sets its replicas, a disruption budget and a network policy."""
    documents = built(overlay)
    for deployment in deployments(overlay):
        name = deployment["metadata"]["name"]
        labels = deployment["spec"]["template"]["metadata"]["labels"]
        mine = {"matchLabels": {"app.kubernetes.io/name": name}}
        assert mine["matchLabels"].items() <= labels.items()
        assert "replicas" not in deployment["spec"]
        scaled = of_kind(documents, "HorizontalPodAutoscaler")[name]["spec"]
        assert scaled["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "Deployment", "name": name}
        assert scaled["minReplicas"] >= 2
        assert of_kind(documents, "PodDisruptionBudget")[name]["spec"] == {"maxUnavailable": 1, "selector": mine}
        assert of_kind(documents, "NetworkPolicy")[name]["spec"]["podSelector"] == mine
        spread = deployment["spec"]["template"]["spec"]["topologySpreadConstraints"]
        assert [s["topologyKey"] for s in spread] == ["topology.kubernetes.io/zone", "kubernetes.io/hostname"]
        assert all(s["labelSelector"] == mine for s in spread)
        for container in containers(deployment):
            assert {"startupProbe", "livenessProbe"} <= container.keys()
            assert container["resources"].keys() == {"requests", "limits"}
            assert not container["image"].endswith(":latest") and ":" in container["image"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_a_pod_mounts_is_there(overlay: str) -> None:
    """Every mount has a volume and every volume a ConfigMap. Only the names of Envoy's ConfigMaps have a hash."""
    maps = of_kind(built(overlay), "ConfigMap")
    for deployment in deployments(overlay):
        pod = deployment["spec"]["template"]["spec"]
        mounted = {mount["name"] for container in containers(deployment) for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}
        named = {volume["configMap"]["name"] for volume in pod["volumes"] if "configMap" in volume}
        assert named <= maps.keys()
        assert all(name == "intents" or name.startswith("envoy-") for name in named)


@pytest.mark.parametrize("overlay", ["standalone", "envoy-gateway", "istio"])
def test_envoy_sees_every_router_and_only_envoy_sees_them(overlay: str) -> None:
    """The Service is headless, so Envoy balances over all pods. The probes use gRPC's health service."""
    documents = built(overlay)
    service = of_kind(documents, "Service")["extproc"]["spec"]
    assert service["clusterIP"] == "None"
    [router] = containers(of_kind(documents, "Deployment")["extproc"])
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert router[probe]["grpc"] == {"port": 50051}
    policy = of_kind(documents, "NetworkPolicy")["extproc"]["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    [ingress] = policy["ingress"]
    assert len(ingress["from"]) == 1 and ingress["ports"] == [{"port": "grpc", "protocol": "TCP"}]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_pod_may_finish_what_it_has_begun(overlay: str) -> None:
    """The grace period is longer than the longest request and the delay before SIGTERM."""
    request_s = load_config(REPOSITORY / "intents").policy.timeouts.request_s
    for deployment in deployments(overlay):
        assert deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] > request_s + 5


@pytest.mark.parametrize("overlay", ["standalone", "envoy-gateway", "istio"])
def test_the_components_fit_every_overlay_with_a_separate_router(overlay: str, tmp_path: Path) -> None:
    """All of them together, accepted strictly. A component leaves alone what an overlay does not have."""
    validator = pytest.importorskip("kubernetes_validate", reason="the Kubernetes schemas are not installed")
    documents = build_with(tmp_path, overlay, "keys", "last-good", "observe", "state")
    unknown = set()
    for document in documents:
        try:
            validator.validate(document, VERSIONS[-1], strict=True)
        except validator.SchemaNotFoundError:
            unknown.add(document["kind"])
    assert unknown == CUSTOM[overlay] | {"PodMonitor", "PrometheusRule"}
    router = of_kind(documents, "Deployment")["extproc"]["spec"]["template"]["spec"]
    mounted = {mount["name"] for mount in router["containers"][0]["volumeMounts"]}
    assert mounted == {volume["name"] for volume in router["volumes"]}
    assert {"name": "last-good", "persistentVolumeClaim": {"claimName": "last-good"}} in router["volumes"]
    egress = of_kind(documents, "NetworkPolicy")["extproc"]["spec"]["egress"]
    assert [port["port"] for rule in egress for port in rule["ports"]] == [53, 53, 5432, 6379]


def test_the_sidecar_is_the_standalone_container_but_for_its_socket() -> None:
    """Image, resources, security and intents are the same in both, because they are written once."""
    [alone] = containers(of_kind(built("standalone"), "Deployment")["extproc"])
    beside = containers(of_kind(built("sidecar"), "Deployment")["envoy"])[0]
    same = {"name", "image", "resources", "securityContext"}
    assert {key: beside[key] for key in same} == {key: alone[key] for key in same}
    assert alone["args"][:-1] == beside["args"][:-1]
    assert alone["volumeMounts"][0] in beside["volumeMounts"]
    assert beside["restartPolicy"] == "Always"  # started first, stopped last


def test_fitted_centroids_reach_the_pod_as_they_are(tmp_path: Path) -> None:
    """A binary file becomes binaryData with the same bytes."""
    tree = copied(tmp_path)
    header = Header("fitted", "2026-11-22", "m", "1234567e8901", "f1f958a82ea0", 24, 0, 0.3, {"one": 1})
    vector = np.full((1, 16), 0.25, dtype=np.float32)
    raw = encode_centroids(header, Matcher({"one": vector}), {"one": 0.5}, vector)
    (tree / "intents" / CENTROIDS_FILE).write_bytes(raw)
    with (tree / "intents/Kustomization").open("a") as file:
        file.write(f"  - {CENTROIDS_FILE}\n")
    intents = of_kind(build("standalone", tree), "ConfigMap")["intents"]
    assert {name: base64.b64decode(data) for name, data in intents["binaryData"].items()} == {CENTROIDS_FILE: raw}


def test_another_policy_reaches_every_overlay(tmp_path: Path) -> None:
    """A renamed tier has its new name in Envoy's clusters, the mesh's routes and the intents, once rendered."""
    tree = copied(tmp_path)
    policy = tree / "intents/policy.yaml"
    policy.write_text(policy.read_text().replace("name: small", "name: tiny\n    cluster: tiny-pool"))
    for path in (tree / "intents").glob("*.yaml"):
        path.write_text(path.read_text().replace("tier: small", "tier: tiny"))
    render(tree)
    for overlay in OVERLAYS:
        documents = build(overlay, tree)
        assert "name: tiny" in of_kind(documents, "ConfigMap")["intents"]["data"]["policy.yaml"]
        others = [d for d in documents if d["metadata"]["name"] != "intents"]
        assert "tiny-pool" in yaml.safe_dump_all(others)
