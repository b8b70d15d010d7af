"""MMLU-Pro as recorded: what routing, cascading and both buy.

Everything is fitted on one part of the questions (the split of bench/cascade.py) and tried on the other. A policy
is drawn for many prices of a dollar in right answers; which price keeps a budget is read off the part fitted on.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np

from bench import surface
from bench.cascade import _FIT_SHARE, PRICES, SMALL, band, fit_rules, outcomes, rejects, split
from bench.kept import Kept, KeptEncoder
from bench.replay import Question, read_questions
from bench.scorer import Judged, fit_scorer, read_answers
from bench.success import cohort_gains, fit_stack
from extproc.encoder.protocols import Vectors
from extproc.evidence.data.tokens import Tokens
from extproc.evidence.measure.metrics import Estimate, Floats, resamples, spread, static_mix

_FOLDS = 5
# Shares of the way from the small tier's cost to the large one's.
BUDGETS = (0.25, 0.5, 0.75)
# Prices of a dollar, in right answers: from "quality only" to "the small tier only".
_TRADES = np.concatenate([[0.0], np.geomspace(5.0, 2000.0, 60)])
_RIDGE = 300.0
# Of a question, its beginning is embedded; of an answer, where it sets out and where it arrives.
_QUESTION_CHARS, _ANSWER_CHARS = 400, (200, 300)


class Known(msgspec.Struct, frozen=True):
    """Recorded questions, a row each."""

    questions: list[Question]
    cohort: np.ndarray
    asked: Vectors  # embeddings of the questions
    facts: Floats  # of the questions
    judged: Judged  # the small tier's answers, as the scorer reads them
    small: Floats  # 1: right
    large: Floats
    small_cost: Floats  # dollars
    large_cost: Floats

    def rows(self, at: np.ndarray) -> "Known":
        """Some of them."""
        judged = Judged(*(getattr(self.judged, name)[at] for name in Judged.__struct_fields__))
        rest = {name: getattr(self, name)[at] for name in self.__struct_fields__[1:] if name != "judged"}
        return Known([self.questions[i] for i in at], judged=judged, **rest)


class Expected(msgspec.Struct, frozen=True):
    """What a policy expects of questions that its fit had not seen."""

    gain_by_cohort: Floats  # of the large tier over the small one, from the cohort
    gain_asked: Floats  # from the prompt
    gain_judged: Floats  # from the prompt and the small tier's answer
    gain_both: Floats  # the mean of the two: each errs in its own way
    cost: Floats  # dollars of the large tier's answer


def read(kept: Kept, data: Path) -> tuple[Known, Known]:
    """(fitted on, tried on)."""
    tokens = Tokens()
    return tuple(_known(kept, some, tokens) for some in split(read_questions(data), _FIT_SHARE))  # type: ignore[return-value]


def _known(kept: Kept, questions: list[Question], tokens: Tokens) -> Known:
    encoder = KeptEncoder(kept)
    prompts, answers = [q.prompt for q in questions], [q.answers[SMALL].text for q in questions]
    asked = encoder.encode([prompt[:_QUESTION_CHARS] for prompt in prompts])
    said = encoder.encode([_ends(answer) for answer in answers])
    rejected = [band(q.answers[SMALL]) == 0 for q in questions]
    cohort = [q.category for q in questions]
    o = outcomes(questions, [False] * len(questions), tokens)
    return Known(
        questions,
        np.array(cohort),
        asked,
        np.stack([surface.of_question(prompt) for prompt in prompts]),
        read_answers(cohort, prompts, answers, rejected, np.hstack([asked, said])),
        o.small,
        o.large,
        o.small_cost,
        o.large_cost,
    )


def _ends(answer: str) -> str:
    head, tail = _ANSWER_CHARS
    return answer if len(answer) <= head + tail else f"{answer[:head]} {answer[-tail:]}"


# --- what is expected -------------------------------------------------------------------------------------------


def expect(fit: Known, asked: Known, seed: int) -> Expected:
    """Fit on one part, predict the other."""
    names = np.unique(fit.cohort)
    facts, theirs = (np.hstack([of.facts, of.cohort[:, None] == names]) for of in (fit, asked))
    stack = fit_stack(fit.asked, facts, fit.large - fit.small, seed)
    large, small = (fit_scorer(fit.judged, right).chances(asked.judged) for right in (fit.large, fit.small))
    routed, judged = stack.gains(asked.asked, theirs), large - small
    # What an answer will cost, from the prompt's form alone: least squares on its logarithm.
    slopes = np.linalg.lstsq(facts, np.log(fit.large_cost), rcond=None)[0]
    off = fit.large_cost.mean() / np.exp(facts @ slopes).mean()
    return Expected(
        cohort_gains(fit.cohort, fit.large - fit.small, asked.cohort),
        routed,
        judged,
        (routed + judged) / 2,
        off * np.exp(theirs @ slopes),
    )


def expect_unseen(fit: Known, seed: int) -> Expected:
    """What fits that had not seen them expect of the questions fitted on."""
    fold = np.random.default_rng(seed).permutation(len(fit.small)) % _FOLDS
    found = [
        expect(fit.rows(np.flatnonzero(fold != k)), fit.rows(np.flatnonzero(fold == k)), seed)
        for k in range(_FOLDS)
    ]
    back = np.argsort(np.concatenate([np.flatnonzero(fold == k) for k in range(_FOLDS)]))
    return Expected(
        *(np.concatenate([getattr(f, name) for f in found])[back] for name in Expected.__struct_fields__)
    )


# --- policies ---------------------------------------------------------------------------------------------------


class Paid(msgspec.Struct, frozen=True):
    """Which answers were paid for, a row each; the client gets the large tier's where it was asked."""

    small: Floats  # 1: asked
    large: Floats

    def quality(self, known: Known) -> Floats:
        """1 where the client's answer is right."""
        return np.where(self.large > 0, known.large, known.small)

    def cost(self, known: Known) -> Floats:
        """Dollars."""
        return self.small * known.small_cost + self.large * known.large_cost


