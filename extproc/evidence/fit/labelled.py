"""Labelled rows, and how they are matched."""

from collections.abc import Sequence

import msgspec
import numpy as np

from extproc.contract.words import Reason
from extproc.evidence.execution import Execution
from extproc.evidence.fit.folds import apart_folds
from extproc.evidence.measure.metrics import Bools, Floats, GroupIds, effective_rows
from extproc.routing.centroid_file import fingerprints
from extproc.routing.index import Match
from extproc.routing.policy import Policy
from extproc.routing.trust import is_likely, trust

NO_SOURCE = "no source"  # the name of the rows without one, which are one source together
# Up to this many sources are left out one by one. More are left out several together.
_MOST_FOLDS = 10
# With more labelled rows, this number is drawn at random: their vectors take 340 MB, and fits take minutes.
MOST_ROWS = 30_000
_LEAST_MASS = 1e-12  # guards a division. Weights are above 0


class Matches(msgspec.Struct, frozen=True):
    """The matches of labelled rows. Each array has one entry per row."""

    similarity: Floats
    margin: Floats
    right: Bools  # the nearest cohort is the label; always false for rows out of scope
    groups: GroupIds | None = None  # rows with the same number are one piece of evidence. None: each row is one
    mass: Floats | None = None  # how many rows of the traffic each row stands for. None: 1

    def subset(self, chosen: Bools) -> "Matches":
        """Return the matches of the chosen rows."""
        groups = None if self.groups is None else self.groups[chosen]
        mass = None if self.mass is None else self.mass[chosen]
        return Matches(self.similarity[chosen], self.margin[chosen], self.right[chosen], groups, mass)

    def accepted(self, floor: float, margin: float) -> Bools:
        """Return which matches a policy with these floors trusts."""
        return (self.similarity >= floor) & (self.margin >= margin)

    @property
    def masses(self) -> Floats:
        """The rows of the traffic that each row stands for. A group stands for the mean of its rows."""
        mass: Floats = np.ones(len(self.right)) if self.mass is None else self.mass
        if self.groups is None:
            return mass
        _, member, size = np.unique(self.groups, return_inverse=True, return_counts=True)
        masses: Floats = mass / size[member]
        return masses

    @property
    def weights(self) -> Floats:
        """The masses, scaled to add up to `effective`. So each group has 1 in all if no row has a weight."""
        masses = self.masses
        if self.mass is None:
            return masses
        weights: Floats = masses * (self.effective / max(masses.sum(), _LEAST_MASS))
        return weights

    @property
    def effective(self) -> float:
        """The number of independent matches of equal mass that are worth as much as these (Kish 1965)."""
        return effective_rows(self.masses, self.groups) if len(self.right) else 0.0

    @property
    def distinct(self) -> int:
        """How many pieces of evidence they are."""
        return len(self.right) if self.groups is None else len(np.unique(self.groups))

    @property
    def wrong(self) -> float:
        """How many of the effective matches are wrong. A group counts as the share of its rows that are wrong."""
        return float(self.weights @ ~self.right)


