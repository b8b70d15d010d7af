"""The files in deploy/observe/ work with the real Prometheus: rules, alerts, and every query of the dashboard."""

import re
import shutil
import subprocess

import pytest

from bench.observe import OBSERVE, dashboard_queries, settle, watched
from tests.e2e.traffic import REPOSITORY

pytestmark = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="Prometheus is not installed: apt-get install prometheus"
)
_COST_BY_COHORT = "cohort:semantic_router_cost_usd:rate5m"
RULES_TESTS = ("rules_test.yml", "rules_days_test.yml")


@pytest.mark.parametrize("command", [["check", "rules", "rules.yml"], ["test", "rules", *RULES_TESTS]], ids=str)
def test_promtool_accepts_the_rules(command: list[str]) -> None:
    """The rules are valid, and each alert fires in its situation."""
    done = subprocess.run(
        ["promtool", *command], cwd=REPOSITORY / OBSERVE, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_tested() -> None:
    alerts = re.findall(r"alert: (\w+)", (REPOSITORY / OBSERVE / "rules.yml").read_text())
    tests = "".join((REPOSITORY / OBSERVE / name).read_text() for name in RULES_TESTS)
    tested = re.findall(r"alertname: (\w+)", tests)
    assert set(alerts) == set(tested)


def test_every_query_of_the_dashboard_returns_data_and_a_trace_is_whole() -> None:
    """Under a mixed load no panel is empty, and the spans of Envoy and the router are one tree."""
    assert len(dashboard_queries()) > 15
    with watched() as running:
        assert settle(running) == []
        cost = {sample["metric"]["cohort"] for sample in running.ask(_COST_BY_COHORT)}
        requests = {sample["metric"]["cohort"] for sample in running.ask("cohort:semantic_router_requests:rate5m")}
        services = {service for service, _ in running.escalation()}
    # The nearest cohort of the prompt that is out of scope is `summary`, which has none of its cost.
    assert {"out_of_scope", "no_text"} <= cost and {"out_of_scope", "no_text"} <= requests
    assert "summary" not in cost | requests
    assert services == {"envoy", "semantic-router"}
