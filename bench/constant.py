"""An ext_proc server that answers every request alike, without deciding: `python -m bench.constant PORT ROUTER`.

It forwards the first request to the ext_proc server on port ROUTER, and repeats its reply for all others. So Envoy
does the work of a decision, and this server only that of gRPC. Access logs are read and dropped.
"""

import sys
from collections.abc import AsyncIterator
from typing import Any

import grpc

from extproc.accounting import accesslog
from extproc.serving import wire
from extproc.serving.event_loop import run

_HEALTHY = b"\x08\x01"  # HealthCheckResponse: SERVING


class Constant:
    """The handlers of the server."""

    def __init__(self, router: int) -> None:
        self._router, self._reply = router, b""

    async def process(self, messages: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        """Reply to every message of a stream in the same way."""
        async for message in messages:
            if not self._reply:
                self._reply = await self._decided(message, context.invocation_metadata())
            yield self._reply

    async def _decided(self, message: bytes, metadata: Any) -> bytes:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{self._router}") as channel:
            call: Any = channel.stream_stream(f"/{wire.SERVICE}/{wire.METHOD}")
            sent = tuple((name, value) for name, value in metadata if name.startswith("x-"))
            reply: bytes = await call(iter([message]), metadata=sent).read()
            return reply

    async def drop(self, messages: AsyncIterator[bytes], _context: Any) -> bytes:
        """Read access logs."""
        async for _ in messages:
            pass
        return b""

    async def healthy(self, _message: bytes, _context: Any) -> bytes:
        """Reply that this server works."""
        return _HEALTHY


async def serve(port: int, router: int) -> None:
    """Serve until the process is ended."""
    constant, server = Constant(router), grpc.aio.server()
    handlers: dict[str, dict[str, Any]] = {
        wire.SERVICE: {wire.METHOD: grpc.stream_stream_rpc_method_handler(constant.process)},
        accesslog.SERVICE: {accesslog.METHOD: grpc.stream_unary_rpc_method_handler(constant.drop)},
        "grpc.health.v1.Health": {"Check": grpc.unary_unary_rpc_method_handler(constant.healthy)},
    }
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler(name, methods) for name, methods in handlers.items()]
    )
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    run(serve(int(sys.argv[1]), int(sys.argv[2])))
