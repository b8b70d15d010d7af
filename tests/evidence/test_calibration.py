"""Calibration: floors that keep a stated risk, probabilities that match frequencies, and YAML edited in place."""

import math
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from extproc.cli import evidence as commands
from extproc.cli import evidence_calibrate as fitting
from extproc.cli.main import main
from extproc.cli.report_files import ReportFiles
from extproc.config.compile import centroids_digest, compile_snapshot
from extproc.config.load import load_config
from extproc.config.schema import Intent
from extproc.config.strict_yaml import decode_yaml
from extproc.evidence.data.groups import distinct, group_rows
from extproc.evidence.execution import Memory
from extproc.evidence.fit import edits
from extproc.evidence.fit.calibration import Counts, FloorFit, counts_of
from extproc.evidence.fit.floor_choice import FloorChoice, choose_all, strictest_floors, why_no_floors
from extproc.evidence.fit.floors import best_kind, choose_floors, least_rows
from extproc.evidence.fit.labelled import LabelledRows, Matches
from extproc.evidence.fit.partition import FIT_SHARE, hash_fraction
from extproc.evidence.fit.probability import fit_probability
from extproc.settings import Evidence, Probability
from tests.evidence.texts import letters

CONFIGS = Path(__file__).parents[1] / "configs"


def traffic(rng, n, outside=0.1) -> Matches:
    """Return simulated matches. Surer ones are right more often. The share `outside` is lower and never right."""
    similarity = rng.normal(0.6, 0.15, n)
    margin = np.abs(rng.normal(0.2, 0.1, n))
    chance = 1 / (1 + np.exp(-(8 * similarity + 10 * margin - 3.5)))
    inside = rng.random(n) > outside
    return Matches(similarity - 0.2 * ~inside, margin, (rng.random(n) < chance) & inside)


# Floors


@pytest.mark.parametrize("rows", [40, 150, 600])
@pytest.mark.parametrize("kind", ["similarity", "margin"])
def test_the_stated_risk_holds_over_resamples(rows, kind):
    """It is the mean share of wrong matches among accepted ones on fresh traffic. No floor accepts nothing."""
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
    """The bound is tight: with 20,000 rows the share of wrong matches is within 0.01 of it."""
    rng = np.random.default_rng(0)
    floors = choose_floors(traffic(rng, 20_000), 0.1, "similarity")
    assert floors is not None
    fresh = traffic(rng, 40_000)
    accepted = fresh.accepted(*floors)
    assert (accepted & ~fresh.right).sum() / accepted.sum() == pytest.approx(0.1, abs=0.01)


def matches(similarity, right) -> Matches:
    return Matches(np.array(similarity, dtype=float), np.full(len(right), 0.25), np.array(right, dtype=bool))


def test_a_floor_computed_by_hand():
    """The surest 30 of 40 rows are right. (0 + 1) / 30 * 40 / 41 is below 4 %, and with one more row it is not."""
    rows = matches([0.9 - i / 100 for i in range(40)], [True] * 30 + [False] * 10)
    assert choose_floors(rows, 0.04, "similarity") == (0.61, 0.0)
    assert choose_floors(rows, 0.03, "similarity") is None


def test_equal_scores_are_accepted_together():
    """A threshold cannot separate them. If some of them are wrong, there is no floor."""
    assert choose_floors(matches([0.5] * 40, [True] * 38 + [False] * 2), 0.05, "similarity") is None
    assert choose_floors(matches([0.5] * 40, [True] * 40), 0.05, "similarity") == (0.5, 0.0)


@pytest.mark.parametrize("rows", [matches([], []), matches([0.9], [True]), matches([0.9] * 99, [False] * 99)])
def test_too_little_or_only_wrong_data_gives_no_floor(rows):
    """A floor needs enough rows that are right."""
    assert choose_floors(rows, 0.05, "similarity") is None
    assert choose_floors(rows, 0.05, "margin") is None


def test_the_threshold_that_accepts_more_is_chosen_for_all_cohorts():
    """The margin is chosen if only the margin separates right from wrong."""
    rng = np.random.default_rng(1)
    right = rng.random(400) < 0.8
    by_margin = Matches(rng.random(400), np.where(right, 0.3, 0.1) + rng.random(400) / 10, right)
    assert best_kind([by_margin], 0.05) == "margin"
    assert best_kind([Matches(by_margin.margin, by_margin.similarity, right)], 0.05) == "similarity"


