"""Money and applications: how much may be spent, and what differs for the requests of one application."""

from typing import Annotated, Literal

import msgspec

from extproc.settings.about import about
from extproc.settings.tier import TierApi

REFUSE = "refuse"  # in place of a tier
# How much the tier of `over` may spend, too, before requests are refused: this many times the budget in all.
HARD_FACTOR = 2
TEAM = "team"  # the label by which reports and budgets group apps


class UsdBudget(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A limit on the money that requests may cost."""

    usd_month: Annotated[float, about("US dollars that may be spent in each calendar month (UTC).")]
    over: Annotated[
        str,
        about(
            "The reaction when the money is spent. A tier: requests go to this tier, or to a cheaper one that they "
            "would have had anyway. At twice the budget they are answered 429. `refuse`: they are answered 429 "
            "instead."
        ),
    ]
    per: Annotated[
        Literal["all", "team", "principal"],
        about(
            "all: the requests share the budget. principal: each principal has its own. team: the apps with the "
            "same label `team` share it."
        ),
    ] = "all"


class App(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The settings of one application. A key that is left out is as in the rest of the policy."""

    hosts: Annotated[
        tuple[str, ...],
        about(
            "Hosts of its requests, in lower case and without a port. `*.example.com` stands for every subdomain."
        ),
    ] = ()
    headers: Annotated[
        dict[str, str] | None,
        about(
            "Request headers that its requests have: the name in lower case, and a pattern with * and ?. Use only "
            "headers that your own edge sets. With `hosts`, both must hold."
        ),
    ] = None
    intents: Annotated[
        str,
        about(
            "Folder with the app's own intent files, and with its centroids and _background.yaml if it has them. "
            "It has no policy.yaml. A relative path starts at the YAML's folder. Left out: the intents beside the "
            "policy."
        ),
    ] = ""
    default_tier: Annotated[
        str | dict[TierApi, str] | None,
        about("Tier that serves when no decision can be made: one tier, or one for each API."),
    ] = None
    tiers: Annotated[
        tuple[str, ...] | None,
        about("The only tiers that may get its requests, on every path. Left out: every tier."),
    ] = None
    budget: Annotated[
        UsdBudget | None, about("The budget of its requests. The policy's own budget holds for them, too.")
    ] = None
    labels: Annotated[
        dict[str, str],
        about("Labels for metrics, as in `{team: search}`. Reports and budgets can group apps by `team`."),
    ] = {}

    @property
    def team(self) -> str | None:
        """The team that the app belongs to."""
        return self.labels.get(TEAM)
