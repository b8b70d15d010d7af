"""Where the server listens: a TCP port or a unix socket, in the clear or with mutual TLS from files."""

import logging
import ssl
from pathlib import Path

import grpc
import msgspec

log = logging.getLogger(__name__)

_UNIX = "unix://"


class TlsFiles(msgspec.Struct, frozen=True):
    """PEM files: what the server shows, and whom it lets in."""

    certificate: Path
    key: Path
    client_ca: Path  # whoever holds a certificate of this authority may connect, and nobody else


def bind(server: grpc.aio.Server, listen: str, tls: TlsFiles | None) -> str:
    """Listen on "host:port" or "unix:///path"; return where. Raises OSError that says what is wrong."""
    if listen.startswith(_UNIX) and not listen.removeprefix(_UNIX).startswith("/"):
        raise OSError(f"cannot listen on {listen}: give a whole path, as in unix:///run/extproc.sock")
    credentials = following(tls) if tls is not None else None
    try:
        port = server.add_secure_port(listen, credentials) if credentials else server.add_insecure_port(listen)
    except RuntimeError as error:
        remedy = "may it be written there?" if listen.startswith(_UNIX) else "is the port taken?"
        raise OSError(f"cannot listen on {listen}: {remedy}") from error
    return listen if listen.startswith(_UNIX) else f"port {port}"


def following(files: TlsFiles) -> grpc.ServerCredentials:
    """Credentials that follow the files: every new connection is met with what they hold then.

    A renewal that is not whole yet (a certificate without its key) changes nothing until it is. Raises OSError
    when the files are not good at the start.
    """
    seen = _stamp(files)
    configuration = _read(files)

    def renewed() -> grpc.ServerCertificateConfiguration:
        """Called by gRPC in a thread of its own, before each handshake."""
        nonlocal seen, configuration
        try:
            stamp = _stamp(files)
            if stamp != seen:
                configuration, seen = _read(files), stamp
                log.info("took over renewed certificates")
        except OSError as error:
            log.error("the certificates stay as they were: %s", error)
        return configuration

    return grpc.dynamic_ssl_server_credentials(configuration, renewed, require_client_authentication=True)


def _stamp(files: TlsFiles) -> list[tuple[int, int, int]]:
    """Differs after any of the files was written or replaced, a link ahead of it included."""
    stats = [path.stat() for path in (files.certificate, files.key, files.client_ca)]
    return [(found.st_ino, found.st_mtime_ns, found.st_size) for found in stats]


def _read(files: TlsFiles) -> grpc.ServerCertificateConfiguration:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:  # gRPC would take anything, and refuse every connection afterwards
        context.load_cert_chain(files.certificate, files.key)
        context.load_verify_locations(files.client_ca)
    except ssl.SSLError as error:
        names = f"{files.certificate}, {files.key} and {files.client_ca}"
        raise OSError(f"no certificate, its key and an authority in {names}: {error.reason or error}") from error
    pair = (files.key.read_bytes(), files.certificate.read_bytes())
    return grpc.ssl_server_certificate_configuration([pair], files.client_ca.read_bytes())
