"""How one tier takes requests of one API: the form of its model, changed by its `params`."""

from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any

import msgspec

from extproc.api.paths import Api
from extproc.api.reasoning import REASONING_MEMBERS
from extproc.api.splice import REMOVED
from extproc.routing.dialects import DIALECTS, SAMPLING, Fields, Form
from extproc.settings import NO_PARAMS, Dialect, Params, Tier

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
    if tier.params is NO_PARAMS:  # their hash would cost a microsecond
        return _tier_form(tier.reasoning, tier.model, api)
    return _tier_form(tier.reasoning, tier.model, api, tier.params)


@lru_cache(maxsize=1024)
def _tier_form(dialect: Dialect, model: str, api: Api, params: Params = NO_PARAMS) -> TierForm:
    form = form_of(dialect, model)
    fields = form.apis.get(api)
    removed: Edits = {}
    for name in (*_foreign(form, fields), *params.drop):
        put(removed, name, REMOVED)
    words = {**form.words, **params.effort.words}
    renames = {**(form.rename if api == "chat" else {}), **params.rename}
    return TierForm(form, fields, words, renames, removed, params.drop)


def _foreign(form: Form, fields: Fields | None) -> Iterator[str]:
    """The members that the model does not read, or that its provider refuses."""
    if form is not _UNKNOWN:
        own = fields.own if fields is not None else ()
        yield from (name for name in REASONING_MEMBERS if name not in own)
        yield from SAMPLING if form.sampling == "dropped" else ()
        yield from form.drop
        yield from fields.drop if fields is not None else ()


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
