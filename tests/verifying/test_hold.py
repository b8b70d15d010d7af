"""The hold: which messages are buffered, and which replies are released."""

import gzip
import itertools
import zlib
from typing import get_args

import msgspec
import pytest

from extproc.api.content_encoding import MAX_DECODED_BYTES
from extproc.api.strip import without_logprobs
from extproc.messages import BodyMode, Event, Reply
from extproc.verifying.hold import MAX_BUFFERED_BYTES, TRANSITIONS, Hold, State, Step

HEADERS = Event("response_headers", headers={":status": "200"})
TRAILERS = Event("response_trailers", True)
STREAMED: BodyMode = "STREAMED"
DUPLEX: BodyMode = "FULL_DUPLEX_STREAMED"
WHOLE = sorted(set(get_args(BodyMode)) - {STREAMED, DUPLEX})

FRAME = b'data: {"choices":[{"index":0,"delta":{"content":"Hi"},"logprobs":{"content":[{"logprob":-0.5}]}}]}\n\n'
BARE = b"data: " + without_logprobs("chat", FRAME[5:]) + b"\n\n"


def body(piece: bytes, end: bool = False) -> Event:
    return Event("response_body", end, piece)


def holding(mode: BodyMode, *events: Event, strip: bool = False) -> Hold:
    """Return a hold that has taken the headers and these messages."""
    hold = Hold(mode, body_before_reply=True, strip="chat" if strip else None)
    hold.begin(HEADERS, hold_stream=True)
    for event in (HEADERS, *events):
        hold.take(event)
    return hold


def piece(text: bytes, end: bool = False) -> Reply:
    return Reply("response_body", body=text, streamed=True, end=end)


# --- states -------------------------------------------------------------------------------------------------


def test_every_state_is_reached_and_a_hold_ends_once() -> None:
    assert {State.START, *TRANSITIONS.values()} == set(State)
    assert {step for _, step in TRANSITIONS} == set(Step)
    ended = {State.PASSING, State.DROPPING}
    assert not any(state in ended for state, _ in TRANSITIONS)


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("step", Step)
def test_a_step_follows_the_table_or_raises(state: State, step: Step) -> None:
    hold = holding(DUPLEX, body(b"a"))
    hold.state = state
    take_step = {
        Step.HOLD: lambda: hold.begin(HEADERS, hold_stream=True),
        Step.PASS: lambda: hold.skip(HEADERS),
        Step.RELEASE: hold.release,
        Step.DROP: hold.drop,
    }[step]
    if (state, step) in TRANSITIONS:
        take_step()
        assert hold.state is TRANSITIONS[state, step]
    else:
        with pytest.raises(KeyError):
            take_step()
        assert hold.state is state


@pytest.mark.parametrize(
    ("mode", "body_before_reply", "hold_stream", "end", "state"),
    [
        (STREAMED, True, True, False, State.HOLDING),
        (STREAMED, False, True, False, State.PASSING),  # Envoy would wait for us, and we for Envoy
        (STREAMED, True, False, False, State.PASSING),
        (DUPLEX, False, True, False, State.HOLDING),
        (DUPLEX, False, False, False, State.PASSING),
        (DUPLEX, False, False, True, State.HOLDING),  # headers without a body are the whole answer
        ("BUFFERED", False, False, False, State.HOLDING),
        ("NONE", True, False, True, State.HOLDING),
    ],
)
def test_the_mode_decides_whether_an_answer_can_be_held(
    mode: BodyMode, body_before_reply: bool, hold_stream: bool, end: bool, state: State
) -> None:
    hold = Hold(mode, body_before_reply)
    hold.begin(msgspec.structs.replace(HEADERS, end=end), hold_stream)
    assert hold.state is state


# --- streams ------------------------------------------------------------------------------------------------


def test_a_held_stream_is_released_complete_and_in_order() -> None:
    """In full duplex, the replies return the bytes. Otherwise each message has one reply without bytes."""
    events = [body(b"one "), body(b"two"), TRAILERS]
    assert holding(DUPLEX, *events).release() == [
        Reply("response_headers"),
        piece(b"one "),
        piece(b"two"),
        Reply("response_trailers"),
    ]
    assert holding(STREAMED, *events).release() == [
        Reply("response_headers"),
        Reply("response_body"),
        Reply("response_body"),
        Reply("response_trailers"),
    ]


@pytest.mark.parametrize("mode", [STREAMED, DUPLEX])
def test_after_the_release_each_message_passes(mode: BodyMode) -> None:
    hold = holding(mode, body(b"one "))
    hold.release()
    passed = hold.take(body(b"two", end=True))
    assert passed == [piece(b"two", end=True) if mode == DUPLEX else Reply("response_body")]


