"""The versions of the clients under test are fixed, and their locks name no host to download from."""

import json
import re
from pathlib import Path

FOLDER = Path(__file__).parent


def test_the_node_clients_have_fixed_versions() -> None:
    """A range would install another client on each machine."""
    wanted = json.loads((FOLDER / "package.json").read_text())["dependencies"]
    packages = json.loads((FOLDER / "package-lock.json").read_text())["packages"]
    assert all(re.fullmatch(r"\d+\.\d+\.\d+", version) for version in wanted.values())
    assert {name: packages[f"node_modules/{name}"]["version"] for name in wanted} == wanted
    assert [name for name, package in packages.items() if "resolved" in package] == []


def test_the_python_clients_have_fixed_versions() -> None:
    """Every line is a comment, or a package with one version."""
    lines = (FOLDER / "requirements.txt").read_text().splitlines()
    odd = [line for line in lines if not re.fullmatch(r"#.*|[\w.-]+==[\w.]+", line)]
    assert odd == []
