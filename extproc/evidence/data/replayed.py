"""The labels and the recorded answers of many rows, and the answers that clients would have received.

They take little memory: numbers are kept, and equal values are kept once. The text of an answer is
read from the file again when something asks for it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, overload

import msgspec
import numpy as np
from numpy.typing import NDArray

from extproc.evidence.data.answers import ReplayedAnswer, Served, observed, recorded_under
from extproc.evidence.data.columns import Floats, Interned, NumberColumns
from extproc.evidence.data.decided import DecidedRows
from extproc.evidence.data.row_file import RowFile
from extproc.evidence.data.setting import SUFFIXES
from extproc.evidence.data.traffic import RecordedOutcome, Revealed, Row, reveal
from extproc.settings import Tier

_ANSWER = ("quality", "cost", "latency_s", "tokens_out", "propensity", "impossible")
_SERVED = ("quality", "first_quality", "cost", "latency_s", "propensity")


class OutcomeMark(msgspec.Struct, frozen=True):
    """The kept part of an outcome: its name, whether it is only a chance, and whether it has a propensity."""

    name: str
    is_chance: bool
    by_chance: bool


class RevealedRows(Sequence[Revealed]):
    """The labels and outcomes of rows. Labels are kept, and outcomes are decoded again when they are needed."""

    def __init__(self) -> None:
        self._rows: RowFile[Row] | None = None
        self.intents: Interned[Any] = Interned()  # the label of each row. None: out of scope. UNSET: it has none
        self.marks: Interned[tuple[OutcomeMark, ...]] = Interned()  # of each row, one for each outcome

    def add(self, revealed: Revealed) -> None:
        """Add the next row."""
        self.intents.add((type(revealed.intent), revealed.intent), revealed.intent)
        marks = tuple(_mark(name, outcome) for name, outcome in revealed.outcomes.items())
        self.marks.add(marks, marks)

    def end(self, rows: RowFile[Row]) -> None:
        """Say which rows of the file they are."""
        self._rows = rows

    def where(self, holds: Callable[[tuple[OutcomeMark, ...]], bool]) -> NDArray[np.bool_]:
        """Return bool[rows]: whether this holds for the marks of the row's outcomes."""
        return self.marks.where([holds(marks) for marks in self.marks.values])

    def __len__(self) -> int:
        return len(self.intents)

    @overload
    def __getitem__(self, at: int) -> Revealed: ...
    @overload
    def __getitem__(self, at: slice) -> list[Revealed]: ...
    def __getitem__(self, at: int | slice) -> Revealed | list[Revealed]:
        assert self._rows is not None, "end() is called after the last row"
        return [reveal(row) for row in self._rows[at]] if isinstance(at, slice) else reveal(self._rows[at])


def _mark(name: str, outcome: RecordedOutcome) -> OutcomeMark:
    return OutcomeMark(name, outcome.is_chance, outcome.propensity is not None)


