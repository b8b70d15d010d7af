"""The settings that users write in YAML, as values. The package config decodes YAML directly into these."""

import math
import os
from pathlib import Path
from typing import Literal

import msgspec

Dialect = Literal["none", "qwen3", "deepseek", "gpt-oss", "openai", "anthropic"]
HUMAN = "human"  # a rung that is a person and not a tier
Capability = Literal["tools", "vision", "audio"]
# Default limit: the share of a cohort's judged answers that may be escalated.
SHARE = 0.35
# For a judged stream: buffer its first tokens, buffer all of it, or pass it on and only record the verdict.
StreamHold = Literal["early", "buffer", "record"]


class Budget(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Reasoning on, with about this many tokens for it."""

    budget_tokens: int


Reasoning = bool | Budget


class Price(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """US dollars per million tokens."""

    input: float
    output: float
    cached_input: float | None = None  # price of input that the upstream had cached; by default the price of input


class Tier(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One level of cost and capability: a model at an upstream."""

    name: str
    model: str
    endpoint: str
    context: int  # tokens
    price: Price
    reasoning: Dialect = "none"
    tls: bool = False
    cluster: str = ""  # Envoy's name of the upstream; empty: the tier's name
    # A file with the whole Authorization header for this tier. The client's keys are then removed.
    credential: str = ""
    capabilities: frozenset[Capability] = frozenset({"tools", "vision", "audio"})

    @property
    def cluster_name(self) -> str:
        """The name of this tier's upstream in Envoy."""
        return self.cluster or self.name


class Conditions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When a rule applies: all conditions that are set must be met."""

    intents: tuple[str, ...] | None = None
    risk: Literal["low", "high"] | None = None
    tokens_over: int | None = None
    tokens_under: int | None = None
    turns_over: int | None = None
    tools: bool | None = None
    images: bool | None = None
    strict_output: bool | None = None
    headers: dict[str, str] | None = None  # name -> pattern with the wildcards * and ?


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One line of the policy; the first rule that applies wins."""

    name: str
    when: Conditions
    tier: str | None = None
    tier_floor: str | None = None
    reasoning: Reasoning | None = None


class Judge(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A model that acceptance rules may ask about an answer."""

    endpoint: str
    model: str
    tls: bool = False
    timeout_ms: int = 2000
    price: Price | None = None  # the operator sets it, so that calls count in the cost
    api_key_env: str | None = None  # the environment variable with its API key

    def authorization(self) -> dict[str, str]:
        """Return the header with its API key, or no header without a key."""
        key = os.environ.get(self.api_key_env) if self.api_key_env is not None else None
        return {"authorization": f"Bearer {key}"} if key else {}


class Human(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How requests are handled that only a person may answer."""

    queue: str = "review.jsonl"  # a file, or a redis:// URL
    # Client libraries do not retry status 422.
    status: int = 422
    message: str = "A person must answer this request. It has been queued for review."
    keep_text: bool = False  # False: keep only hashes and lengths


class RungSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One rung of a ladder: a tier, and its reasoning mode there."""

    tier: str
    reasoning: Reasoning | None = None


class Escalate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which rungs are asked after a rejected answer, and how often."""

    to: str | RungSpec | tuple[str | RungSpec, ...]
    max: int = 1  # most escalations of one request
    share: float = SHARE  # most escalations, as a share of the cohort's judged answers
    skip: tuple[str, ...] = ()  # a rejection by these rules skips the next rung, unless it is the last one

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
    """The probability that a match is right, from its similarity and margin: a logistic curve (Platt 1999)."""

    similarity: float  # this slope and the next are at least 0: a nearer match is never less probable
    margin: float
    offset: float

    def of(self, similarity: float, margin: float) -> float:
        """Return the probability, from 0 to 1."""
        return 1 / (1 + math.exp(-max(-700.0, self.similarity * similarity + self.margin * margin + self.offset)))


class Evidence(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The data that a cohort's floor was fitted on, and the result. `extproc calibrate` writes it."""

    date: str
    data: str  # the hash of the labelled traffic
    rows: int  # number of its rows that were matched to the cohort
    encoder: str
    # The hash of everything that centroids are made from. A changed utterance makes the evidence stale.
    centroids: str
    risk: float  # largest share of accepted matches that may be wrong, on average over fits
    wrong: tuple[float, float]  # 95 % interval of that share, on rows that were held out from the fit
    accepted: float  # share of the rows that the floor accepts, also on held-out rows
    probability: Probability

    @property
    def stamp(self) -> str:
        """The hash of the data and the date, as one short text."""
        return f"{self.data} {self.date}"


class Chosen(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The data that a cohort's tier and settings were chosen on, and the result. `extproc calibrate` writes it."""

    date: str
    data: str  # the hash of the recorded traffic
    rows: int  # number of its rows that were matched to the cohort and have outcomes
    target: str  # quality=SHARE, or cost=DOLLARS per 1,000 requests, over the whole traffic
    models: dict[str, str]  # compared tier -> its model; the choice is not valid for other models
    quality: tuple[float, float]  # 95 % interval, on rows that were held out from the choice
    per_1000: tuple[float, float]  # 95 % interval of dollars per 1,000 requests, on the same rows

    def holds(self, tiers: tuple[Tier, ...]) -> bool:
        """Whether the compared tiers still have the same models."""
        now = {tier.name: tier.model for tier in tiers}
        return all(now.get(name) == model for name, model in self.models.items())

    @property
    def stamp(self) -> str:
        """The hash of the data and the date, as one short text."""
        return f"{self.data} {self.date}"


class EncoderConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How requests are embedded."""

    model: str = "all-MiniLM-L6-v2"  # a name, or a path that is absolute or relative to the folder of the YAML
    deadline_ms: int = 200  # longest wait for the vector of one request
    max_chars: int = 512  # a longer ask is cut to its head and tail

    @property
    def name(self) -> str:
        """The name of the model, without the path of its folder."""
        return Path(self.model).name


class Escalations(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How often one principal may cause escalations, so that no client can force traffic to the expensive tier."""

    # The request headers that identify a principal. The first one present is used, and only its hash is kept.
    principal: tuple[str, ...] = ("authorization", "x-api-key")
    per_minute: float = 60
    burst: int = 20


class Upgrades(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How often one principal's requests may use tiers above the default tier. Above that, they use the default."""

    per_minute: float
    burst: int
    # True: lower a tier_floor, too, because cost comes first. False: a tier_floor always holds.
    lower_floors: bool = False


class Timeouts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How long Envoy waits, in seconds."""

    request_s: float = 300  # for the whole request, with all rungs
    attempt_s: float = 120  # for one attempt, until its whole answer or the start of its stream
