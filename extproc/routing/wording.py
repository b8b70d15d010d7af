"""The wording of a question in one form, so that two wordings of the same question are equal.

Similarity of embeddings cannot do this: "enable the firewall" is nearer to "disable the firewall" than to most of
its paraphrases. So two asks are the same question only if all their words agree, in the same order. Every name,
number, unit, negation, preposition and tense counts. These differences do not count:

- courtesies at either end, and a request to explain in front of a question
- the phrases in which people ask how something is done, or what something is
- articles, the hyphen of a few compounds, spellings of British and American English, and a few exact synonyms
- the capital letter of the first word, and the mark at the end

A text that is not English keeps all its words. A text about words keeps its courtesies and its spelling: "what is
German for thanks" asks for "thanks".
"""

import re
import unicodedata

from extproc.encoder.language import is_english

# A longer ask is rarely asked twice in other words.
LONGEST_CHARS = 400
# Numbers with their signs and separators, words, and every other character. "5km" is a number and a word. Text with
# a sign of code, a path or a formula keeps its spaces: `rm *.log` and `rm * .log` are two commands.
_TOKEN = re.compile(
    r"[-+]?\d(?:[\d.,:/]*\d)?(?=[^\W\d_]*[?.,;:!\"')\]]*(?:\s|$|%))"
    r"|[^\s\"'(]*(?:[-+~*/\\&|<>=$@#^{}\[\]`]|\.(?=\w))\S*"
    r"|[-+]?\d(?:[\d.,:/]*\d)?|[^\W\d_]\w*(?:'[^\W\d_]+)*|\S"
)
_SPACES = re.compile(r"\s+")
# Spaces that may be part of a text that the ask is about.
_SEVERAL_SPACES = re.compile(r"[^\s.?!](?:\s{2,}|[^\S ])\S")
# A hyphen between these words changes nothing. "A man-eating chicken" is not "a man eating chicken".
_HYPHEN = re.compile(
    r"\b(two|multi|single)-(factor)\b|\b(open)-(source)\b|\b(real|full|part|run|compile|build|long|short)-(time|term)\b"
    r"|\b(end)-(to)-(end)\b|\b(step)-(by)-(step)\b|\b(sign|log)-(in|out|up)\b|\b(set|back)-(up)\b"
    r"|\b([^\W\d_]{2,})-([^\W\d_]{2,})$"  # no noun follows
)
# A text about words: about their meaning in another language, their spelling, or names in code.
_LANGUAGES = (
    "english|french|german|spanish|italian|portuguese|dutch|polish|russian|ukrainian|czech|japanese|chinese|mandarin|"
    "korean|arabic|hebrew|turkish|swedish|danish|norwegian|finnish|greek|latin|hindi|hungarian|romanian"
)
_ABOUT_WORDS = re.compile(
    r"\b(?:say|says|said|words?|phrase|translat\w+|spell\w*|spelt|pronounc\w+|writes|written|rhymes?|sings?|sang|songs?|"
    r"reply|respond|valid|syntax|css|html|attribute|property|variable|keyword|british|american|difference between|"
    rf"(?:in|into|for|of) (?:{_LANGUAGES})|(?:{_LANGUAGES}) for)\b|[\"`]",
    re.IGNORECASE,
)
_QUOTES = str.maketrans("‘’‚‛“”„‟", "''''\"\"\"\"")
# The mark at the end of a sentence. "5!" and "??" mean something.
_MARK = re.compile(r"(?:(?<=[\w\"')\]])[?.？。]+|(?<=[^\W\d_]{2})[!！]+)$")
_GREETING = re.compile(
    r"(?:hi|hello|hey|dear|good (?:morning|afternoon|evening|day))(?: there| all| team| everyone| everybody)?"
    r"(?:\s*[,!.:]+\s*|\s+(?=(?:how|what|where|who|when|why|which|can|could|would|please|is|are|do|does|i)\b))(?=\S)",
    re.IGNORECASE,
)
_THANKS = re.compile(
    r"[\s,.!;?-]*(?:\b(?:please|thanks|thank you|thx|cheers|many thanks|thanks a lot|thank you very much)"
    r"(?: in advance| so much)?)[\s.!,]*$",
    re.IGNORECASE,
)
# "Can you explain" asks for a task. "Can you eat raw eggs" is a question.
_TASKS = (
    "tell|show|give|explain|describe|list|write|translate|summari[sz]e|convert|help|name|compare|define|provide|suggest|"
    "recommend|calculate|solve|draft|generate|rewrite|teach|outline|extract|answer|please|kindly"
)
# "Can anyone write a will" is a question, too.
_ANYONE = "tell|show|explain|describe|help|recommend|suggest|teach"
_POLITE = re.compile(
    r"(?:(?:so|ok|okay|well),|quick question[:,]|(?:please|kindly|(?:can|could|would|will) (?:you"
    rf"(?: please| kindly|(?= (?:{_TASKS})\b))|(?:anyone|someone)(?: please| kindly|(?= (?:{_ANYONE})\b))))"
    r"(?=[\s,]))[\s,]+(?=\S)",
    re.IGNORECASE,
)
_WISH = re.compile(
    r"(?:(?:i want|i would like|i'd like|i need) to (?:know|understand|learn|find out|ask)|"
    r"i(?: am|'m| was) wondering|i wonder|do you know|does (?:anyone|anybody) know|any idea|"
    r"(?:tell|show|teach) (?:me|us)|(?:explain|describe)(?: to (?:me|us))?|let (?:me|us) know|help me understand)"
    r"[\s,:]+(?=(?:how|what|where|who|when|why|which)\b)",
    re.IGNORECASE,
)
# "Let me know, was 1900 a leap year?" is a question.
_TELL_ME = re.compile(r"(?:tell me|let me know)\s*[,:]\s*(?=\S)", re.IGNORECASE)
_TO_ME = re.compile(rf"(?<!\S)(?P<task>(?:{_TASKS}) .+) (?:to|for) (?:me|us)$")
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
    (re.compile(r"(?<=\d) ?% of\b"), " percent of"),
    (re.compile(r"\be[- ]?mail"), "email"),
    (re.compile(r"\bwi fi\b|\bwi-fi\b|\bWi-Fi\b|\bWiFi\b|\bWi Fi\b"), "wifi"),
)
_NO_OBJECT = r"(?! (?:an?|the|some|any|(?:my|your|our|their|his|her)) )"
_SYNONYMS = (
    (re.compile(r"\b(?:turn|switch) on\b"), "enable"),
    (re.compile(r"\b(?:turn|switch) off\b"), "disable"),
    (re.compile(r"\b(?:turning|switching) on\b"), "enabling"),
    (re.compile(r"\b(?:turning|switching) off\b"), "disabling"),
    # "Sign out a laptop" is not "log out a laptop".
    (re.compile(rf"\bsign (in|out)\b{_NO_OBJECT}|\blog ?(in|out)\b"), lambda m: f"log {m[1] or m[2]}"),
    (re.compile(rf"\b(?:signing (in|out)\b{_NO_OBJECT}|logging (in|out)\b)"), lambda m: f"logging {m[1] or m[2]}"),
    (re.compile(r"\bset ?up\b"), "setup"),
    # As a verb: "a purchase order" is not "a buy order", and "purchasing power" is not "buying power".
    (re.compile(r"\b(to|do|can|could|should|would|must|i|we|you|one) purchase\b(?! orders?\b)"), r"\1 buy"),
    (re.compile(r"\b(for|of|to|on|about|before|after|when|while|by) purchasing (?=(?:a|an|the)\b)"), r"\1 buying "),
)
_WHO = r"(?:i|we|one|someone)"  # "you" may be the model
_STEPS = r"(?:steps?|way|ways|procedure|process|method|instructions?)"
# "The process of aging" and "a guide to Paris" are not instructions.
_GERUND = (
    r"(?:(?:steps?|way|ways|procedure|method|instructions?) (?:for|of|on) |process for |guide (?:to|for|on) )"
    r"(\w+ing)"
)
_HOW = (
    re.compile(rf"how (?:(?:do|can|could|would|does) {_WHO}|to) (?:go about )?(\w+)\b"),
    re.compile(rf"how {_WHO} (?:can|could|would) (\w+)\b"),
    re.compile(rf"what (?:is|are) (?:the )?(?:{_STEPS} to ([a-z]\w*)|{_GERUND})\b"),
    re.compile(rf"what (?:do {_WHO} (?:need to |have to )|must {_WHO} )do (?:to|in order to) (\w+)\b"),
    re.compile(rf"(?:(?:give|show) (?:me|us) |provide )?(?:the |a )?(?:{_STEPS} to ([a-z]\w*)|{_GERUND})\b"),
    re.compile(r"(?:explain|describe|show)(?: to)?(?: me| us)? how to (\w+)\b"),
)
_DEFINE = (
    re.compile(r"what does (?:the (?:word|term|phrase) )?(.+) mean$"),
    re.compile(r"(?:what is )?(?:the |a )?(?:meaning|definition) of (?:the (?:word|term|phrase) )?(.+)$"),
    re.compile(r"what is meant by (?:the (?:word|term|phrase) )?(.+)$"),
    # "Define a class in Python" asks for code.
    re.compile(r"define (?:the (?:word|term|phrase) |(?!(?:a|an|the) ))(.+)$"),
)
# The question in a clause, as in "do you know where the station is", is "where is the station".
_INDIRECT = re.compile(r"(what|where|who|when) (.+) (is|are|was|were)( born)?$")
_WHAT = re.compile(r"what (is|are) ")
_MOVED = re.compile(r"((?:in|on|with|using|for) [^,]{1,40}), (.+)$")
_ARTICLES = frozenset(("a", "an", "the"))
# Words after which "a" is a name, and words that mean something else with an article.
_NAMED_A_WORDS = """
    vitamin hepatitis type plan grade class option group level team section part point variant appendix schedule
    series step case influenza exhibit category column row line answer
"""
_NAMED_A = frozenset(_NAMED_A_WORDS.split())
_WITH_ARTICLE_WORDS = "few little number lot couple bit only one same most other rest first last"
_WITH_ARTICLE = frozenset(_WITH_ARTICLE_WORDS.split())
# Names that are words, too, at the start of a text: "Polish furniture", "Turkey recipes".
_NAMES_TOO = frozenset(("Polish", "March", "May", "Turkey", "China", "Reading", "Nice", "Job", "August"))
_VOWEL = re.compile(r"[aeiouy]")
_DOUBLED = re.compile(r"([bdgmnprt])\1$")
# The ends of stems that lose an e before -ing: hop(e), enabl(e), remov(e), creat(e), but not open and edit.
_SILENT_E = re.compile(
    r"(?:(?:^|[^aeiou])[aiouy][bcdgklmnprstvz]|[^aeiou]e[dmtv]|[bdfgkpt]l|[vcu]|eas|rs|[a-z]{2}eat|olv|rg|dg)$"
    r"(?<!edit)(?<!limit)(?<!visit)(?<!exit)(?<!deposit)(?<!monitor)(?<!reset)(?<!add)(?<!market)(?<!target)(?<!focus)"
)
_QUESTION = ("how ", "what ", "where ", "who ", "when ", "why ", "which ", "HOW ", "WHAT ", "DEFINE ")


