"""Text -> the vector that is matched: the whole text, its first and last sentence and its words, joined."""

import numpy as np
import pytest

from extproc.encoder.features import FeatureEncoder, hashed_words, instruction, names_no_task, without_courtesies

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
    ("text", "ends"),
    [
        ("Summarize this contract: the tenant pays.", "Summarize this contract:"),
        ("Translate into French\n\nHello there, friend", "Translate into French"),
        (f"Summarize this contract. The tenant {'pays and ' * 20}leaves.", "Summarize this contract."),
        (f"The tenant {'pays and ' * 20}leaves. Is this valid?", "Is this valid?"),
        (
            "Summarize this contract: the tenant pays. The landlord repairs.",
            "Summarize this contract: The landlord repairs.",
        ),
        ("The tenant pays. The landlord repairs. Is this valid?", "The tenant pays. Is this valid?"),
        ("Translate into French!\nHello there.\nHow are you?", "Translate into French! How are you?"),
        (
            "Hi there. Summarize this contract. It is long. Be very brief.",
            "Hi there. Summarize this contract. Be very brief.",
        ),
        (
            "A tale of two cities. It was long. Give one word.\nSummary:",
            "A tale of two cities. Give one word.\nSummary:",
        ),
        ("Version 3.11 of Python. I use it. What is new?", "Version 3.11 of Python. What is new?"),
        (
            "Look at http://example.com:80/a please. Now go. What is there?",
            "Look at http://example.com:80/a please. What is there?",
        ),
        ("请总结下面的合同。租客每月付款。房东负责修理屋顶。", "请总结下面的合同。 房东负责修理屋顶。"),
        ("لخص هذا العقد من فضلك؟ يدفع المستأجر. ويصلح المالك السقف.", "لخص هذا العقد من فضلك؟ ويصلح المالك السقف."),
        (
            "इस अनुबंध का सारांश दें।किरायेदार भुगतान करता है।मकान मालिक छत ठीक करता है।",
            "इस अनुबंध का सारांश दें। मकान मालिक छत ठीक करता है।",
        ),
    ],
)
def test_the_instruction_is_the_first_and_the_last_sentence_or_clause(text, ends):
    """People put it there. A word or two at an end keep the sentence beside them."""
    assert instruction(text) == ends


@pytest.mark.parametrize(
    "text",
    ["", "Hi. Ok.", "No punctuation at all", "Where is my parcel?", "Is this contract valid? Say why.",
     "Hi there. Summarize this contract. Be brief.", "Translate into French\n\nHi", "one " * 60,
     "请总结合同。谢谢。"],
)  # fmt: skip
def test_a_text_with_nothing_between_its_ends_is_its_own_instruction(text):
    """It is encoded once."""
    assert instruction(text) == text


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
        ("你好。请把这封信翻译成法语。", "请把这封信翻译成法语。"),
        ("Guten Morgen! Fassen Sie den Vertrag zusammen. Vielen Dank!", "Fassen Sie den Vertrag zusammen."),
        (
            "¡Hola! Extrae la renta de este contrato: 900 euros. Muchas gracias.",
            "Extrae la renta de este contrato: 900 euros.",
        ),
        ("नमस्ते। इस अनुबंध का सारांश दें।", "इस अनुबंध का सारांश दें।"),
        ("こんにちは。次の語を訳してください：ありがとう。", "次の語を訳してください：ありがとう。"),
        ("?!", "?!"),
        ("", ""),
    ],
)
def test_clauses_of_courtesy_around_the_ask_are_left_out(text, rest):
    """Only whole clauses at the ends are left out, never the clause after a colon, and never the whole text."""
    assert without_courtesies(text) == rest


def test_the_vector_of_an_ask_is_that_of_the_same_ask_with_courtesies(encoder):
    """Otherwise the first sentence would contain only the preamble."""
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


def test_instructions_are_encoded_in_the_same_call_and_only_where_they_differ():
    """The weights are read from memory once, and a text of two sentences is encoded once."""
    counting = Counting()
    long = "Summarize this contract: the tenant pays. The landlord repairs."
    FeatureEncoder(counting).encode(["Where is my parcel?", "Is this valid? Say why.", long])
    assert counting.batches == [
        ["Where is my parcel?", "Is this valid? Say why.", long, "Summarize this contract: The landlord repairs."],
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


@pytest.mark.parametrize(
    "text",
    ["yes", "hi", "Thanks!", "ok", "?", "...", "", "Good morning, how are you doing today?", "no thanks",
     "\U0001f44d", "Ja",
     "oui merci", "好的", "はい", "Hello everyone :)", "Can you help me please?"],
)  # fmt: skip
def test_greetings_thanks_and_short_answers_name_no_task(text: str) -> None:
    """They are courtesies, or answers to a question that the request does not have."""
    assert names_no_task(text)


@pytest.mark.parametrize(
    "text",
    [
        "Summarize",
        "2+2",
        "yes or no: is 7 prime?",
        "thanks, now translate it",
        "Hi, where is my order?",
        "hi " * 40,
    ],
)
def test_a_word_of_content_names_a_task(text: str) -> None:
    """So does a text that is too long to be a courtesy."""
    assert not names_no_task(text)
