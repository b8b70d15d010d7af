"""The lines of `extproc explain` about a match: the table of chances, and one sentence about the tier."""

import msgspec
import pytest

from extproc.cli.explain_match import cohort_table, match_lines, prompt_lines
from extproc.routing.decision import decide
from extproc.routing.index import Match
from extproc.routing.policy import Policy
from extproc.settings import ByPrompt
from tests.routing.test_trust import FAQ, POLICY, SIGNALS, evidence, match, with_cohort


def lines(found: Match, policy: Policy = POLICY) -> list[str]:
    return [*match_lines(policy, decide(policy, SIGNALS, found, {}))]


def test_the_table_lists_chances_best_first_with_the_background_as_a_row():
    """Each cohort has the tier that it needs."""
    similarities = {"faq": 0.5, "code": 0.2, "summary": 0.1, "legal": 0.0}
    chances = {"faq": 0.7, None: 0.2, "code": 0.09, "legal": 0.01, "summary": 0.0}
    assert [*cohort_table(POLICY, similarities, chances)] == [
        "\ncohort                chance  tier        similarity   floor",
        "faq                   70.0 %  small            0.500   0.100  uncalibrated",
        "(background)          20.0 %  large",
        "code                   9.0 %  large            0.200   0.100  uncalibrated",
        "legal                  1.0 %  frontier         0.000   0.100  uncalibrated",
        "summary                0.0 %  small            0.100   0.100  uncalibrated",
        "",
    ]


WITHHELD = (
    "withheld  max_output_tokens, reasoning of faq, because the match is a guess: run `extproc calibrate`, or "
    "write a `floor` into the intent"
)


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (
            match(faq=0.9, code=0.1),
            [
                "the chance that the request needs a tier above small is 10 %, and up to 25 % is accepted, so "
                "small serves"
            ],
        ),
        (
            match(faq=0.6, code=0.4),
            [
                "the chance that the request needs a tier above small is 40 %, more than the 25 % that is "
                "accepted, so large serves"
            ],
        ),
        (match(faq=0.2, background=0.8), ["the background is likelier than faq, so large serves"]),
        (match(legal=1.0, faq=0.0), ["legal is likely enough for its tier frontier"]),
        (match(faq=1.0, similarity=0.05), ["the similarity is below the floor of faq, so large serves"]),
        (
            match(faq=0.39, summary=0.38, background=0.23),
            ["no intent has a chance of 40 %, and small is enough for those that are likely"],
        ),
    ],
)
def test_one_sentence_says_why_the_tier_was_taken(found: Match, said: list[str]):
    """It names the numbers that decided."""
    margin, *rest = lines(found)
    assert margin == "margin    0.200 (floor 0.000)"
    assert rest[0] == f"match     {said[0]}"
    assert rest[1:] == ([WITHHELD] if found.cohort == "faq" and "accepted, so small" in said[0] else [])


def test_with_a_floor_the_similarity_decides():
    """Nothing is withheld then."""
    policy = with_cohort(msgspec.structs.replace(FAQ, operator_floor=True))
    assert lines(match(faq=0.6, code=0.4), policy) == [
        "margin    0.200 (floor 0.000)",
        "match     the similarity reaches the floor of faq, so small serves",
    ]


def test_with_a_shared_margin_the_chances_decide_too():
    """The sentence names the chance."""
    policy = with_cohort(
        msgspec.structs.replace(FAQ, margin=0.1, calibrated=True, evidence=evidence(False, pool=90))
    )
    assert lines(match(faq=0.6, code=0.4), policy) == [
        "margin    0.200 (floor 0.100)",
        "match     the chance that the request needs a tier above small is 40 %, more than the 25 % that is "
        "accepted, so large serves",
    ]


CHOICE = ByPrompt(("small", "large"), least=0.05, gain=(0.01, 0.04), rows=300, fit="0123456789ab")


@pytest.mark.parametrize(
    ("gain", "settings", "said"),
    [
        (
            0.12,
            {},
            "predicted gain of large over small: +12.0 points for the mean extra cost; "
            "large serves from +5.0, otherwise small",
        ),
        (
            0.01,
            {},
            "predicted gain of large over small: +1.0 points for the mean extra cost; "
            "large serves from +5.0, otherwise small",
        ),
        (
            None,
            {},
            "not used: the prompt is unlike those that it was fitted on, so the tier of faq serves: small",
        ),
        (
            None,
            {"prompt_stale": True},
            "not used: gains.safetensors is missing, stale or of another fit, so the tier of faq serves: small",
        ),
        (
            None,
            {"operator_floor": False},
            "not used: faq is not calibrated, so the tier of faq serves: small",
        ),
    ],
)
def test_the_choice_by_the_prompt_is_explained(gain, settings, said):
    """The predicted gain is given in points, or the reason why there is none."""
    usual = {"operator_floor": True, "by_prompt": CHOICE}
    policy = with_cohort(msgspec.structs.replace(FAQ, **(usual | settings)))
    found = msgspec.structs.replace(match(faq=0.9), gain=gain)
    decision = decide(policy, SIGNALS, found, {})
    assert [*prompt_lines(decision)] == [f"prompt    {said}"]
    assert lines(found, policy)[1].endswith(f"so {decision.tier.name} serves")
