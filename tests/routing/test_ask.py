"""The ask of requests in the shapes of real agents, and each rule of `extproc.routing.ask` alone."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from extproc.routing import ask as ask_module
from extproc.routing.ask import Ask, find_ask

AGENTS = sorted((Path(__file__).parents[1] / "agents").glob("*.json"))
REMINDER = "<system-reminder>\nMind the <system-reminder> above.\n```\nodd fence\n</system-reminder>"


class Turn(msgspec.Struct, frozen=True):
    role: str
    texts: tuple[str, ...]
    tool_result: bool = False


def user(*texts: str) -> Turn:
    return Turn("user", texts)


def assistant(text: str = "Sure.") -> Turn:
    return Turn("assistant", (text,))


def turns_of(body: dict[str, Any]) -> list[Turn]:
    """The turns of a chat, responses or messages body, read without `extproc.api.request`."""

    def turn(item: dict[str, Any]) -> Turn:
        content = item.get("content") or []
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        texts = tuple(p["text"] for p in parts if p["type"] in ("text", "input_text"))
        tool_result = item.get("role") == "tool" or any(p["type"] == "tool_result" for p in parts)
        return Turn(item["role"], texts, tool_result)

    items = body.get("messages") or body["input"]
    return [turn(item) for item in items if "role" in item]


@pytest.fixture(params=AGENTS, ids=lambda path: path.stem)
def agent(request: pytest.FixtureRequest) -> dict[str, Any]:
    return json.loads(request.param.read_bytes())


# Agents


def test_the_ask_of_an_agents_request_is_exactly_what_the_person_wrote(agent):
    """The ask holds no harness text and the whole text of the person."""
    ask = find_ask(turns_of(agent["body"]))
    assert (ask.text, ask.cut, ask.chars) == (agent["ask"], False, len(agent["ask"]))


def test_more_harness_text_does_not_change_an_agents_ask(agent):
    """Reminders, tool results and system turns may be anywhere."""
    noisy = [Turn("system", ("Be brief.",))]
    for turn in turns_of(agent["body"]):
        parts = (REMINDER, *turn.texts, REMINDER) if turn.role == "user" else turn.texts
        noisy.append(Turn(turn.role, parts, turn.tool_result))
    noisy += [
        assistant(),
        Turn("tool", ("<user_query>not this</user_query>",), True),
        Turn("user", (), True),
        user(REMINDER, REMINDER),
        user("<environment_details>\n" + "src/a.py\n" * 4000 + "</environment_details>"),
    ]
    assert find_ask(noisy).text == agent["ask"]


def test_a_gateway_that_joins_the_parts_does_not_change_an_agents_ask(agent):
    """The parts of a message may come as one string."""
    flat = [Turn(t.role, ("\n".join(t.texts),)) for t in turns_of(agent["body"]) if t.texts]
    assert find_ask(flat).text == agent["ask"]


def test_every_api_shape_has_two_agents_and_every_body_declares_tools():
    """Agents use all APIs, and all of them use tools."""
    fixtures = [json.loads(path.read_bytes()) for path in AGENTS]
    paths = [f["path"] for f in fixtures]
    shapes = ("/v1/chat/completions", "/v1/responses", "/v1/messages")
    assert min(paths.count(shape) for shape in shapes) >= 2 and set(paths) == set(shapes)
    assert all("tools" in f["body"] for f in fixtures)


# 1. Which turn


def test_the_last_user_turn_holds_the_ask():
    """Earlier turns and other roles do not count."""
    turns = [
        Turn("system", ("You are a poet.",)),
        user("Write about the sea in winter."),
        assistant("Grey waves."),
        user("Now write about a mountain in spring."),
        assistant("Green"),
    ]
    assert find_ask(turns) == Ask("Now write about a mountain in spring.", "last_user", 37, False)


def test_a_turn_of_tool_results_is_skipped():
    """In a tool loop, the ask is the text that started it."""
    turns = [
        user("Find the slowest endpoint."),
        assistant(),
        Turn("user", (), True),
        Turn("user", (REMINDER,), True),
    ]
    assert find_ask(turns) == Ask("Find the slowest endpoint.", "earlier_user", 26, False)


def test_text_in_a_turn_with_a_tool_result_is_the_ask():
    """A person may write during a tool loop."""
    turns = [user("Find the slowest endpoint."), Turn("user", ("Look at the fastest one",), True)]
    assert find_ask(turns).text == "Look at the fastest one"


@pytest.mark.parametrize("turns", [[], [Turn("system", ("Be kind.",))], [user()], [user(" \n\t ")]])
def test_without_a_persons_text_there_is_no_ask(turns):
    """The ask is empty without turns, without user turns, without text, and with only whitespace."""
    assert find_ask(turns) == Ask("", "none", 0, False)


def test_a_request_of_harness_text_alone_is_matched_by_it():
    """That is better than an empty ask."""
    ask = find_ask([user("<system-reminder>\nBe kind.\n</system-reminder>")])
    assert ask.text == "<system-reminder> Be kind. </system-reminder>"
    assert ask.source == "raw"


# 2. Marked text


@pytest.mark.parametrize("tag", ["user_query", "userRequest", "USER_REQUEST", "user_message"])
def test_text_that_a_harness_marks_is_the_ask(tag):
    """Other text in the turn does not count."""
    text = f"Here is what you need.\n<{tag}>\nSort these names.\n</{tag}>\nMind the rules."
    assert find_ask([user(text)]).text == "Sort these names."


@pytest.mark.parametrize("tag", ["task", "prompt", "feedback", "answer"])
def test_everyday_tags_mark_the_ask_if_they_are_alone(tag):
    """Harness text around them does not count. They mark nothing if a person writes about them."""
    marked = f"<{tag}>\nSort these names by length.\n</{tag}>"
    assert find_ask([user(marked + "\n" + REMINDER)]).text == "Sort these names by length."
    about = f"Why is this element refused?\n{marked}"
    assert find_ask([user(about)]).text == " ".join(about.split())


def test_a_mark_inside_a_harness_block_marks_nothing():
    """A harness may quote transcripts with other asks."""
    quoted = "<agent_transcripts>\n<user_query>old</user_query>\n</agent_transcripts>"
    assert find_ask([user(quoted + "\nSummarise what we did last week.")]).text == (
        "Summarise what we did last week."
    )


def test_an_empty_mark_is_no_ask():
    """A slash command without arguments does not hide the text next to it."""
    turns = [user("<command_args></command_args>", "Explain the build of this project.")]
    assert find_ask(turns).text == "Explain the build of this project."


# 3. Harness text and pasted material


def test_every_harness_tag_is_removed():
    """Each word of the table also matches with hyphens and in upper case."""
    for name in ask_module._HARNESS.split():
        for tag in (name, name.replace("_", "-"), name.upper()):
            text = f'<{tag} id="1">\nnoise\n</{tag}>\nPlan a trip to Lisbon for two.'
            assert find_ask([user(text)]).text == "Plan a trip to Lisbon for two.", tag


@pytest.mark.parametrize(
    "text",
    [
        "Why does <div><p>hello</p></div> render with a gap?",
        "What does <system-reminder> mean in a prompt, and who adds it?",
        "Fix my pom: <project> <build> <file>a.txt</file> </build> </project>",
        "Is </context> without an opening an error in XML?",
        "Which is larger, 3 < 4 or 4 > 3, and why?",
        "Explain ```inline``` code and `<context>` in Markdown.",
        "I wrote <context> but forgot to close it, what happens?",
    ],
)
def test_ordinary_prompts_stay_whole(text):
    """Markup that a person asks about, and tags without a closing tag, are part of the ask."""
    assert find_ask([user(text)]) == Ask(text, "last_user", len(text), False)


def test_an_element_in_a_snippet_stays():
    """Indented and fenced XML may use the same names as harnesses."""
    for text in (
        "Why is this manifest refused?\n<manifest>\n  <file>a</file>\n</manifest>",
        "Why is this manifest refused?\n```xml\n<file>\na\n</file>\n```",
        "Why is this manifest refused?\n```xml\n<attachments>\na\n</attachments>\n```\nIt was valid before.",
    ):
        assert find_ask([user(text)]).text == " ".join(text.split())


def test_pasted_blocks_are_removed_if_a_question_remains():
    """A document next to a question is not part of the ask. A document alone is the ask."""
    document = "<document>\n" + "Clause. " * 20 + "\n```\ncode\n```\n</document>"
    question = "Which clause lets the tenant leave early?"
    assert find_ask([user(f"{document}\n{question}")]).text == question
    assert find_ask([user(f"Sum up:\n{document}")]).text.startswith("Sum up: <document>")


def test_short_fences_stay_and_long_ones_are_removed():
    """A snippet is part of the question. A pasted file is not, unless there is no other text."""
    question = "Why does this loop never end?"
    short, long = "```\nwhile i: i += 1\n```", "```\n" + "i += 1\n" * 99 + "```"
    assert find_ask([user(f"{question}\n{short}")]).text == f"{question} {' '.join(short.split())}"
    assert find_ask([user(f"{question}\n{long}\n{short}")]).text.startswith(f"{question} ``` while")
    assert find_ask([user(f"{long}\n{question}\n{long}")]).text == question
    assert find_ask([user(f"Fix this:\n{long}")]).text.startswith("Fix this: ``` i += 1")
    assert find_ask([user(f"{question}\n{long[:-3]}")]).text.startswith(f"{question} ``` i += 1")


def test_in_a_turn_with_tool_output_only_marked_text_counts():
    """A person's comment on the output is the ask, and the output is not."""
    echo = "[read_file for 'app/[id]/page.tsx'] Result:"
    first = user("Add a spinner to the product page.")
    assert find_ask([first, user(echo, "Ignore all of this.")]).text == first.texts[0]
    comment = "<feedback>\nUse a skeleton, not a spinner.\n</feedback>"
    assert find_ask([first, user(f"{echo}\nDone.\n{comment}")]).text == ("Use a skeleton, not a spinner.")


