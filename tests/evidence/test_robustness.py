"""Decisions under other words for the same ask, and under words that were searched to move them."""

import random
import shutil
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

CONFIGS = Path(__file__).parents[1] / "configs"
BILLS = [f"Is my invoice {word} this month" for word in ["high", "wrong", "late", "short", "paid", "open"]]
COOKS = [f"How long does the egg {word} take" for word in ["soup", "salad", "recipe", "sauce"]]
# What a gadget may be made of; the utterances' own words are added by the search.
VOCABULARY = sorted(
    f"{a}{b}" for a in ("zeb", "quo", "lum", "fra", "tri", "ost") for b in ("ra", "kka", "pen", "mil")
)


@pytest.fixture
def folder(tmp_path):
    """Billing at the small tier, which is the default too, cooking above it, as often as `upgrades` says."""
    folder = Path(shutil.copytree(CONFIGS / "good", tmp_path / "intents"))
    policy = (folder / "policy.yaml").read_text().replace("default_tier: large", "default_tier: small")
    (folder / "policy.yaml").write_text(f"{policy}upgrades: {{per_minute: 6, burst: 2}}\n")
    for name in ("billing", "cooking"):
        with (folder / f"{name}.yaml").open("a") as file:
            file.write("floor: 0.2\n")
    return folder


def found(folder, tmp_path, words, *rows, seed=0):
    path = tmp_path / "traffic.jsonl"
    path.write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in rows))
    memory = Memory(words)
    run = execute(folder, memory, read_traffic(path), Tokens())
    return run, perturb(run, memory, VOCABULARY, seed)


def labelled():
    rows = [{"text": text, "intent": "billing"} for text in BILLS]
    return [*rows, *({"text": text, "intent": "cooking"} for text in COOKS)]


@pytest.mark.parametrize("kind", REWRITES)
def test_a_rewrite_says_the_same_and_is_repeatable(kind):
    """It changes something; around the ask, the ask stands word by word; the seed decides the rest."""
    text = "Is my invoice wrong this month, or was it paid?"
    told = {rewritten(kind, text, 1, line) for line in range(8)}
    assert told == {rewritten(kind, text, 1, line) for line in range(8)}
    assert text not in told
    if "typo" not in kind and kind not in ("lower case", "upper case", "no punctuation"):
        assert all(text in one for one in told)


@pytest.mark.parametrize("text", ["", "a", "é", "\U0001f600", "5 + 5"])
def test_any_text_can_be_rewritten(text):
    assert all(isinstance(rewrite(text, random.Random(0)), str) for rewrite in REWRITES.values())


