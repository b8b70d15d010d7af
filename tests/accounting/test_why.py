"""`extproc why`: the sentences about one request."""

import contextlib
import sqlite3
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from extproc.accounting import why as why_module
from extproc.accounting.outcome import Cost, Ending, Outcome, Rejection, Unjudged
from extproc.accounting.store import Store
from extproc.accounting.why import why
from extproc.api.observation import Usage
from extproc.cli.main import main
from extproc.contract.words import Bound, Course, Reason, Undecided

WHEN = 1_767_323_045.0
DECISION = {
    "tier": "small", "reason": "matched", "cohort": "faq", "counted_as": "faq", "runner_up": "code",
    "similarity": 0.4121, "floor": 0.3, "margin": 0.2, "chance": 0.71, "background": 0.04, "verdict": "accept",
}  # fmt: skip


def outcome(decision: dict[str, Any] | None = None, **values: Any) -> Outcome:
    plain: dict[str, Any] = {
        "time": WHEN, "api": "chat", "ending": Ending.ACCEPTED, "status": 200, "attempts": 1, "reason": "matched",
        "cohort": "faq", "tier": "small", "request": "1-2", "duration_s": 1.5, "first_byte_s": 0.25,
        "revision": "r1", "mode": "enforce", "usage": Usage(1200, 30),
    }  # fmt: skip
    text = msgspec.json.encode(decision).decode() if decision is not None else None
    return Outcome(**plain | values, decision=text)


def story(tmp_path: Path, row: Outcome, cost: Cost) -> list[str]:
    store = Store(tmp_path / "ledger.sqlite", 1e6)
    store.add([(row, cost)])
    store.close()
    return why(tmp_path / "ledger.sqlite", "1-2").splitlines()


def test_a_request_that_was_escalated(tmp_path: Path) -> None:
    row = outcome(
        DECISION, attempts=2, tier="large", unjudged=Unjudged.LAST_RUNG,
        rejections=(Rejection(1, "small", "refusal", Usage(1200, 5)),),
    )  # fmt: skip
    assert story(tmp_path, row, Cost(0.02, (0.001,), 0.02)) == [
        "request   1-2, chat, 2026-01-02 03:04:05 UTC",
        "ended     The client got an answer with status 200 after 1.50 s",
        "decision  Tier small was asked first, because it is the tier of its cohort (matched)",
        "cohort    faq is nearest, with a similarity of 0.412 (floor 0.300)",
        "          code is second, and the margin is 0.200",
        "          Chance of faq: 71 %; that it belongs to no intent: 4 %",
        "          The match counts",
        "attempts  2",
        "          Attempt 1, tier small: rejected (refusal), 1,200 tokens in and 5 out, $0.001000",
        "          Attempt 2, tier large: not judged, because it came from the last rung of the ladder, first byte "
        "after 0.25 s, 1,200 tokens in and 30 out, $0.020000",
        "cost      $0.021000. The default tier alone: $0.020000",
        "revision  r1, mode enforce",
    ]


def test_a_request_out_of_scope_names_the_nearest_cohort(tmp_path: Path) -> None:
    decision = DECISION | {
        "tier": "large",
        "reason": "out_of_scope",
        "counted_as": "out_of_scope",
        "similarity": 0.1,
    }
    lines = story(
        tmp_path,
        outcome(decision, reason="out_of_scope", cohort="out_of_scope", tier="large", usage=None),
        Cost(None, (), None),
    )
    assert "decision  Tier large was asked first, because no cohort is near enough, so the default tier serves " \
        "(out_of_scope)" in lines  # fmt: skip
    assert "cohort    faq is nearest, with a similarity of 0.100 (floor 0.300)" in lines
    assert "          The match does not count, so the request counts as out_of_scope" in lines
    assert "cost      Unknown: no tokens were reported, or the tier has no price" in lines


def test_without_a_decision_envoy_went_on(tmp_path: Path) -> None:
    row = outcome(reason="fail_open", cohort="fail_open", tier="large", revision=None)
    lines = story(tmp_path, row, Cost(0.1, (), 0.1))
    assert "cohort    None was compared, so it counts as fail_open" in lines
    assert any("Envoy got no decision from the router in time" in line for line in lines)


def test_a_row_of_an_older_release_has_no_record_of_the_match(tmp_path: Path) -> None:
    lines = story(tmp_path, msgspec.structs.replace(outcome(), cohort="billing"), Cost(None, (), None))
    assert "cohort    billing. An older release wrote this row, without the record of the match" in lines


def test_every_word_has_a_sentence() -> None:
    assert why_module._REASONS.keys() == {*Reason, *Undecided}
    assert why_module._BOUNDS.keys() == set(Bound)
    assert why_module._COURSES.keys() == set(Course)
    assert why_module._UNJUDGED.keys() == set(Unjudged) - {Unjudged.UNKNOWN}


def test_an_unknown_id_says_where_it_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    story(tmp_path, msgspec.structs.replace(outcome(DECISION), time=time.time()), Cost(0.1, (), 0.1))
    ledger = str(tmp_path / "ledger.sqlite")
    assert main(["why", "1-2", "--ledger", ledger]) == 0
    assert capsys.readouterr().out.startswith("request   1-2, chat, ")
    assert main(["why", "9-9", "--ledger", ledger]) == 2
    assert f"{ledger} has no request 9-9: the id is in the answer's header x-request-id" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("reason", "decision", "status", "lines"),
    [
        (
            Reason.BUDGET,
            {"app": "support", "team": "care", "budget": "app/support"},
            429,
            ["app       support, team care", "budget    app/support is used up"],
        ),
        (Reason.APP_OFF, {"app": "support"}, 503, ["app       support"]),
    ],
)
def test_a_request_that_was_refused_cost_nothing(
    tmp_path: Path, reason: Reason, decision: dict[str, Any], status: int, lines: list[str]
) -> None:
    """The tier of the decision was not asked."""
    record = DECISION | {"reason": reason} | decision
    row = outcome(record, ending=Ending.FAILED, status=status, attempts=0, reason=reason, tier=None, usage=None)
    told = story(tmp_path, row, Cost(None, (), None))
    assert told[1:3] == [
        f"ended     The client got an error or a cut answer, with status {status} after 1.50 s",
        f"decision  Tier small was chosen, because {why_module._REASONS[reason]} ({reason})",
    ]
    assert told[3 : 3 + len(lines)] == lines
    assert told[-3:] == [
        "attempts  0", "cost      Nothing, because no tier was asked", "revision  r1, mode enforce"
    ]  # fmt: skip


def test_a_ledger_without_an_index_is_searched_for_a_day(tmp_path: Path) -> None:
    """A file of an early release has the index of times alone. A router of this release builds the other one."""
    path = tmp_path / "ledger.sqlite"
    store = Store(path, 1e6)
    store.add(
        [(outcome(DECISION), Cost(0.02, (), 0.02)), (outcome(DECISION, time=time.time()), Cost(0.02, (), 0.02))]
    )
    store.close()
    with contextlib.closing(sqlite3.connect(path)) as older:
        older.execute("DROP INDEX outcomes_request")
        older.execute("PRAGMA user_version = 2")
        older.commit()
        plan = older.execute(f"EXPLAIN QUERY PLAN {why_module._OUTCOME}", ("1-2", 0.0)).fetchall()
    assert "USING INDEX outcomes_time" in plan[0][3]
    assert why(path, "1-2").count("request   1-2") == 1
    with pytest.raises(OSError, match="has no request 9-9 in the last 24 hours"):
        why(path, "9-9")
