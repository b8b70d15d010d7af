"""Several tasks in one request, which all get an answer. The costliest one decides.

They are the prompts of a list, or parts of a short text: the items of a list, and sentences that begin with "also"
or "then". A text to work on may have these words, too. So a part has to ask for something, and counts only if its
match is trusted.
"""

import re
from collections.abc import Sequence

import msgspec

from extproc.api.request import Request, Turn
from extproc.routing.ask import Ask, find_ask
from extproc.routing.follow_up import is_short
from extproc.routing.replies import asks_for_something

_MOST = 4  # each task is encoded
_LONGEST_CHARS = 500  # a longer text has a text to work on
_ORDINALS = """
    first firstly second secondly third thirdly last lastly erstens zweitens drittens premièrement deuxièmement
    primero segundo primeiro primo secondo во-первых во-вторых
"""
_ADDED = """
    also then next finally afterwards additionally plus besides moreover furthermore ps
    außerdem danach dann anschließend zusätzlich ensuite puis également luego después además también
    depois também poi inoltre infine daarna ook bovendien затем потом также ثم أيضا
"""
_VERBS = """
    tell say check prove write calculate compute solve explain translate summarise summarize extract classify
    rewrite fix debug find list give show describe compare analyse analyze review implement draft create generate
    make answer determine decide estimate derive design plan suggest correct convert count verify advise
"""


def _any(words: str) -> str:
    return "|".join(sorted(map(re.escape, words.split()), key=len, reverse=True))


_START = re.compile(
    r"(?:^|(?<=\s))(?:\(?[1-9a-e][.)]|[-*•–])\s+"  # an item of a list
    rf"|(?:^|(?<=[.,;:!?]\s))(?:{_any(_ORDINALS)})\b[,:]?\s+"
    rf"|(?:(?<=[.,;:!?]\s)|(?<=\s)(?:and|und|et|y|e|en|и)\s+)(?:{_any(_ADDED)}|after that|p\.s\.)(?!\w)[,:]?\s+"
    rf"|(?<=\s)(?:and|also|then)\s+(?=(?:{_any(_VERBS)})\b)"
    "|(?:然后|另外|还有|接着|其次|次に|そして|それから)[,，、]?",
    re.IGNORECASE,
)


_REQUEST = re.compile(rf"(?:please\s+)?(?:{_any(_VERBS)}|sum up)\b", re.IGNORECASE)
# The start of a request to work on the list that follows, such as "Translate into German:".
_WORK_ON_LIST = re.compile(
    r"""(?:please\ |bitte\ )?(?:translate|summari[sz]e|sum\ up|rewrite|rephrase|paraphrase|classify|categori[sz]e
    |label|tag|fix|proofread|correct|extract|shorten|format|convert|sort|rank|übersetz\w*|fass\w*|korrigier\w*
    |sortier\w*|tradui\w*|résum\w*|corrig\w*|traduc\w*|resum\w*|traduz\w*|riassum\w*|перевед\w*|исправ\w*)\b[^.!?:]{0,80}:
    |[^。！？：]{0,20}(?:翻译|总结|修改|翻訳|要約)[^。！？：]{0,40}[:：]""",
    re.IGNORECASE | re.VERBOSE,
)


def find_tasks(request: Request, ask: Ask, max_chars: int) -> tuple[Ask, ...]:
    """Return the asks of the tasks, at most four of them. Empty: there is one task."""
    prompts = request.turns[-1].texts if request.api == "completions" and request.turns else ()
    if len(prompts) > 1:
        return _asks(list(dict.fromkeys(prompts)), max_chars, ask)
    if ask.cut or ask.alone is not None or len(ask.text) > _LONGEST_CHARS:
        return ()
    parts = [part.strip() for part in _START.split(ask.text)]
    if "```" in ask.text or _WORK_ON_LIST.fullmatch(parts[0]):
        return ()
    asked = [part for part in parts if not is_short(part) and (_REQUEST.match(part) or asks_for_something(part))]
    if asked[-1:] in ([], parts[:1]):  # the rest is what to work on
        return ()
    tasks = _asks(asked, max_chars, ask)
    return tuple([msgspec.structs.replace(task, guess=True) for task in tasks])


def matched_asks(ask: Ask) -> tuple[Ask, ...]:
    """Return the asks that are matched: this one, and those that count if they need a higher tier."""
    return (ask, *(() if ask.alone is None else (ask.alone,)), *ask.tasks)


def _asks(texts: Sequence[str], max_chars: int, whole: Ask) -> tuple[Ask, ...]:
    """The asks of a few of the texts, evenly spaced, with the first and the last one."""
    count = min(len(texts), _MOST)
    spaced = [texts[at * (len(texts) - 1) // max(1, count - 1)] for at in range(count)]
    asks = [find_ask((Turn("user", (text,)),), max_chars) for text in spaced]
    return tuple([msgspec.structs.replace(ask, whole=whole) for ask in asks if ask.text])
