"""Comparing two configurations: flips, changes in quality and cost, and the verdict of the gate."""

import math
import shutil

import msgspec
import numpy as np
import pytest

from extproc.cli import evidence as commands
from extproc.cli.main import main
from extproc.evidence.data.traffic import read_traffic
from extproc.evidence.execution import Memory, execute
from extproc.evidence.measure.comparison import (
    COST,
    QUALITY,
    ROUTING,
    Cell,
    Comparison,
    Flip,
    compare,
    sign_flip,
)
from extproc.evidence.measure.gate import Passage, Power, gate, gate_report, least_drop
from extproc.evidence.measure.lowered import Lowered
from extproc.evidence.measure.metrics import Estimate
from extproc.evidence.show.comparison import comparison_text, gate_text
from tests.evidence.asks import alone
from tests.evidence.folders import good_folder
from tests.evidence.texts import letters

BILL, COOK = "Is my invoice wrong this month", "How long does the egg recipe take"


@pytest.fixture
def folders(tmp_path):
    """The good folder twice, with floors that reject a text that shares no word."""
    return [good_folder(tmp_path / name, floor=0.2) for name in ("old", "new")]


def edit(folder, file, old, new):
    path = folder / file
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def row(text, small, large, intent="billing"):
    outcomes = {
        tier: {"success": good, "tokens_in": 100, "tokens_out": 0}
        for tier, good in (("small", small), ("large", large))
    }
    return {"text": text, "intent": intent, "outcomes": outcomes}


def traffic(tmp_path, rows):
    path = tmp_path / "traffic.jsonl"
    path.write_bytes(b"".join(msgspec.json.encode(each) + b"\n" for each in rows))
    return path


def compared(folders, tmp_path, words, tokens, rows, seed=0):
    data, memory = read_traffic(traffic(tmp_path, rows)), Memory(words)
    old, new = (execute(folder, memory, data, tokens) for folder in folders)
    return compare(old, new, seed)


def mixed(n):
    """Bills that both tiers answer well, and recipes that only the large tier answers well."""
    bills = [row(alone(BILL, i), True, True) for i in range(n)]
    return bills + [row(alone(COOK, i), False, True, "cooking") for i in range(n)]


# Comparing


def test_a_configuration_is_the_same_as_itself(folders, tmp_path, words, tokens):
    """There is no flip, no change and no verdict."""
    comparison = compared(folders, tmp_path, words, tokens, mixed(5))
    assert (comparison.flips, gate(comparison, 0, 0)) == ([], [])
    assert {cell.differing for cell in comparison.cells} == {0}
    assert "cooking               routed right %     5      100.0      100.0  the same" in list(
        comparison_text(comparison, None)
    )


def test_a_moved_tier_flips_its_cohort_and_changes_quality_and_cost(folders, tmp_path, words, tokens):
    """Cooking moves to the small tier: an eighth of the price, and every answer is wrong. Billing is unchanged."""
    edit(folders[1], "cooking.yaml", "tier: large", "tier: small")
    edit(folders[1], "policy.yaml", "tier_floor: large", "reasoning: off")
    comparison = compared(folders, tmp_path, words, tokens, mixed(8))
    assert comparison.groups == {"billing": 8, "cooking": 8}
    assert comparison.flips == [Flip(line, "cooking", "cooking, large", "cooking, small") for line in range(9, 17)]
    cells = {(cell.group, cell.measure): cell for cell in comparison.cells}
    assert cells["billing", QUALITY].differing == cells["cooking", ROUTING].differing == 0
    quality, cost = cells["cooking", QUALITY], cells["cooking", COST]
    assert (quality.old, quality.new, quality.change.value, quality.chance) == (1.0, 0.0, -1.0, 0.5**8)
    assert (cost.change.value, cost.chance) == (pytest.approx(-7 / 8), 1.0)
    overall = cells["all", QUALITY].change
    assert (overall.value, overall.low < -0.5 < overall.high) == (-0.5, True)


