"""The names of the contract: versions and limits, namespaces and keys of metadata, headers, attributes."""

from enum import StrEnum

CONTRACT = 1  # version of all these names; see the package
DECISION_LOG = 1  # version of the lines that Envoy logs of every exchange: docs/decision-log.schema.json
# What a client may send; Envoy answers 413 above it. Of a FULL_DUPLEX_STREAMED body, which is ours to hold, what
# is longer goes on unrouted.
MAX_BODY_BYTES = 8 * 1024 * 1024

# Every name of ours begins so: namespaces, metrics, spans and their attributes.
PREFIX = "semantic_router"


class Namespace(StrEnum):
    """Where Envoy keeps our dynamic metadata."""

    DECISION = PREFIX  # DecisionRecord, CascadeRecord and JudgedRecord; VerdictRecord is added later
    LADDER = f"{PREFIX}.ladder"  # `ladder_of`: where each attempt goes
    RUNGS = f"{PREFIX}.rungs"  # RungsRecord
    REQUIREMENTS = f"{PREFIX}.facts"  # RequirementsRecord; never logged
    ANSWER = f"{PREFIX}.answer"  # AnswerRecord; never logged
    LEDGER = f"{PREFIX}.ledger"  # LedgerRecord
    USAGE = "envoy.ai.token_usage"  # typed, Envoy's own: the tokens of the answer that it passed on


class HeaderPrefix(StrEnum):
    """Clients cannot send headers that begin so."""

    ROUTER = "x-router-"
    CASCADE = "x-cascade-"
    ENVOY = "x-envoy-"


class HeaderName(StrEnum):
    """HTTP headers by which we and Envoy talk."""

    # Of the request.
    CLUSTER = "x-router-cluster"
    LADDER = "x-router-ladder"  # before Envoy 1.40 only: the clusters of this request's ladder
    MAX_RETRIES = "x-envoy-max-retries"
    ATTEMPT_COUNT = "x-envoy-attempt-count"
    # Of the response.
    COHORT = "x-router-cohort"
    REASON = "x-router-reason"
    TIER = "x-router-tier"
    ATTEMPTS = "x-router-attempts"
    ESCALATIONS = "x-router-escalations"
    VERDICT = "x-cascade-verdict"
    VERDICT_REASON = "x-cascade-reason"
    # Of the ext_proc stream itself: a Role.
    ROLE = "x-role"


# A regular expression for the two headers that a verifier writes.
VERDICT_HEADERS = f"{HeaderPrefix.CASCADE}(verdict|reason)"


class Key(StrEnum):
    """Keys that something reads by name outside this module: Envoy, or a label. Each is a field of a record."""

    # Under Namespace.DECISION.
    CLUSTER = "cluster"
    TIER = "tier"  # also in the metadata of a tier's endpoints, and as a tag of the access log
    REASON = "reason"
    REVISION = "revision"
    MODE = "mode"
    COHORT = "cohort"
    MAX_RETRIES = "max_retries"
    ESCALATIONS = "escalations"
    JUDGE = "judge"
    SKIPPED = "skipped"
    VERDICT = "verdict"
    VERDICT_REASON = "verdict_reason"
    BOUND = "bound"
    # Under Namespace.RUNGS.
    ATTEMPTS = "attempts"
    AT = "at"
    LENGTH = "length"
    TEXT = "text"
    # Under Namespace.ANSWER.
    BODY = "body"
    # Under Namespace.LEDGER.
    PRINCIPAL = "principal"
    SESSION = "session"


# Attributes that Envoy sends with the first message of a stream.
PATH_ATTRIBUTE = "request.path"
HEADER_ATTRIBUTE = "request.headers['{}']"
ATTEMPT_ATTRIBUTE = "upstream.request_attempt_count"
# The tier of this attempt, from its endpoint's metadata.
TIER_ATTRIBUTE = f"xds.upstream_host_metadata.filter_metadata['{Namespace.DECISION}']['{Key.TIER}']"
