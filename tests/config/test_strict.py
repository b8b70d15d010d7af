"""`extproc check --strict`: valid settings that are probably not meant, one folder for each."""

from pathlib import Path

import pytest

from extproc.cli.main import main
from extproc.config.load import load_config
from extproc.config.strict_checks import strict_problems

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "tests" / "configs"
FINDINGS = {
    "price_order": [
        "policy.yaml:15: tier `large` is cheaper than `small`, which comes before it: write the tiers with the "
        "cheapest first, because requests move up in this order"
    ],
    "one_endpoint": [
        "policy.yaml:11: tier `large` asks the same model at the same address as tier `small`: an escalation or a "
        "failover between them changes nothing. Give one of them another model or address"
    ],
    "retarget_empty": [
        "policy.yaml:3: `retarget` is empty, so no request is routed: list the names that the router may replace, "
        "such as auto"
    ],
    "retarget_public_model": [
        "policy.yaml:12: `retarget` does not list `gpt-5-mini`: clients that have this name in their code always "
        "get tier `large`. Add the name to `retarget` if the router may choose for them"
    ],
    "rules": [
        "policy.yaml:18: rule `everything` has no condition, so it applies to every request: add a condition "
        "to `when`",
        "policy.yaml:20: rule `gold` never sets the tier, because rule `everything` before it applies to the same "
        "requests: write it before that one, or remove it",
    ],
    "own_tier": [
        "billing.yaml:4: `escalate.to` names the intent's own tier `small` with the same `reasoning`: a rejected "
        "answer is asked for again in the same way. Name a higher tier"
    ],
    "lower_tier": [
        "billing.yaml:4: `escalate.to` names tier `small`, which is below the intent's tier `large`: it is never "
        "asked. Name a higher tier"
    ],
    "sealed_ladder": [
        "billing.yaml:4: `escalate.to` goes from `small` to `large`, which cannot read its encrypted reasoning: a "
        "conversation with such state does not escalate. Set `sticky: {on_switch: strip}`, or a common `seal`"
    ],
    "language": [
        "billing.yaml:6: this utterance is not English, and the encoder reads nothing else: remove it, or use an "
        "encoder for several languages, such as multilingual-e5-small"
    ],
    "ignored_files": [
        "cooking.yaml.bak:1: is not read: the name of an intent's file ends in .yaml. Rename the file, or move it "
        "elsewhere",
        "more:1: is a folder, and folders are not read: move its files up, or elsewhere",
    ],
    "nothing": [],
}


@pytest.mark.parametrize("name", FINDINGS)
def test_a_finding_has_its_file_and_line(name: str) -> None:
    """The files are valid without `--strict`."""
    folder = CONFIGS / f"strict_{name}"
    assert [str(problem) for problem in strict_problems(load_config(folder), folder)] == FINDINGS[name]


def test_every_folder_is_tested() -> None:
    assert {path.name.removeprefix("strict_") for path in CONFIGS.glob("strict_*")} == FINDINGS.keys()


def test_nothing_is_wrong_with_the_sample_intents() -> None:
    assert strict_problems(load_config(ROOT / "intents"), ROOT / "intents") == []


def test_the_command_ends_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--strict", str(CONFIGS / "strict_price_order")]) == 2
    assert FINDINGS["price_order"][0] in capsys.readouterr().err
