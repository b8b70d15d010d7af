"""A tier: a model, the upstream that serves it, and how to talk to that upstream."""

from typing import Annotated, Literal

import msgspec

from extproc.settings.about import about
from extproc.settings.address import Address, read_url
from extproc.settings.params import NO_PARAMS, Params

Dialect = Literal["none", "qwen3", "deepseek", "gpt-oss", "openai", "anthropic", "gemini"]
TierApi = Literal["chat", "responses", "messages", "completions"]
# `hosted` is every tool whose type the provider defines, and `hosted:web_search` is one of them.
CAPABILITIES = ("tools", "vision", "audio", "files", "video", "hosted", "mid_system", "reasoning_state")
# Lists that were written before these had names lack them, and agents need them: every tier has them until one tier
# lists them.
AGENT_CAPABILITIES = frozenset({"mid_system", "reasoning_state"})
# Statuses that are the tier's fault: no credit, no such model, too slow, too busy, and its own errors.
_TIER_FAULTS = (402, 404, 408, 429, *range(500, 600))
# Statuses that are the fault of the owner of the key.
_KEY_FAULTS = (401, 403)
# The scheme of a key that is sent unchanged.
NO_SCHEME = "none"


class Price(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Prices in US dollars per million tokens."""

    input: Annotated[float, about("Price of input tokens, in US dollars per million.")]
    output: Annotated[float, about("Price of output tokens, in US dollars per million.")]
    cached_input: Annotated[float | None, about("Price of cached input tokens. Left out: as input.")] = None


class Endpoint(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One of several upstreams that share the requests of a tier."""

    url: Annotated[str, about("Address of this upstream, as `url` of a tier. All have the same scheme and path.")]
    weight: Annotated[int, about("Share of this upstream in the requests, relative to the other weights.")] = 1


class TierKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The API key of a tier. Envoy reads its file and follows it when it is replaced."""

    file: Annotated[
        str, about("File that holds the key, as Envoy sees its path. A relative path starts at the YAML's folder.")
    ]
    header: Annotated[
        str, about("Request header that carries the key, in lower case: `x-api-key`, or `api-key` of Azure.")
    ] = "authorization"
    scheme: Annotated[
        str | None,
        about(
            "Word in front of the key in its header. `none`: the file holds the whole value. Left out: `Bearer` in "
            "`authorization`, and none in other headers."
        ),
    ] = None

    @property
    def prefix(self) -> str:
        """The text in front of the key in its header: "Bearer " or another scheme, or nothing."""
        scheme = ("Bearer" if self.header == "authorization" else NO_SCHEME) if self.scheme is None else self.scheme
        return "" if scheme in (NO_SCHEME, "") else f"{scheme} "


class Retry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The attempts that are repeated before a request fails over."""

    same: Annotated[int, about("Attempts at the same tier after a broken connection.")]


class TierTimeouts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The timeout of the attempts at one tier, in place of that of the policy."""

    attempt_s: Annotated[
        float,
        about("Longest wait for an answer to begin, and between two parts of a stream; in seconds."),
    ]


class Tier(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One level of cost and capability: a model at an upstream."""

    name: Annotated[str, about("Name of the tier in rules, intents, headers and reports.")]
    model: Annotated[str, about("Model name that is written into requests for this tier.")]
    url: Annotated[
        str,
        about(
            "Address of the upstream: `https://host[:port][/base/path]`, or `http://`. A path takes the place of "
            "`/v1`, as in the base URL of an OpenAI client. Several upstreams are written in `endpoints` instead."
        ),
    ]
    context: Annotated[int, about("Largest request together with its answer, in tokens.")]
    price: Annotated[Price, about("Prices of this tier's tokens, in US dollars per million.")]
    reasoning: Annotated[Dialect, about("How a request turns the reasoning of this model on and off.")] = "none"
    endpoints: Annotated[
        tuple[Endpoint, ...], about("Several upstreams that serve the same model. They take the place of `url`.")
    ] = ()
    cluster: Annotated[str, about("Name of the upstream in Envoy (its cluster). Left out: the tier's name.")] = ""
    key: Annotated[
        TierKey | None,
        about(
            "API key for this tier. The keys of clients are then removed from requests to this tier. "
            "Left out: the client's own key is sent."
        ),
    ] = None
    ca: Annotated[
        str,
        about(
            "File of the certificate authorities that may sign the upstream's certificate (PEM), as Envoy sees its "
            "path. A relative path starts at the YAML's folder. Left out: the public authorities."
        ),
    ] = ""
    sni: Annotated[
        str, about("Name that TLS asks for and that the certificate must have. Left out: the host of `url`.")
    ] = ""
    apis: Annotated[
        frozenset[TierApi] | None,
        about("APIs that the upstream has. Requests on another API go to a higher tier. Left out: all four."),
    ] = None
    capabilities: Annotated[
        frozenset[Annotated[str, msgspec.Meta(examples=list(CAPABILITIES))]] | None,
        about(
            "Abilities of this tier: `tools`, `vision`, `audio`, `files`, `video`, `hosted` for all tools that the "
            "provider defines, or `hosted:web_search` for one. `mid_system`: system messages in the middle of a "
            "conversation. `reasoning_state`: the sealed reasoning of earlier answers. These two count only if a "
            "tier of the policy lists them. A request that needs others goes to a higher tier. Left out: all "
            "abilities."
        ),
    ] = None
    seal: Annotated[
        str,
        about("Tiers with the same text here can read each other's response ids and sealed items. Left out: none."),
    ] = ""
    state: Annotated[
        Literal["in", "drain", "out"],
        about("in: the tier serves. drain: it serves only requests that are bound to it. out: it gets no request."),
    ] = "in"
    escalate_on: Annotated[
        tuple[int, ...] | None,
        about(
            "HTTP statuses of this tier at which the next tier is asked. Left out: 402, 404, 408, 429, 5xx, and "
            "401 and 403 if the tier has a `key`."
        ),
    ] = None
    failover: Annotated[
        tuple[str, ...] | None,
        about(
            "Tiers that are asked when this tier fails, in order. They may be equal or cheaper ones. Left out: the "
            "next tier up. A rejected answer moves up in any case."
        ),
    ] = None
    retry: Annotated[
        Retry | None,
        about(
            "Repeated attempts at this tier, before the next one is asked. Left out: one if the broken connection "
            "was reused from an earlier request, or if this is the last tier of a ladder."
        ),
    ] = None
    timeouts: Annotated[
        TierTimeouts | None, about("The timeout of attempts at this tier. Left out: that of the policy.")
    ] = None
    idle_s: Annotated[
        float,
        about(
            "Envoy closes a connection to the upstream that is idle for this many seconds. Keep it below the "
            "upstream's own limit, which is 5 s in uvicorn."
        ),
    ] = 4.0

    params: Annotated[
        Params, about("Request members that this tier knows by another name or refuses, and its efforts.")
    ] = NO_PARAMS

    @property
    def cluster_name(self) -> str:
        """Envoy's name of the upstream of this tier."""
        return self.cluster or self.name

    @property
    def addresses(self) -> tuple[Address, ...]:
        """The upstreams of this tier, in the order in which they are written. Raises ValueError if one is wrong."""
        return tuple(read_url(url) for url in ([e.url for e in self.endpoints] or [self.url]))

    @property
    def base(self) -> str:
        """The path at the upstream below which the APIs are: "/v1", or the path of `url`."""
        return self.addresses[0].base

    @property
    def tls(self) -> bool:
        """Whether Envoy connects with TLS."""
        return self.addresses[0].tls

    @property
    def failures(self) -> frozenset[int]:
        """The statuses at which the next tier is asked."""
        if self.escalate_on is not None:
            return frozenset(self.escalate_on)
        return frozenset({*_TIER_FAULTS, *(_KEY_FAULTS if self.key is not None else ())})

    @property
    def same_retries(self) -> int:
        """Attempts at this tier after a broken connection. Without `retry`, see `repeats_reused`."""
        return self.retry.same if self.retry is not None else 1

    @property
    def repeats_reused(self) -> bool:
        """Whether an attempt is repeated only if its connection had served another request before.

        The upstream may just have closed it. At the last tier of a ladder, every broken connection
        counts.
        """
        return self.retry is None

    @property
    def takes_new(self) -> bool:
        """Whether a request that is not bound to this tier may go there."""
        return self.state == "in"

    @property
    def takes_any(self) -> bool:
        """Whether any request may go there."""
        return self.state != "out"

    def speaks(self, api: TierApi) -> bool:
        """Whether the upstream has this API."""
        return self.apis is None or api in self.apis

    def lacks(self, needs: frozenset[str]) -> frozenset[str]:
        """Return the needs of a request that this tier does not serve."""
        if self.capabilities is None or needs <= self.capabilities:
            return frozenset()
        hosted = "hosted" in self.capabilities
        return frozenset(n for n in needs - self.capabilities if not (hosted and n.startswith("hosted:")))
