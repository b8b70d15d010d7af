"""RecordedQuestions answers to MMLU-Pro: the quality and cost of routing, of a cascade, and of both.

Everything is fitted on one part of the questions (the split of bench/cascade.py) and tried on the other. Each
policy is computed for many prices of a dollar, in right answers. The first part shows which price keeps a budget.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np

from bench import surface
from bench.cache import Cache, CachedEncoder
from bench.cascade import _FIT_SHARE, PRICES, SMALL, band, fit_rules, observed, outcomes, rejects, split
from bench.replay import Question, read_questions
from bench.scorer import Judged, fit_scorer, read_answers
from bench.success import Answered, Asked, asked_facts, cohort_gains, fit_stack, served_answers, served_parts
from extproc.acceptance.score import score_facts
from extproc.encoder.protocols import Vectors
from extproc.evidence.data.tokens import Tokens
from extproc.evidence.measure.metrics import Estimate, Floats, resamples, spread, static_mix

_FOLDS = 5
# Shares of the way from the cost of the small tier to that of the large one.
BUDGETS = (0.25, 0.5, 0.75)
# Prices of a dollar in right answers, from "only quality counts" to "always the small tier".
TRADES = np.concatenate([[0.0], np.geomspace(5.0, 2000.0, 60)])
_RIDGE = 300.0
# The start of a question is embedded, and the start and the end of an answer.
QUESTION_CHARS, _ANSWER_CHARS = 400, (200, 300)


class RecordedQuestions(msgspec.Struct, frozen=True):
    """RecordedQuestions questions, one row each."""

    questions: list[Question]
    cohort: np.ndarray
    vectors: Vectors  # embeddings of the questions
    facts: Floats  # of the questions
    asked: Vectors  # the facts that the router reads
    judged: Judged  # the small tier's answers, as the scorer reads them
    scored: Floats  # the facts about them that the verifier reads
    small: Floats  # 1 if the small tier's answer is right
    large: Floats  # 1 if the large tier's answer is right
    small_cost: Floats  # dollars
    large_cost: Floats

    def as_served(self) -> Asked:
        """The questions as `extproc calibrate --target` reads them."""
        success, extra = np.stack([self.small, self.large], axis=1), self.large_cost - self.small_cost
        return Asked(self.vectors, self.asked, self.cohort, success, extra)

    def answered(self) -> tuple[Asked, Answered]:
        """The same, with the small tier's answers."""
        return self.as_served(), Answered(self.scored, np.stack([self.small_cost, self.large_cost], axis=1))

    def rows(self, indices: np.ndarray) -> "RecordedQuestions":
        """The rows with these indices."""
        judged = Judged(*(getattr(self.judged, name)[indices] for name in Judged.__struct_fields__))
        others = {name: getattr(self, name)[indices] for name in self.__struct_fields__[1:] if name != "judged"}
        return RecordedQuestions([self.questions[i] for i in indices], judged=judged, **others)


class Expected(msgspec.Struct, frozen=True):
    """Predictions for questions that the fit did not use. A gain is that of the large tier over the small one."""

    gain_by_cohort: Floats  # from the cohort
    gain_asked: Floats  # from the prompt
    gain_served: Floats  # from the prompt, by the trees that serve
    gain_judged: Floats  # from the prompt and the small tier's answer
    gain_both: Floats  # the mean of `gain_asked` and `gain_judged`, whose errors differ
    cost: Floats  # dollars of the large tier's answer, from the form of the prompt
    extra_by_cohort: Floats  # dollars of the large tier minus those of the small one, from the cohort
    extra_served: Floats  # the same, by the trees that serve
    prompt_served: Floats  # gain for a dollar of asking the large tier at once, from the prompt, as served
    answer_served: Floats  # the same of asking it after the small one, from the prompt and the answer, as served


def read(cache: Cache, data: Path) -> tuple[RecordedQuestions, RecordedQuestions]:
    """(the part to fit on, the part to try on)."""
    tokens = Tokens()
    return tuple(_recorded(cache, part, tokens) for part in split(read_questions(data), _FIT_SHARE))  # type: ignore[return-value]