class AnsweredRows(Sequence[dict[str, ReplayedAnswer]]):
    """The recorded answers of rows, by `setting_name`."""

    def __init__(self, tiers: Sequence[Tier]) -> None:
        self._tiers = {tier.name + suffix: (tier, suffix) for tier in tiers for suffix in SUFFIXES}
        self._numbers = NumberColumns()
        self._routed: DecidedRows | None = None
        self._revealed: RevealedRows | None = None

    def add(self, answers: Mapping[str, ReplayedAnswer]) -> None:
        """Add the next row."""
        numbers: dict[Any, float | None] = {}
        for name, answer in answers.items():
            numbers |= {(name, member): getattr(answer, member) for member in _ANSWER}
            numbers[name, "text"] = 1.0 if answer.observation is not None else None
        self._numbers.add(numbers)

    def end(self, routed: DecidedRows, revealed: RevealedRows) -> None:
        """Say which rows of the file they are."""
        self._routed, self._revealed = routed, revealed

    @property
    def names(self) -> list[str]:
        """The settings that any row has, the cheapest tier first."""
        return [name for name in self._tiers if self._numbers.has((name, "cost"))]

    @property
    def any_propensity(self) -> bool:
        """Whether any answer was recorded by chance."""
        return any(self._numbers.has((name, "propensity")) for name in self._tiers)

    def column(self, name: str, member: str) -> Floats:
        """Return float64[rows]: a number of the answers of one setting, or NaN."""
        return self._numbers.column((name, member))

    def __len__(self) -> int:
        return self._numbers.rows

    @overload
    def __getitem__(self, at: int) -> dict[str, ReplayedAnswer]: ...
    @overload
    def __getitem__(self, at: slice) -> list[dict[str, ReplayedAnswer]]: ...
    def __getitem__(self, at: int | slice) -> dict[str, ReplayedAnswer] | list[dict[str, ReplayedAnswer]]:
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(len(self)))]
        if not -len(self) <= at < len(self):
            raise IndexError(at)
        at %= len(self)
        answers = {}
        for name in self.names:
            if self._numbers.get((name, "cost"), at) is not None:
                answers[name] = self._answer(name, at)
        return answers

    def _answer(self, name: str, at: int) -> ReplayedAnswer:
        quality, cost, latency_s, tokens_out, propensity, impossible = (
            self._numbers.get((name, member), at) for member in _ANSWER
        )
        answer = None
        if self._numbers.get((name, "text"), at) is not None:
            assert self._routed is not None and self._revealed is not None, "end() is called after the last row"
            outcome = recorded_under(self._revealed[at].outcomes, *self._tiers[name])
            answer = observed(outcome, self._routed[at]) if outcome is not None else None
        return ReplayedAnswer(
            quality,
            cost or 0.0,
            latency_s,
            answer,
            None if tokens_out is None else int(tokens_out),
            propensity,
            None if impossible is None else int(impossible),
        )


class ServedRows(Sequence[Served | None]):
    """The answers that rows would have received. None: an answer that the row needs was not recorded."""

    def __init__(self) -> None:
        self._kinds: Interned[Served | None] = Interned()
        self._numbers = NumberColumns()

    def add(self, served: Served | None) -> None:
        """Add the next row."""
        if served is None:
            self._kinds.add(None, None)
            self._numbers.add({})
            return
        kind = msgspec.structs.replace(served, **dict.fromkeys(_SERVED, None))
        self._kinds.add((kind.path, kind.rejections, kind.judged, kind.unavailable, kind.bound, kind.person), kind)
        self._numbers.add({member: getattr(served, member) for member in _SERVED})

    def column(self, member: str) -> Floats:
        """Return float64[rows]: one of the numbers, or NaN."""
        return self._numbers.column(member)

    def where(self, holds: Callable[[Served], bool]) -> NDArray[np.bool_]:
        """Return bool[rows]: whether the row was served and this holds. Numbers cannot be asked for."""
        return self._kinds.where([kind is not None and holds(kind) for kind in self._kinds.values])

    def counts(self) -> list[tuple[Served, int]]:
        """Return the different ways in which rows were served, without numbers, with how many rows each."""
        return [(kind, rows) for kind, rows in self._kinds.counts() if kind is not None]

    def __len__(self) -> int:
        return len(self._kinds)

    @overload
    def __getitem__(self, at: int) -> Served | None: ...
    @overload
    def __getitem__(self, at: slice) -> list[Served | None]: ...
    def __getitem__(self, at: int | slice) -> Served | list[Served | None] | None:
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(len(self)))]
        if not -len(self) <= at < len(self):
            raise IndexError(at)
        at %= len(self)
        kind = self._kinds[at]
        if kind is None:
            return None
        numbers = {member: self._numbers.get(member, at) for member in _SERVED}
        return msgspec.structs.replace(kind, **numbers)

    def paths(self) -> list[tuple[str, ...]]:
        """Return the settings that answered each row, in order. (): the row was not served."""
        return [kind.path if (kind := self._kinds[i]) is not None else () for i in range(len(self))]
