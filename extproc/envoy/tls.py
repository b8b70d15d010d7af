"""Mutual TLS from Envoy to the ext_proc server. Envoy watches the files and takes renewed certificates over."""

from pathlib import Path

import msgspec
import yaml

from extproc.envoy.builders import Dict, typed

# The name in the server's certificate if its address, an IP address or a unix socket, has no name.
_SERVER_NAME = "extproc"
_CERTIFICATE, _AUTHORITY = "extproc_certificate", "extproc_authority"


class ClientTls(msgspec.Struct, frozen=True):
    """Envoy's certificate, its key and the CA of the server's certificate, as paths that Envoy can open."""

    certificate: str
    key: str
    ca: str
    sds: str  # folder of two files that name the three files above for Envoy


def transport_socket(tls: ClientTls, endpoints: list[str]) -> Dict:
    """Return the part of the server's cluster that turns on mutual TLS."""
    context = typed(
        "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        sni=server_names(endpoints)[0],
        common_tls_context={
            "alpn_protocols": ["h2"],  # gRPC servers refuse clients that do not offer it
            "tls_certificate_sds_secret_configs": [_source(tls, _CERTIFICATE)],
            "validation_context_sds_secret_config": _source(tls, _AUTHORITY),
        },
    )
    return {"transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": context}}


def write_secrets(tls: ClientTls, endpoints: list[str]) -> None:
    """Write the two files into the folder `tls.sds`.

    Envoy watches the folders of the certificates that these files name, so the files themselves never change.
    """
    certificate = {
        "certificate_chain": {"filename": tls.certificate},
        "private_key": {"filename": tls.key},
        "watched_directory": {"path": str(Path(tls.certificate).parent)},
    }
    authority = {
        "trusted_ca": {"filename": tls.ca},
        "watched_directory": {"path": str(Path(tls.ca).parent)},
        # Without this check any certificate of that authority could pose as the server, even Envoy's own.
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
    """Return the DNS names that Envoy accepts in the server's certificate. One of them is enough."""
    return list(dict.fromkeys(filter(None, map(host_name, endpoints)))) or [_SERVER_NAME]


def host_name(endpoint: str) -> str | None:
    """Return the endpoint's DNS name, or None for an IP address or a unix socket."""
    host = endpoint.rpartition(":")[0].strip("[]")
    is_address = ":" in host or host.replace(".", "").isdecimal()
    return None if endpoint.startswith("unix://") or is_address else host


def _source(tls: ClientTls, name: str) -> Dict:
    return {"name": name, "sds_config": {"path_config_source": {"path": _file(tls, name)}}}


def _file(tls: ClientTls, name: str) -> str:
    return f"{tls.sds}/{name}.yaml"
