"""The floors of all cohorts: a cohort's own, one of a pool of cohorts with few rows, or none."""

import math
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from extproc.evidence.fit.edits import DIGITS
from extproc.evidence.fit.floors import FloorKind, best_kind, choose_floors, least_rows
from extproc.evidence.fit.labelled import LabelledRows, Matches
from extproc.evidence.measure.metrics import Bools, exact_interval

# With fewer distinct rows, a cohort says too little about itself to share a floor with others.
LEAST_OWN = 5
# A cohort has its own floors if its rows are of this many times as many kinds as would show the risk. On prompts of
# public sources, floors of cohorts with fewer were wrong in 36 % of what they accepted on other sources.
_MANY = 5


class FloorChoice(msgspec.Struct, frozen=True):
    """The floors of one cohort."""

    floor: float = math.nan
    margin: float = 0.0
    pooled: bool = False  # the floors are those of a pool
    why: str = ""  # the reason that there are none

    @property
    def fitted(self) -> bool:
        """Whether there are floors."""
        return not math.isnan(self.floor)

    def accepted(self, matches: Matches) -> Bools:
        """Return which of these matches count. Without floors none does."""
        return matches.accepted(self.floor, self.margin)


def choose_all(
    rows: LabelledRows, floors: Mapping[str, float], risk: float
) -> tuple[Mapping[str, FloorChoice], FloorKind]:
    """Return the floors of every cohort, and the kind of threshold of the cohorts outside the pool.

    Cohorts whose own rows are too few for this risk, or too much alike, share one margin, which keeps the risk over
    all of them. Each has its own floor of the similarity in `floors`. A cohort is left out of this pool if the
    surer half of its rows shows that it exceeds the risk.
    """
    parts = {name: rows.matches.subset(rows.landed == name) for name in floors}
    floors = {name: math.floor(floor * 10**DIGITS) / 10**DIGITS for name, floor in floors.items()}
    kind = best_kind([*parts.values()], risk)
    # Many rows of one kind do not show how requests of another kind are matched.
    various = [name for name in parts if rows.variety(name) >= _MANY * (least_rows(risk) or 0)]
    own = {name: choose_floors(parts[name], risk, kind) for name in various}
    choices = {name: FloorChoice(*fitted) for name, fitted in own.items() if fitted is not None}
    others = [name for name in floors if name not in own and parts[name].distinct >= LEAST_OWN]
    pool = [name for name in others if not _exceeds(parts[name], risk)]
    reached = rows.subset(rows.matches.similarity >= np.array([floors[name] for name in rows.landed], dtype=float))
    margin = _pooled_margin(reached, pool, risk)
    for name, part in parts.items():
        if name in choices:
            continue
        if name in pool and margin is not None:
            choices[name] = FloorChoice(floors[name], margin, pooled=True)
        else:
            choices[name] = FloorChoice(why=why_no_floors(part, risk, kind))
    return choices, kind


def _pooled_margin(rows: LabelledRows, pool: Sequence[str], risk: float) -> float | None:
    """The margin that keeps the risk over all these cohorts, or None. A margin means the same in each of them."""
    fitted = choose_floors(rows.matches.subset(np.isin(rows.landed.astype(str), list(pool))), risk, "margin")
    return None if fitted is None else fitted[1]


def _exceeds(part: Matches, risk: float) -> bool:
    """Whether these matches show that more than this share of their surer half is wrong."""
    surer = part.subset(part.margin >= np.median(part.margin))
    return exact_interval(surer.wrong, surer.distinct)[0] > risk


def why_no_floors(part: Matches, risk: float, kind: FloorKind) -> str:
    """Return why there are no floors, and what to do about it."""
    least, distinct = least_rows(risk), part.distinct
    if least is None or distinct < least:
        return f"needs about {least or 0} distinct labelled rows that land here; has {distinct}"
    scores = part.similarity if kind == "similarity" else part.margin
    surer = part.subset(scores >= np.median(scores))
    wrong = surer.wrong / surer.distinct
    reason = f"{100 * wrong:.0f} % of the surer half of its matches are wrong"
    more = least_rows(risk, wrong)
    if more is None:
        return f"{reason}: reword its utterances, or those of cohorts that it is confused with"
    return f"{reason}: needs about {2 * more} distinct labelled rows; has {distinct}"
