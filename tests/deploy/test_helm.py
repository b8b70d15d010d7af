"""The Helm chart gives the objects of kustomize, and a value reaches the objects that it is for."""

import json
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from extproc import __version__
from tests.deploy.manifests import (
    REPOSITORY,
    VERSIONS,
    Manifest,
    build_with,
    containers,
    executable,
    of_kind,
    refused_by_mesh,
)

CHART = REPOSITORY / "deploy/helm/semantic-router"
NAMESPACE = "semantic-router"
COMPONENTS = ("keys", "observe", "state")
OPERATOR = "monitoring.coreos.com/v1"


def helm(*words: str) -> subprocess.CompletedProcess[str]:
    """Run Helm. Skip the test if it is missing."""
    program = executable("helm")
    if program is None:
        pytest.skip("helm is not installed (`.ci/run` shows where to get one)")
    return subprocess.run([program, *words], capture_output=True, text=True, timeout=60, check=False)


def template(*options: str, chart: Path = CHART) -> list[Manifest]:
    """Return the documents that the chart gives with these options."""
    done = helm("template", "a-release", str(chart), "--namespace", NAMESPACE, *options)
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document is not None]


def refusal(*options: str) -> str:
    """Return what Helm says to values that it refuses."""
    done = helm("template", "a-release", str(CHART), *options)
    assert done.returncode != 0, done.stdout[:1000]
    return done.stderr


def comparable(documents: list[Manifest]) -> dict[tuple[str, str], Manifest]:
    """Return the documents by kind and name, without what Helm does in its own way.

    `helm install --create-namespace` makes the namespace. A change of Envoy's bootstrap rolls Envoy out by a
    checksum in the pod's annotations, and with kustomize by the name of the ConfigMap.
    """
    documents = json.loads(json.dumps(documents))
    objects = {}
    for document in documents:
        kind, metadata = document["kind"], document["metadata"]
        if kind == "ConfigMap" and metadata["name"].startswith("envoy-"):
            metadata["name"] = "envoy"
        if kind == "Deployment":
            pod = document["spec"]["template"]
            annotations = pod["metadata"].pop("annotations", {})
            assert set(annotations) <= {"checksum/bootstrap"}
            for volume in pod["spec"]["volumes"]:
                if volume.get("configMap", {}).get("name", "").startswith("envoy-"):
                    volume["configMap"]["name"] = "envoy"
        if kind != "Namespace":
            objects[kind, metadata["name"]] = document
    return objects


@pytest.mark.parametrize("components", [(), *((name,) for name in COMPONENTS), COMPONENTS], ids="+".join)
def test_helm_and_kustomize_give_the_same_objects(components: tuple[str, ...], tmp_path: Path) -> None:
    """With default values, with each component, and with all of them."""
    options = [f"--set={name}.enabled=true" for name in components]
    by_helm, by_kustomize = (
        comparable(template(*options)),
        comparable(build_with(tmp_path, "standalone", *components)),
    )
    assert by_helm.keys() == by_kustomize.keys()
    for key, expected in by_kustomize.items():
        assert by_helm[key] == expected, key


def test_the_last_good_files_on_a_shared_volume_are_the_same_in_both(tmp_path: Path) -> None:
    """The claim itself is the operator's own with Helm."""
    by_kustomize = comparable(build_with(tmp_path, "standalone", "last-good"))
    assert by_kustomize.pop(("PersistentVolumeClaim", "last-good"))["spec"]["accessModes"] == ["ReadWriteMany"]
    assert comparable(template("--set=router.lastGoodClaim=last-good")) == by_kustomize


@pytest.mark.parametrize("version", VERSIONS)
def test_kubernetes_accepts_every_document_strictly(version: str) -> None:
    """With all components. The kinds of the Prometheus operator have no schema in Kubernetes."""
    validator = pytest.importorskip("kubernetes_validate", reason="the Kubernetes schemas are not installed")
    components = [f"--set={name}.enabled=true" for name in COMPONENTS]
    documents = template(*components, "--set=router.lastGoodClaim=shared")
    for document in documents:
        if document["apiVersion"] != OPERATOR:
            validator.validate(document, version, strict=True)
    assert {d["kind"] for d in documents if d["apiVersion"] == OPERATOR} == {"PodMonitor", "PrometheusRule"}


def test_the_prometheus_operator_accepts_its_kinds_strictly(tmp_path: Path) -> None:
    """The published types of the kinds know all fields, their types and their limits."""
    documents = [d for d in template("--set=observe.enabled=true") if d["apiVersion"] == OPERATOR]
    assert refused_by_mesh(documents, tmp_path) == ""


def test_lint_finds_nothing() -> None:
    done = helm("lint", "--strict", "--quiet", str(CHART))
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_chart_has_the_version_of_the_package() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (__version__, __version__)


