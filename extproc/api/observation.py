"""The content of an upstream's answer as a value: `Observation`, with `ToolCall` and `Usage` in it."""

from typing import Literal

import msgspec

Framing = Literal["json", "sse"]
# Reasons in `malformed` for an answer that was only too large to be read.
TOO_LARGE = ("frame too large", "answer too large")
# Finish reasons of an answer that continues in another exchange, so there is nothing to judge yet.
CONTINUES = ("pause_turn", "compaction", "queued", "in_progress")


class ToolCall(msgspec.Struct, frozen=True):
    """A call that the answer asks the client to make; `arguments` is the text as received."""

    name: str
    arguments: str


class Usage(msgspec.Struct, frozen=True):
    """Tokens as the upstream counted them; `input` includes the `cached` ones on every API."""

    input: int | None = None
    output: int | None = None
    cached: int | None = None


class Observation(msgspec.Struct, frozen=True):
    """The content of one answer, as far as it was read. Fields describe choice 0 unless they name all choices."""

    text: str = ""  # visible text only
    refusal: str | None = None  # the text of a refusal field, or "content_filter"
    # stop, length, tool_calls, content_filter or the upstream's word in lower case; the worst of all choices
    finish: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    other_output: bool = False  # it also has a picture, sound, or a call of a tool that the provider defined
    logprobs: tuple[float, ...] = ()  # of each generated token, within [LEAST_LOGPROB, 0]
    reasoning_chars: int = 0
    usage: Usage | None = None
    model: str | None = None
    n_choices: int = 0  # number of all choices seen
    framing: Framing | None = None  # None: not known yet
    mislabelled: bool = False  # the content-type contradicts the body, so clients cannot read it
    frames: int = 0  # number of SSE events; 1 for a JSON answer
    complete: bool = False  # the protocol's own ending was seen, for all choices
    ended: bool = False  # no more bytes will come, whether or not the answer is complete
    error: str | None = None  # the upstream's machine-readable code for an error inside a 200, without prose
    malformed: str | None = None  # why reading stopped; None: it did not

    @property
    def mean_logprob(self) -> float | None:
        """The mean token log-probability; None when the upstream sent none."""
        return sum(self.logprobs) / len(self.logprobs) if self.logprobs else None
