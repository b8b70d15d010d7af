"""What a cohort could be set to, and what each recorded row would have given: quality and dollars.

An option is a tier with a reasoning setting, perhaps with a cap on output tokens, perhaps judged: by the rules that
the cohort has, and by an acceptance score, where what scores low climbs to a second setting. A row's answer is then
the recorded one, so nothing is modelled but the score, and that only by curves that had not seen the row.
"""

import math
from collections.abc import Iterator, Sequence
from functools import cached_property

import msgspec
import numpy as np

from extproc.acceptance.grounding import Embed
from extproc.acceptance.requirements import question_of, read_requirements
from extproc.acceptance.rules import AcceptRule, Complete, Score
from extproc.acceptance.score import SCORE_FACTS, score_facts
from extproc.acceptance.verdict import judge
from extproc.contract.words import Reason
from extproc.evidence.data.answers import SETTINGS
from extproc.evidence.execution import Execution
from extproc.evidence.fit.partition import FIT_SHARE, hash_fraction
from extproc.evidence.fit.scorer import Answers, Curve, chances_of, fit_curves, unseen_chances
from extproc.evidence.measure.controls import Recorded, recorded
from extproc.evidence.measure.metrics import Bools, Floats
from extproc.routing.policy import Cohort, Policy, decide
from extproc.settings import Tier

# Of a cohort's scores, from the lowest to the highest: in less there is nothing to part.
_SPREAD = 0.01
# Of a cohort's scores: where its threshold may lie. Finer steps choose among noise.
_LEVELS = tuple(k / 10 for k in range(1, 10))


class Option(msgspec.Struct, frozen=True):
    """What a cohort could be set to; settings are called as outcomes are (`setting_name`)."""

    first: str
    up: str | None = None  # where rejected answers go; None: nothing is judged
    level: float | None = None  # the share of scores that are rejected; None: no score
    capped: bool = False


class Plan(msgspec.Struct, frozen=True):
    """An option with the numbers that one cohort's rows give it."""

    option: Option
    least: float = -math.inf  # the least score that is accepted
    cap: int | None = None  # output tokens


