"""Small parts of Envoy's configuration that the other modules combine."""

from typing import Any

from extproc.contract.names import HeaderName, Key, Namespace
from extproc.contract.words import Role

Dict = dict[str, Any]

# Many judged answers share one connection between Envoy and the ext_proc server, in both directions. Each moves
# only as fast as its client reads. The larger buffer is required on that connection and on those of the clients.
BUFFER_BYTES = 64 * 1024 * 1024
# Envoy's formatters for the tier of the last attempt and for the number of attempts.
SERVED_BY = f"%UPSTREAM_METADATA({Namespace.DECISION}:{Key.TIER})%"
ATTEMPTS = "%UPSTREAM_REQUEST_ATTEMPT_COUNT%"
LUA = "envoy.filters.http.lua"
# The name of the filter state object with the start of the request, in seconds.
START = "extproc.start"


def address(host_port: str) -> Dict:
    """Return Envoy's address for "host:port" or for a unix socket, "unix:///path"."""
    if host_port.startswith("unix://"):
        return {"pipe": {"path": host_port.removeprefix("unix://")}}
    host, _, port = host_port.rpartition(":")
    return socket_address(host, int(port))


def socket_address(host: str, port: int) -> Dict:
    """Return Envoy's address for a host and a port. An IPv6 address may be in brackets."""
    return {"socket_address": {"address": host.strip("[]"), "port_value": port}}


def filter_entry(name: str, config: Dict, disabled: bool = False) -> Dict:
    """Return an entry of a filter chain. Routes have to enable a disabled one."""
    return {"name": name, **({"disabled": True} if disabled else {}), "typed_config": config}


def typed(name: str, **fields: Any) -> Dict:
    """Return a typed config: `name` is the full name of the protobuf message."""
    return {"@type": f"type.googleapis.com/{name}", **fields}


def lua(code: str) -> Dict:
    """Return a filter config that runs this Lua code."""
    return typed("envoy.extensions.filters.http.lua.v3.Lua", default_source_code={"inline_string": code})


def strip_headers(prefix: str) -> Dict:
    """Return a mutation that removes all headers with this prefix."""
    return {"remove_on_match": {"key_matcher": {"prefix": prefix}}}


def set_header(header: str, value: str, action: str = "OVERWRITE_IF_EXISTS_OR_ADD") -> Dict:
    """Return a mutation that sets a header. `action` is one of Envoy's HeaderAppendActions."""
    return {"append": {"header": {"key": header, "value": value}, "append_action": action}}


def metadata_predicate(
    path: list[str], value: Dict, invert: bool = False, namespace: Namespace = Namespace.DECISION
) -> Dict:
    """Return a predicate: the metadata in `namespace` matches `value` at `path`, or with `invert` does not."""
    metadata_input = typed(
        "envoy.extensions.matching.common_inputs.network.v3.DynamicMetadataInput",
        filter=namespace,
        path=[{"key": key} for key in path],
    )
    matcher = typed("envoy.extensions.matching.input_matchers.metadata.v3.Metadata", value=value, invert=invert)
    return {
        "single_predicate": {
            "input": {"name": "decision", "typed_config": metadata_input},
            "custom_match": {"name": "value", "typed_config": matcher},
        }
    }


def any_of(*predicates: Dict) -> Dict:
    """Return a predicate: at least one of `predicates` is true."""
    return predicates[0] if len(predicates) == 1 else {"or_matcher": {"predicate": list(predicates)}}


def skip_if(predicate: Dict, name: str, config: Dict) -> Dict:
    """Wrap a filter so that Envoy skips it, at no cost, if the predicate is true."""
    skip = typed("envoy.extensions.filters.common.matcher.action.v3.SkipFilter")
    on_match = {"action": {"name": "skip", "typed_config": skip}}
    return typed(
        "envoy.extensions.common.matching.v3.ExtensionWithMatcher",
        xds_matcher={"matcher_list": {"matchers": [{"predicate": predicate, "on_match": on_match}]}},
        extension_config={"name": name, "typed_config": config},
    )


def from_metadata(key: Key, namespace: Namespace = Namespace.DECISION) -> str:
    """Return Envoy's formatter for a value of the request's metadata."""
    return f"%DYNAMIC_METADATA({namespace}:{key})%"


def role_metadata(role: Role) -> list[Dict]:
    """Return the gRPC metadata by which the server knows which filter opened a stream."""
    return [{"key": HeaderName.ROLE, "value": role}]
