"""The records of the contract: what travels under each namespace of metadata."""

import contextlib
import re
from collections.abc import Mapping, Sequence
from functools import cache
from types import UnionType
from typing import Any, Self, get_args

import msgspec

from extproc.contract.names import Key


class _Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Values under one namespace of metadata, or some of them."""

    def to_metadata(self) -> dict[str, Any]:
        """Give the values by key, as plain values. What is None is left out."""
        values: dict[str, Any] = msgspec.to_builtins(self)
        return values

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> Self:
        """Read each key alone: one that is absent or not of its type is None, "" where a text is required, or 0."""
        return cls(**_readable(cls, metadata))


class DecisionRecord(_Record, frozen=True, kw_only=True):
    """What a decision says of itself: in metadata, logs and spans. No prompt text."""

    cluster: str
    tier: str
    reason: str  # a Reason; when read, it may be the word of another release
    reasoning: str
    revision: str
    mode: str
    cohort: str | None = None
    similarity: float | None = None
    margin: float | None = None
    calibrated: bool | None = None
    probability: float | None = None
    evidence: str | None = None
    ask: str | None = None
    ask_chars: int | None = None
    ask_cut: bool | None = None
    tokens: int | None = None
    rule: str | None = None
    proposed_tier: str | None = None


class CascadeRecord(_Record, frozen=True, kw_only=True):
    """What Envoy goes by after the first attempt; beside the decision."""

    contract: int  # CONTRACT of the release that wrote the decision
    max_retries: int
    escalations: int  # verdicts raise it
    judge: dict[str, str] | None = None  # tier -> JudgeMode; the answers of other tiers are not judged


class JudgedRecord(_Record, frozen=True, kw_only=True):
    """What the verifier goes by; beside the decision, where answers are to be judged."""

    cohort: str
    rungs: list[str]  # clusters, the first attempt's first
    api: str
    escalations: int
    logprobs_added: bool
    skipped: int = 0  # rungs that earlier verdicts have jumped

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> Self:
        """Read all keys or none: where one is damaged, the record is of no cohort, and no answer is judged."""
        try:
            read = {key: int(v) if key in _COUNTS else v for key, v in metadata.items()}
            return msgspec.convert(_NOT_JUDGED | read, cls)
        except (msgspec.ValidationError, ValueError, TypeError, OverflowError):
            return cls(**_NOT_JUDGED)


_COUNTS = ("skipped", "escalations")  # metadata carries every number as a float
_NOT_JUDGED: dict[str, Any] = {"cohort": "", "rungs": [], "api": "chat", "escalations": 0, "logprobs_added": False}


class VerdictRecord(_Record, frozen=True, kw_only=True):
    """What a verdict adds to the decision or changes in it."""

    verdict: str | None = None  # a VerdictWord
    verdict_reason: str | None = None
    escalations: int | None = None
    skipped: int | None = None
    bound: str | None = None  # a Bound


class BodyPatch(_Record, frozen=True, kw_only=True):
    """Puts `text` in place of `length` bytes at `at`."""

    at: int
    length: int
    text: str


class RungsRecord(_Record, frozen=True, kw_only=True):
    """What turns the first attempt's body into that of the second attempt, the third and so on."""

    attempts: list[list[BodyPatch]]


class RequirementsRecord(_Record, frozen=True, kw_only=True):
    """What the answer has to meet, as JSON; opaque to Envoy."""

    facts: str


class AnswerRecord(_Record, frozen=True, kw_only=True):
    """The last rejected answer, in case every tier above fails."""

    body: str
    type: str
    tier: str

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> Self:
        """Read all keys or none: an answer without a body is no answer."""
        try:
            return msgspec.convert(metadata, cls)
        except msgspec.ValidationError:
            return cls(body="", type="", tier="")


class AttemptRecord(_Record, frozen=True, kw_only=True):
    """What the ledger keeps of one judged attempt; without counts where its answer gave none."""

    verdict: str  # a VerdictWord
    tier: str | None = None
    reason: str | None = None  # of a rejection
    input: int | None = None
    output: int | None = None
    cached: int | None = None


class LedgerRecord(_Record, frozen=True, kw_only=True):
    """Who asked and in which conversation, as hashes; and each judged attempt, under its number."""

    principal: str | None = None
    session: str | None = None
    attempts: dict[int, AttemptRecord] = {}

    def to_metadata(self) -> dict[str, Any]:
        """Give the values by key; an attempt's key is its number."""
        asker = {Key.PRINCIPAL.value: self.principal, Key.SESSION.value: self.session}
        attempts = {str(number): attempt.to_metadata() for number, attempt in self.attempts.items()}
        return {key: value for key, value in asker.items() if value is not None} | attempts

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> Self:
        """Read each key alone, as the other records do; an attempt that is no record is left out."""
        attempts = {
            int(key): AttemptRecord.from_metadata(value)
            for key, value in metadata.items()
            if _ATTEMPT.fullmatch(key) and isinstance(value, Mapping)
        }
        principal, session = (_text(metadata.get(key)) for key in (Key.PRINCIPAL, Key.SESSION))
        return cls(principal=principal, session=session, attempts=attempts)


_ATTEMPT = re.compile("[1-9][0-9]{0,8}")


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def ladder_of(clusters: Sequence[str]) -> dict[str, Any]:
    """What stands under LADDER: attempt n goes to the nth of these clusters, and past their end to the last."""
    groups = [
        {"name": f"rung{i}", "clusters": [{"cluster_name": cluster, "weight": 1}]}
        for i, cluster in enumerate(clusters)
    ]
    return {"priority_groups": groups}


def _readable(record: type[_Record], metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `record` that `metadata` has with a value of their type, and empty values where required."""
    kinds, empty = _fields(record)
    read = dict(empty)
    for key in kinds.keys() & metadata.keys():
        with contextlib.suppress(msgspec.ValidationError):
            read[key] = msgspec.convert(metadata[key], kinds[key], strict=False)  # counts are floats there
    return read


@cache
def _fields(record: type[_Record]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Each field's type when it is there, and an empty value of each required one."""
    fields = msgspec.structs.fields(record)
    kinds = {f.name: get_args(f.type)[0] if isinstance(f.type, UnionType) else f.type for f in fields}
    return kinds, {f.name: kinds[f.name]() for f in fields if f.required}
