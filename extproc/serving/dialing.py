"""Connect to a router, without encryption or with mutual TLS from files, for `extproc health` and `status`."""

import ipaddress
from pathlib import Path

import grpc
import msgspec

# The name in the certificate of a router whose address is not a DNS name. Envoy checks it, too.
_SERVER_NAME = "extproc"


class DialTls(msgspec.Struct, frozen=True):
    """The PEM files of a client, and the name that the router's certificate must have."""

    certificate: Path  # chain of the client
    key: Path
    ca: Path  # signs the router's certificate
    name: str | None = None  # None: the host of the address, or "extproc" for an IP address or a socket


def dial(address: str, tls: DialTls | None = None) -> grpc.Channel:
    """Return a channel to "host:port" or "unix:///path". Raises OSError if a file cannot be read."""
    if tls is None:
        return grpc.insecure_channel(address)
    credentials = grpc.ssl_channel_credentials(
        tls.ca.read_bytes(), tls.key.read_bytes(), tls.certificate.read_bytes()
    )
    name = tls.name if tls.name is not None else _name_at(address)
    return grpc.secure_channel(address, credentials, [("grpc.ssl_target_name_override", name)])


def _name_at(address: str) -> str:
    host = address.rpartition(":")[0].strip("[]")
    if address.startswith("unix:"):
        return _SERVER_NAME
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return host
    return _SERVER_NAME
