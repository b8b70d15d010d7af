"""Texts that an English encoder cannot read."""

import pytest

from extproc.encoder.language import is_english
from extproc.encoder.models import reads_only_english

ENGLISH = [
    "Where is my parcel?",
    "Is the résumé at the café?",
    "Translate into French: où se trouve la gare la plus proche, et comment y aller ?",
    "请看下面。This is the contract that I signed. Is it valid in the state of New York?",
    "def f(x):\n    return {k: v for k, v in x.items()}",
    "What does El Niño do to the weather?",
    "Prove that ∑ α_i ≤ β for all i",
    "14 + 3 = ?",
    "",
]
OTHER = [
    "Où est ma commande ?",
    "Fassen Sie den folgenden Vertrag zusammen.",
    "Escribe una función que cuente las vocales",
    "Riassumi questo contratto per un collega",
    "Resuma este contrato para mim, por favor",
    "Vat dit contract samen in twee zinnen, het is een huurcontract",
    "Bu sözleşmeyi özetle ve bir liste yap",
    "Streść tę umowę w dwóch zdaniach",
    "请总结下面的合同。",
    "この契約を要約してください",
    "이 계약서를 요약해 주세요",
    "Кратко перескажи договор",
    "لخص هذا العقد",
    "इस अनुबंध का सारांश दें",
    "สรุปสัญญานี้",
    "Translate:\n请总结下面的合同。请总结下面的合同。",
]


@pytest.mark.parametrize("text", ENGLISH)
def test_english_is_read(text):
    """Also with names, quotations, code and formulas in it."""
    assert is_english(text)


@pytest.mark.parametrize("text", OTHER)
def test_other_languages_are_recognised(text):
    """By their script, or by their function words and accents."""
    assert not is_english(text)


def test_the_vocabulary_says_which_encoder_reads_only_english(tmp_path):
    """A model with a vocabulary of another size may read any language."""
    assert reads_only_english("all-MiniLM-L6-v2")
    assert not reads_only_english("multilingual-e5-small") and not reads_only_english("a/name")
    for size, english in ((30_522, True), (250_037, False)):
        (tmp_path / "config.json").write_text(f'{{"vocab_size": {size}}}')
        assert reads_only_english(str(tmp_path)) is english
