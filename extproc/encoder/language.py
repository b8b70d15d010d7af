"""Whether a text is in English, for encoders that read nothing else. They give other texts an arbitrary vector."""

import re

from extproc.encoder.features import instruction

_WORD = re.compile(r"[^\W\d_]+")
# Texts of Latin script that are not English have accents, but not all of them and not on every letter. Above this
# share of letters outside ASCII, it is another script.
_OTHER_SCRIPT = 0.3
# A text with fewer function words of another language, or words with an accent, may have a name or a quotation.
_LEAST_WORDS = 2
_ENGLISH_WORDS = """
    a about after all an and any are as at be been but by can could did do does for from had has have he her his how
    i if in into is it its just make me more my no not of on one or our please she should so than that the their
    them then there these they this to up was we were what when where which who why will with would write you your
"""
# Function words of other languages with Latin script, without those that are frequent in English texts or in code.
_OTHER_WORDS = """
    el los las del que por para con una como más pero está qué cómo este esta esto mi tu su sus al porque ser
    le les des du une et est dans avec sur cette vous je ne pas aux mon ce il elle nous qui quel quelle sont leur
    der das und ist nicht ein eine einen einem einer mit für auf dem den von wie ich wir mir sie im zum zur aus
    os uma não com em na por mais você é ao dos das meu minha isso qual são
    il gli di che è non della sono questo questa un mi ti ho nel alla dei perché
    het een van dat niet voor met zijn deze ik naar mijn wat hoe
    nie się jest że jak dla czy mnie tego przez och att det som är inte på ett jag hur og af ikke til hvordan
    bir ve bu için ile nasıl mı yang dan untuk dengan ini dari saya tidak și pentru este nu cum care
"""
ENGLISH_WORDS, _OTHER = frozenset(_ENGLISH_WORDS.split()), frozenset(_OTHER_WORDS.split())


def is_english(text: str) -> bool:
    """Return whether the first and the last sentence of `text` may be English. A text without words may be."""
    words = _WORD.findall(instruction(text).lower())
    letters = "".join(words)
    if sum(letter > "\x7f" for letter in letters) > _OTHER_SCRIPT * len(letters):
        return False
    other = sum(word in _OTHER or not word.isascii() for word in words)
    return other < _LEAST_WORDS or other < sum(word in ENGLISH_WORDS for word in words)
