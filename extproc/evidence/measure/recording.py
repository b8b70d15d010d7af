"""Which answers were recorded, and what they say about the rows without them.

A log of a router has the answers of the tiers that served. Those rows were chosen, so the mean of their qualities
is not the tier's quality. If a random choice decided what was recorded, propensities correct for it. Otherwise only
bounds are known.
"""

import msgspec
import numpy as np

from extproc.evidence.execution import Execution
from extproc.evidence.measure.metrics import Bools, Floats, GroupIds, Ratio

# A tier counts as recorded on all rows if at most this share of them lacks its answer.
MISSING = 0.02
# The model of a row's quality is shrunk toward the mean over all rows with this number of rows.
_SHRINK = 20.0


class Recorded(msgspec.Struct, frozen=True):
    """Quality and cost of the rows for which the configured path and every compared setting were recorded."""

    tiers: list[str]  # with the reasoning setting, if it was recorded (`setting_name`)
    rows: Bools
    quality: Floats  # [row, tier]
    cost: Floats  # [row, tier], dollars


class Bounds(msgspec.Struct, frozen=True):
    """The lowest and highest quality that the recorded answers allow, over all rows with outcomes."""

    name: str
    low: float
    high: float
    recorded: int  # rows that have this answer
    rows: int


class AnswerTable(msgspec.Struct, frozen=True):
    """The recorded answers of every setting, as arrays [row, setting] with NaN where none was recorded."""

    names: list[str]
    quality: Floats
    cost: Floats  # dollars
    propensity: Floats  # NaN also for an answer that was not recorded by chance

    @property
    def any(self) -> Bools:
        """Whether the row has the quality of any setting."""
        return np.asarray((~np.isnan(self.quality)).any(axis=1), dtype=np.bool_)


def answer_table(run: Execution) -> AnswerTable:
    """Every answer whose quality was recorded."""
    names = settings_of(run)
    table = np.full((3, len(run.rows), len(names)), np.nan)
    for j, name in enumerate(names):
        quality, cost, propensity = (run.answers.column(name, of) for of in ("quality", "cost", "propensity"))
        present = ~np.isnan(quality)
        table[:, present, j] = quality[present], cost[present], propensity[present]
    return AnswerTable(names, *table)


def settings_of(run: Execution) -> list[str]:
    """Every tier with recorded outcomes, cheapest first. Each reasoning setting of a tier is a separate entry."""
    return run.answers.names


def recorded(run: Execution, quality: Floats, cost: Floats) -> Recorded:
    """The settings that many rows have together, and the rows that have all of them.

    `quality` and `cost` are float64[rows]: those of the configuration, NaN where they were not recorded. The two
    settings that most rows have together are compared. Others join while they keep half of these rows.
    """
    table = answer_table(run)
    present = ~np.isnan(table.quality)
    kept = _together(present & ~np.isnan(quality + cost)[:, None])
    rows = present[:, kept].all(axis=1) & ~np.isnan(quality) & ~np.isnan(cost) & bool(kept)
    names = [table.names[j] for j in kept]
    return Recorded(names, rows, table.quality[rows][:, kept], table.cost[rows][:, kept])


def _together(present: Bools) -> list[int]:
    """The columns to compare: see `recorded`."""
    columns = [j for j in range(present.shape[1]) if present[:, j].any()]
    if len(columns) < 2:
        return columns
    pairs = [(i, j) for i in columns for j in columns if i < j]
    common = {pair: int(present[:, pair].all(axis=1).sum()) for pair in pairs}
    best = max(pairs, key=lambda pair: common[pair])
    kept, most = list(best), common[best]
    if not most:  # no row has two settings
        alone = max(columns, key=lambda j: int(present[:, j].sum()))
        return [alone]
    for j in sorted(set(columns) - set(kept), key=lambda j: -int(present[:, j].sum())):
        if present[:, [*kept, j]].all(axis=1).sum() > most / 2:
            kept.append(j)
    return sorted(kept)


class Sample(msgspec.Struct, frozen=True):
    """The rows with outcomes, and what an estimate of a mean over them needs."""

    rows: Bools
    weight: Floats  # of these rows
    together: GroupIds
    stratum: GroupIds  # rows that are likely to be alike: the same cohort, and a served answer as good
    seed: int


