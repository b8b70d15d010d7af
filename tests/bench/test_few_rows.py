"""The folder and the rows that `bench.few_rows` makes of a data set."""

from collections import Counter

import pytest

from bench.few_rows import Row, write_folder
from extproc.config.load import load_config

ROWS: list[Row] = [
    {"text": f"{split} {name} {i}", "intent": name, "split": split}
    for name in [f"intent_{i:02}" for i in range(80)] + ["oos"]
    for split, count in (("train", 100 if name == "oos" else 25), ("test", 300 if name == "oos" else 3))
    for i in range(count)
]


@pytest.mark.parametrize(("tiers", "cheap"), [(1, 77), (2, 39)])
def test_each_intent_has_ten_utterances_and_ten_other_rows(tmp_path, tiers: int, cheap: int):
    """No text is both. Only rows of the test split are measured on."""
    labelled, tested = write_folder(tmp_path, ROWS, tiers)
    intents = load_config(tmp_path).intents
    assert len(intents) == 77 and sum(intent.tier == "small" for intent in intents) == cheap
    assert {len(intent.utterances) for intent in intents} == {10}
    counts = Counter(row["intent"] for row in labelled)
    assert counts.pop(None) == 77 and set(counts.values()) == {10} and len(counts) == 77
    utterances = {text for intent in intents for text in intent.utterances}
    assert not utterances & {row["text"] for row in labelled}
    assert {row["text"].split()[0] for row in labelled} == {"train"}
    assert {row["text"].split()[0] for row in tested} == {"test"}
    assert sum(row["intent"] is None for row in tested) == 257
