"""Checks of how a tier reaches its upstream: addresses, keys, TLS, statuses and states. Other addresses, too."""

import re
from collections.abc import Iterator, Sequence
from urllib.parse import urlsplit

from extproc.config.schema import PolicyFile
from extproc.mismatch import shown, suggestion
from extproc.settings import Address, Judge, Tier, TierKey, read_url

_Finding = tuple[str, str]  # the path of the value, and what is wrong with it
_HEADER = re.compile(r"[a-z0-9-]+")
_SCHEME = re.compile(r"[A-Za-z0-9._-]*")
# The parts of a URL that may hold a key. No message repeats them.
_SECRETS = re.compile(r"(?<=//)[^/@]*(?=@)|(?<=\?).*")
# A longer idle time than this is a mistake in the unit.
_MOST_IDLE_S = 3600


def check_upstream(at: str, tier: Tier, policy: PolicyFile) -> Iterator[_Finding]:
    """Every mistake of one tier of the policy, whose path is `at`."""
    yield from _check_addresses(at, tier)
    yield from _check_failover(at, tier, [other.name for other in policy.tiers])
    yield from _check_attempt(at, tier, policy.timeouts.request_s)
    if tier.key is not None:
        yield from _check_key(f"{at}.key", tier.key)
    for status in tier.escalate_on or ():
        if not 400 <= status <= 599:
            yield f"{at}.escalate_on", f"`escalate_on` has {status}: expected statuses from 400 to 599"
    if tier.retry is not None and not 0 <= tier.retry.same <= 3:
        yield f"{at}.retry.same", f"`retry.same` is {tier.retry.same}: expected a number from 0 to 3"
    if not 0 < tier.idle_s <= _MOST_IDLE_S:
        yield f"{at}.idle_s", f"`idle_s` is {tier.idle_s:g}: expected a number above 0 to {_MOST_IDLE_S}"
    if tier.apis is not None and not tier.apis:
        yield f"{at}.apis", "`apis` is an empty list: name the APIs of the upstream, or remove it for all"


def _check_attempt(at: str, tier: Tier, request_s: float) -> Iterator[_Finding]:
    """The limit for attempts at one tier. `request_s` is that for the whole request."""
    if tier.timeouts is not None and not 0 < tier.timeouts.attempt_s <= request_s:
        limit = f"`timeouts.request_s` of the policy, which is {request_s:g}"
        what = f"`timeouts.attempt_s` is {tier.timeouts.attempt_s:g}: expected a number above 0, up to {limit}"
        yield f"{at}.timeouts.attempt_s", what


def check_states(tiers: Sequence[Tier], default_tier: str) -> Iterator[_Finding]:
    """The default tier has to serve: it gets the requests without a decision."""
    for tier in tiers:
        if tier.name == default_tier and not tier.takes_new:
            what = f"tier `{tier.name}` is `{tier.state}`: name a tier whose `state` is `in`"
            yield ".default_tier", what


def _check_failover(at: str, tier: Tier, tiers: Sequence[str]) -> Iterator[_Finding]:
    """The names in `failover` of a tier."""
    if tier.failover is not None and not tier.failover:
        what = "`failover` is an empty list: name the tiers to ask, or remove it for the next tier up"
        yield f"{at}.failover", what
    names = tier.failover or ()
    for i, name in enumerate(names):
        place = f"{at}.failover[{i}]"
        if name not in tiers:
            yield place, f"no tier is called `{name}`: {suggestion(name, tiers)}"
        elif name == tier.name:
            yield place, f"`failover` of tier `{name}` leads back to the tier that failed: name another tier"
        elif name in names[:i]:
            yield place, f"tier `{name}` occurs twice in `failover`, but it is asked once: remove one of them"


def check_floor(path: str, floor: str | None, tiers: Sequence[Tier]) -> Iterator[_Finding]:
    """A floor needs a tier that serves, at it or above it."""
    names = [tier.name for tier in tiers]
    if floor in names and not any(tier.takes_new for tier in tiers[names.index(floor) :]):
        yield path, f"no tier from `{floor}` up has the state `in`: set one of them to `in`, or lower the floor"


def _check_addresses(at: str, tier: Tier) -> Iterator[_Finding]:
    if tier.endpoints and tier.url:
        yield f"{at}.url", "`url` beside `endpoints`: remove one of them"
        return
    urls = {f"{at}.endpoints[{i}].url": e.url for i, e in enumerate(tier.endpoints)} or {f"{at}.url": tier.url}
    addresses: list[Address] = []
    for place, url in urls.items():
        try:
            addresses.append(read_url(url))
        except ValueError as error:
            yield place, f"url `{shown(_SECRETS.sub('...', url))}` {error}"
    for i, endpoint in enumerate(tier.endpoints):
        if not 1 <= endpoint.weight <= 1000:
            what = f"`weight` is {endpoint.weight}: expected a number from 1 to 1000"
            yield f"{at}.endpoints[{i}].weight", what
    if len({(address.tls, address.base) for address in addresses}) > 1:
        what = "the `endpoints` differ in scheme or path: write a separate tier for each kind"
        yield f"{at}.endpoints", what
    if addresses and not addresses[0].tls:
        for name, value in (("ca", tier.ca), ("sni", tier.sni)):
            if value:
                yield f"{at}.{name}", f"`{name}` is for TLS, but the url is http://: write https://, or remove it"


def _check_key(at: str, key: TierKey) -> Iterator[_Finding]:
    if not key.file:
        yield f"{at}.file", "`file` is empty: write the path of the file that holds the key"
    if not _HEADER.fullmatch(key.header):
        what = f"header `{shown(key.header)}`: write its name in lower case, with only letters, digits and '-'"
        yield f"{at}.header", what
    if key.scheme is not None and not _SCHEME.fullmatch(key.scheme):
        what = f"`scheme` is `{shown(key.scheme)}`: write one word, as in Bearer, or `none`"
        yield f"{at}.scheme", what


def check_store(url: str) -> Iterator[_Finding]:
    """A mistake in the URL of the store of conversations."""
    if url and not url.startswith(("redis://", "rediss://", "unix://")):
        yield ".state", f"`state` is `{shown(url)}`: expected a URL such as redis://valkey:6379/0"
        return
    if url.startswith("unix://"):
        return
    parts = urlsplit(url)
    try:
        is_address = bool(parts.hostname) and parts.port != 0
    except ValueError:  # the port
        is_address = False
    if url and not (is_address and re.fullmatch(r"/?\d*", parts.path)):
        what = (
            "its host, its port or the number of its database cannot be used: write it as in redis://valkey:6379/0"
        )
        yield ".state", f"`state` is `{shown(_SECRETS.sub('...', url))}`: {what}"


def check_judge(at: str, judge: Judge) -> Iterator[_Finding]:
    """A mistake in the address or the key of a judge."""
    try:
        read_url(judge.url)
    except ValueError as error:
        yield f"{at}.url", f"url `{shown(_SECRETS.sub('...', judge.url))}` {error}"
    if judge.key is not None:
        yield from _check_key(f"{at}.key", judge.key)
        if judge.api_key_env is not None:
            yield f"{at}.api_key_env", "`api_key_env` beside `key`: remove one of them"
