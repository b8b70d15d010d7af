"""The words of the contract: reasons, verdicts and roles."""

from enum import StrEnum


class Reason(StrEnum):
    """Why a request went where it went: exactly one each, spelled the same everywhere it is seen."""

    MATCHED = "matched"  # the cohort's own tier
    RULE = "rule"  # a rule named the tier
    TIER_FLOOR = "tier_floor"  # lifted to the least tier that a cohort or rule allows
    CAPABILITY = "capability"  # lifted past tiers that cannot serve it
    UPGRADE_RATE = "upgrade_rate"  # held to the default tier: its principal has had its share of dearer ones
    PINNED = "pinned"  # the client named a tier's own model
    PASSTHROUGH = "passthrough"  # not ours to route: another model, or no API of ours
    # Fallbacks: we could not decide.
    OUT_OF_SCOPE = "out_of_scope"  # nearer to no cohort than its floor
    AMBIGUOUS = "ambiguous"  # two cohorts too close to call
    NO_TEXT = "no_text"  # nothing a person wrote
    UNREADABLE = "unreadable"  # not JSON of the API's shape
    DEADLINE = "deadline"  # the encoder took too long, or had too much to do
    ENCODER = "encoder_error"  # the encoder failed

    @property
    def is_fallback(self) -> bool:
        """Whether the default tier serves because no decision could be made."""
        return self in _FALLBACKS


_FALLBACKS = frozenset(list(Reason)[list(Reason).index(Reason.OUT_OF_SCOPE) :])


class Undecided(StrEnum):
    """What stands for a reason where the router decided nothing."""

    FAIL_OPEN = "fail_open"  # Envoy went on without the router, to the default tier
    NONE = "none"  # in the ledger: nothing was sent to an upstream


class VerdictWord(StrEnum):
    """What became of one attempt's answer."""

    ACCEPT = "accept"
    ESCALATE = "escalate"  # rejected: Envoy asks the next tier
    DEGRADED = "degraded"  # rejected or not judged to its end, and served all the same
    HUMAN = "human"  # rejected, and put aside for a person
    RECORDED = "recorded"  # rejected after it had left for the client
    RESCUED = "rescued"  # rejected, and served after all because every tier above failed


class Bound(StrEnum):
    """What kept a rejected answer from escalating."""

    LAST_RUNG = "last_rung"
    COHORT_SHARE = "cohort_share"
    PRINCIPAL_RATE = "principal_rate"


class JudgeMode(StrEnum):
    """How an attempt's answer reaches the verifier."""

    BODY = "body"  # whole
    STREAM = "stream"  # chunk by chunk


class Role(StrEnum):
    """Which of our filters opened an ext_proc stream: the value of `HeaderName.ROLE`."""

    ROUTER = "router"
    VERIFIER = "verifier"
    RESCUE = "rescue"
