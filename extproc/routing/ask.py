"""The ask: the text that the person wrote, which is embedded and matched.

Coding agents wrap a person's sentence in kilobytes of other text, called harness text here. The rules:

1. User turns are read from the last one backwards. Turns that hold only tool output or harness text are skipped.
   The first turn with other text holds the ask. Turns of other roles never do.
2. If a harness marks the person's text with a tag (`_MARKS`) or a heading (`_HEADINGS`), that text is the ask.
   Everyday words (`_PLAIN_MARKS`) mark it only if the turn has no other text.
3. Otherwise harness text is removed: closed blocks (`_HARNESS`), sections (`_SECTIONS`), and parts that start with
   a banner (`_BANNERS`). If a turn repeats a tool's output, only marked text counts.
   Pasted material is removed if more than a short follow-up remains. It is fenced code of more than 400
   characters, blocks (`_PASTES`), and the end of an e-mail. A tag that is never closed is ordinary text and stays.
4. A follow-up ("and in French?", see follow_up.py) and a reply to a question of the model (see replies.py) are
   joined to at most three asks before them, by newlines. The first other ask is the last one to be joined.
5. Each run of whitespace becomes one space. Text in capitals is read in small letters. An ask of more than
   `max_chars` keeps its head (5/8) and tail (3/8) around " … ". Only a bounded head and tail of any text are read.

If no turn has such text, the ask is the last user turn with any text, harness text included ("raw"). To support
a new agent, add a word to a table. `tests/agents/` holds one request of each agent.
"""

import re
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Protocol

import msgspec

from extproc.encoder.features import names_no_task
from extproc.routing.blocks import GAP, Span, cut_blocks, gap, tag_pattern
from extproc.routing.follow_up import is_follow_up, is_short
from extproc.routing.plain_text import asked_below, encodable, without_closing, without_shouting
from extproc.routing.replies import replies_to

# In any letter case. `_` also matches `-` and a space, so system_reminder also matches <system-reminder>.
_MARKS = "user_query user_request userrequest user_message command_args"
_PLAIN_MARKS = "task prompt feedback answer"  # people also ask about such XML, so only at the start of a line
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
    runtime_information repository_info conversation_instructions info_msg
"""  # Claude Code and OpenCode, Codex, Cursor, Cline and Roo, Copilot, Gemini and Continue, OpenHands, Goose
_HEADINGS = ("## My request for Codex:", "## My request:")  # the ask is everything after the last one
_SECTIONS = (  # from a line that starts with the first text, to the second text; "" is the end of the turn
    ("# AGENTS.md instructions", "</INSTRUCTIONS>"),
    ("--- Content from referenced files ---", "--- End of content ---"),
    ("Called the Read tool with", "</content>"),
    ("# *SEARCH/REPLACE block* Rules", ""),
    ("This is the expected criteria for your final answer:", ""),
    ("This is the expect criteria for your final answer:", ""),
)
_BANNERS = (  # a text part that starts with one is harness text
    r"[^*\n]{0,40}\*added these files to the chat\*",
    r"here are some read only files, p",
    r"here are summaries of some files present in my git",
    r"i am not sharing any files that you can",
    r"base directory for this skill:",
    r"called the \w+ tool with|<path>",
    r"\[request interrupted|caveat: the messages below|this session is being continued",
    r"this is [\w ]{3,30}\. we are setting up",
)
_ECHO = re.compile(  # the output of a tool of Cline or Roo: [read_file for 'a/[b].ts'] Result:
    r"\s*+\[(?:(?=\w{0,40}_)\w++(?: [^\n]{0,400})?\] Result:|TASK RESUMPTION\]|ERROR\] You did not)"
)
_FENCE = re.compile(r"^ {0,7}```.*?\n {0,7}```", re.MULTILINE | re.DOTALL)  # only closed fences
_BANNER = re.compile(rf"\s*+(?:{'|'.join(_BANNERS)})", re.IGNORECASE)
_HARNESS_TAGS, _MARK_TAGS, _PLAIN_MARK_TAGS, _PASTE_TAGS = map(
    tag_pattern, (_HARNESS, _MARKS, _PLAIN_MARKS, _PASTES)
)

_WINDOW_CHARS = 16_384  # read of one turn: takes about 0.3 ms for prose, and 3 ms for text that is all tags
_BUDGET_CHARS = 8 * _WINDOW_CHARS  # read of one request: a tool loop of some 250 reminder turns
_TURN_CHARS = 32  # charged for a turn beside its text: looking at one takes 5 microseconds
_PARTS, _PART_CHARS = 32, 1024  # parts read of one turn, half from each end, and the least to read of one
_PASTE_CHARS = 400  # a shorter snippet is part of the question: "fix this: ..."
_CHAIN, _CUT = 4, " … "  # a follow-up and three asks before it, and the mark of a cut
# Turns from each end of a conversation that are read for its opening, and for the end of a tool loop.
_OPENING_TURNS, _LOOP_TURNS = 4, 4
_OPENING_CHARS = 4096  # a longer start does not distinguish more conversations


class TurnLike(Protocol):
    """The part of a message that is read here."""

    @property
    def role(self) -> str: ...
    @property
    def texts(self) -> tuple[str, ...]: ...  # without tool results
    @property
    def tool_result(self) -> bool: ...


class Ask(msgspec.Struct, frozen=True):
    """The person's text, by which a request is matched."""

    text: str  # "" if there is none
    source: str  # the rule that found it: last_user, earlier_user, joined, raw, none
    chars: int  # length before it was cut; characters that were not read count as sent
    cut: bool  # only head and tail remain
    alone: "Ask | None" = None  # the last one of several joined asks, if it names a task
    tasks: tuple["Ask", ...] = ()  # several asks that this one joins, and that all get an answer
    guess: bool = False  # a part of a text, or a reply to the model: it counts only if its match is trusted
    whole: "Ask | None" = None  # of a task: the ask that joins it with the others


