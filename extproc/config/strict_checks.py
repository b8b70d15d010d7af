"""`extproc check --strict`: valid settings that are probably not meant. None of them stops the router."""

import itertools
import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import msgspec

from extproc.config.copies import app_folder
from extproc.config.load import Config, candidate_folder
from extproc.config.reading import yaml_files
from extproc.config.schema import POLICY_FILE, Intent
from extproc.config.strict_yaml import Problem, line_of
from extproc.encoder.language import is_english
from extproc.encoder.models import reads_only_english
from extproc.routing.gain_file import FITTED_FILES
from extproc.routing.sticky import seal_of
from extproc.settings import Conditions, Rule, Tier

# Files beside the YAML that are not meant for the router, in lower case.
_OTHER_FILES = re.compile(r"kustomization|readme.*|license.*|.*\.md|.*\.jsonl(\.gz)?")
# Models of these dialects send state that only they can read.
_SEALING = ("openai", "anthropic", "gemini")
# Names of public models, which clients have in their code.
_PUBLIC_MODEL = re.compile(r"(gpt-|chatgpt-|o\d|claude-|gemini-).*")

# A limit in seconds above this is probably in milliseconds.
_LONG_S = 3600.0

_Finding = tuple[str, str, str]  # file, path of the value, and what to look at


def strict_problems(config: Config, folder: Path) -> list[Problem]:
    """Return every finding, with its file and line."""
    findings = [
        *_price_order(config),
        *_shared_endpoints(config),
        *_retarget(config),
        *_rules(config),
        *(finding for intent in config.intents for finding in _ladder(config, intent)),
        *(finding for intent in config.intents for finding in _languages(config, intent)),
        *_limits(config),
    ]
    located = [Problem(file, line_of(config.lines, file, path), what) for file, path, what in findings]
    return sorted([*located, *_unread(config, folder), *_of_apps(config, folder)])


def _of_apps(config: Config, folder: Path) -> Iterator[Problem]:
    """The findings in the folders of apps."""
    for name, own in config.apps.items():
        app = config.policy.apps[name]
        if not app.intents:
            continue
        for intent in own.intents:
            for file, path, what in (*_ladder(own, intent), *_languages(own, intent)):
                yield Problem(f"{app.intents}/{file}", line_of(own.lines, file, path), what)
        for problem in _unread(own, app_folder(app, folder)):
            yield msgspec.structs.replace(problem, file=f"{app.intents}/{problem.file}")


def _limits(config: Config) -> Iterator[_Finding]:
    """Times and amounts that are valid, and probably in another unit or without effect."""
    timeouts, tiers = config.policy.timeouts, config.policy.tiers
    for key, seconds in (("attempt_s", timeouts.attempt_s), ("request_s", timeouts.request_s)):
        if seconds > _LONG_S:
            what = f"`{key}` is {seconds:g} seconds, more than an hour: is it meant in milliseconds?"
            yield POLICY_FILE, f".timeouts.{key}", f"{what} Write seconds"
    budgets = {".budget": config.policy.budget}
    budgets |= {f".apps.{name}.budget": app.budget for name, app in config.policy.apps.items()}
    for path, budget in budgets.items():
        if budget is not None and budget.over == tiers[-1].name:
            what = (
                f"`over` is `{budget.over}`, the last tier, so no request moves when the money is spent: name a "
                "cheaper tier, or refuse"
            )
            yield POLICY_FILE, f"{path}.over", what


def _price_order(config: Config) -> Iterator[_Finding]:
    tiers = config.policy.tiers
    for i, (below, above) in enumerate(itertools.pairwise(tiers), start=1):
        one, other = below.price, above.price
        if other.input <= one.input and other.output <= one.output and other != one:
            what = (
                f"tier `{above.name}` is cheaper than `{below.name}`, which comes before it: write the tiers with "
                "the cheapest first, because requests move up in this order"
            )
            yield POLICY_FILE, f".tiers[{i}].price", what


def _shared_endpoints(config: Config) -> Iterator[_Finding]:
    """Tiers that ask the same model at the same place."""
    seen: dict[tuple[object, ...], str] = {}
    for i, tier in enumerate(config.policy.tiers):
        place = (tier.url, tuple(endpoint.url for endpoint in tier.endpoints), tier.model)
        if place in seen:
            what = (
                f"tier `{tier.name}` asks the same model at the same address as tier `{seen[place]}`: an "
                "escalation or a failover between them changes nothing. Give one of them another model or address"
            )
            yield POLICY_FILE, f".tiers[{i}].url", what
        seen.setdefault(place, tier.name)