def test_the_number_of_rows_that_shows_a_risk():
    """Twenty right rows show 5 %. If 3 % are wrong, it takes 50 rows. If 5 % are wrong, no number of rows does."""
    assert least_rows(0.05) == 20
    assert choose_floors(matches([0.9 - i / 1000 for i in range(20)], [True] * 20), 0.05, "similarity") is not None
    assert (least_rows(0.05, 0.03), least_rows(0.05, 0.05)) == (50, None)


def test_the_reason_for_no_floor_says_what_to_do():
    """It asks for rows or for other utterances."""
    few = matches([0.9] * 19, [True] * 19)
    tied = matches([0.9 - i / 100 for i in range(20)] + [0.1] * 20, [True] * 20 + [False] * 20)
    sure = matches([0.5] * 40, [True] * 37 + [False] * 3)
    assert [why_no_floors(rows, 0.05, "similarity") for rows in (few, tied, sure)] == [
        "needs about 20 distinct labelled rows that land here; has 19",
        "0 % of the surer half of its matches are wrong: needs about 40 distinct labelled rows; has 40",
        "8 % of the surer half of its matches are wrong: "
        "reword its utterances, or those of cohorts that it is confused with",
    ]


# Groups and pools


def test_asks_that_differ_in_a_number_an_id_or_a_name_are_one_piece_of_evidence():
    """So are long asks that differ in one word. Short ones that differ in a word are not."""
    texts = [
        "Where is order 4711?", "where is order A-99",
        "Where is the order of Anna Smith", "where is the order of Bo",
        "I ordered a red chair last week and it is broken", "I ordered a blue chair last week and it is broken",
        "cancel my flight", "cancel my order", "Where is my order?",
    ]  # fmt: skip
    assert group_rows(texts, [None] * 9).tolist() == [0, 0, 1, 1, 2, 2, 3, 4, 5]


def test_the_asks_of_one_session_or_user_are_one_piece_of_evidence():
    """An ask that several people make joins nobody, and is one piece of evidence itself."""
    texts = ["hello", "pay my bill", "cancel it", "hello", "a recipe please"]
    groups = group_rows(texts, ["anna", "anna", "anna", "bo", None])
    assert groups.tolist() == [0, 1, 1, 0, 2]
    assert distinct(groups) == 3


def test_repeated_rows_change_no_floor_and_no_interval():
    """Twenty repetitions of 120 rows are 120 rows."""
    rng = np.random.default_rng(5)
    once = traffic(rng, 120)
    again = np.tile(np.arange(120), 20)
    often = msgspec.structs.replace(
        Matches(once.similarity[again], once.margin[again], once.right[again]), groups=again
    )
    assert choose_floors(often, 0.2, "margin") == choose_floors(once, 0.2, "margin")
    assert (often.distinct, often.wrong) == (120, pytest.approx(once.wrong))
    accepted = once.margin > 0.2
    counts, repeated = (
        counts_of(each, np.ones(len(chosen), dtype=bool), chosen)
        for each, chosen in ((once, accepted), (often, accepted[again]))
    )
    assert (repeated.rows, repeated.accepted, repeated.interval) == (120, accepted.sum(), counts.interval)
    assert fit_probability(often, None).similarity == pytest.approx(
        fit_probability(once, None).similarity, rel=1e-3
    )


def pooled(rng, cohorts, each, wrong=()) -> LabelledRows:
    """Return rows of many cohorts. Those in `wrong` are wrong in half of their matches, however sure these are."""
    matches = traffic(rng, cohorts * each, outside=0.05)
    landed = np.array([f"c{i % cohorts}" for i in range(cohorts * each)], dtype=object)
    half = np.isin(landed.astype(str), list(wrong)) & (rng.random(len(landed)) < 0.5)
    matches = msgspec.structs.replace(matches, right=matches.right & ~half)
    none = np.zeros(len(landed), dtype=bool)
    return LabelledRows([""] * len(landed), landed, landed, matches, none, none)


