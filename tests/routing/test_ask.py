"""The ask of real agents' request shapes, and each rule of `extproc.routing.ask` on its own."""

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
    """The turns of a chat, responses or messages body; `extproc.api.request` will replace this."""

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
    """No word of the harness is in the ask, and none of the person's is missing."""
    found = find_ask(turns_of(agent["body"]))
    assert (found.text, found.cut, found.chars) == (agent["ask"], False, len(agent["ask"]))


def test_more_noise_leaves_an_agents_ask_as_it_is(agent):
    """Reminders, tool results and system turns may come anywhere without changing the ask."""
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


def test_a_gateway_that_flattens_messages_leaves_an_agents_ask_as_it_is(agent):
    """The parts of a message may arrive as one string."""
    flat = [Turn(t.role, ("\n".join(t.texts),)) for t in turns_of(agent["body"]) if t.texts]
    assert find_ask(flat).text == agent["ask"]


def test_every_api_shape_has_two_agents_and_every_body_declares_tools():
    """The fixtures cover what they are meant to cover."""
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


def test_a_turn_of_tool_results_is_stepped_over():
    """In a tool loop the ask is the one that started it."""
    turns = [
        user("Find the slowest endpoint."),
        assistant(),
        Turn("user", (), True),
        Turn("user", (REMINDER,), True),
    ]
    assert find_ask(turns) == Ask("Find the slowest endpoint.", "earlier_user", 26, False)


def test_words_beside_a_tool_result_are_the_ask():
    """A person who speaks up during a tool loop is heard."""
    turns = [user("Find the slowest endpoint."), Turn("user", ("Look at the fastest one",), True)]
    assert find_ask(turns).text == "Look at the fastest one"


@pytest.mark.parametrize("turns", [[], [Turn("system", ("Be kind.",))], [user()], [user(" \n\t ")]])
def test_without_a_persons_words_there_is_no_ask(turns):
    """No turns, no user turns, no text and only whitespace all give an empty ask."""
    assert find_ask(turns) == Ask("", "none", 0, False)


def test_a_request_of_nothing_but_noise_is_matched_by_the_noise():
    """Better noisy than empty."""
    found = find_ask([user("<system-reminder>\nBe kind.\n</system-reminder>")])
    assert found.text == "<system-reminder> Be kind. </system-reminder>"
    assert found.source == "raw"


# 2. Marked words


@pytest.mark.parametrize("tag", ["user_query", "userRequest", "USER_REQUEST", "user_message"])
def test_words_that_a_harness_marks_are_the_ask(tag):
    """Whatever else is in the turn, marked words win."""
    text = f"Here is what you need.\n<{tag}>\nSort these names.\n</{tag}>\nMind the rules."
    assert find_ask([user(text)]).text == "Sort these names."


@pytest.mark.parametrize("tag", ["task", "prompt", "feedback", "answer"])
def test_everyday_tags_mark_the_ask_when_they_stand_alone(tag):
    """They do with harness text around them, and do not when a person writes about them."""
    marked = f"<{tag}>\nSort these names by length.\n</{tag}>"
    assert find_ask([user(marked + "\n" + REMINDER)]).text == "Sort these names by length."
    about = f"Why is this element refused?\n{marked}"
    assert find_ask([user(about)]).text == " ".join(about.split())


def test_a_mark_inside_a_harness_block_marks_nothing():
    """Transcripts that a harness quotes hold other people's asks."""
    quoted = "<agent_transcripts>\n<user_query>old</user_query>\n</agent_transcripts>"
    assert find_ask([user(quoted + "\nSummarise what we did last week.")]).text == (
        "Summarise what we did last week."
    )


def test_an_empty_mark_is_no_ask():
    """A slash command without arguments does not hide the words beside it."""
    turns = [user("<command_args></command_args>", "Explain the build of this project.")]
    assert find_ask(turns).text == "Explain the build of this project."


# 3. Harness text and pasted material


def test_every_harness_tag_is_taken_out():
    """Each word of the table is recognised in snake, kebab and any letter case."""
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
    """Markup that a person asks about, and tags that never close, are their words."""
    assert find_ask([user(text)]) == Ask(text, "last_user", len(text), False)


