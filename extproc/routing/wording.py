"""The wording of a question in one form, so that two wordings of the same question are equal.

Similarity of embeddings cannot do this: "enable the firewall" is nearer to "disable the firewall" than to most of
its paraphrases. So two asks are the same question only if all their words agree, in the same order. Every name,
number, unit, negation, preposition and tense counts. These differences do not count:

- courtesies at either end, and a request to tell or explain in front of a question
- the phrases in which people ask how something is done, or what something is
- articles, hyphens between words, spellings of British and American English, and a few exact synonyms
- the capital letter of the first word, and the mark at the end

A text that is not English keeps all its words.
"""

import re
import unicodedata

from extproc.encoder.language import is_english

# A longer ask is rarely asked twice in other words.
LONGEST_CHARS = 400
# Numbers with their signs and separators, words, and every other character. "5km" is a number and a word.
_TOKEN = re.compile(r"[-+]?\d(?:[\d.,:/]*\d)?|[^\W\d_]\w*(?:'[^\W\d_]+)*|\S")
_SPACES = re.compile(r"\s+")
_HYPHEN = re.compile(r"(?<=[^\W\d_])-(?=[^\W\d_])")
_QUOTES = str.maketrans("‘’‚‛“”„‟`´", "''''\"\"\"\"''")
_GREETING = re.compile(
    r"(?:hi|hello|hey|dear|good (?:morning|afternoon|evening|day))(?: there| all| team| everyone| everybody)?"
    r"(?:\s*[,!.:-]+\s*|\s+)(?=\S)",
    re.IGNORECASE,
)
_THANKS = re.compile(
    r"[\s,.!;?-]*(?:\b(?:please|thanks|thank you|thx|cheers|many thanks|thanks a lot|thank you very much)"
    r"(?: in advance| so much)?)[\s.!,]*$",
    re.IGNORECASE,
)
_POLITE = re.compile(
    r"(?:please|kindly|so|ok|okay|well|quick question:?|(?:can|could|would|will) (?:you|anyone|someone|somebody)"
    r"(?: please| kindly)?)[\s,]+(?=\S)",
    re.IGNORECASE,
)
_WISH = re.compile(
    r"(?:(?:i want|i would like|i'd like|i need) to (?:know|understand|learn|find out|ask)|"
    r"i(?: am|'m| was) wondering|i wonder|do you know|does (?:anyone|anybody) know|any idea|"
    r"(?:tell|show|teach) (?:me|us)|(?:explain|describe)(?: to (?:me|us))?|let (?:me|us) know|help me understand)"
    r"[\s,:]+(?=(?:how|what|where|who|when|why|which)\b)",
    re.IGNORECASE,
)
_TELL = re.compile(r"(?:tell|give) (?:me|us) (?=the\b)", re.IGNORECASE)
_CONTRACTIONS = (
    (re.compile(r"\b(can)(?:'t|not)\b", re.IGNORECASE), r"\1 not"),
    (re.compile(r"\bwon't\b", re.IGNORECASE), "will not"),
    (re.compile(r"\bshan't\b", re.IGNORECASE), "shall not"),
    (re.compile(r"n't\b", re.IGNORECASE), " not"),
    (re.compile(r"\b(what|where|who|when|how|why|that|there|it)'s\b", re.IGNORECASE), r"\1 is"),
    (re.compile(r"\b(what|where|who|when|how|why)'re\b", re.IGNORECASE), r"\1 are"),
)
# One spelling for each pair. Both texts are changed, so a word that is changed for no reason does no harm.
_SPELLINGS = (
    (re.compile(r"(\w{3,})is(e[drs]?|ing|ation|ations)\b"), r"\1iz\2"),
    (re.compile(r"\b(\w*(?:col|fav|behavi|neighb|hon|lab|flav|hum|rum|vap|harb))our"), r"\1or"),
    (re.compile(r"\b(cent|theat|fib|lit|kilomet|millimet|centimet)re(s?)\b"), r"\1er\2"),
    (re.compile(r"\b(cancel|travel|label|model|signal|fuel|total)l(ed|ing|er|ers)\b"), r"\1\2"),
    (re.compile(r"\bgrey\b"), "gray"),
    (re.compile(r"\be[- ]?mail"), "email"),
    (re.compile(r"\bwi fi\b|\bwi-fi\b|\bWi-Fi\b|\bWiFi\b|\bWi Fi\b"), "wifi"),
)
_SYNONYMS = (
    (re.compile(r"\b(?:turn|switch) on\b"), "enable"),
    (re.compile(r"\b(?:turn|switch) off\b"), "disable"),
    (re.compile(r"\b(?:turning|switching) on\b"), "enabling"),
    (re.compile(r"\b(?:turning|switching) off\b"), "disabling"),
    (re.compile(r"\bsign (in|out)\b|\blog ?(in|out)\b"), lambda m: f"log {m[1] or m[2]}"),
    (re.compile(r"\b(?:signing|logging) (in|out)\b"), r"logging \1"),
    (re.compile(r"\bset ?up\b"), "setup"),
    (re.compile(r"\bpurchase\b"), "buy"),
    (re.compile(r"\bpurchasing\b"), "buying"),
)
_WHO = r"(?:i|you|we|one|someone|somebody|people)"
_STEPS = r"(?:steps?|way|ways|procedure|process|method|instructions?|directions?|guide)"
_HOW = (
    re.compile(rf"how (?:do|can|could|would|does|might|to) (?:{_WHO} )?(?:go about )?(\w+)\b"),
    re.compile(rf"how (?:{_WHO}) (?:can|could|would|might) (\w+)\b"),
    re.compile(rf"what(?: is| are)? (?:the )?{_STEPS} (?:to|for|of|on|in)(?: how to)? (\w+)\b"),
    re.compile(rf"what (?:do|should|must) {_WHO} (?:need to |have to )?do (?:to|in order to) (\w+)\b"),
    re.compile(rf"(?:(?:give|show) (?:me|us) |provide )?(?:the |a )?{_STEPS} (?:to|for|on|of)(?: how to)? (\w+)\b"),
    re.compile(r"(?:explain|describe|show)(?: to)?(?: me| us)? how to (\w+)\b"),
)
_DEFINE = (
    re.compile(r"what does (?:the (?:word|term|phrase) )?(.+) mean$"),
    re.compile(r"(?:what is )?(?:the |a )?(?:meaning|definition) of (?:the (?:word|term|phrase) )?(.+)$"),
    re.compile(r"what is meant by (?:the (?:word|term|phrase) )?(.+)$"),
    re.compile(r"define (?:the (?:word|term|phrase) )?(.+)$"),
)
# "tell me where the station is" asks "where is the station".
_INDIRECT = re.compile(r"(what|where|who) (.+) (is|are|was|were)$")
_WHAT = re.compile(r"what (is|are) ")
_MOVED = re.compile(r"((?:in|on|with|using|for) [^,]{1,40}), (.+)$")
_ARTICLE = re.compile(r"\b(?:a|an|the) (?!few\b|little\b|number\b|lot\b|couple\b|bit\b|only\b|one\b|same\b)")
# Auxiliaries that end no gerund. The first word of a task is compared by its stem.
_QUESTION = ("how", "what", "where", "who", "when", "why", "which", "define")