def test_a_row_counts_under_its_label_or_its_old_match(folders, tmp_path, words, tokens):
    """A cohort that only one of them has is a cohort. A label that neither has is out of scope."""
    (folders[1] / "travel.yaml").write_text(
        "intent: travel\ntier: small\nutterances: [book a flight, find a hotel room, train to Rome]\n"
    )
    rows = [{"text": "a flight to Oslo", "intent": "travel"}, {"text": f"{BILL} a"}, {"text": "zebras graze"},
            {"text": "sonnets about rain", "intent": "poetry"}]  # fmt: skip
    comparison = compared(folders, tmp_path, words, tokens, rows)
    assert comparison.groups == {"travel": 1, "billing": 1, "no cohort": 1, "out of scope": 1}
    cells = {(cell.group, cell.measure): (cell.old, cell.new) for cell in comparison.cells}
    assert cells["travel", ROUTING] == (0.0, 1.0)
    assert comparison.estimated


def test_rows_that_move_to_an_unrecorded_tier_are_reported(folders, tmp_path, words, tokens):
    """Their quality and cost cannot be compared. A reader of a passed gate has to know that."""
    edit(folders[1], "billing.yaml", "tier: small", "tier: large")
    rows = mixed(4)
    for bill in rows[:4]:
        del bill["outcomes"]["large"]
    comparison = compared(folders, tmp_path, words, tokens, rows)
    assert {(cell.group, cell.rows) for cell in comparison.cells if cell.measure == COST} == {
        ("all", 4),
        ("cooking", 4),
    }
    note = (
        "4 rows have no recorded answer of the tier that serves them now: their quality and cost are not compared"
    )
    assert note in list(comparison_text(comparison, None))


# The gate


def test_a_regression_of_one_cohort_fails_though_the_average_improves(folders, tmp_path, words, tokens):
    """Bills improve by more than recipes get worse. The verdict names the cohort of the recipes."""
    edit(folders[0], "billing.yaml", "tier: small", "tier: large")
    edit(folders[1], "cooking.yaml", "tier: large", "tier: small")
    edit(folders[1], "policy.yaml", "tier_floor: large", "reasoning: off")
    bills = [row(alone(BILL, i), True, False) for i in range(40)]
    recipes = [row(alone(COOK, i), False, True, "cooking") for i in range(12)]
    verdicts = gate(compared(folders, tmp_path, words, tokens, bills + recipes), 0.02, 0.1)
    assert [(r.cell.group, r.cell.measure, r.regressed) for r in verdicts] == [("cooking", QUALITY, True)]


def test_a_higher_cost_fails_by_its_own_limit(folders, tmp_path, words, tokens):
    """Eight times the price is a rise of 700 %."""
    edit(folders[1], "billing.yaml", "tier: small", "tier: large")
    comparison = compared(folders, tmp_path, words, tokens, mixed(12))
    failed = {(r.cell.group, r.cell.measure) for r in gate(comparison, 0.02, 0.1)}
    assert failed == {("billing", COST), ("all", COST)}
    assert gate(comparison, 0.02, 7.1) == []


def test_a_cost_above_zero_after_zero_exceeds_any_limit(folders, tmp_path, words, tokens):
    """The small tier is free, and the large one is not. If both are free, the cost is the same."""
    edit(folders[0], "policy.yaml", "price: {input: 0.05, output: 0.20}", "price: {input: 0, output: 0}")
    shutil.copy(folders[0] / "policy.yaml", folders[1] / "policy.yaml")
    same = {
        (cell.group, cell.measure): cell.change.value
        for cell in compared(folders, tmp_path, words, tokens, mixed(12)).cells
    }
    assert same["billing", COST] == 0.0
    edit(folders[1], "billing.yaml", "tier: small", "tier: large")
    comparison = compared(folders, tmp_path, words, tokens, mixed(12))
    failed = {
        (r.cell.group, r.cell.measure): r.cell.change.value for r in gate(comparison, 0.02, 7.1) if r.regressed
    }
    assert failed["billing", COST] == math.inf
    assert "+inf" in "\n".join(comparison_text(comparison, None))


