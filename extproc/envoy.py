"""Tiers -> a complete Envoy bootstrap: what `extproc envoy` prints.

The request path, in the order of the filters: what a client may send (size) -> our server, one message (the
body) -> the buffer filter, which holds the headers until our edit is whole -> the fail-open model name, skipped
when there is a decision -> contract headers from the decision's metadata -> the router, whose cluster comes from
the metadata too. Filters are off by default and switched on by the routes of the four LLM paths; every other
path streams through to the default tier.
"""

from typing import Any

import yaml

from extproc.config import Config
from extproc.exchange import CLUSTER_HEADER, LADDER, MAX_BODY_BYTES, METADATA
from extproc.policy import Tier
from extproc.request import APIS

# A body grows when a longer model name is written: the limits behind ours leave room for that.
_ROOM_BYTES = 1024 * 1024
# Envoy waits this much longer than the router's own deadline, so that the router's fallback arrives first.
_GRACE_S = 0.2
# Where Debian, Alpine and Envoy's own images keep the public certificate authorities.
_CA_FILE = "/etc/ssl/certs/ca-certificates.crt"
_FAILOPEN = "failopen_model"
_ROUTER = "envoy.filters.http.ext_proc.router"

Dict = dict[str, Any]


def render_envoy(config: Config, listen: str, extproc: list[str], admin: str | None, otlp: str | None) -> str:
    """Return the bootstrap as YAML. Addresses are "host:port"; several ext_proc endpoints share the load."""
    trusted = sorted({h for rule in config.policy.rules for h in rule.when.headers or {}})
    bootstrap: Dict = {
        "static_resources": {
            "listeners": [_listener(config, listen, trusted, otlp)],
            "clusters": [
                _extproc_cluster(extproc),
                *map(_tier_cluster, config.policy.tiers),
                *([_grpc_cluster("otlp", [otlp])] if otlp is not None else []),
            ],
        }
    }
    if admin is not None:
        bootstrap = {"admin": {"address": _address(admin)}, **bootstrap}
    header = (
        f"# Rendered by `extproc envoy` from revision {config.revision}; render again after a change of tiers.\n"
    )
    return header + yaml.dump(bootstrap, Dumper=_PlainDumper, sort_keys=False, width=120)


