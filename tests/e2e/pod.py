"""A pod without Kubernetes: the commands of its containers, with the files of its ConfigMaps, probed and drained.

Paths are mapped into a folder, and ports and the listening address onto loopback. Everything else is as in the
manifest. Volumes of ConfigMaps are written and replaced like the kubelet does it.
"""

import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from extproc.demo.processes import end, free_ports
from extproc.serving.health import serves
from tests.deploy.manifests import Manifest, containers, executable, of_kind
from tests.e2e.traffic import eventually

# The entry point of the image, from this repository.
_EXTPROC = [sys.executable, "-m", "extproc"]


class Pod:
    """One pod of a Deployment among `documents`, in `folder`, with the manifest's `ports` mapped to free ones."""

    def __init__(self, documents: list[Manifest], deployment: str, folder: Path, ports: tuple[int, ...]) -> None:
        self.folder = folder
        self.ports = dict(zip(ports, free_ports(len(ports)), strict=True))
        self._template = of_kind(documents, "Deployment")[deployment]
        self.containers = {c["name"]: c for c in containers(self._template)}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.mount(documents)

    def mount(self, documents: list[Manifest]) -> None:
        """Write every volume as `documents` has it now. A ConfigMap that changed is replaced in one step."""
        maps = of_kind(documents, "ConfigMap")
        for volume in self._template["spec"]["template"]["spec"]["volumes"]:
            path = self.folder / volume["name"]
            path.mkdir(exist_ok=True)
            if "configMap" in volume:
                data = maps[volume["configMap"]["name"]]["data"]
                self._project(path, {name: self._mapped(text) for name, text in data.items()})

    def _project(self, path: Path, data: dict[str, str]) -> None:
        """Write a new dated folder, rename the link `..data` onto it, and link the names, as the kubelet does."""
        link, old = path / "..data", (path / "..data").resolve() if (path / "..data").exists() else None
        dated = path / f"..2026_11_22_04_00_00.{int(old.name.rpartition('.')[2]) + 1 if old is not None else 0}"
        dated.mkdir()
        for name, text in data.items():
            (dated / name).write_text(text)
        (path / "..data_tmp").symlink_to(dated.name)
        os.replace(path / "..data_tmp", link)
        for name in data:
            if not (path / name).is_symlink():
                (path / name).symlink_to(f"..data/{name}")
        for name in [p.name for p in path.iterdir() if not p.name.startswith("..") and p.name not in data]:
            (path / name).unlink()
        if old is not None:
            for file in old.iterdir():
                file.unlink()
            old.rmdir()

    def _mapped(self, text: str) -> str:
        mounts = [mount for container in self.containers.values() for mount in container["volumeMounts"]]
        places = {mount["mountPath"]: str(self.folder / mount["name"]) for mount in mounts}
        text = re.sub("|".join(map(re.escape, places)), lambda found: places[found[0]], text)
        for declared, actual in self.ports.items():
            text = re.sub(rf"\b{declared}\b", str(actual), text)
        return text.replace("0.0.0.0", "127.0.0.1")

    def _command(self, words: list[str]) -> list[str]:
        if words[0] == "extproc":
            return [*_EXTPROC, *map(self._mapped, words[1:])]
        return [str(executable(words[0])), *map(self._mapped, words[1:])]

    def _environment(self, container: Manifest) -> dict[str, str]:
        return {variable["name"]: self._mapped(variable["value"]) for variable in container.get("env", [])}

    def start(self) -> None:
        """Start the containers in order. Each starts after the startup probe of the one before has passed."""
        for name in self.containers:
            self.start_container(name)
            self.passes(name, "startupProbe")

    def start_container(self, name: str) -> None:
        container = self.containers[name]
        command = container.get("command", ["extproc"]) + container.get("args", [])
        with (self.folder / f"{name}.log").open("ab") as out:
            self.processes[name] = subprocess.Popen(
                self._command(command), stdout=out, stderr=out, stdin=subprocess.DEVNULL, cwd="/",
                env=os.environ | self._environment(container),
            )  # fmt: skip

    def passes(self, name: str, probe: str) -> None:
        """Wait until a probe of a container succeeds."""
        eventually(lambda: self.probe(name, probe), f"{name} passes its {probe}:\n{self.log(name)}", 90)

    def probe(self, name: str, probe: str) -> bool:
        """Run a probe once."""
        container = self.containers[name]
        ports = {port["name"]: self.ports[port["containerPort"]] for port in container.get("ports", [])}
        how: dict[str, Any] = container[probe]
        if "exec" in how:
            return self.run(how["exec"]["command"]).returncode == 0
        if "grpc" in how:
            return serves(f"127.0.0.1:{self.ports[how['grpc']['port']]}")
        address = how.get("httpGet") or how["tcpSocket"]
        try:
            url = f"http://127.0.0.1:{ports[address['port']]}{address.get('path', '/')}"
            with urllib.request.urlopen(url, timeout=1) as answer:
                return bool(answer.status == 200)
        except urllib.error.HTTPError:
            return "tcpSocket" in how
        except OSError:
            return False

    def run(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        """Run a command inside a container, like an exec probe or a hook."""
        return subprocess.run(self._command(command), capture_output=True, text=True, timeout=60, check=False)

    def drain(self, name: str) -> subprocess.CompletedProcess[str]:
        """Run a container's preStop hook to its end."""
        return self.run(self.containers[name]["lifecycle"]["preStop"]["exec"]["command"])

    def stop(self) -> None:
        """Send SIGTERM to the containers, in the reverse order of their start."""
        for process in reversed(self.processes.values()):
            end(process)

    def log(self, name: str) -> str:
        path = self.folder / f"{name}.log"
        return path.read_text(errors="replace") if path.exists() else ""