def test_cohorts_with_ten_rows_share_a_margin_that_keeps_the_risk_over_all_of_them():
    """The mean share of wrong matches over many fits is within the risk, and most of what can be accepted is."""
    rng, floors = np.random.default_rng(6), {f"c{i}": -1.0 for i in range(30)}
    fresh = traffic(rng, 40_000, outside=0.05)
    wrong, accepted = [], []
    for _ in range(100):
        choices, _ = choose_all(pooled(rng, 30, 10), floors, 0.1)
        margins = {choice.margin for choice in choices.values() if choice.pooled}
        assert len(margins) <= 1
        taken = fresh.accepted(-1.0, margins.pop()) if margins else np.zeros(40_000, dtype=bool)
        wrong.append((taken & ~fresh.right).sum() / max(taken.sum(), 1))
        accepted.append(taken.mean())
    assert np.mean(wrong) <= 0.1 + 2 * np.std(wrong) / math.sqrt(len(wrong))
    assert np.mean(accepted) > 0.3


def test_a_cohort_that_is_too_often_wrong_leaves_the_pool_and_abstains():
    """The others keep their margin."""
    rng = np.random.default_rng(7)
    rows = pooled(rng, 20, 25, wrong=["c3"])
    choices, _ = choose_all(rows, {f"c{i}": -1.0 for i in range(20)}, 0.1)
    assert not choices["c3"].fitted
    assert "of the surer half of its matches are wrong" in choices["c3"].why
    assert sum(choice.fitted for choice in choices.values()) >= 15


def test_cohorts_with_39_percent_wrong_abstain_beside_calibrated_ones():
    """Three of nine cohorts are always right. In the six others 45 of 115 are wrong, with sure matches, too."""
    rng, names = np.random.default_rng(14), [f"c{i}" for i in range(9)]
    landed = np.repeat(np.array(names, dtype=object), 115)
    right = np.concatenate([np.ones(3 * 115), *(rng.permutation(115) >= 45 for _ in range(6))]).astype(bool)
    found = Matches(rng.normal(0.6, 0.15, len(right)), np.abs(rng.normal(0.2, 0.1, len(right))), right)
    none = np.zeros(len(right), dtype=bool)
    rows = LabelledRows([""] * len(right), landed, landed, found, none, none)
    choices, _ = choose_all(rows, dict.fromkeys(names, -1.0), 0.05)
    assert [name for name in names if choices[name].fitted] == names[:3]
    assert 1 - right[3 * 115 :].mean() == pytest.approx(0.391, abs=0.0005)
    for name in names[3:]:
        assert "of the surer half of its matches are wrong" in choices[name].why


@pytest.mark.parametrize(("cohorts", "shares"), [(2, False), (3, True)])
def test_a_cohort_with_hardly_a_row_shares_a_margin_only_with_several(cohorts, shares):
    """A margin that holds over three cohorts holds for one more. With fewer it abstains."""
    rows = pooled(np.random.default_rng(8), cohorts, 45)
    choices, _ = choose_all(rows, {**{f"c{i}": -1.0 for i in range(cohorts)}, "new": 0.1}, 0.1)
    assert all(choices[f"c{i}"].pooled for i in range(cohorts))
    assert (choices["new"].floor, choices["new"].margin) == (0.1, choices["c0"].margin) or not shares
    assert choices["new"].fitted == shares
    assert shares or choices["new"].why == "needs about 10 distinct labelled rows that land here; has 0"


def test_a_shared_margin_accepts_only_what_the_chances_accept_and_is_fitted_on_that():
    """Sure matches that are wrong do not raise the margin if the chances reject them. Otherwise they do."""
    rng, floors = np.random.default_rng(13), {f"c{i}": -1.0 for i in range(10)}
    rows = pooled(rng, 10, 40)
    wrong = np.arange(400) // 10 % 5 == 0
    matches = msgspec.structs.replace(
        rows.matches, right=rows.matches.right & ~wrong, margin=np.where(wrong, 0.4, rows.matches.margin)
    )
    rows = msgspec.structs.replace(rows, matches=matches, likely=~wrong)
    clean, _ = choose_all(rows.subset(~wrong), floors, 0.1)
    choices, _ = choose_all(rows, floors, 0.1)
    assert choices["c1"].pooled and choices["c1"].margin == clean["c1"].margin
    assert not (choices["c1"].accepted(rows) & wrong).any()
    assert choices["c1"].accepted(rows).sum() > 100
    at_any_chance, _ = choose_all(msgspec.structs.replace(rows, likely=None), floors, 0.1)
    assert not at_any_chance["c1"].fitted or at_any_chance["c1"].margin > 0.4
    assert FloorChoice(-1.0, 0.0).accepted(rows).all()  # the own floors of a cohort


