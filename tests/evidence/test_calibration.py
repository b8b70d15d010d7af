"""Calibration: floors that keep a stated risk, probabilities that are frequencies, and YAML edited in place."""

import math
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from extproc.cli import evidence as commands
from extproc.cli.main import main
from extproc.config.compile import centroids_digest, compile_snapshot
from extproc.config.load import load_config
from extproc.config.schema import Intent
from extproc.config.strict_yaml import decode_yaml
from extproc.evidence.execution import Memory
from extproc.evidence.fit import edits
from extproc.evidence.fit.calibration import (
    FIT_SHARE,
    Fit,
    Matches,
    _why,
    best_kind,
    choose_floors,
    fit_probability,
    least_rows,
    place_of,
)
from extproc.settings import Evidence, Probability

CONFIGS = Path(__file__).parents[1] / "configs"


def traffic(rng, n, outside=0.1) -> Matches:
    """Matches as they come: surer ones are right more often; a tenth is out of scope, lower and never right."""
    similarity = rng.normal(0.6, 0.15, n)
    margin = np.abs(rng.normal(0.2, 0.1, n))
    chance = 1 / (1 + np.exp(-(8 * similarity + 10 * margin - 3.5)))
    inside = rng.random(n) > outside
    return Matches(similarity - 0.2 * ~inside, margin, (rng.random(n) < chance) & inside)


# Floors


@pytest.mark.parametrize("rows", [40, 150, 600])
@pytest.mark.parametrize("kind", ["similarity", "margin"])
def test_the_stated_risk_holds_over_resamples(rows, kind):
    """The mean share of wrong among accepted on much fresh traffic; a fit without a floor accepts nothing wrong."""
    rng = np.random.default_rng(rows)
    fresh = traffic(rng, 40_000)
    wrong = np.zeros(300)
    for i in range(300):
        floors = choose_floors(traffic(rng, rows), 0.1, kind)
        if floors is not None:
            accepted = fresh.accepted(*floors)
            wrong[i] = (accepted & ~fresh.right).sum() / max(accepted.sum(), 1)
    assert wrong.mean() <= 0.1 + 2 * wrong.std() / math.sqrt(len(wrong))
    assert (wrong > 0).sum() > 30


def test_much_data_accepts_nearly_all_that_the_risk_allows():
    """The bound is no timid one: with 20,000 rows the wrong share comes within a hundredth of it."""
    rng = np.random.default_rng(0)
    floors = choose_floors(traffic(rng, 20_000), 0.1, "similarity")
    assert floors is not None
    fresh = traffic(rng, 40_000)
    accepted = fresh.accepted(*floors)
    assert (accepted & ~fresh.right).sum() / accepted.sum() == pytest.approx(0.1, abs=0.01)


def matches(similarity, right) -> Matches:
    return Matches(np.array(similarity, dtype=float), np.full(len(right), 0.25), np.array(right, dtype=bool))


def test_a_floor_by_hand():
    """Of 40 rows the 30 surest are right: at 4 % (0 + 1) / 30 * 40 / 41 holds, and one row lower does not."""
    rows = matches([0.9 - i / 100 for i in range(40)], [True] * 30 + [False] * 10)
    assert choose_floors(rows, 0.04, "similarity") == (0.61, 0.0)
    assert choose_floors(rows, 0.03, "similarity") is None


def test_equal_scores_are_accepted_together():
    """A threshold cannot part them: with the wrong ones among them there is none."""
    assert choose_floors(matches([0.5] * 40, [True] * 38 + [False] * 2), 0.05, "similarity") is None
    assert choose_floors(matches([0.5] * 40, [True] * 40), 0.05, "similarity") == (0.5, 0.0)


@pytest.mark.parametrize("rows", [matches([], []), matches([0.9], [True]), matches([0.9] * 99, [False] * 99)])
def test_too_little_or_only_wrong_data_gives_no_floor(rows):
    """Nothing is claimed that was not shown."""
    assert choose_floors(rows, 0.05, "similarity") is None
    assert choose_floors(rows, 0.05, "margin") is None


def test_the_threshold_that_accepts_more_is_chosen_for_all_cohorts():
    """Where only the margin tells right from wrong, it is the margin."""
    rng = np.random.default_rng(1)
    right = rng.random(400) < 0.8
    told = Matches(rng.random(400), np.where(right, 0.3, 0.1) + rng.random(400) / 10, right)
    assert best_kind([told], 0.05) == "margin"
    assert best_kind([Matches(told.margin, told.similarity, right)], 0.05) == "similarity"


