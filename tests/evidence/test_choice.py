"""Choosing tiers and settings by recorded outcomes: a setting must pay, on rows that are not reported on."""

import re
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import numpy as np
import pytest

from extproc.acceptance.rules import Logprob
from extproc.acceptance.score import SCORE_FACTS
from extproc.cli import evidence_calibrate as fitting
from extproc.cli.report_files import ReportFiles
from extproc.config.load import load_config
from extproc.evidence.data.traffic import read_traffic
from extproc.evidence.execution import Memory, execute
from extproc.evidence.fit import boosting, edits
from extproc.evidence.fit.choice import choose
from extproc.evidence.fit.option_table import _at_lowest_tier, _decided_by
from extproc.evidence.fit.options import Option
from extproc.evidence.fit.plans import cap_of, replay
from extproc.evidence.fit.scored_table import scored_table
from extproc.evidence.fit.scorer import Answers, unseen_chances
from extproc.evidence.fit.target import Target, parse_target
from extproc.evidence.measure.controls import MIX, ROUTED
from extproc.evidence.measure.metrics import auroc
from extproc.evidence.show.calibration import choice_text
from extproc.settings import Chosen
from tests.routing.test_follow_up import routed, router, with_policy

__all__ = ["router"]  # a fixture

BILL, COOK = "Is my invoice wrong this month", "How long does the egg recipe take"
DAY = "2026-11-22"


def outcome(success, answer="Yes, it is.", tokens_out=10):
    return {"success": success, "answer": answer, "tokens_in": 10, "tokens_out": tokens_out}


def written(tmp_path, rows):
    path = tmp_path / "traffic.jsonl"
    path.write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in rows))
    return path


def tabulated(folder, tmp_path, words, tokens, rows, seed=0):
    return scored_table(execute(folder, Memory(words), read_traffic(written(tmp_path, rows)), tokens), seed)


def plain(count=200):
    """Return rows where bills need the large tier three times in four, and recipes never. It depends on the row."""
    rows = [
        {"text": f"{BILL} {i}", "outcomes": {"small": outcome(i % 4 == 0), "large": outcome(i % 10 > 0)}}
        for i in range(count)
    ]
    return rows + [
        {"text": f"{COOK} {i}", "outcomes": {"small": outcome(i % 5 > 0), "large": outcome(i % 5 > 0)}}
        for i in range(count)
    ]


@pytest.fixture(autouse=True)
def quick_trees(monkeypatch):
    """Few trees are fitted, because these tests are about other options."""
    monkeypatch.setattr(boosting, "_REPEATS", 1)
    monkeypatch.setattr(boosting, "_ROUNDS", 20)


def hedging(count=300):
    """Return rows where the small tier is wrong if it hedges, and the large one is always right."""
    rows = []
    for i in range(count):
        sure = i % 3 > 0
        answer = f"It is {i}." if sure else f"Perhaps it might be {i}, roughly."
        rows.append({"text": f"{BILL} {i}", "outcomes": {"small": outcome(sure, answer), "large": outcome(True)}})
    return rows


# Targets


def test_targets_are_read():
    """A target is a share, or dollars per 1,000 requests."""
    assert [parse_target(text) for text in ("quality=0.9", "cost=2.5", "loss=0.05")] == [
        Target("quality", 0.9), Target("cost", 2.5), Target("loss", 0.05)
    ]  # fmt: skip
    assert str(parse_target("cost=0.25")) == "cost=0.25"


@pytest.mark.parametrize(
    "text",
    ["", "quality", "quality=", "quality=1.1", "cost=0", "cost=nan", "cost=inf", "loss=0", "loss=1", "speed=1"],
)
def test_a_text_that_is_not_a_target_is_refused(text):
    """The error shows all kinds."""
    with pytest.raises(
        ValueError, match=r"give quality=SHARE, as in quality=0\.9, cost=DOLLARS per 1,000 .* as in loss=0\.05"
    ):
        parse_target(text)


