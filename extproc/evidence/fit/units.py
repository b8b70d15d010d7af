"""Means over rows of which several can be one piece of evidence, and of which each can stand for many.

A row with the weight 2 counts as two rows in every mean. In an interval it is still one row that was looked at.
"""

import msgspec
import numpy as np

from extproc.evidence.measure.metrics import Bools, Floats, GroupIds, effective_rows


class Units(msgspec.Struct, frozen=True, eq=False):
    """The weights of rows, and the unit that each of them belongs to (data/groups.py)."""

    weight: Floats  # float64[rows]
    member: GroupIds  # int64[rows], from 0

    @classmethod
    def of(cls, weight: Floats, groups: GroupIds) -> "Units":
        """Return the units of rows with these weights and groups."""
        return cls(weight, np.unique(groups, return_inverse=True)[1].astype(np.int64))

    @property
    def count(self) -> int:
        """The number of units."""
        return int(self.member.max()) + 1 if len(self.member) else 0

    @property
    def effective(self) -> float:
        """The number of units of equal weight that are worth as much as these (Kish 1965)."""
        return effective_rows(self.weight, self.member) if len(self.member) else 0.0

    def subset(self, rows: Bools) -> "Units":
        """Return the units of these rows."""
        return Units.of(self.weight[rows], self.member[rows])

    def means(self, values: Floats) -> Floats:
        """Return the weighted mean over rows, which are the last axis."""
        means: Floats = np.asarray(np.average(values, axis=-1, weights=self.weight), dtype=np.float64)
        return means

    def totals(self, values: Floats) -> Floats:
        """Return float64[..., unit]: the weighted sum over the rows of each unit."""
        if self.count == len(self.member) and (np.diff(self.member) == 1).all():
            return np.asarray(values * self.weight, dtype=np.float64)
        flat = np.atleast_2d(values)
        sums = np.empty((len(flat), self.count))
        for total, row in zip(sums, flat, strict=True):
            total[:] = np.bincount(self.member, row * self.weight, self.count)
        return sums if values.ndim > 1 else np.asarray(sums[0], dtype=np.float64)

    def error(self, values: Floats) -> float:
        """Return the standard error of the mean of values, one for each row. NaN with one unit."""
        n = self.count
        if n < 2:
            return float("nan")
        left = self.totals(values - self.means(values))
        return float(np.sqrt(n / (n - 1) * (left @ left)) / self.weight.sum())
