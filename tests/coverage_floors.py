"""Compare the coverage of each package with its floor in pyproject.toml.

`python -m tests.coverage_floors REPORT` reads what `coverage json` wrote and prints one line for each package. The
exit status is 1 if a package is below its floor or has none, or if a floor names no package.
"""

import json
import sys
import tomllib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def percentages(report: Mapping[str, Any]) -> dict[str, float]:
    """Return the share of lines and branches that were run, in percent, by package."""
    run, total = Counter[str](), Counter[str]()
    for file, measured in report["files"].items():
        package, summary = package_of(file), measured["summary"]
        run[package] += summary["covered_lines"] + summary["covered_branches"]
        total[package] += summary["num_statements"] + summary["num_branches"]
    return {package: 100 * run[package] / total[package] if total[package] else 100.0 for package in total}


def package_of(file: str) -> str:
    """Return the package directly under extproc/, or "extproc" for a module without a package."""
    inside = PurePath(file).parts
    inside = inside[inside.index("extproc") + 1 :]
    return inside[0] if len(inside) > 1 else "extproc"


def mistakes(measured: Mapping[str, float], floors: Mapping[str, float]) -> list[str]:
    """Return one sentence for each package that has no floor or is below it, and each floor without a package."""
    return [
        *(
            f"{package}: no floor in pyproject.toml, add {package} under [tool.extproc.coverage]"
            for package in sorted(measured.keys() - floors.keys())
        ),
        *(
            f"{package}: a floor in pyproject.toml but no such package, remove it from [tool.extproc.coverage]"
            for package in sorted(floors.keys() - measured.keys())
        ),
        *(
            f"{package}: {measured[package]:.1f} % is below the floor of {floors[package]:g} %, add tests"
            for package in sorted(measured.keys() & floors.keys())
            if measured[package] < floors[package]
        ),
    ]


def main(path: str) -> int:
    measured = percentages(json.loads(Path(path).read_text()))
    floors = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["extproc"]["coverage"]
    for package, percent in sorted(measured.items()):
        print(f"{package:12} {percent:6.1f} %   floor {floors.get(package, '-'):>3}")
    sentences = mistakes(measured, floors)
    for sentence in sentences:
        print(sentence, file=sys.stderr)
    return 1 if sentences else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
