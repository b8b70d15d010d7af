"""Print a CycloneDX 1.6 document of the packages under a root folder: those of Debian and those of Python.

The image contains the document that this prints in its last build step. `make sbom` has the packages of the source.
"""

import json
import sys
from collections.abc import Iterator
from importlib.metadata import distributions
from pathlib import Path


def document(root: Path) -> dict[str, object]:
    """Return the document for the file system under `root`. It has no date: equal images have equal documents."""
    python = [str(path) for path in root.glob("opt/*/lib/python3*/site-packages")]
    components = sorted([*debian(root), *packages(python)], key=lambda component: component["purl"])
    return {"bomFormat": "CycloneDX", "specVersion": "1.6", "version": 1, "components": components}


def debian(root: Path) -> Iterator[dict[str, str]]:
    """Yield the installed packages of Debian."""
    status = root / "var/lib/dpkg/status"
    for paragraph in status.read_text(encoding="utf-8").split("\n\n") if status.exists() else ():
        fields = dict(line.split(": ", 1) for line in paragraph.splitlines() if ": " in line and line[0] != " ")
        if fields.get("Status") == "install ok installed":
            name, version = fields["Package"], fields["Version"]
            yield component(name, version, f"pkg:deb/debian/{name}@{version}?arch={fields['Architecture']}")


def packages(folders: list[str]) -> Iterator[dict[str, str]]:
    """Yield the packages of Python in these folders."""
    for distribution in distributions(path=folders):
        name = distribution.name.lower().replace("_", "-")
        yield component(name, distribution.version, f"pkg:pypi/{name}@{distribution.version}")


def component(name: str, version: str, purl: str) -> dict[str, str]:
    """Return one library of the document."""
    return {"type": "library", "name": name, "version": version, "bom-ref": purl, "purl": purl}


if __name__ == "__main__":
    print(json.dumps(document(Path(sys.argv[1])), indent=1))