def test_rows_of_one_session_are_not_independent_evidence(folders, tmp_path, words, tokens):
    """Twelve answers got worse. In twelve conversations that is not random, but in one it may be."""
    edit(folders[1], "cooking.yaml", "tier: large", "tier: small")
    edit(folders[1], "policy.yaml", "tier_floor: large", "reasoning: off")
    for sessions, chance in ((12, 0.5**12), (3, 0.5**3), (1, 0.5)):
        rows = [
            row(f"{COOK} {letters(i)}", False, True, "cooking") | {"session": f"s{i % sessions}"} for i in range(12)
        ]
        cells = {(c.group, c.measure): c for c in compared(folders, tmp_path, words, tokens, rows).cells}
        cell = cells["cooking", QUALITY]
        assert (cell.rows, cell.differing, cell.change.value, cell.chance) == (12, 12, -1.0, chance)


def test_a_row_counts_as_often_as_its_weight(folders, tmp_path, words, tokens):
    """Four recipes of weight 3 are twelve of the twenty rows that the file stands for."""
    lower_cooking(folders)
    rows = [row(alone(BILL, i), True, True) for i in range(8)]
    rows += [row(alone(COOK, i), False, True, "cooking") | {"weight": 3} for i in range(4)]
    cells = {(c.group, c.measure): c for c in compared(folders, tmp_path, words, tokens, rows).cells}
    cell = cells["all", QUALITY]
    assert (cell.rows, cell.old, cell.new, cell.change.value) == (12, 1.0, 0.4, pytest.approx(-0.6))
    assert cell.chance == 0.5**4
    assert cell.independent == pytest.approx(20**2 / (8 + 4 * 9))


def simulated(rng, cohorts, rows, share, better):
    """A comparison in which a share of the rows of each cohort flips, for the better with the chance `better`."""
    cells = []
    for i in range(cohorts):
        worse = np.where(rng.random(rows) < share, np.where(rng.random(rows) < better, -1.0, 1.0), 0.0)
        change = Estimate(-worse.mean(), math.nan, math.nan, rows)
        cells.append(Cell(f"c{i}", QUALITY, rows, 0.5, 0.5, change, int((worse != 0).sum()), sign_flip(worse, 0)))
    return Comparison(cohorts * rows, {}, cells, [], False)


def test_a_null_change_seldom_fails_and_a_planted_one_nearly_always():
    """At most a twentieth of 600 null comparisons fail. A drop of 8 points in one of 12 cohorts is found."""
    rng = np.random.default_rng(0)
    false_alarms = sum(
        any(r.regressed for r in gate(simulated(rng, 12, 300, 0.1, 0.5), 0.0, 0.0)) for _ in range(600)
    )
    assert false_alarms / 600 <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 600)
    detected = 0
    for _ in range(100):
        comparison = simulated(rng, 12, 300, 0.1, 0.5)
        planted = simulated(rng, 1, 300, 0.12, 0.15)
        comparison.cells[5] = planted.cells[0]
        detected += any(r.regressed and r.cell is planted.cells[0] for r in gate(comparison, 0.02, 0.1))
    assert detected >= 90


def test_a_rise_of_every_cost_is_found_among_hundreds_of_cohorts():
    """A p-value below the resolution of random signs is small enough for each of 400 cohorts."""
    rng, cells = np.random.default_rng(0), []
    for i in range(400):
        old = rng.uniform(1e-4, 2e-4, 30)
        change = Estimate(9.0, 9.0, 9.0, 30)
        for measure in (ROUTING, QUALITY, COST):  # all three differ, so each is a test
            chance = sign_flip(9 * old, 0) if measure == COST and i < 3 else 1.0
            cells.append(Cell(f"c{i}", measure, 30, old.mean(), 10 * old.mean(), change, 30, chance))
    regressed = [r.cell.group for r in gate(Comparison(12_000, {}, cells, [], False), 0.02, 0.1) if r.regressed]
    assert regressed == ["c0", "c1", "c2"]


