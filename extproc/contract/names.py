"""The names of the contract: versions and limits, namespaces and keys of metadata, headers, attributes."""

from enum import StrEnum

CONTRACT = 1  # version of all these names; see the package
DECISION_LOG = 1  # version of the lines that Envoy logs of every exchange: docs/decision-log.schema.json

# Envoy's cluster without hosts, for requests that no tier may get. No tier can have this name.
REFUSING_CLUSTER = "only:refuse"
# The revision of a candidate begins with this, so that the ledger tells both arms apart.
CANDIDATE_PREFIX = "candidate-"
# The header of the trace context, and a tag with its value in the ledger's access log.
TRACEPARENT = "traceparent"
# The header by which a client, Envoy and the ledger name a request.
REQUEST_ID = "x-request-id"
# The start of all our names: namespaces, metrics, spans and their attributes.
PREFIX = "semantic_router"


class Namespace(StrEnum):
    """Namespaces of Envoy's dynamic metadata. Each comment names the records that are written there."""

    DECISION = PREFIX  # DecisionRecord, CascadeRecord, JudgedRecord; later VerdictRecord
    LADDER = f"{PREFIX}.ladder"  # `ladder_of`: the cluster of each attempt
    RUNGS = f"{PREFIX}.rungs"  # RungsRecord
    REQUIREMENTS = f"{PREFIX}.facts"  # RequirementsRecord; never logged
    ANSWER = f"{PREFIX}.answer"  # AnswerRecord; never logged
    LEDGER = f"{PREFIX}.ledger"  # LedgerRecord
    ATTEMPT = f"{PREFIX}.attempt"  # AttemptsRecord, from the second attempt on; Envoy writes it
    CONVERSATION = f"{PREFIX}.conversation"  # ConversationRecord; never logged
    CACHE = f"{PREFIX}.cache"  # CacheRecord; never logged
    PACKED = f"{PREFIX}.packed"  # PackedRecord, for a body that the client compressed with gzip; Envoy writes it
    # Envoy writes this one, as a typed message: the tokens of the answer that the client received.
    USAGE = "envoy.ai.token_usage"


# Envoy's word for how a request ended (its response code details) where our processes answered the client.
ANSWERED = PREFIX
# Static metadata of the routes. Its key `path` has the path of the API behind the base URL of an upstream.
ROUTE_NAMESPACE = f"{PREFIX}.route"


class HeaderPrefix(StrEnum):
    """Envoy removes headers with these prefixes from client requests."""

    ROUTER = "x-router-"
    CASCADE = "x-cascade-"
    ENVOY = "x-envoy-"


class HeaderName(StrEnum):
    """Headers that our processes and Envoy set or read."""

    # Request headers.
    CLUSTER = "x-router-cluster"
    LADDER = "x-router-ladder"  # only before Envoy 1.40: the clusters of this request's ladder
    MAX_RETRIES = "x-envoy-max-retries"
    ATTEMPT_COUNT = "x-envoy-attempt-count"
    # Response headers.
    FAILED = "x-router-failed"  # only between attempts: this status makes Envoy ask the next tier
    COHORT = "x-router-cohort"
    REASON = "x-router-reason"
    TIER = "x-router-tier"
    ATTEMPTS = "x-router-attempts"
    ESCALATIONS = "x-router-escalations"
    VERDICT = "x-cascade-verdict"
    VERDICT_REASON = "x-cascade-reason"
    CACHE = "x-router-cache"
    # Metadata of the gRPC stream between Envoy and us. The value is a Role.
    ROLE = "x-role"
    # The same, for a verifier: Envoy itself counts the tokens of the answer. The value is COUNTS_TOKENS.
    COUNTS = "x-counts"
    # The same: Envoy itself reads how an answer ends. The value is READS_ENDINGS.
    ENDINGS = "x-endings"


COUNTS_TOKENS = "tokens"
READS_ENDINGS = "read"
# A regular expression that matches the two headers that a verifier writes.
VERDICT_HEADERS = f"{HeaderPrefix.CASCADE}(verdict|reason)"


class Key(StrEnum):
    """Metadata keys that Envoy's configuration or our metrics name. Each is a field of a record."""

    # In Namespace.DECISION.
    CLUSTER = "cluster"
    TIER = "tier"  # also a key of a tier's endpoint metadata, and a tag in the access log
    REASON = "reason"
    REVISION = "revision"
    MODE = "mode"
    COHORT = "cohort"
    COUNTED_AS = "counted_as"
    CANDIDATE_TIER = "candidate_tier"
    CANDIDATE_COHORT = "candidate_cohort"
    APP = "app"
    TEAM = "team"
    BUDGET = "budget"
    MAX_RETRIES = "max_retries"
    ESCALATIONS = "escalations"
    JUDGE = "judge"
    SKIPPED = "skipped"
    VERDICT = "verdict"
    VERDICT_REASON = "verdict_reason"
    BOUND = "bound"
    CACHE = "cache"
    CACHE_TIER = "cache_tier"
    # In Namespace.RUNGS. In Namespace.ATTEMPT it is the number of the current attempt.
    ATTEMPTS = "attempts"
    # In Namespace.ATTEMPT.
    DETOURS = "detours"
    MADE = "made"
    AT = "at"
    LENGTH = "length"
    TEXT = "text"
    # In Namespace.ANSWER.
    BODY = "body"
    # In Namespace.LEDGER. The principal is also in Namespace.CONVERSATION.
    PRINCIPAL = "principal"
    SESSION = "session"
    KEY_REFUSED = "key_refused"  # Envoy writes it
    FAILED = "failed"  # Envoy writes it, with the number of the attempt behind it: the tier, a space, the status
    CHANCES = "chances"
    EXPLORED = "explored"
    HIT = "hit"
    CHARGE = "charge"
    OPEN = "open"
    # In Namespace.PACKED.
    END = "end"
    # In Namespace.CONVERSATION.
    CONVERSATION = "conversation"
    KEPT = "kept"


# The gRPC method by which Envoy reports the tier of an answer and the id of a response.
ANSWERED_SERVICE, ANSWERED_METHOD = f"{PREFIX}.Conversations", "Answered"
# The gRPC method that `extproc status` calls. The reply is JSON.
STATUS_SERVICE, STATUS_METHOD = f"{PREFIX}.Status", "Get"
# The name of the health service that says whether the files on disk serve.
FILES_HEALTH = "configuration"

# Attributes that Envoy sends with the first message of a stream.
PATH_ATTRIBUTE = "request.path"
HOST_ATTRIBUTE = "request.host"
HEADER_ATTRIBUTE = "request.headers['{}']"
ATTEMPT_ATTRIBUTE = "upstream.request_attempt_count"
# The tier of this attempt, from its endpoint's metadata.
TIER_ATTRIBUTE = f"xds.upstream_host_metadata.filter_metadata['{Namespace.DECISION}']['{Key.TIER}']"
