"""The person's ask: the words of a request that are embedded and matched.

Coding agents wrap a sentence of the person's in kilobytes of their own. What counts:

1. User turns are read from the last backwards. Turns with only tool output or harness text are
   stepped over; the first with words left holds the ask. Other roles never do.
2. Where a harness marks the person's words with a tag (`_MARKS`) or a heading (`_HEADINGS`), they
   are the ask. Everyday words (`_PLAIN_MARKS`) mark them only if nothing else is left in the turn.
3. Otherwise harness text is taken out: closed blocks (`_HARNESS`), sections (`_SECTIONS`) and
   parts that begin like a banner. In a turn that echoes a tool's output only marked words count.
   Pasted material (fenced code of more than 400 characters, `_PASTES`) is set aside if more than
   a short follow-up is left without it. A tag that is never closed stays: it is ordinary text.
4. A short follow-up ("yes", "and in French?": at most 4 words in under 24 bytes of UTF-8) is
   joined, newline separated, to the asks before it: back to the first that stands alone, three at
   most.
5. Runs of whitespace become one space. What exceeds `max_chars` keeps its head (5/8) and tail
   (3/8) around " … ". Of a text only a bounded head and tail are ever read.

If no turn has words left, the last user turn that has text is the ask, noise and all ("raw").
To teach it a new agent, add a word to a table; `tests/agents/` holds one request of each.
"""

import re
from bisect import bisect
from collections.abc import Sequence
from itertools import chain
from typing import Protocol

import msgspec

# In any case, and _ is also - or a space: system_reminder is <system-reminder>, too.
_MARKS = "user_query user_request userrequest user_message command_args"
_PLAIN_MARKS = "task prompt feedback answer"  # also XML that people ask about: column 0 only
_PASTES = "attachment attachments context document documents file files image rules skill tools"
_HARNESS = """
    system_reminder local_command_caveat local_command_stdout local_command_stderr command_name
    command_message bash_input bash_stdout bash_stderr task_notification user_prompt_submit_hook
    ide_opened_file ide_selection available_deferred_tools new_diagnostics
    environment_context user_instructions permissions_instructions collaboration_mode turn_aborted
    apps_instructions plugins_instructions skills_instructions recommended_plugins token_budget
    personality_spec subagent_notification user_shell_command additional_context hook_prompt
    additional_data user_info project_layout attached_files open_and_recently_viewed_files
    agent_transcripts agent_skills mcp_file_system git_status user_rules image_files
    always_applied_workspace_rules manually_attached_skills hooks_context
    environment_details file_content folder_content url_content explicit_instructions
    workspace_diagnostics git_working_state git_commit terminal_output
    environment_info workspace_info editorcontext reminderinstructions repocontext
    conversation_summary session_context hook_context project_context important_rules
"""  # by line: Claude Code and OpenCode, Codex, Cursor, Cline and Roo, Copilot, Gemini and Continue
_HEADINGS = ("## My request for Codex:", "## My request:")  # the ask is all that follows the last
_SECTIONS = (  # from a line that begins so, to the end that is given; "" is the end of the text
    ("# AGENTS.md instructions", "</INSTRUCTIONS>"),
    ("--- Content from referenced files ---", "--- End of content ---"),
    ("Called the Read tool with", "</content>"),
    ("# *SEARCH/REPLACE block* Rules", ""),
)
_BANNERS = (  # a text part that begins so is the harness's, to its end
    r"[^*\n]{0,40}\*added these files to the chat\*",
    r"here are some read only files, p",
    r"here are summaries of some files present in my git",
    r"i am not sharing any files that you can",
    r"base directory for this skill:",
    r"called the \w+ tool with|<path>",
    r"\[request interrupted|caveat: the messages below|this session is being continued",
    r"this is [\w ]{3,30}\. we are setting up",
)
_ECHO = re.compile(  # tools named like Cline's and Roo's: [read_file for 'a/[b].ts'] Result:
    r"\s*+\[(?:(?=\w{0,40}_)\w++(?: [^\n]{0,400})?\] Result:|TASK RESUMPTION\]|ERROR\] You did not)"
)
_FENCE = re.compile(r"^ {0,7}```.*?\n {0,7}```", re.MULTILINE | re.DOTALL)  # closed ones only
_BANNER = re.compile(rf"\s*+(?:{'|'.join(_BANNERS)})", re.IGNORECASE)
_GAP = re.compile("\x00([0-9]{1,12})\x00")  # stands for that many characters that are not read