def test_the_rows_needed_are_those_that_would_show_it():
    """Twenty all right rows show 5 %; where a share is wrong it takes more, and where it is the risk, none do."""
    assert least_rows(0.05) == 20
    assert choose_floors(matches([0.9 - i / 1000 for i in range(20)], [True] * 20), 0.05, "similarity") is not None
    assert (least_rows(0.05, 0.03), least_rows(0.05, 0.05)) == (50, None)


def test_why_there_is_no_floor_says_what_would_help():
    """Rows, in all parts together, or other utterances; whatever share of the surer half is wrong."""
    few = matches([0.9] * 19, [True] * 19)
    tied = matches([0.9 - i / 100 for i in range(20)] + [0.1] * 20, [True] * 20 + [False] * 20)
    sure = matches([0.5] * 40, [True] * 37 + [False] * 3)
    assert [_why(rows, 99, 0.05, "similarity", 0.3) for rows in (few, tied, sure)] == [
        "needs about 67 labelled rows that land here; has 99",
        "0 % are wrong even of the surer half: needs about 134 labelled rows; has 99",
        "8 % are wrong even of the surer half: reword its utterances, or those it is confused with",
    ]


# Probability


def test_with_much_data_the_curve_is_scikit_learns_logistic_regression():
    """The same coefficients, about, where nothing has to be drawn to anything."""
    rows = traffic(np.random.default_rng(2), 20_000, outside=0)
    curve = fit_probability(rows, None)
    inputs = np.stack([rows.similarity, rows.margin], axis=1)
    theirs = LogisticRegression(C=1e6).fit(inputs, rows.right)
    assert (curve.similarity, curve.margin, curve.offset) == (
        pytest.approx(theirs.coef_[0, 0], rel=0.02),
        pytest.approx(theirs.coef_[0, 1], rel=0.02),
        pytest.approx(theirs.intercept_[0], rel=0.05),
    )


def test_a_probability_is_a_frequency():
    """Of fresh matches that were given about p, a share of p is right."""
    rng = np.random.default_rng(3)
    curve = fit_probability(traffic(rng, 4000, outside=0), None)
    fresh = traffic(rng, 40_000, outside=0)
    given = np.array([curve.of(s, m) for s, m in zip(fresh.similarity, fresh.margin, strict=True)])
    for low in (0.5, 0.7, 0.9):
        some = (given >= low) & (given < low + 0.1)
        assert fresh.right[some].mean() == pytest.approx(given[some].mean(), abs=0.03)


def test_what_is_nearer_is_never_less_likely_right():
    """Where the data says otherwise, the slope is 0."""
    rng = np.random.default_rng(4)
    rows = traffic(rng, 500)
    upside_down = Matches(rows.similarity, rows.margin, ~rows.right)
    curve = fit_probability(upside_down, None)
    assert (curve.similarity, curve.margin) == (0.0, 0.0)
    assert curve.of(0.5, 0.1) == pytest.approx(upside_down.right.mean(), abs=0.01)


@pytest.mark.parametrize("right", [[True] * 5, [False] * 5, [True], []], ids=str)
def test_a_cohort_of_few_rows_or_one_class_keeps_near_the_common_curve(right):
    """No slope runs away: what few rows say is drawn to what all say."""
    common = Probability(12.0, 8.0, -5.0)
    curve = fit_probability(matches([0.5 + i / 50 for i in range(len(right))], right), common)
    assert 0 < curve.similarity < 24 and 0 < curve.margin < 24
    assert math.isfinite(curve.offset)
    if not right:
        assert curve == common


# Splitting


def test_a_text_is_always_in_the_same_part():
    """By its words and the seed alone, so that repeated requests never stand on both sides."""
    places = np.array([place_of(f"text {i}", seed=0) for i in range(4000)])
    assert (places < FIT_SHARE).mean() == pytest.approx(FIT_SHARE, abs=0.03)
    assert places.tolist() == [place_of(f" Text  {i}", seed=0) for i in range(4000)]
    assert places.tolist() != [place_of(f"text {i}", seed=1) for i in range(4000)]


# The YAML

