"""`extproc export`: the rows of the ledger as JSON lines, alone or joined with the requests that you kept."""

import contextlib
import itertools
import math
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from extproc.accounting.connection import Connection
from extproc.accounting.outcome import SERVED, Ending
from extproc.accounting.queries import ANONYMOUS, FALLBACKS, FROM_CLIENTS
from extproc.accounting.store import connect
from extproc.accounting.tables import newer_column
from extproc.contract.words import CACHE_HITS, NOT_A_COHORT, Reason, Signal

_EXPLORED_ROWS = "SELECT * FROM explorations WHERE time >= ?"
_SIGNAL_ROWS = "SELECT * FROM signals WHERE time >= ?"
# How much each signal counts in the quality of an answer. The verdict of the rules counts 1. A client that asks
# again may want something else, and a person may give a bad rating to an answer that no other tier does better.
RATING_WEIGHT = 0.5
SIGNAL_WEIGHTS = {Signal.RE_ASKED: 0.25, Signal.REPEATED: 0.25, Signal.EDITED: 0.1, Signal.ABANDONED: 0.1}
# Without a verdict, a rating moves the quality from here, where an answer is as likely good as bad.
_UNKNOWN, _UNKNOWN_WEIGHT = 0.5, 0.5


def export(place: Path | str, since_s: float, share: float = 1.0) -> Iterator[bytes]:
    """Yield outcomes as JSON lines, oldest first: all outcomes of a `share` of the conversations.

    A line has the decision, the ending, tokens, dollars, times and a hash of the conversation. It has no text,
    because the ledger has none, and no principal. `accepted` is null if no rule judged the answer. Raises OSError
    with a remedy.
    """
    with contextlib.closing(connect(place)) as ledger:
        for line in exported_lines(ledger, time.time() - since_s, math.inf, share):
            yield msgspec.json.encode(line) + b"\n"


def exported_lines(ledger: Connection, since: float, before: float, share: float) -> Iterator[dict[str, Any]]:
    """Yield what a line of the export has, for outcomes that began in this time."""
    explored = {row["id"]: _explored(row) for row in ledger.select(_EXPLORED_ROWS, (since,))}
    signals = _signals_by_answer(ledger.select(_SIGNAL_ROWS, (since,)))
    rows = ledger.select(_rows(since, before, ledger.rolled_id() is not None))
    for number, group in itertools.groupby(rows, lambda row: row["id"]):
        outcome_rows = list(group)
        if zlib.crc32((outcome_rows[0]["session"] or str(number)).encode()) < share * 2**32:
            yield _exported(outcome_rows, explored, signals)


def _rows(since: float, before: float, by_day: bool) -> str:
    """Return the query. An outcome has one row for each rejected answer, or a single row without one."""
    end = f" AND o.time < {before!r}" if before < math.inf else ""
    # A rejected answer has the time of its outcome. In Postgres this saves reading other days.
    same_days = f" AND (r.time >= {since!r}{end.replace('o.', 'r.')} OR r.time IS NULL)" if by_day else ""
    return f"""
      SELECT o.*, r.attempt AS r_attempt, r.tier AS r_tier, r.reason AS r_reason, r.input AS r_input,
        r.output AS r_output, r.cached AS r_cached, r.cost AS r_cost
      FROM outcomes o LEFT JOIN rejections r ON r.outcome = o.id{same_days}
      WHERE o.time >= {since!r}{end} AND {FROM_CLIENTS} ORDER BY o.time, o.id, r.attempt
    """


_Signals = dict[tuple[str, str], dict[str, Mapping[str, Any]]]  # (request, principal) -> kind -> row


def _signals_by_answer(rows: Iterable[Mapping[str, Any]]) -> _Signals:
    signals: _Signals = {}
    for row in rows:
        signals.setdefault((row["request"], row["principal"]), {})[row["kind"]] = row
    return signals


def _exported(
    rows: list[Mapping[str, Any]], explored: Mapping[str, dict[str, Any]], signals: _Signals
) -> dict[str, Any]:
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
    own = signals.get((row["request"], row["principal"] or ANONYMOUS), {})
    feedback = own.get(Signal.FEEDBACK)
    values["feedback"] = {name: feedback[name] for name in ("score", "label")} if feedback is not None else None
    values["signals"] = [kind for kind in SIGNAL_WEIGHTS if kind in own]
    decision = newer_column(row, "decision") or "{}"
    if row["ending"] == Ending.CANCELLED and msgspec.json.decode(decision).get("stream"):
        values["signals"].append(Signal.ABANDONED)
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
_NEWER = ("conversation", "chances", "explored", "app", "cache")


def _tokens(row: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    return {"tokens": {name: row[prefix + name] for name in ("input", "output", "cached")}}


class JoinCounts(msgspec.Struct):
    """The number of exported lines with a request, and without one."""

    rows: int = 0
    without: int = 0


def as_traffic(
    exported: Iterable[bytes], requests: Mapping[str, dict[str, Any]], counts: JoinCounts
) -> Iterator[bytes]:
    """Join exported lines with their requests, by id, and yield traffic.

    An answer that a rule accepted is a success, and a rejected answer is a failure. A rating, or a client that
    asked again, makes it a quality between both. Without a verdict or a rating, it is unknown. The cohort does not
    become a label, because only a person can know whether it was the right one. The label of feedback does.
    The app that sent the request becomes the row's source, if the ledger has it.
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
        if last is not None:
            _add_signals(outcomes, last, row)
        _add_explored(outcomes, row)
        with_values = {"outcomes": {tier: outcome for tier, outcome in outcomes.items() if outcome}}
        place = {"session": row["session"], "time": row["time"]}
        if row.get("app") is not None and "source" not in request:
            place["source"] = row["app"]
        label = (row.get("feedback") or {}).get("label")
        labelled = {} if label is None else {"intent": None if label == Reason.OUT_OF_SCOPE else label}
        yield msgspec.json.encode(request | with_values | place | labelled) + b"\n"


# With one of these members, an answer that the client got is known.
_KNOWN = {"success", "quality", "answer", "response"}


def _add_signals(outcomes: dict[str, dict[str, Any]], tier: str, row: Mapping[str, Any]) -> None:
    """Let the rating and the other signals move the quality of the answer that the client got."""
    outcome, rating = outcomes.setdefault(tier, {}), (row.get("feedback") or {}).get("score")
    verdict = outcome.get("success", outcome.get("quality"))
    quality = quality_of(verdict, rating, row.get("signals", ()))
    if quality is not None:
        outcome.pop("success", None)
        outcome["quality"] = quality


def quality_of(verdict: float | None, rating: float | None, signals: Iterable[str]) -> float | None:
    """Return the quality of an answer with these signals, 0 to 1. None: it is the verdict, or not known.

    The signals that a client did not intend count only beside a verdict. Alone they would make outcomes of failures
    only.
    """
    weights = [SIGNAL_WEIGHTS[Signal(kind)] for kind in signals] if verdict is not None else []
    if rating is None and not weights:
        return None
    base, weight = (_UNKNOWN, _UNKNOWN_WEIGHT) if verdict is None else (float(verdict), 1.0)
    rated = RATING_WEIGHT if rating is not None else 0.0
    return round((base * weight + (rating or 0.0) * rated) / (weight + rated + sum(weights)), 4)


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
