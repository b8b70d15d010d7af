"""Calls that agents make by themselves, told from work that a person waits for."""

from typing import Any

import msgspec
import pytest

from extproc.api.request import parse_request
from extproc.routing.signals import read_signals

TOOLS = [{"type": "function", "function": {"name": "write_file"}}]
TITLE = {"type": "object", "properties": {"title": {"type": "string"}}}
QUOTED = "### Chat History:\n<chat_history>\nUSER: Move the invoices\nASSISTANT: Done\n</chat_history>"
NOTES = "Read the conversation above and update the notes in `~/.agent/notes` with `write_file`."


def kind(text: str, system: str | None = None, path: str = "/v1/chat/completions", **more: Any) -> str | None:
    messages = [{"role": "system", "content": system}] if system is not None else []
    body = {"model": "auto", "messages": [*messages, {"role": "user", "content": text}]} | more
    request = parse_request(path, msgspec.json.encode(body))
    assert request is not None
    return read_signals(request, 512).background


@pytest.mark.parametrize(
    ("expected", "text", "more"),
    [
        ("probe", "count", {"max_tokens": 1, "tools": TOOLS}),
        ("probe", "A long text of an agent, whose tokens it wants to know.", {"max_tokens": 1}),
        ("probe", "hi", {"max_completion_tokens": 5}),
        ("title", "Move the invoices", {"system": "Write a short title for this chat."}),
        ("title", "Move the invoices", {"system": "You are a title generator. You output one line."}),
        ("title", "Move the invoices", {"system": "You name sessions."}),
        ("title", "Please write a title for this conversation:\nMove the invoices", {}),
        ("title", "Move it", {"response_format": {"type": "json_schema", "json_schema": {"schema": TITLE}}}),
        ("title", "Move it", {"output_config": {"format": {"type": "json_schema", "schema": TITLE}}, "tools": []}),
        ("title", "Based on the messages so far, give this conversation a name.", {}),
        ("title", "Summarise in a 5-word title: move the invoices", {}),
        ("title", "Move the invoices", {"system": "Provide a header for this session in four words."}),
        ("title", "Move the invoices", {"system": "Summarize the conversation as a title within ten words."}),
        ("title", f"### Task:\nSuggest five questions that may follow.\n{QUOTED}", {}),
        ("title", f"### Task:\nWrite search queries, as JSON.\n{QUOTED}", {}),
        ("memory", NOTES, {"tools": TOOLS}),
        ("harness", "<system-reminder>Keep answers short.</system-reminder>", {}),
    ],
)
def test_an_agents_own_call_is_known_by_its_structure(expected: str, text: str, more: dict[str, Any]) -> None:
    assert kind(text, **more) == expected


@pytest.mark.parametrize(
    ("text", "more"),
    [
        ("Which of these is right, A or B? Answer with one letter.", {"max_tokens": 1, "logprobs": True}),
        ("Is this review positive? Answer yes or no: the soup was cold.", {"max_tokens": 5}),
        ("yes", {"max_tokens": 500}),
        ("hi", {"max_tokens": 0}),  # fills the prompt cache of the tier that gets the next request
        ("Move the invoices", {"max_tokens": 0, "tools": TOOLS}),
        ("Write a title for my article about chat applications", {}),
        ("What is the title of the chat with the customer?", {}),
        ("Summarise the conversation above", {}),
        ("Summarise in three sentences why the title was changed", {}),
        (f"{QUOTED}\nWhat did the customer want?", {}),
        ("### Task:\nMove the invoices\n### Output:\nJSON", {}),
        ("Move the invoices", {"system": "Answer this chat in Markdown with headers."}),
        ("Save the notes of our conversation above", {"tools": TOOLS}),
        ("Move the invoices", {"system": "You are a chat assistant. Your name is Bob."}),
        ("Move the invoices", {"system": "Write a short title for this chat.", "tools": TOOLS}),
        ("<system-reminder>Keep answers short.</system-reminder>", {"tools": TOOLS}),
        (
            "Read the title and the author from this page",
            {"response_format": {"type": "json_schema", "json_schema": {
                "schema": {"properties": {"title": {}, "author": {}}}}}},
        ),
    ],
)  # fmt: skip
def test_work_of_a_person_is_none(text: str, more: dict[str, Any]) -> None:
    assert kind(text, **more) is None
