"""The four shapes of an answer, gathered frame by frame into one `Answer`.

A frame is a decoded JSON object: the whole answer, or one event of a stream. Shapes are read
loosely where clients do (absent, null and odd fields carry nothing) and strictly where a client
would not see what we see (a whole answer must be one, a stream must send deltas).
"""

from collections.abc import Iterator
from typing import Any

import msgspec

from extproc.api.sse import MalformedAnswer

# Upstreams write -9999 for "very unlikely": a sentinel that would swamp any mean.
LEAST_LOGPROB = -20.0

_FINISH = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "eos_token": "stop",
    "max_tokens": "length",
    "max_output_tokens": "length",
    "model_length": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "function_call": "tool_calls",
    "refusal": "content_filter",
}
_PROMPT = ("prompt_tokens", "input_tokens")
_CACHE = ("cache_read_input_tokens", "cache_creation_input_tokens")  # Anthropic: beside the input
_COUNTS = (*_PROMPT, *_CACHE, "completion_tokens", "output_tokens", "cached_tokens")
# What an upstream says is not believed beyond this: no answer has so many, and stores count in 32 bits.
_MOST_TOKENS = 2**31


class ToolCall(msgspec.Struct, frozen=True):
    """A call that the answer asks the client to make; `arguments` is the text as it came."""

    name: str
    arguments: str


class Usage(msgspec.Struct, frozen=True):
    """Tokens as the upstream counted them; `input` includes the `cached` ones on every API."""

    input: int | None = None
    output: int | None = None
    cached: int | None = None