def _recorded(cache: Cache, questions: list[Question], tokens: Tokens) -> RecordedQuestions:
    encoder = CachedEncoder(cache)
    prompts, answers = [q.prompt for q in questions], [q.answers[SMALL].text for q in questions]
    vectors = encoder.encode([prompt[:QUESTION_CHARS] for prompt in prompts])
    answer_vectors = encoder.encode([_start_and_end(answer) for answer in answers])
    rejected = [band(q.answers[SMALL]) == 0 for q in questions]
    cohort = [q.category for q in questions]
    o = outcomes(questions, [False] * len(questions), tokens)
    return RecordedQuestions(
        questions,
        np.array(cohort),
        vectors,
        np.stack([surface.of_question(prompt) for prompt in prompts]),
        asked_facts(prompts),
        read_answers(cohort, prompts, answers, rejected, np.hstack([vectors, answer_vectors])),
        np.array([score_facts(q.prompt, observed(q.answers[SMALL])) for q in questions]),
        o.small,
        o.large,
        o.small_cost,
        o.large_cost,
    )


def _start_and_end(answer: str) -> str:
    head, tail = _ANSWER_CHARS
    return answer if len(answer) <= head + tail else f"{answer[:head]} {answer[-tail:]}"


# --- predictions ------------------------------------------------------------------------------------------------


def expect(fit: RecordedQuestions, new: RecordedQuestions, seed: int) -> Expected:
    """Fit on one part and predict the other."""
    names = np.unique(fit.cohort)
    fit_facts, new_facts = (np.hstack([part.facts, part.cohort[:, None] == names]) for part in (fit, new))
    stack = fit_stack(fit.vectors, fit_facts, fit.large - fit.small, seed)
    large, small = (fit_scorer(fit.judged, right).chances(new.judged) for right in (fit.large, fit.small))
    routed, judged = stack.gains(new.vectors, new_facts), large - small
    extra = fit.large_cost - fit.small_cost
    served, served_cost = served_parts(fit.as_served(), new.as_served(), seed)
    # The cost of an answer is predicted from the form of the prompt: least squares on the logarithm of the cost.
    slopes = np.linalg.lstsq(fit_facts, np.log(fit.large_cost), rcond=None)[0]
    correction = fit.large_cost.mean() / np.exp(fit_facts @ slopes).mean()
    return Expected(
        cohort_gains(fit.cohort, fit.large - fit.small, new.cohort),
        routed,
        served,
        judged,
        (routed + judged) / 2,
        correction * np.exp(new_facts @ slopes),
        cohort_gains(fit.cohort, extra, new.cohort),
        served_cost * extra.mean(),
        served / served_cost / extra.mean(),
        served_answers(fit.answered(), new.answered(), seed) / extra.mean(),
    )


def expect_unseen(fit: RecordedQuestions, seed: int) -> Expected:
    """Predictions for the part fitted on, each by a fit that did not use the question."""
    fold = np.random.default_rng(seed).permutation(len(fit.small)) % _FOLDS
    predictions = [
        expect(fit.rows(np.flatnonzero(fold != k)), fit.rows(np.flatnonzero(fold == k)), seed)
        for k in range(_FOLDS)
    ]
    order = np.argsort(np.concatenate([np.flatnonzero(fold == k) for k in range(_FOLDS)]))
    return Expected(
        *(np.concatenate([getattr(p, name) for p in predictions])[order] for name in Expected.__struct_fields__)
    )


# --- policies ---------------------------------------------------------------------------------------------------


class Paid(msgspec.Struct, frozen=True):
    """The answers that were paid for, one row each. The client gets the large tier's answer if there is one."""

    small: Floats  # 1 if the small tier was asked
    large: Floats

    def quality(self, recorded: RecordedQuestions) -> Floats:
        """1 if the client's answer is right."""
        return np.where(self.large > 0, recorded.large, recorded.small)

    def cost(self, recorded: RecordedQuestions) -> Floats:
        """Dollars."""
        return self.small * recorded.small_cost + self.large * recorded.large_cost


def policies(
    recorded: RecordedQuestions, expected: Expected, worth: Floats, direct: Floats
) -> dict[str, list[Paid]]:
    """Each policy by its name, for every price of a dollar in TRADES.

    `worth` is float64[n, price]: above 0, asking the small tier first is worth its cost. `direct` is
    float64[price]: from this gain for a dollar on, the prompt chooses the large tier, as served.
    """
    ones = np.ones(len(recorded.small))

    def route(gain: Floats, extra_cost: Floats) -> list[Paid]:
        # The small answer is not paid if the large tier is asked first.
        choices = [(gain > price * extra_cost).astype(float) for price in TRADES]
        return [Paid(1 - large, large) for large in choices]

    def escalate(gain: Floats, cost: Floats) -> list[Floats]:
        return [(gain > price * cost).astype(float) for price in TRADES]

    def both(gain: Floats, worth: Floats, cost: Floats) -> list[Paid]:
        small_first = [(column > 0).astype(float) for column in worth.T]
        return [
            Paid(small, np.maximum(1 - small, large))
            for small, large in zip(small_first, escalate(gain, cost), strict=True)
        ]

    by_form = expected.cost - recorded.small_cost.mean()
    return {
        "routing, one tier per cohort": route(expected.gain_by_cohort, expected.extra_by_cohort),
        "routing, gain by cohort, cost by form": route(expected.gain_by_cohort, by_form),
        "routing, by the prompt: stack": route(expected.gain_asked, by_form),
        "routing, by the prompt: as served": route(expected.gain_served, expected.extra_served),
        "cascade, acceptance score": [Paid(ones, large) for large in escalate(expected.gain_judged, expected.cost)],
        "both: stack": both(expected.gain_both, worth, expected.cost),
        "both: as served": [
            _as_served(expected, price, least) for price, least in zip(TRADES, direct, strict=True)
        ],
    }


