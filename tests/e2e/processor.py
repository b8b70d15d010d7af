"""An ext_proc client in place of Envoy. It sends the messages of a script and reads the replies."""

import contextlib
import queue
from collections.abc import Iterable, Iterator
from typing import Any

import grpc

from extproc.pb import ext_proc_pb2 as pb

_METHOD = "/envoy.service.ext_proc.v3.ExternalProcessor/Process"
_MODE = pb.ProcessingMode
BUFFERED, STREAMED, FULL_DUPLEX, NONE = _MODE.BUFFERED, _MODE.STREAMED, _MODE.FULL_DUPLEX_STREAMED, _MODE.NONE
OPTIONS = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]


class Stream:
    """One ext_proc stream, in both directions."""

    def __init__(
        self, channel: grpc.Channel, metadata: Iterable[tuple[str, str]] = (("x-role", "router"),)
    ) -> None:
        self._said: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        call: Any = channel.stream_stream(
            _METHOD, request_serializer=None, response_deserializer=pb.ProcessingResponse.FromString
        )
        self.call: Any = call(iter(self._said.get, None), timeout=30, metadata=tuple(metadata))

    def say(self, message: pb.ProcessingRequest | bytes) -> None:
        """Send a message, or the bytes of one."""
        self._said.put(message if isinstance(message, bytes) else message.SerializeToString())

    def replies(self, count: int) -> list[pb.ProcessingResponse]:
        """Return the next `count` replies."""
        return [next(self.call) for _ in range(count)]

    def finish(self) -> list[pb.ProcessingResponse]:
        """Half-close the stream and read the other replies. Raises grpc.RpcError unless the stream ends well."""
        self._said.put(None)
        return list(self.call)

    def close(self) -> None:
        """Cancel the stream."""
        self._said.put(None)
        self.call.cancel()


@contextlib.contextmanager
def ext_proc(channel: grpc.Channel) -> Iterator[Stream]:
    """Open a stream, and close it at the end of the block."""
    stream = Stream(channel)
    try:
        yield stream
    finally:
        stream.close()


def headers_message(
    headers: dict[str, str], body_mode: int | None = None, end: bool = False, response_mode: int = NONE
) -> pb.ProcessingRequest:
    """Return request_headers. It is the first message if a body mode is given."""
    message = pb.ProcessingRequest()
    message.request_headers.end_of_stream = end
    for name, value in headers.items():
        message.request_headers.headers.headers.add(key=name, raw_value=value.encode())
    return _opened(message, body_mode, response_mode)


def body_message(
    body: bytes,
    end: bool = False,
    body_mode: int | None = None,
    attributes: dict[str, str] | None = None,
) -> pb.ProcessingRequest:
    """Return request_body. It is the first message if a body mode is given."""
    message = pb.ProcessingRequest()
    message.request_body.body = body
    message.request_body.end_of_stream = end
    if attributes:
        message.attributes["envoy.filters.http.ext_proc"].update(attributes)
    return _opened(message, body_mode, NONE)


def _opened(message: pb.ProcessingRequest, body_mode: int | None, response_mode: int) -> pb.ProcessingRequest:
    if body_mode is not None:
        message.protocol_config.SetInParent()
        message.protocol_config.request_body_mode = body_mode  # type: ignore[assignment]
        message.protocol_config.response_body_mode = response_mode  # type: ignore[assignment]
    return message
