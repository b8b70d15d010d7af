"""A setting: a tier with the way it reasons. Its name is the key of an outcome, as in `small+reasoning`."""

from extproc.settings import Reasoning

# The part after the name of the tier -> the reasoning that it stands for. None: as the request asked.
SUFFIXES: dict[str, bool | None] = {"": None, "+reasoning": True, "+direct": False}


def setting_name(tier: str, reasoning: Reasoning | None) -> str:
    """Return the name of a setting. `reasoning` None: as the request asked."""
    on = None if reasoning is None else reasoning is not False
    return tier + next(suffix for suffix, means in SUFFIXES.items() if means is on)


def tier_of(setting: str) -> str:
    """Return the name of the setting's tier."""
    return setting.partition("+")[0]


def reasoning_of(setting: str) -> bool | None:
    """Return whether the setting reasons, or None if it reasons as the request asked."""
    return SUFFIXES["".join(setting.partition("+")[1:])]
