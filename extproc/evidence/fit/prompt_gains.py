"""Recorded outcomes -> the predicted gain of the costlier of two tiers, by the prompt, and its proof.

Two sets of trees per pair of tiers are fitted on the rows of all cohorts: for the gain in quality, and for the
extra cost. They read the rates of a row's cohort, so the prompt only refines what the cohort says. Every row to fit
on is scored by trees that were fitted without it.

A cohort uses the prediction only if its own rows prove it at 95 %. The prompts that it sends to the costlier tier
must gain more than prompts that are drawn at random and cost as much. With several cohorts, each figure is shrunk
towards the mean of all. It is shrunk less, the more the cohorts differ.

Other trees predict the gain of a pair again, with the facts about the cheaper tier's answer. They are fitted and
proven in the same way.
"""

from collections.abc import Callable, Mapping, Sequence

import msgspec
import numpy as np

from extproc.acceptance.score import LOGPROB_FACTS, SCORE_FACTS
from extproc.encoder.features import WORD_COLUMNS
from extproc.encoder.protocols import Vectors
from extproc.evidence.execution import Execution
from extproc.evidence.fit.boosting import boost, difference
from extproc.evidence.fit.option_table import OptionTable
from extproc.evidence.fit.partition import FIT_SHARE
from extproc.evidence.measure.metrics import Bools, Floats
from extproc.routing.prompt_facts import PROMPT_FACTS, prompt_facts
from extproc.routing.prompt_gain import GainTrees, PromptColumns, PromptGains

# A cohort with fewer distinct rows keeps one tier.
LEAST_ROWS = 300
_DIRECTIONS = 20
_FOLDS = 5
_PRIOR = 20.0  # the weight of the overall rate in a cohort's success rates, in rows
_COST_REPEATS = 1  # costs vary more than gains do, and more trees did not rank prompts better
_ANSWER_COST_TIMES = 2  # with facts about the answer, costs are still underfitted after one time
_MOST_COST = 10.0  # of the mean extra cost. A row counts as at most this much.
_ROOM = 0.05  # a prompt may lie this share of the range outside it
_SHRUNK = 5  # with fewer cohorts, each one's figure stands alone
_Z = 1.96  # standard errors: 95 % of a normal distribution lie within them

Encode = Callable[[Sequence[str]], Vectors]
Pair = tuple[str, str]


class Prompts(msgspec.Struct, frozen=True, eq=False):
    """The prompts of a table, one entry per row."""

    vectors: Vectors  # float32[n, d]
    facts: Vectors  # float32[n, facts]
    width: int  # the first numbers of a vector, which are those of the embedding


class Proof(msgspec.Struct, frozen=True):
    """The mean gain in quality over spending as much on prompts at random, on the rows of one cohort."""

    rows: int  # distinct ones to fit on
    gain: float  # mean over all shares of the extra cost that may be spent
    low: float  # 95 % interval
    high: float

    @property
    def holds(self) -> bool:
        """Whether the prompt is shown to help."""
        return self.low > 0


class PairFit(msgspec.Struct, frozen=True, eq=False):
    """The predictions for one pair of tiers."""

    trees: GainTrees
    gains: Floats  # [row], by trees that were fitted without the row
    proofs: Mapping[str, Proof]  # cohort -> what its rows show, for cohorts with enough rows


class Rows(msgspec.Struct, frozen=True, eq=False):
    """Rows of a table for one pair of tiers, to fit on."""

    columns: Vectors  # float32[n, columns]
    success: Floats  # float64[n, 2]: of the cheaper tier and of the costlier one
    cost: Floats  # float64[n, 2] dollars
    cohort: np.ndarray  # names

    def subset(self, chosen: Bools) -> "Rows":
        """Return the chosen rows."""
        return Rows(self.columns[chosen], self.success[chosen], self.cost[chosen], self.cohort[chosen])


def any_large(table: OptionTable) -> bool:
    """Return whether any cohort has enough rows."""
    return bool((np.unique(table.cohort[table.cohort != ""], return_counts=True)[1] >= LEAST_ROWS).any())


def read_prompts(run: Execution, positions: Sequence[int], encode: Encode) -> Prompts:
    """Return the prompts of these rows, as the router reads them."""
    asks = [signals.ask if (signals := run.routed[i].signals) is not None else None for i in positions]
    facts = [prompt_facts(ask) if ask is not None else np.zeros(len(PROMPT_FACTS)) for ask in asks]
    vectors = encode([ask.text if ask is not None else "" for ask in asks])
    width = vectors.shape[1] - WORD_COLUMNS if vectors.shape[1] > WORD_COLUMNS else vectors.shape[1]
    return Prompts(vectors, np.array(facts, dtype=np.float32), width)


