"""Rows to label, drawn from a log: stratified by cohort and margin, one for each conversation and text.

Each drawn row gets the number of rows that it stands for. Weighted means over the sample estimate means over the
log (Horvitz and Thompson 1952).
"""

import re
from collections.abc import Hashable, Iterable, Sequence

import msgspec
import numpy as np

from extproc.evidence.execution import Execution, ask_of, trusted_cohort
from extproc.evidence.measure.metrics import Floats

_NUMBER = re.compile(r"\d+")


class Drawn(msgspec.Struct, frozen=True):
    """A row of the file, and the number of rows that it stands for."""

    line: int
    weight: float


class Draw(msgspec.Struct, frozen=True):
    """The rows to label, in the order of the file, and what they were drawn from."""

    rows: list[Drawn]
    texts: int  # different texts in the log
    units: int  # of these: one for each conversation
    strata: int


class _Units(msgspec.Struct, frozen=True, eq=False):
    """The rows that can be drawn, and the number of rows that each of them stands for."""

    rows: list[int]
    mass: Floats


def draw(run: Execution, size: int, seed: int) -> Draw:
    """Draw at most `size` rows. The same seed draws the same rows."""
    rng = np.random.default_rng(seed)
    rows = list(range(len(run.rows)))
    texts = _one_each(_Units(rows, run.weights()), [_text(run, i) for i in rows], rng)
    units = _one_each(texts, [run.rows[i].session or ("row", i) for i in texts.rows], rng)
    strata = _strata(_keys(run, units.rows), size)
    sizes = allocate([float(units.mass[members].sum()) for members in strata], list(map(len, strata)), size)
    drawn = []
    for members, n in zip(strata, sizes, strict=True):
        for at in rng.choice(members, n, replace=False):
            weight = float(units.mass[at]) * len(members) / n
            drawn.append(Drawn(run.rows[units.rows[at]].line, round(weight, 4)))
    return Draw(sorted(drawn, key=lambda row: row.line), len(texts.rows), len(units.rows), len(strata))


def _text(run: Execution, i: int) -> str:
    """The text of a person, without case, spacing and numbers: forms with another number are one text."""
    return _NUMBER.sub("0", " ".join(ask_of(run.rows[i], run.routed[i]).lower().split()))


def _one_each(units: _Units, keys: Sequence[Hashable], rng: np.random.Generator) -> _Units:
    """One unit for each key, drawn in proportion to its mass. It takes the mass of all units with the key."""
    groups: dict[Hashable, list[int]] = {}
    for at, key in enumerate(keys):
        groups.setdefault(key, []).append(at)
    rows, mass = [], []
    for members in groups.values():
        masses = units.mass[members]
        chosen = members[0] if len(members) == 1 else rng.choice(members, p=masses / masses.sum())
        rows.append(units.rows[chosen])
        mass.append(masses.sum())
    return _Units(rows, np.array(mass, dtype=np.float64))


def _keys(run: Execution, rows: Iterable[int]) -> list[tuple[str, str]]:
    """(nearest cohort, how sure its match is) of each row."""
    rows = list(rows)
    decisions = [run.routed[i].decision for i in rows]
    cohorts = [d.cohort.name if d.cohort is not None else d.reason.value for d in decisions]
    margins = [d.match.margin if d.match is not None else 0.0 for d in decisions]
    trusted = [trusted_cohort(run.routed[i]) is not None for i in rows]
    by_cohort: dict[str, list[float]] = {}
    for cohort, margin, is_trusted in zip(cohorts, margins, trusted, strict=True):
        if is_trusted:
            by_cohort.setdefault(cohort, []).append(margin)
    middle = {cohort: float(np.median(values)) for cohort, values in by_cohort.items()}
    return [
        (cohort, "rejected" if not is_trusted else "clear" if margin >= middle[cohort] else "near")
        for cohort, margin, is_trusted in zip(cohorts, margins, trusted, strict=True)
    ]


def _strata(keys: Sequence[tuple[str, str]], size: int) -> list[list[int]]:
    """The positions of the units by stratum. With fewer rows than strata, strata are joined."""
    for reduce in (lambda key: key, lambda key: key[1], lambda key: None):
        groups: dict[Hashable, list[int]] = {}
        for at, key in enumerate(keys):
            groups.setdefault(reduce(key), []).append(at)
        if len(groups) <= size:
            break
    return list(groups.values())


def allocate(masses: Sequence[float], available: Sequence[int], size: int) -> list[int]:
    """How many rows each stratum gives: in proportion to the root of its mass, at least one, at most all."""
    sizes = [min(1, n) for n in available]
    roots = np.sqrt(masses)
    while sum(sizes) < min(size, sum(available)):
        open_ = [k for k, n in enumerate(available) if sizes[k] < n]
        short = max(open_, key=lambda k: roots[k] / (sizes[k] + 1))
        sizes[short] += 1
    return sizes
