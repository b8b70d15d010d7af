"""Text -> the vector that is matched: the whole text, its opening and its words, joined."""

import numpy as np
import pytest

from extproc.encoder.features import FeatureEncoder, hashed_words, opening, without_courtesies

TEXTS = [
    "Summarize this contract: the tenant pays on the first of each month. The landlord repairs the roof.",
    "Where is my parcel?",
    "Hi",
    "你好，请把这封信翻译成法语。",
    "Naïve café façade — \U0001f600 déjà vu",
    "fix:\n\n\n```\nfor i in range(10): print(i)\n```",
]
ODD = ["", " ", "\n", "!?", "\x00", "\ufffd", "a" * 2_000, "\U0001f600"]


def test_vectors_have_one_unit_row_a_text(encoder):
    """384 numbers of the embedding and 2,048 of the words, as float32."""
    vectors = encoder.encode(TEXTS)
    assert (vectors.shape, vectors.dtype) == ((len(TEXTS), 384 + 2048), np.float32)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_odd_texts_are_texts(encoder):
    """Empty, blank, unprintable and long texts have finite vectors of unit length."""
    vectors = encoder.encode(ODD)
    assert np.isfinite(vectors).all()
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_a_text_has_the_same_vector_in_any_company(encoder):
    """A request is routed the same way with any other requests in its batch."""
    alone = np.vstack([encoder.encode([text]) for text in TEXTS])
    assert np.allclose(encoder.encode(TEXTS), alone, atol=1e-5)
    assert np.allclose(encoder.encode(TEXTS[::-1])[::-1], alone, atol=1e-5)
    assert np.allclose(encoder.encode([*ODD, *TEXTS])[len(ODD) :], alone, atol=1e-5)


def test_a_paraphrase_is_nearer_than_another_task(encoder):
    """Tasks are distinguished, not topics: both tasks are about a rental contract."""
    summary, again, extraction = encoder.encode(
        [
            "Summarize this rental contract in two sentences",
            "Give me a summary of the lease in a few lines",
            "Extract the rent and the tenant's name from this contract as JSON",
        ]
    )
    assert summary @ again > summary @ extraction


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("Summarize this contract: the tenant pays.", "Summarize this contract:"),
        ("Summarize this contract. Be brief.", "Summarize this contract."),
        ("Is this contract valid? Say why.", "Is this contract valid?"),
        ("Translate into French!\nHello there", "Translate into French!"),
        ("Translate into French\nHello there", "Translate into French\nHello there"),
        ("Translate into French\n\nHello there", "Translate into French\n"),
        ("Hi there. Summarize this contract. Be brief.", "Hi there. Summarize this contract."),
        ("Version 3.11 of Python. What is new?", "Version 3.11 of Python."),
        ("Look at http://example.com:80/a please. Now.", "Look at http://example.com:80/a please."),
        ("Where is my parcel?", "Where is my parcel?"),
        ("No punctuation at all", "No punctuation at all"),
        ("", ""),
        ("Hi. Ok.", "Hi. Ok."),
    ],
)
def test_the_opening_is_the_first_sentence_or_clause(text, first):
    """People put the instruction there. A greeting is too short to be an opening."""
    assert opening(text) == first


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("Hello! Could you lend me a hand with this? Summarize this contract.", "Summarize this contract."),
        ("I\u2019d like to ask for a favour: extract the rent.", "extract the rent."),
        ("Hi. How are you? Fix this: I am fine. Thank you.", "Fix this: I am fine."),
        ("Fix this. Can you help? Keep the tabs.", "Fix this. Can you help? Keep the tabs."),
        ("Where is my parcel? Many thanks in advance! Best regards", "Where is my parcel?"),
        ("What is this? 3 + x", "What is this? 3 + x"),
        ("Urgent or not: the server room is flooding", "Urgent or not: the server room is flooding"),
        ("Hello, the roof leaks. Help!", "Hello, the roof leaks."),
        ("Can you help me? Thanks.", "Can you help me? Thanks."),
        ("你好。请把这封信翻译成法语。", "你好。请把这封信翻译成法语。"),
        ("?!", "?!"),
        ("", ""),
    ],
)
def test_clauses_of_courtesy_around_the_ask_are_left_out(text, rest):
    """Only whole clauses at the ends are left out, never the clause after a colon, and never the whole text."""
    assert without_courtesies(text) == rest


def test_the_vector_of_an_ask_is_that_of_the_same_ask_with_courtesies(encoder):
    """Otherwise the opening would contain only the preamble."""
    plain = "Summarize this contract: the tenant pays on the first of each month."
    polite = f"Good morning! I have a question, could you please help me? {plain} Thank you!"
    alone, with_courtesies = encoder.encode([plain, polite])
    assert np.allclose(alone, with_courtesies, atol=1e-3)


class Counting:
    """Records the texts it is asked to encode. The vector of a text is its length."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []

    def encode(self, texts):
        self.batches.append(list(texts))
        return np.array([[len(text), 1.0] for text in texts], dtype=np.float32)


def test_openings_are_encoded_in_the_same_call_and_only_where_they_differ():
    """The weights are read from memory once, and a text of one sentence is encoded once."""
    counting = Counting()
    FeatureEncoder(counting).encode(["Where is my parcel?", "Summarize this contract: the tenant pays."])
    assert counting.batches == [
        ["Where is my parcel?", "Summarize this contract: the tenant pays.", "Summarize this contract:"],
    ]


def test_hashed_words_know_neither_case_nor_order_but_of_the_first():
    """A word counts by the square root of its number of occurrences. All numbers are the same word."""
    base, cased, turned, other, numbers, more = hashed_words(
        [
            "sum up 3 pages",
            "Sum UP 3 pages",
            "sum pages 3 up",
            "pages up 3 sum",
            "sum up 3000 pages",
            "sum up 3 3 pages",
        ]
    )
    assert np.array_equal(base, cased) and np.array_equal(base, turned) and np.array_equal(base, numbers)
    assert not np.array_equal(base, other)
    assert np.square(base).sum() == pytest.approx(5)  # four words, and the first once more
    assert np.square(more).sum() == pytest.approx(6)


def test_hashed_words_are_the_same_in_every_process():
    """Python's own hash is salted, so a snapshot must not depend on it."""
    row = hashed_words(["extract"])[0]
    assert {int(i): float(row[i]) for i in row.nonzero()[0]} == {61: 1.0, 478: -1.0}


def test_words_of_any_script_count_and_punctuation_does_not():
    """An apostrophe is part of its word."""
    assert np.square(hashed_words(["don't naïve 你好"])).sum() == pytest.approx(4)
    assert not hashed_words(["", "!? ... \U0001f600 _"]).any()