class LabelledRows(msgspec.Struct, frozen=True, eq=False):
    """The labelled rows that have a match. Each list and array has one entry per row."""

    texts: list[str]
    labels: np.ndarray  # the name of a cohort; None: out of scope, or a label without a cohort
    landed: np.ndarray  # the name of the nearest cohort
    matches: Matches
    trusted: Bools  # the match counts as configured
    seen: Bools  # the file of centroids was fitted on this row
    clusters: GroupIds | None = None  # of similar rows (folds.py). None: not known
    sources: np.ndarray | None = None  # the name of each row's source. None: all are of one source
    policy: Policy | None = None  # with the tiers of the cohorts. None: no row is in doubt
    likely: Bools | None = None  # the chances say that the match counts (trust.py). None: all of them
    drawn_from: int = 0  # labelled rows with a match, if these are some of them. 0: they are all

    def subset(self, chosen: Bools) -> "LabelledRows":
        """Return the chosen rows."""
        texts = [text for text, keep in zip(self.texts, chosen, strict=True) if keep]
        labels, landed, trusted = self.labels[chosen], self.landed[chosen], self.trusted[chosen]
        clusters, sources = (None if each is None else each[chosen] for each in (self.clusters, self.sources))
        likely = None if self.likely is None else self.likely[chosen]
        matches, seen = self.matches.subset(chosen), self.seen[chosen]
        return LabelledRows(texts, labels, landed, matches, trusted, seen, clusters, sources, self.policy, likely)

    def rematched(self, matches: Sequence[Match]) -> "LabelledRows":
        """Return the same rows with other matches, one per row."""
        landed = np.array([match.cohort for match in matches], dtype=object)
        table = np.array([(match.similarity, match.margin) for match in matches], dtype=np.float64).reshape(-1, 2)
        right = np.array([name == label for name, label in zip(landed, self.labels, strict=True)], dtype=bool)
        matched = Matches(table[:, 0], table[:, 1], right, self.matches.groups, self.matches.mass)
        policy = self.policy
        likely = None if policy is None else np.array([is_likely(policy, match) for match in matches], dtype=bool)
        return msgspec.structs.replace(self, landed=landed, matches=matched, likely=likely)

    @property
    def source_folds(self) -> GroupIds | None:
        """The number of each row's source. If there are many, several have one number. None: there is only one."""
        if self.sources is None:
            return None
        names, folds = np.unique(self.sources, return_inverse=True)
        if len(names) < 2:
            return None
        return folds if len(names) <= _MOST_FOLDS else apart_folds(folds)

    def variety(self, cohort: str) -> int:
        """Return how many clusters the rows that landed in a cohort come from. Without clusters, how many rows."""
        here = self.landed == cohort
        return int(here.sum()) if self.clusters is None else len(np.unique(self.clusters[here]))

    @property
    def groups(self) -> GroupIds:
        """Rows with the same number are one piece of evidence."""
        groups = self.matches.groups
        return np.arange(len(self.texts)) if groups is None else groups

    @property
    def inside(self) -> Bools:
        """Which rows are in scope."""
        return np.array([label is not None for label in self.labels], dtype=bool)


def drawn(positions: GroupIds, most: int, seed: int = 0) -> GroupIds:
    """Return the positions in their order: all, or `most` of them, drawn at random."""
    if len(positions) <= most:
        return positions
    return np.sort(np.random.default_rng(seed).choice(positions, most, replace=False))


def labelled_rows(run: Execution) -> LabelledRows:
    """Return the labelled rows that have a match: all, or MOST_ROWS drawn at random. Raises ValueError if none."""
    texts, labels, matches, trusted, rows = [], [], [], [], []
    labelled = run.revealed.intents.where([intent is not msgspec.UNSET for intent in run.revealed.intents.values])
    available = int((labelled & run.routed.matched).sum())
    positions = drawn(np.flatnonzero(labelled & run.routed.matched), MOST_ROWS)
    for i in positions.tolist():
        routed, intent = run.routed[i], run.revealed.intents[i]
        match, signals = routed.decision.match, routed.signals
        assert match is not None and signals is not None, "a row with a match has both"
        texts.append(signals.ask.text)
        labels.append(intent if intent in run.snapshot.policy.cohorts else None)
        matches.append(match)
        trusted.append(trust(run.snapshot.policy, match) is Reason.MATCHED)
        rows.append(run.rows[i])
    if not texts:
        any_label = bool(labelled.any())
        remedy = (
            "run `extproc eval` to see why"
            if any_label
            else "give rows an `intent` (see docs/reference/traffic.md)"
        )
        raise ValueError(f"no labelled row has a match: {remedy}")
    n, file = len(texts), run.config.fitted
    seen = np.isin(fingerprints(texts), file.seen) if file is not None else np.zeros(n, dtype=bool)
    mass = np.array([row.weight for row in rows])
    weighted = mass if (mass != 1).any() else None
    no_matches = Matches(np.empty(0), np.empty(0), np.empty(0, dtype=bool), run.groups[positions], weighted)
    sources = np.array([row.source or NO_SOURCE for row in rows], dtype=object)
    unmatched = LabelledRows(
        texts,
        np.array(labels, dtype=object),
        np.empty(0),
        no_matches,
        np.array(trusted, dtype=bool),
        seen,
        sources=sources if len({*sources}) > 1 else None,
        policy=run.snapshot.policy,
        drawn_from=0 if n == available else available,
    )
    return unmatched.rematched(matches)
