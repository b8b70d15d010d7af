"""Recorded rows in a table: the quality and cost of each setting's answer, and whether its rules accept it."""

from collections.abc import Sequence

import msgspec
import numpy as np

from extproc.acceptance.grounding import Embed
from extproc.acceptance.requirements import question_of, read_requirements
from extproc.acceptance.rules import AcceptRule, Gain, Logprob, Score
from extproc.acceptance.score import SCORE_FACTS, score_facts
from extproc.acceptance.verdict import judge
from extproc.api.observation import Observation
from extproc.contract.words import Reason
from extproc.evidence.data.groups import group_rows
from extproc.evidence.data.setting import tier_of
from extproc.evidence.execution import Execution, ask_of
from extproc.evidence.fit.labelled import MOST_ROWS, drawn
from extproc.evidence.fit.logprobs import Means, count_tokens, mean_logprobs
from extproc.evidence.fit.partition import FIT_SHARE, hash_fraction
from extproc.evidence.fit.units import Units
from extproc.evidence.measure.metrics import Bools, Floats
from extproc.evidence.measure.recording import Recorded, answer_table, recorded
from extproc.routing.decision import decide
from extproc.routing.policy import Cohort, Policy
from extproc.settings import Tier


class OptionTable(msgspec.Struct, frozen=True):
    """Recorded rows that every setting answered. Each list and array has one entry per row."""

    run: Execution
    positions: list[int]  # of the rows in the execution
    recorded: Recorded  # quality and dollars by setting
    cohort: np.ndarray  # where the row landed; "" if its cohort did not decide about its tier
    fraction: Floats  # `hash_fraction` of the text
    fit: Bools  # rows to fit on; the others are reported on
    configured: tuple[Floats, Floats]  # quality and dollars as configured
    paths: list[tuple[str, ...]]  # the settings that answered, as configured
    tokens: Floats  # [row, setting] output tokens, NaN if not recorded
    passed: Bools  # [row, setting] whether the cohort's written rules accept the answer
    facts: dict[str, Floats]  # setting -> [row, fact], for the settings whose answers were all recorded
    logprobs: dict[str, bool]  # setting -> whether all its answers have log-probabilities
    means: dict[str, Means]  # setting -> the mean log-probabilities of its answers, if any answer has them
    logprob_tokens: dict[str, Floats]  # setting -> [row] tokens that have a log-probability
    units: Units  # of all rows
    available: int  # rows that every setting answered, of which these may be drawn at random
    seed: int

    @property
    def settings(self) -> list[str]:
        """The names of the settings, cheapest tier first."""
        return self.recorded.tiers

    def tier(self, setting: str) -> Tier:
        """Return the tier of a setting."""
        return self.run.snapshot.policy.tier(tier_of(setting))


def tabulate(run: Execution, seed: int, embed: Embed | None = None) -> OptionTable:
    """Tabulate the rows that can be compared. Raises ValueError if there are none.

    `embed` is used by the rule `grounded`.
    """
    quality, cost = run.served.column("quality"), run.served.column("cost")
    comparable = recorded(run, quality, cost)
    available = np.flatnonzero(comparable.rows)
    kept = drawn(np.arange(len(available)), MOST_ROWS)
    positions = available[kept].tolist()
    comparable = msgspec.structs.replace(comparable, quality=comparable.quality[kept], cost=comparable.cost[kept])
    if not positions or len(comparable.tiers) < 2:
        with_any = int(answer_table(run).any.sum())
        raise ValueError(
            f"no row has the outcomes of two tiers or more ({with_any:,} rows have the outcome of one): record two "
            "tiers on rows drawn at random (see docs/reference/traffic.md)"
        )
    names = comparable.tiers
    facts, logprobs, means, logprob_tokens = {}, {}, {}, {}
    for name in names[:-1]:  # the last setting has no other to escalate to
        observations = [run.answers[i][name].observation for i in positions]
        complete = [observation for observation in observations if observation is not None]
        if len(complete) == len(observations):
            facts[name] = _facts(run, positions, complete)
            logprobs[name] = all(observation.logprobs for observation in complete)
        if any(observation.logprobs for observation in complete):
            means[name], logprob_tokens[name] = mean_logprobs(observations), count_tokens(observations)
    lowest = _at_lowest_tier(run.snapshot.policy)
    rows = [run.rows[i] for i in positions]
    asks = [ask_of(row, run.routed[i]) for row, i in zip(rows, positions, strict=True)]
    # An ask with another number is another question here: whether a tier answers it may depend on the number.
    units = Units.of(
        run.weights()[positions], group_rows(asks, [row.user or row.session for row in rows], exact=True)
    )
    _, first = np.unique(units.member, return_index=True)  # the rows of a unit are in one part
    fraction = np.array([_fraction(run, positions[i], seed) for i in first])[units.member]
    tokens = np.stack([run.answers.column(name, "tokens_out")[positions] for name in names], axis=1)
    paths = run.served.paths()
    return OptionTable(
        run,
        positions,
        comparable,
        np.array([_decided_by(run, i, lowest) for i in positions], dtype=object),
        fraction,
        fraction < FIT_SHARE,
        (quality[positions], cost[positions]),
        [paths[i] for i in positions],
        tokens,
        np.array([_passed(run, i, names, embed) for i in positions], dtype=np.bool_),
        facts,
        logprobs,
        means,
        logprob_tokens,
        units,
        len(available),
        seed,
    )


