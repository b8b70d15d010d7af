"""The sums of a ledger, on rows that a person can add up."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from extproc.accounting.export import export
from extproc.accounting.headlines import report_headlines
from extproc.accounting.outcome import Cost, Ending, Outcome, Rejection
from extproc.accounting.render import html_of, text_of
from extproc.accounting.report import CohortLine, read_report, seconds_of
from extproc.accounting.store import Store
from extproc.api.observation import Usage
from extproc.console.readings import newest_requests

HOUR_S = 3600.0
CLIMBED = {
    "attempts": 2, "tier": "large", "usage": Usage(100, 10),
    "rejections": (Rejection(1, "small", "refusal", Usage(90, 5)),), "unjudged": "last_rung",
}  # fmt: skip
ROWS: tuple[tuple[dict[str, Any], Cost], ...] = (
    ({"judged": True, "usage": Usage(100, 20, 50), "first_byte_s": 1.0}, Cost(0.01, (), 0.10)),
    ({**CLIMBED, "first_byte_s": 3.0}, Cost(0.05, (0.02,), 0.05)),
    ({"judged": True, "ending": "degraded", "usage": Usage(10, 2)}, Cost(0.01, (), 0.10)),
    ({"judged": True, "ending": "human", "status": 422, "usage": Usage(10, 3)}, Cost(0.01, (), None)),
    ({"ending": "cancelled"}, Cost(None, (), None)),
    ({"ending": "failed", "status": 503, "attempts": 3}, Cost(None, (), None)),
    (
        {"cohort": "fail_open", "reason": "fail_open", "tier": "large", "unjudged": "no_cohort"},
        Cost(None, (), None),
    ),
    # As ledger version 3 had it: the cohort is the nearest one.
    ({"cohort": "faq", "reason": "out_of_scope", "tier": "large", "usage": Usage(5, 5)}, Cost(0.03, (), 0.03)),
)


class Sums(NamedTuple):
    """The sums of one line, as far as the sentences need them."""

    name: str
    requests: int
    attempts: int
    accepted: int
    judged: int
    cost: float
    cascade_cost: float
    saving: float
    cost_per_accepted: float | None
    unknown: int = 0
    unjudged: Mapping[str, int] = {}


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    path = tmp_path / "ledger.sqlite"
    plain: dict[str, Any] = {
        "time": time.time() - 60, "api": "chat", "ending": "accepted", "status": 200, "attempts": 1,
        "reason": "matched", "cohort": "faq", "tier": "small", "principal": "p",
    }  # fmt: skip
    store = Store(path, 30)
    store.add([(Outcome(**plain | what), cost) for what, cost in ROWS])
    store.add([(Outcome(**plain | {"time": time.time() - 2 * HOUR_S}), Cost(1.0, (), 1.0))])
    store.close()
    return path


def test_a_cohorts_line_is_the_sum_of_its_rows(ledger: Path) -> None:
    """Tokens and cost include rejected answers, but no unknown usage and no older rows."""
    line, *_ = read_report(ledger, HOUR_S).groups
    assert line.cost == pytest.approx(0.10) and line.saving == pytest.approx(0.15)
    assert line.cost_per_accepted == pytest.approx(0.05)
    line.cost, line.saving, line.cost_per_accepted = 0.10, 0.15, 0.05
    assert line == CohortLine(
        name="faq", requests=6, attempts=9, failed_attempts=2, accepted=2, judged=1, degraded=1, human=1, failed=1,
        cancelled=1, escalated=1, fallback=0, input=310, output=40, cached=50, cost=0.10, cascade_cost=0.02,
        cost_per_accepted=0.05, saving=0.15, unknown=1, first_byte_s=(2.0, 2.9), escalations={"refusal": 1},
        unjudged={"last_rung": 1},
    )  # fmt: skip


NO_COHORT_ROWS: tuple[tuple[str | None, str], ...] = (
    ("faq", "matched"),
    ("faq", "capability"),  # a trusted match, raised
    ("out_of_scope", "out_of_scope"),
    ("out_of_scope", "capability"),  # raised for another reason than its text
    ("pinned", "pinned"),
    ("no_text", "bound"),
    ("background", "background"),
    ("out_of_scope", "rule"),
    ("fail_open", "fail_open"),
    # As ledger version 3 had them.
    ("faq", "ambiguous"),
    (None, "passthrough"),
)


def test_requests_of_no_cohort_have_lines_of_their_own(tmp_path: Path) -> None:
    """Their cost is not in the line of the nearest cohort, and the lines add up to the total."""
    store = Store(tmp_path / "ledger.sqlite", 30)
    store.add([
        (Outcome(time.time(), "chat", Ending.ACCEPTED, 200, 1, reason, cohort=cohort), Cost(1.0, (), 1.0))
        for cohort, reason in NO_COHORT_ROWS
    ])  # fmt: skip
    store.close()
    report = read_report(tmp_path / "ledger.sqlite", HOUR_S)
    assert {line.name: line.cost for line in report.groups} == {
        "faq": 2.0, "out_of_scope": 3.0, "pinned": 1.0, "no_text": 1.0, "background": 1.0, "fail_open": 1.0,
        "ambiguous": 1.0, "passthrough": 1.0,
    }  # fmt: skip
    assert sum(line.cost for line in report.groups) == report.total.cost
    intents = [msgspec.json.decode(line)["intent"] for line in export(tmp_path / "ledger.sqlite", HOUR_S)]
    assert intents == ["faq", "faq", *[None] * 9]


def test_cohorts_of_one_name_in_two_apps_have_two_lines(tmp_path: Path) -> None:
    """Requests of no cohort are counted by their reason, whichever app they are of."""
    path = tmp_path / "ledger.sqlite"
    store = Store(path, keep_days=1)
    asked: dict[str, Any] = {
        "time": time.time(), "api": "chat", "ending": Ending.ACCEPTED, "status": 200, "attempts": 1,
        "tier": "small", "first_byte_s": 0.5,
    }  # fmt: skip
    decided: tuple[dict[str, Any], ...] = (
        {"reason": "matched", "cohort": "faq", "app": "shop"},
        {"reason": "matched", "cohort": "faq", "app": "desk"},
        {"reason": "matched", "cohort": "faq", "app": "desk"},
        {"reason": "matched", "cohort": "faq"},
        {"reason": "pinned", "cohort": "pinned", "app": "desk"},
        {"reason": "out_of_scope", "cohort": "out_of_scope", "app": "desk"},
    )
    store.add([(Outcome(**asked | each), Cost(1.0, (), 1.0)) for each in decided])
    store.close()
    report = read_report(path, HOUR_S)
    assert {line.name: line.requests for line in report.groups} == {
        "desk/faq": 2, "shop/faq": 1, "faq": 1, "pinned": 1, "out_of_scope": 1,
    }  # fmt: skip
    assert report.groups[0].first_byte_s == (0.5, 0.5)
    assert [row["cohort"] for row in newest_requests(path, cohort="faq")] == ["faq"] * 4
    assert [row["app"] for row in map(msgspec.json.decode, export(path, HOUR_S))].count("desk") == 4
    assert len(newest_requests(path, cohort="desk/faq")) == 2


def test_fallbacks_are_counted_by_reason(ledger: Path) -> None:
    """The fallbacks of the router, and those of Envoy without the router."""
    total = read_report(ledger, HOUR_S).total
    assert (total.requests, total.fallback) == (8, 2)
    assert total.fallbacks == {"fail_open": 1, "out_of_scope": 1}


def test_a_tier_has_the_tokens_of_all_its_answers(ledger: Path) -> None:
    """A rejected answer counts for the tier that gave it, although another tier served the request."""
    lines = {line.name: line for line in read_report(ledger, HOUR_S, "tier").groups}
    assert (lines["small"].input, lines["small"].escalations) == (210, {"refusal": 1})
    assert (lines["large"].input, lines["large"].escalations) == (105, {})
    assert lines["small"].cascade_cost == 0.02


def test_a_ledger_without_rows_is_a_report_without_lines(tmp_path: Path) -> None:
    store = Store(tmp_path / "ledger.sqlite", 30)
    store.open()
    store.close()
    report = read_report(tmp_path / "ledger.sqlite", HOUR_S)
    assert report.groups == []
    assert (report.total.requests, report.total.cost_per_accepted, report.total.first_byte_s) == (0, None, None)
    assert "total" in text_of(report)
    assert report.verdicts == ["NO TRAFFIC: no request ended in this time"]


def test_costs_above_the_default_tier_are_said_first() -> None:
    """The cascade costs more than its default tier, because one cohort rejects most answers of the small tier."""
    faq = Sums("faq", 10, 19, 10, 10, cost=1.5, cascade_cost=0.6, saving=-0.5, cost_per_accepted=0.15)
    code = Sums("code", 10, 10, 10, 10, cost=0.8, cascade_cost=0.0, saving=0.2, cost_per_accepted=0.08)
    total = Sums("total", 20, 29, 20, 20, cost=2.3, cascade_cost=0.6, saving=-0.3, cost_per_accepted=0.115)
    assert report_headlines(total, [faq, code]) == [
        "COSTS MORE: $0.3000 (15 %) more than the default tier alone. These requests cost $2.3000, $0.115000 for "
        "each accepted answer. Rejected answers are 26 % of the cost",
        "CHECK: with their rejected answers, these cost more than the default tier alone: faq ($0.5000)",
    ]


def test_text_and_page_show_the_same_numbers(ledger: Path) -> None:
    """On the page, names of cohorts are escaped."""
    report = read_report(ledger, HOUR_S)
    text = text_of(report)
    assert text.splitlines()[2:5] == report.verdicts == [
        "SAVES: $0.1500 (54 %) against the default tier alone. These requests cost $0.1300, $0.032500 for each "
        "accepted answer. Rejected answers are 15 % of the cost",
        "UNKNOWN: 2 of 11 attempts have no token counts, so no sum has their cost",
        "NOT JUDGED: no rule looked at 3 of 4 accepted answers",
    ]  # fmt: skip
    page = html_of(report)
    assert page.index("<b>SAVES</b> $0.1500 (54 %)") < page.index("<table")
    head, faq = (" ".join(line.split()) for line in text.splitlines()[6:8])
    assert head == (
        "cohort requests attempts accepted (judged) degraded failed cancelled escalated fallback first byte s (p95)"
    )
    assert faq == "faq 6 9 2 (1) 2 1 1 1 0 2.00 (2.90)"
    assert (
        "faq escalated: refusal 1\nfaq was not judged: last_rung 1\n"
        "fail_open fell back: fail_open 1\nfail_open was not judged: no_cohort 1\n"
        "out_of_scope fell back: out_of_scope 1\nout_of_scope was not judged: unknown 1\n"
    ) in text
    report.groups[0].name = "<faq>"
    assert '<th scope="row">&lt;faq&gt;</th><td>6</td><td>9</td>' in html_of(report)


@pytest.mark.parametrize(
    ("span", "seconds"), [("30m", 1800), ("24h", 86400), ("1.5d", 129600), ("9" * 20 + "d", 36_500 * 86400)]
)
def test_a_span_is_a_number_and_a_unit(span: str, seconds: float) -> None:
    assert seconds_of(span) == seconds


@pytest.mark.parametrize("span", ["", "24", "h", "1w", "-1h", "24h "])
def test_any_other_span_is_refused_with_a_remedy(span: str) -> None:
    with pytest.raises(ValueError, match="expected a number followed by m, h or d, as in 24h"):
        seconds_of(span)
