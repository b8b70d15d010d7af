"""Feedback of clients: `POST /feedback` with the id of a request: a score, a label or both, and never text."""

import contextlib
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from extproc.accounting.store import connect
from extproc.contract.words import Reason

# Longer bodies are refused before they are read. The longest valid one has about 300 bytes.
MOST_BYTES = 4096
_REQUEST_ID = re.compile("[0-9A-Za-z-]{1,64}")
_SHAPE = (
    'expected {"request_id": ID} with `thumbs` ("up" or "down"), `score` (0 to 1) or `label` (a cohort); the id is '
    "in the answer's header x-request-id"
)
# So many cohorts are named in an error.
_MOST_NAMED = 50
_NEWEST = "SELECT * FROM outcomes WHERE request = ? ORDER BY time DESC LIMIT 1"


class Feedback(msgspec.Struct, frozen=True):
    """What a client says about the answer to a request."""

    request: str
    score: float | None  # 1 is good, 0 is bad
    label: str | None  # the right cohort, or `out_of_scope`


class AnsweredRequest(msgspec.Struct, frozen=True):
    """A request in the ledger: who sent it, and what was decided."""

    principal: str | None
    cohort: str | None
    tier: str | None
    nearest: str | None = None  # the nearest cohort, as it is counted. None: there was no match
    probability: float | None = None  # that this match is right. None: it is not known


class _Body(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    request_id: str
    thumbs: Literal["up", "down"] | None = None
    score: Annotated[float, Meta(ge=0, le=1)] | None = None
    label: str | None = None


_decode = msgspec.json.Decoder(_Body).decode


def read_feedback(body: bytes, cohorts: Collection[str]) -> Feedback:
    """Read the body of a request. Raises ValueError with a remedy. A member for text is refused, never kept."""
    if len(body) > MOST_BYTES:
        raise ValueError(f"the body is longer than {MOST_BYTES} bytes: {_SHAPE}")
    try:
        read = _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{_plain(error)}: {_SHAPE}") from error
    if not _REQUEST_ID.fullmatch(read.request_id):
        raise ValueError(f"`request_id` is not an id of at most 64 letters, digits and hyphens: {_SHAPE}")
    if read.thumbs is not None and read.score is not None:
        raise ValueError(f"found `thumbs` and `score`: give only one of them; {_SHAPE}")
    score = read.score if read.thumbs is None else float(read.thumbs == "up")
    if score is None and read.label is None:
        raise ValueError(f"found no rating and no label: {_SHAPE}")
    if read.label is not None and read.label not in cohorts and read.label != Reason.OUT_OF_SCOPE:
        names = ", ".join(sorted(cohorts)[:_MOST_NAMED])
        raise ValueError(f"`label` is not a cohort: expected {Reason.OUT_OF_SCOPE} or one of {names}")
    return Feedback(read.request_id, score, read.label)


def _plain(error: Exception) -> str:
    """The message of the decoder. It repeats the name of an unknown member, which may be any text."""
    if "unknown field" in str(error):
        return "found a member that feedback does not have, and text is not kept"
    return str(error) if isinstance(error, msgspec.ValidationError) else "the body is not JSON"


def find_answer(place: Path | str, request: str) -> AnsweredRequest | None:
    """Return the newest request with this id. None: it is not in the ledger yet. Raises OSError."""
    with contextlib.closing(connect(place)) as ledger:
        for row in list(ledger.select(_NEWEST, (request,))):
            return _answered(row)
    return None


def _answered(row: Mapping[str, Any]) -> AnsweredRequest:
    answer = AnsweredRequest(row["principal"], row["cohort"], row["tier"])
    decision = msgspec.json.decode(dict(row).get("decision") or b"{}")
    nearest, chance = decision.get("cohort"), decision.get("probability")
    if not isinstance(nearest, str) or not isinstance(chance, int | float):
        return answer
    app = dict(row).get("app")
    return msgspec.structs.replace(answer, nearest=f"{app}/{nearest}" if app else nearest, probability=chance)
