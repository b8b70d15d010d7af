"""The access logs: the decision log on stdout, and the entries for the ledger, which go to the ext_proc server."""

from extproc.contract.names import DECISION_LOG, TRACEPARENT, HeaderName, Key, Namespace
from extproc.envoy.builders import ATTEMPTS, SERVED_BY, Dict, from_metadata, typed
from extproc.envoy.filters import ROUTER_FILTER
from extproc.envoy.tier_filters import CLIENT_PATH

# Envoy sends the ledger's entries in batches, after this many seconds or this many bytes. While no server runs, it
# buffers up to this many bytes. An entry has about 1.5 KB.
_LOG_FLUSH_S, _LOG_BYTES = 1, 1024 * 1024


def decision_log() -> Dict:
    """Return the decision log, one JSON line for each exchange: see docs/decision-log.schema.json."""
    line = {
        "version": DECISION_LOG,
        "time": "%START_TIME%",
        "path": CLIENT_PATH,
        "status": "%RESPONSE_CODE%",
        "flags": "%RESPONSE_FLAGS%",
        "details": "%RESPONSE_CODE_DETAILS%",
        "cluster": "%UPSTREAM_CLUSTER%",
        "attempts": ATTEMPTS,
        "tier": SERVED_BY,
        "verdict": f"%RESP({HeaderName.VERDICT})%",
        "duration_ms": "%DURATION%",
        "request_id": "%REQ(X-REQUEST-ID)%",
        "principal": from_metadata(Key.PRINCIPAL, Namespace.LEDGER),
        "session": from_metadata(Key.SESSION, Namespace.LEDGER),
        "decision": f"%DYNAMIC_METADATA({Namespace.DECISION})%",
        "router_us": f"%FILTER_STATE({ROUTER_FILTER}:FIELD:request_body_max_latency_us)%",
    }
    return {
        "name": "envoy.access_loggers.stdout",
        "typed_config": typed(
            "envoy.extensions.access_loggers.stream.v3.StdoutAccessLog",
            log_format={"json_format": line},
        ),
    }


def ledger_log() -> Dict:
    """Return the log for the ledger. Envoy sends entries with their metadata, after the answers, in batches."""
    tier = {
        "tag": Key.TIER,
        "metadata": {
            "kind": {"host": {}},
            "metadata_key": {"key": Namespace.DECISION, "path": [{"key": Key.TIER}]},
        },
    }
    return {
        "name": "envoy.access_loggers.http_grpc",
        "typed_config": typed(
            "envoy.extensions.access_loggers.grpc.v3.HttpGrpcAccessLogConfig",
            common_config={
                "log_name": "ledger",
                "transport_api_version": "V3",
                "grpc_service": {"envoy_grpc": {"cluster_name": "extproc"}},
                "buffer_flush_interval": f"{_LOG_FLUSH_S}s",
                "buffer_size_bytes": _LOG_BYTES,
                "custom_tags": [tier, {"tag": TRACEPARENT, "request_header": {"name": TRACEPARENT}}],
            },
        ),
    }