def test_a_packaged_chart_has_the_files_behind_the_links(tmp_path: Path) -> None:
    """The archive needs nothing of the repository, and gives the same objects."""
    done = helm("package", str(CHART), "--destination", str(tmp_path))
    assert done.returncode == 0, done.stderr
    archive = tmp_path / f"semantic-router-{__version__}.tgz"
    with tarfile.open(archive) as packed:
        names = {member.name for member in packed.getmembers() if member.isfile()}
    assert "semantic-router/files/bootstrap.yaml" in names
    assert "semantic-router/files/intents/policy.yaml" in names
    assert template(chart=archive) == template()
    # Helm keeps the chart in a Secret, which has at most 1 MiB, as base64.
    assert archive.stat().st_size < 500_000


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--set=router.autoscalling.minReplicas=3", "additional properties 'autoscalling' not allowed"),
        ("--set=image.digest=sha256:1234", "at '/image/digest': 'sha256:1234' does not match pattern"),
        ("--set=router.resources.requests.memory=512MB", "'512MB' does not match pattern"),
        ("--set=router.autoscaling.minReplicas=1", "at '/router/autoscaling/minReplicas': minimum: got 1, want 2"),
        ("--set=router.resources.requests.gpu=1", "invalid propertyName 'gpu'"),
        ("--set=envoy.service.type=Loadbalancer", "at '/envoy/service/type': value must be one of 'ClusterIP'"),
        ("--set=envoy.enabled=maybe", "at '/envoy/enabled': got string, want boolean"),
        ("--set=intents.files.code\\.yaml=x", "at '/intents/files': missing property 'policy.yaml'"),
        (
            "--set=intents.existingConfigMap=My_Map",
            "at '/intents/existingConfigMap': 'My_Map' does not match pattern",
        ),
        ("--set=labels.team=a b", "at '/labels/team': 'a b' does not match pattern"),
        (
            "--set=envoy.autoscaling.minReplicas=20",
            "the autoscaler of envoy has minReplicas 20 above maxReplicas 10",
        ),
        ("--set=envoy.bootstrap=tiers: []", "envoy.bootstrap is not a bootstrap of Envoy"),
        ("--set=observe.ledgerPort=70000", "at '/observe/ledgerPort': maximum: got 70,000, want 65,535"),
    ],
)
def test_a_wrong_value_is_refused_with_its_place(option: str, said: str) -> None:
    assert said in refusal(option)


def test_every_value_is_in_the_schema() -> None:
    """Each key of values.yaml, so that an editor knows it, and none more."""

    def keys(values: dict[str, Any], schema: dict[str, Any]) -> None:
        properties = schema.get("properties")
        if properties is not None:
            assert values.keys() == properties.keys() - {"global"}
            for name, value in values.items():
                if isinstance(value, dict):
                    keys(value, properties[name])

    schema = json.loads((CHART / "values.schema.json").read_text())
    keys(yaml.safe_load((CHART / "values.yaml").read_text()), schema)


def test_own_intents_and_their_bootstrap(tmp_path: Path) -> None:
    """As values, or in another ConfigMap. Another bootstrap rolls Envoy out."""
    policy, bootstrap = tmp_path / "policy.yaml", tmp_path / "envoy.yaml"
    policy.write_text("version: 1\n# {{ not a template }}\n")
    bootstrap.write_text("static_resources: {}\n# {{ nor this }}\n")
    documents = template(f"--set-file=intents.files.policy\\.yaml={policy},envoy.bootstrap={bootstrap}")
    assert of_kind(documents, "ConfigMap")["intents"]["data"] == {"policy.yaml": policy.read_text()}
    assert of_kind(documents, "ConfigMap")["envoy"]["data"] == {"bootstrap.yaml": bootstrap.read_text()}
    assert checksum(documents) != checksum(template())
    theirs = template("--set=intents.existingConfigMap=mine")
    assert "intents" not in of_kind(theirs, "ConfigMap")
    volumes = of_kind(theirs, "Deployment")["extproc"]["spec"]["template"]["spec"]["volumes"]
    assert {"name": "intents", "configMap": {"name": "mine"}} in volumes


def checksum(documents: list[Manifest]) -> str:
    annotations = of_kind(documents, "Deployment")["envoy"]["spec"]["template"]["metadata"]["annotations"]
    return str(annotations["checksum/bootstrap"])


def test_only_the_router_for_another_envoy() -> None:
    """Its pods are named in the NetworkPolicy, or nothing could connect."""
    clients = [{"podSelector": {"matchLabels": {"app": "gateway"}}}]
    documents = template(
        "--set=envoy.enabled=false,observe.enabled=true", f"--set-json=router.clients={json.dumps(clients)}"
    )
    assert set(of_kind(documents, "Deployment")) == {"extproc"}
    assert set(of_kind(documents, "PodMonitor")) == {"extproc"}
    ingress = of_kind(documents, "NetworkPolicy")["extproc"]["spec"]["ingress"]
    assert ingress[0]["from"] == clients


