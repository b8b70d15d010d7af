"""The router's side of one ext_proc stream: messages from Envoy in, replies out.

The messages that come depend on the processing mode that the operator configured. `router.py` decides.
"""

import time
from collections.abc import Mapping
from typing import Any

from extproc.api.content_encoding import is_whole
from extproc.api.errors import error_body, too_large_message
from extproc.api.observation import Usage
from extproc.api.paths import kept_id
from extproc.api.replay import Replay, write_answer, write_stream
from extproc.contract.names import HeaderName, Namespace
from extproc.contract.records import PackedRecord
from extproc.contract.words import Reason
from extproc.messages import Event, Opening, Reply
from extproc.routing.cache_store import KeptAnswer
from extproc.routing.record import asker_record, conversation_record, envoy_metadata
from extproc.routing.routed import Refusal, Routed
from extproc.routing.router import Router

# Modes in which no message holds the whole body. BUFFERED_PARTIAL may cut it anywhere.
_NO_WHOLE_BODY = ("NONE", "STREAMED", "BUFFERED_PARTIAL", "GRPC")
_NOT_WHOLE = (
    "the gzip body is damaged, or has bytes after its first member: send all of it as one member of gzip, with "
    "nothing after it"
)


class RouterExchange:
    """Routes the request of one stream and passes everything else on."""

    def __init__(self, router: Router, opening: Opening) -> None:
        """`opening` holds the headers and the processing mode of the stream."""
        self._router = router
        self._opening = opening
        modes = {"request_body": opening.request_body_mode, "response_body": opening.response_body_mode}
        self._echoed = {kind for kind, mode in modes.items() if mode == "FULL_DUPLEX_STREAMED"}
        self._full_duplex = "request_body" in self._echoed
        self._done = opening.request_body_mode in _NO_WHOLE_BODY  # routed, or nothing to route: the rest passes
        self._headers_replied = False
        self._headers_waiting = False  # full duplex: their reply needs the route
        self._buffered: list[bytes] = []  # chunks of a full-duplex body
        self._buffered_bytes = 0
        self.routed: Routed | None = None

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers of the request that Envoy has sent."""
        return self._opening.headers

    async def answer(self, event: Event) -> list[Reply]:
        """Return the replies to one message: one reply, or several at the end of a full-duplex body."""
        if event.kind == "request_headers" and self.routed is None and kept_id(self._path) is not None:
            return [await self._kept(event)]
        if self._done or not event.kind.startswith("request_"):
            return [self._passed(event)]
        if event.kind == "request_headers":
            return self._headers(event)
        if self._full_duplex:
            return await self._full_duplex_message(event)
        if event.kind == "request_body":
            self._done = True
            return [await self._whole_body(event)]
        return [self._passed(event)]

    def _headers(self, event: Event) -> list[Reply]:
        if self._full_duplex and not event.end:
            self._headers_waiting = True
            return []
        self._done = event.end  # no body will come
        self._headers_replied = True
        return [Reply("request_headers")]

    async def _kept(self, event: Event) -> Reply:
        """Send a request for a response by its id to the tier that made it."""
        self._done = True
        self.routed = routed = await self._router.route_kept(self._opening.headers)
        if routed.refusal is not None:
            return self._refused(event, routed, routed.refusal)
        return Reply(event.kind, headers=_route_headers(routed), metadata=self._metadata(routed))

    async def _whole_body(self, event: Event) -> Reply:
        routed = await self._route(event.body)
        if routed.refusal is not None:
            return self._refused(event, routed, routed.refusal)
        if routed.kept is not None:
            return self._replayed(event, routed, routed.kept)
        metadata = await self._router.work(len(event.body), self._metadata, routed)
        # If Envoy waits for us with the headers, they still have the length of the old body.
        changed = self._headers_replied and routed.mutation.body is not None
        return Reply(
            "request_body",
            headers=_route_headers(routed),
            remove=("content-length",) if changed else (),
            body=routed.mutation.body,
            metadata=metadata,
        )

    async def _full_duplex_message(self, event: Event) -> list[Reply]:
        """Buffer a chunk. At the end of the body, route it. Above the size limit, answer 413."""
        if event.kind == "request_body":
            self._buffered.append(event.body)
            self._buffered_bytes += len(event.body)
        limit = self._router.snapshot.policy.max_body_bytes
        too_long = self._buffered_bytes > limit
        if not event.end and not too_long:
            return []
        self._done = True
        body = b"".join(self._buffered) if self._buffered else None
        self._buffered.clear()
        if too_long:
            return [self._answered(event, 413, error_body(self._path, 413, too_large_message(limit)))]
        routed = await self._route(body or b"")  # trailers may come without a body
        if routed.refusal is not None:
            return [self._refused(event, routed, routed.refusal)]
        if routed.kept is not None:
            return [self._replayed(event, routed, routed.kept)]
        return self._full_duplex_replies(event, body, routed)

    def _full_duplex_replies(self, event: Event, body: bytes | None, routed: Routed) -> list[Reply]:
        """The replies to headers, body and trailers, as far as Envoy sent them. The first one has the route."""
        replies, trailers = [], event.kind == "request_trailers"
        headers: dict[str, str] | None = _route_headers(routed)
        metadata: dict[str, Any] | None = self._metadata(routed)
        if self._headers_waiting:
            replies.append(Reply("request_headers", headers=headers, metadata=metadata))
            headers = metadata = None
        if body is not None:
            if routed.mutation.body is not None:
                body = routed.mutation.body
            end = event.end and not trailers
            replies.append(Reply("request_body", headers, body, metadata=metadata, streamed=True, end=end))
        if trailers:
            replies.append(Reply("request_trailers"))
        return replies

    def _refused(self, event: Event, routed: Routed, refusal: Refusal) -> Reply:
        """Answer the client with an error."""
        reason = routed.decision.reason
        code = None if reason is Reason.BAD_REQUEST else reason
        body = error_body(self._path, refusal.status, refusal.message, code)
        return self._answered(event, refusal.status, body, reason, self._metadata(routed), refusal.headers)

    def _replayed(self, event: Event, routed: Routed, kept: KeptAnswer) -> Reply:
        """Answer the client with a kept answer, in the shape that it asked for."""
        look, request = routed.cached, routed.request
        assert look is not None and request is not None
        usage = Usage(kept.input, kept.output, kept.cached)
        replay = Replay(kept.text, kept.model, usage, int(time.time()))
        headers: dict[str, str] = {
            "content-type": "text/event-stream; charset=utf-8" if request.stream else "application/json",
            "age": str(look.age_s),
            HeaderName.CACHE: look.word,
            HeaderName.COHORT: routed.decision.counted_as,
            HeaderName.REASON: routed.decision.reason,
            HeaderName.TIER: kept.tier,
            HeaderName.ATTEMPTS: "0",
            HeaderName.ESCALATIONS: "0",
        }
        if request.stream:
            body = write_stream(request.api, replay, look.stream_usage)
        else:
            body = write_answer(request.api, replay)
        return Reply(
            "request_headers" if self._headers_waiting else event.kind,
            headers=headers,
            body=body,
            metadata=self._metadata(routed),
            status=200,
        )

    def _answered(
        self,
        event: Event,
        status: int,
        body: bytes,
        reason: Reason = Reason.BAD_REQUEST,
        metadata: dict[str, Any] | None = None,
        headers: Mapping[str, str] = {},  # it is only read
    ) -> Reply:
        """Answer the client. No filter of Envoy adds headers to this answer."""
        return Reply(
            "request_headers" if self._headers_waiting else event.kind,
            headers={"content-type": "application/json", HeaderName.REASON: reason, **headers},
            body=body,
            metadata=metadata,
            status=status,
        )

    @property
    def _path(self) -> str:
        return self._opening.headers.get(":path", "")

    async def _route(self, body: bytes) -> Routed:
        packed = self._opening.metadata.get(Namespace.PACKED)
        end = PackedRecord.from_metadata(packed).end if packed is not None else None
        if end is not None and not await self._router.work(len(body), is_whole, body, end):
            self.routed = self._router.refuse(_NOT_WHOLE, self._opening.headers)
        else:
            self.routed = await self._router.route(body, self._opening.headers)
        return self.routed

    def _metadata(self, routed: Routed) -> dict[str, Any]:
        headers, look = self._opening.headers, routed.cached
        charge = routed.payment.charge
        asker = asker_record(routed.snapshot, routed.identity, headers, routed.exploration, routed.kept, charge)
        conversation = None
        if self._router.remembers:
            conversation = conversation_record(
                routed.snapshot, routed.identity, routed.mutation, routed.request, self._opening.headers
            )
        record = look.record if look is not None else None
        return envoy_metadata(
            routed.record, routed.decision, routed.mutation, routed.request, asker, conversation, record
        )

    def _passed(self, event: Event) -> Reply:
        """The reply that changes nothing. A full-duplex body has to be sent back."""
        if event.kind in self._echoed:
            return Reply(event.kind, body=event.body, streamed=True, end=event.end)
        return Reply(event.kind)


def _route_headers(routed: Routed) -> dict[str, str]:
    return {HeaderName.CLUSTER: routed.mutation.cluster}
