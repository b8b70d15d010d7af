"""A vector of a text and one of its parts: from one pass if the encoder can, and otherwise the same as from two."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from extproc.encoder.backends import TorchSentences, prepared_folder, read_choice
from extproc.encoder.features import FeatureEncoder, instruction_parts
from extproc.encoder.parts import Parts, encode_parts, in_two_passes, moved, text_of, tokens_in
from extproc.encoder.prepared_sentences import PreparedSentences
from extproc.encoder.protocols import Vectors
from extproc.encoder.tokens import JsonTokens, unigram_tokenizer, write_tokens

PIECES = ["<s>", "<pad>", "</s>", "<unk>", "▁", "▁sum", "▁it", "▁up", "你", "好", "。", "▁now", "a"]


class Recording:
    """An encoder whose vectors say what it was asked for: the lengths of the text."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def encode(self, texts: Sequence[str]) -> Vectors:
        self.asked += texts
        return np.array([[len(text), 1] for text in texts], dtype=np.float32)


def test_the_parts_are_a_text_of_their_own():
    assert text_of("Sum it up: it rained. Thanks to all.", ((0, 10), (22, 36))) == "Sum it up: Thanks to all."
    assert text_of("Sum it up", ()) == "Sum it up"
    assert moved(((0, 10), (22, 36)), 7) == ((7, 17), (29, 43))


@pytest.mark.parametrize(
    ("parts", "inside"),
    [
        (((0, 3),), [1, 2]),
        (((4, 6),), [3]),
        (((0, 1), (4, 6)), [1, 3]),
        (((2, 3),), [2]),
        (((0, 9),), []),
        ((), []),
    ],
    ids=["two tokens", "a token with the space before it", "two parts", "half of a token", "cut", "no parts"],
)
def test_the_tokens_of_parts(parts, inside):
    """The tokens at both ends have no place in the text."""
    assert tokens_in(parts, [(0, 0), (0, 1), (1, 3), (3, 6), (0, 0)]) == inside


def test_two_passes_encode_the_parts_in_the_same_call():
    """The model's weights are read from memory once. A text without parts has one vector for both."""
    sentences = Recording()
    whole, second = encode_parts(sentences, ["Sum it up: it rained.", "Hello"], [((0, 10),), ()])
    assert sentences.asked == ["Sum it up: it rained.", "Hello", "Sum it up:"]
    assert whole.tolist() == [[21, 1], [5, 1]] and second.tolist() == [[10, 1], [5, 1]]


@pytest.fixture(scope="module")
def pieces(tmp_path_factory) -> Path:
    """A small tokenizer in the format of `tokenizers`, and in that of SentencePiece beside it."""
    folder: Path = tmp_path_factory.mktemp("tokens")
    tokenizer = unigram_tokenizer(PIECES, [0.0] * 4 + [-2.0] * (len(PIECES) - 4))
    (folder / "json").mkdir()
    tokenizer.save(str(folder / "json" / "tokenizer.json"))
    write_tokens(tokenizer, folder, ["sum it up", "你好。sum"], 16)
    return folder


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("sum it up now", ((0, 6),)),
        ("sum it up now", ((0, 3), (7, 13))),
        ("sum 你好。 sum it 你。", ((4, 7), (14, 16))),
        ("sum ａ你 sum 好", ((7, 10),)),
    ],
)
def test_both_tokenizers_find_the_same_tokens(pieces, text, parts):
    """SentencePiece counts bytes, and the other library counts characters."""
    from extproc.encoder.tokens import load_tokens

    fast, slow = load_tokens(pieces, 16), JsonTokens(pieces / "json" / "tokenizer.json", 16)
    assert type(fast) is not type(slow)
    ids, marked = fast.encode_parts(text, parts)
    assert (ids, marked) == slow.encode_parts(text, parts)
    assert [ids] == fast.encode([text]) and marked
    without = [number for number in range(1, len(ids) - 1) if number not in marked]
    assert len(without) == len(ids) - 2 - len(marked)


def test_parts_that_the_model_does_not_read_have_no_tokens(pieces):
    """The text is longer than the model reads. The caller then encodes the parts as a separate text."""
    from extproc.encoder.tokens import load_tokens

    for tokens in (load_tokens(pieces, 6), JsonTokens(pieces / "json" / "tokenizer.json", 6)):
        text = "sum it up " * 5 + "now"
        ids, marked = tokens.encode_parts(text, ((0, 6), (len(text) - 3, len(text))))
        assert len(ids) == 6 and marked == []
        assert tokens.encode_parts(text, ((0, 6),))[1] == [1, 2]


