"""The records of the contract: the content of each metadata namespace."""

import contextlib
import re
from collections.abc import Mapping, Sequence
from functools import cache
from types import UnionType
from typing import Any, Self, get_args

import msgspec

from extproc.contract.names import Key


class _Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The values of one metadata namespace, or a part of them."""

    def to_metadata(self) -> dict[str, Any]:
        """Return plain values by key. A field that is None has no key."""
        values: dict[str, Any] = msgspec.to_builtins(self)
        return values

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> Self:
        """Read each key by itself. An absent or unreadable value becomes None, or "" or 0 if it is required."""
        try:
            return msgspec.convert(metadata, cls, strict=False)  # counts are floats there
        except msgspec.ValidationError:
            return cls(**_readable(cls, metadata))


class DecisionRecord(_Record, frozen=True, kw_only=True):
    """The decision, as it appears in metadata, logs and spans. It holds no prompt text."""

    cluster: str
    tier: str
    reason: str  # a Reason, or a word of another release
    reasoning: str
    revision: str
    mode: str
    cohort: str | None = None  # the nearest one, whether or not its match counts
    counted_as: str | None = None  # the cohort that the request belongs to, or a word: see words.NOT_A_COHORT
    runner_up: str | None = None  # the second nearest cohort
    similarity: float | None = None
    margin: float | None = None
    floor: float | None = None  # least similarity at which a match with the cohort counts
    least_margin: float | None = None
    chance: float | None = None
    background: float | None = None
    gain: float | None = None  # predicted gain of the costlier of the cohort's two tiers, for the mean extra cost
    least_gain: float | None = None  # from which the costlier tier serves
    calibrated: bool | None = None
    probability: float | None = None
    evidence: str | None = None
    ask: str | None = None
    ask_chars: int | None = None
    ask_cut: bool | None = None
    tokens: int | None = None
    stream: bool | None = None  # the client asked for a stream
    rule: str | None = None
    proposed_tier: str | None = None
    withheld: str | None = None  # keys of the cohort that were not applied, with a comma between two
    conversation: str | None = None  # a Course
    candidate_tier: str | None = None  # that the candidate would choose, if it only decides beside
    candidate_cohort: str | None = None  # `counted_as` of that decision
    cache: str | None = None  # a CacheWord; None: the cohort has no cache
    cache_tier: str | None = None  # that gave the kept answer which is served
    app: str | None = None
    team: str | None = None  # of the app
    budget: str | None = None  # the budget that is used up, so that it lowered or refused the request
    reserved_microusd: int | None = None  # the expected cost, if a budget holds for the request
    limits: str | None = None  # "local": the store of limits and budgets could not be asked


class CascadeRecord(_Record, frozen=True, kw_only=True):
    """Envoy's instructions for the attempts, in the same namespace as the decision."""

    contract: int  # CONTRACT of the router that wrote the decision
    max_retries: int
    escalations: int  # each escalation raises it
    judge: dict[str, str] | None = None  # tier -> JudgeMode; answers of other tiers are not judged


class JudgedRecord(_Record, frozen=True, kw_only=True):
    """The verifier's instructions, in the same namespace as the decision. Written if answers are judged."""

    cohort: str
    rungs: list[str]  # clusters, the first attempt's first
    api: str
    escalations: int
    logprobs_added: bool
    skipped: int = 0  # rungs that earlier verdicts skipped, less the attempts that repeated a rung
    repeats: bool = False  # the ladder has repeated attempts, which an escalation has to leave out
    # The rung after a rejected answer of each one, as an index into `rungs`. None: the next one.
    climbs: list[int] | None = None

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> Self:
        """Read all keys or none. If one is damaged, the cohort is "" and no answer is judged."""
        try:
            read = {key: _counts(v) if key in _COUNTS else v for key, v in metadata.items()}
            return msgspec.convert(_NOT_JUDGED | read, cls)
        except (msgspec.ValidationError, ValueError, TypeError, OverflowError):
            return cls(**_NOT_JUDGED)


def _counts(value: Any) -> Any:
    return [int(count) for count in value] if isinstance(value, list) else int(value)


_COUNTS = ("skipped", "escalations", "climbs")  # metadata carries every number as a float
_NOT_JUDGED: dict[str, Any] = {"cohort": "", "rungs": [], "api": "chat", "escalations": 0, "logprobs_added": False}


class VerdictRecord(_Record, frozen=True, kw_only=True):
    """A verdict's additions and changes to the decision."""

    verdict: str | None = None  # a VerdictWord
    verdict_reason: str | None = None
    escalations: int | None = None
    skipped: int | None = None
    bound: str | None = None  # a Bound


class BodyPatch(_Record, frozen=True, kw_only=True):
    """Replace `length` bytes at offset `at` with `text`."""

    at: int
    length: int
    text: str


class RungsRecord(_Record, frozen=True, kw_only=True):
    """Patches that turn the body of the first attempt into that of the second attempt, the third and so on."""

    attempts: list[list[BodyPatch]]


class AttemptsRecord(_Record, frozen=True, kw_only=True):
    """The attempts so far. Envoy counts detours, which reach no tier: see `ladder_of`."""

    attempts: int  # the number of the current one
    detours: int | None = None
    made: int | None = None  # attempts without detours, if there were any


class PackedRecord(_Record, frozen=True, kw_only=True):
    """The end of a gzip body as the client sent it. Envoy decodes the body, and reads only its first member."""

    end: str = ""  # its last eight bytes in hexadecimal: a checksum and the length of what they end


class RequirementsRecord(_Record, frozen=True, kw_only=True):
    """The requirements that the answer has to meet, as JSON that only the verifier reads."""

    facts: str


