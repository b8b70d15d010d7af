"""The words of the contract: reasons, verdicts and roles."""

from enum import StrEnum


class Reason(StrEnum):
    """Why a tier was chosen. Each decision has one reason, spelled the same in metrics, logs and headers."""

    MATCHED = "matched"  # the tier of the cohort
    BY_PROMPT = "by_prompt"  # the tier of the cohort's two that the predicted gain of the prompt chose
    RULE = "rule"  # a rule named the tier
    BACKGROUND = "background"  # a call that an agent makes by itself: the cheapest tier that can serve it
    TIER_FLOOR = "tier_floor"  # raised to the lowest tier that a cohort or rule allows
    CAPABILITY = "capability"  # raised above tiers that cannot serve the request
    BOUND = "bound"  # kept at the tier that answered the conversation last
    UPGRADE_RATE = "upgrade_rate"  # limited to the default tier: the principal has used up its upgrades
    BUDGET = "budget"  # lowered to the tier of a budget that is used up, or answered with 429
    RESIDENCY = "residency"  # moved to a tier of `only`, or answered with 503 because none of them can serve
    PINNED = "pinned"  # the client named the model of a tier
    PASSTHROUGH = "passthrough"  # not routed: a model that may not be replaced, or an unknown API
    BAD_REQUEST = "bad_request"  # answered with 400: no upstream may get this body
    # Fallbacks: no decision could be made.
    OUT_OF_SCOPE = "out_of_scope"  # no cohort is as near as its floor requires
    AMBIGUOUS = "ambiguous"  # two cohorts are about equally near
    ABSTAINED = "abstained"  # the cohort's matches are too often wrong for the risk that was calibrated
    NO_TEXT = "no_text"  # the request has no text from a person
    UNREADABLE = "unreadable"  # the body is empty, or has more messages or members than the router reads
    DEADLINE = "deadline"  # the encoder took too long or was overloaded
    ENCODER = "encoder_error"  # the encoder failed
    APP_OFF = "app_off"  # the intents of its app have mistakes; answered with 503 if they may confine requests

    @property
    def is_fallback(self) -> bool:
        """Whether the default tier serves because no decision could be made."""
        return self in _FALLBACKS


_FALLBACKS = frozenset(list(Reason)[list(Reason).index(Reason.OUT_OF_SCOPE) :])


class Course(StrEnum):
    """Whether a conversation stays at the tier that answered it last, and why."""

    KEPT = "kept"  # the decision is for the same tier
    KEPT_SEALED = "kept_sealed"  # only that tier can read the state in the request
    KEPT_TOOL_LOOP = "kept_tool_loop"  # the model continues its own turn
    KEPT_CACHE = "kept_cache"  # the budget does not pay for the prompt cache that a switch gives up
    MOVED = "moved"  # the reason of the decision says why
    MOVED_STRIPPED = "moved_stripped"  # and sealed items were removed from the request
    LOST = "lost"  # the request has state of an unknown tier


class Undecided(StrEnum):
    """The ledger's and Envoy's word in place of a reason when the router made no decision."""

    FAIL_OPEN = "fail_open"  # Envoy sent the request to the default tier without the router
    NONE = "none"  # the request was not sent to any upstream


# In reports, metrics and headers these words stand in the place of a cohort for requests that belong to none. No
# intent can have one of these names.
NOT_A_COHORT = frozenset({*_FALLBACKS, Reason.BACKGROUND, Reason.PINNED, Reason.PASSTHROUGH, Reason.BOUND,
                       Reason.BAD_REQUEST, Reason.RESIDENCY, Reason.BUDGET, *Undecided})  # fmt: skip


LOCAL = "local"  # limits and budgets were those of one process


class VerdictWord(StrEnum):
    """The outcome of one attempt's answer."""

    ACCEPT = "accept"
    ESCALATE = "escalate"  # rejected; Envoy asks the next tier
    DEGRADED = "degraded"  # rejected or not fully judged, but served
    HUMAN = "human"  # rejected and queued for a person
    RECORDED = "recorded"  # rejected after the client had received it
    RESCUED = "rescued"  # rejected, but served because every higher tier failed


class Bound(StrEnum):
    """The limit that stopped a rejected answer from escalating."""

    LAST_RUNG = "last_rung"
    COHORT_SHARE = "cohort_share"
    PRINCIPAL_RATE = "principal_rate"


class CacheWord(StrEnum):
    """What the cache did for a request of a cohort that has one, and why."""

    HIT = "hit"  # the same ask in the same words was answered before
    SEMANTIC = "semantic"  # the same question in other words was answered before
    CHECKED = "checked"  # a hit that a tier answers, too, to count wrong hits
    MISS = "miss"  # not answered before, or not with an answer that was accepted
    CLIENT = "client"  # `cache-control` of the client forbids it
    PERSONAL = "personal"  # the request is about one person, or names an account
    MOMENT = "moment"  # the answer depends on the day or the hour
    SAMPLING = "sampling"  # the client asks for another answer each time
    FORM = "form"  # more than one text is asked for, or the request has state, media or hosted tools
    ANONYMOUS = "anonymous"  # no header names the principal, and `scope` is principal
    OFF = "off"  # too many hits of the cohort were wrong


# A tier gave no answer for these.
CACHE_HITS = frozenset({CacheWord.HIT, CacheWord.SEMANTIC})


class JudgeMode(StrEnum):
    """How Envoy sends an attempt's answer to the verifier."""

    BODY = "body"  # whole
    STREAM = "stream"  # chunk by chunk


class Signal(StrEnum):
    """What happened after an answer. Each belongs to the request that was answered."""

    FEEDBACK = "feedback"  # a person rated the answer, or named the right cohort
    RE_ASKED = "re_asked"  # the conversation went on with almost the same ask
    EDITED = "edited"  # the same turn was sent again, with a changed ask
    REPEATED = "repeated"  # the same turn was sent again, unchanged
    ABANDONED = "abandoned"  # the client left before the end of the stream


class Role(StrEnum):
    """The filter that opened an ext_proc stream: the value of `HeaderName.ROLE`."""

    ROUTER = "router"
    VERIFIER = "verifier"
    RESCUE = "rescue"
