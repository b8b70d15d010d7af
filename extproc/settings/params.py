"""The values of `params` of a tier: new names, removed members and efforts."""

from typing import Annotated

import msgspec

from extproc.settings.about import about


class Efforts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The efforts that a model knows. A level that is left out is as the dialect has it."""

    off: Annotated[str | None, about("Effort for reasoning that is off.")] = None
    on: Annotated[str | None, about("Effort for reasoning that is on, without a level or a budget.")] = None
    minimal: Annotated[str | None, about("Effort for the level `minimal`.")] = None
    low: Annotated[str | None, about("Effort for the level `low`.")] = None
    medium: Annotated[str | None, about("Effort for the level `medium`.")] = None
    high: Annotated[str | None, about("Effort for the level `high`.")] = None
    xhigh: Annotated[str | None, about("Effort for the level `xhigh`.")] = None
    max: Annotated[str | None, about("Effort for the level `max`.")] = None

    @property
    def words(self) -> dict[str, str]:
        """The levels that are given."""
        return {level: word for level, word in msgspec.structs.asdict(self).items() if word is not None}


class Params(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Differences between this tier and the form that its dialect has for its model."""

    rename: Annotated[
        dict[str, str], about("Names of request members, and the names that this tier knows them by.")
    ] = {}
    drop: Annotated[
        tuple[str, ...],
        about("Request members that this tier refuses. A dot enters an object, as in `output_config.effort`."),
    ] = ()
    effort: Annotated[Efforts, about("The efforts that this model knows, where the dialect has others.")] = (
        Efforts()
    )

    def __hash__(self) -> int:
        return hash((tuple(self.rename.items()), self.drop, self.effort))


NO_PARAMS = Params()
