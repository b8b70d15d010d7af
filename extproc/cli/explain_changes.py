"""The part of `extproc explain` about the body: the members that are written into it."""

from collections.abc import Iterator

import msgspec

from extproc.routing.routed import Routed


def change_lines(routed: Routed) -> Iterator[str]:
    """The members that are written into the body of the request."""
    for name, value in written_members(routed).items():
        yield f"writes    {name} = {value}" if value else f"removes   {name}"
    if routed.mutation.body is None:
        yield "writes    nothing: the body is passed on unchanged"


def written_members(routed: Routed) -> dict[str, str]:
    """The members of the body that the mutation changed or added, as JSON. Empty: it was removed."""
    if routed.request is None or routed.mutation.body is None:
        return {}
    members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
    before, after = members(routed.request.body), members(routed.mutation.body)
    changed = {
        name: bytes(raw).decode()
        for name, raw in after.items()
        if name not in before or bytes(before[name]) != bytes(raw)
    }
    return changed | {name: "" for name in before if name not in after}
