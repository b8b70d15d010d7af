"""Mutual TLS from Envoy to our server, with files that Envoy watches: renewed certificates need no restart."""

from pathlib import Path

import msgspec
import yaml

from extproc.envoy.builders import Dict, typed

# The name that the server's certificate must carry where its address has none: an IP address, a unix socket.
_NAME = "extproc"
_CERTIFICATE, _AUTHORITY = "extproc_certificate", "extproc_authority"


class ClientTls(msgspec.Struct, frozen=True):
    """Paths as Envoy sees them."""

    certificate: str
    key: str
    ca: str
    sds: str  # folder of the two files by which Envoy reads the three above


def transport_socket(tls: ClientTls, endpoints: list[str]) -> Dict:
    """What the cluster of our server needs."""
    context = typed(
        "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        sni=server_names(endpoints)[0],
        common_tls_context={
            "alpn_protocols": ["h2"],  # gRPC refuses a client that does not say it
            "tls_certificate_sds_secret_configs": [_source(tls, _CERTIFICATE)],
            "validation_context_sds_secret_config": _source(tls, _AUTHORITY),
        },
    )
    return {"transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": context}}


def write_secrets(tls: ClientTls, endpoints: list[str]) -> None:
    """Write the two files. Envoy watches the folders of what they name, so they themselves need never change."""
    certificate = {
        "certificate_chain": {"filename": tls.certificate},
        "private_key": {"filename": tls.key},
        "watched_directory": {"path": str(Path(tls.certificate).parent)},
    }
    authority = {
        "trusted_ca": {"filename": tls.ca},
        "watched_directory": {"path": str(Path(tls.ca).parent)},
        # Else whatever that authority signed could pose as the server, Envoy's own certificate included.
        "match_typed_subject_alt_names": [
            {"san_type": "DNS", "matcher": {"exact": name}} for name in server_names(endpoints)
        ],
    }
    Path(tls.sds).mkdir(parents=True, exist_ok=True)
    for name, kind, secret in (
        (_CERTIFICATE, "tls_certificate", certificate),
        (_AUTHORITY, "validation_context", authority),
    ):
        resource = {**typed("envoy.extensions.transport_sockets.tls.v3.Secret"), "name": name, kind: secret}
        Path(_file(tls, name)).write_text(yaml.safe_dump({"resources": [resource]}, sort_keys=False))


def server_names(endpoints: list[str]) -> list[str]:
    """DNS names of which the server's certificate must carry one."""
    return list(dict.fromkeys(filter(None, map(host_name, endpoints)))) or [_NAME]


def host_name(endpoint: str) -> str | None:
    """The name to look up, if the endpoint is neither an IP address nor a unix socket."""
    host = endpoint.rpartition(":")[0]
    return None if endpoint.startswith("unix://") or host.replace(".", "").isdecimal() else host


def _source(tls: ClientTls, name: str) -> Dict:
    return {"name": name, "sds_config": {"path_config_source": {"path": _file(tls, name)}}}


def _file(tls: ClientTls, name: str) -> str:
    return f"{tls.sds}/{name}.yaml"
