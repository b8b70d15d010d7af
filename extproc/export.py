"""`extproc export`: what the ledger says, row by row, to learn from."""

import sqlite3
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from extproc.ledger import read_ledger


def export(path: Path, since_s: float, share: float = 1.0) -> Iterator[bytes]:
    """Yield outcomes as JSON lines, oldest first; of a `share` of the sessions, whole ones.

    There is no text in a ledger, and the principal is left out: what remains is the decision, how it ended, tokens,
    dollars and times, and the session as a hash. `accepted` is null where no rule judged the answer. Raises OSError
    with a remedy, or sqlite3.Error.
    """
    connection = read_ledger(path)
    try:
        rows = connection.execute("SELECT * FROM outcomes WHERE time >= ? ORDER BY time", (time.time() - since_s,))
        for row in rows:
            if zlib.crc32((row["session"] or str(row["id"])).encode()) < share * 2**32:
                yield msgspec.json.encode(_exported(connection, row)) + b"\n"
    finally:
        connection.close()


def _exported(connection: sqlite3.Connection, row: sqlite3.Row) -> dict[str, Any]:
    rejected = connection.execute("SELECT * FROM rejections WHERE outcome = ? ORDER BY attempt", (row["id"],))
    answers = [
        {"tier": r["tier"], "accepted": False, "reason": r["reason"], "cost": r["cost"]} | _tokens(r)
        for r in rejected
    ]
    known = row["judged"] and row["ending"] in ("accepted", "degraded", "human")
    accepted = row["ending"] == "accepted" if known else None
    answers.append({"tier": row["tier"], "accepted": accepted, "cost": row["cost"]} | _tokens(row))
    same = ("time", "ending", "status", "reason", "revision", "mode", "session", "duration_s", "first_byte_s")
    return {"v": 1, "intent": row["cohort"]} | {name: row[name] for name in same} | {"answers": answers}


def _tokens(row: sqlite3.Row) -> dict[str, Any]:
    return {"tokens": {name: row[name] for name in ("input", "output", "cached")}}
