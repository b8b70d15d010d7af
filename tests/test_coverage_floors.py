"""The coverage of each package is compared with its floor."""

from tests.coverage_floors import mistakes, percentages


def file(lines: int, covered_lines: int, branches: int = 0, covered_branches: int = 0) -> dict[str, object]:
    """One file of the report that `coverage json` writes."""
    summary = {
        "num_statements": lines,
        "covered_lines": covered_lines,
        "num_branches": branches,
        "covered_branches": covered_branches,
    }
    return {"summary": summary}


def test_lines_and_branches_of_a_package_are_added_up() -> None:
    """Modules of packages inside a package count as its own. Modules in no package count together."""
    report = {
        "files": {
            "extproc/settings.py": file(10, 9),
            "extproc/messages.py": file(10, 10),
            "extproc/routing/policy.py": file(60, 50, 20, 10),
            "extproc/evidence/fit/learning.py": file(30, 30),
            "extproc/evidence/metrics.py": file(30, 15),
            "extproc/demo/__init__.py": file(0, 0),
        }
    }
    assert percentages(report) == {"extproc": 95.0, "routing": 75.0, "evidence": 75.0, "demo": 100.0}


def test_a_package_below_its_floor_is_a_mistake() -> None:
    """So is a package without a floor, and a floor without a package."""
    assert mistakes({"api": 80.0, "routing": 79.94}, {"api": 80, "routing": 80}) == [
        "routing: 79.9 % is below the floor of 80 %, add tests"
    ]
    assert mistakes({"api": 80.0, "wire": 99.0}, {"api": 80, "routing": 80}) == [
        "wire: no floor in pyproject.toml, add wire under [tool.extproc.coverage]",
        "routing: a floor in pyproject.toml but no such package, remove it from [tool.extproc.coverage]",
    ]
