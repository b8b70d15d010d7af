"""The few words of Envoy's configuration that everything else is made of."""

from typing import Any

from extproc.contract.names import HeaderName, Key, Namespace
from extproc.contract.words import Role

Dict = dict[str, Any]

# Judged answers pass Envoy's buffers in both directions at once, many on one connection to us, each as fast as its
# client reads: towards us and towards the clients the larger buffer is required.
BUFFER_BYTES = 64 * 1024 * 1024
# Envoy's formatters for the tier of the last attempt, and for how many attempts there were.
SERVED_BY = f"%UPSTREAM_METADATA({Namespace.DECISION}:{Key.TIER})%"
ATTEMPTS = "%UPSTREAM_REQUEST_ATTEMPT_COUNT%"


def address(host_port: str) -> Dict:
    """Of "host:port", or of a unix socket: "unix:///path"."""
    if host_port.startswith("unix://"):
        return {"pipe": {"path": host_port.removeprefix("unix://")}}
    host, _, port = host_port.rpartition(":")
    return {"socket_address": {"address": host, "port_value": int(port)}}


def filter_entry(name: str, config: Dict, disabled: bool = False) -> Dict:
    return {"name": name, **({"disabled": True} if disabled else {}), "typed_config": config}


def typed(name: str, **fields: Any) -> Dict:
    return {"@type": f"type.googleapis.com/{name}", **fields}


def strip_headers(prefix: str) -> Dict:
    return {"remove_on_match": {"key_matcher": {"prefix": prefix}}}


def set_header(header: str, value: str, action: str = "OVERWRITE_IF_EXISTS_OR_ADD") -> Dict:
    return {"append": {"header": {"key": header, "value": value}, "append_action": action}}


def metadata_predicate(
    path: list[str], value: Dict, invert: bool = False, namespace: Namespace = Namespace.DECISION
) -> Dict:
    """Whether the metadata, by default the decision's, has this value at `path`."""
    seen = typed(
        "envoy.extensions.matching.common_inputs.network.v3.DynamicMetadataInput",
        filter=namespace,
        path=[{"key": key} for key in path],
    )
    matcher = typed("envoy.extensions.matching.input_matchers.metadata.v3.Metadata", value=value, invert=invert)
    return {
        "single_predicate": {
            "input": {"name": "decision", "typed_config": seen},
            "custom_match": {"name": "value", "typed_config": matcher},
        }
    }


def skipped(predicate: Dict, name: str, config: Dict) -> Dict:
    """Wrap a filter so that it is skipped, and costs nothing, when the predicate holds."""
    skip = typed("envoy.extensions.filters.common.matcher.action.v3.SkipFilter")
    on_match = {"action": {"name": "skip", "typed_config": skip}}
    return typed(
        "envoy.extensions.common.matching.v3.ExtensionWithMatcher",
        xds_matcher={"matcher_list": {"matchers": [{"predicate": predicate, "on_match": on_match}]}},
        extension_config={"name": name, "typed_config": config},
    )


def from_metadata(key: Key, namespace: Namespace = Namespace.DECISION) -> str:
    """Envoy's formatter for a value of the request's metadata."""
    return f"%DYNAMIC_METADATA({namespace}:{key})%"


def opened_by(role: Role) -> list[Dict]:
    """What an ext_proc stream says of the filter that opened it."""
    return [{"key": HeaderName.ROLE, "value": role}]