def _retarget(config: Config) -> Iterator[_Finding]:
    retarget = config.policy.retarget
    if not retarget:
        what = (
            "`retarget` is empty, so no request is routed: list the names that the router may replace, such as auto"
        )
        yield POLICY_FILE, ".retarget", what
        return
    for i, tier in enumerate(config.policy.tiers):
        replaced = any(fnmatchcase(tier.model, pattern) for pattern in retarget)
        if not replaced and _PUBLIC_MODEL.fullmatch(tier.model):
            what = (
                f"`retarget` does not list `{tier.model}`: clients that have this name in their code always get "
                f"tier `{tier.name}`. Add the name to `retarget` if the router may choose for them"
            )
            yield POLICY_FILE, f".tiers[{i}].model", what


def _rules(config: Config) -> Iterator[_Finding]:
    rules = config.policy.rules
    for i, rule in enumerate(rules):
        if rule.when == Conditions():
            what = f"rule `{rule.name}` has no condition, so it applies to every request: add a condition to `when`"
            yield POLICY_FILE, f".rules[{i}].when", what
        before = next((other for other in rules[:i] if _decides_first(other, rule)), None)
        if before is not None:
            what = (
                f"rule `{rule.name}` never sets the tier, because rule `{before.name}` before it applies to the "
                "same requests: write it before that one, or remove it"
            )
            yield POLICY_FILE, f".rules[{i}]", what


def _decides_first(before: Rule, rule: Rule) -> bool:
    """Whether the first of two rules takes the tier away from the second."""
    return before.tier is not None and rule.tier is not None and before.when in (Conditions(), rule.when)


def _ladder(config: Config, intent: Intent) -> Iterator[_Finding]:
    if intent.escalate is None:
        return
    file, tiers = config.files[intent.intent], {tier.name: tier for tier in config.policy.tiers}
    ranks = {name: rank for rank, name in enumerate(tiers)}
    for i, rung in enumerate(intent.escalate.rungs):
        if any((rung.tier, rung.reasoning) == (other.tier, other.reasoning) for other in intent.escalate.rungs[:i]):
            what = f"`escalate.to` names tier `{rung.tier}` twice: the second answer would be like the first one"
            yield file, ".escalate.to", f"{what}. Name each tier once"
        elif rung.tier == intent.tier and rung.reasoning in (None, intent.reasoning):
            what = (
                f"`escalate.to` names the intent's own tier `{rung.tier}` with the same `reasoning`: a rejected "
                "answer is asked for again in the same way. Name a higher tier"
            )
            yield file, ".escalate.to", what
        elif ranks[rung.tier] < ranks[intent.tier]:
            what = f"`escalate.to` names tier `{rung.tier}`, which is below the intent's tier `{intent.tier}`"
            yield file, ".escalate.to", f"{what}: it is never asked. Name a higher tier"
        elif _cannot_read(tiers[intent.tier], tiers[rung.tier]):
            what = (
                f"`escalate.to` goes from `{intent.tier}` to `{rung.tier}`, which cannot read its encrypted "
                "reasoning: a conversation with such state does not escalate. Set `sticky: {on_switch: "
                "strip}`, or a common `seal`"
            )
            if config.policy.sticky.on_switch != "strip":
                yield file, ".escalate.to", what


def _cannot_read(tier: Tier, other: Tier) -> bool:
    return seal_of(tier) != seal_of(other) and tier.reasoning in _SEALING and other.reasoning in _SEALING


def _languages(config: Config, intent: Intent) -> Iterator[_Finding]:
    if not reads_only_english(config.policy.encoder.model):
        return
    for i, text in enumerate(intent.utterances):
        if not is_english(text):
            what = (
                "this utterance is not English, and the encoder reads nothing else: remove it, or use an encoder "
                "for several languages, such as multilingual-e5-small"
            )
            yield config.files[intent.intent], f".utterances[{i}]", what


def _unread(config: Config, folder: Path) -> Iterator[Problem]:
    """Files and folders beside the YAML that look as if the router read them."""
    read = {path.name for path in yaml_files(folder)} | {*FITTED_FILES}
    others = [app_folder(app, folder) for app in config.policy.apps.values() if app.intents]
    if config.policy.candidate is not None:
        others.append(candidate_folder(config, folder))
    for path in sorted(folder.iterdir()):
        if any(other.is_relative_to(path.absolute()) for other in others):
            continue
        if path.name.startswith(".") and path.suffix in (".yaml", ".yml") and path.is_file():
            yield Problem(
                path.name, 1, "is not read: its name begins with a dot. Rename the file, or move it elsewhere"
            )
        if path.name in read or path.name.startswith(".") or _OTHER_FILES.fullmatch(path.name.lower()):
            continue
        if path.is_dir():
            if any(path.rglob("*.y*ml")):
                yield Problem(
                    path.name, 1, "is a folder, and folders are not read: move its files up, or elsewhere"
                )
        else:
            what = "is not read: the name of an intent's file ends in .yaml. Rename the file, or move it elsewhere"
            yield Problem(path.name, 1, what)
