"""An upstream that uses almost no CPU: `python -m bench.flat_upstream PORT`.

It looks only for the end of a request and for "stream", and sends prepared answers: 300 bytes of JSON, or 50
server-sent events in one chunk each. A request may ask for pauses between the chunks, as a model makes them. It is
one process with one loop and no asyncio, because the upstream has to be faster than the gateway that is measured.
"""

import functools
import heapq
import itertools
import re
import select
import socket
import sys
import time

import msgspec

ANSWER_BYTES = 300
CHUNKS = 50
# A request may ask for another number of events, and for a pause between two.
_WANTED = re.compile(rb"stream of (\d+) chunks(?:, (\d+) ms apart)?")
# Chunks in one write. With fewer, the upstream alone would not be faster than Envoy in front of it.
_CHUNKS_PER_WRITE = 5


def json_answer() -> bytes:
    """A chat completion of exactly ANSWER_BYTES."""
    return _completion("x" * (ANSWER_BYTES - len(_completion(""))))


def _completion(content: str) -> bytes:
    choice: dict[str, object] = {
        "index": 0,
        "message": {"role": "assistant", "content": content},
        "finish_reason": "stop",
    }
    usage = {"prompt_tokens": 16, "completion_tokens": 16, "total_tokens": 32}
    return msgspec.json.encode(_shape("chat.completion", choice) | {"usage": usage})


def chunks_message(count: int, pause_ms: int = 0) -> dict[str, str]:
    """A message before the text, with which the stream has `count` events, `pause_ms` apart."""
    pause = f", {pause_ms} ms apart" if pause_ms else ""
    return {"role": "system", "content": f"This is a stream of {count} chunks{pause}."}


def events(count: int = CHUNKS) -> list[bytes]:
    """A stream of `count` events. The last one is the end mark."""
    words: list[dict[str, object]] = [
        {"index": 0, "delta": {"content": f"word{i} "}, "finish_reason": None} for i in range(count - 2)
    ]
    last: dict[str, object] = {"index": 0, "delta": {}, "finish_reason": "stop"}
    frames = [msgspec.json.encode(_shape("chat.completion.chunk", choice)) for choice in [*words, last]]
    return [b"data: " + frame + b"\n\n" for frame in [*frames, b"[DONE]"]]


def _shape(kind: str, choice: dict[str, object]) -> dict[str, object]:
    return {"id": "chatcmpl-1", "object": kind, "created": 1, "model": "m", "choices": [choice]}


_JSON = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s"
_SSE = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def serve(port: int) -> None:
    """Answer requests until the process is ended."""
    whole = _JSON % (ANSWER_BYTES, json_answer())
    listener = socket.create_server(("127.0.0.1", port), backlog=256)
    poll = select.epoll()
    poll.register(listener, select.EPOLLIN)
    connections: dict[int, socket.socket] = {}
    unread: dict[int, bytes] = {}
    paced = _Paced()
    while True:
        for fd, _ in poll.poll(paced.send_due()):
            if fd == listener.fileno():
                accepted, _address = listener.accept()
                accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connections[accepted.fileno()] = accepted
                unread[accepted.fileno()] = b""
                poll.register(accepted, select.EPOLLIN)
                continue
            try:
                received = connections[fd].recv(65536)
                unread[fd] = _answer(connections[fd], unread[fd] + received, whole, paced)
            except ConnectionError:
                received = b""
            if not received:
                poll.unregister(fd)
                del unread[fd]
                connections.pop(fd).close()


class _Paced:
    """The streams whose chunks come one by one."""

    def __init__(self) -> None:
        # (when the next chunk is due, a number of the stream, the pause in seconds, its connection, its chunks)
        self._streams: list[tuple[float, int, float, socket.socket, list[bytes]]] = []
        self._numbers = itertools.count()

    def add(self, connection: socket.socket, count: int, pause_s: float) -> None:
        """Begin a stream. Its first chunk is due now."""
        chunks = _one_by_one(count)[::-1]
        heapq.heappush(self._streams, (time.monotonic(), next(self._numbers), pause_s, connection, chunks))

    def send_due(self) -> float | None:
        """Send the chunks that are due. Return the seconds until the next one is, or None without any stream."""
        while self._streams:
            due, number, pause_s, connection, chunks = self._streams[0]
            if due > (now := time.monotonic()):
                return due - now
            heapq.heappop(self._streams)
            try:
                connection.sendall(chunks.pop())
            except OSError:  # the connection was closed
                continue
            if chunks:
                heapq.heappush(self._streams, (due + pause_s, number, pause_s, connection, chunks))
        return None


def _chunks(count: int) -> list[bytes]:
    return [b"%x\r\n%s\r\n" % (len(event), event) for event in events(count)]


@functools.cache
def _stream(count: int) -> list[bytes]:
    """The writes of a stream with this many events."""
    chunks = [_SSE, *_chunks(count), b"0\r\n\r\n"]
    return [b"".join(chunks[i : i + _CHUNKS_PER_WRITE]) for i in range(0, len(chunks), _CHUNKS_PER_WRITE)]


@functools.cache
def _one_by_one(count: int) -> list[bytes]:
    """The same stream with one write for each event."""
    first, *others, last = _chunks(count)
    return [_SSE + first, *others, last + b"0\r\n\r\n"]


def _answer(connection: socket.socket, received: bytes, whole: bytes, paced: _Paced) -> bytes:
    """Answer the request if it is complete. Return the bytes that are not answered yet."""
    head, end, body = received.partition(b"\r\n\r\n")
    if not end:
        return received
    _, _, length = head.lower().partition(b"\r\ncontent-length:")
    if len(body) < int(length.partition(b"\r\n")[0] or 0):
        return received
    if b'"stream":true' in body or b'"stream": true' in body:
        wanted = _WANTED.search(body)
        count, pause_ms = (int(n or 0) for n in wanted.groups()) if wanted is not None else (CHUNKS, 0)
        if pause_ms:
            paced.add(connection, count, pause_ms / 1000)
            return b""
        for part in _stream(count):
            connection.sendall(part)
    else:
        connection.sendall(whole)
    return b""


if __name__ == "__main__":
    serve(int(sys.argv[1]))