def test_a_change_that_may_be_random_is_reported_as_unclear():
    """One row of five got worse. That is more than two points, but proves nothing."""
    worse = np.array([1.0, 0, 0, 0, 0])
    cell = Cell("c", QUALITY, 5, 1.0, 0.8, Estimate(-0.2, -0.6, 0.0, 5), 1, sign_flip(worse, 0))
    comparison = Comparison(5, {}, [cell], [], False)
    (verdict,) = gate(comparison, 0.02, 0.1)
    assert (verdict.regressed, verdict.unclear) == (False, True)
    report = gate_report(comparison, 0.02, 0.1)
    assert report.passage is Passage.UNCLEAR
    lines = list(gate_text(report))
    limits = "(quality may drop 2 points, cost may rise 10 %)"
    assert lines[0] == f"UNCLEAR: 1 measure is worse than allowed. The rows are too few to decide {limits}"
    assert lines[1].endswith("unclear, may be random (p 0.5)")


def lower_cooking(folders):
    edit(folders[1], "cooking.yaml", "tier: large", "tier: small")
    edit(folders[1], "policy.yaml", "tier_floor: large", "reasoning: off")


def test_a_tier_lowered_without_recorded_answers_is_not_passed(folders, tmp_path, words, tokens):
    """475 of 1,653 rows flip to the small tier, and no row has an outcome: the gate cannot see the effect."""
    lower_cooking(folders)
    rows = [{"text": alone(COOK, i)} for i in range(475)] + [{"text": alone(BILL, i)} for i in range(1653 - 475)]
    comparison = compared(folders, tmp_path, words, tokens, rows)
    assert next(comparison_text(comparison, None)) == "475 of 1,653 rows flip (28.7 %)"
    report = gate_report(comparison, 0.02, 0.1)
    assert (report.passage, report.verdicts) == (Passage.UNSEEN, [])
    assert list(gate_text(report)) == [
        "UNSEEN: 475 rows go to a cheaper tier or setting. 475 of them have no recorded answers, so the new "
        "quality is not known (quality may drop 2 points, cost may rise 10 %)",
        "cooking               475 rows lowered, 0 of them with recorded answers, a drop of up to 100.0 points "
        "could go unseen",
        "least drop that these rows could have shown: none, as no row has a label or a recorded answer",
    ]


def test_what_is_hidden_decides_unless_the_recorded_rows_were_drawn_by_chance(folders, tmp_path, words, tokens):
    """Half of 40 lowered rows have both answers. Drawn at random, they represent the others."""
    lower_cooking(folders)
    rows = [row(alone(COOK, i), True, True, "cooking") for i in range(40)]
    for each in rows[20:]:
        del each["outcomes"]["small"]
    report = gate_report(compared(folders, tmp_path, words, tokens, rows), 0.02, 0.1)
    assert (report.passage, report.unseen) == (Passage.UNSEEN, [Lowered("cooking", 40, 20, 0.5, False)])
    for each in rows[:20]:
        each["outcomes"]["small"]["propensity"] = 0.5
    report = gate_report(compared(folders, tmp_path, words, tokens, rows), 0.02, 0.1)
    assert (report.passage, report.unseen) == (Passage.PASSED, [])
    for each in rows[:20]:
        each["outcomes"]["small"]["success"] = False
    report = gate_report(compared(folders, tmp_path, words, tokens, rows), 0.02, 0.1)
    assert report.passage is Passage.FAILED


