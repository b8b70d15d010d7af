"""Drift: the alarms with and without it, and the rows that are compared."""

import contextlib
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest

from extproc.accounting.outcome import Cost, Ending, Outcome
from extproc.accounting.signals import AnswerSignal
from extproc.accounting.store import Store
from extproc.cli.main import main
from extproc.contract.words import Signal
from extproc.evidence.measure.drift import DAY_S, FALSE_ALARM, Drift, Observed, compare, read_drift

COHORTS = ("faq", "code", "legal", "poems", "mail", "maths")


def window(rng: np.random.Generator, size: int, fallbacks: float = 0.2, shift: float = 0.0) -> list[Observed]:
    """A window of conversations, in which the probabilities of the labelled ones are right."""
    cohorts = rng.choice(COHORTS, size)
    fell, margins = rng.random(size) < fallbacks, rng.beta(2, 5, size) + shift
    chances = rng.beta(8, 2, size)
    right = rng.random(size) < chances
    labelled = rng.random(size) < 0.1
    return [
        Observed(str(cohorts[i]), bool(fell[i]), 0.5 + margins[i], margins[i], chances[i], bool(right[i]))
        if labelled[i]
        else Observed(str(cohorts[i]), bool(fell[i]), 0.5 + margins[i], margins[i], chances[i])
        for i in range(size)
    ]


def drifted(drift: Drift) -> set[tuple[str, str]]:
    return {(finding.kind, finding.group) for finding in drift.findings if finding.drifted}


def test_without_drift_a_year_of_runs_gives_hardly_an_alarm() -> None:
    """Four times 52 weekly runs. At most one run in a thousand alarms, so two alarms have a chance of 2 %."""
    rng, alarms = np.random.default_rng(18), 0
    for _ in range(4 * 52):
        alarms += compare("r", window(rng, 1400), window(rng, 400), {}).drifted
    assert FALSE_ALARM == 0.001 and alarms <= 1


@pytest.mark.parametrize(
    ("recent", "found"),
    [
        ({"fallbacks": 0.45}, ("fallbacks", "all")),
        ({"shift": -0.15}, ("margins", "faq")),
        ({"shift": 0.15}, ("margins", "code")),
    ],
)
def test_drift_is_found(recent: dict[str, float], found: tuple[str, str]) -> None:
    rng = np.random.default_rng(7)
    drift = compare("r", window(rng, 3000), window(rng, 1000, **recent), {})
    assert found in drifted(drift) and drift.verdict.startswith("DRIFT: ")


def test_the_cohorts_of_an_app_count_by_themselves(tmp_path: Path) -> None:
    """Two apps may have a cohort of the same name, with other utterances."""
    with contextlib.closing(Store(tmp_path / "ledger.sqlite", 90)) as store:
        for app, days, count in ((None, 2, 120), (None, 0, 60), ("support", 2, 120), ("support", 0, 60)):
            for i in range(count):
                margin = 0.3 if app is None or days else 0.05
                outcome = Outcome(
                    time.time() - days * DAY_S, "chat", Ending.ACCEPTED, 200, 1, "matched", cohort="faq",
                    tier="small", request=f"{app}-{days}-{i}", app=app, revision="r",
                    decision=f'{{"cohort":"faq","similarity":0.6,"margin":{margin + i % 60 / 1000}}}',
                )  # fmt: skip
                store.add([(outcome, Cost(0.1, (), 0.1))])
    assert drifted(read_drift(tmp_path / "ledger.sqlite")) == {("margins", "support/faq")}


def test_a_sure_but_small_difference_is_no_drift() -> None:
    rng = np.random.default_rng(7)
    drift = compare("r", window(rng, 60_000), window(rng, 30_000, fallbacks=0.23), {})
    assert drift.findings[0].p < 1e-6 and not drift.drifted and drift.verdict.startswith("NO DRIFT: ")


def test_probabilities_that_promise_too_much_are_found() -> None:
    rng = np.random.default_rng(7)
    rows = [msgspec.structs.replace(row, right=bool(rng.random() < 0.5)) for row in window(rng, 400)]
    assert ("probability", "all") in drifted(compare("r", window(rng, 1400), rows, {}))


def test_requests_far_from_the_evidence_are_found() -> None:
    rng = np.random.default_rng(7)
    evidence = {"faq": [0.95 + 0.05 * rng.random() for _ in range(60)], "code": [0.6] * 10}
    drift = compare("r", window(rng, 1400), window(rng, 400), evidence)
    assert drifted(drift) == {("evidence", "faq")}


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    """Eight days of one revision, and a day of another one before. On the last day, half of all fall back."""
    place, now, rng = tmp_path / "ledger.sqlite", time.time(), np.random.default_rng(3)
    store, rows = Store(place, 90), []
    for i in range(2000):
        age_days = 8 * (i / 2000)
        fell = i < 250 and i % 2 == 0
        decision = {"cohort": "faq", "similarity": 0.6, "margin": float(rng.random()), "probability": 0.9}
        for revision, age in (("new", age_days), ("old", 8 + age_days / 8)):
            rows.append(
                (
                    Outcome(
                        now - age * DAY_S - 1, "chat", Ending.ACCEPTED, 200, 1,
                        "out_of_scope" if fell or revision == "old" else "matched", cohort="faq", tier="small",
                        session=f"{revision}{i}", revision=revision, request=f"{revision}-{i}",
                        decision=msgspec.json.encode(decision).decode(),
                    ),
                    Cost(None, (), None),
                )
            )  # fmt: skip
    rows.sort(key=lambda row: row[0].time)
    store.add(rows)
    for i in range(60):
        store.add_signal(
            AnswerSignal(f"new-{i}", Signal.FEEDBACK, "anonymous", now, label="faq" if i % 10 else "code")
        )
    store.close()
    return place


def test_a_ledger_is_compared_with_its_own_week(ledger: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Only the revision that serves counts. The probabilities are right."""
    drift = read_drift(ledger)
    assert drift.revision == "new" and sum(drift.rows) == 2000
    assert drifted(drift) == {("fallbacks", "all"), ("fallbacks", "faq")}
    [probability] = [finding for finding in drift.findings if finding.kind == "probability"]
    assert (probability.before, probability.now) == pytest.approx((0.9, 0.9))
    assert main(["drift", "--ledger", str(ledger)]) == 1
    assert "of all requests fall back, after 0.0% in the week before" in capsys.readouterr().out
    assert main(["drift", "--ledger", str(ledger), "--json"]) == 1
    assert msgspec.json.decode(capsys.readouterr().out)["revision"] == "new"


def test_too_little_traffic_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = Store(tmp_path / "ledger.sqlite", 90)
    store.add([])
    assert main(["drift", "--ledger", str(tmp_path / "ledger.sqlite")]) == 0
    assert capsys.readouterr().out.startswith("NO TRAFFIC: ")
    decision = '{"cohort":"faq","similarity":0.6,"margin":0.1}'
    outcome = Outcome(time.time(), "chat", Ending.ACCEPTED, 200, 1, "matched", revision="r", decision=decision)
    store.add([(outcome, Cost(None, (), None))])
    store.close()
    assert main(["drift", "--ledger", str(tmp_path / "ledger.sqlite")]) == 0
    assert capsys.readouterr().out.startswith(
        "NOT ENOUGH: 0 conversations in the week before and 1 in the last day"
    )
    assert main(["drift", "--ledger", "x", "--evidence", "rows.jsonl"]) == 2
    assert "--evidence and --intents work only together" in capsys.readouterr().err
