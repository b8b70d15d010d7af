"""The loop of one stream, where Envoy ends the stream at an awkward moment."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from extproc.pb import ext_proc_pb2 as pb
from extproc.serving.processor import ExternalProcessor
from extproc.verifying.exchange import Verifier
from tests.routing.test_exchange import BODY, router, snapshot
from tests.serving.test_telemetry import Collected, collected
from tests.serving.test_wire import with_attributes

__all__ = ["collected", "router", "snapshot"]  # fixtures


class Context:
    """The part of gRPC's context that a stream uses."""

    def invocation_metadata(self) -> list[tuple[str, str]]:
        return []


@pytest.mark.parametrize("cancelled", [True, False])
def test_a_decision_counts_once_however_early_the_stream_is_cancelled(router, collected: Collected, cancelled):
    """Envoy has the reply and cancels the stream, while gRPC still waits for the end of its write."""
    processor = ExternalProcessor(collected.telemetry)
    processor.router, processor.verifier = router, Verifier(lambda: router.snapshot)
    message = with_attributes(request__path="/v1/chat/completions", request__method="POST")
    message.request_body.CopyFrom(pb.HttpBody(body=BODY, end_of_stream=True))
    message.protocol_config.CopyFrom(pb.ProtocolConfiguration(request_body_mode="BUFFERED"))

    async def sent() -> AsyncIterator[pb.ProcessingRequest]:
        yield message

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