def wording_of(text: str) -> str | None:
    """Return the one form of an ask, or None for an ask that is compared only as it is written."""
    if len(text) > LONGEST_CHARS or "\n" in text.strip() or _SEVERAL_SPACES.search(text) is not None:
        return None
    text = _SPACES.sub(" ", unicodedata.normalize("NFC", text).translate(_QUOTES)).strip()
    if not is_english(text):
        return _tokens(_MARK.sub("", text)) or None
    about_words = _ABOUT_WORDS.search(text) is not None
    core, asks_task, indirect = _without_courtesies(text, about_words)
    form = _framed(_first_word_small(_one_spelling(_MARK.sub("", core.rstrip(" ,;:")), about_words)), indirect)
    words = _without_articles(_tokens(form))
    if not words:
        return None
    is_question = text.endswith("?") and not asks_task and not words.startswith(_QUESTION)
    return f"{words} ?" if is_question else words


def _without_courtesies(text: str, about_words: bool) -> tuple[str, bool, bool]:
    """The text without courtesies, whether it asks for a task, and whether its question is in a clause."""
    if not about_words:
        greeting = _GREETING.match(text)
        text = _THANKS.sub("", text[greeting.end() :] if greeting is not None else text)
    asks_task, indirect, before = False, False, ""
    while text != before:
        before = text
        polite, wish, tell_me = _POLITE.match(text), _WISH.match(text), _TELL_ME.match(text)
        if wish is not None:
            text, indirect = text[wish.end() :], True
        elif tell_me is not None:
            text = text[tell_me.end() :]
        elif polite is not None:
            text = text[polite.end() :]
            asks_task = asks_task or " " in polite[0].strip(" ,")
    return text, asks_task, indirect