TEXTS = [
    "Translate this letter into French: Dear Sir, thank you for yours of the 4th. Answer in one line, please.",
    "The tenant pays on the first of each month. The landlord repairs the roof. Is this contract valid?",
    "Where is my parcel?",
    "总结这份合同。房客每月第一天付款，房东修屋顶，其余的由双方商定。用一句话回答。",
    "Write a function that merges two sorted lists. " * 60 + "Then answer in one short line.",
]


def parts_of(texts: Sequence[str]) -> list[Parts]:
    return [instruction_parts(text) for text in texts]


@pytest.fixture(scope="module")
def prepared(encoder) -> PreparedSentences:
    if not isinstance(encoder.sentences, PreparedSentences):
        pytest.skip("another back end was chosen here, or `extproc prepare` was not run")
    return encoder.sentences


def test_the_vectors_of_texts_do_not_depend_on_their_parts(prepared):
    whole, second = prepared.encode_parts(TEXTS, parts_of(TEXTS))
    assert np.abs(whole - prepared.encode(TEXTS)).max() < 1e-5
    assert np.abs(second[2] - whole[2]).max() < 1e-6, "no parts: one view"
    assert [float(whole[i] @ second[i]) < 0.99 for i in (0, 1, 3)] == [True] * 3
    assert np.allclose(np.linalg.norm(second, axis=1), 1, atol=1e-5)


def test_company_in_a_batch_changes_no_parts(prepared):
    together = prepared.encode_parts(TEXTS * 3, parts_of(TEXTS * 3))[1]
    alone = np.vstack([prepared.encode_parts([text], parts_of([text]))[1] for text in TEXTS])
    assert (together * np.tile(alone, (3, 1))).sum(axis=1).min() > 0.995


def test_the_prepared_model_and_torch_have_the_same_vectors_of_parts(prepared):
    torch_sentences = TorchSentences("all-MiniLM-L6-v2", 1)
    fast, slow = (each.encode_parts(TEXTS, parts_of(TEXTS)) for each in (prepared, torch_sentences))
    for rows, others in zip(fast, slow, strict=True):
        assert (rows * others).sum(axis=1).min() > 0.98


def test_parts_that_are_cut_off_are_encoded_apart(prepared):
    """The last sentence says what to do, and the model does not read that far."""
    text, parts = TEXTS[-1], instruction_parts(TEXTS[-1])
    assert len(parts) == 2
    whole, second = prepared.encode_parts([text], [parts])
    assert np.abs(second[0] - prepared.encode([text_of(text, parts)])[0]).max() < 1e-5
    assert np.abs(whole[0] - prepared.encode([text])[0]).max() < 1e-5


def test_a_model_that_pools_no_mean_encodes_parts_apart():
    """Its vector is that of one token, which stands for the whole text."""
    sentences = TorchSentences("all-MiniLM-L6-v2", 1)
    one_pass = sentences.encode_parts(TEXTS[:1], parts_of(TEXTS[:1]))[1]
    sentences.model[1].pooling_mode = "cls"
    second = sentences.encode_parts(TEXTS[:1], parts_of(TEXTS[:1]))[1]
    apart = in_two_passes(sentences, TEXTS[:1], parts_of(TEXTS[:1]))[1]
    assert np.array_equal(second, apart) and float((one_pass * apart).sum()) < 0.9


def test_an_ask_is_encoded_in_one_pass(encoder, monkeypatch):
    """Both views of an ask are in one row of the model's batch."""
    sentences = encoder.sentences
    if not isinstance(sentences, PreparedSentences) or not sentences._model.takes_parts:
        pytest.skip("another back end was chosen here, or `extproc prepare` was not run")
    rows = []
    run = sentences._model.run

    def counting(tokens: Sequence[tuple[list[int], list[int]]]) -> tuple[Vectors, Vectors]:
        rows.append(len(tokens))
        return run(tokens)

    monkeypatch.setattr(sentences._model, "run", counting)
    assert isinstance(encoder, FeatureEncoder)
    encoder.encode([TEXTS[0]])
    assert rows == [1]


def test_the_choice_of_this_machine_is_of_this_conversion(prepared):
    """An older one lacks the input for parts, so its folder has another name."""
    choice = read_choice("all-MiniLM-L6-v2")
    assert choice is not None and prepared.vectors.parent == prepared_folder("all-MiniLM-L6-v2")