class _PlainDumper(yaml.SafeDumper):
    """No anchors: every part can be read where it stands."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


# --- listener -------------------------------------------------------------------------------------------


def _listener(config: Config, listen: str, trusted: list[str], otlp: str | None) -> Dict:
    manager = _typed(
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix="llm",
        stream_idle_timeout="300s",
        **({"tracing": _tracing()} if otlp is not None else {}),
        # Clients can set none of the contract's headers: gone before the first route match.
        early_header_mutation_extensions=[
            {
                "name": "envoy.http.early_header_mutation.header_mutation",
                "typed_config": _typed(
                    "envoy.extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation",
                    mutations=[_strip(prefix) for prefix in ("x-router-", "x-cascade-", "x-envoy-")],
                ),
            }
        ],
        access_log=[_access_log()],
        route_config={"virtual_hosts": [_virtual_host(config)]},
        http_filters=_http_filters(config, trusted),
    )
    name = "envoy.filters.network.http_connection_manager"
    return {
        "name": "llm",
        "address": _address(listen),
        "filter_chains": [{"filters": [{"name": name, "typed_config": manager}]}],
    }


def _virtual_host(config: Config) -> Dict:
    default = next(t for t in config.policy.tiers if t.name == config.policy.default_tier)
    specifier = _typed(
        "envoy.extensions.router.cluster_specifiers.priority_group.v3.PriorityGroupClusterSpecifier",
        override_metadata_namespace=LADDER,
        # Without a decision: the default tier.
        priority_groups=[{"name": default.name, "clusters": [{"cluster_name": default.cluster_name, "weight": 1}]}],
    )
    route = {
        "timeout": "300s",
        "auto_host_rewrite": True,  # providers answer to their own name only
        "inline_cluster_specifier_plugin": {
            "extension": {
                "name": "envoy.router.cluster_specifier_plugin.priority_group",
                "typed_config": specifier,
            }
        },
    }
    routes: list[Dict] = [
        {
            "name": api,
            "match": {"path": path},
            "route": route,
            "typed_per_filter_config": _switched_on(default),
        }
        for path, api in APIS.items()
    ]
    rest = {"cluster": default.cluster_name, "timeout": "0s"}
    routes.append({"name": "rest", "match": {"prefix": "/"}, "route": rest})
    return {
        "name": "llm",
        "domains": ["*"],
        "request_body_buffer_limit": MAX_BODY_BYTES + _ROOM_BYTES,
        "routes": routes,
    }


def _switched_on(default: Tier) -> Dict:
    """What the LLM routes switch on: the filters that are off in the chain."""
    transform = _typed(
        "envoy.extensions.filters.http.transform.v3.TransformConfig",
        request_transformation={
            "body_transformation": {
                "action": "MERGE",
                "body_format": {"json_format": {"model": default.model.replace("%", "%%")}},
            }
        },
    )
    per_route = {
        "envoy.filters.http.body_size_limit": {},
        _ROUTER: _typed("envoy.extensions.filters.http.ext_proc.v3.ExtProcPerRoute", overrides={}),
        "envoy.filters.http.buffer": _typed(
            "envoy.extensions.filters.http.buffer.v3.BufferPerRoute",
            buffer={"max_request_bytes": MAX_BODY_BYTES + _ROOM_BYTES},
        ),
        _FAILOPEN: transform,
        # Where the decision's own reason is missing: visible, too.
        "envoy.filters.http.header_mutation": _typed(
            "envoy.extensions.filters.http.header_mutation.v3.HeaderMutationPerRoute",
            mutations={"response_mutations": [_set("x-router-reason", "fail_open", "ADD_IF_ABSENT")]},
        ),
    }
    return {
        name: value
        if name == "envoy.filters.http.header_mutation"
        else _typed("envoy.config.route.v3.FilterConfig", config=value)
        for name, value in per_route.items()
    }


def _http_filters(config: Config, trusted: list[str]) -> list[Dict]:
    return [
        _filter(
            "envoy.filters.http.body_size_limit",
            _typed(
                "envoy.extensions.filters.http.body_size_limit.v3.BodySizeLimit",
                max_request_bytes=MAX_BODY_BYTES,
            ),
            disabled=True,
        ),
        _filter(_ROUTER, _ext_proc(config, trusted), disabled=True),
        _filter(
            "envoy.filters.http.buffer",
            _typed(
                "envoy.extensions.filters.http.buffer.v3.Buffer",
                max_request_bytes=MAX_BODY_BYTES + _ROOM_BYTES,
            ),
            disabled=True,
        ),
        _filter(_FAILOPEN, _unless_decided("envoy.filters.http.transform"), disabled=True),
        _filter("envoy.filters.http.header_mutation", _contract_headers()),
        _filter("envoy.filters.http.router", _typed("envoy.extensions.filters.http.router.v3.Router")),
    ]


def _ext_proc(config: Config, trusted: list[str]) -> Dict:
    asked = ["content-type", "content-encoding", *trusted]
    timeout = config.policy.encoder.deadline_ms / 1000 + _GRACE_S
    return _typed(
        "envoy.extensions.filters.http.ext_proc.v3.ExternalProcessor",
        stat_prefix="router",
        grpc_service={
            "envoy_grpc": {"cluster_name": "extproc"},
            "initial_metadata": [{"key": "x-role", "value": "router"}],
            "retry_policy": {
                "retry_on": "connect-failure,refused-stream,reset",
                "num_retries": 1,
                "retry_back_off": {"base_interval": "0.002s", "max_interval": "0.004s"},
            },
        },
        failure_mode_allow=True,
        message_timeout=f"{timeout:.3f}s",
        # One message: the body. The path and the few headers that matter ride along as attributes.
        processing_mode={
            "request_header_mode": "SKIP",
            "request_body_mode": "BUFFERED",
            "response_header_mode": "SKIP",
        },
        request_attributes=[
            "request.path",
            "request.method",
            "request.id",
            *(f"request.headers['{name}']" for name in asked),
        ],
        # The metadata counts only if the route is chosen again, and that only with a header mutation.
        route_cache_action="CLEAR",
        mutation_rules={
            "disallow_all": True,
            "allow_expression": {"regex": f"^{CLUSTER_HEADER}$"},
        },
        metadata_options={"receiving_namespaces": {"untyped": [METADATA, LADDER]}},
    )


def _unless_decided(name: str) -> Dict:
    """Wrap a filter so that it is skipped when the decision's metadata is there."""
    decided = _typed(
        "envoy.extensions.matching.common_inputs.network.v3.DynamicMetadataInput",
        filter=METADATA,
        path=[{"key": "cluster"}],
    )
    present = _typed(
        "envoy.extensions.matching.input_matchers.metadata.v3.Metadata",
        value={"present_match": True},
    )
    predicate = {
        "single_predicate": {
            "input": {"name": "decided", "typed_config": decided},
            "custom_match": {"name": "present", "typed_config": present},
        }
    }
    skip = _typed("envoy.extensions.filters.common.matcher.action.v3.SkipFilter")
    on_match = {"action": {"name": "skip", "typed_config": skip}}
    return _typed(
        "envoy.extensions.common.matching.v3.ExtensionWithMatcher",
        xds_matcher={"matcher_list": {"matchers": [{"predicate": predicate, "on_match": on_match}]}},
        extension_config={
            "name": name,
            "typed_config": _typed("envoy.extensions.filters.http.transform.v3.TransformConfig"),
        },
    )


def _contract_headers() -> Dict:
    """Headers from the decision's metadata; where it is absent they are left out."""
    response = {"x-router-cohort": "cohort", "x-router-tier": "tier", "x-router-reason": "reason"}
    return _typed(
        "envoy.extensions.filters.http.header_mutation.v3.HeaderMutation",
        mutations={
            "request_mutations": [_set(CLUSTER_HEADER, f"%DYNAMIC_METADATA({METADATA}:cluster)%")],
            "response_mutations": [
                _strip("x-router-"),  # what an upstream says under our names is not believed
                *(_set(h, f"%DYNAMIC_METADATA({METADATA}:{key})%") for h, key in response.items()),
            ],
        },
    )


