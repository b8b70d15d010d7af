"""`extproc export`: what the ledger says, row by row, to learn from; with what was asked, where that was kept."""

import contextlib
import itertools
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from extproc.accounting.outcome import SERVED, Ending
from extproc.accounting.store import connect

_ROWS = """
  SELECT o.*, r.attempt AS r_attempt, r.tier AS r_tier, r.reason AS r_reason, r.input AS r_input,
    r.output AS r_output, r.cached AS r_cached, r.cost AS r_cost
  FROM outcomes o LEFT JOIN rejections r ON r.outcome = o.id
  WHERE o.time >= ? ORDER BY o.time, o.id, r.attempt
"""


def export(place: Path | str, since_s: float, share: float = 1.0) -> Iterator[bytes]:
    """Yield outcomes as JSON lines, oldest first; of a `share` of the sessions, whole ones.

    There is no text in a ledger, and the principal is left out: what remains is the decision, how it ended, tokens,
    dollars and times, and the session as a hash. `accepted` is null where no rule judged the answer. Raises OSError
    with a remedy.
    """
    with contextlib.closing(connect(place)) as ledger:
        rows = ledger.select(_ROWS, (time.time() - since_s,))
        for number, of_one in itertools.groupby(rows, lambda row: row["id"]):
            outcome = list(of_one)
            if zlib.crc32((outcome[0]["session"] or str(number)).encode()) < share * 2**32:
                yield msgspec.json.encode(_exported(outcome)) + b"\n"


def _exported(rows: list[Mapping[str, Any]]) -> dict[str, Any]:
    """One outcome, from a row for each rejection, or one row without."""
    row = rows[0]
    answers = [
        {"tier": r["r_tier"], "accepted": False, "reason": r["r_reason"], "cost": r["r_cost"]} | _tokens(r, "r_")
        for r in rows
        if r["r_attempt"] is not None
    ]
    known = row["judged"] and row["ending"] in (*SERVED, Ending.HUMAN)
    accepted = row["ending"] == Ending.ACCEPTED if known else None
    answers.append({"tier": row["tier"], "accepted": accepted, "cost": row["cost"]} | _tokens(row))
    same = (
        "request",
        "time",
        "ending",
        "status",
        "reason",
        "revision",
        "mode",
        "session",
        "duration_s",
        "first_byte_s",
    )
    return {"v": 1, "intent": row["cohort"]} | {name: row[name] for name in same} | {"answers": answers}


def _tokens(row: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    return {"tokens": {name: row[prefix + name] for name in ("input", "output", "cached")}}


class Learned(msgspec.Struct):
    """How many rows found what was asked."""

    rows: int = 0
    without: int = 0


def as_traffic(
    exported: Iterable[bytes], requests: Mapping[str, dict[str, Any]], count: Learned
) -> Iterator[bytes]:
    """Join exported lines with the requests that they are about, by id: labelled traffic's format, without labels.

    An answer that a rule accepted is a success, one that a rule rejected is none; of one that nobody judged that is
    not known. A cohort is no label: whether it was the right one, only a person can say.
    """
    for line in exported:
        row = msgspec.json.decode(line)
        asked = requests.get(row["request"] or "")
        if asked is None:
            count.without += 1
            continue
        count.rows += 1
        outcomes = {answer["tier"]: _outcome(answer) for answer in row["answers"] if answer["tier"] is not None}
        last = row["answers"][-1]["tier"]
        if len(row["answers"]) == 1 and last is not None and row["ending"] in SERVED:
            outcomes[last]["latency_s"] = row["duration_s"]
        if last is not None and row["ending"] in SERVED:
            for said in asked.get("outcomes", {}).values():  # what the client was answered, if that was kept
                outcomes.setdefault(last, {}).update(said)
        known = {"outcomes": {tier: outcome for tier, outcome in outcomes.items() if outcome}}
        yield msgspec.json.encode(asked | known | {"session": row["session"], "time": row["time"]}) + b"\n"


def _outcome(answer: dict[str, Any]) -> dict[str, Any]:
    tokens = answer["tokens"]
    known = {"success": answer["accepted"], "tokens_in": tokens["input"], "tokens_out": tokens["output"]}
    return {name: value for name, value in known.items() if value is not None}
