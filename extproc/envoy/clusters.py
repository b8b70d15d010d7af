"""The clusters: our own server, the collector, and one for each tier with what runs on every attempt at it."""

from extproc.config import Config
from extproc.contract import ANSWER, FACTS, LADDER, LEDGER, METADATA, RUNGS, TIER_ATTRIBUTE
from extproc.envoy.tls import ClientTls, host_name, transport_socket
from extproc.envoy.words import (
    BUFFER_BYTES,
    Dict,
    address,
    filter_entry,
    metadata_predicate,
    skipped,
    strip_headers,
    typed,
)
from extproc.settings import Tier

# Where Debian, Alpine and Envoy's own images keep the public certificate authorities.
_CA_FILE = "/etc/ssl/certs/ca-certificates.crt"
# The second priority of every tier: nobody listens there. Envoy does not climb over a tier without hosts (a service
# scaled to zero), but it does over a refused connection. A tier that has hosts sends nothing there, as long as
# nothing marks them unhealthy: tiers have no health checks and no outlier detection.
_REFUSES = "127.0.0.1:1"


def extproc_cluster(endpoints: list[str], tls: ClientTls | None = None) -> Dict:
    return {
        # A server that stalls for seconds keeps its connection, and with it the streams that it holds: only a lost
        # connection loses them. That it answers nothing meanwhile is the health check's to see.
        **grpc_cluster("extproc", endpoints, {"interval": "1s", "timeout": "5s"}),
        **(transport_socket(tls, endpoints) if tls is not None else {}),
        # Buffered bodies of many exchanges share one connection: the larger buffer is required.
        "per_connection_buffer_limit_bytes": BUFFER_BYTES,
        "lb_policy": "LEAST_REQUEST",
        "circuit_breakers": {
            "thresholds": [{"max_requests": 20000, "max_pending_requests": 20000, "max_retries": 1000}]
        },
        # A dead or stuck server costs its message time-outs only until these see it.
        "outlier_detection": {
            "split_external_local_origin_errors": True,
            "consecutive_local_origin_failure": 1,
            "enforcing_consecutive_local_origin_failure": 100,
            "interval": "0.2s",
            "base_ejection_time": "2s",
            "max_ejection_percent": 100,
        },
        "health_checks": [
            {
                "timeout": "0.5s",
                "interval": "1s",
                "no_traffic_interval": "1s",
                "unhealthy_threshold": 2,
                "healthy_threshold": 1,
                "grpc_health_check": {},
            }
        ],
        # With every server out, fail open at once instead of trying the dead.
        "common_lb_config": {"healthy_panic_threshold": {"value": 0}},
    }


def grpc_cluster(name: str, endpoints: list[str], keepalive: Dict) -> Dict:
    http2 = {"connection_keepalive": keepalive}
    return {
        "name": name,
        **_discovery(endpoints),
        "connect_timeout": "0.25s",
        "typed_extension_protocol_options": _protocol({"http2_protocol_options": http2}),
        "load_assignment": _endpoints(name, endpoints),
    }


def tier_cluster(tier: Tier, config: Config) -> Dict:
    name = tier.cluster_name
    cluster: Dict = {
        "name": name,
        **_discovery([tier.endpoint]),
        "connect_timeout": "1s",
        "circuit_breakers": {
            "thresholds": [
                {
                    "max_requests": 4096,
                    "max_pending_requests": 4096,
                    "max_connections": 4096,
                    # The most of this tier's traffic that may climb, failures and rejections together.
                    "retry_budget": {"budget_percent": {"value": 50}, "min_retry_concurrency": 50},
                }
            ]
        },
        "typed_extension_protocol_options": _protocol(
            {"http_protocol_options": {}}, _upstream_filters(tier, config)
        ),
        "load_assignment": _endpoints(name, [tier.endpoint], [_REFUSES], metadata={METADATA: {"tier": tier.name}}),
    }
    if tier.tls:
        host = tier.endpoint.rpartition(":")[0]
        tls = typed(
            "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
            sni=host,
            auto_sni_san_validation=True,
            common_tls_context={"validation_context": {"trusted_ca": {"filename": _CA_FILE}}},
        )
        cluster["transport_socket"] = {"name": "envoy.transport_sockets.tls", "typed_config": tls}
    return cluster


def _upstream_filters(tier: Tier, config: Config) -> list[Dict]:
    """What runs for every attempt at this tier; all of it is skipped, at no cost, unless the decision wants it."""
    first = {
        "single_predicate": {
            "input": {
                "name": "attempt",
                "typed_config": typed(
                    "envoy.type.matcher.v3.HttpRequestHeaderMatchInput", header_name="x-envoy-attempt-count"
                ),
            },
            "value_match": {"exact": "1"},
        }
    }
    lua = typed("envoy.extensions.filters.http.lua.v3.Lua", default_source_code={"inline_string": _RUNG_BODY})
    believed = typed(
        "envoy.extensions.filters.http.header_mutation.v3.HeaderMutation",
        mutations={"response_mutations": [strip_headers("x-router-"), strip_headers("x-cascade-")]},
    )
    filters = [filter_entry("rung_body", skipped(first, "envoy.filters.http.lua", lua))]
    for mode, body_mode in (("body", "BUFFERED"), ("stream", "STREAMED")):
        other = metadata_predicate(["judge", tier.name], {"string_match": {"exact": mode}}, invert=True)
        verifier = _verifier(config, body_mode)
        filters.append(filter_entry(f"verifier_{mode}", skipped(other, "envoy.filters.http.ext_proc", verifier)))
    if tier.credential:
        filters += _own_credential(tier)
    # Behind the verifiers, as answers pass in reverse: a tier cannot forge a verdict on itself. Not under the name
    # of the listener's filter: that one's settings per route would hold here, too.
    filters.append(filter_entry("upstream_claims", believed))
    codec = typed("envoy.extensions.filters.http.upstream_codec.v3.UpstreamCodec")
    filters.append(filter_entry("envoy.filters.http.upstream_codec", codec))
    return filters


