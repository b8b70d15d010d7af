"""Envoy's gRPC access log -> outcomes.

Envoy writes an entry when an exchange is over. Its metadata holds the decision, the verdict on each judged attempt,
and the tokens that Envoy read from the answer that it passed on. If Envoy read none, the token counts of the
verifier are used. If there are none either, the usage is unknown.
"""

import re
from collections.abc import Iterator
from typing import Any

from google.protobuf.message import DecodeError
from google.protobuf.struct_pb2 import Value

from extproc.accounting.outcome import Ending, Outcome, Rejection
from extproc.api.observation import Usage
from extproc.api.paths import APIS
from extproc.contract.names import Key, Namespace
from extproc.contract.records import AttemptRecord, DecisionRecord, LedgerRecord
from extproc.contract.words import Reason, Undecided, VerdictWord
from extproc.pb import access_log_pb2 as pb
from extproc.pb import token_usage_pb2 as ai

# Envoy's name for the service.
SERVICE, METHOD = "envoy.service.accesslog.v3.AccessLogService", "StreamAccessLogs"

# Envoy makes this id. If it is configured to keep the id of the client, that id may be any text.
_REQUEST_ID = re.compile(r"[0-9A-Za-z-]{1,64}")
_API_NAMES = frozenset(APIS.values())
_DECISION_KEYS = (Key.REASON, Key.COHORT, Key.REVISION, Key.MODE, Key.CONVERSATION)
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
        batch = pb.StreamAccessLogsMessage.FromString(message)
    except DecodeError as error:
        raise ValueError(f"expected a StreamAccessLogsMessage from Envoy: {error}") from error
    entries = batch.http_logs.log_entry
    return (_outcome(entry) for entry in entries if entry.common_properties.route_name in _API_NAMES)


def _outcome(entry: pb.HTTPAccessLogEntry) -> Outcome:
    common = entry.common_properties
    decision, ledger = _decision(common.metadata), _ledger(common.metadata)
    attempts = common.upstream_request_attempt_count
    last = ledger.attempts.get(attempts)
    usage, source = _envoys_usage(common.metadata), "envoy"
    if usage is None:
        usage, source = _usage(last) if last is not None else None, "verifier"
    status = entry.response.response_code.value
    return Outcome(
        time=common.start_time.ToNanoseconds() / 1e9,
        api=common.route_name,
        ending=_ending(status, common.response_flags, last.verdict if last is not None else None),
        status=status,
        attempts=attempts,
        reason=decision.reason or _undecided(attempts, common.response_flags),
        judged=last is not None,
        cohort=decision.cohort or None,
        tier=common.custom_tags.get(Key.TIER) or (last.tier if last is not None else None),
        rejections=tuple(
            Rejection(number, attempt.tier, attempt.reason or "", _usage(attempt))
            for number, attempt in sorted(ledger.attempts.items())
            if number < attempts
        ),
        usage=usage,
        usage_from=source if usage is not None else None,  # type: ignore[arg-type]  # one of its two words
        request=entry.request.request_id if _REQUEST_ID.fullmatch(entry.request.request_id) else None,
        principal=ledger.principal,
        session=ledger.session,
        conversation=decision.conversation or None,
        key_refused=ledger.key_refused,
        chances=ledger.chances,
        explored=ledger.explored,
        revision=decision.revision or None,
        mode=decision.mode or None,
        duration_s=_seconds(common, "duration"),
        first_byte_s=_seconds(common, "time_to_first_downstream_tx_byte"),
    )


def _undecided(attempts: int, flags: pb.ResponseFlags) -> str:
    """The word for an exchange without a decision. Only the cluster that refuses requests has no hosts."""
    if flags.no_healthy_upstream:
        return Reason.RESIDENCY
    return Undecided.FAIL_OPEN if attempts else Undecided.NONE


def _ending(status: int, flags: pb.ResponseFlags, verdict: str | None) -> Ending:
    if status == 0 or any(getattr(flags, name) for name in _CLIENT_LEFT):
        return Ending.CANCELLED
    if verdict == VerdictWord.HUMAN:
        return Ending.HUMAN
    if status != 200 or any(getattr(flags, name) for name in _CUT):
        return Ending.FAILED
    return Ending.DEGRADED if verdict in _REJECTED_AND_SERVED else Ending.ACCEPTED


def _envoys_usage(metadata: pb.Metadata) -> Usage | None:
    """Return the tokens that Envoy read from the answer. None if it read none, or not all of them."""
    if Namespace.USAGE not in metadata.typed_filter_metadata:
        return None
    try:
        usage = ai.TokenUsage.FromString(metadata.typed_filter_metadata[Namespace.USAGE].value)
    except DecodeError:
        return None
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


def _decision(metadata: pb.Metadata) -> DecisionRecord:
    """Read the part of the decision that the ledger keeps. Without a decision, every value is "" or None."""
    if Namespace.DECISION not in metadata.filter_metadata:  # reading an absent key of a protobuf map would add it
        return DecisionRecord.from_metadata({})
    fields = metadata.filter_metadata[Namespace.DECISION].fields
    return DecisionRecord.from_metadata({key: fields[key].string_value for key in _DECISION_KEYS if key in fields})


def _ledger(metadata: pb.Metadata) -> LedgerRecord:
    if Namespace.LEDGER not in metadata.filter_metadata:
        return LedgerRecord()
    fields = metadata.filter_metadata[Namespace.LEDGER].fields
    return LedgerRecord.from_metadata({key: _value(value) for key, value in fields.items()})


def _value(value: Value) -> Any:
    """Return a scalar, or the members of an object. A list and a null become None.

    protobuf's own conversion (`json_format`) raises an error for NaN and infinity. The record ignores them.
    """
    kind = value.WhichOneof("kind")
    if kind == "struct_value":
        return {name: _value(member) for name, member in value.struct_value.fields.items()}
    return getattr(value, kind) if kind in ("string_value", "number_value", "bool_value") else None


def _seconds(common: pb.AccessLogCommon, name: str) -> float | None:
    duration = getattr(common, name)
    return duration.ToNanoseconds() / 1e9 if common.HasField(name) else None
