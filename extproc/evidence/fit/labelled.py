"""Labelled rows, how the centroids match them, and which of them floors are fitted on and reported on."""

from collections.abc import Sequence

import msgspec
import numpy as np

from extproc.config.compile import centroids_digest, utterances_digest
from extproc.config.load import Config
from extproc.evidence.execution import Execution
from extproc.evidence.fit.partition import FIT_SHARE, LEARN_SHARE, hash_fraction
from extproc.evidence.measure.metrics import Bools, Floats
from extproc.routing.index import Match


class Matches(msgspec.Struct, frozen=True):
    """The matches of labelled rows. Each array has one entry per row."""

    similarity: Floats
    margin: Floats
    right: Bools  # the nearest cohort is the label; always false for rows out of scope

    def subset(self, chosen: Bools) -> "Matches":
        """Return the matches of the chosen rows."""
        return Matches(self.similarity[chosen], self.margin[chosen], self.right[chosen])

    def accepted(self, floor: float, margin: float) -> Bools:
        """Return which matches a policy with these floors trusts."""
        return (self.similarity >= floor) & (self.margin >= margin)


class LabelledRows(msgspec.Struct, frozen=True, eq=False):
    """The labelled rows that have a match. Each list and array has one entry per row."""

    texts: list[str]
    labels: np.ndarray  # the name of a cohort; None: out of scope, or a label without a cohort
    fraction: Floats  # `hash_fraction` of the text
    landed: np.ndarray  # the name of the nearest cohort
    matches: Matches

    def subset(self, chosen: Bools) -> "LabelledRows":
        """Return the chosen rows."""
        texts = [text for text, keep in zip(self.texts, chosen, strict=True) if keep]
        labels, fraction, landed = self.labels[chosen], self.fraction[chosen], self.landed[chosen]
        return LabelledRows(texts, labels, fraction, landed, self.matches.subset(chosen))

    def rematched(self, matches: Sequence[Match]) -> "LabelledRows":
        """Return the same rows with other matches, one per row."""
        landed = np.array([match.cohort for match in matches], dtype=object)
        table = np.array([(match.similarity, match.margin) for match in matches], dtype=np.float64).reshape(-1, 2)
        right = np.array([name == label for name, label in zip(landed, self.labels, strict=True)], dtype=bool)
        return msgspec.structs.replace(self, landed=landed, matches=Matches(table[:, 0], table[:, 1], right))


class CalibrationSplit(msgspec.Struct, frozen=True, eq=False):
    """The rows that floors are fitted on and reported on, and the configuration that they are fitted for."""

    rows: LabelledRows  # matched by the centroids that will serve
    fit: Bools  # rows to fit on; those centroids were neither fitted nor chosen on any of them
    report: Bools  # rows to report on
    fit_share: float  # rows to fit on, as a share of all labelled rows
    config: Config  # with the encoder and the centroids that will serve


def labelled_rows(run: Execution, seed: int) -> LabelledRows:
    """Return the labelled rows that have a match. Raises ValueError if there are none."""
    texts, labels, matches = [], [], []
    for routed, revealed in zip(run.routed, run.revealed, strict=True):
        match, signals = routed.decision.match, routed.signals
        if match is None or signals is None or revealed.intent is msgspec.UNSET:
            continue
        texts.append(signals.ask.text)
        labels.append(revealed.intent if revealed.intent in run.snapshot.policy.cohorts else None)
        matches.append(match)
    if not texts:
        any_label = any(revealed.intent is not msgspec.UNSET for revealed in run.revealed)
        remedy = (
            "run `extproc eval` to see why"
            if any_label
            else "give rows an `intent` (see docs/reference/traffic.md)"
        )
        raise ValueError(f"no labelled row has a match: {remedy}")
    no_matches = Matches(np.empty(0), np.empty(0), np.empty(0, dtype=bool))
    fraction = np.array([hash_fraction(text, seed) for text in texts])
    unmatched = LabelledRows(texts, np.array(labels, dtype=object), fraction, np.empty(0), no_matches)
    return unmatched.rematched(matches)


def current_split(run: Execution, rows: LabelledRows) -> CalibrationSplit:
    """Return the split for the centroids that serve now. It uses all rows that they were not fitted on."""
    file = run.config.fitted
    seen = np.zeros(len(rows.texts), dtype=bool)
    if file is not None and centroids_digest(run.config) != utterances_digest(run.config):
        seen = np.array([hash_fraction(text, file.header.seed) < LEARN_SHARE for text in rows.texts], dtype=bool)
    fit, report = (rows.fraction < FIT_SHARE) & ~seen, (rows.fraction >= FIT_SHARE) & ~seen
    return CalibrationSplit(rows, fit, report, FIT_SHARE, run.config)
