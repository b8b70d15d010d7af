"""The definition of every metric, as data: `Telemetry` records them, and the documentation can list them."""

from typing import Literal

import msgspec

from extproc.contract.names import PREFIX, Key


class Metric(msgspec.Struct, frozen=True):
    """The definition of one metric."""

    name: str
    kind: Literal["counter", "histogram", "gauge"]
    unit: str  # as OpenTelemetry writes it: "s", "usd", or a noun in braces; "" for a share
    description: str
    labels: tuple[str, ...] = ()  # every label that a series may have
    buckets: tuple[float, ...] = ()  # of a histogram: upper bounds, in `unit`


DECISIONS = Metric(
    f"{PREFIX}.decisions", "counter", "{request}", "Decisions, by cohort, tier and reason",
    ("cohort", "tier", "reason", "app"),
)  # fmt: skip
STAGE_DURATION = Metric(
    f"{PREFIX}.stage.duration", "histogram", "s", "Duration of each stage of a decision", ("stage",),
    (1e-5, 1e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1, 0.25, 0.5, 1.0),
)  # fmt: skip
VERDICTS = Metric(
    f"{PREFIX}.verdicts", "counter", "{answer}", "Verdicts on answers, by cohort and reason",
    ("cohort", "verdict", "reason", "bound"),
)  # fmt: skip
RULES_UNAVAILABLE = Metric(
    f"{PREFIX}.rules.unavailable", "counter", "{answer}",
    "Acceptance rules that could not run, so that their on_unavailable setting decided", ("cohort", "rule"),
)  # fmt: skip
FAILURES = Metric(
    f"{PREFIX}.failures", "counter", "{exchange}",
    "Exchanges that an internal error of the router ended, so that Envoy continued without it", ("error.type",),
)  # fmt: skip
LOOP_LAG = Metric(
    f"{PREFIX}.loop.lag", "histogram", "s", "How late the event loop wakes up", (),
    (1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1, 0.25, 0.5, 1.0, 2.5),
)  # fmt: skip
RELOADS = Metric(
    f"{PREFIX}.reloads", "counter", "{reload}", "Configuration reloads, by outcome", ("outcome", "reason")
)
OUTCOMES = Metric(
    f"{PREFIX}.outcomes", "counter", "{request}", "Exchanges, by how they ended",
    ("cohort", "tier", "reason", "outcome", "app"),
)  # fmt: skip
REJECTIONS = Metric(
    f"{PREFIX}.rejections", "counter", "{answer}", "Rejected answers, which were paid for but not served",
    ("cohort", "tier", "reason"),
)  # fmt: skip
TOKENS = Metric(
    f"{PREFIX}.tokens", "counter", "{token}", "Tokens, as reported by upstreams",
    ("cohort", "tier", "answer", "type", "app"),
)  # fmt: skip
COST = Metric(
    f"{PREFIX}.cost", "counter", "usd", "Cost of answers, with rejected answers under their own label",
    ("cohort", "tier", "answer", "app"),
)  # fmt: skip
DEFAULT_COST = Metric(
    f"{PREFIX}.cost.default", "counter", "usd", "Cost of the tokens of served answers at the default tier's prices",
    ("cohort", "tier", "app"),
)  # fmt: skip
USAGE_UNKNOWN = Metric(
    f"{PREFIX}.usage.unknown", "counter", "{answer}", "Answers without token counts", ("cohort", "tier", "answer")
)
FIRST_BYTE = Metric(
    f"{PREFIX}.first_byte.duration", "histogram", "s",
    "Time until the client received the first byte of its answer", ("cohort", "tier"),
    (0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0),
)  # fmt: skip
LEDGER_LOST = Metric(f"{PREFIX}.ledger.lost", "counter", "{request}", "Outcomes that the ledger could not store")
EXPLORATIONS = Metric(
    f"{PREFIX}.explorations", "counter", "{request}", "Second requests of --explore, by their outcome",
    ("cohort", "tier", "outcome"),
)  # fmt: skip
FEEDBACK = Metric(
    f"{PREFIX}.feedback", "counter", "{answer}",
    "Feedback of clients. rating: up for a score of 0.5 or more, down for a lower one, none for a label alone",
    ("cohort", "tier", "rating"),
)  # fmt: skip
SIGNALS = Metric(
    f"{PREFIX}.signals", "counter", "{answer}",
    "Answers after which the client asked again, with the cohort and the tier of the first decision",
    ("cohort", "tier", "signal"),
)  # fmt: skip
CACHE_LOOKS = Metric(
    f"{PREFIX}.cache.looks", "counter", "{request}",
    "Requests of cohorts with a cache, by the result: hit, semantic, checked, miss, or why it was not asked",
    ("cohort", "result"),
)  # fmt: skip
CACHE_SAVED = Metric(
    f"{PREFIX}.cache.saved", "counter", "usd",
    "Cost of the answers that the cache served, at the prices of the tiers that gave them", ("cohort", "tier"),
)  # fmt: skip
CACHE_CHECKS = Metric(
    f"{PREFIX}.cache.checks", "counter", "{hit}",
    "Hits that a tier answered, too: right, wrong, or unknown if the answers cannot be compared",
    ("cohort", "result"),
)  # fmt: skip
CACHE_OFF = Metric(
    f"{PREFIX}.cache.off", "gauge", "", "1 while a cohort's cache is off, because too many of its hits were wrong",
    ("cohort",),
)  # fmt: skip
CACHE_BOUND = Metric(
    f"{PREFIX}.cache.bound", "gauge", "",
    "Upper bound (95 %) of the share of a cohort's hits that are wrong; 1 while no hit was checked", ("cohort",),
)  # fmt: skip
MATCHES = Metric(
    f"{PREFIX}.matches", "counter", "{request}",
    "First requests of conversations, by nearest cohort, and whether this match counts or the request falls back",
    ("cohort", "result"),
)  # fmt: skip
NEARNESS = Metric(
    f"{PREFIX}.drift.nearness", "gauge", "",
    "Chance that a request of the last day is nearer to its cohort than a row of the evidence: 0.5 without drift",
    ("cohort",),
)  # fmt: skip
NEARNESS_LIMIT = Metric(
    f"{PREFIX}.drift.limit", "gauge", "",
    "Difference of drift.nearness from 0.5 above which it is drift: 0.1, or more while requests or rows are few",
    ("cohort",),
)  # fmt: skip
LABELS = Metric(
    f"{PREFIX}.labels", "counter", "{answer}",
    "Labels of feedback by nearest cohort, and whether the match was right", ("cohort", "result"),
)  # fmt: skip
LABELS_EXPECTED = Metric(
    f"{PREFIX}.labels.expected", "counter", "{answer}",
    "Sum of the probabilities of the matches that have a label: this many of them should be right", ("cohort",),
)  # fmt: skip
STATE_FAILURES = Metric(
    f"{PREFIX}.state.failures", "counter", "{call}", "Calls to the store of `state` that failed"
)
STATE_AWAY = Metric(
    f"{PREFIX}.state.away", "gauge", "",
    "1 while `state` cannot be reached, so that conversations, limits and budgets are those of one process",
)  # fmt: skip
BUDGET_SPENT = Metric(
    f"{PREFIX}.budget.spent", "gauge", "",
    "Spent share of each budget in this month, with amounts reserved; of budgets per principal the largest one",
    (Key.BUDGET.value,),
)  # fmt: skip
APP = Metric(
    f"{PREFIX}.app", "gauge", "", "1 for each app of the policy, with its labels", (Key.APP.value, Key.TEAM.value)
)
APP_REFUSED = Metric(
    f"{PREFIX}.app.refused", "gauge", "", "1 while the files of an app have mistakes, 0 for every other app",
    (Key.APP.value,),
)  # fmt: skip
KEYS_REFUSED = Metric(
    f"{PREFIX}.keys.refused", "counter", "{request}", "Requests for which an upstream refused the key of a tier",
    ("tier",),
)  # fmt: skip
TIER_ERRORS = Metric(
    f"{PREFIX}.tier.errors", "counter", "{attempt}",
    "Attempts that ended with an error of their tier, by status, or without an answer", ("tier", "status"),
)  # fmt: skip
OPEN_EXCHANGES = Metric(
    f"{PREFIX}.exchanges.open", "gauge", "{exchange}", "Exchanges that the router or the verifier works on now"
)
ENCODER_QUEUE = Metric(f"{PREFIX}.encoder.queue", "gauge", "{text}", "Texts that wait for the encoder")
ENCODER_BUSY = Metric(
    f"{PREFIX}.encoder.busy",
    "counter",
    "s",
    "Time in which the encoder worked; its rate is the saturation",
)
ENCODER_LOOKUPS = Metric(
    f"{PREFIX}.encoder.lookups", "counter", "{text}", "Texts to encode, by the source of the vector",
    ("result",),
)  # fmt: skip
# The metrics of OpenTelemetry's GenAI conventions, with the buckets that they advise. The router is the client of
# the tiers, so the requested model is that of the tier.
_GENAI_LABELS = (
    "gen_ai.operation.name", "gen_ai.provider.name", "gen_ai.request.model", "gen_ai.response.model",
)  # fmt: skip
_GENAI_SECONDS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
GENAI_TOKENS = Metric(
    "gen_ai.client.token.usage", "histogram", "{token}", "Input and output tokens of each answer",
    (*_GENAI_LABELS, "gen_ai.token.type"),
    tuple(float(4**power) for power in range(14)),
)  # fmt: skip
GENAI_DURATION = Metric(
    "gen_ai.client.operation.duration", "histogram", "s", "Duration of each exchange",
    (*_GENAI_LABELS, "error.type"),
    _GENAI_SECONDS,
)  # fmt: skip
GENAI_FIRST_CHUNK = Metric(
    "gen_ai.client.operation.time_to_first_chunk", "histogram", "s", "Time until the first chunk of each stream",
    _GENAI_LABELS, _GENAI_SECONDS,
)  # fmt: skip
REVISION = Metric(f"{PREFIX}.revision", "gauge", "", "1 for the configuration revision in force", ("revision",))
REFUSED = Metric(
    f"{PREFIX}.configuration.refused", "gauge", "",
    "1 while the files on disk are refused, and an older revision serves",
)  # fmt: skip
CANDIDATE_SHARE = Metric(
    f"{PREFIX}.candidate.share", "gauge", "",
    "Share of the conversations that the candidate decides about: 0 after it was stopped, 1 after it was promoted",
    ("revision",),
)  # fmt: skip
GOLDEN_FLIPPED = Metric(
    f"{PREFIX}.golden.flipped", "gauge", "{row}", "Rows of --golden whose cohort is not their label"
)
GOLDEN_ROWS = Metric(f"{PREFIX}.golden.rows", "gauge", "{row}", "Rows of --golden that were replayed last")
CANDIDATE_REFUSED = Metric(
    f"{PREFIX}.candidate.refused",
    "gauge",
    "",
    "1 while the files of the candidate have mistakes, so that it is off",
)
ESCALATION_SHARE = Metric(
    f"{PREFIX}.escalation.share", "gauge", "",
    "Largest share of a cohort's judged answers that may escalate, as its intent sets it", ("cohort",),
)  # fmt: skip

