"""The `url` of an upstream: where Envoy connects, and where the paths of the APIs begin there."""

import ipaddress
import re
from urllib.parse import SplitResult, urlsplit

import msgspec

_PORTS = {"http": 80, "https": 443}
_HOST = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*\.?")
_PATH = re.compile(r"(?:/[A-Za-z0-9._~!$&'()*+,;=:@%-]+)*")
# The paths of the APIs begin here if the URL has no path, as in the APIs' own documentation.
USUAL_BASE = "/v1"
_API_PATH = re.compile(r"/(?:chat/completions|completions|responses|messages)$")


class Address(msgspec.Struct, frozen=True):
    """The parts of a URL. `host` is a name or an IP address without brackets; `base` begins with "/"."""

    host: str
    port: int
    tls: bool
    base: str

    @property
    def is_name(self) -> bool:
        """Whether the host is a DNS name and not an IP address."""
        return not _is_ip(self.host)

    @property
    def host_header(self) -> str:
        """The host as requests name it: an IPv6 address in brackets."""
        return f"[{self.host}]" if ":" in self.host else self.host


def read_url(url: str) -> Address:
    """Read `https://host[:port][/base/path]`. Raises ValueError with the mistake and its remedy."""
    parts = _split(url)
    host = parts.hostname or ""
    if not (_is_ip(host) or _HOST.fullmatch(host)):
        raise ValueError("has no valid host: write it as in https://api.example.com or http://[::1]:8000")
    if parts.username is not None or parts.password is not None:
        raise ValueError("contains a user name or password: put the key into a file and name it in `key`")
    if parts.query or parts.fragment or url.endswith(("?", "#")):
        raise ValueError("has a query or a fragment: end it after the base path")
    base = parts.path.rstrip("/")
    if not _PATH.fullmatch(base):
        raise ValueError("has a path with characters that a path cannot have: use letters, digits and -._~%")
    api = _API_PATH.search(base)
    if api is not None:
        raise ValueError(f"names the path of one API: leave out `{api[0]}`")
    tls = parts.scheme == "https"
    return Address(host, parts.port or _PORTS[parts.scheme], tls, base or USUAL_BASE)


def _split(url: str) -> SplitResult:
    """The parts of a URL that has a known scheme and a possible port."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ValueError("has no valid host or port: write it as in http://vllm-small:8000") from None
    if parts.scheme not in _PORTS:
        raise ValueError("does not begin with http:// or https://: write it as in http://vllm-small:8000")
    if port == 0 or parts.netloc.endswith(":") or url != url.strip() or not url.isprintable():
        raise ValueError("has no valid host or port: write it as in http://vllm-small:8000")
    return parts


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
