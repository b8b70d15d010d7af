"""The loop of one stream, where Envoy ends the stream at an awkward moment."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from extproc.pb import ext_proc_pb2 as pb
from extproc.serving.processor import ExternalProcessor
from extproc.verifying.exchange import Verifier
from tests.routing.test_exchange import BODY, router, snapshot
from tests.serving.test_telemetry import Collected, collected
from tests.serving.test_wire import with_attributes

__all__ = ["collected", "router", "snapshot"]  # fixtures


class Aborted(Exception):
    """Ends a stream with an error, as gRPC's own exception does."""


class Context:
    """The part of gRPC's context that a stream uses."""

    def invocation_metadata(self) -> list[tuple[str, str]]:
        return []

    async def abort(self, _code: grpc.StatusCode, details: str) -> None:
        raise Aborted(details)


def body_message() -> pb.ProcessingRequest:
    message = with_attributes(request__path="/v1/chat/completions", request__method="POST")
    message.request_body.CopyFrom(pb.HttpBody(body=BODY, end_of_stream=True))
    message.protocol_config.CopyFrom(pb.ProtocolConfiguration(request_body_mode="BUFFERED"))
    return message


async def sent() -> AsyncIterator[pb.ProcessingRequest]:
    yield body_message()


@pytest.mark.parametrize("cancelled", [True, False])
def test_a_decision_counts_once_however_early_the_stream_is_cancelled(router, collected: Collected, cancelled):
    """Envoy has the reply and cancels the stream, while gRPC still waits for the end of its write."""
    processor = ExternalProcessor(collected.telemetry)
    processor.router, processor.verifier = router, Verifier(lambda: router.snapshot)

    async def stream() -> None:
        context: Any = Context()
        replies: Any = processor.process(sent(), context)
        await anext(replies)
        if cancelled:
            await replies.aclose()
        else:
            assert [reply async for reply in replies] == []

    asyncio.run(stream())
    assert list(collected.series("semantic_router.decisions").values()) == [1]
    assert processor._telemetry.open_exchanges == 0


def test_a_decision_that_failed_after_it_was_made_is_not_counted(router, collected: Collected, monkeypatch):
    """Envoy gets no reply, and sends the request to the default tier."""

    def fails(*_: object) -> None:
        raise ValueError

    monkeypatch.setattr("extproc.routing.exchange.envoy_metadata", fails)
    processor = ExternalProcessor(collected.telemetry)
    processor.router, processor.verifier = router, Verifier(lambda: router.snapshot)

    async def stream() -> None:
        context: Any = Context()
        replies: Any = processor.process(sent(), context)
        with pytest.raises(Aborted):
            await anext(replies)

    asyncio.run(stream())
    assert list(collected.series("semantic_router.failures").values()) == [1]
    assert "semantic_router.decisions" not in collected.metrics()
