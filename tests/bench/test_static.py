"""The stage that bench/static.py measures, and its arithmetic, on cases computed by hand."""

import math
from pathlib import Path

import numpy as np
import pytest

from bench.static import Shares, sample_tasks, shares
from bench.static_stage import TokenTable, distil, fit_stage, load_tokenizer, tabulate
from extproc.routing.index import Match


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("all-MiniLM-L6-v2")


@pytest.fixture(scope="module")
def table(tokenizer) -> TokenTable:
    """The real vocabulary with a random vector for each token. Texts that share words are similar."""
    rows = np.random.default_rng(0).standard_normal((tokenizer.get_vocab_size(), 64))
    return TokenTable(rows.astype(np.float16), tokenizer)


def stage_of(table, each):
    """A stage for billing and cooking, with `each` utterances per cohort."""
    colours = ["red", "blue", "green", "grey", "pink", "brown", "white", "black", "gold", "silver"]
    lines = [f"{first} {then}" for first in colours for then in colours][:each]
    return fit_stage(
        {
            "billing": [f"send the invoice for {line} again" for line in lines],
            "cooking": [f"how long do I boil {line} eggs" for line in lines],
        },
        table,
    )


def test_a_text_is_the_mean_of_its_tokens_at_unit_length(table):
    """The order of the tokens does not matter. A text without tokens gives zeros."""
    one, other, none = table.encode(["boil the egg", "the egg, boil", ""])
    assert np.linalg.norm(one) == pytest.approx(1)
    assert one @ other > 0.8
    assert not none.any()


@pytest.mark.parametrize(
    "text, whole_words",
    [
        ("Where is my parcel?", True),
        ("", False),
        ("asdkjh qwelkj zxmcnb qpwoei", False),
        ("Schreibe eine Funktion, die doppelte Einträge entfernt", False),
        ("請把這份合同總結成三點", False),
        ("0x7f 9f86d081884c7d659a2feaa0c55ad015", False),
    ],
)
def test_a_table_knows_texts_of_whole_words(table, text, whole_words):
    """It rejects other languages, codes and noise."""
    assert table.knows(text) is whole_words


def test_every_token_is_embedded_once_as_a_text(tokenizer):
    """In the order of the vocabulary. A word piece is embedded as a word."""
    encoded = []

    class Recorder:
        def encode(self, texts):
            encoded.extend(texts)
            return np.random.default_rng(0).standard_normal((len(texts), 8)).astype(np.float32)

    table = distil(Recorder(), tokenizer)
    assert table.rows.shape == (len(encoded), 8) == (30522, 8)
    assert [encoded[tokenizer.token_to_id(name)] for name in ("parcel", "##ing", "[UNK]")] == [
        "parcel",
        "ing",
        "[UNK]",
    ]


def test_rare_tokens_weigh_more_than_frequent_ones():
    """A vocabulary lists its tokens by frequency. The first tokens carry the least information."""
    rows = np.random.default_rng(0).standard_normal((2000, 64)).astype(np.float32)
    lengths = np.linalg.norm(tabulate(rows).astype(np.float32), axis=1)
    assert lengths[:10].max() < 0.1 * lengths[-100:].min()


def test_clear_texts_are_decided_and_others_are_not(table):
    """Words of no cohort, words of both cohorts, and texts longer than any utterance are not decided."""
    stage = stage_of(table, 60)
    clear = stage.match("send the invoice for red gold again")
    assert clear is not None and clear.cohort == "billing"
    assert stage.match("the weather was lovely in the mountains") is None
    assert stage.match("how long do I send the invoice") is None
    assert stage.match("send the invoice for red gold again and again and again") is None


def test_too_few_utterances_give_no_margin(table):
    """One mistake more is counted than there were. One in forty is more than the risk, one in sixty is not."""
    few = stage_of(table, 20)
    assert few.margin == math.inf and few.match("send the invoice for red gold again") is None
    assert stage_of(table, 30).margin < 1


def test_the_stage_decides_first_and_the_transformer_the_rest():
    """Three texts in scope, two out. The stage corrects one, and accepts one that the floor would have rejected."""
    mine, yours = Match("mine", 0.5, 0.1), Match("yours", 0.5, 0.1)
    then, trusted = [yours, mine, mine, mine, yours], [True, True, False, False, False]
    truth = ["mine", "mine", "mine", None, None]
    assert shares(truth, [None] * 5, then, trusted) == Shares(0, 2 / 3, 1 / 3, 0)
    assert shares(truth, [mine, None, None, mine, None], then, trusted) == Shares(1 / 3, 1, 2 / 3, 1 / 2)


def test_prompts_of_intents_that_are_left_out_are_out_of_scope(monkeypatch):
    """The nine intents have 180 of the 200 prompts, and two of them have forty."""
    monkeypatch.chdir(Path(__file__).parents[2])
    inside = {
        task.name: (len(task.utterances), sum(name is not None for name in task.truth), len(task.texts))
        for tasks in sample_tasks()
        for task in tasks
    }
    assert inside == {
        "sample intents": (9, 180, 200),
        "5 of them": (5, 100, 200),
        "3 of them": (3, 60, 200),
        "2 of them": (2, 40, 200),
    }