def test_too_few_recorded_answers_of_a_lower_tier_are_not_passed(folders, tmp_path, words, tokens):
    """Three rows cannot show any drop, even if every answer is wrong."""
    lower_cooking(folders)
    rows = [row(alone(COOK, i), True, True, "cooking") for i in range(3)]
    report = gate_report(compared(folders, tmp_path, words, tokens, rows), 0.02, 0.1)
    assert (report.passage, report.power[0]) == (Passage.UNSEEN, Power("all", QUALITY, 3, None))
    assert "Their recorded answers are too few to show any drop" in report.headline.sentence


def test_a_cheaper_model_or_an_answer_that_is_no_longer_judged_is_lower(folders, tmp_path, words, tokens):
    """Both change what the client gets, although the tier keeps its name."""
    edit(folders[1], "policy.yaml", "model: qwen3-32b", "model: qwen3-4b")
    edit(folders[1], "policy.yaml", "input: 0.40,", "input: 0.10,")
    with (folders[0] / "billing.yaml").open("a") as file:
        file.write("accept: [complete]\nescalate: {to: large, share: 1.0}\n")
    comparison = compared(folders, tmp_path, words, tokens, mixed(12))
    assert comparison.lowered == [Lowered("cooking", 12, 0, 1.0, False), Lowered("billing", 12, 12, 0.0, False)]


def test_a_row_that_finds_its_cohort_is_judged_by_its_label(folders, tmp_path, words, tokens):
    """With another utterance, bills go to their cohort, whose tier is as before. `routed right` measures that."""
    edit(folders[1], "billing.yaml", "utterances:", "utterances:\n  - zebras graze on a receipt")
    rows = [{"text": alone("zebras graze on a receipt", i), "intent": "billing"} for i in range(20)]
    report = gate_report(compared(folders, tmp_path, words, tokens, rows), 0.02, 0.1)
    assert (report.passage, report.unseen) == (Passage.PASSED, [])
    assert report.power[0].measure == ROUTING
    for each in rows:
        del each["intent"]
    report = gate_report(compared(folders, tmp_path, words, tokens, rows), 0.02, 0.1)
    assert (report.passage, report.unseen[0].rows) == (Passage.UNSEEN, 20)


def test_a_drop_of_27_points_on_30_rows_is_not_passed(folders, tmp_path, words, tokens):
    """Eleven answers got worse and three got better. That may be chance, and the rows are too few to decide."""
    lower_cooking(folders)
    rows = [row(alone(COOK, i), i >= 11, not 11 <= i < 14, "cooking") for i in range(30)]
    report = gate_report(compared(folders, tmp_path, words, tokens, rows), 0.02, 0.1)
    cooking = report.verdicts[-1].cell
    assert (cooking.group, cooking.rows, round(cooking.change.value, 3)) == ("cooking", 30, -0.267)
    assert (report.passage, report.passage.value) == (Passage.UNCLEAR, 4)
    assert [(each.group, each.rows, round(each.drop or 0, 3)) for each in report.power] == [
        ("all", 30, 0.394), ("cooking", 30, 0.394),
    ]  # fmt: skip


@pytest.mark.parametrize("drop", [0.05, 0.1])
def test_the_least_drop_is_found_with_a_chance_of_80_percent(drop):
    """Simulated: a drop of that size, without rows that get better, fails the gate in about 80 of 100 files."""
    rng = np.random.default_rng(0)
    rows = 200
    cell = Cell("c", QUALITY, rows, 0.9, 0.9, Estimate(0.0, 0.0, 0.0, rows), 1, 1.0)
    least = least_drop(cell, 1)
    assert least is not None and least < drop
    failed = [sign_flip((rng.random(rows) < least).astype(float), 0) <= 0.05 for _ in range(1000)]
    assert 0.76 < np.mean(failed) < 0.84


