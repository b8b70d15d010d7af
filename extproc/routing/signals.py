"""Cheap facts read from a request without a model."""

import msgspec
import numpy as np

from extproc.api.paths import Api
from extproc.api.request import Request
from extproc.encoder.features import names_no_task
from extproc.routing.ask import Ask, find_ask
from extproc.routing.background import background_kind
from extproc.routing.tasks import find_tasks

# The tokens that OpenAI and Anthropic charge for a picture or clip of ordinary size.
_MEDIA_TOKENS = 1000


class Signals(msgspec.Struct, frozen=True):
    """The facts that rules may use in addition to the cohort."""

    ask: Ask
    tokens: int  # of the whole request, estimated
    turns: int  # messages from the user
    needs: frozenset[str]
    strict_output: bool
    stream: bool
    api: Api = "chat"
    model: str | None = None  # that the client asked for
    max_output_tokens: int | None = None  # the limit that the client set
    tool_loop: bool = False  # it offers tools, or has the result of one
    background: str | None = None  # the kind of call that an agent makes by itself, if it is one
    no_task: bool = False  # a person only greets, thanks or agrees, so the request belongs to no cohort


def read_signals(request: Request, max_chars: int) -> Signals:
    """Read the signals of `request`. A longer ask is cut to the head and tail of `max_chars` characters."""
    ask = find_ask(request.turns, max_chars)
    tasks = find_tasks(request, ask, max_chars)
    if tasks:
        ask = msgspec.structs.replace(ask, tasks=tasks)
    background = background_kind(request, ask)
    return Signals(
        ask=ask,
        tokens=_estimate_tokens(request),
        turns=sum(turn.role == "user" and bool(turn.texts) for turn in request.turns),
        needs=request.needs,
        strict_output=request.strict_output,
        stream=request.stream,
        api=request.api,
        model=request.model,
        max_output_tokens=request.max_output_tokens,
        tool_loop="tools" in request.needs or any(turn.tool_result for turn in request.turns),
        background=background,
        no_task=background is None and ask.text != "" and names_no_task(ask.text),
    )


def _estimate_tokens(request: Request) -> int:
    """Estimate the tokens of the body from its size: 4 bytes a token in ASCII, 2 elsewhere. Media count extra.

    An exact count would cost more than the decision, and each tier counts differently.
    """
    size = len(request.body) - request.media_bytes
    extra_bytes = 0  # bytes of a character after its first one
    if not request.body.isascii():
        extra_bytes = int(np.count_nonzero((np.frombuffer(request.body, np.uint8) & 0xC0) == 0x80))
    media = sum(need in ("vision", "audio", "files", "video") for need in request.needs) * _MEDIA_TOKENS
    return max(0, size - 2 * extra_bytes) // 4 + max(0, extra_bytes) // 2 + media
