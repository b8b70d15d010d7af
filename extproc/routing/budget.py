"""Budgets: which ones hold for a request, what it is expected to cost, and which tiers it may still have. No I/O.

Amounts are whole nanodollars, so that sums in a store are exact. A request reserves its expected cost in each of
its budgets before it is sent. When it is over, the real cost takes the place of that amount. If its end is never
reported, the reserved amount stays.
"""

import calendar
import time
from collections.abc import Collection, Mapping, Sequence

import msgspec

from extproc.routing.policy import Policy
from extproc.settings import HARD_FACTOR, REFUSE, App, Price, UsdBudget

NANO = 10**9
_EACH = "/principal"  # at the end of the name of a budget of each principal
# The output of a tier before it has answered, in tokens. Then it is the mean of its answers so far.
_USUAL_OUTPUT = 1024.0
# Weight of the newest answer in that mean.
_NEWEST = 0.05
# A reservation covers an answer that is this many times as long as the mean.
_LONG = 2


class BudgetSpec(msgspec.Struct, frozen=True):
    """One budget of a policy or of an app."""

    name: str  # "all", "team/search", "app/support": the label of its metrics
    limit: int
    over: str | None  # the tier; None: requests are refused
    per_principal: bool = False

    @property
    def whose(self) -> tuple[str, str]:
        """Whose requests have it: "all", "app" or "team", and the name of the app or of the team."""
        kind, _, name = (self.name.removesuffix(_EACH) if self.per_principal else self.name).partition("/")
        return kind, name

    def key(self, principal: str, month: str) -> str:
        """The key of its sum in the store."""
        return f"{month}:{self.name}:{principal}" if self.per_principal else f"{month}:{self.name}"


class Claim(msgspec.Struct, frozen=True):
    """The sum of one budget, and how far it may go for this request."""

    key: str
    limit: int


class Charge(msgspec.Struct, frozen=True, array_like=True):
    """The reserved amount of a request, as it travels with the request."""

    amount: int
    keys: tuple[str, ...]

    def to_text(self) -> str:
        """Return one line of text."""
        return " ".join((str(self.amount), *self.keys))

    @classmethod
    def from_text(cls, text: str) -> "Charge | None":
        """Read the text. None: it is damaged."""
        amount, *keys = text.split(" ")
        if not (amount.isascii() and amount.isdigit() and len(amount) <= 18 and keys and all(keys)):
            return None
        return cls(int(amount), tuple(keys))


class Payment(msgspec.Struct, frozen=True):
    """How a request is paid for."""

    charge: Charge | None = None  # None: no budget holds for it, or none pays for it
    budget: str | None = None  # the first budget that is used up
    local: bool = False  # only the sums of this process were asked
    retry_after_s: int = 0  # for a request that no budget pays for


class Outputs:
    """The mean length of the answers of each tier, in tokens."""

    def __init__(self) -> None:
        self._means: dict[str, float] = {}

    def note(self, tier: str, tokens: int) -> None:
        """Note the length of an answer."""
        mean = self._means.get(tier, _USUAL_OUTPUT)
        self._means[tier] = mean + _NEWEST * (tokens - mean)

    def expected(self, tier: str, cap: int | None) -> int:
        """Return the tokens to reserve for an answer. `cap` is the largest number that the request allows."""
        tokens = round(_LONG * self._means.get(tier, _USUAL_OUTPUT))
        return tokens if cap is None else min(tokens, max(cap, 0))


def specs_of(budget: UsdBudget | None, app_name: str = "", app: App | None = None) -> tuple[BudgetSpec, ...]:
    """The budgets of a request: that of the policy, then that of its app."""
    pairs = [("", None, budget), (app_name, app, app.budget if app is not None else None)]
    return tuple(_spec(name, of, value) for name, of, value in pairs if value is not None)


def _spec(app_name: str, app: App | None, budget: UsdBudget) -> BudgetSpec:
    name = f"app/{app_name}" if app is not None else "all"
    if budget.per == "team" and app is not None:
        name = f"team/{app.team}"
    over = None if budget.over == REFUSE else budget.over
    per_principal = budget.per == "principal"
    return BudgetSpec(f"{name}{_EACH}" if per_principal else name, nano(budget.usd_month), over, per_principal)


def nano(usd: float) -> int:
    """US dollars in nanodollars."""
    return round(usd * NANO)


def month_of(now_s: float) -> str:
    """The calendar month, as in 2026-11."""
    return time.strftime("%Y-%m", time.gmtime(now_s))


def seconds_left(now_s: float) -> int:
    """The seconds until the next month begins."""
    year, month = time.gmtime(now_s)[:2]
    start = (year + month // 12, month % 12 + 1, 1, 0, 0, 0, 0, 0, 0)
    return max(1, int(_epoch(start) - now_s) + 1)


def month_start(now_s: float) -> float:
    """The time at which the month began."""
    year, month = time.gmtime(now_s)[:2]
    return _epoch((year, month, 1, 0, 0, 0, 0, 0, 0))


def _epoch(moment: tuple[int, ...]) -> float:
    return calendar.timegm(moment)


def claims(specs: Sequence[BudgetSpec], full: Collection[int], principal: str, month: str) -> list[Claim] | None:
    """The sums to reserve from. The budgets in `full` are used up, and their tier may spend the same amount again.

    None: one of these has no tier.
    """
    if any(specs[i].over is None for i in full):
        return None
    factors = [HARD_FACTOR if i in full else 1 for i in range(len(specs))]
    return [
        Claim(spec.key(principal, month), spec.limit * factor) for spec, factor in zip(specs, factors, strict=True)
    ]


def ceiling_of(specs: Sequence[BudgetSpec], full: Collection[int], policy: Policy) -> int:
    """The highest rank that the budgets that are used up allow."""
    return min(policy.rank(over) for i in full if (over := specs[i].over) is not None)


def cost(price: Price, input_tokens: int, output_tokens: int) -> int:
    """The cost of a request without a warm prompt cache."""
    return round((input_tokens * price.input + output_tokens * price.output) * 1000)


def shares(specs: Sequence[BudgetSpec], totals: Mapping[str, int], month: str) -> dict[str, float]:
    """The spent share of each budget. A budget per principal has the largest share of a principal.

    Exporters ask from other threads, while requests change the sums.
    """
    found: dict[str, float] = {}
    for spec in specs:
        prefix = f"{month}:{spec.name}:"
        sums = (
            [total for key, total in [*totals.items()] if key.startswith(prefix)]
            if spec.per_principal
            else [totals.get(spec.key("", month), 0)]
        )
        found[spec.name] = max(sums, default=0) / spec.limit if spec.limit else 1.0
    return found
