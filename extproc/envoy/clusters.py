"""The clusters: the ext_proc server, the OTLP collector, and the tiers with the filters of their attempts."""

from collections.abc import Sequence

from extproc.config.load import Config
from extproc.config.schema import PathKey
from extproc.contract.names import Key, Namespace
from extproc.contract.records import REPEATING_CLUSTER
from extproc.envoy.attempts import attempt_filters, last_filters
from extproc.envoy.builders import BUFFER_BYTES, Dict, address, socket_address, typed
from extproc.envoy.repeats import repeating_filter
from extproc.envoy.silence import silence_address, silence_name, silence_of
from extproc.envoy.tls import ClientTls, host_name, transport_socket
from extproc.settings import Address, Tier

# The file of public certificate authorities in Debian, in Alpine and in Envoy's own images.
_CA_FILE = "/etc/ssl/certs/ca-certificates.crt"
# The second priority of every tier. Nothing listens at this address. Envoy does not fail over from a tier without
# hosts (a service scaled to zero), but it does after a refused connection. If a tier has hosts, Envoy sends nothing
# to this address unless they are marked unhealthy. So tiers have no health checks and no outlier detection.
_REFUSING_ADDRESS = "127.0.0.1:1"
# The circuit breakers of a tier.
_LIMITS, _MOST_AT_ONCE = ("max_requests", "max_pending_requests", "max_connections"), 4096


def extproc_cluster(endpoints: list[str], tls: ClientTls | None = None) -> Dict:
    """Return the cluster of the ext_proc servers. With several endpoints, Envoy asks the least busy one."""
    return {
        # A server that stalls for seconds keeps its connection. Its streams, and the answers that it buffers, are
        # lost only with the connection. The health check notices that the server does not reply.
        **grpc_cluster("extproc", endpoints, {"interval": "1s", "timeout": "5s"}),
        **(transport_socket(tls, endpoints) if tls is not None else {}),
        # The buffered bodies of many exchanges share one connection, so the larger buffer is required.
        "per_connection_buffer_limit_bytes": BUFFER_BYTES,
        "lb_policy": "LEAST_REQUEST",
        "circuit_breakers": {
            "thresholds": [{"max_requests": 20000, "max_pending_requests": 20000, "max_retries": 1000}]
        },
        # Requests wait for the message timeout of a dead or stuck server only until these checks notice it.
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
        # If every server is out, fail open immediately instead of asking dead servers.
        "common_lb_config": {"healthy_panic_threshold": {"value": 0}},
    }


def grpc_cluster(name: str, endpoints: list[str], keepalive: Dict) -> Dict:
    """Return a cluster of gRPC servers. `keepalive` sets when Envoy drops a silent connection."""
    http2 = {"connection_keepalive": keepalive}
    return {
        "name": name,
        **_discovery(any(map(host_name, endpoints))),
        "connect_timeout": "0.25s",
        "typed_extension_protocol_options": _protocol({"http2_protocol_options": http2}),
        "load_assignment": _endpoints(name, endpoints),
    }


def tier_cluster(tier: Tier, config: Config, follow_keys: bool = True) -> Dict:
    """Return the cluster of a tier. Its endpoint's metadata has the name of the tier."""
    return _tier_cluster(tier, config, follow_keys, silence_of(tier, config))


def _tier_cluster(tier: Tier, config: Config, follow_keys: bool, silence_s: float | None) -> Dict:
    cluster: Dict = {
        "name": tier.cluster_name,
        **_discovery(silence_s is None and any(a.is_name for a in tier.addresses)),
        "connect_timeout": "1s",
        "circuit_breakers": {
            "thresholds": [
                {
                    **dict.fromkeys(_LIMITS, _MOST_AT_ONCE),
                    # The largest share of this tier's requests that may fail over or escalate.
                    "retry_budget": {"budget_percent": {"value": 50}, "min_retry_concurrency": 50},
                }
            ]
        },
        "typed_extension_protocol_options": _protocol(
            {"http_protocol_options": {}}, attempt_filters([tier], config, follow_keys), _idle_s(tier, silence_s)
        ),
        "load_assignment": _tier_endpoints(tier, behind_listener=silence_s is not None),
    }
    return cluster | (_tls(tier, tier.addresses) if silence_s is None else {})


