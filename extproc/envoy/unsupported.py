"""Settings that an Envoy, or the gateway that it belongs to, cannot carry out. Each is refused, with its line."""

from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from typing import Literal

from extproc.acceptance.rules import compile_rules
from extproc.acceptance.verdict import wants_logprobs
from extproc.config.load import Config, ConfigError
from extproc.config.schema import POLICY_FILE, Intent
from extproc.config.strict_yaml import Problem, line_of
from extproc.envoy.ladders import refused_failovers

# How Envoy sends a request to the next tier. `older` describes those that are not for 1.40.
Cascade = Literal["priority-group", "composite", "priorities", "none"]
_NEEDS_VERIFIER = "needs a verifier, which Envoy has from 1.37 on: remove it, or render for a newer Envoy"
_NO_TIMEOUTS = (
    "`timeouts` of a tier needs listeners inside Envoy, which `--for istio` cannot render: remove it, or run a "
    "separate Envoy"
)


def check_cascade(config: Config, cascade: Cascade) -> None:
    """Raise ConfigError if this cascade cannot serve the intents and the tiers."""
    problems = [
        _problem(config, config.every_file[intent.intent], at, what)
        for intent in config.every_intent
        for at, what in _of_intent(intent, cascade)
    ]
    problems += [_problem(config, POLICY_FILE, at, what) for at, what in _of_tiers(config, cascade)]
    if problems:
        raise ConfigError(problems)


def _of_tiers(config: Config, cascade: Cascade) -> Iterator[tuple[str, str]]:
    yield from refused_failovers(config, cascade)
    for i, tier in enumerate(config.policy.tiers):
        if cascade == "priorities" and tier.timeouts is not None:
            yield f".tiers[{i}].timeouts", _NO_TIMEOUTS


def _of_intent(intent: Intent, cascade: Cascade) -> Iterator[tuple[str, str]]:
    up = intent.escalate
    if cascade in ("composite", "priorities") and up is not None and up.skip:
        what = "`skip` needs Envoy 1.40, because older ones cannot leave out a rung: remove it, or render for 1.40"
        yield ".escalate.skip", what
    if cascade == "none" and up is not None and up.human:
        yield ".escalate.to", f"`to: human` {_NEEDS_VERIFIER}"
    # The verifier removes the log probabilities from the answer if only a rule asked for them.
    if cascade == "none" and wants_logprobs(compile_rules(intent.accept, intent.scorer)):
        yield ".accept", f"`logprob`, or a `score` with it, {_NEEDS_VERIFIER}"


def check_files(config: Config, *, keys: bool) -> None:
    """Raise ConfigError if a tier needs a file, which the pods of a shared gateway do not have.

    `keys`: the gateway cannot send a tier's own key in another way, either.
    """
    problems = []
    for i, tier in enumerate(config.policy.tiers):
        if tier.ca:
            what = f"tier `{tier.name}` has a private `ca`, a file that the pods of the gateway do not have"
            remedy = "use a public certificate for the tier, or a separate Envoy"
            problems.append((f".tiers[{i}].ca", f"{what}: {remedy}"))
        if tier.timeouts is not None:
            problems.append((f".tiers[{i}].timeouts", _NO_TIMEOUTS))
        if keys and tier.key is not None:
            what = f"tier `{tier.name}` has a `key`, a file that the pods of Istio's gateway do not have: remove it"
            problems.append((f".tiers[{i}].key", f"{what}, so that clients send their own, or use another Envoy"))
    if problems:
        raise ConfigError([_problem(config, POLICY_FILE, at, what) for at, what in problems])


def check_hosts(config: Config, host: str) -> None:
    """Raise ConfigError for an app with another host than the one whose requests reach our listener."""
    problems = [
        _problem(
            config,
            POLICY_FILE,
            f".apps.{name}.hosts[{i}]",
            f"app `{name}` has the host `{pattern}`, and only requests of --host {host} reach the router: remove "
            "it, distinguish apps by `headers`, or use a separate Envoy",
        )
        for name, app in config.policy.apps.items()
        for i, pattern in enumerate(app.hosts)
        if not fnmatchcase(host.lower(), pattern)
    ]
    if problems:
        raise ConfigError(problems)


def check_names(config: Config, names: Iterable[tuple[str, str]]) -> None:
    """Raise ConfigError if two tiers get the same name in Kubernetes. `names` are pairs of a tier and that name."""
    first: dict[str, str] = {}
    for tier, name in names:
        other = first.setdefault(name, tier)
        if other != tier:
            at = next(i for i, each in enumerate(config.policy.tiers) if each.name == tier)
            what = (
                f"the Secret of the key of tier `{tier}` would be {name}, as that of `{other}`: rename one of them"
            )
            raise ConfigError([_problem(config, POLICY_FILE, f".tiers[{at}].name", what)])


def _problem(config: Config, file: str, at: str, what: str) -> Problem:
    return Problem(file, line_of(config.lines, file, at), what)
