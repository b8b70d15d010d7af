"""Which texts are about one person or one moment."""

import pytest

from extproc.routing.personal import has_identifier, is_about_a_moment, speaks_of_itself


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


def test_an_answer_may_depend_on_the_day() -> None:
    assert is_about_a_moment("What is the weather today?") and is_about_a_moment("Wer ist aktuell Kanzler?")
    assert is_about_a_moment("the latest release") and not is_about_a_moment("Who was king of France in 1715?")