def test_a_loss_is_counted_from_the_costliest_tier(folder, tmp_path, words, tokens, capsys):
    """Recipes lose nothing at the small tier. Bills lose 65 points there, so they stay at the large one.

    The page and the JSON have the same verdict first.
    """
    path, page, numbers = written(tmp_path, plain(400)), tmp_path / "choice.html", tmp_path / "choice.json"
    files = ReportFiles(page, numbers)
    assert fitting.run_choose(folder, path, parse_target("loss=0.1"), 0.01, DAY, 0, True, files) == 0
    verdict = "the loss against always large is"
    assert f"ON TARGET: {verdict}" in capsys.readouterr().out
    html, read = page.read_text(), msgspec.json.decode(numbers.read_bytes())
    assert html.index(f"<b>ON TARGET</b> {verdict}") < html.index("<table")
    assert read["verdicts"][0]["sentence"].startswith(verdict)
    assert (read["target"], read["written"]) == ("loss=0.1", True)
    assert {cohort["name"]: cohort["plan"] is not None for cohort in read["cohorts"]}["cooking"]
    assert "always large" in html and "+tier: small" in html
    assert {i.intent: i.tier for i in load_config(folder).intents} == {"billing": "large", "cooking": "small"}


# Caps


def test_a_cap_computed_by_hand():
    """A new answer is longer than the 198th of 199 good answers with probability 0.01."""
    lengths, good = np.arange(1.0, 401.0), np.arange(400) < 199
    assert cap_of(lengths, good.astype(float), 0.01) == 198
    assert cap_of(lengths, good.astype(float), 0.005) == 199
    assert cap_of(lengths, good.astype(float), 0.004) is None


@pytest.mark.parametrize("good", [[], [0.0] * 300, [1.0] * 50])
def test_too_few_good_answers_give_no_cap(good):
    """There is also no cap if lengths were not recorded."""
    assert cap_of(np.arange(float(len(good))), np.array(good), 0.01) is None
    assert cap_of(np.full(300, np.nan), np.ones(300), 0.01) is None


def test_a_cap_keeps_its_share_on_simulated_lengths():
    """The mean share of new answers that it cuts is at most the stated share."""
    rng = np.random.default_rng(0)
    fresh = rng.lognormal(5, 1, 100_000)
    cuts = [(fresh > (cap_of(rng.lognormal(5, 1, 150), np.ones(150), 0.05) or 0)).mean() for _ in range(300)]
    assert np.mean(cuts) <= 0.05 + 2 * np.std(cuts) / np.sqrt(len(cuts))


# Choosing


def chosen(choice):
    return {cohort.name: cohort.plan.option if cohort.plan is not None else None for cohort in choice.cohorts}


def test_each_cohort_takes_what_is_worth_its_money(folder, tmp_path, words, tokens):
    """Bills move to the large tier, which answers them better. Recipes move to the small one, which is as good."""
    choice = choose(tabulated(folder, tmp_path, words, tokens, plain()), Target("cost", 0.012), 0.01, DAY)
    assert chosen(choice) == {"billing": Option("large"), "cooking": Option("small")}
    lines = {line.name: line for line in choice.lines}
    billing, cooking = choice.cohorts
    assert billing.after[0].value == pytest.approx(0.9, abs=0.06)
    assert billing.before[0].value == pytest.approx(0.25, abs=0.08)
    assert (cooking.before[0].value, cooking.after[1].value) == (cooking.after[0].value, pytest.approx(0.0025))
    mix = lines[MIX].behind
    assert mix is not None and mix.low > 0.1
    assert lines[ROUTED].per_1000.value <= 0.012


def test_the_cheapest_choice_that_keeps_a_quality_is_taken(folder, tmp_path, words, tokens):
    """If the small tier reaches the target, only recipes move to it, which lowers the cost."""
    scored = tabulated(folder, tmp_path, words, tokens, plain())
    assert chosen(choose(scored, Target("quality", 0.4), 0.01, DAY)) == {
        "billing": None,
        "cooking": Option("small"),
    }
    assert chosen(choose(scored, Target("quality", 0.8), 0.01, DAY))["billing"] == Option("large")


@pytest.mark.parametrize("target", [Target("quality", 0.99), Target("cost", 0.001)])
def test_a_target_out_of_reach_is_an_error(target, folder, tmp_path, words, tokens):
    """The error shows the quality and the cost that can be reached."""
    with pytest.raises(
        ValueError, match=r"out of reach on these rows, at 95 %: .* quality reaches 0\.\d+, and cost"
    ):
        choose(tabulated(folder, tmp_path, words, tokens, plain()), target, 0.01, DAY)