def fit_columns(prompts: Prompts, rows: Bools) -> PromptColumns:
    """Return the directions in which these rows differ most, and the range of each column in them."""
    vectors = prompts.vectors[rows, : prompts.width]
    mean = vectors.mean(axis=0)
    values = np.linalg.eigh((vectors - mean).T.astype(np.float64) @ (vectors - mean))[1]
    directions = np.ascontiguousarray(values[:, -_DIRECTIONS:], dtype=np.float32)
    columns = PromptColumns(mean, directions, mean[:0], mean[:0])
    seen = columns.of(vectors, prompts.facts[rows])
    room = _ROOM * (np.ptp(seen, axis=0) + 1e-3)
    return msgspec.structs.replace(columns, low=seen.min(axis=0) - room, high=seen.max(axis=0) + room)


def fit_pair(table: OptionTable, prompts: Prompts, columns: PromptColumns, pair: Pair) -> PairFit:
    """Fit and prove the predictions for two settings of the table."""
    rows = rows_of(table, columns.of(prompts.vectors, prompts.facts), pair)

    def fitted_on(part: Rows) -> GainTrees:
        extra = part.cost[:, 1] - part.cost[:, 0]
        return fit_trees(part.columns, part.success, extra, part.cohort, pair, table.seed)

    return _cross_fitted(table, rows, fitted_on, rows.cost[:, 1] - rows.cost[:, 0])


def fit_answers(table: OptionTable, prompts: Prompts, columns: PromptColumns, pair: Pair) -> PairFit:
    """Fit and prove the predictions that also read the answer of the cheaper setting."""
    usable = [table.logprobs[pair[0]] or name not in LOGPROB_FACTS for name in SCORE_FACTS]
    facts = np.where(usable, table.facts[pair[0]], 0.0)
    rows = rows_of(table, np.hstack([columns.of(prompts.vectors, prompts.facts), facts]).astype(np.float32), pair)
    return _cross_fitted(table, rows, lambda part: fit_answer_trees(part, pair, table.seed), rows.cost[:, 1])


def rows_of(table: OptionTable, columns: Vectors, pair: Pair) -> Rows:
    """Return all rows of the table for one pair of settings."""
    tiers = [table.settings.index(name) for name in pair]
    return Rows(columns, table.recorded.quality[:, tiers], table.recorded.cost[:, tiers], table.cohort)


def _cross_fitted(table: OptionTable, rows: Rows, fitted_on: Callable[[Rows], GainTrees], cost: Floats) -> PairFit:
    """Fit on the rows to fit on, and score each of these by trees without it.

    `cost`: dollars of asking the costlier tier.
    """
    usable = table.fit & (table.cohort != "")
    trees = fitted_on(rows.subset(usable))
    gains = gains_by(trees, rows.columns, table.cohort)
    fold = (table.fraction / FIT_SHARE * _FOLDS).astype(int)  # equal texts have the same fraction
    for k in range(_FOLDS):
        others, held_out = usable & (fold != k), usable & (fold == k)
        if others.any() and held_out.any():
            gains[held_out] = gains_by(
                fitted_on(rows.subset(others)), rows.columns[held_out], table.cohort[held_out]
            )
    return PairFit(trees, gains, prove(table, gains, rows.success[:, 1] - rows.success[:, 0], cost))


def fit_trees(
    rows: Vectors, success: Floats, extra: Floats, cohort: np.ndarray, pair: Pair, seed: int
) -> GainTrees:
    """Fit on float32[n, columns], the success of both tiers, the extra cost, and the names of cohorts.

    `success` is float64[n, 2], `extra` is float64[n] in dollars.
    """
    gain, cost = success[:, 1] - success[:, 0], relative_cost(extra)
    rates = _rates(np.column_stack([success, gain, cost]), cohort)
    columns = np.hstack([rows, _rates_of(rates, cohort)])
    return GainTrees(pair, boost(columns, gain, seed), boost(columns, cost, seed, _COST_REPEATS), rates)


def fit_answer_trees(rows: Rows, pair: Pair, seed: int) -> GainTrees:
    """Fit on rows whose columns have the facts about the cheaper tier's answer, too.

    The success of each tier has its own trees: an answer says much about the one and little about the other.
    """
    cheaper, costlier = rows.success.T
    cost = relative_cost(rows.cost[:, 1], (rows.cost[:, 1] - rows.cost[:, 0]).mean())
    rates = _rates(np.column_stack([rows.success, costlier - cheaper, cost]), rows.cohort)
    columns = np.hstack([rows.columns, _rates_of(rates, rows.cohort)])
    gain = difference(boost(columns, costlier, seed), boost(columns, cheaper, seed))
    return GainTrees(pair, gain, boost(columns, cost, seed, _COST_REPEATS, _ANSWER_COST_TIMES), rates)


