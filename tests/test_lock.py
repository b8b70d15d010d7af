"""Production runs exactly the packages in requirements.lock, and each of their files has a hash."""

import re
import tomllib
from collections.abc import Iterable
from importlib.metadata import requires, version
from pathlib import Path

from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# Extras that a production install may ask for.
EXTRAS = ("postgres", "redis")
# Not in the lock. The Makefile has its version and installs the build for this machine.
APART = {"torch"}
ENTRY = re.compile(r"^(?P<name>[\w.-]+)==(?P<version>[^\s;]+)(?: ; (?P<marker>[^\\]+))? \\$")


def locked() -> dict[str, str]:
    """name -> version of each package that the lock lists for this machine."""
    found = [ENTRY.match(line) for line in (ROOT / "requirements.lock").read_text().splitlines()]
    return {
        entry["name"]: entry["version"]
        for entry in found
        if entry is not None and (entry["marker"] is None or Marker(entry["marker"]).evaluate())
    }


def installed(requirements: Iterable[str]) -> dict[str, str]:
    """name -> version of each package installed for these requirements, directly or as a dependency."""
    found: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    waiting = [Requirement(line) for line in requirements]
    while waiting:
        wanted = waiting.pop()
        name = canonicalize_name(wanted.name)
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


def test_every_entry_has_hashes():
    """pip checks every entry of the lock, and the lock names no address to download from."""
    lock = (ROOT / "requirements.lock").read_text()
    entries = re.split(r"(?m)^(?=[a-z])", re.sub(r"(?m)^\s*#.*\n", "", lock))
    unchecked = [
        entry for entry in entries if entry.strip() and not re.search(r"--hash=sha256:[0-9a-f]{64}", entry)
    ]
    assert unchecked == []
    assert [line for line in lock.splitlines() if "://" in line or line.startswith("-")] == []
