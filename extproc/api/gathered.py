"""Gathers one answer frame by frame: the readers in shapes.py write into a `GatheredAnswer`."""

from typing import Any

import msgspec

from extproc.api.loose_json import as_object, as_text
from extproc.api.observation import Usage
from extproc.api.sse import MalformedAnswer

# Upstreams write -9999 for "very unlikely", and one such value would dominate any mean.
LEAST_LOGPROB = -20.0

# Finish reasons of other APIs and servers, in lower case -> those of chat completions.
FINISHES = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "eos": "stop",
    "eos_token": "stop",
    "end": "stop",
    "complete": "stop",
    "completed": "stop",
    "finish": "stop",
    "max_tokens": "length",
    "max_output_tokens": "length",
    "model_length": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "tool_call": "tool_calls",
    "function_call": "tool_calls",
    "refusal": "content_filter",
    "safety": "content_filter",
    "recitation": "content_filter",
    "blocklist": "content_filter",
    "prohibited_content": "content_filter",
    "spii": "content_filter",
}
# Some servers write it before a finish reason.
FINISH_PREFIX = "finish_reason_"
_INPUT_COUNTS = ("prompt_tokens", "input_tokens")
# Anthropic counts these apart from `input_tokens`.
_CACHE_COUNTS = ("cache_read_input_tokens", "cache_creation_input_tokens")
_COUNTS = (*_INPUT_COUNTS, *_CACHE_COUNTS, "completion_tokens", "output_tokens", "cached_tokens")
# Counts from here on are ignored: no answer is that long, and some stores keep counts in 32 bits.
_MOST_TOKENS = 2**31
# Limit of the characters that are read to see whether the arguments of a call are whole. With a new name or id in
# each fragment, the time would grow with the square of the answer.
_MOST_CHECKED_CHARS = 64 << 20


class GatheredAnswer:
    """The content of all frames so far. Mutable: each `AnswerReader` has its own."""

    def __init__(self, max_kept_chars: int) -> None:
        self.room = max_kept_chars
        self.whole = False  # the frame is a whole answer, not one event of a stream
        self.text: list[str] = []
        self.text_chars = 0
        self.refusal: list[str] = []
        self.reasoning_chars = 0
        self.finishes: dict[int, str | None] = {}  # by choice; None: it has not finished
        self.tools: dict[int, tuple[list[str], list[str]]] = {}  # place: names, argument pieces
        self.other_output = False
        self.logprobs: list[float] = []
        self.counts: dict[str, int] = {}
        self.model: str | None = None
        self.error: str | None = None
        self.done = False  # the protocol's own ending was seen
        self._call_ids: dict[int, str] = {}  # by place
        self._places: dict[int, int] = {}  # by index, where they differ
        self._checked_chars = 0

    def keep(self, chars: int) -> None:
        """Count what is kept in memory. Raises MalformedAnswer above the limit."""
        self.room -= chars
        if self.room < 0:
            raise MalformedAnswer("answer too large")

    def add_text(self, value: Any) -> None:
        text = as_text(value)
        if text:
            self.keep(len(text))
            self.text_chars += len(text)
            self.text.append(text)

    def add_refusal(self, value: Any) -> None:
        text = as_text(value)
        self.keep(len(text))
        if text:
            self.refusal.append(text)

    def add_logprobs(self, values: Any) -> None:
        for value in values if isinstance(values, list) else ():
            number = value.get("logprob") if isinstance(value, dict) else value
            if isinstance(number, int | float) and not isinstance(number, bool):  # `echo` sends null
                self.keep(8)
                self.logprobs.append(min(max(float(number), LEAST_LOGPROB), 0.0))

    def place_of_call(self, index: int, id_: Any, name: Any) -> int:
        """Return the place of the call with this index. Some servers give every call of an answer the index 0.

        A fragment with a name and a new id then starts the next call, once the arguments before it are whole. So
        does one with another name and without an id. A call without arguments is whole if the name is another one.
        """
        place = self._places.get(index, index)
        text, called = as_text(id_), as_text(name)
        if not called:
            return place
        is_next = self._call_ids.get(place, text) != text if text else self._is_another(place, called)
        if is_next and self._is_whole_call(place, called):
            place = self._places[index] = max(self.tools) + 1
        if text and place not in self._call_ids:
            self.keep(len(text))
            self._call_ids[place] = text
        return place

    def _is_another(self, place: int, name: str) -> bool:
        """Whether a fragment without an id names another call. Without arguments it may be the end of a name."""
        names, pieces = self.tools.get(place, ([], []))
        return bool(pieces) and names != [name]

    def _is_whole_call(self, place: int, next_name: str) -> bool:
        names, pieces = self.tools[place]
        if not pieces:
            return names != [next_name]
        if self._checked_chars > _MOST_CHECKED_CHARS:
            return False
        pieces[:] = ["".join(pieces)]
        self._checked_chars += len(pieces[0])
        return _is_json(pieces[0])

    def add_call(self, index: int, name: Any = None, arguments: Any = None) -> None:
        if index not in self.tools:
            self.keep(64)
        names, pieces = self.tools.setdefault(index, ([], []))
        text = arguments if isinstance(arguments, str) else ""
        if isinstance(arguments, dict):  # Anthropic's `input`, and servers that send an object instead of text
            text = msgspec.json.encode(arguments).decode()
        name = as_text(name)
        self.keep(len(text) + len(name))
        if text:
            pieces.append(text)
        if name and names != [name]:  # some servers repeat the whole name in every fragment
            names.append(name)

    def add_finish(self, index: int, value: Any) -> None:
        if index not in self.finishes:
            self.keep(64)
        reason = as_text(value).strip().lower().removeprefix(FINISH_PREFIX)
        self.finishes[index] = FINISHES.get(reason, reason) if reason else self.finishes.get(index)

    def add_usage(self, value: Any) -> None:
        """Take counts by name: a later count replaces an earlier one, an absent one changes nothing."""
        usage = as_object(value)
        if not usage:  # as in nearly every event of a stream
            return
        for holder in (
            usage,
            as_object(usage.get("prompt_tokens_details")),
            as_object(usage.get("input_tokens_details")),
        ):
            for name in _COUNTS:
                count = holder.get(name)
                if type(count) is int and 0 <= count < _MOST_TOKENS:
                    self.counts[name] = count

    @property
    def usage(self) -> Usage | None:
        """The counts under our names; None when the upstream sent none."""
        counts = self.counts
        if not counts:
            return None
        prompt = next((counts[name] for name in _INPUT_COUNTS if name in counts), None)
        if prompt is not None:
            prompt += sum(counts.get(name, 0) for name in _CACHE_COUNTS)
        return Usage(
            input=prompt,
            output=counts.get("completion_tokens", counts.get("output_tokens")),
            cached=counts.get("cached_tokens", counts.get("cache_read_input_tokens")),
        )

    @property
    def beyond_text(self) -> tuple[Any, ...]:
        """What rules look at, apart from text, log-probabilities, and the content of calls."""
        finishes = tuple(self.finishes.items())
        return finishes, len(self.refusal), len(self.tools), self.other_output, self.error, self.done

    @property
    def finish(self) -> str | None:
        """The first bad finish reason of any choice, or that of choice 0 once all choices have finished."""
        reasons = [self.finishes[index] for index in sorted(self.finishes)]
        bad = next((reason for reason in reasons if reason not in (None, "stop", "tool_calls")), None)
        if bad is not None or not reasons or None in reasons:
            return bad
        return reasons[0]


def _is_json(text: str) -> bool:
    try:
        msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        return False
    return True
