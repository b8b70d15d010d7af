"""The router's replies to the messages of a stream, found by asking a router."""

import asyncio
from collections.abc import Sequence
from typing import Any, get_args

from docs.generate.markdown import NOTICE, code, table
from extproc.messages import BodyMode, Event, Opening, Reply
from extproc.routing.exchange import RouterExchange
from extproc.routing.policy import Policy
from extproc.routing.router import Router
from extproc.routing.snapshot import Snapshot
from extproc.settings import Price, Tier

_HEADERS, _LONE_HEADERS = Event("request_headers"), Event("request_headers", end=True)
_CHUNK, _LAST, _TRAILERS = (
    Event("request_body", body=b"{"),
    Event("request_body", True, b"}"),
    Event("request_trailers", True),
)
_SEQUENCES: dict[str, Sequence[Event]] = {
    "the whole body; headers are skipped": (_LAST,),
    "headers, then the whole body": (_HEADERS, _LAST),
    "headers, then the body in two chunks": (_HEADERS, _CHUNK, _LAST),
    "headers, body, trailers": (_HEADERS, _CHUNK, _TRAILERS),
    "headers of a request without a body": (_LONE_HEADERS,),
}
# In these modes Envoy sends no chunks.
_WHOLE = ("NONE", "BUFFERED", "BUFFERED_PARTIAL")


def router_stream_table() -> str:
    """For each sequence of messages and each body mode: the replies, in order."""
    rows: dict[tuple[str, str], list[str]] = {}
    for name, events in _SEQUENCES.items():
        for mode in get_args(BodyMode):
            if _is_sent(mode, events):
                rows.setdefault((name, asyncio.run(_replies(mode, events))), []).append(mode)
    head = ("Envoy sends", "`request_body_mode`", "The router replies")
    lines = [(name, ", ".join(map(code, modes)), replies) for (name, replies), modes in rows.items()]
    return f"{NOTICE}\n\n{table(head, lines)}\n"


def _is_sent(mode: str, events: Sequence[Event]) -> bool:
    bodies = [event for event in events if event.kind == "request_body"]
    if mode == "NONE":
        return not bodies
    return len(bodies) < 2 or mode not in _WHOLE


async def _replies(mode: Any, events: Sequence[Event]) -> str:
    tier = Tier("large", "model", "http://host:80", 1, Price(0, 0))
    snapshot = Snapshot("", Policy((tier,), "large", {}), index=None)  # type: ignore[arg-type]
    stream = RouterExchange(Router(snapshot, embedder=None), Opening({}, mode, "NONE"))  # type: ignore[arg-type]
    told = []
    for event in events:
        told.append(" + ".join(map(_plain, await stream.answer(event))) or "nothing yet")
    return ", then ".join(told)


def _plain(reply: Reply) -> str:
    what = reply.kind.removeprefix("request_")
    if reply.metadata is not None:
        return f"**the decision** with the {what}"
    return "body goes on" if what == "body" else f"{what} go on"
