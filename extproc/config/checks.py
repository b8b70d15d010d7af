"""Checks across files, and checks of values whose type is right."""

import math
import re
from collections.abc import Iterator, Sequence

from extproc.acceptance.rules import AcceptRule, External, compile_rules, rule_name
from extproc.acceptance.score import SCORE_FACTS, Scorer
from extproc.config.cache_checks import check_cache
from extproc.config.evidence_checks import check_evidence
from extproc.config.listener_checks import check_listener
from extproc.config.logprob_checks import check_logprobs
from extproc.config.name_checks import check_header_name, check_intent_name
from extproc.config.only_checks import check_only
from extproc.config.params_checks import check_params
from extproc.config.prompt_checks import check_by_prompt
from extproc.config.ranges import is_interval, within
from extproc.config.schema import POLICY_FILE, Intent, PolicyFile
from extproc.config.upstream_checks import check_floor, check_judge, check_states, check_store, check_upstream
from extproc.mismatch import counted, suggestion
from extproc.settings import CAPABILITIES, Escalate, Judge, Rule

# With fewer utterances little is known about how people phrase an intent, and no floor can be derived from them.
LEAST_UTTERANCES = 3
_LONGEST_CALL_MS = 60_000
_LEAST_CHARS = 32
# The capability for one tool that the provider runs.
_HOSTED_TOOL = re.compile(r"hosted:[a-z0-9_]{1,64}")

_Finding = tuple[str, str]  # the path of the value, and what is wrong with it


def cross_check(
    policy: PolicyFile, intents: Sequence[tuple[str, Intent]], every_intent: bool
) -> Iterator[tuple[str, str, str]]:
    """(file, path, what is wrong) for every mistake. `intents` are pairs of file and intent.

    `every_intent` is False when the file of an intent could not be read. Then an unknown intent
    may be in that file.
    """
    if every_intent and not intents:
        yield POLICY_FILE, "", "no intent beside it: write at least one <intent>.yaml"
    names = [intent.intent for _, intent in intents] if every_intent else []
    for path, what in _check_policy(policy, names):
        yield POLICY_FILE, path, what
    files: dict[str, str] = {}
    for file, intent in intents:
        if intent.intent in files:
            yield file, ".intent", f"intent `{intent.intent}` is also in {files[intent.intent]}: rename one of them"
        files.setdefault(intent.intent, file)
        for path, what in _check_intent(intent, policy):
            yield file, path, what


def _check_policy(policy: PolicyFile, intents: Sequence[str]) -> Iterator[_Finding]:
    yield from _check_tiers(policy)
    for name, judge in policy.judges.items():
        yield from _check_judge(f".judges.{name}", judge)
    yield from _check_limits(policy)
    yield from check_listener(policy)
    yield from check_store(policy.state)
    yield from _named_once(".rules", [rule.name for rule in policy.rules], "rule")
    for i, rule in enumerate(policy.rules):
        yield from _check_rule(f".rules[{i}]", rule, _tiers(policy), intents)
        yield from check_floor(f".rules[{i}].tier_floor", rule.tier_floor, policy.tiers)


def _tiers(policy: PolicyFile) -> list[str]:
    return [tier.name for tier in policy.tiers]


def _check_tiers(policy: PolicyFile) -> Iterator[_Finding]:
    tiers = _tiers(policy)
    if not tiers:
        yield ".tiers", "there is no tier: write at least one, the cheapest first"
    yield from _named_once(".tiers", tiers, "tier")
    yield from _named_once(".tiers", [tier.cluster_name for tier in policy.tiers], "cluster")
    yield from _exists(".default_tier", policy.default_tier, tiers, "tier")
    yield from check_states(policy.tiers, policy.default_tier)
    for i, tier in enumerate(policy.tiers):
        at = f".tiers[{i}]"
        yield from check_upstream(at, tier, policy)
        for name in {tier.name, tier.cluster_name}:
            yield from _fits_a_header(f"{at}.name", name)
        if not tier.model or not tier.model.isprintable():
            yield f"{at}.model", "`model` is empty or has characters that cannot be printed: name the model"
        for name in sorted(tier.capabilities or ()):
            if not _HOSTED_TOOL.fullmatch(name):
                yield from _exists(f"{at}.capabilities", name, CAPABILITIES, "capability")
        yield from check_params(at, tier)
        yield from within(f"{at}.context", tier.context, above=0)
        for key in tier.price.__struct_fields__:
            yield from within(f"{at}.price.{key}", getattr(tier.price, key), least=0)