# Sources and weights


def from_sources(rng, sources, each) -> LabelledRows:
    """Return rows of one cohort. Each source has its own share of wrong matches among the sure ones, too."""
    matches = traffic(rng, sources * each, outside=0)
    source = np.repeat(np.arange(sources), each)
    unlucky = rng.random(sources * each) < rng.choice([0.0, 0.25], sources, p=[0.7, 0.3])[source]
    matches = msgspec.structs.replace(matches, right=matches.right & ~unlucky)
    names, none = np.array(["a"] * len(source), dtype=object), np.zeros(len(source), dtype=bool)
    labels = np.array([f"s{i}" for i in source], dtype=object)
    return LabelledRows([""] * len(source), names, names, matches, none, none, sources=labels)


def test_floors_hold_better_on_a_new_source_if_no_source_alone_makes_them_low():
    """One fit without each source, and the strictest counts. Without names of sources more is wrong on new ones."""
    rng = np.random.default_rng(9)
    wrong: dict[str, list[float]] = {"named": [], "not named": []}
    for _ in range(150):
        rows, fresh = from_sources(rng, 6, 40), from_sources(rng, 20, 40).matches
        for name, each in (("named", rows), ("not named", msgspec.structs.replace(rows, sources=None))):
            floors = strictest_floors(each, 0.1, "margin")
            accepted = fresh.accepted(*floors) if floors is not None else np.zeros(len(fresh.right), dtype=bool)
            wrong[name].append((accepted & ~fresh.right).sum() / max(accepted.sum(), 1))
    assert np.mean(wrong["named"]) < np.mean(wrong["not named"]) - 0.01
    assert np.mean(wrong["named"]) <= 0.1


def test_the_strictest_of_the_fits_without_a_source_counts():
    """If one of them has no floors, there are none."""
    rows = from_sources(np.random.default_rng(10), 4, 60)
    source = np.repeat(np.arange(4), 60)
    fits = [choose_floors(rows.matches.subset(source != i), 0.2, "margin") for i in range(4)]
    everything = choose_floors(rows.matches, 0.2, "margin")
    assert everything is not None and all(fit is not None for fit in fits)
    margins = [fit[1] for fit in (everything, *fits) if fit is not None]
    assert strictest_floors(rows, 0.2, "margin") == (everything[0], max(margins))
    assert len(set(margins)) > 1
    few = rows.subset((source < 2) & (np.arange(240) % 60 < 8))
    assert strictest_floors(few, 0.1, "margin") is None


def test_a_weighted_sample_gives_about_the_floors_of_its_log():
    """Unsure rows are drawn eight times as often, as `extproc sample` draws them. Without weights floors differ."""
    rng = np.random.default_rng(11)
    log = traffic(rng, 20_000)
    chance = np.where(log.similarity < np.median(log.similarity), 0.16, 0.02)
    whole = choose_floors(log, 0.1, "similarity")
    assert whole is not None
    weighted: list[float] = []
    unweighted: list[float] = []
    for _ in range(30):
        drawn = rng.random(20_000) < chance
        sample = log.subset(drawn)
        for similarities, each in (
            (weighted, msgspec.structs.replace(sample, mass=1 / chance[drawn])), (unweighted, sample)
        ):  # fmt: skip
            floors = choose_floors(each, 0.1, "similarity")
            assert floors is not None
            similarities.append(floors[0])
    assert np.mean(weighted) == pytest.approx(whole[0], abs=0.02)
    assert np.mean(unweighted) > whole[0] + 0.05


def test_the_same_weight_everywhere_changes_nothing():
    """Only the ratios of weights count."""
    rows = traffic(np.random.default_rng(12), 300)
    tenfold = msgspec.structs.replace(rows, mass=np.full(300, 10.0))
    assert choose_floors(tenfold, 0.1, "similarity") == choose_floors(rows, 0.1, "similarity")
    assert fit_probability(tenfold, None) == fit_probability(rows, None)
    accepted, every = rows.margin > 0.2, np.ones(300, dtype=bool)
    with_weights, without = (counts_of(each, every, accepted) for each in (tenfold, rows))
    assert with_weights.interval == without.interval
    assert with_weights.accepted_share == pytest.approx(without.accepted_share)
    assert with_weights.wrong == pytest.approx(10 * without.wrong)