def _as_served(expected: Expected, price: float, direct: float) -> Paid:
    """What a cohort with `by_prompt` and the rule `gain` pays for."""
    at_once = expected.prompt_served >= direct
    large = at_once | (expected.answer_served >= price)
    return Paid((~at_once).astype(float), large.astype(float))


def direct_levels(fit: RecordedQuestions, expected: Expected) -> Floats:
    """float64[price]: the gain for a dollar from which the prompt chooses the large tier, as `calibrate` does."""
    tried = [*np.quantile(expected.prompt_served, np.arange(20) / 20), np.inf]

    def worth(price: float, direct: float) -> float:
        paid = _as_served(expected, price, direct)
        return float((paid.quality(fit) - price * paid.cost(fit)).mean())

    return np.array([max(tried, key=lambda direct: worth(price, direct)) for price in TRADES])


def worth_asking(fit: RecordedQuestions, expected: Expected, new: RecordedQuestions) -> Floats:
    """float64[n, price]: the worth of asking the small tier first, in right answers, predicted from the prompt.

    A request that is not escalated saves the large answer but loses its gain. The small answer is paid in any case.
    One ridge regression for each price.
    """
    saved = np.maximum(TRADES * expected.cost[:, None] - expected.gain_both[:, None], 0)
    target = saved - TRADES * fit.small_cost.mean()
    names = np.unique(fit.cohort)
    rows, new_rows = (
        np.hstack([part.vectors * np.sqrt(part.vectors.shape[1]), part.facts, part.cohort[:, None] == names])
        for part in (fit, new)
    )
    center, scale = rows.mean(axis=0), np.maximum(rows.std(axis=0), 1e-9)
    rows, new_rows = (rows - center) / scale, (new_rows - center) / scale
    slopes = np.linalg.solve(
        rows.T @ rows + _RIDGE * np.eye(rows.shape[1]), rows.T @ (target - target.mean(axis=0))
    )
    predicted: Floats = new_rows @ slopes + target.mean(axis=0)
    return predicted


# --- the table --------------------------------------------------------------------------------------------------


def table(cache: Cache, path: Path, seed: int) -> Iterator[str]:
    """The lines of the table, each as soon as it is ready."""
    fit, new = read(cache, path)
    unseen, expected = expect_unseen(fit, seed), expect(fit, new, seed)
    # The prices are chosen with predictions for questions that the fits did not use, as those tried are not used.
    direct = direct_levels(fit, unseen)
    rehearsed = policies(fit, unseen, worth_asking(fit, unseen, fit), direct)
    tried = policies(new, expected, worth_asking(fit, unseen, new), direct)
    low, high = fit.small_cost.mean(), fit.large_cost.mean()
    price = ", ".join(f"{tier} {read:g} / {written:g}" for tier, (read, written) in PRICES.items())
    yield f"{len(new.small):,} questions, fitted on {len(fit.small):,} others"
    yield f"dollars per million tokens, in / out: {price}; tokens counted with all-MiniLM's tokenizer"
    yield f"{'':<40}{'accuracy % [95 %]':<20}{'to large %':>10}{'$/1,000':>9}   minus static mix of equal cost"
    ones, zeros = np.ones(len(new.small)), np.zeros(len(new.small))
    yield _line("always small", Paid(ones, zeros), new, seed)
    yield _line("always large", Paid(zeros, ones), new, seed)
    for charge in ("share", "dollars"):
        yield _line(f"cascade, rules fitted for {charge}", _by_rules(fit, new, charge), new, seed)
    for budget in BUDGETS:
        limit = low + budget * (high - low)
        yield f"at most {100 * budget:.0f} % of the way from the small tier's cost to the large tier's"
        for name, paths in rehearsed.items():
            spent = np.array([path.cost(fit).mean() for path in paths])
            chosen = int(np.where(spent <= limit, spent, -1).argmax())
            yield _line(f"  {name}", tried[name][chosen], new, seed)
        yield _line("  oracle", _oracle(new, limit), new, seed)
    yield ""
    yield f"{'the whole frontier':<40}{'area [95 %]':<24}cost of always large's accuracy, % of its cost [95 %]"
    yield f"{'static mix':<40}{'0.500':<24}100.0"
    for name, paths in tried.items():
        area, cost = _frontier(paths, new, seed)
        yield (
            f"{name:<40}{f'{area.value:.3f} [{area.low:.3f}, {area.high:.3f}]':<24}"
            f"{100 * cost.value:.1f} [{100 * cost.low:.1f}, {100 * cost.high:.1f}]"
        )


