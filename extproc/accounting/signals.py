"""Signals about an answer that come after it, as the ledger keeps them. They have no text."""

import msgspec

from extproc.contract.words import Signal


class AnswerSignal(msgspec.Struct, frozen=True):
    """One signal about an answer."""

    request: str  # x-request-id of the request that was answered
    kind: Signal
    principal: str  # hash of the sender of the signal. It counts only if that principal has sent the request
    time: float  # seconds since 1970
    score: float | None = None  # of feedback: 1 is good, 0 is bad
    label: str | None = None  # of feedback: the right cohort, or `out_of_scope`