def test_weights_widen_the_interval_and_say_what_is_wrong_in_the_traffic():
    """One row that stands for 90 of 100 is wrong. The interval is that of about one row, not of eleven."""
    rows = msgspec.structs.replace(matches([0.9] * 11, [False] + [True] * 10), mass=np.array([90.0] + [1.0] * 10))
    counts = counts_of(rows, np.ones(11, dtype=bool), np.ones(11, dtype=bool))
    assert (counts.rows, counts.wrong_share) == (11, pytest.approx(0.9))
    assert counts.effective == pytest.approx(100**2 / (90**2 + 10))
    assert counts.interval[0] < 0.1 and counts.interval[1] > 0.99


# Probability


def test_with_much_data_the_curve_is_that_of_scikit_learn():
    """With many rows the prior has little weight, and the coefficients are nearly the same."""
    rows = traffic(np.random.default_rng(2), 20_000, outside=0)
    curve = fit_probability(rows, None)
    inputs = np.stack([rows.similarity, rows.margin], axis=1)
    theirs = LogisticRegression(C=1e6).fit(inputs, rows.right)
    assert (curve.similarity, curve.margin, curve.offset) == (
        pytest.approx(theirs.coef_[0, 0], rel=0.02),
        pytest.approx(theirs.coef_[0, 1], rel=0.02),
        pytest.approx(theirs.intercept_[0], rel=0.05),
    )


def test_a_probability_matches_the_frequency():
    """Among fresh matches with a probability of about p, the share p is right."""
    rng = np.random.default_rng(3)
    curve = fit_probability(traffic(rng, 4000, outside=0), None)
    fresh = traffic(rng, 40_000, outside=0)
    chances = np.array([curve.of(s, m) for s, m in zip(fresh.similarity, fresh.margin, strict=True)])
    for low in (0.5, 0.7, 0.9):
        near = (chances >= low) & (chances < low + 0.1)
        assert fresh.right[near].mean() == pytest.approx(chances[near].mean(), abs=0.03)


def test_a_nearer_match_is_never_less_likely_right():
    """If the data shows the opposite, the slope is 0."""
    rng = np.random.default_rng(4)
    rows = traffic(rng, 500)
    upside_down = Matches(rows.similarity, rows.margin, ~rows.right)
    curve = fit_probability(upside_down, None)
    assert (curve.similarity, curve.margin) == (0.0, 0.0)
    assert curve.of(0.5, 0.1) == pytest.approx(upside_down.right.mean(), abs=0.01)


@pytest.mark.parametrize("right", [[True] * 5, [False] * 5, [True], []], ids=str)
def test_a_cohort_of_few_rows_or_one_class_keeps_near_the_common_curve(right):
    """The coefficients of few rows are shrunk towards those of all rows, so no slope grows without bound."""
    common = Probability(12.0, 8.0, -5.0)
    curve = fit_probability(matches([0.5 + i / 50 for i in range(len(right))], right), common)
    assert 0 < curve.similarity < 24 and 0 < curve.margin < 24
    assert math.isfinite(curve.offset)
    if not right:
        assert curve == common


# Splitting


def test_a_text_is_always_in_the_same_part():
    """Its part depends only on its words and the seed, so repeated requests are never in two parts."""
    fractions = np.array([hash_fraction(f"text {i}", seed=0) for i in range(4000)])
    assert (fractions < FIT_SHARE).mean() == pytest.approx(FIT_SHARE, abs=0.03)
    assert fractions.tolist() == [hash_fraction(f" Text  {i}", seed=0) for i in range(4000)]
    assert fractions.tolist() != [hash_fraction(f"text {i}", seed=1) for i in range(4000)]


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
    """Return the text as `extproc calibrate --write` edits it."""
    fit = FloorFit("billing", 0, Counts(0, 0, 0), Counts(0, 0, 0), floor, margin, evidence)
    intent = decode_yaml("billing.yaml", text.encode(), Intent, [], {})
    assert intent is not None
    return edits.with_settings(text, fit.changes(intent))