_WINDOW_CHARS = 16_384  # read of one turn: ~0.3 ms of prose, ~3 ms of nothing but tags
_BUDGET_CHARS = 8 * _WINDOW_CHARS  # read of one request: a tool loop of some 250 reminder turns
_PARTS = 32  # read of one turn, half from either end: no agent sends more
_PASTE_CHARS = 400  # a shorter snippet is part of the question: "fix this: ..."
_SHORT_WORDS, _SHORT_BYTES = 4, 24  # bytes, as eight Chinese characters can be a whole ask
_CHAIN = 4  # a follow-up and the three asks before it
_CUT = " … "


class TurnLike(Protocol):
    """What is read of one message."""

    @property
    def role(self) -> str: ...
    @property
    def texts(self) -> tuple[str, ...]: ...  # tool results are not among them


class Ask(msgspec.Struct, frozen=True):
    """The person's words that a request is matched by."""

    text: str  # "" when there is none
    source: str  # the rule that found it: last_user, earlier_user, joined, raw, none
    chars: int  # length before it was cut; of an unread middle, as sent
    cut: bool  # head and tail only


def find_ask(turns: Sequence[TurnLike], max_chars: int = 512) -> Ask:
    """Find the words to embed, at most `max_chars` (16 or more) of them. Never fails."""
    asks: list[str] = []  # newest first
    raw, stepped_over, budget = "", False, _BUDGET_CHARS
    for turn in reversed(turns):
        if turn.role != "user" or budget <= 0:
            continue
        parts = _read(turn.texts, max(_WINDOW_CHARS, 4 * max_chars))
        budget -= 1 + sum(map(len, parts))
        words = _squeeze(_words(parts))
        if words:
            asks.append(words)
            if len(asks) == _CHAIN or not _is_short(words):
                break
        elif not asks:
            raw, stepped_over = raw or _squeeze("\n".join(parts)), True
    if not asks:
        return _bounded(raw, "raw" if raw else "none", max_chars)
    alone = "earlier_user" if stepped_over else "last_user"
    return _bounded("\n".join(reversed(asks)), "joined" if len(asks) > 1 else alone, max_chars)


