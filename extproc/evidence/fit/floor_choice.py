"""The floors of all cohorts: a cohort's own, one of a pool of cohorts with few rows, or none."""

import math
from collections.abc import Mapping

import msgspec
import numpy as np

from extproc.evidence.fit.edits import DIGITS
from extproc.evidence.fit.floors import FloorKind, best_kind, choose_floors, least_rows
from extproc.evidence.fit.labelled import LabelledRows, Matches
from extproc.evidence.measure.metrics import Bools, exact_interval

# With fewer distinct rows, a cohort says too little about itself.
LEAST_OWN = 5
# A margin that holds over this many cohorts holds for one with fewer rows, too. On prompts of public sources, and
# over 8 halves of the sources, 9.5 % of the
# accepted matches of such cohorts were wrong with multilingual-e5-small, and 8.8 % of those of the others. With
# MiniLM it was 0 and 8.6 %.
_SHARING = 3
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

    def accepted(self, rows: LabelledRows) -> Bools:
        """Return which matches of these rows count. Without floors none does."""
        reached = rows.matches.accepted(self.floor, self.margin)
        return reached if not self.pooled or rows.likely is None else reached & rows.likely


def choose_all(
    rows: LabelledRows, floors: Mapping[str, float], risk: float
) -> tuple[Mapping[str, FloorChoice], FloorKind]:
    """Return the floors of every cohort, and the kind of threshold of the cohorts outside the pool.

    Cohorts whose own rows are too few for this risk, or too much alike, share one margin, which keeps the risk over
    all of them. Each has its own floor of the similarity in `floors`. The margin is fitted on the matches that also
    count by the chances, because no others do. A cohort is left out of this pool if its rows show that it exceeds
    the risk. Rows of several sources give the strictest floors of the fits without any one of them.
    """
    parts = {name: rows.subset(rows.landed == name) for name in floors}
    floors = {name: math.floor(floor * 10**DIGITS) / 10**DIGITS for name, floor in floors.items()}
    kind = best_kind([part.matches for part in parts.values()], risk)
    # Many rows of one kind do not show how requests of another kind are matched.
    various = [name for name in parts if rows.variety(name) >= _MANY * (least_rows(risk) or 0)]
    own = {name: strictest_floors(parts[name], risk, kind) for name in various}
    choices = {name: FloorChoice(*fitted) for name, fitted in own.items() if fitted is not None}
    # If one source alone makes the floors of a cohort low, it may still share those of the pool.
    tried = choices if rows.sources is not None else own
    likely = rows if rows.likely is None else rows.subset(rows.likely)
    bad = [name for name in floors if _is_bad(rows, likely.subset(likely.landed == name), name, risk)]
    others = [name for name in floors if name not in tried and name not in bad]
    pool = [name for name in others if parts[name].matches.distinct >= LEAST_OWN]
    reached = likely.subset(
        likely.matches.similarity >= np.array([floors[name] for name in likely.landed], dtype=float)
    )
    fitted = strictest_floors(reached.subset(np.isin(reached.landed.astype(str), pool)), risk, "margin")
    sharing = others if len(pool) >= _SHARING else pool
    for name, part in parts.items():
        if name in choices:
            continue
        if name in sharing and fitted is not None:
            choices[name] = FloorChoice(floors[name], fitted[1], pooled=True)
        else:
            choices[name] = FloorChoice(why=why_no_floors(part.matches, risk, kind))
    return choices, kind


def strictest_floors(rows: LabelledRows, risk: float, kind: FloorKind) -> tuple[float, float] | None:
    """Return the floors of `choose_floors`. With several sources, return the strictest without any one of them.

    No source makes these floors low by itself. As with the jackknife-minmax (Barber et al. 2021), the worst of the
    fits without one part counts. None: one of these fits has no floors.
    """
    folds = rows.source_folds
    kept = [] if folds is None else [folds != k for k in np.unique(folds)]
    fits = [choose_floors(part, risk, kind) for part in (rows.matches, *map(rows.matches.subset, kept))]
    if any(fit is None for fit in fits):
        return None
    similarity, margin = (max(fit[i] for fit in fits if fit is not None) for i in (0, 1))
    return (similarity, margin) if kind == "similarity" else (float(fits[0][0]) if fits[0] else 0.0, margin)


def _is_bad(rows: LabelledRows, part: LabelledRows, name: str, risk: float) -> bool:
    """Whether rows of one source show that a cohort exceeds the risk.

    All matches with a cohort that no row has as its label are wrong, and say nothing about sources that have it. On
    halves of the public sources, 9 % of the matches accepted elsewhere are wrong if no cohort is left out, and 25 %
    if every cohort above the risk is left out (multilingual-e5-small).
    """
    labelled = int(np.count_nonzero(rows.labels == name))
    return rows.sources is None and labelled >= LEAST_OWN and _exceeds(part.matches, risk)


def _exceeds(part: Matches, risk: float) -> bool:
    """Whether these matches show that more than this share of their surer half is wrong."""
    if not len(part.right):
        return False
    surer = part.subset(part.margin >= np.median(part.margin))
    return bool(exact_interval(surer.wrong, surer.effective)[0] > risk)


def why_no_floors(part: Matches, risk: float, kind: FloorKind) -> str:
    """Return why there are no floors, and what to do about it."""
    least, distinct = least_rows(risk), part.distinct
    if least is None or distinct < least:
        return f"needs about {least or 0} distinct labelled rows that land here; has {distinct}"
    scores = part.similarity if kind == "similarity" else part.margin
    surer = part.subset(scores >= np.median(scores))
    wrong = surer.wrong / surer.effective
    reason = f"{100 * wrong:.0f} % of the surer half of its matches are wrong"
    more = least_rows(risk, wrong)
    if more is None:
        return f"{reason}: reword its utterances, or those of cohorts that it is confused with"
    return f"{reason}: needs about {2 * more} distinct labelled rows; has {distinct}"
