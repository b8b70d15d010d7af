"""The parts of the image's build that need no container. `make image` builds and runs the image."""

import json
import re
import subprocess
import sys
from pathlib import Path

from tests.deploy.manifests import REPOSITORY

DOCKERFILE = (REPOSITORY / "Dockerfile").read_text()
STATUS = """Package: libc6
Status: install ok installed
Architecture: amd64
Version: 2.36-9+deb12u14
Description: GNU C Library
 Version: not a field

Package: removed
Status: deinstall ok config-files
Architecture: amd64
Version: 1
"""


def test_the_sbom_lists_the_packages_of_debian_and_of_python(tmp_path: Path) -> None:
    """All installed packages, each once, with the names of their registries."""
    (tmp_path / "var/lib/dpkg").mkdir(parents=True)
    (tmp_path / "var/lib/dpkg/status").write_text(STATUS)
    site = tmp_path / "opt/extproc/lib/python3.11/site-packages"
    for name, version in (("PyYAML", "6.0.3"), ("google_re2", "1.1")):
        (site / f"{name}-{version}.dist-info").mkdir(parents=True)
        (site / f"{name}-{version}.dist-info/METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        )
    command = [sys.executable, str(REPOSITORY / "deploy/sbom.py"), str(tmp_path)]
    document = json.loads(subprocess.run(command, capture_output=True, timeout=60, check=True).stdout)
    assert (document["bomFormat"], document["specVersion"]) == ("CycloneDX", "1.6")
    assert [component["purl"] for component in document["components"]] == [
        "pkg:deb/debian/libc6@2.36-9+deb12u14?arch=amd64", "pkg:pypi/google-re2@1.1", "pkg:pypi/pyyaml@6.0.3",
    ]  # fmt: skip
    assert {component["type"] for component in document["components"]} == {"library"}


def test_slimming_leaves_what_serving_loads(tmp_path: Path) -> None:
    """The CPU plugin and the format of prepared models remain. Other devices, formats, tests and pip go."""
    site = tmp_path / "lib/python3.11/site-packages"
    kept = [
        "openvino/libs/libopenvino_intel_cpu_plugin.so", "openvino/libs/libopenvino_ir_frontend.so.2641",
        "openvino/libs/libopenvino.so.2641", "numpy/core.py", "extproc/py.typed",
        "onnxruntime/capi/onnxruntime_pybind11_state.cpython-311-x86_64-linux-gnu.so",
    ]  # fmt: skip
    removed = [
        "openvino/libs/libopenvino_intel_gpu_plugin.so", "openvino/libs/libopenvino_onnx_frontend.so.2641",
        "openvino/libs/libopenvino_tensorflow_lite_frontend.so.2641", "openvino/libs/cache.json",
        "openvino/include/openvino.hpp", "numpy/tests/test_core.py", "numpy/core.pyi", "pip/__init__.py",
        "onnxruntime/capi/libonnxruntime.so.1.32.0", "onnxruntime/transformers/optimizer.py",
    ]  # fmt: skip
    for name in (*kept, *removed):
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).touch()
    subprocess.run([REPOSITORY / "deploy/slim.sh", tmp_path], timeout=60, check=True)
    assert sorted(str(path.relative_to(site)) for path in site.rglob("*") if path.is_file()) == sorted(kept)


def test_torch_stays_in_the_stage_that_prepares_the_encoder() -> None:
    """The last stage takes one folder of that stage, and the packages of the lock without torch."""
    stages = re.split(r"(?m)^FROM ", DOCKERFILE)
    last = stages[-1]
    assert [line for line in last.splitlines() if "--from=prepare" in line] == [
        "COPY --from=prepare /opt/prepared /opt/extproc/share/extproc"
    ]
    [packages] = [stage for stage in stages if stage.startswith("python AS packages")]
    assert "COPY deploy/requirements.lock ./" in packages and "torch" not in packages
    assert re.findall(r"(?m)^USER (.*)$", DOCKERFILE) == ["65532:65532"]


def test_only_the_stage_that_prepares_the_encoder_has_the_older_base() -> None:
    """deploy/image.sh reads the names of the bases from these lines."""
    assert re.findall(r"(?m)^ARG (\w*BASE)=debian:(\w+)-slim$", DOCKERFILE) == [
        ("BASE", "trixie"), ("PREPARE_BASE", "bookworm"),
    ]  # fmt: skip
    assert re.findall(r"(?m)^FROM (.*)$", DOCKERFILE) == [
        "${BASE} AS python", "${PREPARE_BASE} AS prepare", "python AS packages", "python",
    ]  # fmt: skip


def test_the_build_gets_every_file_that_it_copies() -> None:
    """.dockerignore excludes all others."""
    ignored = (REPOSITORY / ".dockerignore").read_text().splitlines()
    copied = [word for line in re.findall(r"(?m)^COPY (?!--from)(.*) \S+$", DOCKERFILE) for word in line.split()]
    assert copied
    for path in copied:
        assert (REPOSITORY / path).exists() and f"!{path}" in ignored, path
