"""Checks of budgets and of applications."""

import contextlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase

from extproc.config.name_checks import check_header_name
from extproc.config.schema import POLICY_FILE, Intent, PolicyFile
from extproc.mismatch import shown, suggestion
from extproc.settings import REFUSE, TEAM, App, UsdBudget

_Finding = tuple[str, str, str]  # file, path of the value, and what is wrong with it
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_APP_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")  # reports show `-` for requests of no app
_HOST = re.compile(r"(\*\.)?[a-z0-9_-]+(\.[a-z0-9_-]+)*")
_LABEL = re.compile(r"[a-z][a-z0-9_]{0,63}")
# Above it, sums are no longer exact in the store.
_MOST_USD = 1e6


def check_apps(policy: PolicyFile) -> Iterator[_Finding]:
    """Yield every mistake in `budget` and in `apps` of the policy."""
    tiers = [tier.name for tier in policy.tiers]
    for path, what in _check_budget(".budget", policy.budget, tiers):
        yield POLICY_FILE, path, what
    if policy.budget is not None and policy.budget.per == TEAM:
        yield POLICY_FILE, ".budget.per", "`per: team` is for the budget of an app: write all or principal"
    above: list[tuple[str, App]] = []
    teams: dict[str, tuple[str, UsdBudget]] = {}
    for name, app in policy.apps.items():
        for path, what in _check_app(f".apps.{name}", name, app, policy, tiers):
            yield POLICY_FILE, path, what
        if app.hosts or app.headers:
            for path, what in _check_above(f".apps.{name}", name, app, above):
                yield POLICY_FILE, path, what
            above.append((name, app))
        if app.budget is not None and app.budget.per == TEAM and app.team is not None:
            other, budget = teams.setdefault(app.team, (name, app.budget))
            if budget != app.budget:
                what = f"team `{app.team}` has another budget in app `{other}`: write the same one"
                yield POLICY_FILE, f".apps.{name}.budget", what


def _check_above(at: str, name: str, app: App, above: Sequence[tuple[str, App]]) -> Iterator[tuple[str, str]]:
    """The requests of an app that an app above gets."""
    wider = [(first, other) for first, other in above if _covers(other.headers or {}, app.headers or {})]
    anywhere = next((first for first, other in wider if not other.hosts), None)
    if anywhere is not None:
        yield at, f"app `{shown(anywhere)}` above gets all of its requests: write `{shown(name)}` first"
        return
    for i, host in enumerate(app.hosts):
        first = next((first for first, other in wider if any(fnmatchcase(host, p) for p in other.hosts)), None)
        if first is not None:
            what = (
                f"host `{shown(host)}` is also one of app `{shown(first)}` above, which gets its requests: "
                f"remove it from one of them, or write `{shown(name)}` first"
            )
            yield f"{at}.hosts[{i}]", what


def _covers(patterns: Mapping[str, str], headers: Mapping[str, str]) -> bool:
    """Whether every request with these headers fits the patterns."""
    return all(name in headers and _is_wider(pattern, headers[name]) for name, pattern in patterns.items())


def _is_wider(pattern: str, other: str) -> bool:
    """Whether every value of the other pattern fits this one. In doubt it does not."""
    if pattern == other:
        return True
    # A `?` fits the character `*`, but not every value of it.
    return (set("*?[").isdisjoint(other) or set("?[]").isdisjoint(pattern)) and fnmatchcase(other, pattern)


def _check_host(at: str, host: str) -> Iterator[tuple[str, str]]:
    if _HOST.fullmatch(host):
        return
    what = "write it in lower case, without scheme, port and path, as in llm.example.com or *.example.com"
    if host == "*":
        what = "name the hosts of the app, because the policy itself decides about all other requests"
    elif not host.isascii():
        with contextlib.suppress(UnicodeError):
            what = f"clients send another form of this name, so write `{host.encode('idna').decode()}`"
    yield at, f"host `{shown(host)}`: {what}"


