"""What a user writes, as values: config.py decodes YAML straight into these, and the core reads them."""

import math
import os
from pathlib import Path
from typing import Literal

import msgspec

Dialect = Literal["none", "qwen3", "deepseek", "gpt-oss", "openai", "anthropic"]
HUMAN = "human"  # a rung that is no tier
Capability = Literal["tools", "vision", "audio"]
# Of a cohort's judged answers, where it does not say: so many may climb.
SHARE = 0.35
# Of a judged stream: hold the first tokens, hold all of it, or let it pass and only record the verdict.
StreamHold = Literal["early", "buffer", "record"]


class Budget(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Reasoning on, with about this many tokens for it."""

    budget_tokens: int


Reasoning = bool | Budget


class Price(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """US dollars per million tokens."""

    input: float
    output: float
    cached_input: float | None = None  # of input that the upstream had cached; the input's own when left out


class Tier(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One level of cost and capability: a model at an upstream."""

    name: str
    model: str
    endpoint: str
    context: int  # tokens
    price: Price
    reasoning: Dialect = "none"
    tls: bool = False
    cluster: str = ""  # Envoy's name of the upstream; the tier's own when empty
    # A file with the whole Authorization header for this tier; the client's own keys are then taken away.
    credential: str = ""
    capabilities: frozenset[Capability] = frozenset({"tools", "vision", "audio"})

    @property
    def cluster_name(self) -> str:
        """What Envoy calls this tier's upstream."""
        return self.cluster or self.name


class Conditions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When a rule applies: every condition given must hold."""

    intents: tuple[str, ...] | None = None
    risk: Literal["low", "high"] | None = None
    tokens_over: int | None = None
    tokens_under: int | None = None
    turns_over: int | None = None
    tools: bool | None = None
    images: bool | None = None
    strict_output: bool | None = None
    headers: dict[str, str] | None = None  # name -> pattern with * and ?


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
    price: Price | None = None  # what a call costs; it is the operator's to know
    api_key_env: str | None = None  # the environment variable that holds its key

    def authorization(self) -> dict[str, str]:
        """The header that its key goes in, if it has one."""
        key = os.environ.get(self.api_key_env) if self.api_key_env is not None else None
        return {"authorization": f"Bearer {key}"} if key else {}


class Human(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What happens to an answer that only a person may give."""

    queue: str = "review.jsonl"  # a file, or a redis:// URL
    # 422 is a status that client libraries do not retry.
    status: int = 422
    message: str = "This request needs a person's answer; it has been put aside for review."
    keep_text: bool = False  # False: hashes and lengths only


class RungSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A rung to climb to: a tier, and how it is to reason there."""

    tier: str
    reasoning: Reasoning | None = None


class Escalate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a rejected answer goes."""

    to: str | RungSpec | tuple[str | RungSpec, ...]
    max: int = 1  # rungs that one request may climb
    share: float = SHARE  # of the cohort's judged answers that may climb
    skip: tuple[str, ...] = ()  # rules whose rejection climbs past the next rung, where one is above it

    @property
    def rungs(self) -> tuple[RungSpec, ...]:
        """The rungs, in the order they are climbed."""
        given = self.to if isinstance(self.to, tuple) else (self.to,)
        specs = (RungSpec(rung) if isinstance(rung, str) else rung for rung in given)
        return tuple(spec for spec in specs if spec.tier != HUMAN)

    @property
    def human(self) -> bool:
        """Whether a person is the last rung."""
        return HUMAN in (self.to if isinstance(self.to, tuple) else (self.to,))


class Probability(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The chance that a match is right, from its similarity and margin: a logistic curve (Platt 1999)."""

    similarity: float  # slopes, from 0 up: what is nearer is never less likely right
    margin: float
    offset: float

    def of(self, similarity: float, margin: float) -> float:
        """A chance from 0 to 1."""
        return 1 / (1 + math.exp(-max(-700.0, self.similarity * similarity + self.margin * margin + self.offset)))


class Evidence(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a cohort's floor was fitted on, and what came of it; `extproc calibrate` writes it."""

    date: str
    data: str  # the hash of the labelled traffic
    rows: int  # of it that landed in the cohort
    encoder: str
    centroids: str  # the hash of all that makes centroids: any other utterance, and the evidence is stale
    risk: float  # the share of accepted matches that may be wrong, on average over fits
    wrong: tuple[float, float]  # 95 % interval of that share, on rows that the fit had not seen
    accepted: float  # share of the rows that the floor accepts, likewise
    probability: Probability

    @property
    def stamp(self) -> str:
        """Which data and when, in one short word each."""
        return f"{self.data} {self.date}"


class Chosen(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a cohort's tier and settings were chosen on, and what came of it; `extproc calibrate` writes it."""

    date: str
    data: str  # the hash of the recorded traffic
    rows: int  # of it that landed in the cohort with outcomes
    target: str  # quality=SHARE or cost=DOLLARS per 1,000 requests, over all the traffic
    models: dict[str, str]  # by the tiers that were compared: with any other model, this says nothing
    quality: tuple[float, float]  # 95 % interval, on rows that were not chosen on
    per_1000: tuple[float, float]  # dollars, likewise

    def holds(self, tiers: tuple[Tier, ...]) -> bool:
        """Whether the tiers that were compared are still the same models."""
        now = {tier.name: tier.model for tier in tiers}
        return all(now.get(name) == model for name, model in self.models.items())

    @property
    def stamp(self) -> str:
        """Which data and when, in one short word each."""
        return f"{self.data} {self.date}"


class EncoderConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How requests are embedded."""

    model: str = "all-MiniLM-L6-v2"  # by name, or a local path: a relative one begins at the YAML's folder
    deadline_ms: int = 200
    max_chars: int = 512  # of the ask: head and tail

    @property
    def name(self) -> str:
        """What the model is called, wherever its folder lies."""
        return Path(self.model).name


class Escalations(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How often one principal may push answers up, so that nobody can force traffic to the dear tier."""

    # The request headers that tell principals apart: the first that is there counts, hashed at once.
    principal: tuple[str, ...] = ("authorization", "x-api-key")
    per_minute: float = 60
    burst: int = 20


class Upgrades(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How often one principal's words may take it above the default tier; past that, the default tier serves."""

    per_minute: float
    burst: int
    # A tier_floor that the words called for is held all the same, unless this says that cost comes first.
    lower_floors: bool = False


class Timeouts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How long Envoy waits, in seconds."""

    request_s: float = 300  # for the whole request, every rung included
    attempt_s: float = 120  # for one attempt to send its whole answer, or to start its stream
