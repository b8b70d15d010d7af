"""The commands of the manifests with their files: traffic through them, an edit, a crash and a drain."""

import http.client
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from extproc.demo.sample_upstream import SampleUpstreams
from extproc.demo.stack import localize
from tests.deploy.manifests import build, copied, render
from tests.e2e.pod import Pod
from tests.e2e.traffic import (
    CHAT,
    EXTRACT,
    EXTRACTED,
    FAILED_OPEN,
    LEGAL,
    MODELS,
    Flow,
    ask,
    body_of,
    eventually,
    small_intent,
    write_small_intents,
)

HTTP, ADMIN, PROBE = 10000, 9901, 9902
# A stream of five chunks lasts longer than the first five seconds of a drain, which does not check before.
_CHUNK_S = 1.6


def _small_tree(folder: Path, ports: dict[str, int]) -> Path:
    """Return a rendered copy of the files that an operator edits, with small intents and the tiers on loopback."""
    tree = copied(folder / "tree")
    for path in (tree / "intents").glob("*.yaml"):
        path.unlink()
    localize(write_small_intents(folder / "small"), tree / "intents", ports)
    listed = tree / "intents/Kustomization"
    generators = yaml.safe_load(listed.read_text())
    generators["configMapGenerator"][0]["files"] = [path.name for path in (tree / "intents").glob("*.yaml")]
    listed.write_text(yaml.safe_dump(generators))
    render(tree)
    return tree


class Sidecar:
    """A pod of the sidecar overlay, and the files that an operator edits and applies."""

    def __init__(self, folder: Path, upstreams: SampleUpstreams) -> None:
        self.upstreams = upstreams
        self.tree = _small_tree(folder, upstreams.ports)
        (folder / "pod").mkdir()
        self.pod = Pod(build("sidecar", self.tree), "envoy", folder / "pod", (HTTP, ADMIN, PROBE))
        self.port = self.pod.ports[HTTP]

    def apply(self, name: str, text: str) -> None:
        """Edit a file of intents and apply the overlay. The ConfigMap changes, and the kubelet replaces it."""
        (self.tree / "intents" / name).write_text(text)
        self.pod.mount(build("sidecar", self.tree))


@pytest.fixture(scope="module")
def sidecar() -> Iterator[Sidecar]:
    # pytest's folder is too long: the path of a socket may have at most 107 bytes.
    with tempfile.TemporaryDirectory(prefix="pod-") as folder, SampleUpstreams(MODELS, _CHUNK_S) as upstreams:
        sidecar = Sidecar(Path(folder), upstreams)
        try:
            sidecar.pod.start()
            yield sidecar
        finally:
            sidecar.pod.stop()


def test_traffic_goes_through_the_sidecar(sidecar: Sidecar) -> None:
    """Envoy is ready and asks the router over the socket. The tier gets the request with its model name."""
    sidecar.pod.passes("envoy", "readinessProbe")
    assert sidecar.pod.probe("envoy", "livenessProbe") and sidecar.pod.probe("router", "livenessProbe")
    eventually(lambda: ask(sidecar.port, EXTRACT).said == EXTRACTED, "Envoy has seen the router")
    assert json.loads(sidecar.upstreams.received[-1].body)["model"] == "qwen3-8b"


def test_the_probe_port_shows_two_pages_of_the_admin_interface(sidecar: Sidecar) -> None:
    """It shows metrics for a scraper, and no page that could stop Envoy."""
    pages = {}
    for method, path in (("GET", "/stats/prometheus"), ("POST", "/quitquitquit"), ("GET", "/config_dump")):
        connection = http.client.HTTPConnection("127.0.0.1", sidecar.pod.ports[PROBE], timeout=10)
        connection.request(method, path)
        answer = connection.getresponse()
        pages[path] = (answer.status, b"envoy_http_downstream_rq_total" in answer.read())
        connection.close()
    assert pages == {"/stats/prometheus": (200, True), "/quitquitquit": (404, False), "/config_dump": (404, False)}