def _rates(known: Floats, cohort: np.ndarray) -> dict[str, Vectors]:
    """The means of float64[n, RATES] in each cohort, shrunk to those of all rows."""
    overall, rates = known.mean(axis=0), {}
    for name in np.unique(cohort.astype(str)):
        own = known[cohort == name]
        rates[str(name)] = ((own.sum(axis=0) + _PRIOR * overall) / (len(own) + _PRIOR)).astype(np.float32)
    return rates


def relative_cost(cost: Floats, unit: float | None = None) -> Floats:
    """Return the costs, where 1 is `unit`, or their mean without it. If it is not above 0, all are 1."""
    unit = float(cost.mean()) if unit is None else unit
    return np.clip(cost / unit, 0.0, _MOST_COST) if unit > 0 else np.ones(len(cost))


def gains_by(trees: GainTrees, rows: Vectors, cohort: np.ndarray) -> Floats:
    """Return float64[row]: the predicted gains. NaN for a cohort that was not fitted on."""
    known = np.array([name in trees.rates for name in cohort])
    gains = np.full(len(rows), np.nan)
    if known.any():
        gains[known] = trees.gains(rows[known], _rates_of(trees.rates, cohort[known]))
    return gains


def _rates_of(rates: Mapping[str, Vectors], cohort: np.ndarray) -> Vectors:
    return np.stack([rates[name] for name in cohort])


def gains_of(columns: PromptColumns, pairs: Mapping[Pair, PairFit], answers: Mapping[Pair, PairFit]) -> PromptGains:
    """Return the predictions as they serve."""
    prompts, judged = ({pair: fit.trees for pair, fit in fits.items()} for fits in (pairs, answers))
    return PromptGains(columns, prompts, judged)


# --- the proof ----------------------------------------------------------------------------------------------------


def prove(table: OptionTable, predicted: Floats, gain: Floats, extra: Floats) -> dict[str, Proof]:
    """Return what the rows of each cohort show about predictions that were made without them.

    Equal texts count once.
    """
    proofs = {}
    for name in table.run.snapshot.policy.cohorts:
        rows = np.flatnonzero(table.cohort == name)
        distinct = rows[np.unique(table.fraction[rows], return_index=True)[1]]
        fitted = distinct[table.fit[distinct] & np.isfinite(predicted[distinct])]
        if len(distinct) >= LEAST_ROWS and len(fitted) > 1:
            proofs[name] = ranked_gain(predicted[fitted], gain[fitted], relative_cost(extra[fitted]))
    return _shrunk(proofs) if len(proofs) >= _SHRUNK else proofs


def ranked_gain(predicted: Floats, gain: Floats, cost: Floats) -> Proof:
    """Return the mean gain of the prompts with the highest predictions, less that of random ones for the same cost.

    It is the mean over all shares of the whole cost. The interval is that of a mean of independent rows.
    """
    n = len(gain)
    _, place = np.unique(predicted, return_inverse=True)
    spent = np.bincount(place, cost)  # by all rows of one prediction, the lowest first
    share = ((np.cumsum(spent) - spent / 2) / spent.sum() - 0.5)[place]  # equal predictions share the mean rank
    parts = (gain - cost * gain.sum() / cost.sum()) * share
    mean, error = float(parts.mean()), float(parts.std(ddof=1)) / n**0.5
    return Proof(n, mean, mean - _Z * error, mean + _Z * error)


def _shrunk(proofs: Mapping[str, Proof]) -> dict[str, Proof]:
    """Shrink each cohort's figure towards the mean of all, as far as they differ no more than by chance.

    The spread between cohorts is that of DerSimonian and Laird (1986).
    """
    means = np.array([proof.gain for proof in proofs.values()])
    variance = np.array([((proof.high - proof.low) / (2 * _Z)) ** 2 for proof in proofs.values()]) + 1e-12
    weight = 1 / variance
    centre = (weight * means).sum() / weight.sum()
    excess = (weight * (means - centre) ** 2).sum() - (len(means) - 1)
    between = max(0.0, float(excess / (weight.sum() - (weight**2).sum() / weight.sum())))
    weight = 1 / (variance + between)
    centre, centre_variance = (weight * means).sum() / weight.sum(), 1 / weight.sum()
    own = between / (between + variance)
    shrunk = own * means + (1 - own) * centre
    error = np.sqrt(own * variance + (1 - own) ** 2 * centre_variance)
    return {
        name: Proof(proof.rows, float(mean), float(mean - _Z * e), float(mean + _Z * e))
        for (name, proof), mean, e in zip(proofs.items(), shrunk, error, strict=True)
    }
