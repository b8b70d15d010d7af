"""The values of the YAML. `config` decodes YAML into these structs, and every package reads them.

Every field has its description in `about`. The JSON Schema for editors (`extproc schema`) and the reference of the
YAML are made from these descriptions.
"""

from extproc.settings.about import about
from extproc.settings.address import USUAL_BASE, Address, read_url
from extproc.settings.evidence import ByPrompt, Chosen, Evidence, Probability
from extproc.settings.params import NO_PARAMS, Efforts, Params
from extproc.settings.policy import (
    HUMAN,
    OTHERWISE,
    SHARE,
    Budget,
    Candidate,
    Conditions,
    EncoderConfig,
    Escalate,
    Escalations,
    Human,
    Judge,
    Otherwise,
    Reasoning,
    Rule,
    RungSpec,
    StreamHold,
    Timeouts,
    Upgrades,
)
from extproc.settings.tier import (
    AGENT_CAPABILITIES,
    CAPABILITIES,
    NO_SCHEME,
    Dialect,
    Endpoint,
    Price,
    Retry,
    Tier,
    TierApi,
    TierKey,
    TierTimeouts,
)

__all__ = [
    "AGENT_CAPABILITIES",
    "CAPABILITIES",
    "HUMAN",
    "NO_PARAMS",
    "NO_SCHEME",
    "OTHERWISE",
    "SHARE",
    "USUAL_BASE",
    "Address",
    "Budget",
    "ByPrompt",
    "Candidate",
    "Chosen",
    "Conditions",
    "Dialect",
    "Efforts",
    "EncoderConfig",
    "Endpoint",
    "Escalate",
    "Escalations",
    "Evidence",
    "Human",
    "Judge",
    "Otherwise",
    "Params",
    "Price",
    "Probability",
    "Reasoning",
    "Retry",
    "Rule",
    "RungSpec",
    "StreamHold",
    "Tier",
    "TierApi",
    "TierKey",
    "TierTimeouts",
    "Timeouts",
    "Upgrades",
    "about",
    "read_url",
]
