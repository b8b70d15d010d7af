"""Requests of no intent, through the real Envoy: the default tier serves, and nothing of a guess is written."""

from collections.abc import Iterator

import msgspec
import pytest

from extproc.demo.stack import Stack, running
from tests.e2e.traffic import CHAT, EXTRACT, MODELS, arrived, ask, body_of, write_small_intents

_BACKGROUND = """
background:
  - hi
  - Tell me a bedtime story about a dragon
  - Write a poem about the sea in autumn
  - What should I cook tonight?
  - Why is the sky blue?
  - Suggest a name for my new puppy
  - Plan three days in Lisbon for a family
  - What rhymes with silver?
"""


@pytest.fixture(scope="module")
def guessing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The small intents without floors, with a background."""
    folder = write_small_intents(tmp_path_factory.mktemp("guessing") / "intents")
    for path in folder.glob("*.yaml"):
        path.write_text(path.read_text().replace("\nfloor: 0.05\n", "\n"))
    (folder / "_background.yaml").write_text(_BACKGROUND)
    with running(folder) as stack:
        yield stack


@pytest.mark.parametrize(
    "prompt", ["Tell me a story about a dragon and the sea", "yes", "?", "Hello, how are you?"]
)
def test_a_prompt_of_no_intent_gets_the_default_tier_and_no_cap(guessing: Stack, prompt: str) -> None:
    """Only the model's name changes on its way to the upstream."""
    answer = ask(guessing.port, prompt)
    assert answer.said == {
        "x-router-cohort": "out_of_scope", "x-router-tier": "large", "x-router-reason": "out_of_scope",
    }  # fmt: skip
    assert arrived(guessing).tier == "large"
    assert msgspec.json.decode(arrived(guessing).body) == body_of(CHAT, prompt) | {"model": MODELS["large"]}


def test_a_match_that_is_a_guess_gets_the_tier_but_neither_cap_nor_reasoning_off(guessing: Stack) -> None:
    """The intent `extraction` has a cap of 512 tokens and turns reasoning off."""
    answer = ask(guessing.port, EXTRACT)
    assert answer.said == {
        "x-router-cohort": "extraction", "x-router-tier": "small", "x-router-reason": "matched",
    }  # fmt: skip
    assert msgspec.json.decode(arrived(guessing).body) == body_of(CHAT, EXTRACT) | {"model": MODELS["small"]}
