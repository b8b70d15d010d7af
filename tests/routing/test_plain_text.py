"""The end of an e-mail and capitals are left out of the ask."""

import pytest

from extproc.api.request import Turn
from extproc.routing.ask import find_ask
from extproc.routing.plain_text import without_closing, without_shouting

ASK = "Extract the total from this invoice as JSON: 420 EUR, due 3 May."


@pytest.mark.parametrize(
    "closing",
    [
        "\n\nBest regards,\nAna Silva\nHead of Finance, Acme\n+1 555 0100",
        "\nMany thanks,\nJo",
        "\n\nThanks!",
        "\n\n-- \nMaria Lind\nmaria@example.com",
        "\n\nSent from my tablet",
        "\n\nMit freundlichen Grüßen\nJens Vogel",
        "\n\nViele Grüße, \nJens",
        "\n\nBien cordialement,\nLuc Petit",
        "\n\nSaludos cordiales\nEva",
        "\n\nС уважением,\nИван Петров",
        "\n\n此致\n王芳",
        "\n\nThe content of this e-mail is privileged. If you are not the named recipient, do not copy it.",
        "\n\nDiese E-Mail ist vertraulich und nur für den genannten Empfänger bestimmt.",
        "\n\nCe message est confidentiel. Si vous n'êtes pas le destinataire, merci de le supprimer.",
        "\n\nRegards,\nTom Reed\n\nThis mail is confidential. If you got it by mistake, delete it.",
    ],
)
def test_the_end_of_an_email_says_nothing_about_its_task(closing: str) -> None:
    assert without_closing(ASK + closing) == ASK
    assert find_ask([Turn("user", (ASK + closing,))]).text == ASK


@pytest.mark.parametrize(
    "rest",
    [
        "\n\nRegards,\nTom\n\nPlease make the mail above more formal.",
        "\n\nThanks\nMake it shorter",
        "\n\nThank you for the invoice of last week, which I have not paid yet.",
        "\n\nIs this notice to the intended recipient confidential enough?",
        "\n\nThe attached file is confidential.",
        "\n\nCheers,\nthen translate the answer into French and send it to the whole team of the customer",
    ],
)
def test_text_that_may_be_a_task_stays(rest: str) -> None:
    assert without_closing(ASK + rest) == ASK + rest


def test_a_text_that_only_ends_is_itself() -> None:
    for text in ("", "Cheers,\nSam", "\n\nBest regards,\nTom", "Thanks!", "-- \nMaria"):
        assert without_closing(text).strip() == text.strip()
    assert find_ask([Turn("user", ("yes please\n\nCheers,\nSam",))]).text == "yes please Cheers, Sam"


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("WHERE IS MY ORDER?", "where is my order?"),
        ("¿DÓNDE ESTÁ MI PEDIDO, EH?", "¿dónde está mi pedido, eh?"),
        ("ГДЕ МОЙ ЗАКАЗ, ЭЙ?", "где мой заказ, эй?"),
        ("WHERE is my order?", "WHERE is my order?"),
        ("SQL", "SQL"),
        ("我的订单在哪里？请尽快告诉我，谢谢你们", "我的订单在哪里？请尽快告诉我，谢谢你们"),
    ],
)
def test_an_ask_in_capitals_is_read_as_small_letters(text: str, plain: str) -> None:
    assert without_shouting(text) == plain
    assert find_ask([Turn("user", (text,))]).text == plain