def _line(name: str, path: Paid, new: RecordedQuestions, seed: int) -> str:
    quality, cost = path.quality(new), path.cost(new)
    columns = np.stack([quality, cost, new.small, new.large, new.small_cost, new.large_cost], axis=1)
    resampled = np.concatenate([weights @ columns for weights in resamples(len(quality), seed)]) / len(quality)
    means = np.concatenate([columns.mean(axis=0)[None], resampled])  # the first row is the measure itself
    mixed, _ = static_mix(means[:, 4:].T, means[:, 2:4].T, means[:, 1])
    accuracy, lead = (spread(100 * v[0], 100 * v[1:], len(quality)) for v in (means[:, 0], means[:, 0] - mixed))
    shown = f"{accuracy.value:.1f} [{accuracy.low:.1f}, {accuracy.high:.1f}]"
    minus_mix = f"{lead.value:+.1f} [{lead.low:+.1f}, {lead.high:+.1f}]" if 0 < path.large.mean() < 1 else ""
    to_large, dollars = 100 * path.large.mean(), 1000 * cost.mean()
    return f"{name:<40}{shown:<20}{to_large:>10.1f}{dollars:>9.3f}   {minus_mix}".rstrip()


def _by_rules(fit: RecordedQuestions, new: RecordedQuestions, charge: str) -> Paid:
    """The verdicts of the rules of bench/cascade.py on each question, in its true category."""
    charges = np.ones(len(fit.small)) if charge == "share" else fit.large_cost
    rules = fit_rules(fit.questions, 0.25, charges)
    escalated = np.array([rejects(rules, q.category, q.answers[SMALL]) for q in new.questions], dtype=np.float64)
    return Paid(np.ones(len(escalated)), escalated)


def _oracle(recorded: RecordedQuestions, limit: float) -> Paid:
    """Knows all answers: it asks the large tier where only that one is right, the cheapest such questions first."""
    extra_cost = recorded.large_cost - recorded.small_cost
    price = np.where(recorded.large > recorded.small, extra_cost, np.inf)
    order = np.argsort(price, kind="stable")
    spent = np.cumsum(price[order]) / len(order) + recorded.small_cost.mean()
    large = np.zeros(len(order))
    large[order[spent <= limit]] = 1
    return Paid(1 - large, large)


def _frontier(paths: Sequence[Paid], new: RecordedQuestions, seed: int) -> tuple[Estimate, Estimate]:
    """(mean recovered gap over all costs between the two tiers, lowest cost of the large tier's accuracy)."""
    n = len(new.small)
    columns = np.stack([*(p.quality(new) for p in paths), *(p.cost(new) for p in paths),
                        new.small, new.large, new.small_cost, new.large_cost], axis=1)  # fmt: skip
    resampled = [weights @ columns / n for weights in resamples(n, seed, 500)]
    measured = np.array([area_of(row) for row in (columns.mean(axis=0), *np.concatenate(resampled))])
    return spread(measured[0, 0], measured[1:, 0], n), spread(measured[0, 1], measured[1:, 1], n)


def area_of(means: Floats) -> tuple[float, float]:
    """(area, cost) as in `_frontier`, from the mean qualities and costs of the points and of the two tiers."""
    points = (len(means) - 4) // 2
    quality, cost, (small, large, low, high) = means[:points], means[points:-4], means[-4:]
    # The tiers themselves and mixes of two points are always possible.
    order = np.argsort(np.concatenate([[low], cost, [high]]), kind="stable")
    costs, gaps = np.concatenate([[low], cost, [high]])[order], np.concatenate([[small], quality, [large]])[order]
    gaps = np.maximum.accumulate((gaps - small) / (large - small))
    grid = np.linspace(low, high, 501)
    along = np.interp(grid, costs, gaps)
    reached = np.flatnonzero(along >= 1 - 1e-12)
    return float(along.mean()), float(grid[reached[0]] / high) if len(reached) else 1.0
