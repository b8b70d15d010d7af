"""Shared by the tests of deploy/k8s: the overlays as kubectl builds them, and functions that look into them."""

import functools
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from extproc.config.load import load_config

REPOSITORY = Path(__file__).parents[2]
# Native sidecars exist since 1.29.
VERSIONS = ("1.29", "1.37")
OVERLAYS = ("standalone", "sidecar", "envoy-gateway", "istio")

# Kubernetes has no schema for the kinds of a mesh and of the Prometheus operator. These npm packages have their
# types and validators, by API.
MESH_KINDS = {
    "gateway.networking.k8s.io/v1": "@kubernetes-models/gateway-api",
    "gateway.envoyproxy.io/v1alpha1": "@kubernetes-models/envoy-gateway",
    "networking.istio.io/v1": "@kubernetes-models/istio",
    "networking.istio.io/v1alpha3": "@kubernetes-models/istio",
    "monitoring.coreos.com/v1": "@kubernetes-models/prometheus-operator",
}
MESH_TYPES = Path(sys.prefix) / "mesh"  # `make test` installs it

Manifest = dict[str, Any]


def executable(*names: str) -> str | None:
    """Return the first of these programs that is beside the interpreter or on the PATH."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return next((found for name in names if (found := shutil.which(name, path=path))), None)


def build(overlay: str, tree: Path = REPOSITORY) -> list[Manifest]:
    """Return the documents that `kubectl kustomize` builds from an overlay. Skip the test if kubectl is missing."""
    kubectl = executable("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not installed (`.ci/run` shows where to get one)")
    command = [kubectl, "kustomize", str(tree / "deploy/k8s/overlays" / overlay)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


@functools.cache
def built(overlay: str) -> list[Manifest]:
    """Build an overlay of the repository, once."""
    return build(overlay)


def of_kind(documents: list[Manifest], kind: str) -> dict[str, Manifest]:
    """Return the documents of one kind, by name."""
    return {d["metadata"]["name"]: d for d in documents if d["kind"] == kind}


def containers(deployment: Manifest) -> list[Manifest]:
    """Return the containers of a pod in the order in which they start."""
    pod = deployment["spec"]["template"]["spec"]
    return [*pod.get("initContainers", []), *pod["containers"]]


def refused_by_mesh(documents: list[Manifest], folder: Path) -> str:
    """Return the errors in documents of a mesh's kinds, or an empty string. `folder` is for temporary files.

    The TypeScript compiler finds unknown fields and fields of the wrong type. The validators of the kinds find the
    rest: lengths, ranges and patterns.
    """
    compiler, node = MESH_TYPES / "node_modules/.bin/tsc", executable("node")
    if node is None or not compiler.exists():
        assert "CI" not in os.environ, "nothing is skipped there"
        pytest.skip("the meshes' types are not installed (they come by npm: see the Makefile)")
    lines = []
    for n, document in enumerate(documents):
        api, kind = document["apiVersion"], document["kind"]
        lines += [
            f'import {{ {kind} as K{n}, type I{kind} as T{n} }} from "{MESH_KINDS[api]}/{api}/{kind}";',
            f"const d{n}: T{n} = {json.dumps(document)};",
            f"try {{ new K{n}(d{n}).validate() }} catch (e) {{ console.log(`{kind}: ${{(e as Error).message}}`) }}",
        ]
    (folder / "node_modules").symlink_to(MESH_TYPES / "node_modules")
    (folder / "kinds.mts").write_text("\n".join(lines))
    options = ["--strict", "--skipLibCheck", "--target", "es2022", "--module", "nodenext", "--noEmitOnError"]
    for command in ([str(compiler), *options, "kinds.mts"], [node, "kinds.mjs"]):
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
        if done.returncode != 0 or done.stdout:
            return done.stdout + done.stderr
    return ""


def build_with(folder: Path, overlay: str, *components: str) -> list[Manifest]:
    """Build an overlay with these components added, in a copy of the files in `folder`."""
    tree = copied(folder)
    place = tree / "deploy/k8s/overlays/with"
    place.mkdir()
    lists = {"resources": [f"../{overlay}"], "components": [f"../../components/{name}" for name in components]}
    head = {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization"}
    (place / "kustomization.yaml").write_text(yaml.safe_dump(head | lists))
    return build("with", tree)


@functools.cache
def render_module() -> ModuleType:
    """Load deploy/k8s/render.py, which is a script outside of any package."""
    spec = importlib.util.spec_from_file_location("render", REPOSITORY / "deploy/k8s/render.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def copied(folder: Path) -> Path:
    """Copy the files that an operator edits and applies, so that a test can edit and build them."""
    for part in ("intents", "deploy/k8s"):
        shutil.copytree(REPOSITORY / part, folder / part)
    return folder


def render(tree: Path) -> None:
    """Do in a copy what `make manifests` does."""
    for path, text in render_module().rendered(load_config(tree / "intents")).items():
        (tree / "deploy/k8s" / path).write_text(text)
