"""The rows of a file, read when they are needed. Each row takes 20 bytes of memory."""

import codecs
import os
import tempfile
import weakref
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")  # a row


class LineFile:
    """A file that stays open, so that its lines can be read again. A pipe or a packed file is copied first."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        """`file` has the lines without compression. It is duplicated, so the caller may close it."""
        self._path = path
        self._descriptor = os.dup(file.fileno())
        weakref.finalize(self, os.close, self._descriptor)

    def read(self, offset: int, length: int) -> bytes:
        """Return the content of a line, without space around it. Raises OSError if the file has become shorter."""
        raw = os.pread(self._descriptor, length, offset)
        if len(raw) < length:
            raise OSError(f"{self._path}: became shorter while it was read: run the command again on a copy")
        return content_of(raw, offset)


def content_of(raw: bytes, offset: int) -> bytes:
    """Return a line without space around it, and without the byte order mark of the first line."""
    return (raw.removeprefix(codecs.BOM_UTF8) if offset == 0 else raw).strip()


def is_read_in_place(path: Path) -> bool:
    """Return whether the file can be read twice without a copy."""
    return path.suffix != ".gz" and path.is_file()


def indexed_lines(file: BinaryIO) -> Iterator[tuple[int, int, int, bytes]]:
    """Yield (number from 1, offset, length, content) of every line that is not blank."""
    offset = 0
    for number, raw in enumerate(file, start=1):
        if content := content_of(raw, offset):
            yield number, offset, len(raw), content
        offset += len(raw)


def spooled(lines: Iterator[tuple[int, bytes]], spool: BinaryIO) -> Iterator[tuple[int, int, int, bytes]]:
    """Write lines into a file without a name, and yield them as `indexed_lines` does."""
    offset = 0
    for number, content in lines:
        spool.write(content + b"\n")
        yield number, offset, len(content) + 1, content
        offset += len(content) + 1
    spool.flush()


def new_spool() -> BinaryIO:
    """Open a file without a name for reading and writing."""
    return tempfile.TemporaryFile()


class RowIndex:
    """The places of rows in a file, gathered while it is read."""

    def __init__(self) -> None:
        self._places = array("q"), array("q"), array("q")

    def add(self, number: int, offset: int, length: int) -> None:
        """Note a row: the number of its line, and where the line is."""
        for column, value in zip(self._places, (number, offset, length), strict=True):
            column.append(value)

    def rows(self, file: LineFile, parse: Callable[[int, bytes], T]) -> "RowFile[T]":
        """Return the rows at these places."""
        numbers, offsets, lengths = (np.array(column, dtype=np.int64) for column in self._places)
        return RowFile(file, parse, numbers, offsets, lengths.astype(np.int32))


class RowFile(Sequence[T]):
    """Rows of a file. Each access reads and decodes the line again."""

    def __init__(
        self,
        file: LineFile,
        parse: Callable[[int, bytes], T],
        lines: NDArray[np.int64],
        offsets: NDArray[np.int64],
        lengths: NDArray[np.int32],
    ) -> None:
        self._file, self._parse, self._offsets, self._lengths = file, parse, offsets, lengths
        self.lines = lines  # int64[rows]: the numbers of the lines, from 1

    def __len__(self) -> int:
        return len(self.lines)

    @overload
    def __getitem__(self, at: int) -> T: ...
    @overload
    def __getitem__(self, at: slice) -> "RowFile[T]": ...
    def __getitem__(self, at: int | slice) -> "T | RowFile[T]":
        if isinstance(at, slice):
            return self.at(np.arange(len(self))[at])
        content = self._file.read(int(self._offsets[at]), int(self._lengths[at]))
        return self._parse(int(self.lines[at]), content)

    def at(self, positions: NDArray[np.int64]) -> "RowFile[T]":
        """Return the rows at these positions."""
        return RowFile(
            self._file, self._parse, self.lines[positions], self._offsets[positions], self._lengths[positions]
        )

    @property
    def places(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int32]]:
        """(line, offset, length) of every row."""
        return self.lines, self._offsets, self._lengths

    def with_places(
        self, lines: NDArray[np.int64], offsets: NDArray[np.int64], lengths: NDArray[np.int32]
    ) -> "RowFile[T]":
        """Return the rows of the same file at these places."""
        return RowFile(self._file, self._parse, lines, offsets, lengths)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]


def joined(parts: Sequence[RowFile[T]]) -> RowFile[T]:
    """Return the rows of parts of one file, one part after the other."""
    if len(parts) == 1:
        return parts[0]
    lines, offsets, lengths = zip(*(part.places for part in parts), strict=True)
    return parts[0].with_places(np.concatenate(lines), np.concatenate(offsets), np.concatenate(lengths))