def test_values_are_inserted_above_the_utterances_and_nothing_else_changes():
    """Comments, quotes, folded texts and blank lines stay."""
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


def test_existing_values_are_replaced_in_place():
    """Calibrating twice changes the same lines. A comment beside a value stays."""
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
    """The file is not rewritten without its layout."""
    with pytest.raises(ValueError, match="one key per line"):
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
def test_another_encoder_is_written_in_place_of_the_old_one(folder, old, new):
    """Nothing else in policy.yaml changes: tiers keep their models."""
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
    """Write traffic of two intents and some out of scope. No text is repeated."""
    rows = [{"text": f"Is my invoice wrong this month {letters(i)}", "intent": "billing"} for i in range(billing)]
    rows += [
        {"text": f"How long does the egg recipe take {letters(i)}", "intent": "cooking"} for i in range(cooking)
    ]
    rows += [{"text": f"What month is it {letters(i)}", "intent": "oos"} for i in range(billing // 10)]
    path = tmp_path / "labelled.jsonl"
    path.write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in rows))
    return path


def test_the_command_shows_the_change_and_writes_it_only_if_asked(folder, tmp_path, words, capsys):
    """One cohort has enough rows. The other abstains, and the output says how many rows it needs."""
    data, before = labelled(tmp_path, cooking=3), {path.name: path.read_text() for path in folder.iterdir()}
    assert fitting.run_calibrate(folder, data, 0.05, "2026-11-22", 0, write=False) == 0
    shown = capsys.readouterr().out
    why = "abstains: needs about 20 distinct labelled rows that land here; has 4"
    assert f"\ncooking                    4  {why}\n" in shown
    assert f"+++ {folder}/billing.yaml (calibrated)\n" in shown
    assert shown.endswith(" files not written: give --write to apply this\n")
    assert {path.name: path.read_text() for path in folder.iterdir()} == before

    assert fitting.run_calibrate(folder, data, 0.05, "2026-11-22", 0, write=True) == 0
    assert capsys.readouterr().out == shown.replace(
        "files not written: give --write to apply this", "files changed and written"
    )
    config = load_config(folder)
    cohorts = compile_snapshot(config, words).policy.cohorts
    assert (cohorts["billing"].calibrated, cohorts["cooking"].calibrated) == (True, False)
    assert (cohorts["billing"].abstains, cohorts["cooking"].abstains) == (False, True)
    evidence = cohorts["billing"].evidence
    assert evidence is not None and evidence.centroids == centroids_digest(config)
    assert (evidence.date, evidence.risk, evidence.wrong[0]) == ("2026-11-22", 0.05, 0.0)
    assert "abstains: true\n" in (folder / "cooking.yaml").read_text()


def test_the_fit_is_a_page_and_json_too(folder, tmp_path, capsys):
    """Both have the verdicts first, the floors, and the change to the files. Neither has a text of a row."""
    data, page, numbers = labelled(tmp_path, cooking=3), tmp_path / "fit.html", tmp_path / "fit.json"
    files = ReportFiles(page, numbers)
    assert fitting.run_calibrate(folder, data, 0.05, "2026-11-22", 0, write=False, files=files) == 0
    shown, html, read = capsys.readouterr().out, page.read_text(), msgspec.json.decode(numbers.read_bytes())
    assert shown.startswith("{word}: {sentence}".format(**read["verdicts"][0]))
    assert html.index(f"<b>{read['verdicts'][0]['word']}</b>") < html.index("<table")
    assert (read["risk"], read["written"]) == (0.05, False)
    floors = {fit["name"]: fit["floor"] for fit in read["floors"]["fits"]}
    assert f"<td>{floors['billing']:.4f}</td>" in html and floors["cooking"] is None
    assert "needs about 20 distinct labelled rows that land here; has 4" in html
    assert list(read["changes"]) == [f"{folder}/billing.yaml", f"{folder}/cooking.yaml"]
    assert f"+floor: {floors['billing']}" in read["changes"][f"{folder}/billing.yaml"]
    assert f"+++ {folder}/billing.yaml (calibrated)" in html
    assert "Is my invoice wrong this month" not in html + numbers.read_text()