def test_an_applied_edit_retargets_a_cohort_without_a_restart(sidecar: Sidecar) -> None:
    """The ConfigMap changes under load. The cohort moves, no request fails, and no process restarts."""
    pids = {name: process.pid for name, process in sidecar.pod.processes.items()}
    eventually(lambda: ask(sidecar.port, LEGAL).said.get("x-router-tier") == "frontier", "routed by the sample")
    with Flow(sidecar.port, LEGAL) as flow:
        flow.flows_on()
        sidecar.apply("compliance.yaml", small_intent("compliance", "tier: large\nreasoning: off\nrisk: low"))
        eventually(lambda: flow.answers[-1].said.get("x-router-tier") == "large", "the cohort moves")
        flow.flows_on()
    assert flow.failures() == []
    assert {answer.said["x-router-reason"] for answer in flow.answers} == {"matched"}
    assert {name: process.pid for name, process in sidecar.pod.processes.items()} == pids
    assert all(process.poll() is None for process in sidecar.pod.processes.values())


def test_a_router_that_dies_is_started_again_on_the_same_socket(sidecar: Sidecar) -> None:
    """Until then the pod is ready and requests go to the default tier. None fails."""
    with Flow(sidecar.port, EXTRACT) as flow:
        flow.flows_on()
        sidecar.pod.processes["router"].kill()
        sidecar.pod.processes["router"].wait()
        eventually(lambda: flow.answers[-1].said == FAILED_OPEN, "requests fail open")
        assert not sidecar.pod.probe("router", "livenessProbe")
        assert sidecar.pod.probe("envoy", "readinessProbe")
        sidecar.pod.start_container("router")
        sidecar.pod.passes("router", "startupProbe")
        eventually(lambda: flow.answers[-1].said == EXTRACTED, "requests are routed again")
    assert flow.failures() == []


def test_a_container_that_starts_with_a_mistake_in_its_files_serves_the_last_good_ones(sidecar: Sidecar) -> None:
    """They are on a volume of the pod, so they survive the container. A mistake in the ConfigMap ends nothing."""
    good = (sidecar.tree / "intents/extraction.yaml").read_text()
    try:
        sidecar.apply("extraction.yaml", good.replace("tier: small", "tier: smal"))
        sidecar.pod.processes["router"].kill()
        sidecar.pod.processes["router"].wait()
        sidecar.pod.start_container("router")
        sidecar.pod.passes("router", "startupProbe")
        eventually(lambda: ask(sidecar.port, EXTRACT).said == EXTRACTED, "the last good files serve")
        assert "so the last good revision" in sidecar.pod.log("router")
    finally:
        sidecar.apply("extraction.yaml", good)


def test_a_stream_in_flight_ends_before_the_pod_does(sidecar: Sidecar) -> None:
    """The drain hook makes the pod unready and waits for the stream. SIGTERM follows in Kubernetes' order."""
    connection = http.client.HTTPConnection("127.0.0.1", sidecar.port, timeout=60)
    body = body_of(CHAT, "word " * 60) | {"stream": True}
    connection.request("POST", CHAT, json.dumps(body), {"content-type": "application/json"})
    answer = connection.getresponse()
    assert (answer.status, answer.readline()[:5]) == (200, b"data:")
    assert sidecar.pod.drain("envoy").returncode == 0
    assert not sidecar.pod.probe("envoy", "readinessProbe")
    # The whole stream has arrived before anything is stopped, so reading it does not wait.
    connection.sock.setblocking(False)
    assert answer.read().endswith(b"data: [DONE]\n\n")
    sidecar.pod.stop()
    assert {name: p.returncode for name, p in sidecar.pod.processes.items()} == {"router": 0, "envoy": 0}


def test_a_router_of_its_own_is_probed_by_grpc_and_ends_cleanly(tmp_path: Path) -> None:
    """Every probe of the standalone pod passes, the drain hook returns, and SIGTERM ends the router."""
    tree = _small_tree(tmp_path, dict.fromkeys(MODELS, 9))
    (tmp_path / "pod").mkdir()
    pod = Pod(build("standalone", tree), "extproc", tmp_path / "pod", (50051,))
    try:
        pod.start()
        assert pod.probe("router", "readinessProbe") and pod.probe("router", "livenessProbe")
        assert pod.drain("router").returncode == 0
        assert pod.probe("router", "readinessProbe")  # it serves until Envoy's resolver has removed it
    finally:
        pod.stop()
    assert pod.processes["router"].returncode == 0