def _check_app(at: str, name: str, app: App, policy: PolicyFile, tiers: Sequence[str]) -> Iterator[tuple[str, str]]:
    if not _APP_NAME.fullmatch(name):
        what = (
            f"app `{shown(name)}`: its name is sent in metrics, so use only letters, digits, '.', '_' and '-', and "
            "begin with a letter or a digit"
        )
        yield at, what
    if not app.hosts and not app.headers:
        yield at, f"app `{shown(name)}` has no requests: give it `hosts` or `headers`"
    for i, host in enumerate(app.hosts):
        yield from _check_host(f"{at}.hosts[{i}]", host)
    for header in app.headers or {}:
        yield from check_header_name(f"{at}.headers", header)
    yield from _check_tiers(at, app, policy, tiers)
    yield from _check_budget(f"{at}.budget", app.budget, tiers)
    if app.budget is not None and app.budget.per == TEAM and app.team is None:
        yield f"{at}.budget.per", "`per: team` needs a team: add `labels: {team: NAME}` to the app"
    for label, value in app.labels.items():
        if not _LABEL.fullmatch(label) or label == "app":
            what = (
                f"label `{shown(label)}`: use lower-case letters, digits and _, begin with a letter, and choose "
                "another name than `app`"
            )
            yield f"{at}.labels", what
        if not _NAME.fullmatch(value):
            what = f"label `{shown(label)}` is `{shown(value)}`: use only letters, digits, '.', '_' and '-'"
            yield f"{at}.labels.{label}", what


def _check_tiers(at: str, app: App, policy: PolicyFile, tiers: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The app's default tiers, and the tiers that it may use."""
    if app.tiers is not None and not app.tiers:
        yield f"{at}.tiers", "`tiers` is an empty list, so every request would be refused: name at least one tier"
        return
    for i, tier in enumerate(app.tiers or ()):
        yield from _exists(f"{at}.tiers[{i}]", tier, tiers)
    given = app.default_tier
    if isinstance(given, str):
        defaults = {f"{at}.default_tier": given}
    else:
        defaults = {f"{at}.default_tier.{api}": tier for api, tier in (given or {}).items()}
        defaults = {f"{at}.default_tier" if given is None else at: policy.default_tier} | defaults
    serving = {tier.name for tier in policy.tiers if tier.takes_new}
    for path, tier in defaults.items():
        yield from _exists(path, tier, tiers)
        if tier in tiers and tier not in serving:
            yield path, f"tier `{tier}` takes no new requests: name a tier whose `state` is `in`"
        elif app.tiers is not None and tier in tiers and tier not in app.tiers:
            what = f"the default tier `{tier}` is not in `tiers` of the app: add it there, or set `default_tier`"
            yield path, what


def _check_budget(at: str, budget: UsdBudget | None, tiers: Sequence[str]) -> Iterator[tuple[str, str]]:
    if budget is None:
        return
    if not (0 < budget.usd_month <= _MOST_USD and math.isfinite(budget.usd_month)):
        what = f"`usd_month` is {budget.usd_month:g}: expected a number above 0 to {_MOST_USD:,.0f}"
        yield f"{at}.usd_month", what
    if budget.over != REFUSE:
        yield from _exists(f"{at}.over", budget.over, [*tiers, REFUSE])


def _exists(path: str, name: str, tiers: Sequence[str]) -> Iterator[tuple[str, str]]:
    if tiers and name not in tiers:
        yield path, f"no tier is called `{name}`: {suggestion(name, tiers)}"


def check_app_intents(policy: PolicyFile, app: App, intents: Sequence[tuple[str, Intent]]) -> Iterator[_Finding]:
    """Yield every tier of an app's intent that the app may not use. `intents` are pairs of file and intent."""
    names = [tier.name for tier in policy.tiers]
    for file, intent in intents:
        tiers = [("tier", intent.tier), ("tier_floor", intent.tier_floor)]
        if intent.escalate is not None:
            tiers += [("escalate.to", rung.tier) for rung in intent.escalate.rungs]
        if intent.by_prompt is not None:
            tiers += [("by_prompt.tiers", tier) for tier in intent.by_prompt.tiers]
        for key, tier in tiers:
            if app.tiers is not None and tier in names and tier not in app.tiers:
                yield (
                    file,
                    f".{key}",
                    f"tier `{tier}` is not in `tiers` of the app: add it there, or name one of them",
                )