def wording_of(text: str) -> str | None:
    """Return the one form of an ask, or None for an ask that is compared only as it is written."""
    if len(text) > LONGEST_CHARS or "\n" in text.strip():
        return None
    text = _SPACES.sub(" ", unicodedata.normalize("NFC", text).translate(_QUOTES)).strip()
    if not is_english(text):
        return _tokens(text.rstrip(".!?。！？ ")) or None
    asked = text.rstrip().endswith("?")
    core, indirect = _without_courtesies(text)
    core = _one_spelling(core.rstrip(" .!?,;:"))
    form = _framed(_first_word_small(core), indirect)
    if not form:
        return None
    words = _tokens(_ARTICLE.sub("", form))
    return words if not asked or words.startswith(("HOW ", *_QUESTION, "WHAT ", "DEFINE ")) else f"{words} ?"


def _without_courtesies(text: str) -> tuple[str, bool]:
    """The text without courtesies, and whether words before a question were removed."""
    text, indirect, before = _GREETING.sub("", text, count=1) if _GREETING.match(text) else text, False, ""
    text = _THANKS.sub("", text)
    while text != before:
        before = text
        polite = _POLITE.match(text)
        text = text[polite.end() :] if polite is not None else text
        wish = _WISH.match(text)
        if wish is not None:
            text, indirect = text[wish.end() :], True
    return text, indirect


def _first_word_small(text: str) -> str:
    first, space, rest = text.partition(" ")
    is_title = first[:1].isupper() and first[1:].islower()
    return f"{first.lower()}{space}{rest}" if is_title or first in ("I", "A") else text


def _one_spelling(text: str) -> str:
    for pattern, written in _CONTRACTIONS:
        text = pattern.sub(written, text)
    text = re.sub(r"\bI\b", "i", text)
    for pattern, written in _SPELLINGS:
        text = pattern.sub(written, text)
    return _HYPHEN.sub(" ", text)


def _framed(text: str, indirect: bool) -> str:
    """The text with one phrase for all the ways to ask how, what, and for a meaning."""
    moved = _MOVED.fullmatch(text)
    if moved is not None:
        text = f"{moved[2]} {moved[1]}"
    for pattern, written in _SYNONYMS:
        text = pattern.sub(written, text)
    for pattern in _DEFINE:
        defined = pattern.fullmatch(text)
        if defined is not None:
            return f"DEFINE {_ARTICLE.sub('', defined[1])}"
    for pattern in _HOW:
        how = pattern.match(text)
        if how is not None:
            return f"HOW {_stem(how[1])}{text[how.end() :]}"
    told = _TELL.match(text)
    if told is not None:
        return f"WHAT {text[told.end() :].replace('the ', 'THE ', 1)}"
    turned = _INDIRECT.fullmatch(text) if indirect else None
    if turned is not None:
        text = f"{turned[1]} {turned[3]} {turned[2]}"
    what = _WHAT.match(text)
    if what is not None:
        rest = re.sub(r"^(a|an|the) ", lambda article: "THE " if article[1] == "the" else "A ", text[what.end() :])
        return f"WHAT {rest}"
    return text


def _stem(verb: str) -> str:
    """The verb without the ending of a gerund: enable and enabling have one stem."""
    stem = verb
    if len(verb) > 5 and verb.endswith("ing"):
        stem = verb[:-3]
    if len(stem) > 3 and stem.endswith("e"):
        stem = stem[:-1]
    if len(stem) > 3 and stem[-1] == stem[-2] and stem[-1] not in "aeiou":
        stem = stem[:-1]
    return stem


def _tokens(text: str) -> str:
    return " ".join(_TOKEN.findall(text))
