"""Follow-ups: asks that say too little alone, because they continue the ask before them.

A short one has a few words. A longer one refers to earlier turns ("are you sure about that?", "und was ist, wenn
sie nicht zustimmen?") and adds few new words. An ask with a text to work on is not a follow-up.
"""

import re
from collections.abc import Sequence

from extproc.encoder.language import ENGLISH_WORDS, is_english

_SHORT_WORDS, _SHORT_WIDTH = 4, 24
_MOST_WORDS, _MOST_WIDTH = 12, 72
_NEW_WORDS = 3
# The least length of a new word. Longer function words are known in English only.
_NEW_CHARS, _NEW_CHARS_ENGLISH = 5, 4
# An ideograph has the content of about three letters. A syllable of Kana or Hangul has that of two.
_IDEOGRAPHS = re.compile("[\u2e80-\u303f\u3400-\u9fff\uf900-\ufaff]")
_SYLLABLES = re.compile("[\u3040-\u30ff\uac00-\ud7af]")
_WORD = re.compile(r"[^\W\d_]+")
# A text to work on: after a colon, in quotes or in code, or on other lines.
_OWN_TEXT = re.compile(r"[:：]\s*\S|[\"“„«「『`\n<>{}]")
# Words that refer to an earlier turn, or compare with it.
_BACK_WORDS = """
    it this these those they them its their ones again instead also same else anyway shorter longer simpler
    clearer meant forgot
    dies diese dieser dieses diesen daran dafür davon dazu damit dabei darüber auch nochmal nochmals stattdessen
    gleiche gleichen selbe kürzer länger einfacher genauer gemeint sie
    ça cela ceci celui celle ceux celles ils elles encore aussi plutôt même court détail refais demandé
    eso esto ello ellos ellas mismo misma también otra nuevo corto detalle hazlo pedí
    isso isto eles elas mesmo mesma também novamente questo quello ciò stesso stessa anche ancora loro
    dit dat ook zelfde nogmaals tego też samo jeszcze oni bunu şunu onu aynı tekrar
    это этого этом этому этот эту эти они их тоже также ещё подробнее короче
    ذلك هذا هذه هم αυτό αυτά ίδιο επίσης
"""
# First words that continue a turn, and words that may precede them.
_FIRST_WORDS = """
    and but or und aber oder et mais donc pero maar więc ama peki а и но και αλλά وماذا ولو وهل
"""
_FILLER_WORDS = "ok okay so well hmm no yes then now gut dann alors bueno entonces então allora"
_BACK, _FIRST, _FILLERS = (frozenset(words.split()) for words in (_BACK_WORDS, _FIRST_WORDS, _FILLER_WORDS))
_KNOWN = _BACK | ENGLISH_WORDS
# Phrases that do the same. "that" does, unless a clause or a noun follows. "das" does before a small letter.
_PHRASE = re.compile(
    r"\bthat\b(?=\W*$|[,.;?!]|'s| (?:is|was|does|did|would|will|can|could|should|has|to|in|into|as|for|with|again"
    r"|too|please|look|work|mean|case|part|one|way)\b)|\bdas\b(?= [a-zäöü]|\W*$)"
    r"|\b(?:what|how) (?:about|if)\b|\bqué pasa si\b|\bwas ist(?:, wenn| mit)\b|\ba co z\b"
    r"|\b(?:our|my|your|this) case\b|\b(?:you|i) mean\b|\b(?:are you|how|quite) sure\b|\b(?:too|as well)\W*$"
    r"|\b(?:first|second|third|last|other|next) "
    r"(?:points?|parts?|steps?|ones?|lines?|questions?|sentences?|items?|examples?|options?|paragraphs?|versions?)\b"
    r"|\b(?:ersten|zweiten|dritten|letzten|nächsten) (?:punkt|teil|schritt|satz|absatz)\b|\bsicher\W*$"
    r"|\b(?:sûre?s?|segur[oa]s?|certeza|emin|уверен[аы]?|متأكد|σίγουρος)\b",
    re.IGNORECASE,
)
# Words that only look like that: "is it legal to", "what time is it", "this year".
_EMPTY = re.compile(
    r"\b(?:is|was|would|will|does|did) it\b(?=[^.?!]* to\b)|\btime is it\b"
    r"|\bit(?:'s| is| was)\b(?=[^.?!]* (?:to|that)\b)"
    r"|\bthis (?:year|month|week|weekend|morning|afternoon|evening|summer|autumn|winter|spring)\b",
    re.IGNORECASE,
)
# The same in scripts whose words are not separated here.
_MARKS = re.compile(
    "それ|これ|その|もう少し|もっと|場合は|同じ|这个|那|它|一样|再|上面|他们|确定|그게|그거|그건|그럼|이거"
    "|좀 더|다시|같은|यह|वह|वे|इसे|इसके|आपको|और अगर"
)


def is_follow_up(text: str) -> bool:
    """Return whether the text is to be read with the ask before it."""
    return is_short(text) or refers_back(text)


def is_short(text: str) -> bool:
    """Return whether the text has at most four words and few characters."""
    words = text.split(None, _SHORT_WORDS)
    return len(words) <= _SHORT_WORDS and _width(" ".join(words), _SHORT_WIDTH) < _SHORT_WIDTH


def refers_back(text: str) -> bool:
    """Return whether a longer ask depends on the one before it."""
    if _width(text, _MOST_WIDTH) >= _MOST_WIDTH or _OWN_TEXT.search(text):
        return False
    if _MARKS.search(text):
        return True
    text = _EMPTY.sub(" ", text)
    words = _WORD.findall(text.lower())
    if len(words) > _MOST_WORDS or not (_PHRASE.search(text) or _refers(words)):
        return False
    least = _NEW_CHARS_ENGLISH if is_english(text) else _NEW_CHARS
    rest = _WORD.findall(_PHRASE.sub(" ", text.lower()))
    return sum(len(word) >= least and word not in _KNOWN for word in rest) <= _NEW_WORDS


def _refers(words: Sequence[str]) -> bool:
    first = next((word for word in words if word not in _FILLERS), "")
    return first in _FIRST or not _BACK.isdisjoint(words)


def _width(text: str, most: int) -> int:
    """The content of a text in letters, or its length if that is `most` or more."""
    if len(text) >= most:
        return len(text)
    return len(text) + 2 * len(_IDEOGRAPHS.findall(text)) + len(_SYLLABLES.findall(text))