def _own_credential(tier: Tier) -> list[Dict]:
    """The client's keys are not this tier's to see; its own comes from a file."""
    stripped = typed(
        "envoy.extensions.filters.http.header_mutation.v3.HeaderMutation",
        mutations={"request_mutations": [{"remove": "authorization"}, {"remove": "x-api-key"}]},
    )
    source = typed(
        "envoy.extensions.http.injected_credentials.generic.v3.Generic",
        credential={"name": f"{tier.name}_credential"},
        header="authorization",
    )
    injector = typed(
        "envoy.extensions.filters.http.credential_injector.v3.CredentialInjector",
        overwrite=True,
        credential={"name": "envoy.http.injected_credentials.generic", "typed_config": source},
    )
    return [
        filter_entry("strip_credentials", stripped),
        filter_entry("envoy.filters.http.credential_injector", injector),
    ]


# From the second attempt on, the body of the first is patched into that of the rung; backwards, so that places
# stay where they are. A rung that a verdict has jumped has no attempt; the one it saved is the last rung's, again.
_RUNG_BODY = f"""
function envoy_on_request(handle)
  local metadata = handle:streamInfo():dynamicMetadata()
  local rungs = metadata:get("{RUNGS}")
  if rungs == nil or rungs["attempts"] == nil then return end
  local attempt = tonumber(handle:headers():get("x-envoy-attempt-count")) or 1
  local skipped = metadata:get("{METADATA}")["skipped"] or 0
  local patches = rungs["attempts"][math.min(attempt - 1 + skipped, #rungs["attempts"])]
  if patches == nil then return end
  local body = handle:body()
  if body == nil then return end
  local text = body:getBytes(0, body:length())
  for i = #patches, 1, -1 do
    local patch = patches[i]
    text = text:sub(1, patch["at"]) .. patch["text"] .. text:sub(patch["at"] + patch["length"] + 1)
  end
  body:setBytes(text)
end
"""


def _verifier(config: Config, body_mode: str) -> Dict:
    """Of whole answers one message; of streams each chunk, which Envoy keeps until we have replied to it.

    So a server that dies while it holds an answer loses none of it. A held stream's headers wait for as long as its
    first words take: no longer than the attempt; a server that is gone is seen long before, by its connection.
    """
    streamed = body_mode == "STREAMED"
    judges_s = max([2.0, *(judge.timeout_ms / 1000 + 1 for judge in config.policy.judges.values())])
    timeout_s = config.policy.timeouts.attempt_s if streamed else judges_s
    return typed(
        "envoy.extensions.filters.http.ext_proc.v3.ExternalProcessor",
        stat_prefix="verifier",
        grpc_service={
            "envoy_grpc": {"cluster_name": "extproc"},
            "initial_metadata": [{"key": "x-role", "value": "verifier"}],
        },
        failure_mode_allow=True,  # without a verifier, answers pass unjudged
        message_timeout=f"{timeout_s:g}s",
        processing_mode={
            "request_header_mode": "SKIP",
            "request_body_mode": "NONE",
            "response_header_mode": "SEND",
            "response_body_mode": body_mode,
            **({"response_trailer_mode": "SEND"} if streamed else {}),
        },
        **({"send_body_without_waiting_for_header_response": True} if streamed else {}),
        response_attributes=[
            "upstream.request_attempt_count",
            TIER_ATTRIBUTE,
            *(f"request.headers['{name}']" for name in config.policy.escalations.principal),
        ],
        mutation_rules={
            "disallow_all": True,
            "allow_expression": {"regex": "^(x-cascade-(verdict|reason)|content-(length|type))$"},
        },
        metadata_options={
            "forwarding_namespaces": {"untyped": [METADATA, FACTS]},
            "receiving_namespaces": {"untyped": [METADATA, LADDER, ANSWER, LEDGER]},
        },
    )


def _protocol(explicit: Dict, filters: list[Dict] | None = None) -> Dict:
    name = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    return {name: typed(name, explicit_http_config=explicit, **({"http_filters": filters} if filters else {}))}


def _discovery(endpoints: list[str]) -> Dict:
    named = any(host_name(e) for e in endpoints)
    return {"type": "STRICT_DNS", "dns_lookup_family": "V4_PREFERRED"} if named else {"type": "STATIC"}


def _endpoints(name: str, *priorities: list[str], metadata: Dict | None = None) -> Dict:
    said = {"metadata": {"filter_metadata": metadata}} if metadata is not None else {}
    return {
        "cluster_name": name,
        "endpoints": [
            {
                "priority": priority,
                "lb_endpoints": [
                    {"endpoint": {"address": address(e), "hostname": e.rpartition(":")[0]}, **said}
                    for e in endpoints
                ],
            }
            for priority, endpoints in enumerate(priorities)
        ],
    }