def test_an_element_in_a_snippet_stays():
    """Pretty-printed and fenced XML may use the names that harnesses use."""
    for text in (
        "Why is this manifest refused?\n<manifest>\n  <file>a</file>\n</manifest>",
        "Why is this manifest refused?\n```xml\n<file>\na\n</file>\n```",
        "Why is this manifest refused?\n```xml\n<attachments>\na\n</attachments>\n```\nThanks.",
    ):
        assert find_ask([user(text)]).text == " ".join(text.split())


def test_pasted_blocks_are_set_aside_when_a_question_is_left():
    """A document that comes with a question is not the question; one that comes alone is."""
    document = "<document>\n" + "Clause. " * 20 + "\n```\ncode\n```\n</document>"
    question = "Which clause lets the tenant leave early?"
    assert find_ask([user(f"{document}\n{question}")]).text == question
    assert find_ask([user(f"Sum up:\n{document}")]).text.startswith("Sum up: <document>")


def test_short_fences_stay_and_long_ones_go():
    """A snippet is part of the question; a pasted file is not, unless it is all there is."""
    question = "Why does this loop never end?"
    short, long = "```\nwhile i: i += 1\n```", "```\n" + "i += 1\n" * 99 + "```"
    assert find_ask([user(f"{question}\n{short}")]).text == f"{question} {' '.join(short.split())}"
    assert find_ask([user(f"{question}\n{long}\n{short}")]).text.startswith(f"{question} ``` while")
    assert find_ask([user(f"{long}\n{question}\n{long}")]).text == question
    assert find_ask([user(f"Fix this:\n{long}")]).text.startswith("Fix this: ``` i += 1")
    assert find_ask([user(f"{question}\n{long[:-3]}")]).text.startswith(f"{question} ``` i += 1")


def test_a_tool_echo_holds_only_marked_words():
    """What a tool printed is not the person's; their comment on it is."""
    echo = "[read_file for 'app/[id]/page.tsx'] Result:"
    first = user("Add a spinner to the product page.")
    assert find_ask([first, user(echo, "Ignore all of this.")]).text == first.texts[0]
    comment = "<feedback>\nUse a skeleton, not a spinner.\n</feedback>"
    assert find_ask([first, user(f"{echo}\nDone.\n{comment}")]).text == ("Use a skeleton, not a spinner.")


def test_an_unclosed_tag_swallows_nothing():
    """Later blocks are still taken out."""
    text = f"<system-reminder>\nKeep this sentence, please.\n{REMINDER}\n<context>\nAnd this one."
    assert find_ask([user(text)]).text == ("<system-reminder> Keep this sentence, please. <context> And this one.")


def test_a_block_may_open_in_one_part_and_close_in_another():
    """Agents split what they attach into parts."""
    parts = ("<attached_files>", "a.py\nb.py", "</attached_files>", "Which file is unused here?")
    assert find_ask([user(*parts)]).text == "Which file is unused here?"


def test_a_tag_that_closes_itself_opens_nothing():
    """<file/> has no content to set aside."""
    text = '<file_content path="a.py"/>\nWhich file is unused here?\n</file_content>'
    assert "Which file is unused here?" in find_ask([user(text)]).text


# 4. Follow-ups


@pytest.mark.parametrize("follow_up", ["yes", "go on", "and in French?", "继续", "👍", "do it in C"])
def test_a_short_follow_up_is_joined_to_the_ask_before_it(follow_up):
    """Alone it says nothing about what is asked."""
    turns = [user("Write a poem about rain."), assistant(), user(REMINDER), user(follow_up)]
    found = find_ask(turns)
    assert (found.text, found.source) == (f"Write a poem about rain.\n{follow_up}", "joined")
    assert found.chars == len(found.text)


@pytest.mark.parametrize("text", ["Write tests for the parser.", "把这段话翻译成英语吧"])
def test_what_stands_alone_is_not_joined(text):
    """Length is measured in bytes, as a Chinese sentence has few characters."""
    assert find_ask([user("Write a poem about rain."), user(text)]).text == text


def test_follow_ups_chain_back_to_what_stands_alone_but_not_without_end():
    """Three asks before the last one at most."""
    ask = user("Write a poem about rain.")
    assert find_ask([ask, user("shorter"), user("yes")]).text == ("Write a poem about rain.\nshorter\nyes")
    assert find_ask([ask, *[user("more")] * 9]).text == "more\nmore\nmore\nmore"


