"""The search for words that move prompts to another tier."""

import shutil
from pathlib import Path

import msgspec
import pytest

from bench.gadgets import attacks
from extproc.evidence.data.tokens import Tokens
from extproc.evidence.data.traffic import read_traffic
from extproc.evidence.execution import Memory, execute

CONFIGS = Path(__file__).parents[1] / "configs"
BILLS = [f"Is my invoice {word} this month" for word in ["high", "wrong", "late", "short", "paid", "open"]]
COOKS = [f"How long does the egg {word} take" for word in ["soup", "salad", "recipe", "sauce"]]
# The search adds the words of the utterances.
VOCABULARY = sorted(
    f"{a}{b}" for a in ("zeb", "quo", "lum", "fra", "tri", "ost") for b in ("ra", "kka", "pen", "mil")
)


@pytest.fixture
def folder(tmp_path):
    """Billing has the small tier, the default, and cooking the large one, which `upgrades` limits."""
    folder = Path(shutil.copytree(CONFIGS / "good", tmp_path / "intents"))
    policy = (folder / "policy.yaml").read_text().replace("default_tier: large", "default_tier: small")
    (folder / "policy.yaml").write_text(f"{policy}upgrades: {{per_minute: 6, burst: 2}}\n")
    for name in ("billing", "cooking"):
        with (folder / f"{name}.yaml").open("a") as file:
            file.write("floor: 0.2\n")
    return folder


def attacked(folder, tmp_path, words, texts=(*BILLS, *COOKS), seed=0):
    """Every gadget and its effect, by kind of change."""
    path = tmp_path / "traffic.jsonl"
    path.write_bytes(b"".join(msgspec.json.encode({"text": text}) + b"\n" for text in texts))
    memory = Memory(words)
    run = execute(folder, memory, read_traffic(path), Tokens())
    assert not {routed.decision.reason.value for routed in run.routed} & {"upgrade_rate"}
    return {effect.kind: (gadget, effect) for gadget, effect in attacks(run, memory, VOCABULARY, seed)}


def test_a_gadget_fitted_on_some_prompts_moves_the_others(folder, tmp_path, words):
    """Up to the expensive tier and down from it. The same number of random words does not."""
    found = attacked(folder, tmp_path, words)
    for place in ("before", "after"):
        gadget, up = found[f"upgrading gadget {place}"]
        _, control = found[f"random words {place} (control)"]
        assert gadget.text and (up.rows, up.upgraded.value, up.above.value) == (3, 1.0, 1.0)
        assert control.upgraded.value == 0.0
        _, down = found[f"downgrading gadget {place}"]
        assert (down.rows, down.downgraded.value) == (2, 1.0)


def test_a_limit_on_upgrades_stops_an_attack_except_for_tier_floors(folder, tmp_path, words):
    """Without an upgrade left, the principal goes above the default tier only because of a `tier_floor`."""
    _, limited = attacked(folder, tmp_path, words)["upgrading gadget before"]
    assert (limited.above.value, limited.above_capped.value) == (1.0, 0.0)
    path = folder / "cooking.yaml"
    path.write_text(path.read_text() + "tier_floor: large\n")
    _, floored = attacked(folder, tmp_path, words)["upgrading gadget before"]
    assert (floored.above.value, floored.above_capped.value) == (1.0, 1.0)


def test_the_same_seed_gives_the_same_attack(folder, tmp_path, words):
    first, second = (attacked(folder, tmp_path, words, seed=3) for _ in range(2))
    assert msgspec.json.encode(first) == msgspec.json.encode(second)


def test_one_row_leaves_no_row_to_try_a_gadget_on(folder, tmp_path, words):
    """Only the random words are tried."""
    kinds = list(attacked(folder, tmp_path, words, [BILLS[0]]))
    assert kinds == ["random words after (control)", "random words before (control)"]


def test_nothing_is_searched_when_all_cohorts_have_one_tier(folder, tmp_path, words):
    path = folder / "cooking.yaml"
    path.write_text(path.read_text().replace("tier: large", "tier: small"))
    assert attacked(folder, tmp_path, words) == {}