def is_known(sample: Sample, value: Floats, propensity: Floats) -> bool:
    """Whether a mean over all rows of the sample can be estimated from the values that are not NaN.

    It can if nearly all are recorded, or if random choices recorded them and every row had a chance. The inverse
    propensities then add up to the number of rows.
    """
    present = ~np.isnan(value)
    if _weight_of(sample, present) >= 1 - MISSING:
        return True
    if np.isnan(propensity[present]).all():
        return False
    inverse = np.where(present, 1 / np.where(np.isnan(propensity), 1.0, propensity), 0.0)
    covered = Ratio(sample.weight * inverse, sample.weight, None).estimate(sample.seed, sample.together)
    return covered.low <= 1.0 <= covered.high and covered.value >= 0.5


def _weight_of(sample: Sample, present: Bools) -> float:
    return float(sample.weight[present].sum() / sample.weight.sum()) if len(present) else 0.0


def estimated(sample: Sample, value: Floats, propensity: Floats) -> Floats:
    """float64[rows]: values whose mean is the doubly robust estimate of the mean of all values.

    A model predicts each row from the other half of the rows. The inverse propensity corrects its error (Robins,
    Rotnitzky and Zhao 1994). A row whose value is certain to be recorded keeps its value.
    """
    present = ~np.isnan(value)
    inverse = np.where(present, 1 / np.where(np.isnan(propensity), 1.0, propensity), 0.0)
    observed = np.where(present, value, 0.0)
    mass = sample.weight * inverse
    model = np.zeros(len(value))
    for fold in (0, 1):
        fit = sample.together % 2 != fold
        model[~fit] = _means(sample.stratum, mass * fit, observed)[~fit]
    return model + inverse * (observed - model)


def _means(stratum: GroupIds, mass: Floats, values: Floats) -> Floats:
    """float64[rows]: the mean of each row's stratum, shrunk toward the mean of all."""
    if not mass.any():
        return np.zeros(len(values))
    overall = float(np.average(values, weights=mass))
    counts, sums = np.bincount(stratum, mass), np.bincount(stratum, mass * values)
    pseudo = _SHRINK * mass[mass > 0].mean()
    means: Floats = (sums + pseudo * overall) / (counts + pseudo)
    return means[stratum]


def bounds(sample: Sample, name: str, value: Floats) -> Bounds:
    """The quality that the recorded values allow, if the others may be anything from 0 to 1."""
    present = ~np.isnan(value)
    low = float(sample.weight[present] @ value[present] / sample.weight.sum())
    return Bounds(name, low, low + 1 - _weight_of(sample, present), int(present.sum()), len(value))


def without_chance(run: Execution) -> Bools:
    """bool[rows]: the rows with outcomes that had no chance to be explored, if other rows had one.

    A router that explores writes the chances of every row that it could have drawn.
    """
    if not run.revealed.where(lambda marks: any(mark.is_chance for mark in marks)).any():
        return np.zeros(len(run.revealed), dtype=np.bool_)
    return run.revealed.where(lambda marks: bool(marks) and not any(mark.by_chance for mark in marks))


def sample_of(run: Execution, table: AnswerTable, quality: Floats, seed: int) -> Sample:
    """The rows with outcomes, and those that had a chance to have one.

    Rows that went to a person are left out, because they have no quality. So are rows without a chance, if others
    had one: nothing stands for them.
    """
    person = run.served.where(lambda served: served.person)
    chance = run.revealed.where(lambda marks: any(mark.is_chance for mark in marks))
    rows = (table.any | chance) & ~person & ~without_chance(run)
    cohorts = run.routed.column(lambda decision: decision.cohort.name if decision.cohort else "")
    keys = [(cohort, "?" if np.isnan(q) else str(q >= 0.5)) for cohort, q in zip(cohorts, quality, strict=True)]
    number = {key: i for i, key in enumerate(sorted(set(keys)))}
    stratum = np.array([number[key] for key in keys], dtype=np.int64)[rows]
    return Sample(rows, run.weights()[rows], run.groups[rows], stratum, seed)
