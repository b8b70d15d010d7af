"""A tier for each prompt: fitted on recorded outcomes, kept if it is proven, and served as it was measured."""

import msgspec
import numpy as np
import pytest

from extproc.cli import evidence_calibrate as fitting
from extproc.config.load import load_config
from extproc.contract.words import Reason
from extproc.evidence.data.traffic import read_traffic
from extproc.evidence.execution import Memory, execute
from extproc.evidence.fit import boosting
from extproc.evidence.fit.boosting import boost
from extproc.evidence.fit.choice import changes, choose
from extproc.evidence.fit.edits import with_settings
from extproc.evidence.fit.plans import replay
from extproc.evidence.fit.prompt_gains import ranked_gain
from extproc.evidence.fit.scored_table import scored_table
from extproc.evidence.fit.target import parse_target
from extproc.evidence.show.calibration import plan_text
from extproc.routing.gain_file import GAINS_FILE, decode_gains

BILL, COOK = "Send my last invoice of this month", "How long do I boil the egg of this recipe"
DAY, TARGET = "2026-11-29", parse_target("cost=0.009")


@pytest.fixture(autouse=True)
def one_fit(monkeypatch):
    """Fewer trees are fitted, and once, not averaged over several fits, because that is quicker."""
    monkeypatch.setattr(boosting, "_REPEATS", 1)
    monkeypatch.setattr(boosting, "_ROUNDS", 60)


def outcome(success):
    return {"success": bool(success), "answer": "Yes, it is.", "tokens_in": 10, "tokens_out": 10}


