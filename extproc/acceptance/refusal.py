"""Detects an answer that opens as a refusal, with a short and conservative list of phrases.

Only the opening is read, because an answer *about* refusals quotes them later. A missed refusal costs one weak
answer. A false one costs an unneeded escalation on every similar request. So the list has no phrase that people
also write for other reasons ("I can't recommend it enough", "I couldn't open the door").
"""

import re2  # google-re2 ships no types

from extproc.acceptance.prefixes import pattern_of_prefixes

OPENING_CHARS = 200
# Words that make a phrase harmless ("I can't help but ...") end within this many characters after it.
_TAIL_CHARS = 24

# Curly apostrophes become straight ones. Markdown and quotes around a phrase are removed.
_STRAIGHTENED = str.maketrans(
    dict.fromkeys("\u2018\u2019\u02bc\u00b4`", "'") | dict.fromkeys('*_#>"\u201c\u201d', "")
)

_WE = r"(?:i|we)"
_AM = r"(?: am|'m| are|'re)"
_APOLOGY = (
    r"(?:(?:i(?: am|'m)|we(?: are|'re)) (?:(?:so|very|truly|really|terribly) )?sorry"
    r"|(?:my )?(?:sincere )?apologies|(?:so )?sorry|(?:i|we) (?:sincerely )?apologi[sz]e)"
)
_PREAMBLE = (
    rf"(?:(?:{_APOLOGY}|unfortunately|regrettably|i'm afraid(?: that)?|i am afraid(?: that)?"
    r"|i understand|as an? (?:ai|artificial intelligence|large language|language)[a-z ,-]{0,40}?)"
    r"[,.:;! -]* ?(?:but |however,? |and )?(?:i'm afraid(?: that)? )?)"
)
_UNABLE = (
    rf"{_WE}(?: can't| cannot| can not| won't be able to| will not be able to"
    rf"|{_AM} (?:unable to|not able to|not allowed to|not permitted to|not programmed to"
    r"|not going to be able to|not comfortable)| (?:must|have to|need to)(?: \w+)? decline to)"
)
# Each has an object that occurs only in refusals, because people write "provide" alone in letters.
_TASK = (
    r"(?: (?:help|assist|assisting|helping)(?: you)?(?: with| in|[.!,]|$)"
    r"|(?: \w+)? comply| fulfil+ (?:that|this|your)| do that(?:[.!,]|$)"
    r"| (?:answer|respond to) (?:that|this|your)"
    r"| (?:discuss|engage in|participate in) (?:that|this)"
    r"| (?:provide|providing|offer|give|share)(?: you)?(?: with)?(?: any| that| this| the| such)?"
    r"(?: kind of| type of| requested)? (?:information|instructions|guidance|assistance"
    r"|advice|help|medical|legal|financial|content|details|personal)"
    r"| (?:create|generate|write|produce|creating|generating|writing)"
    r" (?:that|this|any|such|content|explicit|harmful)"
    r"| continue (?:with )?(?:this|that)| (?:support|fulfill) (?:this|that|your) request)"
)
_OTHERS = (
    r"(?:i (?:must|have to|need to)(?: respectfully)? (?:decline|refuse)(?:[.!,]|$)"
    r"|this request (?:violates|goes against)"
    r"|your request (?:violates|goes against)|(?:that|this) goes against my"
    r"|it(?:'s| is| would be) (?:against my (?:guidelines|programming)"
    r"|not appropriate for me to|inappropriate for me to)"
    r"|i don't have (?:enough information|the ability) to (?:help|assist|answer))"
)
# After an apology, "I cannot" is a refusal with any object.
_SORRY_UNABLE = rf"(?:{_APOLOGY})[,.:;! -]* ?(?:but )?{_UNABLE}\b"


def _compiled(pattern: str) -> "re2._Regexp":
    options = re2.Options()
    options.log_errors = False
    return re2.compile(pattern, options)


_REFUSING = rf"(?:{_SORRY_UNABLE}|{_PREAMBLE}*(?:{_UNABLE}{_TASK}|{_OTHERS}))"
_ONLY_SORRY = rf"{_APOLOGY}(?:,? but)?(?: for (?:the|any) (?:confusion|inconvenience))?[.! ]*"
_REFUSAL = _compiled(f"^{_REFUSING}")
_NOT_REFUSAL = _compiled(
    rf"^{_PREAMBLE}*{_UNABLE} (?:help but|stress|overstate|emphasi[sz]e|thank|wait|imagine"
    r"|recommend|say enough)"
)
_EMPTY_APOLOGY = _compiled(f"^{_ONLY_SORRY}$")
# It matches an opening that is a refusal, and one that a continuation can turn into a refusal.
_PERHAPS_REFUSAL = _compiled(
    f"^(?:{_REFUSING}|(?:{pattern_of_prefixes(_REFUSING)}|{pattern_of_prefixes(_ONLY_SORRY)})$)"
)


def _opening(text: str) -> str:
    """Return the start of a text in plain lower case. A longer text only adds characters at its end."""
    head = text[: 4 * OPENING_CHARS].translate(_STRAIGHTENED).lower()
    return " ".join(head.split())[:OPENING_CHARS]


def refuses(text: str) -> bool:
    """Whether a whole answer opens as a refusal, or is only an apology."""
    opening = _opening(text)
    if _EMPTY_APOLOGY.search(opening) is not None:
        return True
    return _REFUSAL.search(opening) is not None and _NOT_REFUSAL.search(opening) is None


def refuses_early(text: str) -> bool | None:
    """Whether a text that is still growing refuses. None if a continuation can change that."""
    opening = _opening(text)
    if _PERHAPS_REFUSAL.search(opening) is None:
        return False
    if len(opening) == OPENING_CHARS:
        return refuses(text)
    if _NOT_REFUSAL.search(opening) is not None:
        return False
    refusal = _REFUSAL.search(opening)
    return True if refusal is not None and len(opening) - refusal.end() >= _TAIL_CHARS else None
