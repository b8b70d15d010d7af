"""Which texts are about one person or one moment."""

import pytest

from extproc.routing.personal import has_identifier, is_about_a_moment, speaks_of_itself, wants_a_new_one


@pytest.mark.parametrize(
    "text",
    [
        "How do I reset my password?", "What is our refund policy?", "Where is mine?", "I have a fever of 39",
        "I'm 50, which vaccine is right?", "We are hiring, write an ad", "Is it good for us?",
        "Wo ist meine Rechnung?",
        "Où est ma facture ?", "¿Dónde está mi factura?", "我的发票在哪里？", "私のパスワード", "내 비밀번호",
    ],
)  # fmt: skip
def test_a_person_speaks_of_itself(text: str) -> None:
    assert speaks_of_itself(text)


@pytest.mark.parametrize(
    "text",
    [
        "How do I reset a password?", "Can you help me sort a list?", "Tell us how a heat pump works",
        "What should I do to cancel a subscription?", "I want to know how cheese is made",
        "Who is the US president?",
        "I'd like to convert 5 miles to kilometers", "Explain recursion to me", "Mineral water",
    ],
)  # fmt: skip
def test_a_person_only_asks(text: str) -> None:
    assert not speaks_of_itself(text)


@pytest.mark.parametrize(
    "text",
    [
        "Write to ann.lee+x@example.co.uk", "Call +49 170 1234567", "Order 4821337", "invoice no. 20231",
        "INV-20240017", "DE89370400440532013000", "card 4111 1111 1111 1111", "ticket #90210",
        "123e4567-e89b-12d3-a456-426614174000", "serial X7B4490812",
    ],
)  # fmt: skip
def test_a_text_has_an_identifier(text: str) -> None:
    assert has_identifier(text)


@pytest.mark.parametrize(
    "text",
    ["in 2024 the law changed", "on 2024-11-29", "1,000,000 people", "pi is 3.14159", "error 404", "RFC 9110"],
)
def test_numbers_are_no_identifiers(text: str) -> None:
    assert not has_identifier(text)


def test_a_long_word_is_read_once() -> None:
    """From each of its letters, this would take minutes, in which the router answers no client."""
    assert not has_identifier("a" * 100_000)
    assert has_identifier("a" * 100_000 + "@example.com")


def test_an_answer_may_depend_on_the_day() -> None:
    assert is_about_a_moment("What is the weather today?") and is_about_a_moment("Wer ist aktuell Kanzler?")
    assert is_about_a_moment("the latest release") and not is_about_a_moment("Who was king of France in 1715?")


@pytest.mark.parametrize(
    "text",
    [
        "What time is it?", "What's the date?", "How many days until Easter?", "Is the support desk open?",
        "What is the weather in Oslo?", "What's new?", "How old is the king?", "Euro exchange rate",
        "stock price of X",
    ],
)  # fmt: skip
def test_an_answer_may_depend_on_the_hour_without_a_word_for_it(text: str) -> None:
    assert is_about_a_moment(text)


@pytest.mark.parametrize(
    "text",
    [
        "What is the time complexity of quicksort?", "What is new in Python 3.11?",
        "What is the price of the pro plan?", "How do I open the file?", "Write a headline for this news story",
    ],
)  # fmt: skip
def test_an_answer_that_holds_for_longer(text: str) -> None:
    assert not is_about_a_moment(text)


@pytest.mark.parametrize(
    "text",
    [
        "Generate a strong password", "Please create a UUID", "Roll two dice", "flip a coin",
        "Pick a number from 1 to 9", "Give me a random city", "Suggest a username for a baker",
        "Shuffle: a, b, c", "Nenne eine zufällige Zahl",
    ],
)  # fmt: skip
def test_each_answer_has_to_be_another_one(text: str) -> None:
    assert wants_a_new_one(text)


@pytest.mark.parametrize(
    "text",
    [
        "How do I create a password?", "What is a random forest?", "Explain UUIDs", "Is a coin flip random?",
        "Please, how do I pick a number plate?", "Create a table of contents", "Make a list of card games",
    ],
)  # fmt: skip
def test_the_same_answer_is_as_good(text: str) -> None:
    assert not wants_a_new_one(text)
