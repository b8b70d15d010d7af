"""Keys of tiers and judges that earlier releases had. They are translated, so older policies keep working."""

from collections.abc import Iterator
from typing import Any

from extproc.mismatch import shown
from extproc.settings import NO_SCHEME

# The place of a value, a sentence about it, and whether it is a mistake.
Note = tuple[str, str, bool]


def translate(policy: Any) -> Iterator[Note]:
    """Write the old keys of each tier and judge as the new ones, in place. Yields what to write instead.

    A value of a wrong type stays, and decoding reports it.
    """
    tiers = policy.get("tiers") if isinstance(policy, dict) else None
    for i, tier in enumerate(tiers if isinstance(tiers, list) else ()):
        if isinstance(tier, dict):
            yield from _address(f".tiers[{i}]", tier)
            yield from _credential(f".tiers[{i}]", tier)
    judges = policy.get("judges") if isinstance(policy, dict) else None
    for name, judge in judges.items() if isinstance(judges, dict) else ():
        if isinstance(judge, dict):
            yield from _address(f".judges.{name}", judge)


def _address(at: str, tier: dict[str, Any]) -> Iterator[Note]:
    """`endpoint: host:port` and `tls: true` become `url`. A tier with `endpoints` needs no `url`."""
    if "endpoints" in tier and "url" not in tier and "endpoint" not in tier and at.startswith(".tiers"):
        tier["url"] = ""
    tls = tier.pop("tls", None)
    if tls is not None and not isinstance(tls, bool):
        yield f"{at}.tls", "`tls` is not true or false: write `url: https://...` for TLS, and remove `tls`", True
        return
    if "endpoint" not in tier:
        if tls is not None:
            yield f"{at}.tls", "`tls` is in the scheme of `url` now, https:// or http://: remove `tls`", True
        return
    endpoint = tier.pop("endpoint")
    scheme = "https" if tls else "http"
    if "url" in tier or "endpoints" in tier:
        yield f"{at}.endpoint", "`endpoint` beside `url` or `endpoints`: remove `endpoint`", True
    elif not isinstance(endpoint, str):
        tier["url"] = endpoint
    elif (host_port := _host_port(endpoint)) is None:
        what = f"endpoint `{shown(endpoint)}` is not host:port: write `url` instead, as in http://vllm-small:8000"
        tier["url"] = "http://unknown"
        yield f"{at}.endpoint", what, True
    else:
        tier["url"] = f"{scheme}://{host_port}"
        old = "`endpoint` and `tls`" if tls is not None else "`endpoint`"
        yield f"{at}.endpoint", f"{old} will go: write `url: {tier['url']}`", False


def _host_port(endpoint: str) -> str | None:
    """The endpoint as part of a URL, or None. An IPv6 address may lack the brackets."""
    host, _, port = endpoint.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        return None
    return f"[{host}]:{port}" if ":" in host and not host.startswith("[") else endpoint


def _credential(at: str, tier: dict[str, Any]) -> Iterator[Note]:
    """`credential: FILE` becomes a key whose file holds the whole Authorization header."""
    if "credential" not in tier:
        return
    file = tier.pop("credential")
    if "key" in tier:
        yield f"{at}.credential", "`credential` beside `key`: remove `credential`", True
    elif file != "":
        tier["key"] = {"file": file, "scheme": NO_SCHEME}
        what = f"`credential` will go: write `key: {{file: {shown(str(file))}, scheme: {NO_SCHEME}}}`"
        yield f"{at}.credential", what, False
