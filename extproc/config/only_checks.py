"""Mistakes in the sets of tiers in `only`."""

from collections.abc import Iterator, Sequence

from extproc.config.schema import Intent
from extproc.mismatch import suggestion
from extproc.settings import Rule


def check_only(item: Intent | Rule, at: str, tiers: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield (path, what is wrong) for the keys `only` and `otherwise` of an intent or a rule."""
    if item.only is None:
        if item.otherwise is not None:
            yield f"{at}.otherwise", "`otherwise` without `only` does nothing: add `only` with the allowed tiers"
        return
    if not item.only:
        yield f"{at}.only", "`only` is an empty list, so every request would be refused: name at least one tier"
        return
    for i, name in enumerate(item.only):
        if tiers and name not in tiers:
            yield f"{at}.only[{i}]", f"no tier is called `{name}`: {suggestion(name, tiers)}"
    for key, name in _named_tiers(item):
        if name in tiers and name not in item.only:
            yield f"{at}.{key}", f"tier `{name}` is not in `only`: add it there, or name one of its tiers"
    highest = max((tiers.index(name) for name in item.only if name in tiers), default=len(tiers))
    if item.tier_floor in tiers and tiers.index(item.tier_floor) > highest:
        what = f"all tiers of `only` are below the floor `{item.tier_floor}`, so every request would be refused"
        yield f"{at}.tier_floor", f"{what}: lower it, or add a tier to `only`"


def _named_tiers(item: Intent | Rule) -> Iterator[tuple[str, str]]:
    """The tiers that get the request, with their keys. A floor may lie between the tiers of `only`."""
    if item.tier is not None:
        yield "tier", item.tier
    if isinstance(item, Intent) and item.escalate is not None:
        yield from (("escalate.to", rung.tier) for rung in item.escalate.rungs)