def _access_log() -> Dict:
    line = {
        "time": "%START_TIME%",
        "path": "%REQ(:PATH)%",
        "status": "%RESPONSE_CODE%",
        "flags": "%RESPONSE_FLAGS%",
        "details": "%RESPONSE_CODE_DETAILS%",
        "cluster": "%UPSTREAM_CLUSTER%",
        "duration_ms": "%DURATION%",
        "request_id": "%REQ(X-REQUEST-ID)%",
        "decision": f"%DYNAMIC_METADATA({METADATA})%",
        "router_us": f"%FILTER_STATE({_ROUTER}:FIELD:request_body_max_latency_us)%",
    }
    return {
        "name": "envoy.access_loggers.stdout",
        "typed_config": _typed(
            "envoy.extensions.access_loggers.stream.v3.StdoutAccessLog",
            log_format={"json_format": line},
        ),
    }


def _tracing() -> Dict:
    tags = [
        {
            "tag": f"{METADATA}.{key}",
            "metadata": {
                "kind": {"request": {}},
                "metadata_key": {"key": METADATA, "path": [{"key": key}]},
            },
        }
        for key in ("cohort", "tier", "reason")
    ]
    return {
        "spawn_upstream_span": True,
        "custom_tags": tags,
        "provider": {
            "name": "envoy.tracers.opentelemetry",
            "typed_config": _typed(
                "envoy.config.trace.v3.OpenTelemetryConfig",
                grpc_service={"envoy_grpc": {"cluster_name": "otlp"}, "timeout": "1s"},
                service_name="envoy",
            ),
        },
    }


# --- clusters -------------------------------------------------------------------------------------------


def _extproc_cluster(endpoints: list[str]) -> Dict:
    return {
        **_grpc_cluster("extproc", endpoints, keepalive="1s"),
        # Buffered bodies of many exchanges share one connection: the larger buffer is required.
        "per_connection_buffer_limit_bytes": 64 * 1024 * 1024,
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


def _grpc_cluster(name: str, endpoints: list[str], keepalive: str = "30s") -> Dict:
    http2 = {"connection_keepalive": {"interval": keepalive, "timeout": "1s"}}
    return {
        "name": name,
        **_discovery(endpoints),
        "connect_timeout": "0.25s",
        "typed_extension_protocol_options": _protocol({"http2_protocol_options": http2}),
        "load_assignment": _endpoints(name, endpoints),
    }


def _tier_cluster(tier: Tier) -> Dict:
    name = tier.cluster_name
    cluster: Dict = {
        "name": name,
        **_discovery([tier.endpoint]),
        "connect_timeout": "1s",
        "circuit_breakers": {
            "thresholds": [{"max_requests": 4096, "max_pending_requests": 4096, "max_connections": 4096}]
        },
        "typed_extension_protocol_options": _protocol({"http_protocol_options": {}}),
        "load_assignment": _endpoints(name, [tier.endpoint]),
    }
    if tier.tls:
        host = tier.endpoint.rpartition(":")[0]
        tls = _typed(
            "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
            sni=host,
            auto_sni_san_validation=True,
            common_tls_context={"validation_context": {"trusted_ca": {"filename": _CA_FILE}}},
        )
        cluster["transport_socket"] = {"name": "envoy.transport_sockets.tls", "typed_config": tls}
    return cluster


def _protocol(explicit: Dict) -> Dict:
    name = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    return {name: _typed(name, explicit_http_config=explicit)}


def _discovery(endpoints: list[str]) -> Dict:
    literal = all(e.rpartition(":")[0].replace(".", "").isdecimal() for e in endpoints)
    return {"type": "STATIC"} if literal else {"type": "STRICT_DNS", "dns_lookup_family": "V4_PREFERRED"}


def _endpoints(name: str, endpoints: list[str]) -> Dict:
    return {
        "cluster_name": name,
        "endpoints": [
            {
                "lb_endpoints": [
                    {"endpoint": {"address": _address(e), "hostname": e.rpartition(":")[0]}} for e in endpoints
                ]
            }
        ],
    }


# --- words of Envoy's -----------------------------------------------------------------------------------


def _address(host_port: str) -> Dict:
    host, _, port = host_port.rpartition(":")
    return {"socket_address": {"address": host, "port_value": int(port)}}


def _filter(name: str, config: Dict, disabled: bool = False) -> Dict:
    return {"name": name, **({"disabled": True} if disabled else {}), "typed_config": config}


def _typed(name: str, **fields: Any) -> Dict:
    return {"@type": f"type.googleapis.com/{name}", **fields}


def _strip(prefix: str) -> Dict:
    return {"remove_on_match": {"key_matcher": {"prefix": prefix}}}


def _set(header: str, value: str, action: str = "OVERWRITE_IF_EXISTS_OR_ADD") -> Dict:
    return {"append": {"header": {"key": header, "value": value}, "append_action": action}}