def test_a_dropped_answer_sends_nothing() -> None:
    hold = holding(DUPLEX, body(b"one "))
    assert hold.drop() == "response_headers"
    assert [hold.take(event) for event in (body(b"two"), TRAILERS)] == [[], []]


def test_a_message_before_the_headers_passes() -> None:
    assert Hold(DUPLEX).take(body(b"early")) == [piece(b"early")]


@pytest.mark.parametrize("mode", [STREAMED, DUPLEX])
def test_a_hold_is_full_above_its_limit(mode: BodyMode) -> None:
    hold = holding(mode, body(b"x" * MAX_BUFFERED_BYTES))
    assert not hold.full
    hold.take(body(b"x"))
    assert hold.full


@pytest.mark.parametrize("mode", [STREAMED, DUPLEX])
@pytest.mark.parametrize(
    ("event", "last"), [(HEADERS, False), (body(b"a"), False), (body(b"a", end=True), True), (TRAILERS, True)]
)
def test_a_stream_ends_where_envoy_says_so(mode: BodyMode, event: Event, last: bool) -> None:
    assert Hold(mode).is_last(event) is last


# --- log-probabilities --------------------------------------------------------------------------------------


GZIPPED = Event("response_headers", headers={":status": "200", "content-encoding": "gzip"})


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("mode", [STREAMED, DUPLEX])
def test_a_gzipped_stream_is_stripped_and_gzipped_again(mode: BodyMode, held: bool) -> None:
    """At any cut. The header of the encoding stays true, and each frame can be read when it comes."""
    stream = gzip.compress(FRAME) + gzip.compress(FRAME)
    for cut in range(1, len(stream)):
        hold = Hold(mode, body_before_reply=True, strip="chat")
        hold.begin(GZIPPED, hold_stream=held)
        parts = (body(stream[:cut]), body(stream[cut:], end=True))
        replies = [reply for part in parts for reply in hold.take(part)]
        if held:
            assert replies == [] and hold.content() == BARE * 2
            replies = hold.release()
        assert len(replies) == 2
        assert gzip.decompress(b"".join(reply.body or b"" for reply in replies)) == BARE * 2
        if cut >= len(stream) // 2:
            assert zlib.decompressobj(31).decompress(replies[0].body or b"").startswith(BARE)


def test_a_gzipped_stream_ends_before_its_damage() -> None:
    hold = Hold(DUPLEX, strip="chat")
    hold.begin(GZIPPED, hold_stream=False)
    whole, damage = gzip.compress(FRAME), b"\x1f\x8b\x08 damage"
    [first] = hold.take(body(whole[:-8]))
    assert hold.take(body(damage)) == [piece(b"")]
    [last] = hold.take(body(whole, end=True))
    unpacked = zlib.decompressobj(31)
    assert unpacked.decompress((first.body or b"") + (last.body or b"")) == BARE and not unpacked.eof


@pytest.mark.parametrize("sent", ["raw deflate", "plain", "empty"])
@pytest.mark.parametrize("mode", [STREAMED, DUPLEX])
def test_a_stream_that_is_not_what_its_header_says_passes_unchanged(mode: BodyMode, sent: str) -> None:
    """At any cut, and also an encoding that we do not know. Some clients can read it."""
    packer = zlib.compressobj(wbits=-15)
    stream = {"raw deflate": packer.compress(FRAME) + packer.flush(), "plain": FRAME, "empty": gzip.compress(b"")}
    whole = stream[sent]
    for cut, encoding in itertools.product(range(1, len(whole)), ("gzip" if sent == "empty" else "deflate", "br")):
        hold = Hold(mode, strip="chat")
        begins = Event("response_headers", headers={":status": "200", "content-encoding": encoding})
        hold.begin(begins, hold_stream=False)
        parts = (body(whole[:cut]), body(whole[cut:], end=True))
        replies = [reply for part in parts for reply in hold.take(part)]
        if encoding == "br" and mode == STREAMED:
            assert replies == [Reply("response_body")] * 2
        else:
            assert b"".join(reply.body or b"" for reply in replies) == whole


@pytest.mark.parametrize("missing", [1, 8, 12])
def test_a_gzipped_stream_that_is_cut_stays_cut(missing: int) -> None:
    """A client can see that something is missing."""
    hold = Hold(DUPLEX, strip="chat")
    hold.begin(GZIPPED, hold_stream=False)
    [reply] = hold.take(body(gzip.compress(FRAME)[:-missing], end=True))
    unpacked = zlib.decompressobj(31)
    assert BARE.startswith(unpacked.decompress(reply.body or b"")[:10]) and not unpacked.eof


