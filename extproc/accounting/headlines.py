"""The sentences on top of a report of the ledger: the saving, and the gaps in the ledger."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from extproc.accounting.outcome import Unjudged

# Amounts below this share of the cost are not worth a word.
_SMALL = 0.005
# At most this many names in a sentence: there may be thousands of callers.
_NAMED = 5


class Sums(Protocol):
    """The sums of one line that the sentences need."""

    @property
    def name(self) -> str: ...
    @property
    def requests(self) -> int: ...
    @property
    def attempts(self) -> int: ...
    @property
    def accepted(self) -> int: ...
    @property
    def judged(self) -> int: ...
    @property
    def cost(self) -> float: ...
    @property
    def cascade_cost(self) -> float: ...
    @property
    def cost_per_accepted(self) -> float | None: ...
    @property
    def saving(self) -> float: ...
    @property
    def unknown(self) -> int: ...
    @property
    def unjudged(self) -> Mapping[str, int]: ...


def report_headlines(total: Sums, groups: Sequence[Sums]) -> list[str]:
    """The verdicts on a report, the one on money first."""
    if not total.requests:
        return ["NO TRAFFIC: no request ended in this time"]
    return [*_on_money(total), *_on_groups(groups), *_on_gaps(total)]


def _on_money(total: Sums) -> Iterator[str]:
    alone = total.saving + total.cost  # the cost of the same tokens at the default tier
    if total.cost <= 0 and alone <= 0:
        return
    per = "" if total.cost_per_accepted is None else f", ${total.cost_per_accepted:,.6f} for each accepted answer"
    cost = f"These requests cost ${total.cost:,.4f}{per}"
    if total.cascade_cost:
        cost += f". Rejected answers are {100 * total.cascade_cost / total.cost:.0f} % of the cost"
    share = total.saving / alone if alone > 0 else -1.0
    if share > _SMALL:
        yield f"SAVES: ${total.saving:,.4f} ({100 * share:.0f} %) against the default tier alone. {cost}"
    elif share < -_SMALL:
        more = f" ({-100 * share:.0f} %)" if alone > 0 else ""
        yield f"COSTS MORE: ${-total.saving:,.4f}{more} more than the default tier alone. {cost}"
    else:
        yield f"NO SAVING: the same as the default tier alone. {cost}"


def _on_groups(groups: Sequence[Sums]) -> Iterator[str]:
    losing = [group for group in groups if group.saving < -_SMALL * group.cost and group.cascade_cost > 0]
    if losing:
        losing.sort(key=lambda group: group.saving)
        names = ", ".join(f"{group.name} (${-group.saving:,.4f})" for group in losing[:_NAMED])
        names += f" and {len(losing) - _NAMED:,} more" if len(losing) > _NAMED else ""
        yield f"CHECK: with their rejected answers, these cost more than the default tier alone: {names}"


def _on_gaps(total: Sums) -> Iterator[str]:
    if total.unknown:
        count = f"{total.unknown:,} of {total.attempts:,} attempts"
        yield f"UNKNOWN: {count} have no token counts, so no sum has their cost"
    # A kept answer was judged when it was new.
    unjudged = total.accepted - total.judged - total.unjudged.get(Unjudged.CACHED, 0)
    if unjudged:
        yield f"NOT JUDGED: no rule looked at {unjudged:,} of {total.accepted:,} accepted answers"
