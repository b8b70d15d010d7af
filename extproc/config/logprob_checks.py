"""Checks of acceptance rules that need log-probabilities: is their tier known, and does its model give them?"""

from collections.abc import Iterable, Iterator, Sequence

from extproc.acceptance.rules import AcceptRule, Logprob
from extproc.acceptance.verdict import wants_logprobs
from extproc.mismatch import suggestion
from extproc.routing.policy import Cohort
from extproc.routing.tier_form import form_of
from extproc.settings import Tier


def check_logprobs(rules: Sequence[AcceptRule], tiers: Sequence[Tier]) -> Iterator[tuple[str, str]]:
    """Yield the place and the text of each mistake in the rules `logprob`."""
    again = "run `extproc calibrate --target ... --write` again, or remove the rule"
    models = {tier.name: tier.model for tier in tiers}
    for i, rule in enumerate(rules):
        if not isinstance(rule, Logprob):
            continue
        at = f".accept[{i}]"
        if rule.tier is None and rule.model is not None:
            yield at, f"`logprob` names the model {rule.model}, and no tier: add `tier`, or remove `model`"
        elif rule.tier is not None and models and rule.tier not in models:
            yield at, f"no tier is called `{rule.tier}`: {suggestion(rule.tier, list(models))}"
        elif rule.tier is not None and rule.model is not None and models.get(rule.tier, rule.model) != rule.model:
            what = f"fitted on answers of {rule.model}, but tier `{rule.tier}` is {models[rule.tier]} now: {again}"
            yield at, what


def without_logprobs(cohorts: Iterable[Cohort], tiers: Sequence[Tier]) -> list[str]:
    """Return "cohort (tier)" for each cohort whose rules need log-probabilities that its tier never gives."""
    by_name = {tier.name: tier for tier in tiers}
    return [
        f"{cohort.name} ({cohort.tier})"
        for cohort in cohorts
        if cohort.tier in by_name
        and wants_logprobs(cohort.accept, cohort.tier)
        and not _gives_logprobs(by_name[cohort.tier])
    ]


def _gives_logprobs(tier: Tier) -> bool:
    refused = form_of(tier.reasoning, tier.model).logprobs == "refused"
    return not refused and "logprobs" not in tier.params.drop