def rows(count, seed=0, hard=0.9):
    """Return rows where bills with many amounts need the large tier, and where recipes need it at random."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        many = rng.random() < 0.5
        amounts = " ".join(map(str, rng.integers(10, 99, 8 if many else 1)))
        small = rng.random() > hard if many else rng.random() < 0.9
        text = f"{BILL} {amounts} {seed} {i}"
        rows.append({"text": text, "outcomes": {"small": outcome(small), "large": outcome(rng.random() < 0.9)}})
        wrong, amounts = rng.random() < 0.5, " ".join(map(str, rng.integers(10, 99, rng.integers(1, 9))))
        text = f"{COOK} {amounts} {seed} {i}"
        rows.append({"text": text, "outcomes": {"small": outcome(not wrong), "large": outcome(True)}})
    return rows


def written(path, rows):
    path.write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in rows))
    return path


def executed(folder, words, tokens, path):
    return execute(folder, Memory(words), read_traffic(path), tokens)


def gain_over_a_draw(run):
    """Return the quality of the bills, less that of sending as many of them to the large tier by lot."""
    bills = [i for i, routed in enumerate(run.routed) if routed.decision.counted_as == "billing"]
    small, large = (np.array([run.answers[i][tier].quality for i in bills]) for tier in ("small", "large"))
    to_large = np.array([run.routed[i].decision.tier.name == "large" for i in bills])
    share = to_large.mean()
    return np.where(to_large, large, small).mean() - (share * large.mean() + (1 - share) * small.mean())


# The fit


def test_trees_learn_what_a_line_cannot():
    """The target is high if exactly one of two columns is positive. The fit is deterministic."""
    rng = np.random.default_rng(0)
    columns = rng.standard_normal((2000, 4)).astype(np.float32)
    target = ((columns[:, 0] > 0) != (columns[:, 1] > 0)).astype(float)
    first, second = boost(columns[:1500], target[:1500], 3), boost(columns[:1500], target[:1500], 3)
    assert first.leaves.tobytes() == second.leaves.tobytes()
    assert np.corrcoef(first.values(columns[1500:]), target[1500:])[0, 1] > 0.9


def test_the_gain_of_a_ranking_by_hand():
    """The two prompts that gain, of four, are ranked first: averaged over all shares, that wins an eighth."""
    gain, cost = np.array([1.0, 1.0, 0.0, 0.0]), np.ones(4)
    assert ranked_gain(np.array([0.9, 0.8, 0.2, 0.1]), gain, cost).gain == pytest.approx(0.125)
    assert ranked_gain(np.zeros(4), gain, cost).gain == pytest.approx(0.0)
    assert ranked_gain(np.array([0.1, 0.2, 0.8, 0.9]), gain, cost).gain == pytest.approx(-0.125)


def test_the_gain_of_a_ranking_is_that_for_the_same_money():
    """Two prompts gain as much, and one costs three times as much. The cheap one first wins."""
    gain, cost = np.array([1.0, 1.0]), np.array([3.0, 1.0])
    assert ranked_gain(np.array([0.1, 0.9]), gain, cost).gain == pytest.approx(0.125)
    assert ranked_gain(np.array([0.9, 0.1]), gain, cost).gain == pytest.approx(-0.125)


# The choice


def test_a_cohort_uses_the_prompt_only_where_its_rows_prove_it(folder, tmp_path, words, tokens):
    """Bills show a gain. Recipes need the large tier at random, so no prompt is better than another."""
    memory = Memory(words)
    run = execute(folder, memory, read_traffic(written(tmp_path / "t.jsonl", rows(400))), tokens)
    scored = scored_table(run, 0, None, memory.encode)
    proofs = scored.pairs["small", "large"].proofs
    assert proofs["billing"].holds
    assert proofs["billing"].gain > 0.05
    assert not proofs["cooking"].holds
    choice = choose(scored, TARGET, 0.01, DAY)
    by_prompt = {c.name: c.plan is not None and c.plan.by_prompt for c in choice.cohorts}
    assert by_prompt["billing"]
    assert not by_prompt["cooking"]


def test_prompts_with_the_same_gain_are_ranked_by_their_cost(folder, tmp_path, words, tokens):
    """The small tier is right at random. The large one always is, with 40 times the tokens for many amounts."""
    rng, bills = np.random.default_rng(4), []
    for i in range(400):
        many = i % 2
        amounts = " ".join(map(str, rng.integers(10, 99, 8 if many else 1)))
        large = outcome(True) | {"tokens_out": 400 if many else 10}
        outcomes = {"small": outcome(rng.random() < 0.5), "large": large}
        bills.append({"text": f"{BILL} {amounts} {i}", "outcomes": outcomes})
    memory = Memory(words)
    run = execute(folder, memory, read_traffic(written(tmp_path / "t.jsonl", bills)), tokens)
    fit = scored_table(run, 0, None, memory.encode).pairs["small", "large"]
    assert fit.proofs["billing"].holds
    assert np.median(fit.gains[::2]) > 3 * np.median(fit.gains[1::2])


@pytest.mark.parametrize(("count", "copies"), [(140, 1), (70, 6)])
def test_a_cohort_with_too_few_distinct_rows_keeps_one_tier(folder, tmp_path, words, tokens, count, copies):
    """Fewer than 300 texts prove nothing, also if they are repeated."""
    memory = Memory(words)
    path = written(tmp_path / "t.jsonl", rows(count) * copies)
    scored = scored_table(execute(folder, memory, read_traffic(path), tokens), 0, None, memory.encode)
    assert scored.pairs == {}


def test_what_is_written_serves_as_it_was_measured(folder, tmp_path, words, tokens, capsys):
    """Calibrate writes the file and the key. On new bills it beats sending as many to the large tier by lot."""
    path = written(tmp_path / "t.jsonl", rows(400))
    assert fitting.run_choose(folder, path, TARGET, 0.01, DAY, 0, True) == 0
    assert "large by the prompt from" in capsys.readouterr().out
    config = load_config(folder)
    billing = next(intent for intent in config.intents if intent.intent == "billing")
    assert billing.by_prompt is not None
    assert billing.by_prompt.tiers == ("small", "large")
    assert billing.by_prompt.fit == decode_gains((folder / GAINS_FILE).read_bytes()).header.seal
    run = executed(folder, words, tokens, written(tmp_path / "new.jsonl", rows(300, seed=1)))
    reasons = [r.decision.reason for r in run.routed if r.decision.counted_as == "billing"]
    assert reasons.count(Reason.BY_PROMPT) > 0.9 * len(reasons)
    assert {r.decision.tier.name for r in run.routed if r.decision.reason is Reason.BY_PROMPT} == {"small", "large"}
    assert gain_over_a_draw(run) > 0.15


def hedged(count, seed=0):
    """Return bills where many amounts say that the small tier may be wrong, and its hedges where it is."""
    rng, made = np.random.default_rng(seed), []
    for i in range(count):
        many = rng.random() < 0.5
        amounts = " ".join(map(str, rng.integers(10, 99, 8 if many else 1)))
        right = rng.random() < (0.5 if many else 0.8)
        answer = "It is right." if right else "Perhaps it might be wrong, roughly, and seems unclear."
        small = outcome(right) | {"answer": answer}
        large = outcome(rng.random() < 0.95) | {"tokens_out": 60}
        made.append({"text": f"{BILL} {amounts} {seed} {i}", "outcomes": {"small": small, "large": large}})
    return made


def test_a_choice_with_the_answer_serves_as_it_was_measured(folder, tmp_path, words, tokens):
    """Each held-out row takes the path that the choice had counted, by the prediction for its real answer."""
    path, memory = written(tmp_path / "t.jsonl", hedged(600)), Memory(words)
    scored = scored_table(execute(folder, memory, read_traffic(path), tokens), 0, None, memory.encode)
    assert scored.judged_pairs["small", "large"].proofs["billing"].gain > 0.05
    choice = choose(scored, parse_target("cost=0.06"), 0.01, DAY)
    billing = next(c for c in choice.cohorts if c.name == "billing")
    assert billing.plan is not None and billing.plan.by_gain
    assert "large by prompt and answer from" in plan_text(billing.plan)
    table, file = scored.table, folder / "billing.yaml"
    rows = ~table.fit & (table.cohort == "billing")
    up = replay(scored, table.run.snapshot.policy.cohorts["billing"], billing.plan, rows)[2]
    fitting.write_gains(folder, choice, table.run.config)
    intent = next(intent for intent in table.run.config.intents if intent.intent == "billing")
    file.write_text(with_settings(file.read_text(), changes(billing, intent, choice.seal)))
    intent = next(intent for intent in load_config(folder).intents if intent.intent == "billing")
    assert intent.accept == [{"gain": {"least": billing.plan.least}}]
    assert intent.by_prompt is not None and intent.by_prompt.least == billing.plan.direct
    run = executed(folder, words, tokens, path)
    served = [run.served[i] for i in np.array(table.positions)[rows]]
    assert [s is not None and s.path[-1] == "large" for s in served] == up.tolist()
    assert {reason for s in served if s is not None for reason in s.rejections} == {"predicted_gain"}
    assert np.mean([s.quality for s in served if s is not None]) > 0.9


def test_a_second_calibration_removes_what_is_not_proven_any_more(folder, tmp_path, words):
    """On rows where no prompt is better than another, the key and the file go."""
    fitting.run_choose(folder, written(tmp_path / "t.jsonl", rows(400)), TARGET, 0.01, DAY, 0, True)
    assert (folder / GAINS_FILE).exists()
    fitting.run_choose(folder, written(tmp_path / "n.jsonl", rows(300, 2, hard=0.1)), TARGET, 0.01, DAY, 0, True)
    assert [intent.by_prompt for intent in load_config(folder).intents] == [None, None]
    assert not (folder / GAINS_FILE).exists()