def _check_judge(at: str, judge: Judge) -> Iterator[_Finding]:
    yield from check_judge(at, judge)
    yield from within(f"{at}.timeout_ms", judge.timeout_ms, above=0, most=_LONGEST_CALL_MS)


def _check_limits(policy: PolicyFile) -> Iterator[_Finding]:
    """The numbers outside the tiers, and the headers of principals."""
    if policy.human is not None:
        yield from within(".human.status", policy.human.status, least=200, most=599)
    for i, header in enumerate(policy.escalations.principal):
        yield from check_header_name(f".escalations.principal[{i}]", header)
    yield from within(".escalations.per_minute", policy.escalations.per_minute, least=0)
    yield from within(".escalations.burst", policy.escalations.burst, least=0)
    if policy.upgrades is not None:
        hint = "to forbid upgrades, let no intent and no rule name a tier above the default"
        yield from within(".upgrades.per_minute", policy.upgrades.per_minute, least=0)
        yield from within(".upgrades.burst", policy.upgrades.burst, least=1, hint=hint)
    yield from within(".sticky.switch_budget", policy.sticky.switch_budget, least=0)
    attempt_s, request_s = policy.timeouts.attempt_s, policy.timeouts.request_s
    yield from within(".timeouts.attempt_s", attempt_s, above=0)
    if not request_s >= attempt_s:
        what = f"`timeouts.request_s` is {request_s:g}: expected at least `attempt_s`, which is {attempt_s:g}"
        yield ".timeouts.request_s", what
    yield from within(".encoder.deadline_ms", policy.encoder.deadline_ms, above=0)
    yield from within(".encoder.max_chars", policy.encoder.max_chars, least=_LEAST_CHARS)


def _check_rule(at: str, rule: Rule, tiers: Sequence[str], intents: Sequence[str]) -> Iterator[_Finding]:
    yield from _fits_a_header(f"{at}.name", rule.name)
    if rule.tier is None and rule.tier_floor is None and rule.reasoning is None and rule.only is None:
        yield at, f"rule `{rule.name}` does nothing: give it a tier, a tier_floor, reasoning or only"
    yield from _exists(f"{at}.tier", rule.tier, tiers, "tier")
    yield from _exists(f"{at}.tier_floor", rule.tier_floor, tiers, "tier")
    yield from check_only(rule, at, tiers)
    for j, name in enumerate(rule.when.intents or ()):
        yield from _exists(f"{at}.when.intents[{j}]", name, intents, "intent")
    for header in rule.when.headers or {}:
        yield from check_header_name(f"{at}.when.headers", header)


def _check_intent(intent: Intent, policy: PolicyFile) -> Iterator[_Finding]:
    tiers = _tiers(policy)
    yield from _fits_a_header(".intent", intent.intent)
    yield from check_intent_name(intent.intent)
    yield from _exists(".tier", intent.tier, tiers, "tier")
    yield from _exists(".tier_floor", intent.tier_floor, tiers, "tier")
    yield from check_floor(".tier_floor", intent.tier_floor, policy.tiers)
    yield from (*check_only(intent, "", tiers), *check_by_prompt(intent, tiers))
    yield from _check_utterances(intent.utterances)
    yield from within(".max_output_tokens", intent.max_output_tokens, above=0, hint="leave it out for no limit")
    yield from within(".floor", intent.floor, least=-1, most=1)
    yield from _check_cascade(intent, policy)
    yield from check_cache(intent)
    yield from is_interval(".chosen.quality", intent.chosen.quality if intent.chosen is not None else (0.0, 1.0))
    if intent.evidence is not None:
        yield from check_evidence(intent.evidence, intent.floor)


def _check_utterances(utterances: Sequence[str]) -> Iterator[_Finding]:
    texts = [utterance.strip().lower() for utterance in utterances]
    yield from _named_once(".utterances", texts, "utterance")
    if len(texts) < LEAST_UTTERANCES:
        yield (
            ".utterances",
            f"only {counted(len(texts), 'utterance')}: write at least {LEAST_UTTERANCES}, better 12",
        )
    for i, text in enumerate(texts):
        if not text:
            yield f".utterances[{i}]", "this utterance is empty: write it, or remove it"


def _check_cascade(intent: Intent, policy: PolicyFile) -> Iterator[_Finding]:
    """How answers are judged, and where a rejected one goes."""
    tiers = _tiers(policy)
    try:
        rules = compile_rules(intent.accept, intent.scorer)
    except ValueError as error:
        place = re.match(r"accept(\[\d+\])?", str(error))
        yield f".{place[0]}" if place is not None else ".accept", str(error)
        return
    if intent.scorer is not None:
        yield from _check_scorer(intent.scorer, policy)
    yield from check_logprobs(rules, policy.tiers)
    for rule in rules:
        if isinstance(rule, External):
            yield from _check_external(rule, intent, policy)
    if intent.escalate is not None:
        yield from _check_escalate(intent.escalate, intent, policy, rules)
    elif intent.accept and tiers and intent.tier == tiers[-1] and intent.cache is None:
        what = "`accept` can reject nothing, because no tier is above this one: remove it, or add `escalate`"
        yield ".accept", what