EVIDENCE = Evidence("2026-11-22", "123456789012", 240, "m", "1234567e8901", 0.05, (0.0, 0.0712), 0.93,
                    Probability(12.5, 0.0, -4.25))  # fmt: skip
WRITTEN = """\
# Bills, by hand
intent: billing   # do not rename
tier: small

# what people say
utterances:
  - Why is my invoice higher this month  # the classic
  - "Send my last invoice again"
  - >-
    Which card pays
    my invoice
"""


def with_evidence(text, floor, margin, evidence):
    """As `extproc calibrate --write` edits."""
    fit = Fit("billing", (0, 0), (0, 0, 0), (0, 0, 0), floor, margin, evidence)
    intent = decode_yaml("billing.yaml", text.encode(), Intent, [], {})
    return edits.with_settings(text, fit.changes(intent))


def test_values_are_put_above_the_utterances_and_nothing_else_changes():
    """Comments, quotes, folded texts and blank lines are the writer's."""
    edited = with_evidence(WRITTEN, 0.41, 0.0, EVIDENCE)
    added = """\
floor: 0.41
evidence: # written by `extproc calibrate`
  date: "2026-11-22"
  data: "123456789012"
  rows: 240
  encoder: "m"
  centroids: "1234567e8901"
  risk: 0.05
  wrong: [0.0, 0.0712]
  accepted: 0.93
  probability: {similarity: 12.5, margin: 0.0, offset: -4.25}
"""
    assert edited == WRITTEN.replace("# what people say\n", added + "# what people say\n")


def test_values_that_stand_there_are_replaced_where_they_stand():
    """Calibrating twice is calibrating once; a comment beside a value stays."""
    old = WRITTEN.replace("tier: small\n", "tier: small\nmargin: 0.2 # by feel\nfloor: 0.3 # by feel\n")
    once = with_evidence(old, 0.41, 0.0, EVIDENCE)
    assert "margin: 0 # by feel\nfloor: 0.41 # by feel\n" in once
    newer = msgspec.structs.replace(EVIDENCE, date="2026-12-01", rows=300)
    twice = with_evidence(once, 0.52, 0.1, newer)
    assert twice == once.replace("0.41", "0.52").replace("margin: 0 ", "margin: 0.1 ").replace(
        "2026-11-22", "2026-12-01"
    ).replace("rows: 240", "rows: 300")


@pytest.mark.parametrize(
    "text",
    ["{intent: a, tier: small, utterances: [a b, c d, e f]}\n", "intent: a\ntier: small\n'utterances': [a b]\n"],
)
def test_a_file_that_cannot_be_edited_by_lines_is_refused(text):
    """Rather than dumped anew without its layout."""
    with pytest.raises(ValueError, match="one key a line"):
        with_evidence(text, 0.41, 0.0, EVIDENCE)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("", 'encoder: {model: "../e/m-1"}\n'),
        ("encoder: {deadline_ms: 90}  # slow\n", 'encoder: {model: "../e/m-1", deadline_ms: 90}  # slow\n'),
        ("encoder:\n  deadline_ms: 90\n", 'encoder:\n  model: "../e/m-1"\n  deadline_ms: 90\n'),
        ("encoder: {deadline_ms: 90, model: old}\n", 'encoder: {deadline_ms: 90, model: "../e/m-1"}\n'),
        ("encoder:\n  model: 'old' # ours\n", 'encoder:\n  model: "../e/m-1" # ours\n'),
    ],
    ids=["none", "flow", "block", "in flow", "in block"],
)
def test_another_encoder_is_written_where_the_old_one_stood(folder, old, new):
    """And nothing else of policy.yaml changes: tiers keep their models."""
    path = folder / "policy.yaml"
    text = path.read_text()
    path.write_text(text + old)
    line = load_config(folder).lines.get(("policy.yaml", ".encoder.model"))
    assert edits.with_encoder(text + old, line, "../e/m-1") == text + new


# The command


@pytest.fixture
def folder(tmp_path, words, monkeypatch):
    monkeypatch.setattr(commands, "patient_encoder", lambda intents: Memory(words))
    return Path(shutil.copytree(CONFIGS / "good", tmp_path / "intents"))


