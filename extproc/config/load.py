"""YAML, and centroids beside it -> Config. Mistakes are told with file, line and a remedy, and all at once."""

import difflib
import hashlib
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec

from extproc.acceptance.rules import External, compile_rules, rule_name
from extproc.acceptance.score import SCORE_FACTS, Scorer
from extproc.config.strict_yaml import Lines, Problem, decode_yaml, line_of
from extproc.routing.centroid_file import CENTROIDS_FILE, CentroidFile, decode_centroids
from extproc.settings import (
    Chosen,
    EncoderConfig,
    Escalate,
    Escalations,
    Evidence,
    Human,
    Judge,
    Reasoning,
    Rule,
    StreamHold,
    Tier,
    Timeouts,
    Upgrades,
)

POLICY_FILE = "policy.yaml"
# Fewer utterances than this say little about how an intent is phrased, and leave nothing to hold a floor by.
LEAST_UTTERANCES = 3
# What the values of a ConfigMap may be together (Kubernetes' own limit).
_CONFIGMAP_BYTES = 1 << 20


class PolicyFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """intents/policy.yaml."""

    version: Literal[1]
    default_tier: str
    tiers: tuple[Tier, ...]
    encoder: EncoderConfig = EncoderConfig()
    retarget: tuple[str, ...] = ("auto",)
    rules: tuple[Rule, ...] = ()
    mode: Literal["enforce", "shadow"] = "enforce"
    reasoning_choice: Literal["client", "router"] = "client"
    escalations: Escalations = Escalations()
    upgrades: Upgrades | None = None
    timeouts: Timeouts = Timeouts()
    judges: dict[str, Judge] = {}
    human: Human | None = None


