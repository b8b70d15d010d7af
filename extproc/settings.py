"""The values of the YAML. `config` decodes YAML into these structs, and every package reads them.

Every field has its description in `about`. The JSON Schema for editors (`extproc schema`) and the reference of the
YAML are made from these descriptions.
"""

import math
import os
from pathlib import Path
from typing import Annotated, Literal

import msgspec

Dialect = Literal["none", "qwen3", "deepseek", "gpt-oss", "openai", "anthropic"]
HUMAN = "human"  # the last rung of a ladder may be a person instead of a tier
# `hosted` is every tool that the provider runs, and `hosted:web_search` is one of them.
CAPABILITIES = ("tools", "vision", "audio", "files", "video", "hosted")
# The share of a cohort's judged answers that may escalate, where `escalate` does not set one.
SHARE = 0.35
StreamHold = Literal["early", "buffer", "record"]


def about(description: str) -> msgspec.Meta:
    """The description of a field of the YAML."""
    return msgspec.Meta(description=description)


class Budget(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Reasoning on, with about this many tokens for it."""

    budget_tokens: Annotated[int, about("Tokens that the model may spend on reasoning, roughly.")]


Reasoning = bool | Budget


class Price(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Prices in US dollars per million tokens."""

    input: Annotated[float, about("Price of input tokens, in US dollars per million.")]
    output: Annotated[float, about("Price of output tokens, in US dollars per million.")]
    cached_input: Annotated[float | None, about("Price of cached input tokens. Left out: as input.")] = None


class Tier(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One level of cost and capability: a model at an upstream."""

    name: Annotated[str, about("Name of the tier in rules, intents, headers and reports.")]
    model: Annotated[str, about("Model name that is written into requests for this tier.")]
    endpoint: Annotated[str, about("Address of the upstream as host:port, without a scheme.")]
    context: Annotated[int, about("Largest request that this tier accepts, in tokens.")]
    price: Annotated[Price, about("Prices of this tier's tokens, in US dollars per million.")]
    reasoning: Annotated[Dialect, about("How a request turns the reasoning of this model on and off.")] = "none"
    tls: Annotated[bool, about("Connect to the upstream with TLS.")] = False
    cluster: Annotated[str, about("Name of the upstream in Envoy (its cluster). Left out: the tier's name.")] = ""
    credential: Annotated[
        str,
        about(
            "File that holds the whole Authorization header for this tier, as Envoy sees its path. The keys of "
            "clients are then removed from requests to this tier. Left out: the client's own key is sent."
        ),
    ] = ""
    capabilities: Annotated[
        frozenset[Annotated[str, msgspec.Meta(examples=list(CAPABILITIES))]] | None,
        about(
            "Abilities of this tier: `tools`, `vision`, `audio`, `files`, `video`, `hosted` for all tools that the "
            "provider runs, or `hosted:web_search` for one. A request that needs others goes to a higher tier. "
            "Left out: all abilities."
        ),
    ] = None

    @property
    def cluster_name(self) -> str:
        """Envoy's name of the upstream of this tier."""
        return self.cluster or self.name

    def lacks(self, needs: frozenset[str]) -> frozenset[str]:
        """Return the needs of a request that this tier does not serve."""
        if self.capabilities is None or needs <= self.capabilities:
            return frozenset()
        hosted = "hosted" in self.capabilities
        return frozenset(n for n in needs - self.capabilities if not (hosted and n.startswith("hosted:")))


class Conditions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When a rule applies. All the conditions that are given must hold."""

    intents: Annotated[tuple[str, ...] | None, about("The request landed in one of these intents.")] = None
    risk: Annotated[Literal["low", "high"] | None, about("The request landed in an intent of this risk.")] = None
    tokens_over: Annotated[int | None, about("The request has more than this many tokens (estimated).")] = None
    tokens_under: Annotated[int | None, about("The request has fewer than this many tokens (estimated).")] = None
    turns_over: Annotated[int | None, about("The conversation has more than this many user turns.")] = None
    tools: Annotated[bool | None, about("true: the request offers tools. false: it offers none.")] = None
    images: Annotated[bool | None, about("true: the request contains images. false: it contains none.")] = None
    strict_output: Annotated[bool | None, about("true: the request asks for JSON. false: it does not.")] = None
    headers: Annotated[
        dict[str, str] | None,
        about(
            "Request headers that must match: the name in lower case, and a pattern with * and ?. Use only headers "
            "that your own edge sets."
        ),
    ] = None


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One rule of the policy. The first rule that applies sets tier and reasoning."""

    name: Annotated[str, about("Name of the rule in headers, logs and reports.")]
    when: Annotated[Conditions, about("When this rule applies. All the conditions that are given must hold.")]
    tier: Annotated[str | None, about("Tier of the request. Only the first rule that applies counts.")] = None
    tier_floor: Annotated[str | None, about("Lowest tier. If several rules apply, the highest one counts.")] = None
    reasoning: Annotated[
        Reasoning | None, about("on, off or {budget_tokens: N}. Only the first rule that applies counts.")
    ] = None


class Judge(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A model that the acceptance rules `judge` and `agree` ask."""

    endpoint: Annotated[str, about("Address of an OpenAI-compatible chat API as host:port, without a scheme.")]
    model: Annotated[str, about("Model name to ask for.")]
    tls: Annotated[bool, about("Connect to the endpoint with TLS.")] = False
    timeout_ms: Annotated[int, about("Longest time for one call, in milliseconds.")] = 2000
    price: Annotated[Price | None, about("Prices of its tokens. Only for your own records.")] = None
    api_key_env: Annotated[str | None, about("Environment variable that holds the API key, if any.")] = None

    def authorization(self) -> dict[str, str]:
        """The header that carries the API key, if there is a key."""
        key = os.environ.get(self.api_key_env) if self.api_key_env is not None else None
        return {"authorization": f"Bearer {key}"} if key else {}


class Human(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The review queue for requests that only a person may answer."""

    queue: Annotated[str, about("The review queue: a file of JSON lines, or a redis:// URL.")] = "review.jsonl"
    # Client libraries do not retry the status 422.
    status: Annotated[int, about("HTTP status of the response to the client.")] = 422
    message: Annotated[str, about("Error message in the response to the client.")] = (
        "A person must answer this request. It has been queued for review."
    )
    keep_text: Annotated[bool, about("Keep the text of request and answer, not only hashes and lengths.")] = False


class RungSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A rung of a ladder: a tier, and how it reasons there."""

    tier: Annotated[str, about("Tier that is asked on this rung.")]
    reasoning: Annotated[
        Reasoning | None, about("on, off or {budget_tokens: N} on this rung. Left out: as on the first attempt.")
    ] = None


class Escalate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The tiers that are asked after a rejected answer."""

    to: Annotated[
        str | RungSpec | tuple[str | RungSpec, ...],
        about("Next tier, or a list of tiers in the order in which they are asked. `human` may be the last."),
    ]
    max: Annotated[int, about("Most rungs that one request may move up.")] = 1
    share: Annotated[float, about("Largest share of the cohort's judged answers that may escalate.")] = SHARE
    skip: Annotated[
        tuple[str, ...],
        about("Names of rules whose rejection skips the next rung, if there is a rung above it."),
    ] = ()

    @property
    def rungs(self) -> tuple[RungSpec, ...]:
        """The rungs that are tiers, in the order in which they are asked."""
        targets = self.to if isinstance(self.to, tuple) else (self.to,)
        specs = (RungSpec(target) if isinstance(target, str) else target for target in targets)
        return tuple(spec for spec in specs if spec.tier != HUMAN)

    @property
    def human(self) -> bool:
        """Whether a person is the last rung."""
        return HUMAN in (self.to if isinstance(self.to, tuple) else (self.to,))


class Probability(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The probability that a match is right: a logistic curve of its similarity and margin (Platt 1999)."""

    similarity: Annotated[float, about("Slope of the similarity, from 0 up: nearer is never less likely right.")]
    margin: Annotated[float, about("Slope of the margin, from 0 up.")]
    offset: Annotated[float, about("Offset of the curve.")]

    def of(self, similarity: float, margin: float) -> float:
        """The probability, from 0 to 1."""
        return 1 / (1 + math.exp(-max(-700.0, self.similarity * similarity + self.margin * margin + self.offset)))


class Evidence(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The evidence for the floor of a cohort. `extproc calibrate` writes it."""

    date: Annotated[str, about("Day of the fit, as YYYY-MM-DD.")]
    data: Annotated[str, about("Hash of the labelled traffic.")]
    rows: Annotated[int, about("Number of its rows that landed in this cohort.")]
    encoder: Annotated[str, about("Name of the encoder model.")]
    centroids: Annotated[
        str,
        about("Hash of everything that the centroids are made of. After a change the evidence is stale."),
    ]
    risk: Annotated[float, about("Share of accepted matches that may be wrong, on average over fits.")]
    wrong: Annotated[
        tuple[float, float],
        about("95 % interval of the share of accepted matches that are wrong, on rows that were not fitted on."),
    ]
    accepted: Annotated[float, about("Share of rows that the floor accepts, on rows that were not fitted on.")]
    probability: Annotated[Probability, about("The probability that a match is right.")]

    @property
    def stamp(self) -> str:
        """The data and the day, in one short word each."""
        return f"{self.data} {self.date}"


class Chosen(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The evidence for the tier and settings of a cohort. `extproc calibrate --target` writes it."""

    date: Annotated[str, about("Day of the choice, as YYYY-MM-DD.")]
    data: Annotated[str, about("Hash of the recorded traffic.")]
    rows: Annotated[int, about("Number of its rows that landed in this cohort and have outcomes.")]
    target: Annotated[str, about("quality=SHARE, or cost=US dollars per 1,000 requests, over all the traffic.")]
    models: Annotated[
        dict[str, str], about("Models of the tiers that were compared. With other models the choice is stale.")
    ]
    quality: Annotated[tuple[float, float], about("95 % interval of the quality, on rows not chosen on.")]
    per_1000: Annotated[
        tuple[float, float],
        about("95 % interval of the cost in US dollars per 1,000 requests, on rows that were not chosen on."),
    ]

    def holds(self, tiers: tuple[Tier, ...]) -> bool:
        """Whether the tiers that were compared still have the same models."""
        now = {tier.name: tier.model for tier in tiers}
        return all(now.get(name) == model for name, model in self.models.items())

    @property
    def stamp(self) -> str:
        """The data and the day, in one short word each."""
        return f"{self.data} {self.date}"


class EncoderConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How requests are embedded."""

    model: Annotated[
        str,
        about("Name of the encoder model, or the path of its folder. A relative path starts at the YAML's folder."),
    ] = "all-MiniLM-L6-v2"
    deadline_ms: Annotated[
        int, about("Longest wait for the encoder, in milliseconds. Then the default tier serves.")
    ] = 200
    max_chars: Annotated[
        int, about("Longest ask that is embedded whole, in characters. A longer ask is cut to its head and tail.")
    ] = 512

    @property
    def name(self) -> str:
        """The name of the model, wherever its folder lies."""
        return Path(self.model).name


class Escalations(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A limit on escalations, so that no principal can push all traffic to the expensive tier."""

    principal: Annotated[
        tuple[str, ...],
        about(
            "Request headers that identify the principal, in lower case. The first of them that a request has "
            "counts. Only its hash is used."
        ),
    ] = ("authorization", "x-api-key")
    per_minute: Annotated[float, about("Escalations per minute that each principal may cause.")] = 60
    burst: Annotated[int, about("Escalations that each principal may cause in a burst.")] = 20


class Upgrades(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A limit on requests above the default tier. Beyond it, the default tier serves the principal."""

    per_minute: Annotated[float, about("Requests per minute that each principal may send above the default tier.")]
    burst: Annotated[int, about("Requests that each principal may send above the default tier in a burst.")]
    lower_floors: Annotated[bool, about("Also lower a `tier_floor`. Otherwise it always holds.")] = False


class Timeouts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The timeouts of Envoy."""

    request_s: Annotated[float, about("Longest time for a whole request with all its rungs, in seconds.")] = 300
    attempt_s: Annotated[
        float, about("Longest time for one attempt: for its whole answer, or to start its stream; in seconds.")
    ] = 120
