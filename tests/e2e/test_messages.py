"""The number of ext_proc messages for one request, counted by Envoy."""

import pytest

from extproc.demo.stack import Stack
from tests.e2e.traffic import APIS, PROVE, ask, eventually, send

_COUNTED = ("streams_started", "stream_msgs_sent", "stream_msgs_received")
_TROUBLE = (
    "streams_failed", "failure_mode_allowed", "message_timeouts", "spurious_msgs_received",
    "rejected_header_mutations", "clear_route_cache_ignored",
)  # fmt: skip


def _counted(stack: Stack) -> dict[str, int]:
    """Return the counts when no stream is open any more. Envoy closes one shortly after its answer."""
    prefix = "http.llm.ext_proc.router."

    def look() -> dict[str, int] | None:
        stats = stack.stats(prefix.replace(".", r"\."))
        return stats if stats[f"{prefix}streams_closed"] == stats[f"{prefix}streams_started"] else None

    stats = eventually(look, "all streams are closed")
    return {name: stats[prefix + name] for name in (*_COUNTED, *_TROUBLE)}


def _since(stack: Stack, before: dict[str, int]) -> dict[str, int]:
    return {name: count - before[name] for name, count in _counted(stack).items()}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("path", APIS)
def test_a_plain_request_costs_one_message_and_one_reply(stack: Stack, path: str, stream: bool) -> None:
    """One stream, one message to the router, one reply, and no protocol error that Envoy ignored."""
    before = _counted(stack)
    assert ask(stack.port, PROVE, path, stream=stream).status == 200
    assert _since(stack, before) == dict.fromkeys(_TROUBLE, 0) | dict.fromkeys(_COUNTED, 1)


_FORM = (
    b"--cut\r\ncontent-disposition: form-data; name=model\r\n\r\nauto\r\n"
    b"--cut\r\ncontent-disposition: form-data; name=file; filename=a.wav\r\n\r\n\x00\xff\x01\r\n--cut--\r\n"
)


@pytest.mark.parametrize(
    ("method", "path", "body", "content_type", "status"),
    [
        ("GET", "/v1/models", None, None, 200),
        ("POST", "/v1/embeddings", b'{"model":"auto","input":"Prove that 17 is prime."}', "application/json", 404),
        ("POST", "/v1/audio/transcriptions", _FORM, "multipart/form-data; boundary=cut", 404),
        ("GET", "/v1/chat/completions", None, None, 405),
    ],
)
def test_what_is_not_ours_costs_none(
    stack: Stack, method: str, path: str, body: bytes | None, content_type: str | None, status: int
) -> None:
    """Envoy answers other paths and methods itself, without a message to the router or an upstream."""
    before, arrived = _counted(stack), len(stack.upstreams.received)
    answer = send(stack.port, path, body, {"content-type": content_type} if content_type else {}, method)
    assert (answer.status, len(stack.upstreams.received)) == (status, arrived)
    assert _since(stack, before) == dict.fromkeys((*_TROUBLE, *_COUNTED), 0)
