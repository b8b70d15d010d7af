"""Judges whether an answer is good enough for the client: rules and one answer -> one `Verdict`.

Rules are tried in order, and the first rejection wins. An answer that a client could not read is rejected without
any rule. It may be malformed, have the wrong content type or framing, be an error inside a 200, or lack its
protocol's ending. An answer that is only too large to be read is accepted, and the verdict says so. The same holds
for a rule that could not run.

Nothing here does I/O. The caller passes the function that embeds texts for `grounded`, and passes the results of
rules that call out (`agree`, `judge`) as `external`.
"""

from collections.abc import Mapping, Sequence

import msgspec

from extproc.acceptance.checks import CHECKS, OK, PASSED, UNAVAILABLE, CheckInputs
from extproc.acceptance.grounding import Embed
from extproc.acceptance.partial_checks import OPEN, PARTIAL_CHECKS, still_open
from extproc.acceptance.requirements import Requirements
from extproc.acceptance.rules import (
    AcceptRule,
    Complete,
    Gain,
    Logprob,
    MinChars,
    NonEmpty,
    NoRefusal,
    Score,
    rule_name,
)
from extproc.api.observation import CONTINUES, TOO_LARGE, Observation


class Verdict(msgspec.Struct, frozen=True):
    """Accept or reject, the rule that rejected, and a machine-readable reason."""

    accept: bool
    rule: str | None = None  # None: no rule rejected, or the answer was unreadable
    reason: str = OK  # a rejection's; or "too_large", "slow" or "unavailable" for an answer not fully judged
    decided: bool = True  # False: more of the answer is needed, and `accept` is False
    unavailable: tuple[str, ...] = ()  # rules that could not run and counted as passed


def judge(
    rules: Sequence[AcceptRule],
    observation: Observation,
    *,
    request: Requirements | None = None,
    embed: Embed | None = None,
    external: Mapping[str, bool | None] | None = None,
    tier: str | None = None,
) -> Verdict:
    """Judge an answer by `tier` that has ended. The verdict is always decided."""
    inputs = CheckInputs(request or Requirements(), embed, external or {}, tier)
    if is_unjudgeable(observation):
        return _unjudged(rules, observation)
    reason = _unreadable(observation, inputs.request)
    if reason is None and not observation.complete:
        reason = "incomplete"
    if reason is not None:
        return Verdict(False, reason=reason)
    unavailable: list[str] = []
    for rule in rules:
        outcome = CHECKS[type(rule)](rule, observation, inputs)
        if outcome == UNAVAILABLE and _passes_unavailable(rule):
            unavailable.append(rule_name(rule))
        elif outcome not in PASSED:
            return Verdict(False, rule_name(rule), outcome, unavailable=tuple(unavailable))
    return Verdict(True, reason=UNAVAILABLE if unavailable else OK, unavailable=tuple(unavailable))


def judge_early(
    rules: Sequence[AcceptRule],
    observation: Observation,
    *,
    request: Requirements | None = None,
    embed: Embed | None = None,
    external: Mapping[str, bool | None] | None = None,
    tier: str | None = None,
) -> Verdict:
    """Judge an answer that is still growing. The verdict is decided only if the rest cannot change it.

    Accept means that every rule is satisfied if the answer ends properly. One rejection is not certain: a low mean
    log-probability of the first tokens. It must be below the rule's `min` by at least its `slack`.
    """
    if observation.complete or observation.ended:
        return judge(rules, observation, request=request, embed=embed, external=external, tier=tier)
    inputs = CheckInputs(request or Requirements(), embed, external or {}, tier)
    if is_unjudgeable(observation):
        return _unjudged(rules, observation)
    reason = _unreadable(observation, inputs.request)
    if reason is not None:
        return Verdict(False, reason=reason)
    outcomes = [PARTIAL_CHECKS.get(type(rule), still_open)(rule, observation, inputs) for rule in rules]
    unavailable: list[str] = []
    for rule, outcome in zip(rules, outcomes, strict=True):
        if outcome == UNAVAILABLE and (_passes_unavailable(rule) or not observation.text):
            unavailable.append(rule_name(rule))
        elif outcome not in (*PASSED, OPEN):
            return Verdict(False, rule_name(rule), outcome)
    if OPEN in outcomes or unavailable:
        return Verdict(False, reason=OPEN, decided=False, unavailable=tuple(unavailable))
    return Verdict(True)