def silent_clusters(tier: Tier, config: Config) -> list[Dict]:
    """Return the clusters behind the listeners of `silence_listeners`, one for each upstream of the tier."""
    if silence_of(tier, config) is None:
        return []
    return [
        {
            "name": (name := silence_name(tier, i)),
            **_discovery(a.is_name),
            "connect_timeout": "1s",
            "circuit_breakers": {"thresholds": [dict.fromkeys(_LIMITS, _MOST_AT_ONCE)]},
            "load_assignment": {
                "cluster_name": name,
                "endpoints": [{"lb_endpoints": [{"endpoint": _endpoint(a)}]}],
            },
            **_tls(tier, (a,)),
        }
        for i, a in enumerate(tier.addresses)
    ]


def _idle_s(tier: Tier, silence_s: float | None) -> float:
    """The idle time of connections. A listener that closes silent ones must not be the first to close them."""
    return tier.idle_s if silence_s is None else min(tier.idle_s, silence_s / 2)


def _tls(tier: Tier, addresses: Sequence[Address]) -> Dict:
    if not tier.tls:
        return {}
    socket = {"name": "envoy.transport_sockets.tls", "typed_config": _upstream_tls(tier, addresses)}
    return {"transport_socket": socket}


def _upstream_tls(tier: Tier, addresses: Sequence[Address]) -> Dict:
    """Return the TLS settings for a tier's upstreams. Their certificate must have the name that was asked for."""
    validation: Dict = {"trusted_ca": {"filename": tier.ca or _CA_FILE}}
    if tier.sni or all(a.is_name for a in addresses):
        one_name = tier.sni or (addresses[0].host if len(addresses) == 1 else None)
        names: Dict = {"sni": one_name} if one_name is not None else {"auto_host_sni": True}
        names["auto_sni_san_validation"] = True
    else:  # TLS has no way to ask for an IP address
        names = {"auto_host_sni": True} if any(a.is_name for a in addresses) else {}
        validation["match_typed_subject_alt_names"] = [
            {"san_type": "DNS" if a.is_name else "IP_ADDRESS", "matcher": {"exact": a.host}} for a in addresses
        ]
    return typed(
        "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        **names,
        common_tls_context={"validation_context": validation},
    )


def opened_cluster(tier: Tier, config: Config, key: PathKey, follow_keys: bool = True) -> Dict:
    """Return the cluster of a tier for paths that the policy opens. `attempt_s` of the tier does not hold there.

    With the client's key, it adds none of the tier.
    """
    name = opened_cluster_name(tier, config, key)
    cluster = _tier_cluster(tier, config, follow_keys, None) | {"name": name}
    cluster["load_assignment"] |= {"cluster_name": name}
    if _leaves_key_out(tier, key):
        options = _protocol({"http_protocol_options": {}}, last_filters(), tier.idle_s)
        cluster["typed_extension_protocol_options"] = options
    return cluster


def opened_cluster_name(tier: Tier, config: Config, key: PathKey) -> str:
    """Return the name of that cluster. It is that of the tier, if its own cluster does the same.

    The names of tiers cannot contain a "+".
    """
    if _leaves_key_out(tier, key):
        return f"{tier.cluster_name}+client_key"
    return tier.cluster_name if silence_of(tier, config) is None else f"{tier.cluster_name}+opened"


def _leaves_key_out(tier: Tier, key: PathKey) -> bool:
    return tier.key is not None and key == "client"


