"""The settings of policy.yaml and of intents, except the tiers and the evidence."""

import os
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from extproc.settings.about import about
from extproc.settings.address import read_url
from extproc.settings.tier import Price, TierKey

HUMAN = "human"  # the last rung of a ladder may be a person instead of a tier
# The share of a cohort's judged answers that may escalate, where `escalate` does not set one.
SHARE = 0.35
StreamHold = Literal["early", "buffer", "record"]


class Budget(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Reasoning on, with about this many tokens for it."""

    budget_tokens: Annotated[int, about("Tokens that the model may spend on reasoning, roughly.")]


Reasoning = bool | Budget
Otherwise = Literal["refuse"]
OTHERWISE = (
    "The reaction to a request that no tier of `only` can serve. `refuse` answers it with 503. It is the default "
    "and the only value."
)


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
    model: Annotated[
        str | None,
        about("The requested model matches this pattern with * and ?, as in `claude-haiku-*`."),
    ] = None
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
    only: Annotated[
        tuple[str, ...] | None,
        about(
            "The only tiers that may get the request, on every path. If several lists hold, a tier must be in all "
            "of them. Left out: every tier."
        ),
    ] = None
    otherwise: Annotated[Otherwise | None, about(OTHERWISE)] = None


class Judge(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A model that the acceptance rules `judge` and `agree` ask."""

    url: Annotated[
        str,
        about(
            "Address of an OpenAI-compatible chat API: `https://host[:port][/base/path]`, or `http://`. A path "
            "takes the place of `/v1`."
        ),
    ]
    model: Annotated[str, about("Model name to ask for.")]
    timeout_ms: Annotated[int, about("Longest time for one call, in milliseconds.")] = 2000
    price: Annotated[Price | None, about("Prices of its tokens. Only for your own records.")] = None
    key: Annotated[
        TierKey | None, about("API key of the judge. The router reads its file at each call. Left out: none.")
    ] = None
    api_key_env: Annotated[
        str | None, about("Environment variable of the router that holds the API key, in place of `key`.")
    ] = None

    @property
    def chat_url(self) -> str:
        """The URL of the chat API."""
        address = read_url(self.url)
        scheme = "https" if address.tls else "http"
        return f"{scheme}://{address.host_header}:{address.port}{address.base}/chat/completions"

    def authorization(self) -> dict[str, str]:
        """Return the header that carries the API key, if any. Raises OSError or ValueError for its file."""
        if self.key is not None:
            return {self.key.header: self.key.prefix + Path(self.key.file).read_text(encoding="ascii").strip()}
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


class Candidate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Other intents, which are compared with those that serve before they take their place."""

    dir: Annotated[
        str,
        about(
            "Folder with all intent files of the candidate, and with its centroids and _background.yaml if it has "
            "them. It has no policy.yaml, because this one holds for both. A relative path starts at the YAML's "
            "folder."
        ),
    ]
    percent: Annotated[
        float, about("Percentage of the conversations that the candidate decides about, from 0 to 100.")
    ] = 5.0
    shadow: Annotated[
        bool,
        about("true: the candidate decides about every request, and its decisions are only recorded."),
    ] = False
    loss: Annotated[
        float,
        about(
            "Largest loss of the accepted share that is tolerated, as a fraction (0.02 = 2 percentage points). "
            "With more than that the candidate is not promoted."
        ),
    ] = 0.02


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


# Seconds after which a stream that is judged on its first tokens is released. Proxies and agents give up after 60
# seconds without a byte, and two holds after each other end before that.
_EARLY_S = 25.0


class Timeouts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The timeouts of Envoy."""

    request_s: Annotated[
        float, about("No tier is asked for a request that is older than this many seconds. An answer may flow on.")
    ] = 300
    attempt_s: Annotated[
        float,
        about(
            "Longest wait for the answer of one attempt to begin, for all of it if it is judged whole, and between "
            "two parts of a stream; in seconds."
        ),
    ] = 120

    @property
    def early_s(self) -> float:
        """The longest hold of a stream that is judged on its first tokens. An attempt lasts longer."""
        return min(_EARLY_S, self.attempt_s / 2)