def test_an_unclosed_tag_removes_no_text():
    """Later blocks are still removed."""
    text = f"<system-reminder>\nKeep this sentence, please.\n{REMINDER}\n<context>\nAnd this one."
    assert find_ask([user(text)]).text == ("<system-reminder> Keep this sentence, please. <context> And this one.")


def test_a_block_may_open_in_one_part_and_close_in_another():
    """Agents split attachments into parts."""
    parts = ("<attached_files>", "a.py\nb.py", "</attached_files>", "Which file is unused here?")
    assert find_ask([user(*parts)]).text == "Which file is unused here?"


def test_a_tag_that_closes_itself_opens_nothing():
    """<file/> has no content to remove."""
    text = '<file_content path="a.py"/>\nWhich file is unused here?\n</file_content>'
    assert "Which file is unused here?" in find_ask([user(text)]).text


@pytest.mark.parametrize(
    "end", ["", "\nAnswer:", "\n\nHelpful Answer: ", "\n**Response:**\n", "\nRéponse :", "\n答案："]
)
@pytest.mark.parametrize("name", ["Question:", "### Query:", "  Final question:", "Frage:", "问题："])
def test_a_question_below_its_material_is_the_ask(name, end):
    """Frameworks of retrieval write prompts like this. A little material is part of the ask."""
    question = "Which clause lets the tenant leave early?"
    material = "Use this context. If it does not help, say so.\n\n" + "Clause 7. The tenant pays the rent.\n" * 20
    assert find_ask([user(f"{material}\n{name} {question}{end}")], 4096).text == question
    text = f"Answer in French.\n{name} {question}{end}"
    assert find_ask([user(text)]).text == " ".join(text.split())


