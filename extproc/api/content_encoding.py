"""Decodes an answer that its upstream compressed without being asked, and encodes one again that we changed.

It decodes gzip and deflate, with the standard library. How much is decoded is limited, because a small body may
unpack to gigabytes.
"""

import zlib
from collections.abc import Iterator

from extproc.api.paths import Api
from extproc.api.sse import MalformedAnswer
from extproc.api.strip import StreamStripper, without_logprobs

# Limit of the decoded bytes of one answer: twice the largest JSON answer that is read.
MAX_DECODED_BYTES = 16 << 20
_PIECE_BYTES = 64 * 1024
# A gzip member counts as this many bytes, beside its content. An empty one has 20 bytes, and takes 10 us.
_MEMBER_BYTES = 1024
_GZIP = zlib.MAX_WBITS | 16
_GZIP_OR_ZLIB = zlib.MAX_WBITS | 32
_LEVEL = 1  # of compression: the fastest one
# The value of the header -> the format in which `zlib` writes it.
_FORMATS = {"gzip": _GZIP, "x-gzip": _GZIP, "deflate": zlib.MAX_WBITS}


def encoding_of(header: str | None) -> str:
    """Return the value of a header content-encoding, in lower case. Empty: the bytes are plain."""
    encoding = (header or "").strip().lower()
    return "" if encoding == "identity" else encoding


def can_decode(encoding: str) -> bool:
    """Whether `Decoder` reads this encoding."""
    return encoding in _FORMATS


class Decoder:
    """Decodes one answer that arrives cut at any byte. Bytes after its last gzip member are ignored."""

    def __init__(self, max_bytes: int = MAX_DECODED_BYTES) -> None:
        self._member = zlib.decompressobj(_GZIP_OR_ZLIB)
        self.room = max_bytes
        self._is_first, self._ended = True, False
        self.is_whole = False  # every member that has begun has ended

    def feed(self, piece: bytes) -> Iterator[bytes]:
        """Yield the decoded bytes. Raises MalformedAnswer if they are damaged, or more than the limit."""
        for start in range(0, len(piece), _PIECE_BYTES):  # zlib copies what it has not read after each step
            yield from self._feed(piece[start : start + _PIECE_BYTES])

    def _feed(self, piece: bytes) -> Iterator[bytes]:
        more = not self._ended
        while more:
            decoded = self._decode(piece)
            self.room -= len(decoded)
            if self.room < 0:
                raise MalformedAnswer("answer too large")
            if decoded:
                yield decoded
            if self._member.eof:
                piece = self._next_member()
                more = bool(piece)
            else:
                piece = self._member.unconsumed_tail
                more = (bool(piece) or len(decoded) == _PIECE_BYTES) and not self._ended

    def _decode(self, piece: bytes) -> bytes:
        self.is_whole = False
        try:
            return self._member.decompress(piece, _PIECE_BYTES)
        except zlib.error as error:
            if self._is_first:
                raise MalformedAnswer("compressed") from error
            self._ended = self.is_whole = True
            return b""

    def _next_member(self) -> bytes:
        """Begin the next member, and return the bytes that are left for it."""
        rest = self._member.unused_data
        self.room -= _MEMBER_BYTES
        self.is_whole = True
        self._member, self._is_first = zlib.decompressobj(_GZIP), False
        return rest


def is_whole(body: bytes, end: str) -> bool:
    """Whether a gzip body with this `end` holds exactly these bytes. `end` is its last eight bytes in hexadecimal.

    A member of gzip ends with the checksum and the length of its content (RFC 1952). A request without bytes has no
    end, and nothing is missing from it.
    """
    if not end:
        return not body
    length = len(body) & 0xFFFFFFFF
    return end == (zlib.crc32(body).to_bytes(4, "little") + length.to_bytes(4, "little")).hex()


def decoded(body: bytes, encoding: str, max_bytes: int = MAX_DECODED_BYTES) -> bytes | None:
    """Return a body decoded, or None if that is not possible."""
    if not encoding:
        return body
    try:
        return b"".join(Decoder(max_bytes).feed(body)) if can_decode(encoding) else None
    except MalformedAnswer:
        return None


def body_without_logprobs(api: Api, body: bytes, encoding: str) -> bytes:
    """Return an answer without log-probabilities, in its own encoding. It is unchanged if we cannot decode it."""
    plain = decoded(body, encoding)
    if plain is None:
        return body
    stripped = without_logprobs(api, plain)
    return zlib.compress(stripped, _LEVEL, wbits=_FORMATS[encoding]) if encoding else stripped


class EncodedStripper(StreamStripper):
    """A `StreamStripper` for a compressed stream: decodes it, and encodes every frame as soon as it is whole.

    A stream of which nothing can be decoded passes unchanged. A stream that is damaged or cut
    later ends there, without the end of its encoding.
    """

    def __init__(self, api: Api, encoding: str) -> None:
        super().__init__(api)
        self._decoder: Decoder | None = Decoder()
        self._encoder = zlib.compressobj(_LEVEL, wbits=_FORMATS[encoding])
        self._head = b""  # what came before the first decoded byte
        self._decodes = False  # a decoded byte came

    def feed(self, chunk: bytes, end: bool) -> bytes:
        """Return the encoded frames that are whole, and at the `end` the rest."""
        decoded = self._decoded(chunk)
        if not self._decodes:
            return self._unread(chunk, end)
        stripped = super().feed(decoded, end)
        return (self._encoder.compress(stripped) if stripped else b"") + self._flush(stripped, end)

    def _decoded(self, chunk: bytes) -> bytes:
        if self._decoder is None:
            return b""
        self._decoder.room = MAX_DECODED_BYTES  # of each chunk. Earlier ones have left the memory
        pieces: list[bytes] = []
        try:
            pieces.extend(self._decoder.feed(chunk))
        except MalformedAnswer:
            self._decoder = None
        self._decodes = self._decodes or bool(pieces)
        return b"".join(pieces)

    def _unread(self, chunk: bytes, end: bool) -> bytes:
        """Keep the bytes while they may begin a compressed text. Return them if they do not, and at the `end`."""
        self._head += chunk
        if self._decoder is not None and not end and len(self._head) <= _PIECE_BYTES:
            return b""
        self._decoder, head, self._head = None, self._head, b""
        return head

    def _flush(self, stripped: bytes, end: bool) -> bytes:
        if end and self._decoder is not None and self._decoder.is_whole:
            return self._encoder.flush()
        return self._encoder.flush(zlib.Z_SYNC_FLUSH) if stripped else b""


def stripper(api: Api, encoding: str) -> StreamStripper | None:
    """Return what removes the log-probabilities from a stream with this encoding. None: we cannot decode it."""
    if not encoding:
        return StreamStripper(api)
    return EncodedStripper(api, encoding) if can_decode(encoding) else None