def test_a_score_escalates_wrong_answers(folder, tmp_path, words, tokens):
    """A third of the answers escalates, and then all are right. No cheaper option reaches that."""
    scored = tabulated(folder, tmp_path, words, tokens, hedging())
    choice = choose(scored, Target("quality", 0.97), 0.01, DAY)
    billing = next(s for s in choice.cohorts if s.name == "billing")
    assert billing.plan is not None and billing.scorer is not None
    option = billing.plan.option
    assert (option.first, option.up, option.level) == ("small", "large", pytest.approx(0.35, abs=0.06))
    assert billing.after[0].value > 0.97
    assert (billing.scorer.tier, billing.scorer.model, billing.scorer.auroc[0] > 0.95) == (
        "small",
        "qwen3-8b",
        True,
    )
    assert billing.scorer.weights["hedges"] < 0


def unsure(count=300, tokens=4):
    """Return rows where the small tier is wrong if its log-probability is low. Its texts say nothing."""
    rows = []
    for i in range(count):
        sure = i % 3 > 0
        logprobs = {"content": [{"token": "a", "logprob": -0.1 - i / 1e4 if sure else -0.9 - i / 1e4}] * tokens}
        choice = {"index": 0, "finish_reason": "stop", "message": {"content": f"It is {i}."}, "logprobs": logprobs}
        small = {"success": sure, "response": {"choices": [choice]}, "tokens_in": 10, "tokens_out": 10}
        rows.append({"text": f"{BILL} {i}", "outcomes": {"small": small, "large": outcome(True)}})
    return rows


@pytest.mark.parametrize(("length", "first"), [(4, None), (40, 16)])
def test_log_probabilities_escalate_wrong_answers(length, first, folder, tmp_path, words, tokens):
    """They come before the score. The first tokens are used where they suffice. The YAML serves as reported."""
    data = written(tmp_path, unsure(tokens=length))
    target = Target("quality", 0.97)
    assert fitting.run_choose(folder, data, target, 0.01, DAY, 0, write=True) == 0
    run = execute(folder, Memory(words), read_traffic(data), tokens)
    (rule,) = run.snapshot.policy.cohorts["billing"].accept
    assert isinstance(rule, Logprob)
    assert rule == Logprob(min=rule.min, first=first, tier="small", model="qwen3-8b") and -0.95 < rule.min < -0.12
    rejections = [served.rejections for served in run.served if served is not None]
    assert set(rejections) == {(), ("low_logprob",)}
    wrong = [i % 3 == 0 for i in range(300)]
    assert sum(bool(r) for r, w in zip(rejections, wrong, strict=True) if w) == 100
    # A second fit replaces the fitted level. It chooses as before.
    assert fitting.run_choose(folder, data, target, 0.01, "2026-12-01", 0, write=True) == 0
    assert load_config(folder).intents[0].accept == [
        {"logprob": {"min": rule.min, **({"first": first} if first else {}), "tier": "small", "model": "qwen3-8b"}}
    ]


def test_the_score_is_kept_where_log_probabilities_say_nothing(folder, tmp_path, words, tokens):
    """Wrong answers hedge, and every answer has the same log-probabilities except for noise."""
    noise = np.random.default_rng(0).normal(-0.5, 0.1, 300).tolist()
    rows = hedging()
    for row, value in zip(rows, noise, strict=True):
        small = row["outcomes"]["small"]
        said = {
            "index": 0, "finish_reason": "stop", "message": {"content": small.pop("answer")},
            "logprobs": {"content": [{"token": "a", "logprob": min(value, 0.0)}]},
        }  # fmt: skip
        small["response"] = {"choices": [said]}
    choice = choose(tabulated(folder, tmp_path, words, tokens, rows), Target("quality", 0.97), 0.01, DAY)
    plan = choice.cohorts[0].plan
    assert plan is not None and (plan.option.signal, plan.option.up) == ("score", "large")


def test_the_choice_does_not_use_the_rows_reported_on(folder, tmp_path, words, tokens):
    """With their outcomes reversed, every plan, threshold and weight is the same. Only the report differs."""
    rows = [*hedging(), *plain()[200:]]
    scored = tabulated(folder, tmp_path, words, tokens, rows)
    table = scored.table
    held_out = {table.run.rows[i].line for i, fit in zip(table.positions, table.fit, strict=True) if not fit}
    for line in held_out:
        for recorded in rows[line - 1]["outcomes"].values():
            recorded["success"] = not recorded["success"]
    reversed_ = tabulated(folder, tmp_path, words, tokens, rows)
    assert table.fit.tolist() == reversed_.table.fit.tolist() and 200 < len(held_out) < 300
    target = Target("cost", 0.02)
    before, after = (choose(each, target, 0.01, DAY) for each in (scored, reversed_))
    assert [s.plan for s in before.cohorts] == [s.plan for s in after.cohorts]
    weights = [[s.scorer and (s.scorer.offset, s.scorer.weights) for s in each.cohorts] for each in (before, after)]
    assert weights[0] == weights[1] and weights[0][0] is not None
    assert before.lines != after.lines


