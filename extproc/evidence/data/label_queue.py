"""The labelled rows that `extproc learn` collects, and the rows that wait for a person's label.

People edit `queue.jsonl`: they replace `"intent": "?"` by the name of an intent, or by null if the row belongs to
none. The labels of people and those of clients' feedback have a file each. A person's label counts first.
"""

import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from extproc.evidence.data.traffic import read_lines

Row = dict[str, Any]
# The label of a row that waits for one.
WAITING = "?"
# One row in three is held out for the gate.
_HELD_OUT = 3


class LabelQueue:
    """The files in one folder."""

    def __init__(self, folder: Path) -> None:
        self.waiting = folder / "queue.jsonl"
        self.unlabelled = folder / "unlabelled.jsonl"  # the rows of the last draw, to which its messages refer
        self._people, self._clients = folder / "labels_of_people.jsonl", folder / "labels_of_feedback.jsonl"

    def collect(self, log: Path) -> int:
        """Keep the labels in the queue and in a log with feedback. Return the number of rows that are new.

        Raises ValueError if a line of the queue cannot be read.
        """
        before = len(self._labelled())
        people = _by_key(_rows(self._people)) | _by_key(row for row in _rows(self.waiting) if _is_labelled(row))
        clients = _by_key(_rows(self._clients)) | _by_key(row for row in _rows(log) if _is_labelled(row))
        _write(self._people, people.values())
        _write(self._clients, clients.values())
        return len(self._labelled()) - before

    def fill(self, log: Path, draw: Callable[[Path], list[bytes]], size: int) -> int:
        """Let `size` rows wait. `draw` chooses rows from a file, to which the rows without a label are written.

        Rows that wait already stay. Return the number of rows that wait.
        """
        labelled = self._labelled()
        waiting = {key: row for key, row in _by_key(_rows(self.waiting)).items() if key not in labelled}
        if len(waiting) < size:
            rest = self.unlabelled
            _write(rest, (row for key, row in _by_key(_rows(log)).items() if key not in labelled | waiting))
            for line in draw(rest) if rest.stat().st_size else ():
                row = msgspec.json.decode(line, type=dict[str, Any])
                if len(waiting) < size:
                    waiting[_key(row)] = {"intent": WAITING} | row
        _write(self.waiting, waiting.values())
        return len(waiting)

    def split(self, fit: Path, held_out: Path) -> tuple[int, int]:
        """Write the labelled rows to fit on, and those that are held out. Return how many there are of each.

        The hash of its text decides where a row goes. So a row stays there, and the same text is never in both.
        """
        rows = list(self._labelled().values())
        parts: tuple[list[Row], list[Row]] = ([], [])
        for row in rows:
            parts[zlib.crc32(_text(row)) % _HELD_OUT == 0].append(row)
        _write(fit, parts[0])
        _write(held_out, parts[1])
        return len(parts[0]), len(parts[1])

    def _labelled(self) -> dict[str, Row]:
        return _by_key(_rows(self._clients)) | _by_key(_rows(self._people))


def _is_labelled(row: Row) -> bool:
    return "intent" in row and row["intent"] != WAITING


def _by_key(rows: Iterable[Row]) -> dict[str, Row]:
    return {_key(row): row for row in rows}


def _key(row: Row) -> str:
    return str(row["id"]) if row.get("id") is not None else f"{zlib.crc32(_text(row)):08x}"


def _text(row: Row) -> bytes:
    text = row.get("text")
    return msgspec.json.encode(row.get("request") if text is None else text)


def _rows(path: Path) -> Iterator[Row]:
    if not path.is_file():
        return
    for number, line in read_lines(path):
        try:
            yield msgspec.json.decode(line, type=dict[str, Any])
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path}:{number}: expected one JSON object in a line: {error}") from error


def _write(path: Path, rows: Iterable[Row]) -> None:
    """Replace a file atomically, and only if it changes, so that the editor of a person sees no needless change."""
    content = b"".join(msgspec.json.encode(row) + b"\n" for row in rows)
    if path.is_file() and path.read_bytes() == content:
        return
    beside = path.with_name(f".{path.name}.new")
    beside.write_bytes(content)
    os.replace(beside, path)