class OptionTable(msgspec.Struct, frozen=True, dict=True):
    """Recorded rows that every setting answered; the arrays have an entry a row."""

    run: Execution
    at: list[int]  # their places in the execution
    found: Recorded  # quality and dollars by setting
    cohort: np.ndarray  # where they landed; "" where it is not the cohort that decided
    place: Floats  # by the text's hash, from 0 to 1: which part it belongs to
    fit: Bools  # fitted on; the others are reported on
    present: tuple[Floats, Floats]  # quality and dollars as configured
    paths: list[tuple[str, ...]]  # likewise
    tokens: Floats  # [row, setting] that were written, NaN where nobody recorded it
    passed: Bools  # [row, setting] by the cohort's own rules
    facts: dict[str, Floats]  # by setting: what its score reads; settings whose answers were recorded
    logprobs: dict[str, bool]  # by setting: whether all answers have them
    seed: int

    @property
    def settings(self) -> list[str]:
        """Cheapest tier first."""
        return self.found.tiers

    @cached_property
    def curves(self) -> dict[str, dict[str, Curve]]:
        """setting -> cohort -> its curve, fitted on the fitted part."""
        rows = self.fit & (self.cohort != "")
        return {name: fit_curves(self._answers(name, rows), self.logprobs[name]) for name in self.facts}

    @cached_property
    def scores(self) -> dict[str, Floats]:
        """By setting: what curves say of each row that had not seen it; NaN where there is none."""
        scores = {}
        for name, curves in self.curves.items():
            scores[name] = chances_of(curves, self._answers(name, self.fit | ~self.fit))
            rows = self.fit & (self.cohort != "")
            answers = self._answers(name, rows)
            scores[name][rows] = unseen_chances(answers, self.place[rows], self.logprobs[name], self.seed)
        return scores

    def _answers(self, setting: str, rows: Bools) -> Answers:
        right = self.found.quality[:, self.settings.index(setting)]
        return Answers(self.cohort[rows], self.facts[setting][rows], right[rows])

    def tier(self, setting: str) -> Tier:
        """The tier of a setting."""
        return self.run.snapshot.policy.tier(tier_of(setting))

    # --- options ------------------------------------------------------------------------------------------

    def options(self, cohort: Cohort) -> Iterator[Option]:
        """All that the cohort could be set to."""
        policy = self.run.snapshot.policy
        for option in self._uncapped(own_rules(cohort)):
            if policy.rank(self.tier(option.first).name) < _floor(policy, cohort):
                continue
            yield option
            if not np.isnan(self.tokens).all():
                yield msgspec.structs.replace(option, capped=True)

    def _uncapped(self, rules: Sequence[AcceptRule]) -> Iterator[Option]:
        for first in self.settings:
            above = list(self._above(first))
            if not rules or not above:
                yield Option(first)
            for up in above:
                if rules:
                    yield Option(first, up)
                if first in self.facts:
                    yield from (Option(first, up, level) for level in _LEVELS)

    def _above(self, first: str) -> Iterator[str]:
        """Dearer tiers, and the same one with reasoning."""
        rank = self.run.snapshot.policy.rank
        for up in self.settings:
            same, low, high = (self.tier(name).name for name in (first, first, up))
            if rank(high) > rank(low) or (same == high and up == f"{same}+reasoning" != first):
                yield up

    def plan(self, cohort: Cohort, option: Option, cut: float) -> Plan | None:
        """The option with its threshold and cap, from the rows fitted on; None where they do not give them."""
        rows = self.fit & (self.cohort == cohort.name)
        least, cap = -math.inf, None
        if option.level is not None:
            scores, curve = self.scores[option.first][rows], self.curves[option.first].get(cohort.name)
            served = curve.chances(self.facts[option.first][rows]) if curve is not None else np.zeros(0)
            # Where the curve tells no answer from another, those that had not seen them differ by chance alone.
            if np.isnan(scores).any() or not len(served) or np.ptp(served) < _SPREAD:
                return None
            least = round(float(np.quantile(scores, option.level)), 3)
        if option.capped:
            caps = [self._cap(rows, name, cut) for name in (option.first, option.up) if name is not None]
            if None in caps:
                return None
            cap = max(c for c in caps if c is not None)
        return Plan(option, least, cap)

    def _cap(self, rows: Bools, setting: str, cut: float) -> int | None:
        at = self.settings.index(setting)
        return cap_of(self.tokens[rows, at], self.found.quality[rows, at], cut)

    def given(self, cohort: Cohort, plan: Plan, rows: Bools) -> tuple[Floats, Floats, Bools]:
        """(quality, dollars, whether the answer climbed) of these rows, had the cohort been set so."""
        quality, cost, fits = self._first(plan.option.first, plan.cap, rows)
        if plan.option.up is None:
            return quality, cost, np.zeros(len(quality), dtype=bool)
        passed = self.passed[rows, self.settings.index(plan.option.first)]
        if any(isinstance(rule, Complete) for rule in cohort.accept):
            passed = passed & fits
        climbs = ~passed
        if plan.option.level is not None:
            climbs |= self.scores[plan.option.first][rows] < plan.least
        better, more, _ = self._first(plan.option.up, plan.cap, rows)
        return np.where(climbs, better, quality), cost + climbs * more, climbs

    def _first(self, setting: str, cap: int | None, rows: Bools) -> tuple[Floats, Floats, Bools]:
        """(quality, dollars, whether it fits the cap) of a setting's answers; one that is cut is worth nothing."""
        at = self.settings.index(setting)
        quality, cost, tokens = (of[rows, at] for of in (self.found.quality, self.found.cost, self.tokens))
        if cap is None:
            return quality, cost, np.ones(len(quality), dtype=bool)
        over = np.maximum(tokens - cap, 0.0)
        return np.where(over > 0, 0.0, quality), cost - over * self.tier(setting).price.output / 1e6, over == 0


def cap_of(tokens: Floats, quality: Floats, cut: float) -> int | None:
    """The least cap that cuts at most the share `cut` of successful answers to come; None if too few were seen.

    Of m lengths the k-th longest is exceeded by a new one with a chance of k / (m + 1).
    """
    lengths = np.sort(tokens[quality >= 0.5])
    k = math.floor(cut * (len(lengths) + 1) + 1e-9)
    return int(lengths[-k]) if k >= 1 and not np.isnan(lengths).any() else None


def own_rules(cohort: Cohort) -> tuple[AcceptRule, ...]:
    """The rules that people wrote: all but the score."""
    return tuple(rule for rule in cohort.accept if not isinstance(rule, Score))


# --- reading ----------------------------------------------------------------------------------------------------


