"""Durations and deadlines are measured by clocks that cannot jump."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "extproc"
# These modules need the time of day: they record or show when something happened.
WALL_CLOCK = {
    "serving/telemetry.py": {"time_ns"},
    "verifying/review.py": {"time"},
    "accounting/store.py": {"time"},
    "accounting/days.py": {"gmtime"},
    "accounting/keeper.py": {"time"},
    "accounting/parquet_export.py": {"time", "gmtime"},
    "accounting/export.py": {"time"},
    "accounting/report.py": {"time"},
    "accounting/render.py": {"gmtime"},
    "accounting/rollout_text.py": {"gmtime"},
    "accounting/why.py": {"gmtime", "time"},
    "cli/health.py": {"gmtime"},
    "config/standing.py": {"time"},
    "serving/explorer.py": {"time"},
    "evidence/measure/drift.py": {"time"},
    "console/page.py": {"gmtime"},
    "console/readings.py": {"time"},
    "console/spending.py": {"time"},
    "routing/budget.py": {"gmtime"},
    "routing/exchange.py": {"time"},  # a kept answer says when it was made
    "serving/spending.py": {"time"},
}
_READS_IT = {"time", "time_ns", "localtime", "gmtime", "now", "utcnow", "today"}


@pytest.mark.parametrize("file", sorted(str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py")))
def test_the_time_of_day_measures_nothing(file: str) -> None:
    """A clock that is set back or forward changes no deadline, rate or stage time."""
    calls = [node.func for node in ast.walk(ast.parse((PACKAGE / file).read_text())) if isinstance(node, ast.Call)]
    read = {
        func.attr
        for func in calls
        if isinstance(func, ast.Attribute) and isinstance(func.value, ast.Name)
        if func.value.id in ("time", "datetime", "date") and func.attr in _READS_IT
    }
    assert read == WALL_CLOCK.get(file, set())
