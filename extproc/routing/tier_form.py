"""How one tier takes requests of one API: the form of its model, changed by its `params`."""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any

import msgspec

from extproc.api.reasoning import REASONING_MEMBERS
from extproc.api.request import Api
from extproc.api.splice import REMOVED
from extproc.routing.dialects import DIALECTS, SAMPLING, Fields, Form
from extproc.settings import NO_PARAMS, Dialect, Efforts, Tier

Edits = dict[str, Any]

_UNKNOWN = Form((), "")


class TierForm(msgspec.Struct, frozen=True):
    """How one tier takes requests of one API."""

    form: Form
    fields: Fields | None  # None: no field for reasoning is known
    words: Mapping[str, str]
    renames: Mapping[str, str]
    removed: Edits  # members that are always taken out
    drop: tuple[str, ...]  # those that the policy names


def tier_form_of(tier: Tier, api: Api) -> TierForm:
    """Return how this tier takes requests of this API: the form of its model, changed by its `params`."""
    params = tier.params
    if params is NO_PARAMS:
        return _tier_form(tier.reasoning, tier.model, api)
    return _tier_form(tier.reasoning, tier.model, api, tuple(params.rename.items()), params.drop, params.effort)


@lru_cache(maxsize=1024)
def _tier_form(
    dialect: Dialect,
    model: str,
    api: Api,
    rename: tuple[tuple[str, str], ...] = (),
    drop: tuple[str, ...] = (),
    effort: Efforts | None = None,
) -> TierForm:
    form = form_of(dialect, model)
    fields = form.apis.get(api)
    removed: Edits = {}
    if form is not _UNKNOWN:
        own = fields.own if fields is not None else ()
        foreign = [name for name in REASONING_MEMBERS if name not in own]
        sampling = SAMPLING if form.sampling == "dropped" else ()
        for name in (*foreign, *sampling, *form.drop, *(fields.drop if fields is not None else ()), *drop):
            put(removed, name, REMOVED)
    else:
        for name in drop:
            put(removed, name, REMOVED)
    words = {**form.words, **(effort.words if effort is not None else {})}
    renames = {**(form.rename if api == "chat" else {}), **dict(rename)}
    return TierForm(form, fields, words, renames, removed, drop)


def form_of(dialect: Dialect, model: str) -> Form:
    """Return the form of this model. For the dialect `none` it has no field."""
    forms = DIALECTS[dialect]
    return next((form for form in forms if any(fnmatchcase(model, pattern) for pattern in form.models)), _UNKNOWN)


def put(edits: Edits, name: str, value: Any) -> None:
    """Set `name` last, without changing the objects that `edits` already has. A dot in it enters an object."""
    head, _, rest = name.partition(".")
    before = edits.pop(head, {})
    if not rest:
        edits[head] = value
    elif before == REMOVED and value == REMOVED:
        edits[head] = REMOVED  # the whole object goes
    else:
        edits[head] = inside = {} if isinstance(before, bytes) else dict(before)
        put(inside, rest, value)