def _read(texts: Sequence[str], room: int) -> list[str]:
    """The parts of a turn, each but its middle, so that what follows costs the same at any size."""
    if len(texts) > _PARTS:
        head, tail = texts[: _PARTS // 2], texts[-_PARTS // 2 :]
        unread = sum(map(len, texts[_PARTS // 2 : -_PARTS // 2]))
        texts = [*head, f"\0{unread}\0", *tail]
    half = max(room // max(len(texts), 1), 1024) // 2
    return [t if len(t) <= 2 * half else f"{t[:half]}\n\0{len(t) - 2 * half}\0\n{t[-half:]}" for t in texts]


def _words(parts: Sequence[str]) -> str:
    """What the person said in one turn; "" if all of it is the harness's."""
    echo = any(map(_ECHO.match, parts))
    own = [_without_harness(p) for p in parts if not _BANNER.match(p)]
    # A second look at the whole: agents also open a block in one part and close it in another.
    text = _without_harness("\n".join(own)) if len(own) > 1 else "".join(own)
    marked, text = _cut_out(text, _MARK_TAGS)
    said = "\n".join(marked)
    if not _squeeze(said):
        marked, rest = _cut_out(text, _PLAIN_MARK_TAGS, margin=True)
        said = "\n".join(marked) if echo or (marked and not _squeeze(rest)) else ""
    if echo or _squeeze(said):
        return said
    without = _without_pastes(text)
    return text if _is_short(without) else without


def _without_harness(text: str) -> str:
    for heading in _HEADINGS:
        text = f"\n{text}".rpartition(f"\n{heading}")[2]
    for begin, end in _SECTIONS:
        text, kept, at = f"\n{text}", [], 0
        while (start := text.find(f"\n{begin}", at)) >= 0:
            ending = text.find(end, start) if end else len(text)
            if ending < 0:  # its end is in what was not read, or it is no section
                gap = _GAP.search(text, start)
                if gap is None:
                    break
                ending = gap.end() - len(end)
            kept.append(text[at:start])
            at = ending + len(end)
        text = "".join([*kept, text[at:]])
    return _cut_out(text, _HARNESS_TAGS)[1]


def _without_pastes(text: str) -> str:
    # Inside a fence <file> is no paste, it is what is asked about.
    text = _cut_out(text, _PASTE_TAGS, margin=True, fences=_fences(text))[1]
    kept, at = [], 0
    for start, end in _fences(text):
        if end - start > _PASTE_CHARS:
            kept.append(text[at:start])
            at = end
    return "\n".join([*kept, text[at:]])


def _fences(text: str) -> list[tuple[int, int]]:
    return [fence.span() for fence in _FENCE.finditer(text)] if "```" in text else []


def _tags(names: str) -> re.Pattern[str]:
    name = "|".join(names.split()).replace("_", "[-_ ]")
    initials = "".join({name[0] for name in names.split()})  # most tags are refused by these
    # Bounded and possessive, so that it is linear in any text.
    tag = rf"<(?=/?[{initials}])(/?)({name})(?=[\s/>])[^<>]{{0,300}}+>"
    return re.compile(f"{tag}|{_GAP.pattern}", re.IGNORECASE)


_HARNESS_TAGS, _MARK_TAGS, _PLAIN_MARK_TAGS, _PASTE_TAGS = map(_tags, (_HARNESS, _MARKS, _PLAIN_MARKS, _PASTES))


def _cut_out(
    text: str, tags: re.Pattern[str], margin: bool = False, fences: Sequence[tuple[int, int]] = ()
) -> tuple[list[str], str]:
    """Take the closed blocks of these tags out: (what was in each, the text without them).

    With `margin` a block opens only at the start of a line that is in none of the `fences`.
    """
    if "</" not in text and (margin or "\0" not in text):
        return [], text
    gaps: list[re.Match[str]] = []
    opened: dict[str, list[re.Match[str]]] = {}
    blocks: list[tuple[re.Match[str], re.Match[str]]] = []
    for tag in tags.finditer(text):
        at, before = tag.start(), text[max(0, tag.start() - 1) : tag.start()]
        if tag[2] is None:
            gaps.append(tag)
            continue
        openings = opened.setdefault(tag[2].lower(), [])
        if tag[1] and openings:
            blocks.append((openings.pop(), tag))
        elif tag[1] and gaps and not margin:  # its opening is in what was not read
            blocks.append((gaps[-1], tag))
        elif not tag[1] and not tag[0].endswith("/>"):
            fence = bisect(fences, (at,)) - 1
            fenced = fence >= 0 and at < fences[fence][1]
            at_margin = before in ("", "\n") and not fenced
            # <x> named in the text of an open <x> opens nothing, unless it begins a line.
            if at_margin or not (margin or openings):
                openings.append(tag)
    for opening in chain.from_iterable(opened.values()):  # their closing may not have been read
        blocks += [(opening, gap) for gap in gaps if gap.start() > opening.start()][:1]
    inside, outside, done = [], [], 0
    for opening, closing in sorted(blocks, key=lambda block: block[0].start()):
        if opening.start() >= done:  # else it begins in a block that is out already
            inside.append(text[opening.end() : closing.start()])
            outside.append(text[done : opening.start()])
        done = max(done, closing.end())
    return inside, "".join([*outside, text[done:]])


def _squeeze(text: str) -> str:
    """One space for each run of whitespace; "" if there are no words."""
    words = " ".join(text.split())
    return "" if words.startswith("\0") and not _GAP.sub("", words).strip() else words


def _is_short(text: str) -> bool:
    words = text.split(None, _SHORT_WORDS)
    if len(words) > _SHORT_WORDS:
        return False
    return len(" ".join(words).encode("utf-8", "surrogatepass")) < _SHORT_BYTES


def _bounded(text: str, source: str, max_chars: int) -> Ask:
    """Head and tail of what is longer than `max_chars`."""
    unread = [int(n) for n in _GAP.findall(text)]
    if unread:
        text = _GAP.sub(_CUT.strip(), text)
    chars = len(text) + sum(unread) - len(_CUT) * len(unread)
    try:
        text.encode()
    except UnicodeEncodeError:  # halves of surrogate pairs, which a tokeniser would refuse
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    if len(text) > max_chars:
        head = (max_chars - len(_CUT)) * 5 // 8
        tail = max_chars - len(_CUT) - head
        text = text[:head].rstrip() + _CUT + text[-tail:].lstrip()
    return Ask(text, source, chars, chars > max_chars or bool(unread))