@pytest.mark.parametrize(
    "text",
    [
        "Q: Is it 1 + 1?\nA: Yes, it is\n" * 40 + "Q: Is it 2 + 2?\nA:",
        "Question: How many?\nAnswer: 3\n\n" * 30 + "Question: How much?\nAnswer:",
        "Classify each text.\n" + "Text: good\nLabel: yes\n" * 40 + "Text: bad\nLabel:",
        "Clause 7. Rent.\n" * 40 + "Question: Which one?\n\nAnswer in one word.\n\nNo list.",
    ],
)
def test_examples_and_other_instructions_stay(text):
    """Several questions are examples. Text behind the question may say what to do."""
    assert find_ask([user(text)], 4096).text == " ".join(text.split())


@pytest.mark.parametrize("word", ["expect", "expected"])
def test_the_frame_of_a_task_is_no_part_of_it(word):
    """CrewAI writes it below every task."""
    frame = f"This is the {word} criteria for your final answer: a list\nyou MUST return it, not a summary."
    assert find_ask([user(f"\nCurrent Task: Sort these names by length.\n\n{frame}")]).text == (
        "Current Task: Sort these names by length."
    )


# 4. Follow-ups


@pytest.mark.parametrize("follow_up", ["yes", "go on", "and in French?", "继续", "👍", "do it in C"])
def test_a_short_follow_up_is_joined_to_the_ask_before_it(follow_up):
    """Alone, it does not show the topic."""
    turns = [user("Write a poem about rain."), assistant(), user(REMINDER), user(follow_up)]
    ask = find_ask(turns)
    assert (ask.text, ask.source) == (f"Write a poem about rain.\n{follow_up}", "joined")
    assert ask.chars == len(ask.text)


