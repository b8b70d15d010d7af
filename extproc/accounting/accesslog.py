"""Envoy's gRPC access log -> outcomes.

Envoy writes an entry when an exchange is over. Its metadata holds the decision, the verdict on each judged attempt,
and the tokens that Envoy read from the answer that it passed on. If Envoy read none, the token counts of the
verifier are used. If there are none either, the usage is unknown.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
from google.protobuf.message import DecodeError
from google.protobuf.struct_pb2 import Struct, Value

from extproc.accounting.outcome import SERVED, Ending, LateVerdict, Outcome, Rejection, TierError, Unjudged
from extproc.api.observation import Usage
from extproc.api.paths import APIS
from extproc.contract.names import TRACEPARENT, Key, Namespace
from extproc.contract.records import AttemptRecord, AttemptsRecord, DecisionRecord, LedgerRecord
from extproc.contract.statuses import has_answer
from extproc.contract.words import NOT_A_COHORT, Reason, Undecided, VerdictWord
from extproc.pb import access_log_pb2 as pb
from extproc.pb import token_usage_pb2 as ai
from extproc.protobuf import decode

# Envoy's name for the service.
SERVICE, METHOD = "envoy.service.accesslog.v3.AccessLogService", "StreamAccessLogs"

# Envoy makes this id. If it is configured to keep the id of the client, that id may be any text.
_REQUEST_ID = re.compile(r"[0-9A-Za-z-]{1,64}")
# The upstream chooses the name of the model, and every name is a series of metrics.
_MOST_MODEL_CHARS = 100
_FAILURE = re.compile("(.+) ([1-5][0-9]{2})")  # the tier and the status of an attempt
_VERDICTS = frozenset(VerdictWord)
_API_NAMES = frozenset(APIS.values())
# Keys of the decision that are for Envoy or the verifier only. The ledger does not keep them.
_NOT_KEPT = frozenset({Key.CLUSTER, Key.MAX_RETRIES, Key.SKIPPED, "rungs", "api", "repeats", "contract"})
_CLIENT_LEFT = ("downstream_connection_termination", "downstream_remote_reset", "downstream_protocol_error")
_CUT = (
    "upstream_request_timeout", "local_reset", "upstream_remote_reset", "upstream_connection_termination",
    "stream_idle_timeout", "upstream_max_stream_duration_reached", "duration_timeout", "upstream_protocol_error",
)  # fmt: skip
# Verdicts on rejected answers that the client received anyway: a bound was reached, the client already had a part
# of the answer, or Envoy refused the escalation.
_REJECTED_AND_SERVED = (VerdictWord.DEGRADED, VerdictWord.RECORDED, VerdictWord.ESCALATE)


def read_outcomes(message: bytes) -> Iterator[Outcome]:
    """Yield the outcome of each exchange with one of our APIs. Raises ValueError if the batch cannot be read."""
    try:
        batch = decode(pb.StreamAccessLogsMessage, message)  # ids of clients in it may have any bytes
    except DecodeError as error:
        raise ValueError(f"expected a StreamAccessLogsMessage from Envoy: {error}") from error
    entries = batch.http_logs.log_entry
    return (_outcome(entry) for entry in entries if entry.common_properties.route_name in _API_NAMES)


def _outcome(entry: pb.HTTPAccessLogEntry) -> Outcome:
    common = entry.common_properties
    values, ledger = _decision(common.metadata), _ledger(common.metadata)
    decision = DecisionRecord.from_metadata(values)
    number = common.upstream_request_attempt_count  # of the last attempt
    made = AttemptsRecord.from_metadata(_values(common.metadata, Namespace.ATTEMPT)).made
    attempts = made or number
    last = ledger.attempts.get(number)
    report = _envoys_report(common.metadata)
    usage, source = _envoys_usage(report), "envoy"
    if usage is None:
        usage, source = _usage(last) if last is not None else None, "verifier"
    status = entry.response.response_code.value
    ending = _ending(status, common.response_flags, last.verdict if last is not None else None)
    reason = decision.reason or _undecided(attempts, common.response_flags)
    cohort = decision.counted_as or decision.cohort or reason
    tier = common.custom_tags.get(Key.TIER) or (last.tier if last is not None else None)
    hit = ledger.hit if number == 0 else None
    if hit is not None:
        tier, usage = hit.tier, None
    return Outcome(
        time=common.start_time.ToNanoseconds() / 1e9,
        api=common.route_name,
        ending=ending,
        status=status,
        attempts=attempts,
        reason=reason,
        judged=last is not None,
        unjudged=_unjudged(cohort, tier, values, hit) if last is None and ending in SERVED else None,
        cohort=cohort,
        tier=tier,
        rejections=tuple(
            Rejection(earlier, attempt.tier, attempt.reason or "", _usage(attempt))
            for earlier, attempt in sorted(ledger.attempts.items())
            if earlier < number
        ),
        usage=usage,
        model=report.model[:_MOST_MODEL_CHARS] or None,
        stream=decision.stream is True,
        usage_from=source if usage is not None else None,  # type: ignore[arg-type]  # one of its two words
        request=entry.request.request_id if _REQUEST_ID.fullmatch(entry.request.request_id) else None,
        principal=ledger.principal,
        session=ledger.session,
        conversation=decision.conversation or None,
        errors=tuple(_errors(attempts, status, tier, decision, ledger)),
        late=_late(decision, ledger, number),
        key_refused=ledger.key_refused,
        chances=ledger.chances,
        explored=ledger.explored,
        cache=decision.cache,
        reused=_usage(hit) if hit is not None else None,
        app=decision.app or None,
        team=decision.team or None,
        charge=ledger.charge,
        revision=decision.revision or None,
        mode=decision.mode or None,
        decision=_kept(values),
        traceparent=common.custom_tags.get(TRACEPARENT) or None,
        duration_s=_seconds(common, "duration"),
        first_byte_s=_seconds(common, "time_to_first_downstream_tx_byte"),
    )


def _late(decision: DecisionRecord, ledger: LedgerRecord, number: int) -> LateVerdict | None:
    """Return the verdict that Envoy completed. None: the verifier gave it, or the answer did not end."""
    last = ledger.attempts.get(number)
    if last is None or last.verdict not in _VERDICTS or (ledger.open or "").partition(" ")[0] != str(number):
        return None
    return LateVerdict(decision.cohort or "", number, VerdictWord(last.verdict), last.reason)


def _unjudged(
    cohort: str, tier: str | None, decision: Mapping[str, Any], hit: AttemptRecord | None = None
) -> Unjudged:
    """Why no rule looked at an answer of `tier`."""
    if hit is not None:
        return Unjudged.CACHED
    if cohort in NOT_A_COHORT:
        return Unjudged.NO_COHORT
    judged = decision.get(Key.JUDGE)
    if not judged:
        return Unjudged.NO_RULE
    return Unjudged.LOST if tier in judged else Unjudged.LAST_RUNG


def _errors(
    attempts: int, status: int, tier: str | None, decision: DecisionRecord, ledger: LedgerRecord
) -> Iterator[TierError]:
    """The attempts that ended with an error. Only the first and the last one's tier is known without an answer."""
    answered = ledger.attempts.keys() | ledger.failed.keys()
    for _, text in sorted(ledger.failed.items()):
        failure = _FAILURE.fullmatch(text)
        if failure is not None:
            yield TierError(failure[1], int(failure[2]))
    if attempts > 1 and 1 not in answered and decision.tier:
        yield TierError(decision.tier, 0)
    if attempts not in answered and status >= 500 and tier is not None:
        yield TierError(tier, 0)


