"""Labelled or recorded traffic: one JSON object a line, in the format that docs/evidence.md lays down.

What a row asks is decoded at once; its label and its outcomes stay undecoded bytes until `reveal`, so that
nothing can be decided or fitted with sight of them by mistake.
"""

import codecs
import gzip
import hashlib
import zlib
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType

from extproc.api.request import APIS, path_of

OUT_OF_SCOPE_LABEL = "oos"  # may be written for null
_CHAT = "/v1/chat/completions"

TokenCount = Annotated[int, Meta(ge=0)]


class RecordedOutcome(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one tier answered, and how good it was."""

    success: bool | None = None
    quality: Annotated[float, Meta(ge=0, le=1)] | None = None
    tokens_in: TokenCount | None = None
    tokens_out: TokenCount | None = None
    latency_s: Annotated[float, Meta(ge=0)] | None = None
    answer: str | None = None  # its text
    finish: str = "stop"  # the finish reason that came with it
    response: msgspec.Raw = msgspec.Raw()  # or the whole JSON that the upstream sent, instead of the two

    def __post_init__(self) -> None:
        if self.success is not None and self.quality is not None:
            raise ValueError("give `success` or `quality`, not both")
        if self.answer is not None and bytes(self.response):
            raise ValueError("give `answer` or `response`, not both")

    @property
    def worth(self) -> float | None:
        """Quality from 0 to 1; a success is 1. None: not known."""
        return float(self.success) if self.success is not None else self.quality


class Known(msgspec.Struct, frozen=True):
    """What is known of a row beyond what it asks."""

    intent: str | UnsetType | None = UNSET  # None: out of scope; UNSET: nobody labelled it
    outcomes: dict[str, RecordedOutcome] = {}  # by tier, or by the name of a tier's model


class Row(msgspec.Struct, frozen=True):
    """One request of the traffic."""

    line: int
    text: str | None  # a person's words alone, or
    body: bytes | None  # a whole request
    path: str
    headers: dict[str, str]
    session: str | None
    time: datetime | float | None
    sealed: tuple[bytes, bytes]  # the label and the outcomes as JSON, not yet looked at
    variants: dict[str, str] = {}  # the same ask put otherwise by whoever recorded it: translations, paraphrases

    def request(self, model: str) -> tuple[bytes, dict[str, str]]:
        """(body, headers) as the router gets them; a text becomes a chat request for `model`."""
        body = self.body
        if body is None:
            message = {"role": "user", "content": self.text}
            body = msgspec.json.encode({"model": model, "messages": [message]})
        return body, {**self.headers, ":path": self.path}

    def asking(self, words: str) -> "Row":
        """The same row with these words of the person instead: of a request, in its last user message."""
        if self.body is None:
            return msgspec.structs.replace(self, text=words)
        body = msgspec.json.decode(self.body)
        member = next(name for name in ("messages", "input", "prompt") if body.get(name))
        if member == "prompt" or isinstance(body[member], str):
            body[member] = words
        else:
            last = next(turn for turn in reversed(body[member]) if turn.get("role") == "user")
            last["content"] = words
        return msgspec.structs.replace(self, body=msgspec.json.encode(body))


class BadRow(msgspec.Struct, frozen=True):
    """A line that cannot be used, and why."""

    line: int
    what: str


class Traffic(msgspec.Struct, frozen=True):
    """A file of traffic: what can be used, what cannot, and the hash of all of it."""

    rows: list[Row]
    bad: list[BadRow]
    digest: str


class _Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    text: str | None = None
    request: msgspec.Raw = msgspec.Raw()
    path: str | None = None
    headers: dict[str, str] = {}
    intent: msgspec.Raw = msgspec.Raw()
    outcomes: msgspec.Raw = msgspec.Raw()
    id: str | int | None = None  # the user's own, to find the row again; not read
    session: str | None = None
    time: datetime | float | None = None
    variants: dict[str, str] = {}


_decode_line = msgspec.json.Decoder(_Line).decode
_decode_intent = msgspec.json.Decoder(str | None).decode
_decode_outcomes = msgspec.json.Decoder(dict[str, RecordedOutcome] | None).decode


def read_traffic(path: Path) -> Traffic:
    """Read a JSONL file, gzipped if its name ends in .gz; blank lines are passed over.

    Lines that cannot be used are in `bad`. Raises OSError.
    """
    rows: list[Row] = []
    bad: list[BadRow] = []
    digest = hashlib.sha256()
    for number, line in read_lines(path):
        digest.update(line + b"\n")
        try:
            rows.append(_row(number, line))
        except (ValueError, UnicodeDecodeError, RecursionError) as error:
            bad.append(BadRow(number, _plainly(error)))
    return Traffic(rows, bad, digest.hexdigest()[:12])


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """(number, content) of every line that is not blank, without the mark that some editors put before the first.

    Raises OSError, also for a broken gzip file.
    """
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as lines:
        try:
            for number, line in enumerate(lines, start=1):
                if content := (line.removeprefix(codecs.BOM_UTF8) if number == 1 else line).strip():
                    yield number, content
        except EOFError as error:
            raise OSError(f"{path}: ends in the middle of its compressed data") from error
        except (gzip.BadGzipFile, zlib.error) as error:
            raise OSError(f"{path}: its name ends in .gz, and it is no sound gzip file: {error}") from error


def _row(number: int, line: bytes) -> Row:
    read = _decode_line(line)
    body = bytes(read.request) or None
    if (read.text is None) == (body is None):
        raise ValueError("give either `text` or `request`")
    if read.text is not None and not read.text.strip():
        raise ValueError("`text` is empty")
    path = read.path or (_CHAT if body is None else path_of(body))
    if read.text is not None and path != _CHAT:
        raise ValueError("`path` belongs to a `request`, not to a `text`")
    if path.partition("?")[0] not in APIS:
        raise ValueError(f"`path` {path} is no API that is routed: {', '.join(APIS)}")
    headers = {name.lower(): value for name, value in read.headers.items()}
    sealed = bytes(read.intent), bytes(read.outcomes)
    return Row(number, read.text, body, path, headers, read.session, read.time, sealed, read.variants)


def reveal(row: Row) -> Known:
    """Decode what is known of a row. Raises ValueError."""
    intent, outcomes = row.sealed
    label: Any = _decode_intent(intent) if intent else UNSET
    known = (_decode_outcomes(outcomes) if outcomes else None) or {}
    return Known(None if label == OUT_OF_SCOPE_LABEL else label, known)


def reveal_all(rows: list[Row]) -> tuple[list[Known | None], list[BadRow]]:
    """What is known of every row, None where it cannot be read, and why it cannot."""
    known: list[Known | None] = []
    bad: list[BadRow] = []
    for row in rows:
        try:
            known.append(reveal(row))
        except (ValueError, UnicodeDecodeError, RecursionError) as error:
            known.append(None)
            bad.append(BadRow(row.line, _plainly(error)))
    return known, bad


def _plainly(error: Exception) -> str:
    return str(error).replace("Object contains unknown field", "unknown key")
