"""The requests that Envoy refuses without a decision, because `only` excludes the default tier."""

from collections.abc import Mapping, Sequence

from extproc.config.load import Config
from extproc.config.schema import Intent, PolicyFile
from extproc.routing.snapshot import AUTHORITY
from extproc.settings import App, Rule


def refused_headers(config: Config) -> list[Mapping[str, str]] | None:
    """Return the headers, as name -> pattern, of requests that the default tier may not get.

    Envoy has only the headers of a request that the router has not decided. None: it may get no such request. The
    pattern of `AUTHORITY` is that of a host.
    """
    policy = config.policy
    if policy.mode == "shadow":
        return []
    if any(_excludes_default(intent, policy) for intent in config.intents):
        return None
    rules = [rule for rule in policy.rules if _excludes_default(rule, policy)]
    if any(not rule.when.headers for rule in rules):
        return None
    of_apps = [match for name in refused_apps(config) for match in matches_of(policy.apps[name])]
    return [*(rule.when.headers for rule in rules if rule.when.headers), *of_apps]


def refused_apps(config: Config) -> list[str]:
    """The apps whose requests the policy's default tier may not get."""
    policy = config.policy
    return [
        name
        for name, app in policy.apps.items()
        if (app.tiers is not None and policy.default_tier not in app.tiers)
        or (name in config.broken and config.broken[name].confines)
        or (app.intents and any(_excludes_default(intent, policy) for intent in _intents_of(name, config)))
    ]


def _intents_of(name: str, config: Config) -> Sequence[Intent]:
    return config.apps[name].intents if name in config.apps else ()


def matches_of(app: App) -> list[dict[str, str]]:
    """The requests of an app: for each host, the patterns that all hold."""
    headers = dict(app.headers or {})
    return [{AUTHORITY: host, **headers} for host in app.hosts] or [headers]


def _excludes_default(item: Intent | Rule, policy: PolicyFile) -> bool:
    return item.only is not None and policy.default_tier not in item.only


def describe_refusals(config: Config) -> str | None:
    """Return a note for the operator about the requests that Envoy refuses while no router decides."""
    headers, policy = refused_headers(config), config.policy
    if headers == []:
        return None
    names = [intent.intent for intent in config.intents if _excludes_default(intent, policy)]
    names += [f"rule {rule.name}" for rule in policy.rules if _excludes_default(rule, policy)]
    names += [f"app {name}" for name in refused_apps(config)]
    whose = "every request" if headers is None else "requests with the headers of the rule, or of the app"
    return f"`only` excludes the default tier ({', '.join(names)}): while the router is down, Envoy refuses {whose}"
