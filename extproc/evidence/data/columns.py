"""Columns that grow row by row and take little memory: numbers, and values of which equal ones are kept once."""

import math
from array import array
from collections.abc import Hashable, Mapping
from enum import Enum
from typing import Any, Generic, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")
Floats = NDArray[np.float64]


class NumberColumns:
    """Named columns of numbers. A column that no row has takes no memory."""

    def __init__(self) -> None:
        self._columns: dict[Hashable, array[float]] = {}
        self.rows = 0

    def add(self, values: Mapping[Hashable, float | None]) -> None:
        """Add a row. None: the row has no such number."""
        for name, value in values.items():
            if value is None:
                continue
            column = self._columns.setdefault(name, array("d"))
            column.extend([math.nan] * (self.rows - len(column)))
            column.append(value)
        self.rows += 1

    def has(self, name: Hashable) -> bool:
        """Return whether any row has this number."""
        return name in self._columns

    def column(self, name: Hashable) -> Floats:
        """Return float64[rows], NaN where a row does not have the number."""
        column = self._columns.get(name, array("d"))
        values = np.full(self.rows, np.nan)
        values[: len(column)] = column
        return values

    def get(self, name: Hashable, row: int) -> float | None:
        """Return one number, or None if the row does not have it."""
        column = self._columns.get(name)
        if column is None or row >= len(column):
            return None
        value = column[row]
        return None if math.isnan(value) else value


class Interned(Generic[T]):
    """A column of values, of which equal ones are kept once. Values are equal if their keys are."""

    def __init__(self) -> None:
        self._numbers: dict[Hashable, int] = {}
        self._values: list[T] = []
        self._column = array("i")

    def add(self, key: Hashable, value: T) -> None:
        """Add a row."""
        number = self._numbers.setdefault(key, len(self._values))
        if number == len(self._values):
            self._values.append(value)
        self._column.append(number)

    def __len__(self) -> int:
        return len(self._column)

    def __getitem__(self, row: int) -> T:
        return self._values[self._column[row]]

    @property
    def values(self) -> list[T]:
        """The different values."""
        return self._values

    def column(self) -> list[T]:
        """Return the value of every row."""
        return [self._values[number] for number in self._column]

    @property
    def numbers(self) -> NDArray[np.int32]:
        """int32[rows]: the place of each row's value in `values`."""
        return np.array(self._column, dtype=np.int32)

    def where(self, marked: list[bool]) -> NDArray[np.bool_]:
        """Return bool[rows]: the mark of each row's value. `marked` has one entry for each of `values`."""
        return np.array(marked, dtype=np.bool_)[self.numbers] if marked else np.zeros(0, dtype=np.bool_)

    def counts(self) -> list[tuple[T, int]]:
        """Return each different value with its number of rows."""
        rows = np.bincount(self.numbers, minlength=len(self._values))
        return [(value, int(count)) for value, count in zip(self._values, rows, strict=True)]


def key_of(value: Any, kept: tuple[type, ...]) -> Hashable:
    """Return a key that equal values have. Objects of the types `kept` are equal only if they are the same object.

    A caller that keeps one value for each key keeps those objects alive, so that no other object gets their id.
    """
    if isinstance(value, kept):
        return id(value)
    if isinstance(value, Enum | str | frozenset) or value is None:
        return value
    if isinstance(value, msgspec.Struct):
        return (type(value), *(key_of(each, kept) for each in msgspec.structs.astuple(value)))
    if isinstance(value, tuple):
        return tuple(key_of(each, kept) for each in value)
    return type(value), repr(value)
