"""Conversations in one text: chat templates, and turns with the names of the speakers in front.

Clients of Completions send them, and so do frameworks that keep the conversation themselves. The text ends where
the model is to answer. A conversation that a person quotes ends otherwise, so it stays one text. A conversation
below a question, or below a request to work on it ("summarise this chat"), stays one text, too. Instructions of a
framework are not such requests.
"""

import re
from collections.abc import Iterator
from itertools import islice

from extproc.api.parts import MAX_ITEMS

_EDGE_CHARS, _TASK_CHARS = 80, 400
# Tokens of chat templates. Group 1: the name of a role. Group 2: a mark that stands for one.
_TOKEN = re.compile(
    r"<\|(?:im_start|start|start_header_id|header_start|start_of_role)\|>[ \n]*([A-Za-z]{2,12})"
    r"|<[|｜](system|user|assistant|User|Assistant)[|｜]>"
    r"|<\|START_OF_TURN_TOKEN\|><\|(SYSTEM|USER|CHATBOT)_TOKEN\|>"
    r"|<start_of_turn>(user|model)"
    r"|(\[/?INST\]|<</?SYS>>|\[/?SYSTEM_PROMPT\])"
)
_ROLES = {
    "system": "system", "developer": "system", "<<sys>>": "system", "[system_prompt]": "system",
    "user": "user", "human": "user", "[inst]": "user", "<</sys>>": "user",
    "assistant": "assistant", "model": "assistant", "chatbot": "assistant", "[/inst]": "assistant",
}  # fmt: skip
_OTHER_TOKENS = re.compile(r"<[|｜][\w▁]{2,24}[|｜]>|</?s>|<(?:bos|eos|end_of_turn)>|\[gMASK\]|<sop>")
# The end of a turn. Behind the last opening it means that the model is not to go on.
_END = re.compile(
    r"<[|｜](?:im_end|eot_id|eom_id|eot|end|endoftext|end_of_text|return|end▁of▁sentence|END_OF_TURN_TOKEN)[|｜]>"
    r"|</s>|<(?:eos|end_of_turn)>"
)
_TEMPLATE_START = re.compile(rf"\s*(?:(?:{_OTHER_TOKENS.pattern})\s*)*(?:{_TOKEN.pattern})")
_DEEPSEEK_START = "<｜begin"  # its system prompt has no token
# Names in front of turns. Group 1: the person. Group 2: the model.
_PERSON = r"(?:Human|User|HUMAN|USER|### ?Human|### ?User|### ?Instruction)"
_MODEL = r"(?:Assistant|AI|ASSISTANT|### ?Assistant|### ?Response)"
_NAME = re.compile(rf"(?:^|(?<=</s>)|(?<= )(?=USER:|ASSISTANT:))[ \t]*(?:({_PERSON})|({_MODEL})) ?:", re.MULTILINE)
_QUESTION = re.compile("[?？؟]")
# A request to work on a conversation: a verb at the start of a sentence, and the conversation in the same sentence.
# In German, French and Spanish, too, and in Chinese and Japanese.
_WORK = r"""(?: summari[sz]e | sum\ up | translate | rewrite | rephrase | paraphrase | classify | categori[sz]e
    | label | tag | anal(?:y[sz]e) | evaluate | rate | score | grade | judge | review | extract | list | identify
    | find | highlight | count | describe | explain | proofread | correct | shorten | condense | redact
    | anonymi[sz]e | check | format | convert | tl;?dr
    | (?:write|give|create|make|provide|generate|draft|produce|suggest)\ (?:me\ |us\ )?(?:an?\ |the\ )?
      (?:\w+\ ){0,2}(?:summary|title|headline|subject|report|abstract|recap|synopsis|analysis|minutes|list)
    | fass\w* | übersetz\w* | analysi\w* | bewerte\w* | klassifizi\w* | résum\w* | tradui\w* | analyse\w*
    | évalue\w* | resum\w* | traduc\w* | analiza\w* | clasifica\w* )"""
