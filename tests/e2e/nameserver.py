"""A name server on loopback that resolves every name to one address, or to no address."""

import socket
import threading

_HEADER_BYTES = 12
_TYPE_A = 1


class NameServer:
    """Answers queries in a thread. A context manager."""

    def __init__(self, host: str | None) -> None:
        self.host = host  # None: the name exists without an address, like a service that is scaled to zero
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, name="nameserver", daemon=True)

    def __enter__(self) -> "NameServer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.sendto(b"", ("127.0.0.1", self.port))  # an empty query ends the thread
        self._thread.join(5)
        self._socket.close()

    def _serve(self) -> None:
        while True:
            query, asker = self._socket.recvfrom(4096)
            if len(query) < _HEADER_BYTES:
                return
            self._socket.sendto(self._reply(query), asker)

    def _reply(self, query: bytes) -> bytes:
        """Return the question, and an A record with a TTL of one second if there is an address."""
        end = query.index(b"\0", _HEADER_BYTES) + 5  # the name, its type and its class
        kind = int.from_bytes(query[end - 4 : end - 2], "big")
        known = self.host is not None and kind == _TYPE_A
        counts = b"\0\1" + (b"\0\1" if known else b"\0\0") + b"\0\0\0\0"
        record = b"\xc0\x0c\0\1\0\1\0\0\0\1\0\4" + socket.inet_aton(self.host or "0.0.0.0") if known else b""
        return query[:2] + b"\x85\x80" + counts + query[_HEADER_BYTES:end] + record
