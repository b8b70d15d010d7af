"""The part of `extproc explain` about the tiers that come next."""

from collections.abc import Iterator

from extproc.acceptance.rules import AcceptRule, Gain, Logprob, Score, rule_name
from extproc.acceptance.verdict import needs_whole_answer
from extproc.routing.gain_file import GAINS_FILE
from extproc.routing.policy import Cohort
from extproc.routing.routed import Routed


def ladder_lines(routed: Routed) -> Iterator[str]:
    """The tiers that come next, and the reasons for which a request moves to them."""
    decision, cohort = routed.decision, routed.decision.cohort
    if not decision.ladder:
        return
    rules = cohort.accept if decision.judged and cohort is not None else ()
    named = [rung.tier.name for rung in decision.ladder]
    rejected = f"if {', '.join(map(_condition, rules))} rejects its answer"
    if decision.climbs:
        yield f"failover  {', then '.join(named)}, if {decision.tier.name} fails"
        named = [rung.tier.name for rung in decision.ladder if not rung.failover]
        if rules and named:
            yield f"ladder    {', then '.join(named)}, {rejected}{_skips(cohort)}"
    else:
        rejections = f", or {rejected}" if rules else ""
        failed = f"if {decision.tier.name} fails"
        yield f"ladder    {', then '.join(named)}, {failed}{rejections}{_skips(cohort) if rules else ''}"
    if routed.request is None or not routed.request.stream or cohort is None or cohort.stream != "early":
        return
    for name in needs_whole_answer(rules):
        yield f"stream    its first tokens are buffered: {name} needs the whole answer and passes a longer one"


def _skips(cohort: Cohort | None) -> str:
    if cohort is None or cohort.escalate is None or not cohort.escalate.skip:
        return ""
    return f"; a rejection by {', '.join(cohort.escalate.skip)} skips a rung"


def _condition(rule: AcceptRule) -> str:
    if isinstance(rule, Logprob):
        tokens = "all tokens" if rule.first is None else f"the first {rule.first} tokens"
        return f"logprob (mean of {tokens} below {rule.min:g}{f' at {rule.tier}' if rule.tier else ''})"
    if isinstance(rule, Gain):
        missing = (
            "" if rule.predictor is not None else f"; not used: {GAINS_FILE} is missing, stale or of another fit"
        )
        return f"gain (predicted with the answer: {100 * rule.least:+.1f} points or more{missing})"
    if not isinstance(rule, Score) or rule.scorer is None:
        return rule_name(rule)
    return f"score (below {rule.min:g}; fitted on {rule.scorer.rows} rows of {rule.scorer.stamp})"