_TALK = r"""(?: conversations? | dialog | dialogs | dialogues? | chats? | transcripts? | exchange | discussion
    | thread | logs? | calls? | session | interview | messages | turns | text | gespräch\w* | unterhaltung | verlauf
    | échange | conversación | diálogo | charla )"""
_STARTS = r"(?: \A | [.!?:;,\n] | \b(?:please|kindly|you|then|and|bitte|to)\b ) \s*"
_TASK = re.compile(
    rf"{_STARTS} {_WORK}\b [^.!?\n]{{0,80}}? \b{_TALK}\b | (?:总结|概括|翻译|分析|評価|要約|翻訳)",
    re.IGNORECASE | re.VERBOSE,
)
# Below a role for the model, the sentence has to name the conversation directly.
_ROLE = re.compile(
    r"\b(?:you are|you're|act as|du bist|sie sind|tu es|vous êtes|eres|you (?:help|assist|answer|always|never|must"
    r"|should|will|may)|(?:assistant|ai) (?:is|can|always|never|must|should|will)|be (?:brief|concise|polite"
    r"|friendly|kind|helpful)|(?:give|keep|write) (?:\w+ ){0,2}(?:short|brief|concise))\b|\Asystem:|你是|あなたは",
    re.IGNORECASE,
)
_NARROW_TASK = re.compile(
    rf"""{_STARTS} {_WORK}\ (?:(?:of|the|this|that|following|whole|entire|above|below|given|user's|customer|chat)
    \ ){{1,4}}{_TALK}\b""",
    re.IGNORECASE | re.VERBOSE,
)
_OPEN_END = re.compile(rf"(?:\A|[\n ]|</s>){_MODEL} ?:\s*\Z")


def turns_in(text: str) -> list[tuple[str, str]]:
    """Return the role and the text of each turn in `text`, or [] if it holds no conversation that is to go on."""
    if _TEMPLATE_START.match(text) or text.startswith(_DEEPSEEK_START):
        return _turns(text, _TOKEN)
    return _turns(text, _NAME) if _OPEN_END.search(text[-_EDGE_CHARS:]) else []


def _turns(text: str, opening: re.Pattern[str]) -> list[tuple[str, str]]:
    """The turns between the openings. The last one is an answer that the model is to write or to complete."""
    openings = list(islice(opening.finditer(text), MAX_ITEMS + 1))
    roles = [_role(opening) for opening in openings]
    if len(openings) > MAX_ITEMS or "user" not in roles or roles[-1] != "assistant":
        return []
    if _stays_one(text[: openings[0].start()], text[openings[-1].end() :], opening):
        return []
    starts = [("system", 0, openings[0].start())]
    ends = [*(opening.start() for opening in openings[1:]), len(text)]
    starts += zip(roles[:-1], [opening.end() for opening in openings], ends, strict=False)
    return list(_with_text(text, starts))


def _stays_one(before: str, rest: str, opening: re.Pattern[str]) -> bool:
    """Whether a person may ask about the turns, in the text before them or in the rest behind the last opening."""
    if opening is _NAME:
        return bool(rest.strip()) or _QUESTION.search(before) is not None or _names_task(before)
    return _END.search(rest) is not None


def _names_task(before: str) -> bool:
    """Whether the text above a conversation asks to work on it. Only the end of a long text is read."""
    before = before[-_TASK_CHARS:]
    task = _NARROW_TASK if _ROLE.search(before) else _TASK
    return task.search(before) is not None


def _with_text(text: str, places: list[tuple[str, int, int]]) -> Iterator[tuple[str, str]]:
    for role, start, end in places:
        turn = _OTHER_TOKENS.sub("", text[start:end]).strip()
        if turn:
            yield role, turn


def _role(opening: re.Match[str]) -> str:
    """The role that an opening names. Any other one, such as that of a tool, is itself."""
    if opening.re is _NAME:
        return "user" if opening[1] else "assistant"
    name = opening[opening.lastindex or 1].lower()
    return _ROLES.get(name, name)