def test_repeated_requests_are_always_in_the_same_part(folder, tmp_path, words, tokens):
    """The part of a row depends on its words."""
    scored = tabulated(folder, tmp_path, words, tokens, [row for row in plain(40) for _ in range(3)])
    assert scored.table.fit.reshape(-1, 3).std(axis=1).max() == 0


def test_answers_to_a_repeated_request_are_left_out_together():
    """Scores of noise are useless on unseen answers, even if each request was repeated."""
    areas = []
    for seed in range(5):
        rng = np.random.default_rng(seed)
        facts, right = rng.normal(size=(60, len(SCORE_FACTS))), (rng.random(60) < 0.5).astype(float)
        facts, right, text = (np.repeat(values, 5, axis=0) for values in (facts, right, rng.random(60)))
        answers = Answers(np.full(len(right), "billing", dtype=object), facts, right)
        areas.append(auroc(unseen_chances(answers, text, True, seed), right > 0.5)[0])
    assert np.mean(areas) < 0.6


def test_too_few_rows_choose_nothing_and_the_reason_says_how_many_are_needed(folder, tmp_path, words, tokens):
    """Cohorts with few rows or none keep their settings."""
    choice = choose(tabulated(folder, tmp_path, words, tokens, plain(20)[:25]), Target("cost", 1.0), 0.01, DAY)
    assert chosen(choice) == {"billing": None, "cooking": None}
    assert [cohort.why for cohort in choice.cohorts] == [
        f"needs about 50 rows with outcomes that land here; has {rows}" for rows in (20, 5)
    ]
    assert "nan" not in "\n".join(choice_text(choice)).lower()


def test_tier_floors_are_kept(folder, tmp_path, words, tokens):
    """No option is below a cohort's tier floor. Rows whose tier a rule raises do not count for the cohort."""
    path = folder / "cooking.yaml"
    path.write_text(path.read_text() + "tier_floor: large\n")
    rows = plain()
    for row in rows[:100]:
        row["headers"] = {"x-user-tier": "gold"}
    policy = folder / "policy.yaml"
    policy.write_text(policy.read_text().replace("intents: [cooking]", "intents: [billing]"))
    scored = tabulated(folder, tmp_path, words, tokens, rows)
    assert (scored.table.cohort == "billing").sum() == 100
    choice = choose(scored, Target("cost", 0.02), 0.01, DAY)
    assert chosen(choice) == {"billing": Option("large"), "cooking": None}


def test_a_cohort_that_ends_with_a_person_is_unchanged(folder, tmp_path, words, tokens):
    """A row that goes to a person has no recorded outcome."""
    with (folder / "billing.yaml").open("a") as file:
        file.write("accept: [complete]\nescalate: {to: [large, human]}\n")
    with (folder / "policy.yaml").open("a") as file:
        file.write("human: {}\n")
    choice = choose(tabulated(folder, tmp_path, words, tokens, plain()), Target("cost", 0.02), 0.01, DAY)
    assert choice.cohorts[0].why == "unchanged: its rejected answers end with a person"


def test_a_setting_that_is_not_shown_to_pay_is_not_chosen(folder, tmp_path, words, tokens):
    """The budget is large, but the large tier is right on only one more row in a hundred."""
    rows = [
        {"text": f"{BILL} {i}", "outcomes": {"small": outcome(i % 2 > 0), "large": outcome(i % 2 > 0 or i == 0)}}
        for i in range(100)
    ]
    choice = choose(tabulated(folder, tmp_path, words, tokens, rows), Target("cost", 1.0), 0.01, DAY)
    assert chosen(choice)["billing"] is None
    assert "to show that another setting pays, needs about" in choice.cohorts[0].why


@pytest.mark.parametrize("success", [True, False])
def test_outcomes_without_variety_choose_the_cheapest(success, folder, tmp_path, words, tokens):
    """Every tier is always right, or always wrong, so only the cost differs."""
    rows = [{"text": f"{t} {i}", "outcomes": {"small": outcome(success), "large": outcome(success)}}
            for t in (BILL, COOK) for i in range(80)]  # fmt: skip
    choice = choose(tabulated(folder, tmp_path, words, tokens, rows), Target("cost", 1.0), 0.01, DAY)
    assert chosen(choice) == {"billing": None, "cooking": Option("small")}