def test_the_sign_flip_test_is_exact_for_right_and_wrong_and_close_otherwise():
    """Three of three rows got worse: an eighth. For other differences, the test enumerates all sign assignments."""
    assert sign_flip(np.array([1.0, 0, 1, 1]), 0) == pytest.approx(1 / 8)
    assert sign_flip(np.zeros(4), 0) == 1.0
    worse = np.array([0.5, 0.3, -0.2, 0.7, 0.1])
    signs = np.array(np.meshgrid(*[[-1, 1]] * 5)).reshape(5, -1).T
    exact = (signs @ np.abs(worse) >= worse.sum() - 1e-12).mean()
    assert sign_flip(worse, 0) == pytest.approx(exact, abs=0.01)


def test_the_same_seed_gives_the_same_comparison(folders, tmp_path, words, tokens):
    """Every bit is the same."""
    edit(folders[1], "billing.yaml", "tier: small", "tier: large")
    rows = [row(f"{BILL} {i}", i % 2 == 0, i % 3 == 0) for i in range(20)]
    first, second = (compared(folders, tmp_path, words, tokens, rows, seed=4) for _ in range(2))
    assert msgspec.json.encode(first) == msgspec.json.encode(second)


@pytest.mark.parametrize("rows", [
    [{"text": BILL}], [{"text": BILL, "intent": "oos"}], [row(BILL, False, False)],
    [{"text": BILL, "outcomes": {"small": {"success": True, "tokens_in": 0, "tokens_out": 0}}}],
], ids=["one row", "out of scope", "no success", "no cost"])  # fmt: skip
def test_degenerate_traffic_can_be_compared(rows, folders, tmp_path, words, tokens):
    """One row, no label, no success or no cost: the text has numbers or dashes, and nothing raises."""
    edit(folders[1], "billing.yaml", "tier: small", "tier: large")
    comparison = compared(folders, tmp_path, words, tokens, rows)
    assert "nan" not in "\n".join(comparison_text(comparison, None))
    assert not any(verdict.regressed for verdict in gate(comparison, 0.02, 0.1))


# The commands


@pytest.fixture
def quick(monkeypatch, words):
    monkeypatch.setattr(commands, "patient_encoder", lambda intents: Memory(words))


def test_the_gate_exits_with_1_on_a_regression_0_without_and_3_if_it_cannot_see(folders, tmp_path, quick, capsys):
    """CI needs only the exit code. The first line has the verdict."""
    data = str(traffic(tmp_path, mixed(12)))
    arguments = ["gate", "--baseline", str(folders[0]), str(folders[1]), data]
    assert main(arguments) == 0
    assert capsys.readouterr().out.splitlines()[0] == (
        "passed: no cohort is worse than allowed (quality may drop 2 points, cost may rise 10 %)"
    )
    lower_cooking(folders)
    assert main(arguments) == 1
    assert capsys.readouterr().out.splitlines()[0] == (
        "FAILED: 2 regressions (quality may drop 2 points, cost may rise 10 %)"
    )
    unlabelled = tmp_path / "unlabelled.jsonl"
    unlabelled.write_text(f'{{"text": "{COOK}"}}\n')
    assert main([*arguments[:-1], str(unlabelled)]) == 3


def test_the_verdict_of_the_gate_is_a_page_and_json_too(folders, tmp_path, quick, capsys):
    """Both have the verdict first, the cohorts, and the lines of rows that flip. Neither has a text."""
    edit(folders[1], "billing.yaml", "tier: small", "tier: large")
    page, numbers = tmp_path / "gate.html", tmp_path / "gate.json"
    data = str(traffic(tmp_path, mixed(12)))
    arguments = ["gate", "--baseline", *map(str, folders), data, "--out", str(page), "--json", str(numbers)]
    code = main(arguments)
    verdict = capsys.readouterr().out.splitlines()[0]
    html, read = page.read_text(), msgspec.json.decode(numbers.read_bytes())
    assert (read["exit_code"], read["limits"]) == (code, {"max_quality_drop": 0.02, "max_cost_rise": 0.1})
    assert verdict == "{word}: {sentence}".format(**read["verdicts"][0])
    assert html.index(f"<b>{read['verdicts'][0]['word']}</b>") < html.index("<table")
    assert "billing, small" in html and "billing, large" in html
    flips = [flip for flip in read["comparison"]["flips"] if flip["group"] == "billing"]
    assert len(flips) == 12 and set(flips[0]) == {"line", "group", "old", "new"}
    assert "src=" not in html and "href=" not in html
    assert BILL not in html and BILL not in numbers.read_text()


