"""Reads the frames of four APIs into a `GatheredAnswer`.

A frame is a decoded JSON object: a whole answer, or one event of a stream. Absent, null and odd members are
ignored, as most clients ignore them. An answer that a client could not read is an error: the JSON of a whole answer
must have a message, and a stream must send deltas.
"""

from collections.abc import Iterator
from typing import Any

from extproc.api.gathered import GatheredAnswer
from extproc.api.loose_json import as_index, as_object, as_objects, as_text
from extproc.api.sse import MalformedAnswer


def _read_chat(answer: GatheredAnswer, frame: dict[str, Any]) -> None:
    """Chat completions: the whole completion, or one chunk."""
    for choice in _read_choices(answer, frame):
        message = choice.get("message" if answer.whole else "delta")
        if answer.whole and not isinstance(message, dict):
            raise MalformedAnswer("unknown shape")
        _read_chat_message(answer, as_object(message))


def _read_completions(answer: GatheredAnswer, frame: dict[str, Any]) -> None:
    """Completions: the whole completion, or one chunk."""
    for choice in _read_choices(answer, frame):
        if answer.whole and not isinstance(choice.get("text"), str):
            raise MalformedAnswer("unknown shape")
        answer.add_text(choice.get("text"))


def _read_choices(answer: GatheredAnswer, frame: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Read what the two older APIs have in common, and yield choice 0, whose text is the answer."""
    for position, choice in enumerate(as_objects(frame.get("choices"))):
        index = as_index(choice.get("index"), position)
        answer.add_finish(index, choice.get("finish_reason"))
        if choice.get("finish_reason") == "error" or choice.get("error"):
            answer.error = error_code(choice)
        if index == 0:
            logprobs = as_object(choice.get("logprobs"))
            answer.add_logprobs(logprobs.get("content") or logprobs.get("token_logprobs"))
            yield choice
    answer.add_usage(frame.get("usage"))
    answer.model = answer.model or as_text(frame.get("model")) or None


def _read_chat_message(answer: GatheredAnswer, message: dict[str, Any]) -> None:
    answer.add_refusal(message.get("refusal"))
    reasoning = message.get("reasoning_content") or message.get("reasoning")
    answer.reasoning_chars += len(as_text(reasoning))
    content = message.get("content")
    answer.add_text(content)
    for part in as_objects(content):
        if part.get("type") in ("text", "output_text"):
            answer.add_text(part.get("text"))
        elif part.get("type") == "thinking":
            pieces = as_objects(part.get("thinking")) or [{"text": part.get("thinking")}]
            answer.reasoning_chars += sum(len(as_text(piece.get("text"))) for piece in pieces)
    for call in as_objects(message.get("tool_calls")):
        called = as_object(call.get("function") or call.get("custom"))
        # Whole answers and some streams have no index: there, each name starts the next call.
        last = len(answer.tools) - (0 if called.get("name") else 1)
        arguments = called.get("arguments", called.get("input"))
        place = answer.place_of_call(as_index(call.get("index"), max(last, 0)), call.get("id"), called.get("name"))
        answer.add_call(place, called.get("name"), arguments)
    answer.other_output |= bool(message.get("audio") or message.get("images"))
    legacy = as_object(message.get("function_call"))
    if legacy:
        answer.add_call(0, legacy.get("name"), legacy.get("arguments"))


def _read_messages(answer: GatheredAnswer, frame: dict[str, Any]) -> None:
    """Anthropic messages: the whole message, or one event."""
    kind = frame.get("type")
    if kind == ("message" if answer.whole else "message_start"):
        message = frame if answer.whole else as_object(frame.get("message"))
        answer.model = as_text(message.get("model")) or None
        answer.add_usage(message.get("usage"))
        answer.add_finish(0, message.get("stop_reason"))
        for position, block in enumerate(as_objects(message.get("content"))):
            _read_content_block(answer, position, block)
    elif answer.whole:
        raise MalformedAnswer("unknown shape")
    elif kind == "content_block_start":
        _read_content_block(answer, as_index(frame.get("index")), as_object(frame.get("content_block")))
    elif kind == "content_block_delta":
        _read_content_block(answer, as_index(frame.get("index")), as_object(frame.get("delta")))
    elif kind == "message_delta":
        answer.add_usage(frame.get("usage"))
        answer.add_finish(0, as_object(frame.get("delta")).get("stop_reason"))
    elif kind == "message_stop":
        answer.done = True


def _read_content_block(answer: GatheredAnswer, index: int, block: dict[str, Any]) -> None:
    kind = block.get("type")
    if kind in ("text", "text_delta"):
        answer.add_text(block.get("text"))
    elif kind in ("thinking", "thinking_delta"):
        answer.reasoning_chars += len(as_text(block.get("thinking")))
    elif kind == "tool_use":  # a stream starts it with an empty input and then sends the text
        answer.add_call(index, block.get("name"), block.get("input") or None)
    elif kind == "input_json_delta" and index in answer.tools:  # not the input of a tool that the server runs
        answer.add_call(index, None, block.get("partial_json"))


def _read_responses(answer: GatheredAnswer, frame: dict[str, Any]) -> None:
    """OpenAI responses: the whole response, or one event."""
    kind = as_text(frame.get("type"))
    index = as_index(frame.get("output_index"))
    if answer.whole and frame.get("object") == "response":
        _read_whole_response(answer, frame)
    elif answer.whole:
        raise MalformedAnswer("unknown shape")
    elif kind == "response.output_text.delta":
        answer.add_text(frame.get("delta"))
        answer.add_logprobs(frame.get("logprobs"))
    elif kind == "response.refusal.delta":
        answer.add_refusal(frame.get("delta"))
    elif kind in ("response.reasoning_text.delta", "response.reasoning_summary_text.delta"):
        answer.reasoning_chars += len(as_text(frame.get("delta")))
    elif kind in ("response.output_item.added", "response.output_item.done"):
        _read_call_item(answer, index, as_object(frame.get("item")))
    elif kind in ("response.function_call_arguments.delta", "response.custom_tool_call_input.delta"):
        answer.add_call(index, None, frame.get("delta"))
    elif kind in ("response.completed", "response.incomplete", "response.failed"):
        _read_whole_response(answer, as_object(frame.get("response")))
        answer.done = kind != "response.failed"


# Items of the Responses API beside text and functions: pictures, and calls that the client runs or approves.
_OTHER_ITEMS = {
    "image_generation_call", "computer_call", "local_shell_call", "shell_call", "apply_patch_call",
    "tool_search_call", "mcp_approval_request",
}  # fmt: skip


def _read_call_item(answer: GatheredAnswer, index: int, item: dict[str, Any]) -> None:
    if item.get("type") in ("function_call", "custom_tool_call"):
        _, pieces = answer.tools.get(index, ([], []))
        arguments = item.get("arguments", item.get("input"))
        answer.add_call(index, item.get("name"), None if pieces else arguments)
    answer.other_output |= item.get("type") in _OTHER_ITEMS


def _read_whole_response(answer: GatheredAnswer, response: dict[str, Any]) -> None:
    """The whole response, which also repeats what its stream sent: streamed text is not added twice."""
    text_was_streamed = bool(answer.text_chars or answer.refusal)
    reasoning_was_streamed = answer.reasoning_chars > 0
    for index, item in enumerate(as_objects(response.get("output"))):
        _read_call_item(answer, index, item)
        for part in () if text_was_streamed else as_objects(item.get("content")):
            if part.get("type") == "output_text":
                answer.add_text(part.get("text"))
                answer.add_logprobs(part.get("logprobs"))
            elif part.get("type") == "refusal":
                answer.add_refusal(part.get("refusal"))
            elif part.get("type") == "output_audio":
                answer.other_output = True
            elif part.get("type") == "reasoning_text" and not reasoning_was_streamed:
                answer.reasoning_chars += len(as_text(part.get("text")))
    status = as_text(response.get("status"))
    if status == "completed":
        status = "tool_calls" if answer.tools else "stop"
    elif status == "incomplete":
        status = as_text(as_object(response.get("incomplete_details")).get("reason")) or status
    elif status == "failed":
        answer.error = error_code(response)
    answer.add_finish(0, status)
    answer.add_usage(response.get("usage"))
    answer.model = as_text(response.get("model")) or None


READERS = {
    "chat": _read_chat,
    "completions": _read_completions,
    "messages": _read_messages,
    "responses": _read_responses,
}


def error_code(frame: dict[str, Any]) -> str:
    """Return the code or type of an error. Its message is not read, because it may quote the prompt."""
    error = as_object(frame.get("error"))
    codes = (error.get("code"), error.get("type"), frame.get("code"), "error")
    return next(code for code in codes if isinstance(code, str) and code)[:64]


def is_error(event: str, frame: dict[str, Any]) -> bool:
    """Whether a frame of the SSE event `event` ("" for none) reports an error instead of an answer."""
    kinds = (event, frame.get("type"), frame.get("object"))
    return "error" in kinds or bool(frame.get("error"))
