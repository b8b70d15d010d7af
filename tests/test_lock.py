"""What runs in production is what requirements.lock names, with a hash for every file of it."""

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
EXTRAS = ("redis", "postgres")
# Installed from elsewhere, in the build that suits the machine; the Makefile has its version.
APART = {"torch"}
ENTRY = re.compile(r"^(?P<name>[\w.-]+)==(?P<version>[^\s;]+)(?: ; (?P<marker>[^\\]+))? \\$")


def locked() -> dict[str, str]:
    """name -> version of what the lock wants on this machine."""
    found = [ENTRY.match(line) for line in (ROOT / "requirements.lock").read_text().splitlines()]
    return {
        entry["name"]: entry["version"]
        for entry in found
        if entry is not None and (entry["marker"] is None or Marker(entry["marker"]).evaluate())
    }


def installed(requirements: Iterable[str]) -> dict[str, str]:
    """name -> version of what is installed for these, and for those in turn."""
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
    """A dependency that is new, gone or of another version is a diff here: `make lock`, and read it."""
    wanted = [*PROJECT["dependencies"], *(line for e in EXTRAS for line in PROJECT["optional-dependencies"][e])]
    runs = {name: at for name, at in installed(wanted).items() if name not in APART}
    assert runs == locked()


def test_every_entry_has_hashes():
    """Nothing in the lock is a line that pip would not check, and no place to fetch from is in it."""
    lock = (ROOT / "requirements.lock").read_text()
    entries = re.split(r"(?m)^(?=[a-z])", re.sub(r"(?m)^\s*#.*\n", "", lock))
    unchecked = [
        entry for entry in entries if entry.strip() and not re.search(r"--hash=sha256:[0-9a-f]{64}", entry)
    ]
    assert unchecked == []
    assert [line for line in lock.splitlines() if "://" in line or line.startswith("-")] == []
