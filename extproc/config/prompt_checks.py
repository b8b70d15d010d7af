"""Checks of the key `by_prompt`, which `extproc calibrate --target` writes."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from extproc.config.schema import Intent
from extproc.mismatch import suggestion
from extproc.settings import ByPrompt

_AGAIN = "run `extproc calibrate --target ... --write` again, or remove `by_prompt`"


def check_by_prompt(intent: Intent, tiers: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield the place and the text of each mistake in `by_prompt`. `tiers` are the names, the cheapest first."""
    if intent.by_prompt is not None:
        yield from _check(intent.by_prompt, intent, tiers)
    for i, rule in enumerate(intent.accept):
        if isinstance(rule, dict) and "gain" in rule:
            yield from _check_gain(f".accept[{i}]", rule["gain"], intent)


def _check_gain(at: str, options: Any, intent: Intent) -> Iterator[tuple[str, str]]:
    """The rule needs the predictions, and the cheaper tier has to answer first."""
    least = options.get("least") if isinstance(options, dict) else options
    if isinstance(least, float) and not math.isfinite(least):
        yield at, f"`least` of `gain` is {least}, which is not a finite number: {_AGAIN}"
    if intent.by_prompt is None:
        what = "`gain` needs the key `by_prompt`, which names its predictions"
        yield at, f"{what}: run `extproc calibrate --target ... --write`, or remove the rule"
    elif intent.tier != intent.by_prompt.tiers[0]:
        cheaper = intent.by_prompt.tiers[0]
        yield at, f"`gain` judges answers of `{cheaper}`, but the tier of the intent is `{intent.tier}`: {_AGAIN}"


def _check(choice: ByPrompt, intent: Intent, tiers: Sequence[str]) -> Iterator[tuple[str, str]]:
    for i, name in enumerate(choice.tiers):
        if tiers and name not in tiers:
            yield f".by_prompt.tiers[{i}]", f"no tier is called `{name}`: {suggestion(name, list(tiers))}"
    if all(name in tiers for name in choice.tiers):
        cheaper, costlier = (tiers.index(name) for name in choice.tiers)
        if cheaper >= costlier:
            named = ", ".join(choice.tiers)
            yield ".by_prompt.tiers", f"`tiers` is [{named}]: name two different tiers, the cheaper one first"
        elif intent.tier not in choice.tiers:
            what = f"the intent has the tier `{intent.tier}`, which is neither of the two: {_AGAIN}"
            yield ".by_prompt.tiers", what
    if not math.isfinite(choice.least):
        yield ".by_prompt.least", f"`least` is {choice.least}, which is not a finite number: {_AGAIN}"
    low, high = choice.gain
    if not -1 <= low <= high <= 1:
        yield (
            ".by_prompt.gain",
            f"`gain` is [{low:g}, {high:g}]: expected two numbers from -1 to 1, the lower one first: {_AGAIN}",
        )
    if choice.rows < 0:
        yield ".by_prompt.rows", f"`rows` is {choice.rows}, which is less than 0: {_AGAIN}"