def policies(known: Known, expected: Expected, direct: Floats) -> dict[str, list[Paid]]:
    """Each way to choose, for every price of a dollar in _TRADES.

    `direct`: float64[n, price], above 0 where asking the small tier first is worth what it costs.
    """
    ones = np.ones(len(known.small))

    def route(gain: Floats) -> list[Paid]:
        # The small answer is not paid where the large one is asked at once.
        dearer = expected.cost - known.small_cost.mean()
        large = [(gain > price * dearer).astype(float) for price in _TRADES]
        return [Paid(1 - some, some) for some in large]

    def climb(gain: Floats) -> list[Floats]:
        return [(gain > price * expected.cost).astype(float) for price in _TRADES]

    first = [(worth > 0).astype(float) for worth in direct.T]
    return {
        "routing, a tier a cohort": route(expected.gain_by_cohort),
        "routing, by the prompt": route(expected.gain_asked),
        "cascade, acceptance score": [Paid(ones, some) for some in climb(expected.gain_judged)],
        "both": [
            Paid(some, np.maximum(1 - some, up)) for some, up in zip(first, climb(expected.gain_both), strict=True)
        ],
    }


def worth_asking(fit: Known, expected: Expected, known: Known) -> Floats:
    """float64[n, price]: what asking the small tier first is worth, predicted from the prompt, in right answers.

    Not climbing saves the large answer and its gain; the small answer is paid either way. A ridge for each price.
    """
    saved = np.maximum(_TRADES * expected.cost[:, None] - expected.gain_both[:, None], 0)
    target = saved - _TRADES * fit.small_cost.mean()
    names = np.unique(fit.cohort)
    rows, asked = (
        np.hstack([of.asked * np.sqrt(of.asked.shape[1]), of.facts, of.cohort[:, None] == names])
        for of in (fit, known)
    )
    center, scale = rows.mean(axis=0), np.maximum(rows.std(axis=0), 1e-9)
    rows, asked = (rows - center) / scale, (asked - center) / scale
    slopes = np.linalg.solve(
        rows.T @ rows + _RIDGE * np.eye(rows.shape[1]), rows.T @ (target - target.mean(axis=0))
    )
    predicted: Floats = asked @ slopes + target.mean(axis=0)
    return predicted


# --- the table --------------------------------------------------------------------------------------------------


def table(kept: Kept, path: Path, seed: int) -> Iterator[str]:
    """The lines of the table, as they are ready."""
    fit, known = read(kept, path)
    unseen, expected = expect_unseen(fit, seed), expect(fit, known, seed)
    # Prices are read off questions that the fits had not seen, as those that are tried are not.
    rehearsed = policies(fit, unseen, worth_asking(fit, unseen, fit))
    tried = policies(known, expected, worth_asking(fit, unseen, known))
    low, high = fit.small_cost.mean(), fit.large_cost.mean()
    price = ", ".join(f"{tier} {read:g} / {written:g}" for tier, (read, written) in PRICES.items())
    yield f"{len(known.small):,} questions, fitted on {len(fit.small):,} others"
    yield f"dollars per million tokens, in / out: {price}; all-MiniLM's tokenizer counts"
    yield f"{'':<36}{'accuracy % [95 %]':<20}{'to large %':>10}{'$/1,000':>9}   minus static mix of equal cost"
    ones, none = np.ones(len(known.small)), np.zeros(len(known.small))
    yield _line("always small", Paid(ones, none), known, seed)
    yield _line("always large", Paid(none, ones), known, seed)
    for charge in ("share", "dollars"):
        yield _line(f"cascade, rules fitted for {charge}", _by_rules(fit, known, charge), known, seed)
    for budget in BUDGETS:
        limit = low + budget * (high - low)
        yield f"at most {100 * budget:.0f} % of the way from the small tier's cost to the large tier's"
        for name, paths in rehearsed.items():
            spent = np.array([path.cost(fit).mean() for path in paths])
            at = int(np.where(spent <= limit, spent, -1).argmax())
            yield _line(f"  {name}", tried[name][at], known, seed)
        yield _line("  oracle", _oracle(known, limit), known, seed)
    yield ""
    yield f"{'the whole frontier':<36}{'area [95 %]':<24}cost of always large's accuracy, % of its cost [95 %]"
    yield f"{'static mix':<36}{'0.500':<24}100.0"
    for name, paths in tried.items():
        area, cost = _frontier(paths, known, seed)
        yield (
            f"{name:<36}{f'{area.value:.3f} [{area.low:.3f}, {area.high:.3f}]':<24}"
            f"{100 * cost.value:.1f} [{100 * cost.low:.1f}, {100 * cost.high:.1f}]"
        )


