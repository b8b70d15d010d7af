"""Checks of the keys about requests that come in: open paths, headers with keys, and the size of bodies."""

import re
from collections.abc import Iterator

from extproc.api.paths import APIS, SIDE_PATHS, canonical
from extproc.config.schema import Passthrough, PolicyFile
from extproc.mismatch import shown, suggestion

_Finding = tuple[str, str]  # the path of the value, and what is wrong with it
_PATH = re.compile(r"/[^\s?#*]*\*?")
_METHOD = re.compile(r"[A-Z]+")
_HEADER = re.compile(r"[a-z0-9-]+")
# Envoy keeps a whole body in memory for each request, and the router another copy.
_MOST_BODY_MB = 256


def check_listener(policy: PolicyFile) -> Iterator[_Finding]:
    """Every mistake about requests that are let in."""
    if not 1 <= policy.max_body_mb <= _MOST_BODY_MB:
        what = f"`max_body_mb` is {policy.max_body_mb}: expected a number from 1 to {_MOST_BODY_MB}"
        yield ".max_body_mb", what
    for i, header in enumerate(policy.client_keys):
        if not _HEADER.fullmatch(header):
            what = f"header `{shown(header)}`: write its name in lower case, with only letters, digits and '-'"
            yield f".client_keys[{i}]", what
    for i, passthrough in enumerate(policy.passthrough):
        yield from _check_passthrough(f".passthrough[{i}]", passthrough, policy)


def _check_passthrough(at: str, passthrough: Passthrough, policy: PolicyFile) -> Iterator[_Finding]:
    path, tiers = passthrough.path, {tier.name: tier for tier in policy.tiers}
    if not _PATH.fullmatch(path) or "//" in path or "/../" in f"{path}/":
        what = f"path `{shown(path)}`: start it with one /, without a query, and use * only at its end"
        yield f"{at}.path", what
    elif canonical(path) in (*APIS, *SIDE_PATHS) and "POST" in passthrough.methods:
        yield (
            f"{at}.path",
            f"POST {path} is routed, and needs no `passthrough`: remove POST from `methods`, or this entry",
        )
    for j, method in enumerate(passthrough.methods):
        if not _METHOD.fullmatch(method):
            yield f"{at}.methods[{j}]", f"method `{shown(method)}`: write it in capitals, as in GET"
    if not passthrough.methods:
        yield f"{at}.methods", "`methods` is empty: name at least one, as in [POST]"
    name = passthrough.tier or policy.default_tier
    if name not in tiers:
        if passthrough.tier is not None and tiers:
            yield f"{at}.tier", f"no tier is called `{name}`: {suggestion(name, list(tiers))}"
    elif passthrough.key == "tier" and tiers[name].key is None:
        yield f"{at}.key", f"tier `{name}` has no key: give it one, or write `key: client`"
