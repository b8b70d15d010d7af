"""The kinds of YAML files, as structs: the policy, an intent and the background."""

from typing import Annotated, Any, Literal

import msgspec

from extproc.acceptance.score import Scorer
from extproc.routing.sticky import Sticky
from extproc.settings import (
    OTHERWISE,
    AnswerCache,
    App,
    ByPrompt,
    Candidate,
    Chosen,
    EncoderConfig,
    Escalate,
    Escalations,
    Evidence,
    Human,
    Judge,
    Otherwise,
    Reasoning,
    Rule,
    StreamHold,
    Tier,
    Timeouts,
    Upgrades,
    UsdBudget,
    about,
)

POLICY_FILE = "policy.yaml"
BACKGROUND_FILE = "_background.yaml"
# Headers in which clients send keys, or name an account that belongs to a key.
_KEY_HEADERS = (
    "authorization",
    "proxy-authorization",
    "x-api-key",
    "api-key",
    "x-goog-api-key",
    "cookie",
    "openai-organization",
    "openai-project",
    "chatgpt-account-id",
)
PathKey = Literal["client", "tier"]


class Passthrough(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A path that is not routed and that the policy opens. All other paths are closed."""

    path: Annotated[str, about("The path, as in /v1/embeddings. A * at its end stands for any rest.")]
    methods: Annotated[tuple[str, ...], about("HTTP methods that are open.")] = ("GET", "POST")
    tier: Annotated[str | None, about("Tier whose upstream answers. Left out: the default tier.")] = None
    key: Annotated[
        PathKey,
        about(
            "client: the upstream gets only the client's own key. tier: it gets only the key of the tier, which "
            "every client may then use."
        ),
    ] = "client"


class PolicyFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """policy.yaml: the tiers, the rules, and the settings of all intents."""

    version: Annotated[Literal[1], about("Version of this format.")]
    default_tier: Annotated[str, about("Tier that serves when no decision can be made.")]
    tiers: Annotated[tuple[Tier, ...], about("The tiers, the cheapest first.")]
    encoder: Annotated[EncoderConfig, about("How requests are embedded.")] = EncoderConfig()
    retarget: Annotated[
        tuple[str, ...],
        about("Requested models that may be replaced: names, or patterns with * and ?. Others pass untouched."),
    ] = ("auto",)
    rules: Annotated[tuple[Rule, ...], about("Rules that override the tier and reasoning of an intent.")] = ()
    mode: Annotated[
        Literal["enforce", "shadow"],
        about("enforce: requests go where the policy says. shadow: decisions are only recorded."),
    ] = "enforce"
    reasoning_choice: Annotated[
        Literal["client", "router"],
        about("client: a choice of reasoning in the request wins. router: the choice of the policy wins."),
    ] = "client"
    escalations: Annotated[Escalations, about("Limit on the escalations of one principal.")] = Escalations()
    upgrades: Annotated[
        Upgrades | None, about("Limit on requests of one principal above the default tier. Left out: no limit.")
    ] = None
    budget: Annotated[
        UsdBudget | None, about("Limit on the money that all requests may cost. Left out: no limit.")
    ] = None
    apps: Annotated[
        dict[str, App],
        about("Applications, by names that you choose. The first one that a request matches counts."),
    ] = {}
    sticky: Annotated[Sticky, about("When a conversation may move to another tier between two turns.")] = Sticky()
    state: Annotated[
        str,
        about(
            "URL of a Redis or Valkey (redis:// or rediss://) that remembers conversations and counts limits and "
            "budgets for all router processes. Left out: each process has its own."
        ),
    ] = ""
    timeouts: Annotated[Timeouts, about("Timeouts of Envoy.")] = Timeouts()
    max_body_mb: Annotated[
        int, about("Largest body that a client may send, in MiB, after decompression. Envoy answers 413 above it.")
    ] = 32
    passthrough: Annotated[
        tuple[Passthrough, ...],
        about("Paths beside those of the four APIs that are open. Others are answered 404."),
    ] = ()
    client_keys: Annotated[
        tuple[str, ...],
        about(
            "Request headers in which your clients send keys, in lower case, beside the usual ones. A tier with "
            "its own key gets none of them."
        ),
    ] = ()
    judges: Annotated[
        dict[str, Judge], about("Models that the acceptance rules `judge` and `agree` ask. You choose the names.")
    ] = {}
    candidate: Annotated[
        Candidate | None,
        about("Other intents for a share of the conversations, until it is known which are better."),
    ] = None
    human: Annotated[
        Human | None,
        about("The review queue for requests that only a person may answer (`escalate: {to: human}`)."),
    ] = None

    def attempt_s(self, tier: Tier) -> float:
        """The limit for attempts at a tier."""
        return tier.timeouts.attempt_s if tier.timeouts is not None else self.timeouts.attempt_s

    @property
    def longest_attempt_s(self) -> float:
        """The longest of these limits."""
        return max(self.timeouts.attempt_s, *map(self.attempt_s, self.tiers))

    @property
    def key_headers(self) -> tuple[str, ...]:
        """Every header that may hold a key of a client or of a tier, in lower case."""
        own = (tier.key.header for tier in self.tiers if tier.key is not None)
        return tuple(dict.fromkeys((*_KEY_HEADERS, *self.client_keys, *own)))

    @property
    def max_body_bytes(self) -> int:
        """The largest body that a client may send."""
        return self.max_body_mb * 2**20


class BackgroundFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """_background.yaml: the requests of users that belong to no intent."""

    background: Annotated[
        tuple[str, ...],
        about(
            "Texts that belong to no intent, in the words of users. A request that is more like these than like an "
            "intent is out of scope."
        ),
    ]


class Intent(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file of one intent: how people ask for it, and how requests in its cohort are served."""

    intent: Annotated[str, about("Name of the intent in rules, headers and reports.")]
    tier: Annotated[str, about("Tier that serves this intent.")]
    utterances: Annotated[tuple[str, ...], about("Examples of how people ask for this, at least three.")]
    description: Annotated[str, about("A note for people. The router does not read it.")] = ""
    reasoning: Annotated[
        Reasoning | None,
        about("on, off or {budget_tokens: N}. Left out: as the client or the model has it."),
    ] = None
    max_output_tokens: Annotated[
        int | None, about("Largest number of output tokens. A lower limit in the request is kept.")
    ] = None
    tier_floor: Annotated[
        str | None, about("Lowest tier, also if a rule names a lower one. It holds for ambiguous requests, too.")
    ] = None
    only: Annotated[
        tuple[str, ...] | None,
        about(
            "The only tiers that may get a request of this intent, on every path. It holds for ambiguous requests "
            "and for requests that could not be matched, too. Left out: every tier."
        ),
    ] = None
    otherwise: Annotated[Otherwise | None, about(OTHERWISE)] = None
    risk: Annotated[Literal["low", "high"], about("How risky a wrong answer is. Rules can read it.")] = "low"
    floor: Annotated[
        float | None,
        about(
            "Least similarity at which a request belongs to this intent, from -1 to 1. Left out: derived from the "
            "utterances. `extproc calibrate` fits it."
        ),
    ] = None
    margin: Annotated[
        float, about("Least lead over the next intent and over the background. With less the request is ambiguous.")
    ] = 0.0
    evidence: Annotated[
        Evidence | None, about("The evidence for floor and margin. `extproc calibrate` writes it.")
    ] = None
    abstain: Annotated[
        bool,
        about(
            "off: a match counts although `extproc calibrate` found no floor that keeps the risk (`abstains` in "
            "the evidence)."
        ),
    ] = True
    accept: Annotated[
        list[Any], about("Rules that an answer must pass before the client sees it. A rejected answer escalates.")
    ] = []
    scorer: Annotated[
        Scorer | None, about("The curve of the rule `score`. `extproc calibrate --target` writes it.")
    ] = None
    escalate: Annotated[
        Escalate | None, about("The tiers that are asked after a rejected answer. Left out: the next tier up.")
    ] = None
    cache: Annotated[
        AnswerCache | None,
        about("Serve an accepted answer again to the same question, without an upstream. Left out: never."),
    ] = None
    chosen: Annotated[
        Chosen | None, about("The evidence for tier and settings. `extproc calibrate --target` writes it.")
    ] = None
    by_prompt: Annotated[
        ByPrompt | None,
        about("The choice between two tiers by the prompt. `extproc calibrate --target` writes it."),
    ] = None
    stream: Annotated[
        StreamHold,
        about(
            "How streamed answers are judged. early: on their first tokens. buffer: whole, and the client waits. "
            "record: after the client has them."
        ),
    ] = "early"