def test_a_long_gzipped_stream_is_not_cut() -> None:
    """The limit of the decoder is for the memory, so it counts for each chunk."""
    hold = Hold(DUPLEX, strip="chat")
    hold.begin(GZIPPED, hold_stream=False)
    chunk = gzip.compress(b"data: " + bytes(MAX_DECODED_BYTES // 2) + b"\n\n", 1)
    unpacked, length = zlib.decompressobj(31), 0
    for number in range(4):
        [reply] = hold.take(body(chunk, end=number == 3))
        length += len(unpacked.decompress(reply.body or b""))
    assert length == 4 * (MAX_DECODED_BYTES // 2 + 8) and unpacked.eof


def test_a_gzipped_whole_answer_is_stripped_and_gzipped_again() -> None:
    answer = FRAME[5:].strip()
    hold = Hold("BUFFERED", strip="chat")
    hold.begin(GZIPPED, hold_stream=False)
    assert hold.take(body(gzip.compress(answer), end=True)) == []
    assert hold.content() == without_logprobs("chat", answer)
    [reply] = hold.release()
    assert gzip.decompress(reply.body or b"") == without_logprobs("chat", answer) != answer
    assert reply.remove == ("content-length",)


@pytest.mark.parametrize("mode", ["BUFFERED", STREAMED])
@pytest.mark.parametrize("encoding", ["br", "gzip"])
def test_bytes_that_cannot_be_decoded_are_not_kept(mode: BodyMode, encoding: str) -> None:
    """A whole answer passes unchanged."""
    hold = Hold(mode, body_before_reply=True, strip="chat")
    begins = Event("response_headers", headers={":status": "200", "content-encoding": encoding})
    hold.begin(begins, hold_stream=True)
    assert hold.take(body(b"\x0b\x02\x80", end=True)) == []
    assert hold.content() is None
    if mode == "BUFFERED":
        assert [reply.body for reply in hold.release()] == [b"\x0b\x02\x80"]


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("cut", [0, 1, 40, len(FRAME) - 1, len(FRAME), len(FRAME) + 9])
def test_a_full_duplex_stream_is_stripped_at_any_cut(cut: int, held: bool) -> None:
    stream = FRAME * 2
    hold = Hold(DUPLEX, strip="chat")
    hold.begin(HEADERS, hold_stream=held)
    replies = [reply for part in (stream[:cut], stream[cut:]) for reply in hold.take(body(part))]
    if held:
        assert replies == [] and hold.content() == BARE * 2
        replies = hold.release()
    assert b"".join(reply.body or b"" for reply in replies) == BARE * 2


def test_a_frame_without_its_end_is_released_before_the_trailers() -> None:
    hold = Hold(DUPLEX, strip="chat")
    hold.skip(HEADERS)
    assert hold.take(body(b"data: {")) == [piece(b"")]
    assert hold.take(TRAILERS) == [piece(b"data: {"), Reply("response_trailers")]


def test_a_reply_to_half_a_frame_waits_for_the_other_half() -> None:
    """Envoy sends messages without a reply unchanged if our process ends, so no reply may end inside a frame."""
    hold = Hold(STREAMED, body_before_reply=True, strip="chat")
    hold.skip(HEADERS)
    assert hold.take(body(FRAME[:40])) == []
    assert hold.take(body(FRAME[40:60])) == []
    assert hold.take(body(FRAME[60:])) == [
        Reply("response_body", body=b""),
        Reply("response_body", body=b""),
        Reply("response_body", body=BARE),
    ]
    assert hold.take(body(b"data: {")) == []
    assert hold.take(TRAILERS) == [Reply("response_body", body=b"data: {"), Reply("response_trailers")]


# --- whole answers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", WHOLE)
def test_a_whole_answer_holds_its_body_only(mode: BodyMode) -> None:
    """Envoy sends the body after our reply to the headers, and the trailers after our reply to the body."""
    hold = Hold(mode)
    hold.begin(HEADERS, hold_stream=False)
    assert hold.take(HEADERS) == [Reply("response_headers")]
    answer = body(b'{"choices": []}')
    assert hold.take(answer) == [] and hold.is_last(answer)
    assert hold.content() == answer.body
    assert hold.release() == [Reply("response_body")]
    assert hold.take(TRAILERS) == [Reply("response_trailers")]


def test_trailers_of_an_answer_without_a_body_pass() -> None:
    hold = holding("BUFFERED")
    assert hold.take(TRAILERS) == [Reply("response_trailers")]


def test_a_stripped_whole_answer_loses_its_length() -> None:
    answer = FRAME[5:].strip()
    stripped = without_logprobs("chat", answer)
    hold = holding("BUFFERED", body(answer, end=True), strip=True)
    assert hold.content() == stripped != answer
    assert hold.release() == [Reply("response_body", body=stripped, remove=("content-length",))]


def test_a_whole_answer_that_is_not_held_is_unchanged() -> None:
    """An error of the upstream has no log-probabilities."""
    hold = Hold("BUFFERED", strip="chat")
    hold.skip(HEADERS)
    assert hold.take(body(FRAME[5:], end=True)) == [Reply("response_body")]
