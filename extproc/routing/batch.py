"""The models that the requests of a batch name. A batch is sent to a path that the policy opens."""

import re
from collections.abc import Collection

import msgspec

from extproc.api.members import UNDECODABLE
from extproc.api.structure import MAX_COMMAS, MAX_CONTAINERS, has_at_most

_MODEL = re.compile(rb'"model"\s*:\s*"([^"\\]{1,512})"')


class _Named(msgspec.Struct):
    model: str | None = None


class _Item(_Named):
    params: _Named | None = None
    body: _Named | None = None


class _Batch(msgspec.Struct):
    requests: list[_Item] = []


_decode = msgspec.json.Decoder(_Batch).decode


def model_in_batch(body: bytes, private: Collection[str]) -> str | None:
    """Return one of these models that a request of a batch names, or None. Bodies of other shapes are not batches.

    In a batch that is too large to be read, the name counts at any place.
    """
    if b'"requests"' not in body:
        return None
    named = {match[1].decode(errors="replace") for match in _MODEL.finditer(body)}.intersection(private)
    if not named or not has_at_most(body, MAX_CONTAINERS, MAX_COMMAS):
        return next(iter(named), None)
    try:
        requests = _decode(body).requests
    except UNDECODABLE:
        return None
    parts = (part for item in requests for part in (item, item.params, item.body) if part is not None)
    return next((part.model for part in parts if part.model in named), None)
