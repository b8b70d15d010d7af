"""Envoy's gRPC access log -> outcomes.

An entry is written when an exchange is over. Its metadata holds the decision, what the verifier said of each
attempt it judged, and the tokens that Envoy itself read from the answer that it passed on; where Envoy read none,
the verifier's reading of that answer stands, and where neither did, the usage is unknown.
"""

import re
from collections.abc import Iterator
from typing import Any

from google.protobuf.message import DecodeError
from google.protobuf.struct_pb2 import Value

from extproc.accounting.outcome import Ending, Outcome, Rejection
from extproc.api.observation import Usage
from extproc.api.request import APIS
from extproc.contract.names import Key, Namespace
from extproc.contract.records import AttemptRecord, DecisionRecord, LedgerRecord
from extproc.contract.words import Undecided, VerdictWord
from extproc.pb import access_log_pb2 as pb
from extproc.pb import token_usage_pb2 as ai

# Served under Envoy's name, as ext_proc is.
SERVICE, METHOD = "envoy.service.accesslog.v3.AccessLogService", "StreamAccessLogs"

# Envoy makes one; where it is told to keep the client's, that may be anything.
_REQUEST_ID = re.compile(r"[0-9A-Za-z-]{1,64}")
_API_NAMES = frozenset(APIS.values())
_KEPT = (Key.REASON, Key.COHORT, Key.REVISION, Key.MODE)
_CLIENT_LEFT = ("downstream_connection_termination", "downstream_remote_reset", "downstream_protocol_error")
_CUT = (
    "upstream_request_timeout", "local_reset", "upstream_remote_reset", "upstream_connection_termination",
    "stream_idle_timeout", "upstream_max_stream_duration_reached", "duration_timeout", "upstream_protocol_error",
)  # fmt: skip
# The verifier's words for an answer that a client got all the same: out of bounds, already under way, or a climb
# that it ordered and Envoy refused.
_REJECTED_AND_SERVED = (VerdictWord.DEGRADED, VerdictWord.RECORDED, VerdictWord.ESCALATE)


def read_outcomes(message: bytes) -> Iterator[Outcome]:
    """Read a batch, outcome by outcome; what is no exchange with one of our APIs is left out. Raises ValueError."""
    try:
        batch = pb.StreamAccessLogsMessage.FromString(message)
    except DecodeError as error:
        raise ValueError(f"not an access log of Envoy's: {error}") from error
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
        reason=decision.reason or (Undecided.FAIL_OPEN if attempts else Undecided.NONE),
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
        revision=decision.revision or None,
        mode=decision.mode or None,
        duration_s=_seconds(common, "duration"),
        first_byte_s=_seconds(common, "time_to_first_downstream_tx_byte"),
    )


def _ending(status: int, flags: pb.ResponseFlags, verdict: str | None) -> Ending:
    if status == 0 or any(getattr(flags, name) for name in _CLIENT_LEFT):
        return Ending.CANCELLED
    if verdict == VerdictWord.HUMAN:
        return Ending.HUMAN
    if status != 200 or any(getattr(flags, name) for name in _CUT):
        return Ending.FAILED
    return Ending.DEGRADED if verdict in _REJECTED_AND_SERVED else Ending.ACCEPTED


def _envoys_usage(metadata: pb.Metadata) -> Usage | None:
    """What Envoy read from the answer; None too where it says that its reading is not complete."""
    if Namespace.USAGE not in metadata.typed_filter_metadata:
        return None
    try:
        told = ai.TokenUsage.FromString(metadata.typed_filter_metadata[Namespace.USAGE].value)
    except DecodeError:
        return None
    whole = told.HasField("input_tokens") and told.HasField("output_tokens")
    if not whole or told.extraction_status != ai.TokenUsage.COMPLETE:
        return None
    details = told.input_token_details
    cached = details.cached_tokens.value if details.HasField("cached_tokens") else None
    return Usage(told.input_tokens.value, told.output_tokens.value, cached)


def _usage(attempt: AttemptRecord) -> Usage | None:
    if attempt.input is None or attempt.output is None:
        return None
    return Usage(attempt.input, attempt.output, attempt.cached)


def _decision(metadata: pb.Metadata) -> DecisionRecord:
    """What the ledger keeps of the record, which has more; all of it is "" or None where there is no decision."""
    if Namespace.DECISION not in metadata.filter_metadata:  # a look at a map's absent key would make it
        return DecisionRecord.from_metadata({})
    fields = metadata.filter_metadata[Namespace.DECISION].fields
    return DecisionRecord.from_metadata({key: fields[key].string_value for key in _KEPT if key in fields})


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
