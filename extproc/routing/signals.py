"""Cheap facts read from a request without a model."""

import msgspec

from extproc.api.request import Request
from extproc.routing.ask import Ask, find_ask

# No picture or clip is free: what OpenAI and Anthropic charge for one of ordinary size.
_MEDIA_TOKENS = 1000


class Signals(msgspec.Struct, frozen=True):
    """What rules may look at, besides the cohort."""

    ask: Ask
    tokens: int  # of the whole request, estimated
    turns: int  # messages from the user
    needs: frozenset[str]
    strict_output: bool
    stream: bool


def read_signals(request: Request, max_chars: int) -> Signals:
    """Read the signals of `request`; its ask is cut to `max_chars` characters, head and tail."""
    return Signals(
        ask=find_ask(request.turns, max_chars),
        tokens=_estimate_tokens(request),
        turns=sum(turn.role == "user" and bool(turn.texts) for turn in request.turns),
        needs=request.needs,
        strict_output=request.strict_output,
        stream=request.stream,
    )


def _estimate_tokens(request: Request) -> int:
    """Tokens of the whole body by its size: 4 bytes each, or 2 beyond ASCII; media apart.

    An estimate on purpose: the exact count would cost more than the decision, and tiers count differently.
    """
    size = len(request.body) - request.media_bytes
    beyond = 0
    if not request.body.isascii():
        beyond = size - len(request.body.decode(errors="ignore"))  # bytes over one a character
    media = sum(need in ("vision", "audio") for need in request.needs) * _MEDIA_TOKENS
    return max(0, size - 2 * beyond) // 4 + max(0, beyond) // 2 + media