def labelled(tmp_path, billing=120, cooking=10):
    """Traffic of two intents, and some of neither; every text another one."""
    rows = [{"text": f"Is my invoice wrong this month {i}", "intent": "billing"} for i in range(billing)]
    rows += [{"text": f"How long does the egg recipe take {i}", "intent": "cooking"} for i in range(cooking)]
    rows += [{"text": f"What month is it {i}", "intent": "oos"} for i in range(billing // 10)]
    path = tmp_path / "labelled.jsonl"
    path.write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in rows))
    return path


def test_the_command_shows_the_change_and_writes_it_only_if_asked(folder, tmp_path, words, capsys):
    """One cohort has enough rows; the other is told how many it needs and stays as it was."""
    data, before = labelled(tmp_path), {path.name: path.read_text() for path in folder.iterdir()}
    assert commands.run_calibrate(folder, data, 0.05, "2026-11-22", 0, write=False) == 0
    shown = capsys.readouterr().out
    assert "cooking               uncalibrated: needs about 34 labelled rows that land here; has 10" in shown
    assert f"+++ {folder}/billing.yaml (calibrated)\n@@ -3,2 +3,13 @@\n" in shown
    assert shown.endswith("\n1 files not written: give --write to apply this\n")
    assert {path.name: path.read_text() for path in folder.iterdir()} == before

    assert commands.run_calibrate(folder, data, 0.05, "2026-11-22", 0, write=True) == 0
    assert capsys.readouterr().out == shown.replace(
        "files not written: give --write to apply this", "files changed and written"
    )
    config = load_config(folder)
    cohorts = compile_snapshot(config, words).policy.cohorts
    assert (cohorts["billing"].calibrated, cohorts["cooking"].calibrated) == (True, False)
    evidence = cohorts["billing"].evidence
    assert evidence is not None and evidence.centroids == centroids_digest(config)
    assert (evidence.date, evidence.risk, evidence.wrong[0]) == ("2026-11-22", 0.05, 0.0)
    assert (folder / "cooking.yaml").read_text() == before["cooking.yaml"]


def test_calibrating_again_on_the_same_rows_changes_nothing(folder, tmp_path, words, capsys):
    """The fit depends on the matches, not on the floors of now; and the same seed is the same split."""
    data = labelled(tmp_path)
    commands.run_calibrate(folder, data, 0.05, "2026-11-22", 0, write=True)
    capsys.readouterr()
    commands.run_calibrate(folder, data, 0.05, "2026-11-22", 0, write=True)
    assert capsys.readouterr().out.endswith("\nnothing to change\n")


def test_a_file_keeps_its_line_ends_and_its_mode(folder, tmp_path):
    """What nobody asked to change is not changed."""
    path, data = folder / "billing.yaml", labelled(tmp_path)
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    path.chmod(0o640)
    before = path.read_bytes().splitlines(keepends=True)
    commands.run_calibrate(folder, data, 0.05, "2026-11-22", 0, write=True)
    after = path.read_bytes().splitlines(keepends=True)
    assert [line for line in after if line in before] == before
    assert [line for line in after if not line.endswith(b"\r\n")] == []
    assert (len(after) - len(before), path.stat().st_mode & 0o777) == (11, 0o640)


def test_traffic_without_labels_calibrates_nothing(folder, tmp_path):
    """It says what is missing."""
    path = tmp_path / "plain.jsonl"
    path.write_text('{"text": "Is my invoice wrong"}\n')
    with pytest.raises(ValueError, match="no labelled row has a match: give rows an `intent`"):
        commands.run_calibrate(folder, path, 0.05, "2026-11-22", 0, write=False)
    path.write_text('{"request": {"model": "gpt-4o", "prompt": "Is my invoice wrong"}, "intent": "billing"}\n')
    with pytest.raises(ValueError, match="no labelled row has a match: `extproc eval` says why"):
        commands.run_calibrate(folder, path, 0.05, "2026-11-22", 0, write=False)


def test_a_date_that_is_none_is_told_by_its_option(capsys):
    """Not by what Python calls it alone."""
    with pytest.raises(SystemExit) as ended:
        main(["calibrate", "--intents", "nowhere", "nothing.jsonl", "--date", "2026-13-09"])
    assert ended.value.code == 2
    assert capsys.readouterr().err.splitlines()[0] == (
        "extproc calibrate: argument --date: found `2026-13-09`, expected a day as YYYY-MM-DD, "
        "as in 2026-11-22 (month must be in 1..12)"
    )