def is_only_end_open(
    rules: Sequence[AcceptRule],
    observation: Observation,
    *,
    request: Requirements | None = None,
    tier: str | None = None,
) -> bool:
    """Whether only `complete` is not certain about a growing answer, and all other rules accept any more text."""
    others = without_ending(rules)
    if len(others) == len(rules):
        return False
    verdict = judge_early(others, observation, request=request, tier=tier)
    return verdict.decided and verdict.accept


def released(verdict: Verdict, late: bool) -> Verdict:
    """Return the verdict on a growing answer that is released. `late`: its first words take too long."""
    reason = "slow" if late else OK
    if verdict.unavailable:
        reason = UNAVAILABLE
    return Verdict(True, reason=reason, unavailable=verdict.unavailable)


def _passes_unavailable(rule: AcceptRule) -> bool:
    return getattr(rule, "on_unavailable", "reject") == "accept"


def is_unjudgeable(observation: Observation) -> bool:
    """Whether no rule can run on this answer, through no fault of its tier: it is too large, or continues later."""
    if observation.malformed is not None or observation.error is not None:
        return observation.malformed in TOO_LARGE
    return observation.complete and observation.finish in CONTINUES


def _unjudged(rules: Sequence[AcceptRule], observation: Observation) -> Verdict:
    reason = UNAVAILABLE if rules else OK
    if observation.malformed is not None:
        reason = "too_large"
    return Verdict(True, reason=reason, unavailable=tuple(map(rule_name, rules)))


def wants_logprobs(rules: Sequence[AcceptRule], tier: str | None = None) -> bool:
    """Whether these rules need log-probabilities in the answers of `tier`, or of any tier if it is None."""
    return any(_wants_logprobs(rule, tier) for rule in rules)


def _wants_logprobs(rule: AcceptRule, tier: str | None) -> bool:
    if isinstance(rule, Score) and rule.scorer is not None:
        return rule.scorer.wants_logprobs and tier in (None, rule.scorer.tier)
    if isinstance(rule, Gain) and rule.predictor is not None:
        return bool(rule.predictor.wants_logprobs) and tier in (None, rule.predictor.tier)
    return isinstance(rule, Logprob) and rule.judges(tier)


def needs_whole_answer(rules: Sequence[AcceptRule]) -> list[str]:
    """Return the names of the rules that cannot judge a part of an answer."""
    return [rule_name(rule) for rule in rules if type(rule) not in PARTIAL_CHECKS or _needs_all_tokens(rule)]


def may_be_certain(rules: Sequence[AcceptRule], tier: str | None) -> bool:
    """Whether a growing answer of `tier` can satisfy all these rules for certain. Other rules need its end."""
    return all(
        isinstance(rule, NonEmpty | MinChars | NoRefusal)
        or (isinstance(rule, Logprob) and (rule.first is not None or not rule.judges(tier)))
        for rule in rules
    )


def without_ending(rules: Sequence[AcceptRule]) -> list[AcceptRule]:
    """Return the rules without `complete`, which alone is about the end of an answer."""
    return [rule for rule in rules if not isinstance(rule, Complete)]


def _needs_all_tokens(rule: AcceptRule) -> bool:
    """Whether the first tokens show only a mean that is far too low."""
    return isinstance(rule, Logprob) and rule.first is None


def _unreadable(observation: Observation, request: Requirements) -> str | None:
    """Return why a client could not read this answer, or None. No rule is needed for that."""
    if observation.error is not None:
        return "upstream_error"
    if observation.malformed is not None:
        return "malformed"
    if observation.mislabelled:
        return "wrong_type"
    if request.stream is None or observation.framing is None:
        return None
    return None if request.stream == (observation.framing == "sse") else "wrong_framing"
