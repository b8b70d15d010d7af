"""The decisions about many rows, in little memory: equal decisions are kept once.

A row's request is not kept. It is read from the file again when something asks for it.
"""

import itertools
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import cached_property
from typing import Any, Protocol, TypeVar, overload

import msgspec
import numpy as np
from numpy.typing import NDArray

from extproc.api.request import Request, RequestError, parse_request
from extproc.evidence.data.columns import Interned, NumberColumns, key_of
from extproc.evidence.data.row_file import RowFile
from extproc.evidence.data.traffic import Row
from extproc.routing.decision import Decision
from extproc.routing.index import Match
from extproc.routing.policy import Cohort, routable_model
from extproc.routing.signals import Signals, read_signals
from extproc.routing.snapshot import Snapshot
from extproc.routing.tasks import matched_asks
from extproc.settings import Tier

_NUMBERS = ("similarity", "margin", "chance", "runner_up_chance", "alike", "background", "gain")
_PLACE = "place"
T = TypeVar("T")
_Kind = tuple[str, str | None, tuple[str, ...]]  # the parts of a match that are not numbers


class Decided(Protocol):
    """A decision about a request, and what was read from the request. `Routed` is one."""

    @property
    def decision(self) -> Decision: ...
    @property
    def snapshot(self) -> Snapshot: ...
    @property
    def request(self) -> Request | None: ...
    @property
    def signals(self) -> Signals | None: ...


class DecidedRow:
    """The decision about a row. Its request and its signals are read from the row when they are needed."""

    def __init__(self, decision: Decision, snapshot: Snapshot, rows: RowFile[Row], at: int, place: int) -> None:
        """`place`: of the ask with the match, among those that were matched."""
        self.decision, self.snapshot = decision, snapshot
        self._rows, self._at, self._place = rows, at, place

    @cached_property
    def request(self) -> Request | None:
        """As in `Routed`. None: the body could not be read."""
        return request_of(self._rows[self._at], self.snapshot)

    @cached_property
    def signals(self) -> Signals | None:
        """As in `Routed`."""
        if self.request is None:
            return None
        signals = read_signals(self.request, self.snapshot.encoder.max_chars)
        if self._place:
            signals = msgspec.structs.replace(signals, ask=matched_asks(signals.ask)[self._place])
        return signals


def request_of(row: Row, snapshot: Snapshot) -> Request | None:
    """Return the request of a row, or None if its body cannot be read."""
    body, headers = row.request(routable_model(snapshot.policy.retarget))
    try:
        return parse_request(headers[":path"], body)
    except RequestError:
        return None


class DecidedRows(Sequence[DecidedRow]):
    """The decisions about the rows of a file, in their order."""

    def __init__(self, snapshot: Snapshot, rows: RowFile[Row]) -> None:
        """`rows`: at least one for each decision. Decisions are added in their order."""
        self.snapshot, self._rows = snapshot, rows
        self._snapshots: Interned[Snapshot] = Interned()
        self._decisions: Interned[Decision] = Interned()
        self._kinds: Interned[_Kind | None] = Interned()
        self._numbers = NumberColumns()
        self._at: NDArray[np.int64] | None = None  # None: every row, in order

    def add(self, decision: Decision, snapshot: Snapshot | None = None) -> None:
        """Add the decision about the next row. `snapshot` is that of its app, if it has one."""
        snapshot = self.snapshot if snapshot is None else snapshot
        self._snapshots.add(id(snapshot), snapshot)
        match = decision.match
        decision = msgspec.structs.replace(decision, match=None)
        self._decisions.add(key_of(decision, (Tier, Cohort)), decision)
        kind = None if match is None else (match.cohort, match.runner_up, tuple(match.tiers))
        self._kinds.add(kind, kind)
        if match is None:
            self._numbers.add({})
        else:
            numbers: dict[Hashable, float | None] = {name: getattr(match, name) for name in _NUMBERS}
            numbers |= {("tier", name): chance for name, chance in match.tiers.items()}
            numbers |= {("column", i): value for i, value in enumerate(match.columns)}
            self._numbers.add(numbers | ({_PLACE: float(match.place)} if match.place else {}))

    def of(self, rows: RowFile[Row], positions: NDArray[np.int64]) -> "DecidedRows":
        """Return the decisions at these positions, which are those about `rows`."""
        chosen = DecidedRows(self.snapshot, rows)
        chosen._decisions, chosen._kinds, chosen._numbers = self._decisions, self._kinds, self._numbers
        chosen._snapshots = self._snapshots
        chosen._at = positions if self._at is None else self._at[positions]
        return chosen

    def __len__(self) -> int:
        return len(self._decisions) if self._at is None else len(self._at)

    @overload
    def __getitem__(self, at: int) -> DecidedRow: ...
    @overload
    def __getitem__(self, at: slice) -> list[DecidedRow]: ...
    def __getitem__(self, at: int | slice) -> DecidedRow | list[DecidedRow]:
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(len(self)))]
        if not -len(self) <= at < len(self):
            raise IndexError(at)
        at %= len(self)
        place = at if self._at is None else int(self._at[at])
        ask = (self._numbers.get(_PLACE, place) or 0) if self._numbers.has(_PLACE) else 0
        return DecidedRow(self._decision(place), self._snapshots[place], self._rows, at, int(ask))

    def _decision(self, i: int) -> Decision:
        decision, kind = self._decisions[i], self._kinds[i]
        if kind is None:
            return decision
        cohort, runner_up, tiers = kind
        numbers: dict[str, Any] = {name: self._numbers.get(name, i) for name in _NUMBERS}
        chances = {name: self._numbers.get(("tier", name), i) or 0.0 for name in tiers}
        columns = tuple(self._columns(i))
        match = Match(cohort=cohort, runner_up=runner_up, tiers=chances, columns=columns, **numbers)
        return msgspec.structs.replace(decision, match=match)

    def _columns(self, i: int) -> Iterator[float]:
        """The columns of the prompt of a row."""
        for at in itertools.count():
            value = self._numbers.get(("column", at), i) if self._numbers.has(("column", at)) else None
            if value is None:
                return
            yield value

    @property
    def matched(self) -> NDArray[np.bool_]:
        """bool[rows]: the row has a match, trusted or not."""
        has = self._kinds.where([kind is not None for kind in self._kinds.values])
        return has if self._at is None else has[self._at]

    def column(self, of: Callable[[Decision], T]) -> list[T]:
        """Return a fact of every decision that does not depend on its match: decisions are given without it."""
        values = [of(decision) for decision in self._decisions.values]
        numbers = self._decisions.numbers
        return [values[number] for number in (numbers if self._at is None else numbers[self._at]).tolist()]
