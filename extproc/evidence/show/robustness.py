"""What flips under other words, as text for a terminal."""

import textwrap
from collections.abc import Iterator

from extproc.evidence.perturb.robustness import Robustness
from extproc.evidence.show.estimate import number, percent


def robustness_text(found: Robustness) -> Iterator[str]:
    """What flipped, by kind of change, and the words of the gadgets."""
    bounded = any(effect.held.known for effect in found.effects)
    yield (
        f"{'changed, % [95 %]':<30}{'rows':>5}  {'flipped':<20}{'to a dearer tier':<20}{'above':>6}"
        f"{'held' if bounded else '':>6}{'cheaper':>9}  routed right"
    )
    for e in found.effects:
        held = number(e.held, 100) if bounded else ""
        moved = f"{number(e.above, 100):>6}{held:>6}{number(e.downgraded, 100):>9}"
        right = f"{number(e.right, 100)} ({100 * e.change.value:+.1f})" if e.right.known else "-"
        yield f"{e.kind[:29]:<30}{e.rows:>5}  {percent(e.flipped):<20}{percent(e.upgraded):<20}{moved}  {right}"
    yield from (f"{e.kind}: {e.gadget!r}" for e in found.effects if e.gadget)
    for note in found.notes:
        yield from textwrap.wrap(f"note      {note}", 116, subsequent_indent=" " * 10)