def test_a_request_keeps_all_but_the_words_of_its_last_user_message(tmp_path):
    """In each API's shape; headers, tools and earlier turns stay."""
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
    asked = {"role": "user", "content": [{"type": "text", "text": "old"}]}
    bodies = [
        {"model": "auto", "messages": [*turns, asked], "tools": []},
        {"model": "auto", "input": "old"},
        {"model": "auto", "input": [asked]},
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


def test_what_flips_is_counted_by_kind(folder, tmp_path, words):
    """An encoder that does not see case loses nothing by it, and everything by a variant about something else."""
    rows = labelled()
    rows[0]["variants"] = {"french": "A soup recipe with egg and leek please"}
    rows[1]["variants"] = {"french": "My invoice again"}
    _, robust = found(folder, tmp_path, words, *rows, {"request": {"model": "gpt-9", "messages": []}})
    effects = {effect.kind: effect for effect in robust.effects}
    assert (robust.rows, robust.left_out) == (10, 1)
    for kind in ("lower case", "upper case"):
        case = effects[kind]
        assert (case.rows, case.flipped.value, case.upgraded.value, case.change.value) == (10, 0.0, 0.0, 0.0)
    french = effects["variant: french"]
    assert (french.rows, french.flipped.value, french.upgraded.value, french.right.value) == (2, 0.5, 0.5, 0.5)
    assert french.change.value == -0.5
    assert effects["typos, 1 letter in 15"].flipped.low <= effects["typos, 1 letter in 15"].flipped.value


def test_a_gadget_fitted_on_some_prompts_moves_the_others(folder, tmp_path, words):
    """Up to the dear tier and down from it; random words of the same number do not."""
    run, robust = found(folder, tmp_path, words, *labelled())
    effects = {effect.kind: effect for effect in robust.effects}
    for place in ("before", "after"):
        up, control = effects[f"upgrading gadget {place}"], effects[f"random words {place} (control)"]
        assert up.gadget and (up.rows, up.upgraded.value, up.above.value) == (3, 1.0, 1.0)
        assert control.upgraded.value == 0.0
        down = effects[f"downgrading gadget {place}"]
        assert (down.rows, down.downgraded.value) == (2, 1.0)
    assert not {one.decision.reason.value for one in run.routed} & {"upgrade_rate"}


def test_what_a_bound_leaves_of_an_attack_is_told(folder, tmp_path, words):
    """Once the principal has had its upgrades nothing goes above the default tier, but what a floor holds."""
    _, robust = found(folder, tmp_path, words, *labelled())
    bounded = next(e for e in robust.effects if e.kind == "upgrading gadget before")
    assert (bounded.above.value, bounded.held.value) == (1.0, 0.0)
    path = folder / "cooking.yaml"
    path.write_text(path.read_text() + "tier_floor: large\n")
    _, robust = found(folder, tmp_path, words, *labelled())
    floored = next(e for e in robust.effects if e.kind == "upgrading gadget before")
    assert (floored.above.value, floored.held.value) == (1.0, 1.0)
    assert any("6 times a minute, 2 at once" in note for note in robust.notes)


def test_rows_of_one_conversation_flip_together(folder, tmp_path, words):
    """They are no evidence apart: the same flips, told less surely."""
    rows = labelled()
    talks = [row | {"session": row["intent"]} for row in rows]
    apart, together = (found(folder, tmp_path, words, *some)[1].effects for some in (rows, talks))
    some = [(a.flipped, b.flipped) for a, b in zip(apart, together, strict=True) if 0 < a.flipped.value < 1]
    assert some and all(a.value == b.value for a, b in some)
    assert any((a.low, a.high) != (b.low, b.high) for a, b in some)


def test_the_same_seed_gives_the_same_report(folder, tmp_path, words):
    _, first = found(folder, tmp_path, words, *labelled(), seed=3)
    _, again = found(folder, tmp_path, words, *labelled(), seed=3)
    assert msgspec.json.encode(first) == msgspec.json.encode(again)


@pytest.mark.parametrize("rows", [1, 0])
def test_hardly_any_rows_are_a_report_too(folder, tmp_path, words, rows):
    """One row leaves nothing to try a gadget on; none leaves nothing to say."""
    ask: list[dict[str, Any]] = [{"text": BILLS[0]}] * rows or [{"request": {"model": "gpt-9", "messages": []}}]
    run, robust = found(folder, tmp_path, words, *ask)
    assert robust.rows == rows
    report = msgspec.structs.replace(evaluate(run), robustness=robust)
    assert "one typo" in evaluation_text(report) and "one typo" in as_html(report, "t")


def test_a_policy_of_one_tier_for_all_leaves_nothing_to_attack(folder, tmp_path, words):
    path = folder / "cooking.yaml"
    path.write_text(path.read_text().replace("tier: large", "tier: small"))
    _, robust = found(folder, tmp_path, words, *labelled())
    assert not [effect.kind for effect in robust.effects if "gadget" in effect.kind]
    assert "No gadget was searched: every cohort leads to the same tier." in robust.notes


def test_the_report_tells_the_gadget_and_no_word_of_a_request(folder, tmp_path, words):
    """In the terminal, on the page and as JSON."""
    run, robust = found(folder, tmp_path, words, *labelled())
    report = msgspec.structs.replace(evaluate(run), robustness=robust)
    gadget = next(e.gadget for e in robust.effects if e.kind == "upgrading gadget before")
    for told in (evaluation_text(report), as_html(report, "t"), msgspec.json.encode(report).decode()):
        assert gadget in told and BILLS[0] not in told
    assert max(map(len, evaluation_text(report).splitlines())) <= 116
