"""Signals after an answer: how feedback is read, where it counts, and what it makes of an outcome."""

import time
from pathlib import Path

import msgspec
import pytest

from extproc.accounting.export import JoinCounts, as_traffic, export, quality_of
from extproc.accounting.feedback import AnsweredRequest, Feedback, find_answer, read_feedback
from extproc.accounting.outcome import Cost, Ending, Outcome
from extproc.accounting.render import html_of, text_of
from extproc.accounting.report import SignalSums, read_report
from extproc.accounting.signals import AnswerSignal
from extproc.accounting.store import Store
from extproc.accounting.why import why
from extproc.contract.words import Signal

MINE, OTHER = "a1", "b2"


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    """Three answers of one principal. The client left the last one, a stream."""
    place, now = tmp_path / "ledger.sqlite", time.time()
    store = Store(place, 90)
    for i, ending in enumerate((Ending.ACCEPTED, Ending.ACCEPTED, Ending.CANCELLED), start=1):
        outcome = Outcome(
            now, "chat", ending, 200, 1, "matched", judged=i == 1, cohort="faq", tier="small", principal=MINE,
            request=f"r-{i}", decision='{"stream":true,"tier":"small"}' if i == 3 else None, revision="v1",
        )  # fmt: skip
        store.add([(outcome, Cost(0.1, (), 0.1))])
    for signal in (
        AnswerSignal("r-1", Signal.FEEDBACK, MINE, now, 0.0, "billing"),
        AnswerSignal("r-1", Signal.RE_ASKED, MINE, now),
        AnswerSignal("r-2", Signal.FEEDBACK, MINE, now, 1.0),
        AnswerSignal("r-2", Signal.FEEDBACK, OTHER, now, 0.0, "gossip"),  # of a caller who has not asked
        AnswerSignal("r-9", Signal.FEEDBACK, MINE, now, 0.0),  # of a request that never ended
    ):
        store.add_signal(signal)
    store.close()
    return place


def test_feedback_has_a_rating_or_a_label() -> None:
    assert read_feedback(b'{"request_id":"5-5","thumbs":"down"}', ()) == Feedback("5-5", 0.0, None)
    assert read_feedback(b'{"request_id":"5-5","label":"faq","score":0.5}', {"faq"}) == Feedback("5-5", 0.5, "faq")
    assert read_feedback(b'{"request_id":"5-5","label":"out_of_scope"}', ()) == Feedback(
        "5-5", None, "out_of_scope"
    )


def test_the_later_feedback_counts_and_keeps_what_the_earlier_one_said(ledger: Path) -> None:
    store = Store(ledger, 90)
    store.add_signal(AnswerSignal("r-1", Signal.FEEDBACK, MINE, time.time(), 0.75))
    store.close()
    line, *_ = map(msgspec.json.decode, export(ledger, 3600))
    assert line["feedback"] == {"score": 0.75, "label": "billing"}


def test_a_request_is_found_with_its_principal(ledger: Path) -> None:
    assert find_answer(ledger, "r-1") == AnsweredRequest(MINE, "faq", "small")
    assert find_answer(ledger, "r-9") is None


def test_the_match_of_an_answer_is_found_with_its_probability(tmp_path: Path) -> None:
    store = Store(tmp_path / "ledger.sqlite", 90)
    decision = '{"cohort":"billing","similarity":0.5,"margin":0.1,"probability":0.75}'
    for app in (None, "support"):
        outcome = Outcome(
            time.time(), "chat", Ending.ACCEPTED, 200, 1, "out_of_scope", cohort="out_of_scope", tier="small",
            principal=MINE, request=f"r-{app}", decision=decision, app=app,
        )  # fmt: skip
        store.add([(outcome, Cost(0.1, (), 0.1))])
    answers = [find_answer(store.place, f"r-{app}") for app in (None, "support")]
    assert answers == [
        AnsweredRequest(MINE, "out_of_scope", "small", nearest, 0.75) for nearest in ("billing", "support/billing")
    ]


def test_the_report_shows_signals_of_the_callers_themselves(ledger: Path) -> None:
    report = read_report(ledger, 3600)
    sums = SignalSums(re_asked=1, abandoned=1, rated=2, rating=0.5, labelled=1)
    assert (report.total.signals, [line.signals for line in report.groups]) == (sums, [sums])
    assert "re-asked" in text_of(report) and "re-asked" in html_of(report)


def test_a_report_without_signals_has_no_table_for_them(tmp_path: Path) -> None:
    store = Store(tmp_path / "ledger.sqlite", 90)
    store.add([])
    store.close()
    report = read_report(tmp_path / "ledger.sqlite", 3600)
    assert report.total.signals.is_empty and "labelled" not in text_of(report)


def test_why_tells_what_came_after_the_answer(ledger: Path) -> None:
    story = why(ledger, "r-1").splitlines()[-1]
    assert story == (
        "after     The conversation asked almost the same again; feedback rated the answer 0 (0 is bad, 1 is good)"
        "; feedback named billing as the right cohort"
    )
    assert "gossip" not in why(ledger, "r-2")


def test_exported_traffic_has_labels_and_qualities(ledger: Path) -> None:
    """A label comes from the user, and never from the decision."""
    requests = {f"r-{i}": {"id": f"r-{i}", "text": "How do I pay?"} for i in (1, 2, 3)}
    lines = [msgspec.json.decode(line) for line in as_traffic(export(ledger, 3600), requests, JoinCounts())]
    assert [line.get("intent") for line in lines] == ["billing", None, None]
    assert ["intent" in line for line in lines] == [True, False, False]
    qualities = [line["outcomes"].get("small", {}).get("quality") for line in lines]
    # The first was accepted, rated badly and asked again. The second was rated well without a verdict.
    assert qualities == [round(1 / 1.75, 4), 0.75, None]


@pytest.mark.parametrize(
    ("verdict", "rating", "signals", "expected"),
    [
        (None, None, [], None),
        (True, None, [], None),  # the verdict stays a success
        (None, None, [Signal.RE_ASKED], None),
        (None, 0.0, [Signal.RE_ASKED], 0.25),
        (None, 1.0, [], 0.75),
        (True, 0.0, [], 0.6667),
        (False, 1.0, [], 0.3333),
        (True, None, [Signal.RE_ASKED], 0.8),
        (True, None, [Signal.EDITED], 0.9091),
        (False, None, [Signal.RE_ASKED], 0.0),
    ],
)
def test_a_signal_counts_less_than_a_verdict(
    verdict: bool | None, rating: float | None, signals: list[Signal], expected: float | None
) -> None:
    """No signal alone turns an accepted answer into a bad one, or a rejected answer into a good one."""
    assert quality_of(verdict, rating, signals) == expected