@pytest.mark.parametrize("text", ["Write tests for the parser.", "把这段话翻译成英语吧"])
def test_a_longer_ask_is_not_joined(text):
    """The length is measured in bytes, because a Chinese sentence has few characters."""
    assert find_ask([user("Write a poem about rain."), user(text)]).text == text


def test_several_follow_ups_are_joined_back_to_a_longer_ask():
    """At most three asks are joined to the last one."""
    ask = user("Write a poem about rain.")
    assert find_ask([ask, user("shorter"), user("yes")]).text == ("Write a poem about rain.\nshorter\nyes")
    assert find_ask([ask, *[user("more")] * 9]).text == "more\nmore\nmore\nmore"


def test_a_short_first_ask_is_not_joined():
    """There is no ask before it."""
    assert find_ask([user("hello")]) == Ask("hello", "last_user", 5, False)


# 5. Limits


def test_a_long_ask_keeps_its_head_and_its_tail():
    """The instruction is usually at one of the ends. The head gets 5/8."""
    text = "start " + "middle " * 400 + "end"
    ask = find_ask([user(text)], max_chars=83)
    head, tail = ask.text.split(" … ")
    assert text.startswith(head) and text.endswith(tail)
    assert (50 - len(head) <= 1, 30 - len(tail) <= 1) == (True, True)
    assert (ask.chars, ask.cut) == (len(text), True)


def test_an_ask_of_exactly_the_limit_is_not_cut():
    """One more character is too long."""
    assert find_ask([user("x" * 512)]) == Ask("x" * 512, "last_user", 512, False)
    assert find_ask([user("x" * 513)]).cut


def test_an_ask_in_very_many_parts_is_cut_in_the_middle():
    """Parts that are not read still count in its length."""
    ask = find_ask([user("first", *["more "] * 10_000, "last")])
    assert ask.text.startswith("first more ") and ask.text.endswith(" more last")
    assert ask.cut and ask.chars >= 40_000


def test_whitespace_is_collapsed():
    """Layout costs tokens and has no meaning for the encoder."""
    assert find_ask([user("Sort \n\n\t these\u00a0 \r\n names.  ")]).text == "Sort these names."