def ladder_cluster(name: str, tiers: Sequence[Tier], config: Config) -> Dict:
    """Return one cluster for a whole ladder, whose nth tier serves the nth attempt. Envoys before 1.40 need it."""
    attempts = (*tiers, *[tiers[-1]] * tiers[-1].same_retries)
    members = [{"name": tier.cluster_name} for tier in attempts]
    composite = typed("envoy.extensions.clusters.composite.v3.ClusterConfig", clusters=members)
    first = tier_cluster(tiers[0], config)
    return {
        "name": name,
        "connect_timeout": first["connect_timeout"],
        "lb_policy": "CLUSTER_PROVIDED",
        "cluster_type": {"name": "envoy.clusters.composite", "typed_config": composite},
        "circuit_breakers": first["circuit_breakers"],
        # Envoy does not run the filters of the member clusters.
        "typed_extension_protocol_options": _protocol(
            {"http_protocol_options": {}}, attempt_filters(attempts, config, follow_keys=False)
        ),
    }


def repeating_cluster(config: Config) -> Dict:
    """Return the cluster that decides whether an attempt is repeated at its tier. It refuses every connection."""
    return {
        "name": REPEATING_CLUSTER,
        "type": "STATIC",
        "connect_timeout": "1s",
        "circuit_breakers": {
            "thresholds": [dict.fromkeys(_LIMITS, _MOST_AT_ONCE) | {"max_retries": _MOST_AT_ONCE}]
        },
        "typed_extension_protocol_options": _protocol(
            {"http_protocol_options": {}}, [repeating_filter(config), *last_filters()]
        ),
        "load_assignment": {
            "cluster_name": REPEATING_CLUSTER,
            "endpoints": [{"lb_endpoints": [{"endpoint": _refusing_endpoint()}]}],
        },
    }


def _refusing_endpoint() -> Dict:
    host, _, port = _REFUSING_ADDRESS.rpartition(":")
    return {"address": socket_address(host, int(port)), "hostname": host}


def _protocol(explicit: Dict, filters: list[Dict] | None = None, idle_s: float | None = None) -> Dict:
    """Return the protocol options of a cluster. `idle_s` is how long its connections may stay idle."""
    name = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    options = typed(name, explicit_http_config=explicit)
    if filters is not None:
        options["http_filters"] = filters
    if idle_s is not None:
        options["common_http_protocol_options"] = {"idle_timeout": f"{idle_s:g}s"}
    return {name: options}


def _discovery(has_names: bool) -> Dict:
    """Return how Envoy finds the hosts: by DNS if one of them is a name."""
    return {"type": "STRICT_DNS", "dns_lookup_family": "V4_PREFERRED"} if has_names else {"type": "STATIC"}


def _endpoints(name: str, endpoints: list[str]) -> Dict:
    hosts = [{"endpoint": {"address": address(e), "hostname": e.rpartition(":")[0]}} for e in endpoints]
    return {"cluster_name": name, "endpoints": [{"priority": 0, "lb_endpoints": hosts}]}


def _endpoint(a: Address) -> Dict:
    return {"address": socket_address(a.host, a.port), "hostname": a.host_header}


def _tier_endpoints(tier: Tier, behind_listener: bool) -> Dict:
    """Return the upstreams of a tier, and the address behind them that refuses every connection.

    With `behind_listener` they are the listeners of `silence_listeners`.
    """
    metadata = {"metadata": {"filter_metadata": {Namespace.DECISION: {Key.TIER: tier.name}}}}
    weights = [endpoint.weight for endpoint in tier.endpoints] or [1]
    hosts = [
        {
            "endpoint": _endpoint(a) | (silence_address(tier, i) if behind_listener else {}),
            **metadata,
            **({"load_balancing_weight": weight} if len(weights) > 1 else {}),
        }
        for i, (a, weight) in enumerate(zip(tier.addresses, weights, strict=True))
    ]
    refusing = {"endpoint": _refusing_endpoint(), **metadata}
    return {
        "cluster_name": tier.cluster_name,
        "endpoints": [{"priority": 0, "lb_endpoints": hosts}, {"priority": 1, "lb_endpoints": [refusing]}],
    }
