"""The part of `extproc explain` about the match: the chance of every cohort, and why the match counts or not."""

from collections.abc import Iterator, Mapping

from extproc.contract.words import Reason
from extproc.routing.by_prompt import rank_by_prompt
from extproc.routing.decision import Decision
from extproc.routing.index import Match
from extproc.routing.policy import Cohort, Policy
from extproc.routing.trust import DOUBT, LEAST_CHANCE, chance_above, is_decided_by_floors, needed_rank, weigh
from extproc.settings import ByPrompt

BACKGROUND = "(background)"


def cohort_table(
    policy: Policy, similarities: Mapping[str, float], chances: Mapping[str | None, float]
) -> Iterator[str]:
    """A row for every cohort and for the background, the likeliest first. Without chances: the nearest first."""
    if not similarities:
        return
    chance_head = f"{'chance':>10}" if chances else ""
    yield f"\n{'cohort':<18}{chance_head}  {'tier':<12}{'similarity':>10}{'floor':>8}"
    for name in chances or similarities:
        chance = f"{100 * chances[name]:>8.1f} %" if chances else ""
        if name is None:
            yield f"{BACKGROUND:<18}{chance}  {policy.default_tier}"
            continue
        cohort = policy.cohorts[name]
        tier = f"  {cohort.needed_tier(policy):<12}"
        yield f"{name:<18}{chance}{tier}{similarities[name]:>10.3f}{cohort.floor:>8.3f}{_mark(cohort)}"
    yield ""


def match_lines(policy: Policy, decision: Decision) -> Iterator[str]:
    """The margin, whether the match counts and why, and the settings that do not apply."""
    cohort, match = decision.cohort, decision.match
    if cohort is None or match is None:
        return
    yield f"margin    {match.margin:.3f} (floor {cohort.margin:.3f})"
    yield f"match     {_why(policy, cohort, match)}"
    if decision.withheld:
        yield (
            f"withheld  {', '.join(decision.withheld)} of {cohort.name}, because the match is a guess: run "
            "`extproc calibrate`, or write a `floor` into the intent"
        )


def prompt_lines(decision: Decision) -> Iterator[str]:
    """The choice between two tiers by the prompt, if the match counts and its cohort has one."""
    cohort = decision.cohort
    if cohort is not None and cohort.by_prompt is not None and decision.unmatched is None:
        yield f"prompt    {_by_prompt(cohort, cohort.by_prompt, decision.match)}"


def _by_prompt(cohort: Cohort, choice: ByPrompt, match: Match | None) -> str:
    """The two tiers with the predicted gain, or why the tier of the cohort serves."""
    cheaper, costlier = choice.tiers
    own = f"so the tier of {cohort.name} serves: {cohort.tier}"
    if cohort.prompt_stale:
        return f"not used: gains.safetensors is missing, stale or of another fit, {own}"
    if not cohort.has_floor:
        return f"not used: {cohort.name} is not calibrated, {own}"
    if match is None or match.gain is None:
        return f"not used: the prompt is unlike those that it was fitted on, {own}"
    least = f"{costlier} serves from {100 * choice.least:+.1f}, otherwise {cheaper}"
    gain = f"{100 * match.gain:+.1f} points for the mean extra cost"
    return f"predicted gain of {costlier} over {cheaper}: {gain}; {least}"


def _why(policy: Policy, cohort: Cohort, match: Match) -> str:
    """One sentence: why the match counts, or why another tier is proposed."""
    weighed, name = weigh(policy, match), cohort.name
    by_prompt = rank_by_prompt(policy, cohort, match) if weighed.reason is Reason.MATCHED else None
    tier = policy.tiers[weighed.rank if by_prompt is None else by_prompt].name
    if cohort.abstains:
        return f"{name} abstains ({cohort.figure}), so {tier} serves"
    if match.similarity < cohort.floor:
        return f"the similarity is below the floor of {name}, so {tier} serves"
    if match.margin < cohort.margin:
        return f"the margin is below that of {name}, so {tier} serves"
    if is_decided_by_floors(cohort, match):
        return f"the similarity reaches the floor of {name}, so {tier} serves"
    own = policy.rank(cohort.needed_tier(policy))
    above = chance_above(policy, match, own)
    if weighed.reason is Reason.MATCHED:
        if own == len(policy.tiers) - 1:
            return f"{name} is likely enough for its tier {policy.tiers[own].name}"
        what = f"the chance that the request needs a tier above {tier} is {_percent(above)}"
        return f"{what}, and up to {_percent(DOUBT)} is accepted, so {tier} serves"
    if weighed.reason is Reason.OUT_OF_SCOPE and match.background > match.alike:
        return f"the background is likelier than {name}, so {tier} serves"
    if needed_rank(policy, match) > own:
        what = f"the chance that the request needs a tier above {policy.tiers[own].name} is {_percent(above)}"
        return f"{what}, more than the {_percent(DOUBT)} that is accepted, so {tier} serves"
    return f"no intent has a chance of {_percent(LEAST_CHANCE)}, and {tier} is enough for those that are likely"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _mark(cohort: Cohort) -> str:
    """What the floor rests on, if it is not evidence."""
    if cohort.calibrated:
        return ""
    if cohort.operator_floor:
        return "  uncalibrated: the floor in its file"
    if cohort.evidence is None:
        return "  uncalibrated"
    if cohort.evidence.abstains:
        return f"  {'abstains' if cohort.abstains else 'accepted by `abstain: off`'}: {cohort.figure}"
    return "  stale: utterances or centroids changed since it was calibrated"