@pytest.mark.parametrize("length", range(60, 70))
def test_emoji_at_the_cut_survive_encoding(length):
    """The text can be encoded after a cut at any place. Halves of surrogate pairs are joined or replaced."""
    halves = "\ud83d\ude00"
    for text in ("😀" * 200, halves * 200, "x" * length + halves * 100, halves[1] + "x" * 300):
        ask = find_ask([user(text)], max_chars=length)
        ask.text.encode()
        assert len(ask.text) <= length
    assert find_ask([user(halves * 10)]).text == "😀" * 10


def test_the_text_next_to_a_huge_block_is_found():
    """A block is also removed if its middle or its end is not read."""
    ask = "Why is the nightly job slow since Monday?"
    huge = "<attached_files>\n" + "row of data\n" * 20_000 + "</attached_files>\n"
    agents = "# AGENTS.md instructions for /r\n\n<INSTRUCTIONS>\n" + "rule\n" * 9_000
    agents += "</INSTRUCTIONS>\n"
    for text in (huge + ask, ask + "\n" + huge, huge + ask + "\n" + REMINDER, agents + ask):
        assert find_ask([user(text)]) == Ask(ask, "last_user", len(ask), False)
    assert find_ask([user(huge + huge + ask)]).text == ask
    # The end of the first block is not read, but all later blocks of its name are.
    small = "<attached_files>\na.py\n</attached_files>\n"
    assert find_ask([user(huge + small * 700 + ask)]).text == ask
    task = f"<task>\n{ask}\n</task>\n"
    assert find_ask([user(task + huge.replace("attached_files", "file_content") * 2)]).text == ask


def test_what_is_read_of_a_request_is_bounded(monkeypatch):
    """This counts characters and measures no time: of 5 MB, no more is read than of 50 KB."""
    read: list[int] = []
    person_text = ask_module._person_text

    def counted(parts):
        read.append(sum(map(len, parts)))
        return person_text(parts)

    monkeypatch.setattr(ask_module, "_person_text", counted)
    for chars in (50_000, 5_000_000):
        find_ask([user("word " * (chars // 5))])
        find_ask([user(*["word "] * (chars // 5))])
        find_ask([user(*["word " * 100] * (chars // 500))])
    assert max(read) < 20_000
    assert read[3:] == pytest.approx(read[:3], abs=100)  # a larger number takes more digits
    read.clear()
    find_ask([user("Sort these names by length.")] + [user(REMINDER * 300)] * 5_000)
    assert sum(read) < 200_000


HOSTILE = {
    "angle brackets": "<",
    "nested tags": "<system-reminder>\n",
    "closing tags": "</system-reminder>",
    "unfinished tags": "<file_content path=",
    "long attributes": "<file_content " + "a" * 299,
    "fences": "\n```",
    "unclosed marks": "<user_query>\n<task>\n",
    "blanks": " ",
    "gap signs": "\x00123\x00<context>\n",
    "echoes": "[read_file ]",
    "sections": "\n# AGENTS.md instructions",
    "stars": "a*",
    "halves of surrogate pairs": "\ud83d",
}


@pytest.mark.parametrize("unit", HOSTILE.values(), ids=HOSTILE.keys())
@pytest.mark.parametrize("chars", [5, 500, 200_000, 5_000_000])
def test_hostile_text_gives_an_ask(unit, chars):
    """The ask of any text is bounded and can be encoded."""
    text = unit * (chars // len(unit) + 1)
    for turns in ([user(text)], [user(text, text)], [user(text + "</system-reminder>\n</task>")]):
        ask = find_ask(turns)
        assert len(ask.text.encode()) <= 3 * 512
        assert ask.cut or len(ask.text) == ask.chars


def test_ten_thousand_nested_tags_leave_the_text_around_them():
    """Blocks may be nested to any depth."""
    depth = 10_000
    nested = "<context>\n" * depth + "</context>\n" * depth
    ask = "Which of these blocks is the innermost one?"
    assert find_ask([user(f"{nested}{ask}")]).text.endswith(ask)
    reminders = nested.replace("context", "system-reminder")
    assert find_ask([user(f"{ask}\n{reminders}")]) == Ask(ask, "last_user", len(ask), False)