def tabulate(run: Execution, seed: int, embed: Embed | None = None) -> OptionTable:
    """The rows that can be compared. Raises ValueError when there are none."""
    quality, cost = (
        np.array([getattr(s, name) if s is not None else None for s in run.served], dtype=np.float64)
        for name in ("quality", "cost")
    )
    found = recorded(run, quality, cost)
    at = [int(i) for i in np.flatnonzero(found.rows)]
    if not at or len(found.tiers) < 2:
        raise ValueError("no row has the outcomes of two tiers or more: record `outcomes` (docs/evidence.md)")
    names, answers = found.tiers, [[run.answers[i][name] for name in found.tiers] for i in at]
    facts, logprobs = {}, {}
    for j, name in enumerate(names[:-1]):  # nothing is above the last one
        seen = [row[j].observation for row in answers]
        if all(one is not None for one in seen):
            facts[name] = _facts(run, at, seen)
            logprobs[name] = all(one is not None and one.logprobs for one in seen)
    lowest = _at_the_bottom(run.snapshot.policy)
    place = np.array([_place(run, i, seed) for i in at])
    tokens = [[row[j].tokens_out for j in range(len(names))] for row in answers]
    return OptionTable(
        run,
        at,
        found,
        np.array([_decided_by(run, i, lowest) for i in at], dtype=object),
        place,
        place < FIT_SHARE,
        (quality[at], cost[at]),
        [s.path if (s := run.served[i]) is not None else () for i in at],
        np.array(tokens, dtype=np.float64),
        np.array([_passed(run, i, names, embed) for i in at], dtype=np.bool_),
        facts,
        logprobs,
        seed,
    )


def _facts(run: Execution, at: Sequence[int], seen: Sequence[object]) -> Floats:
    rows = np.zeros((len(at), len(SCORE_FACTS)))
    for k, (i, one) in enumerate(zip(at, seen, strict=True)):
        request = run.routed[i].request
        rows[k] = score_facts(question_of(request) if request is not None else "", one)  # type: ignore[arg-type]
    return rows


def _decided_by(run: Execution, i: int, lowest: Policy) -> str:
    """The cohort whose tier and settings served a row, if the cohort decided and would, whatever its tier."""
    one = run.routed[i]
    decision, cohort = one.decision, one.decision.cohort
    if decision.reason is not Reason.MATCHED or cohort is None or one.signals is None or ends_with_person(cohort):
        return ""
    _, headers = run.rows[i].request("")
    least = decide(lowest, one.signals, decision.match, headers).tier
    return cohort.name if lowest.rank(least.name) <= _floor(lowest, cohort) else ""  # else a rule holds it up


def _at_the_bottom(policy: Policy) -> Policy:
    """The policy as if every cohort were set to the cheapest tier."""
    bottom = policy.tiers[0].name
    cohorts = {name: msgspec.structs.replace(cohort, tier=bottom) for name, cohort in policy.cohorts.items()}
    return msgspec.structs.replace(policy, cohorts=cohorts, mode="enforce")


def _floor(policy: Policy, cohort: Cohort) -> int:
    """The rank of the least tier that the cohort allows itself."""
    return policy.rank(cohort.tier_floor) if cohort.tier_floor is not None else 0


def ends_with_person(cohort: Cohort) -> bool:
    """Whether what its models may not answer goes to a person."""
    return cohort.escalate is not None and cohort.escalate.human


def _place(run: Execution, i: int, seed: int) -> float:
    signals = run.routed[i].signals
    return hash_fraction(signals.ask.text if signals is not None else str(i), seed)


def _passed(run: Execution, i: int, settings: Sequence[str], embed: Embed | None) -> list[bool]:
    """Whether the cohort's own rules accept each setting's answer; rules see nothing that was not recorded."""
    one = run.routed[i]
    rules = own_rules(one.decision.cohort) if one.decision.cohort is not None else ()
    if not rules or one.request is None:
        return [True] * len(settings)
    facts = msgspec.structs.replace(read_requirements(one.request, rules), stream=None)
    seen = [run.answers[i][name].observation for name in settings]
    return [given is None or judge(rules, given, request=facts, embed=embed).accept for given in seen]


def tier_of(setting: str) -> str:
    """The name of a setting's tier."""
    return setting.partition("+")[0]


def reasoning_of(setting: str) -> bool | None:
    """What a setting's name says of reasoning; None: nothing."""
    return SETTINGS["".join(setting.partition("+")[1:])]