def test_a_short_first_ask_stands_alone():
    """There is nothing to join it to."""
    assert find_ask([user("hello")]) == Ask("hello", "last_user", 5, False)


# 5. Bounds


def test_a_long_ask_keeps_its_head_and_its_tail():
    """The instruction is at either end; 5/8 goes to the head."""
    text = "start " + "middle " * 400 + "end"
    found = find_ask([user(text)], max_chars=83)
    head, tail = found.text.split(" … ")
    assert text.startswith(head) and text.endswith(tail)
    assert (50 - len(head) <= 1, 30 - len(tail) <= 1) == (True, True)
    assert (found.chars, found.cut) == (len(text), True)


def test_an_ask_of_the_very_limit_is_not_cut():
    """`max_chars` itself still fits."""
    assert find_ask([user("x" * 512)]) == Ask("x" * 512, "last_user", 512, False)
    assert find_ask([user("x" * 513)]).cut


def test_an_ask_in_very_many_parts_is_cut_in_the_middle():
    """The parts that are not read are counted."""
    found = find_ask([user("first", *["more "] * 10_000, "last")])
    assert found.text.startswith("first more ") and found.text.endswith(" more last")
    assert found.cut and found.chars >= 40_000


def test_whitespace_is_collapsed():
    """Layout costs tokens and means nothing to the encoder."""
    assert find_ask([user("Sort \n\n\t these\u00a0 \r\n names.  ")]).text == "Sort these names."


@pytest.mark.parametrize("length", range(60, 70))
def test_emoji_at_the_cut_survive_encoding(length):
    """Wherever the cut falls, the text can be tokenised; halves of pairs are mended or replaced."""
    halves = "\ud83d\ude00"
    for text in ("😀" * 200, halves * 200, "x" * length + halves * 100, halves[1] + "x" * 300):
        found = find_ask([user(text)], max_chars=length)
        found.text.encode()
        assert len(found.text) <= length
    assert find_ask([user(halves * 10)]).text == "😀" * 10


def test_the_words_beside_a_huge_block_are_found():
    """A block that is longer than what is read still goes, wherever it ends."""
    ask = "Why is the nightly job slow since Monday?"
    huge = "<attached_files>\n" + "row of data\n" * 20_000 + "</attached_files>\n"
    agents = "# AGENTS.md instructions for /r\n\n<INSTRUCTIONS>\n" + "rule\n" * 9_000
    agents += "</INSTRUCTIONS>\n"
    for text in (huge + ask, ask + "\n" + huge, huge + ask + "\n" + REMINDER, agents + ask):
        assert find_ask([user(text)]) == Ask(ask, "last_user", len(ask), False)
    assert find_ask([user(huge + huge + ask)]).text == ask
    # Every later block of the kind begins in what is read, the first one ends in what is not.
    small = "<attached_files>\na.py\n</attached_files>\n"
    assert find_ask([user(huge + small * 700 + ask)]).text == ask
    task = f"<task>\n{ask}\n</task>\n"
    assert find_ask([user(task + huge.replace("attached_files", "file_content") * 2)]).text == ask


def test_what_is_read_of_a_request_is_bounded(monkeypatch):
    """Work is counted, not timed: 5 MB costs no more scanning than 50 KB."""
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
def test_hostile_text_is_survived(unit, chars):
    """Whatever is sent, the ask is a bounded text that can be encoded."""
    text = unit * (chars // len(unit) + 1)
    for turns in ([user(text)], [user(text, text)], [user(text + "</system-reminder>\n</task>")]):
        found = find_ask(turns)
        assert len(found.text.encode()) <= 3 * 512
        assert found.cut or len(found.text) == found.chars


def test_ten_thousand_nested_tags_leave_the_words_around_them():
    """Blocks are matched however deep they are."""
    depth = 10_000
    nested = "<context>\n" * depth + "</context>\n" * depth
    ask = "Which of these blocks is the innermost one?"
    assert find_ask([user(f"{nested}{ask}")]).text.endswith(ask)
    reminders = nested.replace("context", "system-reminder")
    assert find_ask([user(f"{ask}\n{reminders}")]) == Ask(ask, "last_user", len(ask), False)