def test_a_file_of_the_gate_that_cannot_be_written_is_an_error_before_the_work(folders, tmp_path, capsys):
    """Nothing is encoded for a report that would be lost."""
    arguments = ["gate", "--baseline", *map(str, folders), str(tmp_path / "none.jsonl")]
    for where, what in (
        ("gone/a.html", "its folder does not exist: create it, or give another path"),
        ("a.json", "for JSON give --json"),
    ):
        assert main([*arguments, "--out", str(tmp_path / where)]) == 2
        assert what in capsys.readouterr().err


def test_texts_of_requests_are_shown_only_if_asked_for(folders, tmp_path, quick, capsys):
    """By default the report names the line of a flip."""
    edit(folders[1], "billing.yaml", "tier: small", "tier: large")
    arguments = ["diff", str(folders[0]), str(folders[1]), str(traffic(tmp_path, mixed(4)))]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert "billing                    4  billing, small -> billing, large  (line 1, 2, 3, ...)" in shown
    assert "invoice" not in shown
    assert main([*arguments, "--show-text"]) == 0
    assert f"'{alone(BILL, 0)}'" in capsys.readouterr().out


def test_a_mistake_in_either_folder_is_reported_with_its_path(folders, tmp_path, quick, capsys):
    """Each mistake is reported under the folder that has it."""
    data = str(traffic(tmp_path, mixed(1)))
    edit(folders[0], "billing.yaml", "tier: small", "tier: smal")
    assert main(["diff", str(folders[0]), str(folders[1]), data]) == 2
    assert capsys.readouterr().err.startswith(f"{folders[0]}/billing.yaml:2: no tier is called `smal`")
    edit(folders[0], "billing.yaml", "tier: smal\n", "tier: small\n")
    edit(folders[1], "billing.yaml", "tier: small", "tier: smal")
    assert main(["diff", str(folders[0]), str(folders[1]), data]) == 2
    assert capsys.readouterr().err.startswith(f"{folders[1]}/billing.yaml:2: no tier is called `smal`")


def test_an_intent_that_only_one_folder_has_is_reported(folders, tmp_path, quick, capsys):
    """Without this line, its rows would seem to be routed wrong. The label is not out of scope."""
    edit(folders[1], "cooking.yaml", "intent: cooking", "intent: meals")
    edit(folders[1], "policy.yaml", "cooking", "meals")
    assert main(["diff", str(folders[0]), str(folders[1]), str(traffic(tmp_path, mixed(4)))]) == 0
    out, err = capsys.readouterr()
    _, new, lacks, *_ = out.splitlines()
    assert new.startswith("new       revision")
    assert lacks == "          has no intent cooking: rows with this label count as routed wrong"
    assert "These labels are not intents" not in err


def test_a_limit_in_points_is_rejected(folders, tmp_path, capsys):
    """A gate that allows a drop of 200 points would always pass."""
    arguments = ["gate", "--baseline", *map(str, folders), str(traffic(tmp_path, mixed(1)))]
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--max-quality-drop", "2"])
    assert ended.value.code == 2
    assert capsys.readouterr().err.splitlines()[0] == (
        "extproc gate: argument --max-quality-drop: found `2`, expected a share from 0 up and below 1, "
        "as in 0.02 for two percentage points"
    )