# In the order in which they are created.
METRICS = (
    DECISIONS, STAGE_DURATION, VERDICTS, RULES_UNAVAILABLE, FAILURES, LOOP_LAG, RELOADS, OUTCOMES, REJECTIONS,
    TOKENS, COST, DEFAULT_COST, USAGE_UNKNOWN, FIRST_BYTE, LEDGER_LOST, EXPLORATIONS, FEEDBACK, SIGNALS,
    STATE_FAILURES, KEYS_REFUSED, REVISION, CANDIDATE_SHARE, CANDIDATE_REFUSED, GOLDEN_FLIPPED, GOLDEN_ROWS,
    ESCALATION_SHARE, REFUSED, TIER_ERRORS, OPEN_EXCHANGES, ENCODER_QUEUE, ENCODER_BUSY, ENCODER_LOOKUPS,
    GENAI_TOKENS, GENAI_DURATION, GENAI_FIRST_CHUNK, CACHE_LOOKS, CACHE_SAVED, CACHE_CHECKS, CACHE_OFF,
    STATE_AWAY, BUDGET_SPENT, APP, APP_REFUSED, CACHE_BOUND, MATCHES, NEARNESS, NEARNESS_LIMIT, LABELS,
    LABELS_EXPECTED,
)  # fmt: skip
