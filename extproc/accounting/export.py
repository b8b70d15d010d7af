"""`extproc export`: the rows of the ledger as JSON lines, alone or joined with the requests that you kept."""

import contextlib
import itertools
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from extproc.accounting.outcome import SERVED, Ending
from extproc.accounting.queries import FALLBACKS, FROM_CLIENTS
from extproc.accounting.store import connect
from extproc.accounting.tables import newer_column
from extproc.contract.words import CACHE_HITS, NOT_A_COHORT

_ROWS = f"""
  SELECT o.*, r.attempt AS r_attempt, r.tier AS r_tier, r.reason AS r_reason, r.input AS r_input,
    r.output AS r_output, r.cached AS r_cached, r.cost AS r_cost
  FROM outcomes o LEFT JOIN rejections r ON r.outcome = o.id
  WHERE o.time >= ? AND {FROM_CLIENTS} ORDER BY o.time, o.id, r.attempt
"""
_EXPLORED_ROWS = "SELECT * FROM explorations WHERE time >= ?"


def export(place: Path | str, since_s: float, share: float = 1.0) -> Iterator[bytes]:
    """Yield outcomes as JSON lines, oldest first: all outcomes of a `share` of the conversations.

    A line has the decision, the ending, tokens, dollars, times and a hash of the conversation. It has no text,
    because the ledger has none, and no principal. `accepted` is null if no rule judged the answer. Raises OSError
    with a remedy.
    """
    with contextlib.closing(connect(place)) as ledger:
        since = time.time() - since_s
        explored = {row["id"]: _explored(row) for row in ledger.select(_EXPLORED_ROWS, (since,))}
        rows = ledger.select(_ROWS, (since,))
        for number, group in itertools.groupby(rows, lambda row: row["id"]):
            outcome_rows = list(group)
            if zlib.crc32((outcome_rows[0]["session"] or str(number)).encode()) < share * 2**32:
                yield msgspec.json.encode(_exported(outcome_rows, explored)) + b"\n"


def _exported(rows: list[Mapping[str, Any]], explored: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Return one outcome from its rows: one for each rejection, or a single row without one."""
    row = rows[0]
    answers = [
        {"tier": r["r_tier"], "accepted": False, "reason": r["r_reason"], "cost": r["r_cost"]} | _tokens(r, "r_")
        for r in rows
        if r["r_attempt"] is not None
    ]
    has_verdict = row["judged"] and row["ending"] in (*SERVED, Ending.HUMAN)
    accepted = row["ending"] == Ending.ACCEPTED if has_verdict else None
    answers.append({"tier": row["tier"], "accepted": accepted, "cost": row["cost"]} | _tokens(row))
    newer = {name: newer_column(row, name) for name in _NEWER}
    if newer["cache"] in CACHE_HITS and not row["attempts"]:
        answers = []  # a kept answer of an earlier request, which says nothing new about its tier
    chances = newer.pop("chances")
    values = {name: row[name] for name in _EXPORTED} | newer
    values["chances"] = msgspec.json.decode(chances) if chances is not None else None
    values["explored"] = explored.get(values["explored"] or "")
    belongs = row["reason"] not in FALLBACKS and row["cohort"] not in NOT_A_COHORT
    return {"v": 1, "intent": row["cohort"] if belongs else None} | values | {"answers": answers}


def _explored(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the answer of a second tier."""
    accepted = None if row["accepted"] is None else bool(row["accepted"])
    kept = {name: row[name] for name in ("tier", "propensity", "status", "reason", "cost", "duration_s")}
    return kept | {"accepted": accepted} | _tokens(row)


# Columns that an exported line has under the same name.
_EXPORTED = (
    "request", "time", "ending", "status", "reason", "revision", "mode", "session", "duration_s", "first_byte_s",
)  # fmt: skip

# The same, and not in ledgers of older versions.
_NEWER = ("conversation", "chances", "explored", "cache")


def _tokens(row: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    return {"tokens": {name: row[prefix + name] for name in ("input", "output", "cached")}}


class JoinCounts(msgspec.Struct):
    """The number of exported lines with a request, and without one."""

    rows: int = 0
    without: int = 0


def as_traffic(
    exported: Iterable[bytes], requests: Mapping[str, dict[str, Any]], counts: JoinCounts
) -> Iterator[bytes]:
    """Join exported lines with their requests, by id, and yield traffic without labels.

    An answer that a rule accepted is a success, and a rejected answer is a failure. Without a verdict, the success
    is unknown. The cohort does not become a label, because only a person can know whether it was the right one.
    """
    for line in exported:
        row = msgspec.json.decode(line)
        request = requests.get(row["request"] or "")
        if request is None:
            counts.without += 1
            continue
        counts.rows += 1
        outcomes = {answer["tier"]: _outcome(answer) for answer in row["answers"] if answer["tier"] is not None}
        last = row["answers"][-1]["tier"] if row["answers"] else None  # None: the cache answered
        if len(row["answers"]) == 1 and last is not None and row["ending"] in SERVED:
            outcomes[last]["latency_s"] = row["duration_s"]
        if last is not None and row["ending"] in SERVED:
            for served in request.get("outcomes", {}).values():  # the client's answer, if it was kept
                outcomes.setdefault(last, {}).update(served)
        _add_explored(outcomes, row)
        with_values = {"outcomes": {tier: outcome for tier, outcome in outcomes.items() if outcome}}
        place = {"session": row["session"], "time": row["time"]}
        yield msgspec.json.encode(request | with_values | place) + b"\n"


# With one of these members, an answer that the client got is known.
_KNOWN = {"success", "quality", "answer", "response"}


def _add_explored(outcomes: dict[str, dict[str, Any]], row: dict[str, Any]) -> None:
    """Add the answer of the second tier, and the chance of each tier that could have been it.

    An answer that was judged on the way to the client was certain to be recorded, and stays.
    """
    second = row["explored"]
    for tier, chance in (row["chances"] or {}).items():
        if _KNOWN & outcomes.get(tier, {}).keys():
            continue
        outcomes[tier] = {"propensity": chance}
        if second is not None and second["tier"] == tier and second["accepted"] is not None:
            outcomes[tier] |= _outcome(second)
            if second["duration_s"] is not None:
                outcomes[tier]["latency_s"] = second["duration_s"]


def _outcome(answer: dict[str, Any]) -> dict[str, Any]:
    tokens = answer["tokens"]
    values = {"success": answer["accepted"], "tokens_in": tokens["input"], "tokens_out": tokens["output"]}
    return {name: value for name, value in values.items() if value is not None}
