"""Background calls: requests that an agent sends by itself, beside the work that a person waits for.

A call is recognised by its structure, and by a few words where the structure is not enough:

- `probe`: the answer may have one token, or a few after a message of at most four words. Agents count tokens and
  check keys with it. Without any token, a request only fills the prompt cache of the tier that is asked next.
- `title`: no tools, and the answer is a JSON object with a title, or the instructions ask for the title of a
  conversation. Tags and suggestions for a quoted chat count as well.
- `memory`: the last message asks for an update of kept notes from the conversation above it, and names files or
  tools in backticks.
- `harness`: no tools, and no text of a person anywhere.

A request that asks for log-probabilities is never a background call, because classifiers do that.
"""

import re
from collections.abc import Iterator
from typing import Literal

from extproc.api.answer_schema import answer_properties
from extproc.api.request import Request, Turn
from extproc.routing.ask import Ask
from extproc.routing.follow_up import is_short
from extproc.routing.policy import Policy

Kind = Literal["probe", "title", "memory", "harness"]

_PROBE_TOKENS = 16  # the least cap that the Responses API accepts
_HEAD_CHARS = 600  # read of the instructions, and of each end of a message
_TALK = r"(?:conversation|session|chat|thread|dialogue|discussion|talk|exchange|transcript)s?"
_ASKS = r"(?:give|write|generate|create|make|produce|craft|suggest|choose|return|output|propose|compose|provide)s?"
# In the instructions of a title call: "generate a title ... conversation", "you name sessions", "thread title".
_TITLE_WORK = re.compile(
    rf"\b{_ASKS}\b[^.\n]{{0,80}}\b(?:titles?|headlines?|tags)\b(?=.{{0,200}}\b{_TALK}\b)"
    rf"|\b{_ASKS}\b[^.\n]{{0,40}}\b{_TALK}\b[^.\n]{{0,20}}\b(?:titles?|names?|headlines?)\b"
    rf"|\b(?:name|title|label)s? (?:(?:the|this|each|a|an|these) )?(?:\w+ ){{0,2}}{_TALK}\b"
    rf"|\b(?:title|header)s? for (?:the|this|each) {_TALK}\b"
    rf"|\bsummari[sz]e (?:the|this|a) {_TALK} (?:as|in|into) a title\b"
    rf"|\b{_TALK} titles?\b|\btitle generator\b",
    re.IGNORECASE | re.DOTALL,
)
# The same in a message. Persons write about titles, too, so it names the conversation at its very start.
_TITLE_ASK = re.compile(
    rf"\W*(?:(?:based on|given|from) [^.\n]{{0,60}}, )?(?:please )?(?:"
    rf"(?:name|title|{_ASKS}\b[^.\n]{{0,60}}\b(?:titles?|names?|tags)\b[^.\n]{{0,40}})"
    rf" (?:this|the|our|the following|the above) (?:\w+ )?(?:{_TALK}|messages above)\b"
    rf"|give (?:this|the|our) {_TALK} an? (?:\w+ ){{0,2}}(?:title|name)\b"
    rf"|summari[sz]e in an? [\w-]{{1,20}} title\b)",
    re.IGNORECASE,
)
# A chat, quoted at the end of a task of its user interface: title, tags, follow-up questions, search queries.
_CHAT_TASK = re.compile(r"\W{0,20}task:", re.IGNORECASE)
_QUOTED_CHAT = "<chat_history>"
_TITLE_KEY = re.compile(r"(?:\w+_)?title", re.IGNORECASE)
_BESIDE_A_TITLE = {"isnewtopic", "is_new_topic", "branch", "emoji", "language"}
_KEEPS = r"(?:updat|refresh|maintain|consolidat|extract|sav|writ|record|stor|distil|curat|prun|keep|merg)\w*"
_NOTES = re.compile(rf"\b{_KEEPS}\b[^.\n]{{0,60}}\b(?:notes|memor(?:y|ies)|learnings|facts)\b", re.IGNORECASE)
_ABOVE = re.compile(
    rf"\b(?:{_TALK}|messages|history|turns)\b[^.\n]{{0,30}}\b(?:above|so far)\b"
    rf"|\b(?:above|latest|recent|last|preceding|previous) (?:\w+ )?(?:{_TALK}|messages|history|turns)\b",
    re.IGNORECASE,
)
_VERSION = re.compile(r"(?:[-_.@:]?v?\d[\w.]*)(?:[-_.@:]\d[\w.]*)*$")


def background_kind(request: Request, ask: Ask) -> Kind | None:
    """Return the kind of background call that the request is, or None for work that a person waits for."""
    if request.logprobs:
        return None
    if _is_probe(request, ask):
        return "probe"
    if "tools" not in request.needs:
        if _is_title(request):
            return "title"
        if ask.source == "raw":
            return "harness"
    return "memory" if _is_memory(request) else None


def class_ceiling(policy: Policy, model: str | None) -> int:
    """Return the rank of the class of model that the client asked for: the highest one for a background call.

    It is the one tier whose model has this name, or has it with another version. Otherwise it is the default tier.
    """
    names = [tier.model for tier in policy.tiers]
    families = [_family(name) for name in names]
    if model in names:
        return names.index(model)
    asked = _family(model or "")
    return families.index(asked) if families.count(asked) == 1 else policy.rank(policy.default_tier)


def _family(model: str) -> str:
    """The name of a model without its version and date: claude-haiku-4-5-20251001 is claude-haiku."""
    return _VERSION.sub("", model)


def _is_probe(request: Request, ask: Ask) -> bool:
    cap = request.max_output_tokens
    if cap is None or request.api == "completions" or cap > _PROBE_TOKENS:
        return False
    return cap == 1 or (cap > 0 and is_short(ask.text) and ask.source != "joined" and _turns(request) == 1)


def _turns(request: Request) -> int:
    return sum(turn.role != "system" and turn.role != "developer" for turn in request.turns)


def _is_title(request: Request) -> bool:
    if request.strict_output and b"itle" in request.body:
        names = answer_properties(request.readable)
        if any(map(_TITLE_KEY.fullmatch, names)) and all(
            _TITLE_KEY.fullmatch(name) or name.lower() in _BESIDE_A_TITLE for name in names
        ):
            return True
    instructions = (text for turn in request.turns if turn.role in ("system", "developer") for text in turn.texts)
    if any(_TITLE_WORK.search(text[:_HEAD_CHARS]) for text in instructions):
        return True
    return any(map(_TITLE_ASK.match, _last_texts(request))) or any(map(_is_chat_task, request.turns[-1:]))


def _is_chat_task(turn: Turn) -> bool:
    return turn.role == "user" and any(_CHAT_TASK.match(text) and _QUOTED_CHAT in text for text in turn.texts)


def _is_memory(request: Request) -> bool:
    texts = list(_last_texts(request))
    return any(text.count("`") >= 4 for text in texts) and all(
        any(map(pattern.search, texts)) for pattern in (_NOTES, _ABOVE)
    )


def _last_texts(request: Request) -> Iterator[str]:
    """The start and the end of each text of the person's last messages, up to an answer."""
    for turn in reversed(request.turns):
        if turn.role not in ("user", "system", "developer"):
            return
        if turn.role == "user":
            for text in turn.texts[-4:]:
                yield text[:_HEAD_CHARS]
                if len(text) > _HEAD_CHARS:
                    yield text[-_HEAD_CHARS:]
