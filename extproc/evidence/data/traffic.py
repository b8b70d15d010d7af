"""Labelled or recorded traffic: one JSON object per line, in the format of docs/reference/traffic.md.

The request of a row is decoded when it is read. Its label and its outcomes stay undecoded bytes until `reveal`, so
that no decision and no fit can use them by mistake.
"""

import codecs
import gzip
import hashlib
import re
import zlib
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType

from extproc.api.paths import APIS
from extproc.api.request import path_of
from extproc.evidence.data.row_file import (
    LineFile,
    RowFile,
    RowIndex,
    indexed_lines,
    is_read_in_place,
    new_spool,
    spooled,
)
from extproc.mismatch import suggestion

OUT_OF_SCOPE_LABEL = "oos"  # means the same as null
_CHAT = "/v1/chat/completions"

TokenCount = Annotated[int, Meta(ge=0)]
Weight = Annotated[float, Meta(ge=1e-9, le=1e12)]  # squares of sums stay finite
Propensity = Annotated[float, Meta(gt=0, le=1)]


class RecordedOutcome(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The answer of one tier, and how good it was. Every member is optional."""

    success: bool | None = None
    quality: Annotated[float, Meta(ge=0, le=1)] | None = None
    tokens_in: TokenCount | None = None
    tokens_out: TokenCount | None = None
    latency_s: Annotated[float, Meta(ge=0)] | None = None
    answer: str | None = None  # the text of the answer
    finish: str = "stop"  # the finish reason of that text
    response: msgspec.Raw = msgspec.Raw()  # the whole JSON that the upstream sent, instead of `answer` and `finish`
    propensity: Propensity | None = None  # the chance that this answer was recorded; None: it was not by chance

    def __post_init__(self) -> None:
        if self.success is not None and self.quality is not None:
            raise ValueError("found `success` and `quality`: give only one of them")
        if self.answer is not None and bytes(self.response):
            raise ValueError("found `answer` and `response`: give only one of them")

    @property
    def worth(self) -> float | None:
        """The quality (0 to 1). A success is 1 and a failure is 0. None: not recorded."""
        return float(self.success) if self.success is not None else self.quality

    @property
    def is_chance(self) -> bool:
        """Whether it says only that the tier had a chance to be asked, and was not drawn."""
        return self.propensity is not None and self == RecordedOutcome(propensity=self.propensity)


class Revealed(msgspec.Struct, frozen=True):
    """The label and the outcomes of a row."""

    intent: str | UnsetType | None = UNSET  # None: out of scope; UNSET: the row has no label
    outcomes: dict[str, RecordedOutcome] = {}  # by the name of a setting; the tier may be named by its model


class Row(msgspec.Struct, frozen=True):
    """One request of the traffic. Either `text` or `body` is None."""

    line: int
    text: str | None  # only the words of a person
    body: bytes | None  # a whole request
    path: str
    headers: dict[str, str]
    session: str | None
    user: str | None
    time: datetime | float | None
    sealed: tuple[bytes, bytes]  # the label and the outcomes as JSON, not decoded yet
    variants: dict[str, str] = {}  # the same ask in other words, by name: translations, paraphrases
    weight: float = 1.0  # how many rows of the traffic it stands for
    source: str | None = None  # where it comes from, such as an app. None: not known

    def request(self, model: str) -> tuple[bytes, dict[str, str]]:
        """Return (body, headers) as the router receives them. A text becomes a chat request for `model`."""
        body = self.body
        if body is None:
            message = {"role": "user", "content": self.text}
            body = msgspec.json.encode({"model": model, "messages": [message]})
        return body, {**self.headers, ":path": self.path}

    def asking(self, text: str) -> "Row":
        """Return the row with these words of the person. In a request they replace the last user message."""
        if self.body is None:
            return msgspec.structs.replace(self, text=text)
        body = msgspec.json.decode(self.body)
        member = next(name for name in ("messages", "input", "prompt") if body.get(name))
        if member == "prompt" or isinstance(body[member], str):
            body[member] = text
        else:
            last = next(turn for turn in reversed(body[member]) if turn.get("role") == "user")
            last["content"] = text
        return msgspec.structs.replace(self, body=msgspec.json.encode(body))


class BadRow(msgspec.Struct, frozen=True):
    """A line that cannot be used, and the reason."""

    line: int
    what: str


class Traffic(msgspec.Struct, frozen=True):
    """A file of traffic. Its rows stay in the file, which must not be written to while they are used."""

    rows: RowFile[Row]
    bad: list[BadRow]
    digest: str  # the hash of all lines that are not blank


class _Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    text: str | None = None
    request: msgspec.Raw = msgspec.Raw()
    path: str | None = None
    headers: dict[str, str] = {}
    intent: msgspec.Raw = msgspec.Raw()
    outcomes: msgspec.Raw = msgspec.Raw()
    id: str | int | None = None  # not read; users find their row by it
    session: str | None = None
    user: str | None = None
    time: datetime | float | None = None
    variants: dict[str, str] = {}
    weight: Weight = 1.0
    source: str | None = None


_decode_line = msgspec.json.Decoder(_Line).decode
_decode_intent = msgspec.json.Decoder(str | None).decode
_decode_outcomes = msgspec.json.Decoder(dict[str, RecordedOutcome] | None).decode


def read_traffic(path: Path) -> Traffic:
    """Read a file of JSON lines, which is gzipped if its name ends in .gz. Blank lines are skipped.

    Lines that cannot be used are returned in `bad`. Raises OSError.
    """
    index, bad, digest = RowIndex(), [], hashlib.sha256()
    in_place = is_read_in_place(path)
    with path.open("rb") if in_place else new_spool() as file:
        for number, offset, length, line in indexed_lines(file) if in_place else spooled(read_lines(path), file):
            digest.update(line + b"\n")
            try:
                parse_row(number, line)
            except (ValueError, UnicodeDecodeError, RecursionError) as error:
                bad.append(BadRow(number, _not_json(line, error) or _message(error)))
            else:
                index.add(number, offset, length)
        return Traffic(index.rows(LineFile(path, file), parse_row), bad, digest.hexdigest()[:12])


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield (number, content) of every line that is not blank. A byte order mark is left out.

    Raises OSError, also if a gzip file is damaged.
    """
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as lines:
        try:
            for number, line in enumerate(lines, start=1):
                if content := (line.removeprefix(codecs.BOM_UTF8) if number == 1 else line).strip():
                    yield number, content
        except EOFError as error:
            raise OSError(f"{path}: ends in the middle of its compressed data: write the file again") from error
        except (gzip.BadGzipFile, zlib.error) as error:
            raise OSError(f"{path}: is not a valid gzip file, although its name ends in .gz: {error}") from error


def parse_row(number: int, line: bytes) -> Row:
    """Read one line. Raises ValueError, UnicodeDecodeError or RecursionError if it cannot be used."""
    read = _decode_line(line)
    body = bytes(read.request) or None
    if (read.text is None) == (body is None):
        raise ValueError(f"found {'neither' if body is None else 'both'} of `text` and `request`: give one of them")
    if read.text is not None and not read.text.strip():
        raise ValueError("`text` is empty: give the words of the request")
    path = read.path or (_CHAT if body is None else path_of(body))
    if read.text is not None and path != _CHAT:
        raise ValueError("found `path` beside `text`: give `path` only with `request`")
    if path.partition("?")[0] not in APIS:
        raise ValueError(f"found `path` {path}: expected one of {', '.join(APIS)}")
    headers = {name.lower(): value for name, value in read.headers.items()}
    sealed = bytes(read.intent), bytes(read.outcomes)
    owner = read.session, read.user
    return Row(
        number, read.text, body, path, headers, *owner, read.time, sealed, read.variants, read.weight, read.source
    )


def reveal(row: Row) -> Revealed:
    """Decode the label and the outcomes of a row. Raises ValueError."""
    raw_intent, raw_outcomes = row.sealed
    label: Any = _decode_intent(raw_intent) if raw_intent else UNSET
    outcomes = (_decode_outcomes(raw_outcomes) if raw_outcomes else None) or {}
    return Revealed(None if label == OUT_OF_SCOPE_LABEL else label, outcomes)


def reveal_all(rows: Iterable[Row]) -> tuple[list[Revealed | None], list[BadRow]]:
    """Return the label and the outcomes of every row, or None if they cannot be read, and the rows with None."""
    revealed: list[Revealed | None] = []
    bad: list[BadRow] = []
    for row in rows:
        read = reveal_or_report(row)
        revealed.append(None if isinstance(read, BadRow) else read)
        if isinstance(read, BadRow):
            bad.append(read)
    return revealed, bad


def reveal_or_report(row: Row) -> Revealed | BadRow:
    """Decode the label and the outcomes of a row, or say why they cannot be read."""
    try:
        return reveal(row)
    except (ValueError, UnicodeDecodeError, RecursionError) as error:
        return BadRow(row.line, _message(error))


# The first bytes of files that are often taken for JSON lines.
_OTHER_FILES = {
    b"PAR1": "it is a Parquet file, for `extproc map --rows FOLDER`: write its rows as JSON lines",
    b"\x1f\x8b": "it is packed with gzip, and its name does not end in .gz: rename it",
    b"PK\x03\x04": "it is a zip file: unpack it",
    b"\xff\xfe": "it is in UTF-16: save it in UTF-8",
    b"\xfe\xff": "it is in UTF-16: save it in UTF-8",
    b"[": "it begins with a JSON list: write one object on each line, without commas between them",
}
_BARE_NUMBER = re.compile(rb"[:\[,]\s*(-?(?:NaN|Infinity))\b")


def other_file(path: Path) -> str | None:
    """The kind of a file that has no JSON lines, and the remedy. None: it is not known, or cannot be read again."""
    if not path.is_file():
        return None
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        head = file.readline(200).removeprefix(codecs.BOM_UTF8)
    kinds = (what for start, what in _OTHER_FILES.items() if head.startswith(start))
    looks_like_csv = b"{" not in head and any(separator in head for separator in b",;\t")
    return next(kinds, "it looks like CSV: write each row as a JSON object on one line" if looks_like_csv else None)


def _not_json(line: bytes, error: Exception) -> str | None:
    """The mistake in a line with a number that JSON does not have."""
    number = _BARE_NUMBER.search(line)
    if number is None or "malformed" not in str(error):
        return None
    return f"found {number[1].decode()}, which is not a number in JSON: leave the key out"


# The words of msgspec, and what a person would write.
_PLAIN = {
    "Object contains unknown field": "unknown key",
    "Input data was truncated": "the JSON object has no end: write each row on one line",
    "`float`": "a number",
    "`int`": "a whole number",
    "`str`": "text",
    "`bool`": "true or false",
    "`array`": "a list",
    "`object`": "an object",
    "`null`": "null",
    ", got ": ", found ",
}


def _message(error: Exception) -> str:
    """The mistake, with its place in front: "`weight`: expected `float` >= 1e-09"."""
    what, _, place = str(error).partition(" - at ")
    for word, plain in _PLAIN.items():
        what = what.replace(word, plain)
    if what.startswith("unknown key"):
        keys = RecordedOutcome if place else _Line
        what = f"{what}: {suggestion(what.split('`')[1], keys.__struct_fields__)}"
    if not place:
        return what
    place = place.strip("`").replace("$[...]", "outcomes.*").removeprefix("$.")
    return f"`{place}`: {what[0].lower()}{what[1:]}"