def _facts(run: Execution, positions: Sequence[int], observations: Sequence[Observation]) -> Floats:
    """Return float64[row, fact]: the inputs of the acceptance score."""
    rows = np.zeros((len(positions), len(SCORE_FACTS)))
    for row, i, observation in zip(rows, positions, observations, strict=True):
        request = run.routed[i].request
        row[:] = score_facts(question_of(request) if request is not None else "", observation)
    return rows


def _decided_by(run: Execution, i: int, lowest: Policy) -> str:
    """Return the cohort that decided about a row's tier, or "" if something else did, such as a rule.

    `lowest` is the policy with every cohort at the lowest tier.
    """
    routed = run.routed[i]
    decision, cohort = routed.decision, routed.decision.cohort
    if decision.reason not in (Reason.MATCHED, Reason.BY_PROMPT) or cohort is None or routed.signals is None:
        return ""
    if ends_with_person(cohort):
        return ""
    _, headers = run.rows[i].request("")
    least = lowest.rank(decide(lowest, routed.signals, decision.match, headers).tier.name)
    if decision.match is not None and decision.match.joined is not None:
        # At a lower tier of its cohort, the follow-up would be decided with the asks before it.
        before = decide(run.snapshot.policy, routed.signals, decision.match.joined, headers)
        least = max(least, lowest.rank(before.tier.name))
    return cohort.name if least <= lowest_rank(lowest, cohort) else ""


def _at_lowest_tier(policy: Policy) -> Policy:
    """Return the policy with every cohort set to the lowest tier."""
    lowest = policy.tiers[0].name
    cohorts = {
        name: msgspec.structs.replace(cohort, tier=lowest, by_prompt=None)
        for name, cohort in policy.cohorts.items()
    }
    return msgspec.structs.replace(policy, cohorts=cohorts, mode="enforce")


def lowest_rank(policy: Policy, cohort: Cohort) -> int:
    """Return the rank of the lowest tier that the cohort's tier floor allows."""
    return policy.rank(cohort.tier_floor) if cohort.tier_floor is not None else 0


def ends_with_person(cohort: Cohort) -> bool:
    """Return whether rejected answers of this cohort end with a person."""
    return cohort.escalate is not None and cohort.escalate.human


def written_rules(cohort: Cohort) -> tuple[AcceptRule, ...]:
    """Return the cohort's acceptance rules that a person wrote, without those that are fitted."""
    return tuple(rule for rule in cohort.accept if not _is_fitted(rule))


def _is_fitted(rule: AcceptRule) -> bool:
    return isinstance(rule, Score | Gain) or (isinstance(rule, Logprob) and rule.tier is not None)


def _fraction(run: Execution, i: int, seed: int) -> float:
    signals = run.routed[i].signals
    return hash_fraction(signals.ask.text if signals is not None else str(i), seed)


def _passed(run: Execution, i: int, settings: Sequence[str], embed: Embed | None) -> list[bool]:
    """Return whether the cohort's written rules accept each setting's answer.

    An answer that was not recorded is accepted.
    """
    routed = run.routed[i]
    rules = written_rules(routed.decision.cohort) if routed.decision.cohort is not None else ()
    if not rules or routed.request is None:
        return [True] * len(settings)
    requirements = msgspec.structs.replace(read_requirements(routed.request, rules), stream=None)
    answers = run.answers[i]
    observations = [answers[name].observation for name in settings]
    return [
        answer is None or judge(rules, answer, request=requirements, embed=embed).accept for answer in observations
    ]
