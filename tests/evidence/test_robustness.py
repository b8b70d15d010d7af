"""Decisions about the same request, written differently."""

import random
from pathlib import Path
from typing import Any

import msgspec
import pytest

from extproc.evidence.data.tokens import Tokens
from extproc.evidence.data.traffic import read_traffic
from extproc.evidence.execution import Memory, execute
from extproc.evidence.measure.evaluation import evaluate
from extproc.evidence.perturb.rewrites import REWRITES, rewritten
from extproc.evidence.perturb.robustness import perturb
from extproc.evidence.show.evaluation import evaluation_text
from extproc.evidence.show.page import as_html
from tests.evidence.folders import good_folder

CONFIGS = Path(__file__).parents[1] / "configs"
BILLS = [f"Is my invoice {word} this month" for word in ["high", "wrong", "late", "short", "paid", "open"]]
COOKS = [f"How long does the egg {word} take" for word in ["soup", "salad", "recipe", "sauce"]]


@pytest.fixture
def folder(tmp_path):
    """Billing has the small tier, the default, and cooking the large one, which `upgrades` limits."""
    folder = good_folder(tmp_path / "intents", floor=0.2)
    policy = (folder / "policy.yaml").read_text().replace("default_tier: large", "default_tier: small")
    (folder / "policy.yaml").write_text(f"{policy}upgrades: {{per_minute: 6, burst: 2}}\n")
    return folder


def perturbed(folder, tmp_path, words, *rows, seed=0):
    path = tmp_path / "traffic.jsonl"
    path.write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in rows))
    memory = Memory(words)
    run = execute(folder, memory, read_traffic(path), Tokens())
    return run, perturb(run, memory, seed)


def labelled():
    rows = [{"text": text, "intent": "billing"} for text in BILLS]
    return [*rows, *({"text": text, "intent": "cooking"} for text in COOKS)]


@pytest.mark.parametrize("kind", REWRITES)
def test_a_rewrite_keeps_the_meaning_and_is_repeatable(kind):
    """Every rewrite changes the text. A rewrite around the ask keeps the ask. The seed decides the rest."""
    text = "Is my invoice wrong this month, or was it paid?"
    rewrites = {rewritten(kind, text, 1, line) for line in range(8)}
    assert rewrites == {rewritten(kind, text, 1, line) for line in range(8)}
    assert text not in rewrites
    if "typo" not in kind and kind not in ("lower case", "upper case", "no punctuation"):
        assert all(text in rewrite for rewrite in rewrites)


@pytest.mark.parametrize("text", ["", "a", "é", "\U0001f600", "5 + 5"])
def test_any_text_can_be_rewritten(text):
    assert all(isinstance(rewrite(text, random.Random(0)), str) for rewrite in REWRITES.values())


def test_only_the_last_user_message_of_a_request_changes(tmp_path):
    """In the shape of each API. Headers, tools and earlier turns stay."""
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
    last = {"role": "user", "content": [{"type": "text", "text": "old"}]}
    bodies = [
        {"model": "auto", "messages": [*turns, last], "tools": []},
        {"model": "auto", "input": "old"},
        {"model": "auto", "input": [last]},
        {"model": "auto", "prompt": ["old"]},
    ]
    path = tmp_path / "traffic.jsonl"
    path.write_bytes(b"".join(msgspec.json.encode({"request": body}) + b"\n" for body in bodies))
    new = {"role": "user", "content": "new"}
    assert [msgspec.json.decode(row.asking("new").body or b"") for row in read_traffic(path).rows] == [
        {"model": "auto", "messages": [*turns, new], "tools": []},
        {"model": "auto", "input": "new"},
        {"model": "auto", "input": [new]},
        {"model": "auto", "prompt": "new"},
    ]


def test_flips_are_counted_by_kind_of_change(folder, tmp_path, words):
    """An encoder that ignores case loses nothing by it. A variant about another subject flips the decision."""
    rows = labelled()
    rows[0]["variants"] = {"french": "A soup recipe with egg and leek please"}
    rows[1]["variants"] = {"french": "My invoice again"}
    _, robustness = perturbed(folder, tmp_path, words, *rows, {"request": {"model": "gpt-9", "messages": []}})
    effects = {effect.kind: effect for effect in robustness.effects}
    assert (robustness.rows, robustness.left_out) == (10, 1)
    for kind in ("lower case", "upper case"):
        case = effects[kind]
        assert (case.rows, case.flipped.value, case.upgraded.value, case.change.value) == (10, 0.0, 0.0, 0.0)
    french = effects["variant: french"]
    assert (french.rows, french.flipped.value, french.upgraded.value, french.right.value) == (2, 0.5, 0.5, 0.5)
    assert french.change.value == -0.5
    assert effects["typos, 1 letter in 15"].flipped.low <= effects["typos, 1 letter in 15"].flipped.value


@pytest.mark.parametrize(("floor", "capped"), [("", 0.0), ("tier_floor: large\n", 1.0)])
def test_the_effect_of_a_limit_on_upgrades_is_reported(folder, tmp_path, words, floor, capped):
    """A principal without upgrades left goes above the default tier only because of a `tier_floor`."""
    path = folder / "cooking.yaml"
    path.write_text(path.read_text() + floor)
    rows = [{"text": text, "variants": {"recipe": COOKS[0]}} for text in BILLS]
    _, robustness = perturbed(folder, tmp_path, words, *rows)
    effect = next(e for e in robustness.effects if e.kind == "variant: recipe")
    assert (effect.above.value, effect.above_capped.value) == (1.0, capped)
    assert any("6 times a minute, with bursts of 2" in note for note in robustness.notes)


def test_rows_of_one_conversation_are_resampled_together(folder, tmp_path, words):
    """They are not independent evidence: the same shares have other intervals."""
    rows = labelled()
    in_sessions = [row | {"session": row["intent"]} for row in rows]
    apart, together = (perturbed(folder, tmp_path, words, *each)[1].effects for each in (rows, in_sessions))
    flips = [(a.flipped, b.flipped) for a, b in zip(apart, together, strict=True) if 0 < a.flipped.value < 1]
    assert flips and all(a.value == b.value for a, b in flips)
    assert any((a.low, a.high) != (b.low, b.high) for a, b in flips)


def test_the_same_seed_gives_the_same_report(folder, tmp_path, words):
    _, first = perturbed(folder, tmp_path, words, *labelled(), seed=3)
    _, again = perturbed(folder, tmp_path, words, *labelled(), seed=3)
    assert msgspec.json.encode(first) == msgspec.json.encode(again)


@pytest.mark.parametrize("rows", [1, 0])
def test_one_row_and_no_row_are_reported_too(folder, tmp_path, words, rows):
    traffic: list[dict[str, Any]] = [{"text": BILLS[0]}] * rows or [{"request": {"model": "gpt-9", "messages": []}}]
    run, robustness = perturbed(folder, tmp_path, words, *traffic)
    assert robustness.rows == rows
    report = msgspec.structs.replace(evaluate(run), robustness=robustness)
    assert "one typo" in evaluation_text(report) and "one typo" in as_html(report, "t")


def test_the_report_contains_no_text_of_a_request(folder, tmp_path, words):
    """In the terminal, on the page and as JSON."""
    run, robustness = perturbed(folder, tmp_path, words, *labelled())
    report = msgspec.structs.replace(evaluate(run), robustness=robustness)
    for shown in (evaluation_text(report), as_html(report, "t"), msgspec.json.encode(report).decode()):
        assert "greeting before" in shown and BILLS[0] not in shown
    assert max(map(len, evaluation_text(report).splitlines())) <= 116