def find_ask(turns: Sequence[TurnLike], max_chars: int = 512) -> Ask:
    """Return the text to embed, at most `max_chars` characters (at least 16). Never raises."""
    asks: list[str] = []  # newest first
    raw, skipped = "", False
    for at, parts in _user_turns(turns, max(_WINDOW_CHARS, 4 * max_chars)):
        text = _squeeze(_person_text(parts))
        if text:
            asks.append(text)
            if len(asks) == _CHAIN or not (is_follow_up(text) or replies_to(turns[max(at - 1, 0)], text)):
                break
        elif not asks:
            raw, skipped = raw or _squeeze("\n".join(parts)), True
    if not asks:
        return _bounded(raw, "raw" if raw else "none", max_chars)
    last = _bounded(asks[0], "earlier_user" if skipped else "last_user", max_chars)
    if len(asks) == 1:
        return last
    joined = _bounded("\n".join(reversed(asks)), "joined", max_chars)
    if joined.cut and not is_short(asks[0]):
        return last  # a sentence about long material
    if names_no_task(last.text):
        return joined
    alone = msgspec.structs.replace(last, guess=not is_follow_up(asks[0]))
    return msgspec.structs.replace(joined, alone=alone)


def find_opening(turns: Sequence[TurnLike]) -> str:
    """Return the person's first text with its pastes, or the first text of a user turn if there is none."""
    raw = ""
    for turn in islice((turn for turn in turns if turn.role == "user"), _OPENING_TURNS):
        parts = _read(turn.texts, _OPENING_CHARS)
        if text := _squeeze(_written_text(parts)):
            return text
        raw = raw or _squeeze("\n".join(parts))
    return raw


def is_in_tool_loop(turns: Sequence[TurnLike]) -> bool:
    """Return whether the model goes on with its own turn: the request ends with a tool result or with its text.

    Some agents add a user turn of harness text after the result, or send the result as the text of the user.
    """
    for turn in reversed(turns[-_LOOP_TURNS:]):
        if turn.tool_result or turn.role == "assistant":
            return True
        if turn.role != "user":
            continue
        parts = _read(turn.texts, _OPENING_CHARS)
        if any(map(_ECHO.match, parts)):
            return True
        if len(turns) < 2 or _squeeze(_person_text(parts)):
            return False
    return False


def _user_turns(turns: Sequence[TurnLike], window_chars: int) -> Iterator[tuple[int, list[str]]]:
    """The place and the parts of each user turn, newest turn first, until the budget of the request is used up."""
    budget = _BUDGET_CHARS
    for at in range(len(turns) - 1, -1, -1):
        turn = turns[at]
        if turn.role == "user" and turn.texts:
            parts = _read(turn.texts, window_chars)
            budget -= _TURN_CHARS + sum(map(len, parts))
            yield at, parts
            if budget <= 0:
                return