class Answer:
    """What has been gathered of one answer; only a reader holds one."""

    def __init__(self, max_kept_chars: int) -> None:
        self.room = max_kept_chars
        self.whole = False  # frames are whole answers, not events of a stream
        self.text: list[str] = []
        self.text_chars = 0
        self.refusal: list[str] = []
        self.reasoning_chars = 0
        self.finishes: dict[int, str | None] = {}
        self.tools: dict[int, tuple[list[str], list[str]]] = {}  # index: names, argument pieces
        self.logprobs: list[float] = []
        self.counts: dict[str, int] = {}
        self.model: str | None = None
        self.error: str | None = None
        self.done = False

    def keep(self, chars: int) -> None:
        """Charge for what is kept, so that no stream can fill the memory."""
        self.room -= chars
        if self.room < 0:
            raise MalformedAnswer("answer too large")

    def add_text(self, value: Any) -> None:
        text = _text(value)
        if text:
            self.keep(len(text))
            self.text_chars += len(text)
            self.text.append(text)

    def add_refusal(self, value: Any) -> None:
        text = _text(value)
        self.keep(len(text))
        if text:
            self.refusal.append(text)

    def add_logprobs(self, values: Any) -> None:
        for value in values if isinstance(values, list) else ():
            number = value.get("logprob") if isinstance(value, dict) else value
            if isinstance(number, int | float) and not isinstance(number, bool):  # or null: echo
                self.keep(8)
                self.logprobs.append(min(max(float(number), LEAST_LOGPROB), 0.0))

    def add_call(self, index: int, name: Any = None, arguments: Any = None) -> None:
        if index not in self.tools:
            self.keep(64)
        names, pieces = self.tools.setdefault(index, ([], []))
        text = arguments if isinstance(arguments, str) else ""
        if isinstance(arguments, dict):  # Anthropic's `input`, and servers that send no string
            text = msgspec.json.encode(arguments).decode()
        word = _text(name)
        self.keep(len(text) + len(word))
        if text:
            pieces.append(text)
        if word and names != [word]:  # some servers repeat the whole name in every fragment
            names.append(word)

    def add_finish(self, index: int, value: Any) -> None:
        if index not in self.finishes:
            self.keep(64)
        word = _text(value)
        self.finishes[index] = _FINISH.get(word, word) if word else self.finishes.get(index)

    def add_usage(self, value: Any) -> None:
        """Take counts by name; a later one replaces, an absent one leaves what was known."""
        usage = _object(value)
        for holder in (
            usage,
            _object(usage.get("prompt_tokens_details")),
            _object(usage.get("input_tokens_details")),
        ):
            for name in _COUNTS:
                count = holder.get(name)
                if type(count) is int and 0 <= count < _MOST_TOKENS:
                    self.counts[name] = count


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _objects(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _index(value: Any, default: int = 0) -> int:
    return value if type(value) is int else default


def _read_chat(answer: Answer, frame: dict[str, Any]) -> None:
    """Chat completions, whole or a chunk."""
    for choice in _read_choices(answer, frame):
        message = choice.get("message" if answer.whole else "delta")
        if answer.whole and not isinstance(message, dict):
            raise MalformedAnswer("unknown shape")
        _read_message(answer, _object(message))


def _read_completions(answer: Answer, frame: dict[str, Any]) -> None:
    """Completions, whole or a chunk."""
    for choice in _read_choices(answer, frame):
        if answer.whole and not isinstance(choice.get("text"), str):
            raise MalformedAnswer("unknown shape")
        answer.add_text(choice.get("text"))


def _read_choices(answer: Answer, frame: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What the two older APIs share; yields choice 0, whose text is the answer."""
    for position, choice in enumerate(_objects(frame.get("choices"))):
        index = _index(choice.get("index"), position)
        answer.add_finish(index, choice.get("finish_reason"))
        if choice.get("finish_reason") == "error" or choice.get("error"):
            answer.error = error_word(choice)
        if index == 0:
            logprobs = _object(choice.get("logprobs"))
            answer.add_logprobs(logprobs.get("content") or logprobs.get("token_logprobs"))
            yield choice
    answer.add_usage(frame.get("usage"))
    answer.model = answer.model or _text(frame.get("model")) or None


def _read_message(answer: Answer, message: dict[str, Any]) -> None:
    answer.add_refusal(message.get("refusal"))
    reasoning = message.get("reasoning_content") or message.get("reasoning")
    answer.reasoning_chars += len(_text(reasoning))
    content = message.get("content")
    answer.add_text(content)
    for part in _objects(content):
        if part.get("type") in ("text", "output_text"):
            answer.add_text(part.get("text"))
        elif part.get("type") == "thinking":
            pieces = _objects(part.get("thinking")) or [{"text": part.get("thinking")}]
            answer.reasoning_chars += sum(len(_text(piece.get("text"))) for piece in pieces)
    for call in _objects(message.get("tool_calls")):
        called = _object(call.get("function") or call.get("custom"))
        # Whole answers and some streams carry no index: a name then opens the next call.
        last = len(answer.tools) - (0 if called.get("name") else 1)
        arguments = called.get("arguments", called.get("input"))
        answer.add_call(_index(call.get("index"), max(last, 0)), called.get("name"), arguments)
    legacy = _object(message.get("function_call"))
    if legacy:
        answer.add_call(0, legacy.get("name"), legacy.get("arguments"))


def _read_messages(answer: Answer, frame: dict[str, Any]) -> None:
    """Anthropic messages: the whole message, or its events."""
    kind = frame.get("type")
    if kind == ("message" if answer.whole else "message_start"):
        message = frame if answer.whole else _object(frame.get("message"))
        answer.model = _text(message.get("model")) or None
        answer.add_usage(message.get("usage"))
        answer.add_finish(0, message.get("stop_reason"))
        for position, block in enumerate(_objects(message.get("content"))):
            _read_block(answer, position, block)
    elif answer.whole:
        raise MalformedAnswer("unknown shape")
    elif kind == "content_block_start":
        _read_block(answer, _index(frame.get("index")), _object(frame.get("content_block")))
    elif kind == "content_block_delta":
        _read_block(answer, _index(frame.get("index")), _object(frame.get("delta")))
    elif kind == "message_delta":
        answer.add_usage(frame.get("usage"))
        answer.add_finish(0, _object(frame.get("delta")).get("stop_reason"))
    elif kind == "message_stop":
        answer.done = True


def _read_block(answer: Answer, index: int, block: dict[str, Any]) -> None:
    kind = block.get("type")
    if kind in ("text", "text_delta"):
        answer.add_text(block.get("text"))
    elif kind in ("thinking", "thinking_delta"):
        answer.reasoning_chars += len(_text(block.get("thinking")))
    elif kind == "tool_use":  # a stream starts it with an empty input and sends the text after
        answer.add_call(index, block.get("name"), block.get("input") or None)
    elif kind == "input_json_delta":
        answer.add_call(index, None, block.get("partial_json"))


def _read_responses(answer: Answer, frame: dict[str, Any]) -> None:
    """OpenAI responses: the whole response, or its events."""
    kind = _text(frame.get("type"))
    index = _index(frame.get("output_index"))
    if answer.whole and frame.get("object") == "response":
        _read_response(answer, frame)
    elif answer.whole:
        raise MalformedAnswer("unknown shape")
    elif kind == "response.output_text.delta":
        answer.add_text(frame.get("delta"))
        answer.add_logprobs(frame.get("logprobs"))
    elif kind == "response.refusal.delta":
        answer.add_refusal(frame.get("delta"))
    elif kind in ("response.reasoning_text.delta", "response.reasoning_summary_text.delta"):
        answer.reasoning_chars += len(_text(frame.get("delta")))
    elif kind in ("response.output_item.added", "response.output_item.done"):
        _read_call(answer, index, _object(frame.get("item")))
    elif kind == "response.function_call_arguments.delta":
        answer.add_call(index, None, frame.get("delta"))
    elif kind in ("response.completed", "response.incomplete", "response.failed"):
        _read_response(answer, _object(frame.get("response")))
        answer.done = kind != "response.failed"


def _read_call(answer: Answer, index: int, item: dict[str, Any]) -> None:
    if item.get("type") in ("function_call", "custom_tool_call"):
        _, pieces = answer.tools.get(index, ([], []))
        arguments = item.get("arguments", item.get("input"))
        answer.add_call(index, item.get("name"), None if pieces else arguments)


def _read_response(answer: Answer, response: dict[str, Any]) -> None:
    """The whole response; what the deltas already told is not taken twice."""
    told = bool(answer.text_chars or answer.refusal)
    reasoned = answer.reasoning_chars > 0
    for index, item in enumerate(_objects(response.get("output"))):
        _read_call(answer, index, item)
        for part in () if told else _objects(item.get("content")):
            if part.get("type") == "output_text":
                answer.add_text(part.get("text"))
                answer.add_logprobs(part.get("logprobs"))
            elif part.get("type") == "refusal":
                answer.add_refusal(part.get("refusal"))
            elif part.get("type") == "reasoning_text" and not reasoned:
                answer.reasoning_chars += len(_text(part.get("text")))
    status = _text(response.get("status"))
    if status == "completed":
        status = "tool_calls" if answer.tools else "stop"
    elif status == "incomplete":
        status = _text(_object(response.get("incomplete_details")).get("reason")) or status
    elif status == "failed":
        answer.error = error_word(response)
    answer.add_finish(0, status)
    answer.add_usage(response.get("usage"))
    answer.model = _text(response.get("model")) or None


READ = {
    "chat": _read_chat,
    "completions": _read_completions,
    "messages": _read_messages,
    "responses": _read_responses,
}


def error_word(frame: dict[str, Any]) -> str:
    """The code or type of an error; its message may quote the prompt, so it is not read."""
    error = _object(frame.get("error"))
    words = (error.get("code"), error.get("type"), frame.get("code"), "error")
    return next(word for word in words if isinstance(word, str) and word)[:64]


def is_error(event: str, frame: dict[str, Any]) -> bool:
    kinds = (event, frame.get("type"), frame.get("object"))
    return "error" in kinds or bool(frame.get("error"))


def usage_of(counts: dict[str, int]) -> Usage | None:
    """The counts in our terms; None when the upstream counted nothing."""
    if not counts:
        return None
    prompt = next((counts[name] for name in _PROMPT if name in counts), None)
    if prompt is not None:
        prompt += sum(counts.get(name, 0) for name in _CACHE)
    return Usage(
        input=prompt,
        output=counts.get("completion_tokens", counts.get("output_tokens")),
        cached=counts.get("cached_tokens", counts.get("cache_read_input_tokens")),
    )


def worst_finish(finishes: dict[int, str | None]) -> str | None:
    """The first finish that is not a good one; else choice 0's, once every choice has one."""
    words = [finishes[index] for index in sorted(finishes)]
    bad = next((word for word in words if word not in (None, "stop", "tool_calls")), None)
    if bad is not None or not words or None in words:
        return bad
    return words[0]
