"""Envoy's gRPC access log -> outcomes.

An entry is written when an exchange is over. Its metadata holds the decision, what the verifier said of each
attempt it judged, and the tokens that Envoy itself read from the answer that it passed on; where Envoy read none,
the verifier's reading of that answer stands, and where neither did, the usage is unknown.
"""

import re
from collections.abc import Iterator
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import DecodeError

from extproc.accounting.outcome import Ending, Outcome, Rejection
from extproc.api.observation import Usage
from extproc.api.request import APIS
from extproc.contract import LEDGER, METADATA, TIER_TAG, USAGE
from extproc.pb import access_log_pb2 as pb
from extproc.pb import token_usage_pb2 as ai

# Served under Envoy's name, as ext_proc is.
SERVICE, METHOD = "envoy.service.accesslog.v3.AccessLogService", "StreamAccessLogs"

# Envoy makes one; where it is told to keep the client's, that may be anything.
_REQUEST_ID = re.compile(r"[0-9A-Za-z-]{1,64}")
_API_NAMES = frozenset(APIS.values())
_KEPT = ("reason", "cohort", "revision", "mode")
_CLIENT_LEFT = ("downstream_connection_termination", "downstream_remote_reset", "downstream_protocol_error")
_CUT = (
    "upstream_request_timeout", "local_reset", "upstream_remote_reset", "upstream_connection_termination",
    "stream_idle_timeout", "upstream_max_stream_duration_reached", "duration_timeout", "upstream_protocol_error",
)  # fmt: skip
# The verifier's words for an answer that a client got all the same: out of bounds, already under way, or a climb
# that it ordered and Envoy refused.
_REJECTED_AND_SERVED = ("degraded", "recorded", "escalate")


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
    decision, ledger = _decision(common.metadata), _plain(common.metadata, LEDGER)
    attempts = common.upstream_request_attempt_count
    judgements = {number: ledger[str(number)] for number in range(1, attempts + 1) if str(number) in ledger}
    last = judgements.pop(attempts, {})
    usage, source = _envoys_usage(common.metadata), "envoy"
    if usage is None:
        usage, source = _usage(last), "verifier"
    status = entry.response.response_code.value
    return Outcome(
        time=common.start_time.ToNanoseconds() / 1e9,
        api=common.route_name,
        ending=_ending(status, common.response_flags, last.get("verdict")),
        status=status,
        attempts=attempts,
        reason=decision.get("reason", "fail_open" if attempts else "none"),
        judged="verdict" in last,
        cohort=decision.get("cohort"),
        tier=common.custom_tags.get(TIER_TAG) or last.get("tier"),
        rejections=tuple(
            Rejection(number, said.get("tier"), said.get("reason", ""), _usage(said))
            for number, said in judgements.items()
        ),
        usage=usage,
        usage_from=source if usage is not None else None,  # type: ignore[arg-type]  # one of its two words
        request=entry.request.request_id if _REQUEST_ID.fullmatch(entry.request.request_id) else None,
        principal=ledger.get("principal"),
        session=ledger.get("session"),
        revision=decision.get("revision"),
        mode=decision.get("mode"),
        duration_s=_seconds(common, "duration"),
        first_byte_s=_seconds(common, "time_to_first_downstream_tx_byte"),
    )


def _ending(status: int, flags: pb.ResponseFlags, verdict: str | None) -> Ending:
    if status == 0 or any(getattr(flags, name) for name in _CLIENT_LEFT):
        return "cancelled"
    if verdict == "human":
        return "human"
    if status != 200 or any(getattr(flags, name) for name in _CUT):
        return "failed"
    return "degraded" if verdict in _REJECTED_AND_SERVED else "accepted"


def _envoys_usage(metadata: pb.Metadata) -> Usage | None:
    """What Envoy read from the answer; None too where it says that its reading is not complete."""
    if USAGE not in metadata.typed_filter_metadata:
        return None
    try:
        told = ai.TokenUsage.FromString(metadata.typed_filter_metadata[USAGE].value)
    except DecodeError:
        return None
    whole = told.HasField("input_tokens") and told.HasField("output_tokens")
    if not whole or told.extraction_status != ai.TokenUsage.COMPLETE:
        return None
    details = told.input_token_details
    cached = details.cached_tokens.value if details.HasField("cached_tokens") else None
    return Usage(told.input_tokens.value, told.output_tokens.value, cached)


def _usage(said: dict[str, Any]) -> Usage | None:
    if "input" not in said or "output" not in said:
        return None
    return Usage(int(said["input"]), int(said["output"]), int(said["cached"]) if "cached" in said else None)


def _decision(metadata: pb.Metadata) -> dict[str, str]:
    """What the ledger keeps of the record, which has more; nothing where there is none."""
    if METADATA not in metadata.filter_metadata:
        return {}
    record = metadata.filter_metadata[METADATA].fields
    told = ((name, record[name].string_value) for name in _KEPT if name in record)
    return {name: word for name, word in told if word}


def _plain(metadata: pb.Metadata, namespace: str) -> dict[str, Any]:
    if namespace not in metadata.filter_metadata:  # a look at a map's absent key would make it
        return {}
    return MessageToDict(metadata.filter_metadata[namespace])


def _seconds(common: pb.AccessLogCommon, name: str) -> float | None:
    duration = getattr(common, name)
    return duration.ToNanoseconds() / 1e9 if common.HasField(name) else None
