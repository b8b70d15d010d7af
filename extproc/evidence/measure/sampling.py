"""Rows to label, drawn from a log: stratified by cohort and margin, one for each conversation and text.

Each drawn row gets the number of rows that it stands for. Weighted means over the sample estimate means over the
log (Horvitz and Thompson 1952).
"""

from array import array
from collections.abc import Hashable, Sequence

import msgspec
import numpy as np

from extproc.evidence.data.groups import text_key
from extproc.evidence.execution import Execution, ask_of, trusted_cohort
from extproc.evidence.measure.metrics import Floats


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
    total: int  # rows in the log


class _Units(msgspec.Struct, frozen=True, eq=False):
    """The rows that can be drawn, and the number of rows that each of them stands for."""

    rows: list[int]
    mass: Floats


class Candidates(msgspec.Struct, frozen=True, eq=False):
    """The rows to draw from, as columns."""

    texts: Sequence[Hashable]  # rows with the same key have the same text
    sessions: Sequence[Hashable]  # rows with the same one are of one conversation. None or empty: its own
    weights: Floats  # how many rows of the traffic each row stands for
    cohorts: Sequence[str]  # the nearest one, or the reason why there is none
    margins: Floats
    trusted: Sequence[bool]


def draw(run: Execution, size: int, seed: int) -> Draw:
    """Draw at most `size` rows. The same seed draws the same rows."""
    texts, sessions, margins, trusted = array("q"), array("q"), array("d"), []
    for i, (row, routed) in enumerate(zip(run.rows, run.routed, strict=True)):
        texts.append(hash(text_key(ask_of(row, routed))))
        sessions.append(hash(("row", i) if not row.session else row.session))
        margins.append(routed.decision.match.margin if routed.decision.match is not None else 0.0)
        trusted.append(trusted_cohort(routed) is not None)
    candidates = Candidates(
        texts=texts,
        sessions=sessions,
        weights=run.weights(),
        cohorts=run.routed.column(lambda d: d.cohort.name if d.cohort is not None else d.reason.value),
        margins=np.array(margins, dtype=np.float64),
        trusted=trusted,
    )
    drawn = draw_from(candidates, size, seed)
    rows = [msgspec.structs.replace(row, line=int(run.rows.lines[row.line])) for row in drawn.rows]
    return msgspec.structs.replace(drawn, rows=rows)


def draw_from(candidates: Candidates, size: int, seed: int) -> Draw:
    """Do the same from columns. `line` of a drawn row is its position in them, from 0."""
    rng = np.random.default_rng(seed)
    rows = list(range(len(candidates.texts)))
    texts = _one_each(_Units(rows, candidates.weights), candidates.texts, rng)
    units = _one_each(texts, [candidates.sessions[i] or ("row", i) for i in texts.rows], rng)
    strata = _strata(_keys(candidates, units.rows), size)
    sizes = allocate([float(units.mass[members].sum()) for members in strata], list(map(len, strata)), size)
    drawn = []
    for members, n in zip(strata, sizes, strict=True):
        for at in rng.choice(members, n, replace=False):
            weight = float(units.mass[at]) * len(members) / n
            drawn.append(Drawn(units.rows[at], round(weight, 4)))
    return Draw(sorted(drawn, key=lambda row: row.line), len(texts.rows), len(units.rows), len(strata), len(rows))


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


def _keys(candidates: Candidates, rows: Sequence[int]) -> list[tuple[str, str]]:
    """(nearest cohort, how sure its match is) of each row."""
    cohorts, trusted = [candidates.cohorts[i] for i in rows], [candidates.trusted[i] for i in rows]
    margins = candidates.margins[rows].tolist() if rows else []
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