def _line(name: str, path: Paid, known: Known, seed: int) -> str:
    quality, cost = path.quality(known), path.cost(known)
    columns = np.stack([quality, cost, known.small, known.large, known.small_cost, known.large_cost], axis=1)
    again = np.concatenate([weights @ columns for weights in resamples(len(quality), seed)]) / len(quality)
    every = np.concatenate([columns.mean(axis=0)[None], again])
    mixed, _ = static_mix(every[:, 4:].T, every[:, 2:4].T, every[:, 1])
    accuracy, ahead = (spread(100 * v[0], 100 * v[1:], len(quality)) for v in (every[:, 0], every[:, 0] - mixed))
    found = f"{accuracy.value:.1f} [{accuracy.low:.1f}, {accuracy.high:.1f}]"
    behind = f"{ahead.value:+.1f} [{ahead.low:+.1f}, {ahead.high:+.1f}]" if 0 < path.large.mean() < 1 else ""
    return f"{name:<36}{found:<20}{100 * path.large.mean():>10.1f}{1000 * cost.mean():>9.3f}   {behind}".rstrip()


def _by_rules(fit: Known, known: Known, charge: str) -> Paid:
    """The rules of bench/cascade.py, by what they say offline of each question in its own category."""
    charges = np.ones(len(fit.small)) if charge == "share" else fit.large_cost
    rules = fit_rules(fit.questions, 0.25, charges)
    climbed = np.array([rejects(rules, q.category, q.answers[SMALL]) for q in known.questions], dtype=np.float64)
    return Paid(np.ones(len(climbed)), climbed)


def _oracle(known: Known, limit: float) -> Paid:
    """Knows every answer beforehand: the large tier where it alone is right, the cheapest such first."""
    dearer = known.large_cost - known.small_cost
    order = np.argsort(np.where(known.large > known.small, dearer, np.inf), kind="stable")
    spent = (
        np.cumsum(np.where(known.large > known.small, dearer, np.inf)[order]) / len(order) + known.small_cost.mean()
    )
    large = np.zeros(len(order))
    large[order[spent <= limit]] = 1
    return Paid(1 - large, large)


def _frontier(paths: Sequence[Paid], known: Known, seed: int) -> tuple[Estimate, Estimate]:
    """(gap recovered, averaged over costs from one tier's to the other's; least cost of the large's accuracy)."""
    n = len(known.small)
    columns = np.stack([*(p.quality(known) for p in paths), *(p.cost(known) for p in paths),
                        known.small, known.large, known.small_cost, known.large_cost], axis=1)  # fmt: skip
    again = [weights @ columns / n for weights in resamples(n, seed, 500)]
    measured = np.array([_area(row) for row in (columns.mean(axis=0), *np.concatenate(again))])
    return spread(measured[0, 0], measured[1:, 0], n), spread(measured[0, 1], measured[1:, 1], n)


def _area(means: Floats) -> tuple[float, float]:
    """From mean qualities and costs of a policy's points, and of the two tiers."""
    points = (len(means) - 4) // 2
    quality, cost, (small, large, low, high) = means[:points], means[points:-4], means[-4:]
    # The tiers themselves can always be had, and so can a mix of two points.
    order = np.argsort(np.concatenate([[low], cost, [high]]), kind="stable")
    costs, gaps = np.concatenate([[low], cost, [high]])[order], np.concatenate([[small], quality, [large]])[order]
    gaps = np.maximum.accumulate((gaps - small) / (large - small))
    grid = np.linspace(low, high, 501)
    along = np.interp(grid, costs, gaps)
    reached = np.flatnonzero(along >= 1 - 1e-12)
    return float(along.mean()), float(grid[reached[0]] / high) if len(reached) else 1.0
