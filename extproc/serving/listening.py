"""Listen on a TCP port or a unix socket, unencrypted or with mutual TLS from files."""

import errno
import logging
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import grpc
import msgspec

log = logging.getLogger(__name__)

_UNIX = "unix://"
_MOST_PORT = 65535
# Without IPv6, gRPC takes the second in place of the first.
_WILDCARDS = ("::", "0.0.0.0")
_TAKEN = (errno.EADDRINUSE, errno.EACCES)


class TlsFiles(msgspec.Struct, frozen=True):
    """The PEM files of mutual TLS."""

    certificate: Path  # chain of the server
    key: Path
    client_ca: Path  # only clients with a certificate from this CA can connect


def bind(server: grpc.aio.Server, listen: str, tls: TlsFiles | None) -> str:
    """Listen on "host:port" or "unix:///path", and return the port or the path. Raises OSError with a remedy."""
    if listen.startswith(_UNIX) and not listen.removeprefix(_UNIX).startswith("/"):
        raise OSError(f"cannot listen on {listen}: give a whole path, as in unix:///run/extproc.sock")
    credentials = reloading_credentials(tls) if tls is not None else None
    check_free(listen)
    try:
        port = server.add_secure_port(listen, credentials) if credentials else server.add_insecure_port(listen)
    except RuntimeError as error:
        remedy = "the directory exists and is writable" if listen.startswith(_UNIX) else "the port is free"
        raise OSError(f"cannot listen on {listen}: check that {remedy}") from error
    return listen if listen.startswith(_UNIX) else f"port {port}"


def check_free(listen: str) -> None:
    """Raise OSError, with the reason and a remedy, if nothing can listen on this TCP address now.

    gRPC does not say why it cannot listen. A name may have an address that this machine lacks, as `localhost` has
    without IPv6. Then gRPC listens on the other ones.
    """
    if listen.startswith("unix:"):
        return
    host, _, port = listen.rpartition(":")
    if not 0 <= int(port) <= _MOST_PORT:
        raise OSError(f"cannot listen on {listen}: give a port from 1 to {_MOST_PORT}")
    errors = [*_errors(host.strip("[]"), port)]
    taken = next((error for error in errors if error is not None and error.errno in _TAKEN), None)
    if taken is not None or all(errors):
        error = taken or errors[0]
        assert error is not None
        raise OSError(f"cannot listen on {listen}: {_why(error, port)}") from error


def _errors(host: str, port: str) -> Iterator[OSError | None]:
    """For each address of the host, the error with which nothing can listen there, or None."""
    for name in _WILDCARDS if host == _WILDCARDS[0] else (host,):
        try:
            places = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
        except OSError as error:
            yield error
            continue
        for family, kind, _, _, address in places:
            try:
                with socket.socket(family, kind) as probe:
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    probe.bind(address)
            except OSError as error:
                yield error
            else:
                yield None


def _why(error: OSError, port: str) -> str:
    if error.errno == errno.EADDRINUSE:
        found = f"`ss -ltnp 'sport = :{port}'` names it"
        return f"another program uses the port: stop it ({found}), or give another port"
    if error.errno == errno.EACCES:
        return "this user may not use the port: give one above 1023, or run as another user"
    return "the host is not an address of this machine: give 127.0.0.1, 0.0.0.0 or one of its addresses"


def reloading_credentials(files: TlsFiles) -> grpc.ServerCredentials:
    """Return credentials that read changed files again at the next connection.

    If the changed files cannot be used, for example a new certificate with the old key, the previous ones stay in
    use. Raises OSError if the files cannot be used at the start.
    """
    seen = _stamp(files)
    configuration = _read(files)

    def renewed() -> grpc.ServerCertificateConfiguration:
        """gRPC calls this in its own thread, before each handshake."""
        nonlocal seen, configuration
        try:
            stamp = _stamp(files)
            if stamp != seen:
                configuration, seen = _read(files), stamp
                log.info("loaded the renewed certificate files")
        except OSError as error:
            log.error("keeping the previous certificates, because the new files cannot be used: %s", error)
        return configuration

    return grpc.dynamic_ssl_server_credentials(configuration, renewed, require_client_authentication=True)


def _stamp(files: TlsFiles) -> list[tuple[int, int, int]]:
    """Return a value that changes when a file or a link to it is written or replaced."""
    stats = [path.stat() for path in (files.certificate, files.key, files.client_ca)]
    return [(stat.st_ino, stat.st_mtime_ns, stat.st_size) for stat in stats]


def _read(files: TlsFiles) -> grpc.ServerCertificateConfiguration:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:  # gRPC accepts unusable files, and then refuses every connection
        context.load_cert_chain(files.certificate, files.key)
        context.load_verify_locations(files.client_ca)
    except ssl.SSLError as error:
        raise OSError(
            f"cannot use the TLS files: expected a certificate in {files.certificate}, its key in {files.key} "
            f"and a CA certificate in {files.client_ca}, all PEM ({error.reason or error})"
        ) from error
    pair = (files.key.read_bytes(), files.certificate.read_bytes())
    return grpc.ssl_server_certificate_configuration([pair], files.client_ca.read_bytes())
