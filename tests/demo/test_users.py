"""The simulated users of the demo: their words, and what their option needs."""

from itertools import islice
from pathlib import Path

import pytest

from extproc.cli.main import main
from extproc.config.load import load_config
from extproc.contract.words import Reason
from extproc.demo.users import asks

INTENTS = Path(__file__).parents[2] / "intents"


def test_users_ask_in_other_words_about_every_cohort() -> None:
    """The same seed gives the same asks. Few of them are utterances word for word."""
    first, again = (list(islice(asks(INTENTS, seed=3), 2000)) for _ in range(2))
    assert first == again
    config = load_config(INTENTS)
    assert {ask.cohort for ask in first} == {*(intent.intent for intent in config.intents), Reason.OUT_OF_SCOPE}
    utterances = {text for intent in config.intents for text in intent.utterances}
    assert sum(ask.text in utterances for ask in first) < 200


def test_the_files_of_a_demo_are_kept_only_while_it_serves(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another demo does not overwrite them."""
    assert main(["demo", "--intents", str(INTENTS), "--out", str(tmp_path)]) == 2
    assert "give --serve, too" in capsys.readouterr().err
    (tmp_path / "intents").mkdir()
    assert main(["demo", "--intents", str(INTENTS), "--serve", "--out", str(tmp_path)]) == 2
    assert "has the files of an earlier demo: remove it, or name another folder" in capsys.readouterr().err
