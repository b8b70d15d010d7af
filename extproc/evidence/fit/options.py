"""An option: one possible configuration of a cohort.

It is a tier with a reasoning setting. An option may also have a cap on output tokens, and its answers may be judged
by the cohort's written rules, and by their mean log-probability or an acceptance score. A rejected answer escalates
to a second setting. Log-probabilities are tried first, because they need the fewest rows.
"""

from collections.abc import Iterator, Sequence
from typing import Literal

import msgspec
import numpy as np

from extproc.acceptance.rules import AcceptRule
from extproc.evidence.data.setting import tier_of
from extproc.evidence.fit.option_table import OptionTable, lowest_rank, written_rules
from extproc.routing.policy import Cohort

# Quantiles of a cohort's log-probabilities or scores to try as the threshold. Finer steps choose among noise.
_LEVELS = tuple(k / 10 for k in range(1, 10))


class Option(msgspec.Struct, frozen=True):
    """One possible configuration of a cohort. Settings have the names of outcomes (`setting_name`)."""

    first: str  # the setting that answers first
    up: str | None = None  # the setting that rejected answers escalate to; None: no answer is judged
    level: float | None = None  # the share of answers that the signal rejects; None: no signal
    capped: bool = False  # output tokens are capped
    # What is compared with the level. "prompt": before any answer, the level's share of prompts goes to `up`.
    # "gain": the gain that is predicted with the answer. The prompt may also choose `up` before any answer.
    signal: Literal["score", "logprob", "prompt", "gain"] = "score"


def options_of(table: OptionTable, cohort: Cohort) -> Iterator[Option]:
    """Yield every option of the cohort. An option with a cap follows the same option without it."""
    policy = table.run.snapshot.policy
    for option in _uncapped(table, written_rules(cohort)):
        used = {table.tier(setting).name for setting in (option.first, option.up) if setting is not None}
        if policy.only is not None and not used <= {*policy.only}:  # an app may not use every tier
            continue
        if policy.rank(table.tier(option.first).name) < lowest_rank(policy, cohort):
            continue
        yield option
        if not np.isnan(table.tokens).all():
            yield msgspec.structs.replace(option, capped=True)


def _uncapped(table: OptionTable, rules: Sequence[AcceptRule]) -> Iterator[Option]:
    for first in table.settings:
        above = list(_settings_above(table, first))
        if not rules or not above:
            yield Option(first)
        for up in above:
            if rules:
                yield Option(first, up)
            if first in table.means:
                yield from (Option(first, up, level, signal="logprob") for level in _LEVELS)
            if first in table.facts:
                yield from (Option(first, up, level) for level in _LEVELS)
            if not rules and first == tier_of(first) and up == tier_of(up):
                yield from (Option(first, up, level, signal="prompt") for level in _LEVELS)
                if first in table.facts:
                    yield from (Option(first, up, level, signal="gain") for level in _LEVELS)


def _settings_above(table: OptionTable, first: str) -> Iterator[str]:
    """Yield the settings of more expensive tiers, and the same tier with reasoning."""
    rank, tier = table.run.snapshot.policy.rank, table.tier(first).name
    for up in table.settings:
        higher = rank(table.tier(up).name) > rank(tier)
        if higher or up == f"{tier}+reasoning" != first:
            yield up