def _check_external(rule: External, intent: Intent, policy: PolicyFile) -> Iterator[_Finding]:
    yield from _exists(".accept", rule.by, [*policy.judges] or ["(none in policy.yaml)"], "judge")
    judge = policy.judges.get(rule.by)
    rungs = intent.escalate.rungs if intent.escalate is not None else ()
    judged_tiers = {intent.tier, intent.tier_floor, *(rung.tier for rung in rungs[:-1])}
    judged_models = {tier.model for tier in policy.tiers if tier.name in judged_tiers}
    if judge is not None and judge.model in judged_models:
        what = f"judge `{rule.by}` is {judge.model}, the model whose answers it would judge: use another model"
        yield ".accept", what


def _check_escalate(
    escalate: Escalate, intent: Intent, policy: PolicyFile, rules: Sequence[AcceptRule]
) -> Iterator[_Finding]:
    tiers = _tiers(policy)
    if escalate.human and policy.human is None:
        yield ".escalate.to", "`human` needs the key `human` in policy.yaml: add it with a queue and a message"
    if escalate.human and not intent.accept:
        yield ".escalate.to", "`human` without `accept` rules: no answer would ever be rejected; add rules"
    for rung in escalate.rungs:
        yield from _exists(".escalate.to", rung.tier, tiers, "tier")
    if not escalate.rungs and not escalate.human:
        yield ".escalate.to", "`escalate.to` is empty: name at least one tier, or `human`"
    yield from within(".escalate.max", escalate.max, least=1)
    yield from within(".escalate.share", escalate.share, above=0, most=1)
    yield from _check_skip(escalate, intent, rules, tiers)


def _check_skip(
    escalate: Escalate, intent: Intent, rules: Sequence[AcceptRule], tiers: Sequence[str]
) -> Iterator[_Finding]:
    names = [rule_name(rule) for rule in rules] or ["(none in `accept`)"]
    for i, name in enumerate(escalate.skip):
        yield from _exists(f".escalate.skip[{i}]", name, names, "rule of `accept`")
    below = tiers[: tiers.index(intent.tier)] if intent.tier in tiers else []
    above = [rung for rung in escalate.rungs if rung.tier not in below][: escalate.max]
    if escalate.skip and len(above) + escalate.human < 2:
        what = "`skip` has no rung to skip: name two tiers above this one in `to`, and set `max` to 2 or more"
        yield ".escalate.skip", what


def _check_scorer(scorer: Scorer, policy: PolicyFile) -> Iterator[_Finding]:
    again = "run `extproc calibrate --target ... --write` again, or remove it and the rule `score`"
    yield from _exists(".scorer.tier", scorer.tier, _tiers(policy), "tier")
    model = next((tier.model for tier in policy.tiers if tier.name == scorer.tier), scorer.model)
    if model != scorer.model:
        what = f"fitted on answers of {scorer.model}, but tier `{scorer.tier}` is {model} now: {again}"
        yield ".scorer.model", what
    for name in scorer.weights:
        yield from _exists(f".scorer.weights.{name}", name, SCORE_FACTS, "fact")
    if not all(map(math.isfinite, (scorer.offset, *scorer.weights.values()))):
        yield ".scorer", f"`offset` and `weights` must be finite numbers: {again}"
    yield from within(".scorer.rows", scorer.rows, least=0, hint=again)
    yield from is_interval(".scorer.auroc", scorer.auroc)


def _fits_a_header(path: str, name: str) -> Iterator[_Finding]:
    if re.fullmatch(r"[A-Za-z0-9._-]+", name) is None:
        yield path, f"`{name}` is sent in headers: use only letters, digits, '.', '_' and '-'"


def _exists(path: str, name: str | None, names: Sequence[str], what: str) -> Iterator[_Finding]:
    """A name must be one of `names`. None is right, and any name is right if `names` is empty."""
    if name is not None and names and name not in names:
        yield path, f"no {what} is called `{name}`: {suggestion(name, names)}"


def _named_once(path: str, names: Sequence[str], what: str) -> Iterator[_Finding]:
    for i, name in enumerate(names):
        if name in names[:i]:
            yield f"{path}[{i}]", f"{what} `{name}` occurs twice: rename or remove one of them"