def _kept(decision: Mapping[str, Any]) -> str | None:
    kept = {key: value for key, value in decision.items() if key not in _NOT_KEPT and value is not None}
    return msgspec.json.encode(kept, order="sorted").decode() if kept else None


def _undecided(attempts: int, flags: pb.ResponseFlags) -> str:
    """The word for an exchange without a decision. Only the cluster that refuses requests has no hosts."""
    if flags.no_healthy_upstream:
        return Reason.RESIDENCY
    return Undecided.FAIL_OPEN if attempts else Undecided.NONE


def _ending(status: int, flags: pb.ResponseFlags, verdict: str | None) -> Ending:
    raised = {field.name for field, _ in flags.ListFields()}
    if status == 0 or not raised.isdisjoint(_CLIENT_LEFT):
        return Ending.CANCELLED
    if verdict == VerdictWord.HUMAN:
        return Ending.HUMAN
    if not has_answer(status) or not raised.isdisjoint(_CUT):
        return Ending.FAILED
    return Ending.DEGRADED if verdict in _REJECTED_AND_SERVED else Ending.ACCEPTED


def _envoys_report(metadata: pb.Metadata) -> ai.TokenUsage:
    """Return what Envoy read from the answer. It is empty if Envoy read nothing."""
    if Namespace.USAGE not in metadata.typed_filter_metadata:
        return ai.TokenUsage()
    try:
        return ai.TokenUsage.FromString(metadata.typed_filter_metadata[Namespace.USAGE].value)
    except DecodeError:
        return ai.TokenUsage()


def _envoys_usage(usage: ai.TokenUsage) -> Usage | None:
    """Return the tokens that Envoy read from the answer. None if it read none, or not all of them."""
    whole = usage.HasField("input_tokens") and usage.HasField("output_tokens")
    if not whole or usage.extraction_status != ai.TokenUsage.COMPLETE:
        return None
    details = usage.input_token_details
    cached = details.cached_tokens.value if details.HasField("cached_tokens") else None
    return Usage(usage.input_tokens.value, usage.output_tokens.value, cached)


def _usage(attempt: AttemptRecord) -> Usage | None:
    if attempt.input is None or attempt.output is None:
        return None
    return Usage(attempt.input, attempt.output, attempt.cached)


def _decision(metadata: pb.Metadata) -> dict[str, Any]:
    return _values(metadata, Namespace.DECISION)


def _ledger(metadata: pb.Metadata) -> LedgerRecord:
    return LedgerRecord.from_metadata(_values(metadata, Namespace.LEDGER))


def _values(metadata: pb.Metadata, namespace: Namespace) -> dict[str, Any]:
    """Return the values of a namespace. There is none of an exchange without a decision."""
    if namespace not in metadata.filter_metadata:  # reading an absent key of a protobuf map would add it
        return {}
    return _members(metadata.filter_metadata[namespace])


def _members(struct: Struct) -> dict[str, Any]:
    fields = struct.fields
    return {key: _value(fields[key]) for key in fields}  # `items()` of a protobuf map is in Python, and slower


def _value(value: Value) -> Any:
    """Return a scalar, or the members of an object. A list and a null become None.

    protobuf's own conversion (`json_format`) raises an error for NaN and infinity. The record ignores them.
    """
    kind = value.WhichOneof("kind")
    if kind == "struct_value":
        return _members(value.struct_value)
    return getattr(value, kind) if kind in ("string_value", "number_value", "bool_value") else None


def _seconds(common: pb.AccessLogCommon, name: str) -> float | None:
    duration = getattr(common, name)
    return duration.ToNanoseconds() / 1e9 if common.HasField(name) else None