def _read(texts: Sequence[str], window_chars: int) -> list[str]:
    """Head and tail of each part of a turn, with a gap between them, so that the cost is bounded."""
    if len(texts) > _PARTS:
        head, tail = texts[: _PARTS // 2], texts[-_PARTS // 2 :]
        texts = [*head, gap(sum(map(len, texts[_PARTS // 2 : -_PARTS // 2]))), *tail]
    half = max(window_chars // max(len(texts), 1), _PART_CHARS) // 2
    return [t if len(t) <= 2 * half else f"{t[:half]}\n{gap(len(t) - 2 * half)}\n{t[-half:]}" for t in texts]


def _person_text(parts: Sequence[str]) -> str:
    """The person's text in one turn, or "" if there is only harness text."""
    text, marked = _text_and_mark(parts)
    if marked:
        return text
    shorter = (without_closing(candidate) for candidate in (_without_pastes(text), text))
    return next((candidate for candidate in shorter if not is_short(candidate)), text)


def _written_text(parts: Sequence[str]) -> str:
    """The person's text in one turn, with its pastes."""
    return _text_and_mark(parts)[0]


def _text_and_mark(parts: Sequence[str]) -> tuple[str, bool]:
    """The text without harness text, and whether a harness marks it as the person's."""
    echo = any(map(_ECHO.match, parts))
    kept = [_without_harness(part) for part in parts if not _BANNER.match(part)]
    # Agents also open a block in one part and close it in another, so the joined text is searched, too.
    text = _without_harness("\n".join(kept)) if len(kept) > 1 else "".join(kept)
    marked, text = _marked(text, echo)
    return (marked, True) if echo or _squeeze(marked) else (text, False)


def _marked(text: str, echo: bool) -> tuple[str, str]:
    """The text that a harness marks as the person's, and the text without such marks."""
    cut = cut_blocks(text, _MARK_TAGS)
    marked = "\n".join(cut.inside)
    if _squeeze(marked):
        return marked, cut.outside
    plain = cut_blocks(cut.outside, _PLAIN_MARK_TAGS, line_start=True)
    counts = echo or (plain.inside and not _squeeze(plain.outside))
    return "\n".join(plain.inside) if counts else "", cut.outside


def _without_harness(text: str) -> str:
    for heading in _HEADINGS:
        text = f"\n{text}".rpartition(f"\n{heading}")[2]
    for start, end in _SECTIONS:
        text = _without_sections(text, start, end)
    return cut_blocks(text, _HARNESS_TAGS).outside


def _without_sections(text: str, start: str, end: str) -> str:
    """The text without sections from a line that begins with `start` to `end`."""
    text, kept, at = f"\n{text}", [], 0
    while (begin := text.find(f"\n{start}", at)) >= 0:
        stop = _section_end(text, begin, end)
        if stop is None:
            break
        kept.append(text[at:begin])
        at = stop
    return "".join([*kept, text[at:]])


def _section_end(text: str, begin: int, end: str) -> int | None:
    """The position after a section. It may end in a gap. None if it has no end: then it is ordinary text."""
    if not end:
        return len(text)
    ending = text.find(end, begin)
    if ending >= 0:
        return ending + len(end)
    unread = GAP.search(text, begin)
    return unread.end() if unread is not None else None


def _without_pastes(text: str) -> str:
    # A <file> in fenced code is not pasted material: the person asks about it.
    text = asked_below(cut_blocks(text, _PASTE_TAGS, line_start=True, fences=_fences(text)).outside, _PASTE_CHARS)
    kept, at = [], 0
    for start, end in _fences(text):
        if end - start > _PASTE_CHARS:
            kept.append(text[at:start])
            at = end
    return "\n".join([*kept, text[at:]])


def _fences(text: str) -> list[Span]:
    return [fence.span() for fence in _FENCE.finditer(text)] if "```" in text else []


def _squeeze(text: str) -> str:
    """The text with one space for each run of whitespace, or "" if it holds only gaps."""
    squeezed = " ".join(text.split())
    return "" if squeezed.startswith("\0") and not GAP.sub("", squeezed).strip() else squeezed


def _bounded(text: str, source: str, max_chars: int) -> Ask:
    """The ask, cut to its head and tail if it is longer than `max_chars`."""
    unread = [int(chars) for chars in GAP.findall(text)]
    if unread:
        text = GAP.sub(_CUT.strip(), text)
    chars = len(text) + sum(unread) - len(_CUT) * len(unread)
    ask = without_shouting(_head_and_tail(encodable(text), max_chars))
    return Ask(ask, source, chars, chars > max_chars or bool(unread))


def _head_and_tail(text: str, max_chars: int) -> str:
    if len(text) <= max_chars:
        return text
    head = (max_chars - len(_CUT)) * 5 // 8
    tail = max_chars - len(_CUT) - head
    return text[:head].rstrip() + _CUT + text[-tail:].lstrip()
