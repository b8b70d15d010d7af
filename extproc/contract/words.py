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
                       Reason.BAD_REQUEST, Reason.RESIDENCY, *Undecided})  # fmt: skip


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


class JudgeMode(StrEnum):
    """How Envoy sends an attempt's answer to the verifier."""

    BODY = "body"  # whole
    STREAM = "stream"  # chunk by chunk


class Role(StrEnum):
    """The filter that opened an ext_proc stream: the value of `HeaderName.ROLE`."""

    ROUTER = "router"
    VERIFIER = "verifier"
    RESCUE = "rescue"