def test_a_cohort_that_abstains_is_shown_until_the_operator_accepts_it(
    folder, tmp_path, words, monkeypatch, capsys
):
    """Its settings do not apply, in `check` and `explain`, too. `abstain: off` accepts its matches."""
    monkeypatch.setattr("extproc.encoder.backends.load_encoder", lambda model: words)
    monkeypatch.setattr("extproc.cli.explain.load_encoder", lambda model: words)
    fitting.run_calibrate(folder, labelled(tmp_path, cooking=3), 0.05, "2026-11-22", 0, write=True)
    ask = ["explain", "--intents", str(folder), "How long does the egg recipe take"]
    capsys.readouterr()
    assert main(["check", str(folder)]) == 0
    assert "\nabstain (no floor keeps the risk, so their settings do not apply): cooking (" in (
        capsys.readouterr().out
    )
    assert main(ask) == 0
    assert "because abstained" in capsys.readouterr().out
    path = folder / "cooking.yaml"
    path.write_text(path.read_text().replace("utterances:", "abstain: off\nutterances:"))
    assert main(["check", str(folder)]) == 0
    assert "\naccepted by `abstain: off` (no floor keeps the risk): cooking (" in capsys.readouterr().out
    assert main(ask) == 0
    assert "because matched" in capsys.readouterr().out


def test_calibrating_again_on_the_same_rows_changes_nothing(folder, tmp_path, words, capsys):
    """The fit depends on the matches, not on the current floors. The same seed gives the same split."""
    data = labelled(tmp_path)
    fitting.run_calibrate(folder, data, 0.05, "2026-11-22", 0, write=True)
    capsys.readouterr()
    fitting.run_calibrate(folder, data, 0.05, "2026-11-22", 0, write=True)
    assert capsys.readouterr().out.endswith("\nnothing to change\n")


def test_a_file_keeps_its_line_ends_and_its_mode(folder, tmp_path):
    """Only the fitted values change."""
    path, data = folder / "billing.yaml", labelled(tmp_path)
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    path.chmod(0o640)
    before = path.read_bytes().splitlines(keepends=True)
    fitting.run_calibrate(folder, data, 0.05, "2026-11-22", 0, write=True)
    after = path.read_bytes().splitlines(keepends=True)
    assert [line for line in after if line in before] == before
    assert [line for line in after if not line.endswith(b"\r\n")] == []
    assert (len(after) - len(before), path.stat().st_mode & 0o777) == (14, 0o640)


def test_the_evidence_has_the_deciles_of_its_rows_if_they_are_enough(folder, tmp_path):
    """The router compares its traffic with them."""
    fitting.run_calibrate(folder, labelled(tmp_path), 0.05, "2026-11-22", 0, write=True)
    evidence = {intent.intent: intent.evidence for intent in load_config(folder).intents}
    assert evidence["billing"] is not None
    deciles = evidence["billing"].deciles
    assert deciles is not None and len(deciles) == 9 and list(deciles) == sorted(deciles)
    assert -1 <= deciles[0] <= deciles[8] <= 1
    assert evidence["cooking"] is not None and evidence["cooking"].deciles is None  # of ten rows


def test_traffic_without_labels_calibrates_nothing(folder, tmp_path):
    """The error says what is missing."""
    path = tmp_path / "plain.jsonl"
    path.write_text('{"text": "Is my invoice wrong"}\n')
    with pytest.raises(ValueError, match="no labelled row has a match: give rows an `intent`"):
        fitting.run_calibrate(folder, path, 0.05, "2026-11-22", 0, write=False)
    path.write_text('{"request": {"model": "gpt-4o", "prompt": "Is my invoice wrong"}, "intent": "billing"}\n')
    with pytest.raises(ValueError, match="no labelled row has a match: run `extproc eval` to see why"):
        fitting.run_calibrate(folder, path, 0.05, "2026-11-22", 0, write=False)


def test_an_error_about_a_date_names_the_option(capsys):
    """Python's message follows the name of the option."""
    with pytest.raises(SystemExit) as ended:
        main(["calibrate", "--intents", "nowhere", "nothing.jsonl", "--date", "2026-13-09"])
    assert ended.value.code == 2
    assert capsys.readouterr().err.splitlines()[0] == (
        "extproc calibrate: argument --date: found `2026-13-09`, expected a day as YYYY-MM-DD, "
        "as in 2026-11-22 (month must be in 1..12)"
    )
