"""Reads the most frequent frame of a stream in one step: a chat chunk with one choice, which only adds text.

A frame that says anything else is left to `shapes.py`, which reads every frame. For the frames read here, both come
to the same result.
"""

from typing import Literal

import msgspec

from extproc.api.gathered import GatheredAnswer


class _Delta(msgspec.Struct, forbid_unknown_fields=True):
    role: str | None = None
    content: str | None = None
    reasoning_content: str | None = None
    refusal: None = None
    tool_calls: None = None
    function_call: None = None


class _Choice(msgspec.Struct, forbid_unknown_fields=True):
    delta: _Delta
    index: Literal[0] = 0
    finish_reason: None = None
    stop_reason: None = None
    matched_stop: None = None
    logprobs: None = None
    token_ids: None = None


class _Chunk(msgspec.Struct, forbid_unknown_fields=True):
    """Members that only name the stream may have any value. All others may only be null."""

    choices: tuple[_Choice]
    id: str | None = None
    object: Literal["chat.completion.chunk"] | None = None
    created: int | None = None
    model: str | None = None
    system_fingerprint: str | None = None
    service_tier: str | None = None
    provider: str | None = None
    obfuscation: str | None = None
    prompt_token_ids: None = None
    usage: None = None


_decode = msgspec.json.Decoder(_Chunk).decode


def read_plain_chunk(answer: GatheredAnswer, data: bytes) -> bool:
    """Read the frame into `answer` and return True, or return False and read nothing."""
    try:
        chunk = _decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False
    if 0 not in answer.finishes:
        answer.add_finish(0, None)
    delta = chunk.choices[0].delta
    if delta.reasoning_content:
        answer.reasoning_chars += len(delta.reasoning_content)
    if delta.content:
        answer.add_text(delta.content)
    if answer.model is None:
        answer.model = chunk.model or None
    return True
