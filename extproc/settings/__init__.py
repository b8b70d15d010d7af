"""The values of the YAML. `config` decodes YAML into these structs, and every package reads them.

Every field has its description in `about`. The JSON Schema for editors (`extproc schema`) and the reference of the
YAML are made from these descriptions.
"""

from extproc.settings.about import about
from extproc.settings.address import USUAL_BASE, Address, read_url
from extproc.settings.apps import HARD_FACTOR, REFUSE, TEAM, App, UsdBudget
from extproc.settings.cache import AnswerCache
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
    "HARD_FACTOR",
    "HUMAN",
    "NO_PARAMS",
    "NO_SCHEME",
    "OTHERWISE",
    "REFUSE",
    "SHARE",
    "TEAM",
    "USUAL_BASE",
    "Address",
    "AnswerCache",
    "App",
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
    "UsdBudget",
    "about",
    "read_url",
]