def _without_articles(words: str) -> str:
    """The words without the articles that change nothing. The last word is never one."""
    kept, before = [], ""
    tokens = words.split(" ")
    for token, after in zip(tokens, [*tokens[1:], ""], strict=True):
        word_follows = len(after) > 1 and after[0].isalnum()
        names = not word_follows or after in _WITH_ARTICLE or (token == "a" and before in _NAMED_A)
        if token not in _ARTICLES or names:
            kept.append(token)
        before = token
    return " ".join(kept)


def _first_word_small(text: str) -> str:
    first, space, rest = text.partition(" ")
    is_title = first[:1].isupper() and first[1:].islower() and first not in _NAMES_TOO
    return f"{first.lower()}{space}{rest}" if is_title or first in ("I", "A") else text


def _one_spelling(text: str, about_words: bool) -> str:
    for pattern, written in _CONTRACTIONS:
        text = pattern.sub(written, text)
    text = re.sub(r"\bI\b", "i", text)
    if about_words:
        return text
    for pattern, written in _SPELLINGS:
        text = pattern.sub(written, text)
    return _HYPHEN.sub(lambda match: " ".join(filter(None, match.groups())), text)


def _framed(text: str, indirect: bool) -> str:
    """The text with one phrase for all the ways to ask how, what, and for a meaning."""
    to_me = _TO_ME.fullmatch(text)
    text = to_me["task"] if to_me is not None else text
    moved = _MOVED.fullmatch(text)
    if moved is not None:
        text = f"{moved[2]} {moved[1]}"
    for pattern, written in _SYNONYMS:
        text = pattern.sub(written, text)
    for pattern in _DEFINE:
        defined = pattern.fullmatch(text)
        if defined is not None:
            return f"DEFINE {defined[1]}"
    for pattern in _HOW:
        how = pattern.match(text)
        if how is not None:
            return f"HOW {_verb(how[how.lastindex or 1])}{text[how.end() :]}"
    told = _TELL.match(text)
    if told is not None:
        return f"WHAT {text[told.end() :].replace('the ', 'THE ', 1)}"
    turned = _INDIRECT.fullmatch(text) if indirect else None
    if turned is not None:
        text = f"{turned[1]} {turned[3]} {turned[2]}{turned[4] or ''}"
    text = re.sub(r"^why do ", "why ", text)
    text = re.sub(r"^how much is (?=\d[\d.,]* percent of )", "what is ", text)
    what = _WHAT.match(text)
    if what is not None:
        rest = re.sub(r"^(a|an|the) ", lambda article: "THE " if article[1] == "the" else "A ", text[what.end() :])
        return f"WHAT {rest}"
    return text


def _verb(word: str) -> str:
    """The verb of a gerund: enable for enabling, and plan for planning, but plane for planing.

    A wrong guess is not a word, so the ask equals no other one. Other verbs do not change: to fill a form is not to
    file it.
    """
    stem = word.removesuffix("ing")
    if stem == word or len(word) <= 5 or _VOWEL.search(stem) is None:
        return word
    if _DOUBLED.search(stem) is not None:
        return stem[:-1]
    return f"{stem}e" if _SILENT_E.search(stem) is not None else stem


def _tokens(text: str) -> str:
    return " ".join(_TOKEN.findall(text))