def test_labels_reach_what_prometheus_and_grafana_select() -> None:
    """The label of the dashboard remains."""
    documents = template("--set=observe.enabled=true,observe.labels.release=prometheus")
    selected = [d for d in documents if d["metadata"].get("labels", {}).get("release") == "prometheus"]
    assert [(d["kind"], d["metadata"]["name"]) for d in selected] == [
        ("ConfigMap", "semantic-router-dashboard"), ("PodMonitor", "extproc"), ("PodMonitor", "envoy"),
        ("PrometheusRule", "semantic-router"),
    ]  # fmt: skip
    assert selected[0]["metadata"]["labels"] == {"grafana_dashboard": "1", "release": "prometheus"}


def test_labels_reach_every_object_and_pod_and_no_selector() -> None:
    """The labels by which the chart selects pods stay."""
    components = [f"--set={name}.enabled=true" for name in COMPONENTS]
    plain = template(*components)
    labels = {"team": "search", "app.kubernetes.io/name": "other"}
    labelled = template(*components, f"--set-json=labels={json.dumps(labels)}")
    for before, after in zip(plain, labelled, strict=True):
        for holder_before, holder in [
            (before, after),
            (before["spec"]["template"], after["spec"]["template"]) if before["kind"] == "Deployment" else ({}, {}),
        ]:
            if holder:
                assert holder["metadata"].pop("labels") == labels | holder_before["metadata"].pop("labels", {})
        assert after == before


def test_volumes_reach_the_container_and_the_pod() -> None:
    """A folder beside that of the intents, as the page of the chart has it. Envoy has its own volumes."""
    values = yaml.safe_load(fenced_yaml((REPOSITORY / "docs/deploy/helm.md").read_text(), "values.yaml"))
    ca = {"name": "ca", "configMap": {"name": "ca"}}
    envoy: dict[str, Any] = {"volumes": [ca], "volumeMounts": [{"name": "ca", "mountPath": "/etc/ca"}]}
    documents = template(
        f"--set-json=router={json.dumps(values['router'])}", f"--set-json=envoy={json.dumps(envoy)}"
    )
    deployments = of_kind(documents, "Deployment")
    for name, given in (("extproc", values["router"]), ("envoy", envoy)):
        [container] = containers(deployments[name])
        count = len(given["volumes"])
        assert container["volumeMounts"][-count:] == given["volumeMounts"]
        assert deployments[name]["spec"]["template"]["spec"]["volumes"][-count:] == given["volumes"]
    [router] = containers(deployments["extproc"])
    folders = [mount["mountPath"] for mount in router["volumeMounts"]]
    assert not [inner for inner in folders if inner.startswith("/etc/extproc/intents/")]
    validator = pytest.importorskip("kubernetes_validate", reason="the Kubernetes schemas are not installed")
    for document in documents:
        validator.validate(document, VERSIONS[-1], strict=True)


def fenced_yaml(page: str, title: str) -> str:
    """Return the block of YAML with this title."""
    return page.partition(f'```yaml title="{title}"\n')[2].partition("```")[0]


def test_values_of_the_container_reach_it() -> None:
    """A digest, a pull secret, options, variables and rules for connections."""
    digest = "sha256:" + "0" * 64
    router: dict[str, Any] = {
        "extraArgs": ["--workers", "2"],
        "env": [{"name": "OTEL_EXPORTER_OTLP_ENDPOINT", "value": "http://collector:4317"}],
        "egress": [{"ports": [{"port": 4317, "protocol": "TCP"}]}],
        "nodeSelector": {"pool": "cpu"},
        "tolerations": [{"key": "llm", "operator": "Exists"}],
    }
    documents = template(
        f"--set=image.digest={digest},image.pullPolicy=Always", "--set-json=image.pullSecrets=[\"regcred\"]",
        f"--set-json=router={json.dumps(router)}",
    )  # fmt: skip
    deployment = of_kind(documents, "Deployment")["extproc"]
    pod = deployment["spec"]["template"]["spec"]
    [container] = containers(deployment)
    assert container["image"] == f"registry.example.com/extproc@{digest}"
    assert container["imagePullPolicy"] == "Always" and pod["imagePullSecrets"] == [{"name": "regcred"}]
    assert container["args"][-2:] == ["--workers", "2"]
    assert container["env"][-1] == router["env"][0]
    assert (pod["nodeSelector"], pod["tolerations"]) == (router["nodeSelector"], router["tolerations"])
    assert of_kind(documents, "NetworkPolicy")["extproc"]["spec"]["egress"][-1] == router["egress"][0]
    validator = pytest.importorskip("kubernetes_validate", reason="the Kubernetes schemas are not installed")
    for document in documents:
        validator.validate(document, VERSIONS[-1], strict=True)
