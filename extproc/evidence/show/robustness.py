"""The effects of rewritten requests, as text for a terminal."""

import textwrap
from collections.abc import Iterator, Sequence

from extproc.evidence.perturb.robustness import Effect, Robustness
from extproc.evidence.show.estimate import number, percent

# The meaning of each column, and the rows that its shares are of.
COLUMNS = {
    "flipped": "routed to another cohort or tier, of all rows",
    "upgraded": "moved to a more expensive tier, of the rows below the most expensive one",
    "downgraded": "moved to a cheaper tier, of the rows above the cheapest one",
    "above": "moved above the default tier, of the rows at or below it",
    "capped": "the same after the principal has used its upgrades",
    "routed right": "of the labelled rows, with the change in percentage points",
}


def robustness_text(robustness: Robustness) -> Iterator[str]:
    """The effects by kind of change, in lines of at most 116 characters."""
    yield from effects_table(robustness.effects)
    for note in robustness.notes:
        yield from textwrap.wrap(f"note      {note}", 116, subsequent_indent=" " * 10)


def effects_table(effects: Sequence[Effect]) -> Iterator[str]:
    """One line per kind of change, below a line for each column."""
    capped = any(effect.above_capped.known for effect in effects)
    yield "rewritten requests: shares of rows in %, with [95 % intervals]"
    for name, meaning in COLUMNS.items():
        if capped or name != "capped":
            yield f"  {name:<14}{meaning}"
    yield (
        f"{'kind of change':<30}{'rows':>5}  {'flipped':<20}{'upgraded':<20}{'downgraded':>10}{'above':>7}"
        f"{'capped' if capped else '':>7}  routed right"
    )
    for e in effects:
        moved = f"{number(e.downgraded, 100):>10}{number(e.above, 100):>7}"
        moved += f"{number(e.above_capped, 100) if capped else '':>7}"
        right = f"{number(e.right, 100)} ({100 * e.change.value:+z.1f})" if e.right.known else "-"
        yield f"{e.kind[:29]:<30}{e.rows:>5}  {percent(e.flipped):<20}{percent(e.upgraded):<20}{moved}  {right}"