@pytest.mark.parametrize("rows", [
    [{"text": BILL}],
    [{"text": f"{BILL} {i}", "outcomes": {"small": outcome(True)}} for i in range(9)],
    [{"text": BILL, "outcomes": {"elsewhere": outcome(True)}}],
], ids=["no outcomes", "one tier", "a tier nobody has"])  # fmt: skip
def test_rows_that_cannot_be_compared_are_refused(rows, folder, tmp_path, words, tokens):
    """The error says what is missing."""
    with pytest.raises(ValueError, match="no row has the outcomes of two tiers or more"):
        tabulated(folder, tmp_path, words, tokens, rows)


def test_rows_that_have_both_tiers_are_used_from_a_log_of_chosen_answers(folder, tmp_path, words, tokens):
    """Most rows have only the tier that served. A log without any row of two tiers is refused with its count."""
    rows = plain(60)
    for i, each in enumerate(rows):
        if i % 4:
            del each["outcomes"]["large" if BILL in each["text"] else "small"]
    table = tabulated(folder, tmp_path, words, tokens, rows).table
    assert (table.settings, len(table.positions)) == (["small", "large"], 30)
    alone = [each for i, each in enumerate(rows) if i % 4]
    message = (
        "no row has the outcomes of two tiers or more (90 rows have the outcome of one): record two tiers on rows "
        "drawn at random (see docs/reference/traffic.md)"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        tabulated(folder, tmp_path, words, tokens, alone)


def test_one_row_is_too_few_for_any_target(folder, tmp_path, words, tokens):
    """In either part, no choice can be made."""
    for seed in (0, 1, 2, 3):
        scored = tabulated(folder, tmp_path, words, tokens, plain(1)[:1], seed)
        with pytest.raises(ValueError, match="out of reach: the choice needs two rows, and has fewer"):
            choose(scored, Target("cost", 1.0), 0.01, DAY)


def test_reasoning_is_a_separate_setting(folder, tmp_path, words, tokens, capsys):
    """The small tier with reasoning is as good as the large one, so it is chosen, and evaluated with reasoning."""
    rows = plain()
    for row in rows[:200]:
        row["outcomes"]["qwen3-8b+reasoning"] = outcome(row["outcomes"]["large"]["success"], tokens_out=20)
    for row in rows[200:]:
        row["outcomes"]["small+reasoning"] = outcome(True, tokens_out=20)
    data = written(tmp_path, rows)
    assert fitting.run_choose(folder, data, Target("quality", 0.8), 0.01, DAY, 0, write=True) == 0
    billing = next(i for i in load_config(folder).intents if i.intent == "billing")
    assert (billing.tier, billing.reasoning, billing.accept) == ("small", True, [])
    run = execute(folder, Memory(words), read_traffic(data), tokens)
    assert {served.path for served in run.served[:200] if served is not None} == {("small+reasoning",)}


@pytest.mark.parametrize("good", [10, 2])
def test_a_cap_is_chosen_if_failures_are_long(good, folder, tmp_path, words, tokens):
    """Good answers take few tokens and bad ones 1,000. A cap cuts only the bad ones, and their cost.

    A cap of 2 would cut the first answer that says one word more.
    """
    rows = [
        {"text": f"{BILL} {i}", "outcomes": {"small": outcome(i % 2 > 0, tokens_out=good if i % 2 else 1000),
                                             "large": outcome(i % 2 > 0)}}
        for i in range(700)
    ]  # fmt: skip
    choice = choose(tabulated(folder, tmp_path, words, tokens, rows), Target("quality", 0.4), 0.01, DAY)
    billing = choice.cohorts[0]
    assert billing.plan is not None and (billing.plan.option, billing.plan.cap) == (
        Option("small", capped=True),
        64,  # with room above the fitted length
    )
    assert billing.after[0].value == billing.before[0].value
    assert billing.after[1].value < billing.before[1].value / 10


# The command


def test_the_written_choice_serves_as_it_was_reported(folder, tmp_path, words, tokens, capsys):
    """The YAML compiles. With the functions that serve, each row takes the path that the choice had counted."""
    data = written(tmp_path, hedging())
    assert fitting.run_choose(folder, data, Target("quality", 0.97), 0.01, DAY, 0, write=False) == 0
    shown = capsys.readouterr().out
    assert "+accept: [{score: {min: " in shown and shown.endswith("not written: give --write to apply this\n")
    assert "score" not in (folder / "billing.yaml").read_text()
    scored = tabulated(folder, tmp_path, words, tokens, hedging())
    plan = choose(scored, Target("quality", 0.97), 0.01, DAY).cohorts[0].plan
    assert plan is not None
    cohort = scored.table.run.snapshot.policy.cohorts["billing"]
    escalated = replay(scored, cohort, plan, ~scored.table.fit)[2]

    assert fitting.run_choose(folder, data, Target("quality", 0.97), 0.01, DAY, 0, write=True) == 0
    assert capsys.readouterr().out == shown.replace(
        "not written: give --write to apply this", "changed and written"
    )
    run = execute(folder, Memory(words), read_traffic(data), tokens)
    held_out = [run.served[i] for i, fit in zip(scored.table.positions, scored.table.fit, strict=True) if not fit]
    assert [s is not None and s.rejections == ("low_score",) for s in held_out] == escalated.tolist()
    billing = run.snapshot.policy.cohorts["billing"]
    assert billing.chosen is not None and billing.chosen.holds(run.snapshot.policy.tiers)
    assert (billing.chosen.target, billing.chosen.rows, billing.chosen.data) == ("quality=0.97", 300, run.digest)

    assert fitting.run_choose(folder, data, Target("quality", 0.97), 0.01, "2026-12-01", 0, write=True) == 0
    assert capsys.readouterr().out.endswith("\nnothing to change\n")


CHOSEN = Chosen(DAY, "1e5", 240, "cost=2", {"small": "a"}, (0.5, 0.75), (0.1, 0.2))
TEXT = """\
# Bills
intent: billing
tier: small   # by feel
accept:
  - complete
  - regex: "^(on|off): .*#"
escalate: {to: large}
# what people say
utterances: [a b, c d, e f]
"""


def test_values_are_written_in_place():
    """Comments stay, blocks are replaced, and text that YAML would misread is quoted."""
    accept = ["complete", {"regex": "^(on|off): .*#"}, {"score": {"min": 0.5}}]
    values = {
        "tier": "on",
        "reasoning": False,
        "accept": accept,
        "escalate": {"to": {"tier": "x", "reasoning": True}},
    }
    edited = edits.with_settings(TEXT, values | {"chosen": CHOSEN})
    assert (
        edited
        == """\
# Bills
intent: billing
tier: "on"   # by feel
accept: [complete, {regex: "^(on|off): .*#"}, {score: {min: 0.5}}]
escalate: {to: {tier: x, reasoning: on}}
reasoning: off
chosen: # written by `extproc calibrate`
  date: "2026-11-22"
  data: "1e5"
  rows: 240
  target: "cost=2"
  models: {small: "a"}
  quality: [0.5, 0.75]
  per_1000: [0.1, 0.2]
# what people say
utterances: [a b, c d, e f]
"""
    )
    removed = edits.with_settings(edited, {"accept": None, "escalate": None, "chosen": None, "scorer": None})
    rest = TEXT[TEXT.index("# what") :]
    assert removed == '# Bills\nintent: billing\ntier: "on"   # by feel\nreasoning: off\n' + rest


def test_a_file_that_cannot_be_edited_by_lines_is_refused():
    """The file is not rewritten without its layout."""
    with pytest.raises(ValueError, match="one key per line"):
        edits.with_settings("{intent: a, tier: small, utterances: [a b, c d, e f]}\n", {"tier": "large"})
    with pytest.raises(ValueError, match=r"valid YAML|one key per line"):
        edits.with_settings(TEXT.replace("  - ", "- "), {"accept": None})


@pytest.mark.parametrize(("tier", "cohort"), [("small", "law"), ("medium", "")])
def test_a_follow_up_counts_for_its_cohort_only_if_its_conversation_allows_every_tier(router, tier, cohort):
    """Below the tier of its conversation, it would be decided with the asks before it."""
    with_policy(router, cooking={"tier": tier})
    result = routed(router, "cook soup and bake bread", "break lease")
    assert result.decision.cohort is not None and result.decision.cohort.name == "law"
    row = SimpleNamespace(request=lambda _: (b"", {}))
    run = SimpleNamespace(routed=[result], rows=[row], snapshot=router.snapshot)
    assert _decided_by(cast(Any, run), 0, _at_lowest_tier(router.snapshot.policy)) == cohort