class AnswerRecord(_Record, frozen=True, kw_only=True):
    """The last rejected answer, kept in case every higher tier fails."""

    body: str
    type: str
    tier: str

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> Self:
        """Read all keys or none. An empty body means that there is no answer."""
        try:
            return msgspec.convert(metadata, cls)
        except msgspec.ValidationError:
            return cls(body="", type="", tier="")


class CacheRecord(_Record, frozen=True, kw_only=True):
    """Where an accepted answer to this request is kept. The names are hashes."""

    key: str
    exact: str  # hash of the ask as it was written
    vector: str | None = None  # of the ask: base64 of int8
    checked: bool | None = None  # a kept answer exists, and the new one is compared with it


class AttemptRecord(_Record, frozen=True, kw_only=True):
    """One judged attempt, for the ledger. Token counts are absent if the answer had none."""

    verdict: str  # a VerdictWord
    tier: str | None = None
    reason: str | None = None  # of a rejection
    input: int | None = None
    output: int | None = None
    cached: int | None = None


class LedgerRecord(_Record, frozen=True, kw_only=True):
    """The principal and the conversation, as hashes, and each judged attempt under its number."""

    principal: str | None = None
    session: str | None = None
    key_refused: str | None = None  # the tier whose upstream refused the tier's own key last
    chances: str | None = None  # JSON: tier -> chance that the router also asks it, off the path
    explored: str | None = None  # x-request-id of that second request, if it was drawn
    hit: AttemptRecord | None = None  # of the kept answer that was served again
    charge: str | None = None  # the nanodollars that the request reserved, and the keys of its budgets
    # The attempt whose verdict Envoy completes when the answer ends, and its tier behind a space.
    open: str | None = None
    attempts: dict[int, AttemptRecord] = {}
    failed: dict[int, str] = {}  # the tier and the status of each attempt that ended with an error; Envoy writes it

    def to_metadata(self) -> dict[str, Any]:
        """Return plain values by key. The key of an attempt is its number."""
        asker = {key: getattr(self, key) for key in _LEDGER_TEXTS}
        attempts = {str(number): attempt.to_metadata() for number, attempt in self.attempts.items()}
        failed = {f"{Key.FAILED}{number}": text for number, text in self.failed.items()}
        hit = {Key.HIT: self.hit.to_metadata()} if self.hit is not None else {}
        return {key: value for key, value in asker.items() if value is not None} | hit | attempts | failed

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> Self:
        """Read each key by itself. An attempt that is not a record is left out."""
        numbered = [(key, value) for key, value in metadata.items() if key not in _LEDGER_TEXTS]
        attempts = {
            int(key): AttemptRecord.from_metadata(value)
            for key, value in numbered
            if _ATTEMPT.fullmatch(key) and isinstance(value, Mapping)
        }
        failed = {
            int(key.removeprefix(Key.FAILED)): value
            for key, value in numbered
            if _FAILED.fullmatch(key) and isinstance(value, str)
        }
        texts = {key: _text(metadata.get(key)) for key in _LEDGER_TEXTS}
        hit = metadata.get(Key.HIT)
        hit = AttemptRecord.from_metadata(hit) if isinstance(hit, Mapping) else None
        return cls(**texts, hit=hit, attempts=attempts, failed=failed)


_LEDGER_TEXTS = tuple(
    key.value
    for key in (Key.PRINCIPAL, Key.SESSION, Key.KEY_REFUSED, Key.CHANCES, Key.EXPLORED, Key.CHARGE, Key.OPEN)
)


class ConversationRecord(_Record, frozen=True, kw_only=True):
    """The keys of the conversation. Envoy sends them back with the tier that answered."""

    principal: str
    conversation: str
    kept: bool | None = None  # the id of the response is needed, too


_ATTEMPT = re.compile("[1-9][0-9]{0,8}")
_FAILED = re.compile(f"{Key.FAILED}{_ATTEMPT.pattern}")


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


# Envoy's cluster that decides whether an attempt is repeated at the same tier. It refuses every connection.
REPEATING_CLUSTER = "retry:same"
ATTEMPTS_OF_A_REPEAT = 2  # one at REPEATING_CLUSTER, and one at the tier


def ladder_of(clusters: Sequence[str], repeats: Sequence[int] = ()) -> dict[str, Any]:
    """Build the content of Namespace.LADDER. Attempt n goes to the nth group, later ones to the last.

    `repeats` are the repeated attempts of each rung. Before each one, an attempt at REPEATING_CLUSTER decides
    whether it is made. Groups of one rung have one name.
    """
    groups = [
        {"name": f"rung{i}", "clusters": [{"cluster_name": name, "weight": 1}]}
        for i, cluster in enumerate(clusters)
        for name in (cluster, *(REPEATING_CLUSTER, cluster) * (repeats[i] if i < len(repeats) else 0))
    ]
    return {"priority_groups": groups}


def _readable(record: type[_Record], metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Read the fields of `record` whose values have the right type. Other required fields get an empty value."""
    kinds, empty = _fields(record)
    read = dict(empty)
    for key in kinds.keys() & metadata.keys():
        with contextlib.suppress(msgspec.ValidationError):
            read[key] = msgspec.convert(metadata[key], kinds[key], strict=False)  # counts are floats there
    return read


@cache
def _fields(record: type[_Record]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the type of each field without None, and an empty value for each required field."""
    fields = msgspec.structs.fields(record)
    kinds = {f.name: get_args(f.type)[0] if isinstance(f.type, UnionType) else f.type for f in fields}
    return kinds, {f.name: kinds[f.name]() for f in fields if f.required}