class Intent(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """intents/<intent>.yaml."""

    intent: str
    tier: str
    utterances: tuple[str, ...]
    description: str = ""
    reasoning: Reasoning | None = None
    max_output_tokens: int | None = None
    tier_floor: str | None = None
    risk: Literal["low", "high"] = "low"
    floor: float | None = None  # None: taken from the intent's own utterances
    margin: float = 0.0
    evidence: Evidence | None = None  # what floor and margin were fitted on; `extproc calibrate` writes it
    accept: list[Any] = []  # rules: extproc/acceptance/rules.py lists them
    scorer: Scorer | None = None  # what the rule `score` goes by; `extproc calibrate --target` writes it
    escalate: Escalate | None = None
    chosen: Chosen | None = None  # what tier and settings were chosen on; it writes this, too
    stream: StreamHold = "early"


class ConfigError(ValueError):
    """The operator's configuration cannot be used: `problems` lists every mistake.

    `folder` is where the files lie, or None where whoever found the mistakes does not know it.
    """

    def __init__(self, problems: list[Problem], folder: Path | None = None) -> None:
        self.problems = sorted(problems)
        self.folder = folder
        super().__init__("\n".join(map(str, self.problems)))


class Config(msgspec.Struct, frozen=True):
    """A valid configuration; `lines` finds a value's place again: (file, path) -> line."""

    policy: PolicyFile
    intents: tuple[Intent, ...]
    revision: str
    files: dict[str, str]  # intent -> file name
    lines: Lines
    fitted: CentroidFile | None = None  # centroids.safetensors, if it is there


def load_config(folder: Path, copy_of: Path | None = None) -> Config:
    """Read and validate policy.yaml, every other *.yaml and the centroids in `folder`. Raises ConfigError.

    In a copy, the path of a model begins where it did in the folder that was copied.
    """
    problems: list[Problem] = []
    lines: Lines = {}
    policy: PolicyFile | None = None
    intents: list[tuple[str, Intent]] = []
    digest = hashlib.sha256()
    names = yaml_files(folder)
    if folder / POLICY_FILE not in names:
        raise ConfigError([Problem(POLICY_FILE, 1, f"not found in {folder}: create it there")], copy_of or folder)
    for path in names:
        try:
            raw = path.read_bytes()
        except OSError as error:
            problems.append(Problem(path.name, 1, f"cannot be read: {error.strerror}"))
            continue
        digest.update(path.name.encode() + b"\0" + raw + b"\0")
        if path.name == POLICY_FILE:
            policy = decode_yaml(path.name, raw, PolicyFile, problems, lines)
        elif (intent := decode_yaml(path.name, raw, Intent, problems, lines)) is not None:
            intents.append((path.name, intent))
    fitted, raw = _read_centroids(folder, problems)
    digest.update(raw)
    if policy is not None:
        encoder = msgspec.structs.replace(policy.encoder, model=located(policy.encoder.model, copy_of or folder))
        policy = msgspec.structs.replace(policy, encoder=encoder)
        whole = len(intents) == len(names) - 1  # else a name may be missing because its file is broken
        problems += _cross_check(policy, intents, lines, whole)
    if problems or policy is None:
        raise ConfigError(problems, copy_of or folder)
    return Config(
        policy=policy,
        intents=tuple(intent for _, intent in intents),
        revision=digest.hexdigest()[:12],
        files={intent.intent: name for name, intent in intents},
        lines=lines,
        fitted=fitted,
    )


def _read_centroids(folder: Path, problems: list[Problem]) -> tuple[CentroidFile | None, bytes]:
    """The fitted centroids and their bytes; (None, b"") where there are none, or no sound ones."""
    try:
        raw = (folder / CENTROIDS_FILE).read_bytes()
        return decode_centroids(raw), raw
    except FileNotFoundError:
        pass
    except OSError as error:
        problems.append(Problem(CENTROIDS_FILE, 1, f"cannot be read: {error.strerror}"))
    except ValueError as error:
        problems.append(Problem(CENTROIDS_FILE, 1, str(error)))
    return None, b""


def yaml_files(folder: Path) -> list[Path]:
    """The policy and the intents, by name."""
    # Kubernetes mounts a ConfigMap with hidden folders beside the files.
    return sorted(path for path in folder.glob("*.y*ml") if not path.name.startswith("."))


def in_configmap(folder: Path, raw: bytes) -> str:
    """How much of what a ConfigMap holds the YAML and these bytes of the centroids' file are, in words."""
    size = len(raw) + sum(path.stat().st_size for path in yaml_files(folder) if path.is_file())
    told = f"{size / 1024:,.0f} KiB with the YAML"
    return told if size <= _CONFIGMAP_BYTES else f"{told}: a ConfigMap holds 1,024 KiB, MOUNT A VOLUME INSTEAD"


def located(model: str, folder: Path) -> str:
    """A model's path begins at the folder of the YAML, wherever the command runs; a name stays a name."""
    path = folder / Path(model).expanduser()
    if not path.exists() and not model.startswith((".", "/", "~")):
        return model
    # Links are not followed: a ConfigMap's mount is made of them.
    return os.path.abspath(path)


def _cross_check(
    policy: PolicyFile, intents: list[tuple[str, Intent]], lines: Lines, whole: bool
) -> Iterator[Problem]:
    """What only shows when the files are read together."""
    tiers = [tier.name for tier in policy.tiers]
    known = [intent.intent for _, intent in intents] if whole else []
    if whole and not intents:
        yield Problem(POLICY_FILE, 1, "no intent beside it: write at least one <intent>.yaml")
    for file, path, what in (
        *_check_tiers(policy, tiers),
        *_check_rules(policy.rules, tiers, known),
        *_check_intents(intents, policy, tiers),
    ):
        yield Problem(file, line_of(lines, file, path), what)


_Finding = tuple[str, str, str]  # file, path, what


def _check_tiers(policy: PolicyFile, tiers: list[str]) -> Iterator[_Finding]:
    if not tiers:
        yield POLICY_FILE, ".tiers", "no tier: write at least one, cheapest first"
    yield from _unique(POLICY_FILE, ".tiers", tiers, "tier")
    yield from _unique(POLICY_FILE, ".tiers", [t.cluster_name for t in policy.tiers], "cluster")
    yield from _named(POLICY_FILE, ".default_tier", policy.default_tier, tiers, "tier")
    for i, tier in enumerate(policy.tiers):
        at = f".tiers[{i}]"
        yield from _endpoint(f"{at}.endpoint", tier.endpoint)
        for name in {tier.name, tier.cluster_name}:
            yield from _plain(POLICY_FILE, f"{at}.name", name)
        if not tier.model or not tier.model.isprintable():
            yield POLICY_FILE, f"{at}.model", "`model` is empty or unprintable: name the model"
        prices = (tier.price.input, tier.price.output, tier.price.cached_input or 0.0)
        if tier.context <= 0 or min(prices) < 0:
            yield POLICY_FILE, at, "context must be above 0 and prices not below it"
    for name, judge in policy.judges.items():
        yield from _endpoint(f".judges.{name}.endpoint", judge.endpoint)
        if not 0 < judge.timeout_ms <= 60_000:
            yield POLICY_FILE, f".judges.{name}.timeout_ms", "`timeout_ms` must be above 0 and at most 60000"
    if policy.human is not None and not 200 <= policy.human.status <= 599:
        yield POLICY_FILE, ".human.status", "`status` is an HTTP status: from 200 to 599"
    for i, header in enumerate(policy.escalations.principal):
        yield from _header(f".escalations.principal[{i}]", header)
    if policy.timeouts.attempt_s <= 0 or policy.timeouts.request_s < policy.timeouts.attempt_s:
        yield POLICY_FILE, ".timeouts", "attempt_s must be above 0 and request_s not below it"
    if policy.escalations.per_minute < 0 or policy.escalations.burst < 0:
        yield POLICY_FILE, ".escalations", "per_minute and burst must not be below 0"
    if policy.upgrades is not None and (policy.upgrades.per_minute < 0 or policy.upgrades.burst < 1):
        what = "per_minute must not be below 0, nor burst below 1: without upgrades, name no tier above the default"
        yield POLICY_FILE, ".upgrades", what
    if policy.encoder.deadline_ms <= 0 or policy.encoder.max_chars < 32:
        yield POLICY_FILE, ".encoder", "deadline_ms must be above 0, max_chars at least 32"


def _check_rules(rules: tuple[Rule, ...], tiers: list[str], known: list[str]) -> Iterator[_Finding]:
    yield from _unique(POLICY_FILE, ".rules", [r.name for r in rules], "rule")
    for i, rule in enumerate(rules):
        at = f".rules[{i}]"
        yield from _plain(POLICY_FILE, f"{at}.name", rule.name)
        if rule.tier is None and rule.tier_floor is None and rule.reasoning is None:
            what = f"rule `{rule.name}` does nothing: give a tier, a tier_floor or reasoning"
            yield POLICY_FILE, at, what
        yield from _named(POLICY_FILE, f"{at}.tier", rule.tier, tiers, "tier")
        yield from _named(POLICY_FILE, f"{at}.tier_floor", rule.tier_floor, tiers, "tier")
        for j, name in enumerate(rule.when.intents or ()):
            yield from _named(POLICY_FILE, f"{at}.when.intents[{j}]", name, known, "intent")
        for header in rule.when.headers or {}:
            yield from _header(f"{at}.when.headers", header)


def _check_intents(intents: list[tuple[str, Intent]], policy: PolicyFile, tiers: list[str]) -> Iterator[_Finding]:
    seen: dict[str, str] = {}
    for file, intent in intents:
        name = intent.intent
        if name in seen:
            yield file, ".intent", f"intent `{name}` is also in {seen[name]}: rename one of them"
        seen.setdefault(name, file)
        yield from _plain(file, ".intent", name)
        yield from _named(file, ".tier", intent.tier, tiers, "tier")
        yield from _named(file, ".tier_floor", intent.tier_floor, tiers, "tier")
        spoken = [utterance.strip().lower() for utterance in intent.utterances]
        yield from _unique(file, ".utterances", spoken, "utterance")
        if len(spoken) < LEAST_UTTERANCES:
            what = f"only {len(spoken)} utterances: write at least {LEAST_UTTERANCES}, better 12"
            yield file, ".utterances", what
        for i, utterance in enumerate(spoken):
            if not utterance:
                yield file, f".utterances[{i}]", "an empty utterance: write it or drop it"
        if intent.max_output_tokens is not None and intent.max_output_tokens <= 0:
            yield file, ".max_output_tokens", "must be above 0: raise it or leave it out"
        yield from _check_cascade(file, intent, policy, tiers)
        if intent.floor is not None and not -1 <= intent.floor <= 1:
            yield file, ".floor", "`floor` is a cosine similarity: from -1 to 1"
        if intent.chosen is not None and not 0 <= intent.chosen.quality[0] <= intent.chosen.quality[1] <= 1:
            yield file, ".chosen.quality", "`quality` is an interval within 0 to 1, lower end first"
        if intent.evidence is not None:
            yield from _check_evidence(file, intent.evidence, intent.floor)


def _check_evidence(file: str, evidence: Evidence, floor: float | None) -> Iterator[_Finding]:
    if floor is None:
        yield file, ".evidence", "`evidence` without the `floor` it speaks of: run `extproc calibrate` again"
    if evidence.probability.similarity < 0 or evidence.probability.margin < 0:
        yield file, ".evidence.probability", "slopes are not below 0: run `extproc calibrate` again"
    shares = (evidence.risk, evidence.accepted, *evidence.wrong)
    if not all(0 <= share <= 1 for share in shares) or evidence.wrong[0] > evidence.wrong[1]:
        yield file, ".evidence", "`risk`, `wrong` and `accepted` are shares from 0 to 1, `wrong` lower end first"


def _check_cascade(file: str, intent: Intent, policy: PolicyFile, tiers: list[str]) -> Iterator[_Finding]:
    try:
        rules = compile_rules(intent.accept, intent.scorer)
    except ValueError as error:
        where = re.match(r"accept(\[\d+\])?", str(error))
        yield file, f".{where[0]}" if where is not None else ".accept", str(error)
        return
    if intent.scorer is not None:
        yield from _check_scorer(file, intent.scorer, policy, tiers)
    for rule in rules:
        if not isinstance(rule, External):
            continue
        yield from _named(file, ".accept", rule.by, [*policy.judges] or ["(none in policy.yaml)"], "judge")
        judge = policy.judges.get(rule.by)
        rungs = intent.escalate.rungs if intent.escalate is not None else ()
        names = {intent.tier, intent.tier_floor, *(rung.tier for rung in rungs[:-1])}
        graded = {t.model for t in policy.tiers if t.name in names}
        if judge is not None and judge.model in graded:
            what = f"judge `{rule.by}` is the model it would judge, {judge.model}: name another model"
            yield file, ".accept", what
    if intent.escalate is not None and intent.escalate.human:
        if policy.human is None:
            what = "`escalate.to: human` needs `human:` in policy.yaml: give it a queue and a message"
            yield file, ".escalate.to", what
        if not intent.accept:
            yield file, ".escalate.to", "`human` without `accept`: nothing would ever be put aside; add rules"
    if intent.escalate is not None:
        for rung in intent.escalate.rungs:
            yield from _named(file, ".escalate.to", rung.tier, tiers, "tier")
        up = intent.escalate
        if not (up.rungs or up.human) or up.max < 1 or not 0 < up.share <= 1:
            yield file, ".escalate", "give at least one rung in `to`, `max` from 1 up, `share` above 0, up to 1"
        yield from _check_skip(file, intent, up, [rule_name(rule) for rule in rules], tiers)
    elif intent.accept and tiers and intent.tier == tiers[-1]:
        what = "`accept` cannot reject anything: no tier is above this one; drop it, or name rungs in `escalate`"
        yield file, ".accept", what


def _check_scorer(file: str, scorer: Scorer, policy: PolicyFile, tiers: list[str]) -> Iterator[_Finding]:
    again = "run `extproc calibrate --target ... --write` again, or drop it and the rule `score`"
    yield from _named(file, ".scorer.tier", scorer.tier, tiers, "tier")
    now = next((tier.model for tier in policy.tiers if tier.name == scorer.tier), scorer.model)
    if now != scorer.model:
        what = f"fitted on answers of {scorer.model}, but tier `{scorer.tier}` is {now} now: {again}"
        yield file, ".scorer.model", what
    for name in scorer.weights:
        yield from _named(file, f".scorer.weights.{name}", name, list(SCORE_FACTS), "fact")
    if not all(map(math.isfinite, (scorer.offset, *scorer.weights.values()))):
        yield file, ".scorer", f"its numbers must be finite: {again}"
    if scorer.rows < 0 or not 0 <= scorer.auroc[0] <= scorer.auroc[1] <= 1:
        yield file, ".scorer", "`auroc` is an interval within 0 to 1, lower end first, `rows` a count"


def _check_skip(file: str, intent: Intent, up: Escalate, rules: list[str], tiers: list[str]) -> Iterator[_Finding]:
    for i, name in enumerate(up.skip):
        yield from _named(file, f".escalate.skip[{i}]", name, rules or ["(none in `accept`)"], "rule of `accept`")
    below = tiers[: tiers.index(intent.tier)] if intent.tier in tiers else []
    climbed = [rung for rung in up.rungs if rung.tier not in below][: up.max]
    if up.skip and len(climbed) + up.human < 2:
        what = "`skip` has no rung to jump: name two above this tier in `to`, and give `max` 2 or more"
        yield file, ".escalate.skip", what


def _endpoint(path: str, endpoint: str) -> Iterator[_Finding]:
    host, _, port = endpoint.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        yield POLICY_FILE, path, f"endpoint `{endpoint}` is not host:port, as in vllm-small:8000"


def _header(path: str, header: str) -> Iterator[_Finding]:
    if re.fullmatch(r"[a-z0-9-]+", header) is None:
        what = f"header `{header}`: write its name in lower case, with letters, digits and '-'"
        yield POLICY_FILE, path, what


def _named(file: str, path: str, name: str | None, names: list[str], what: str) -> Iterator[_Finding]:
    if name is not None and names and name not in names:
        close = difflib.get_close_matches(name, names, 1)
        remedy = f"did you mean `{close[0]}`?" if close else f"there are: {', '.join(names)}"
        yield file, path, f"no {what} is called `{name}`: {remedy}"


def _unique(file: str, path: str, values: list[str], what: str) -> Iterator[_Finding]:
    for i, value in enumerate(values):
        if value in values[:i]:
            yield file, f"{path}[{i}]", f"{what} `{value}` stands twice: rename or drop it"


def _plain(file: str, path: str, name: str) -> Iterator[_Finding]:
    if re.fullmatch(r"[A-Za-z0-9._-]+", name) is None:
        yield file, path, f"`{name}` becomes a header: use letters, digits, '.', '_', '-'"
