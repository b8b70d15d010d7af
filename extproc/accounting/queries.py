"""The SQL of the report. Each query takes one value: the time from which on outcomes count.

SQLite and Postgres both understand it. `o` is a row of `outcomes`, and `r` a row of `rejections`.
"""

from typing import Literal, get_args

from extproc.accounting.outcome import SERVED, Ending, Unjudged
from extproc.contract.words import Reason, Undecided

# The column by which a report groups its lines.
By = Literal["cohort", "tier", "principal", "app", "team"]
# A ledger of an older version does not have these columns.
NEWER_GROUPS = ("app", "team")
UNKNOWN_GROUP: Literal["-"] = "-"

# The reasons for which no decision could be made.
FALLBACKS = (*(reason for reason in Reason if reason.is_fallback), Undecided.FAIL_OPEN)
# Before ledger version 4, `cohort` was the nearest one, also where its match did not count.
_FELL_BACK = f"o.reason IN ({', '.join(repr(reason.value) for reason in FALLBACKS)})"
_COHORT = f"CASE WHEN {_FELL_BACK} THEN o.reason ELSE coalesce(o.cohort, o.reason) END"
_NAMES = {by: f"coalesce(o.{by}, '-')" for by in get_args(By)} | {
    "cohort": _COHORT,
    UNKNOWN_GROUP: f"'{UNKNOWN_GROUP}'",
}
# A rejected answer belongs to the tier that gave it, not to the tier that served the request.
_REJECTED_NAMES = _NAMES | {"tier": "coalesce(r.tier, '-')"}


def _ended(*endings: Ending) -> str:
    quoted = ", ".join(f"'{ending}'" for ending in endings)
    return f"o.ending IN ({quoted})"


def _count(condition: str) -> str:
    return f"sum(CASE WHEN {condition} THEN 1 ELSE 0 END)"


# The same condition as `Outcome.usage_due`: without tokens, the usage of this answer is unknown.
_USAGE_DUE = f"o.attempts > 0 AND (o.status = 200 OR {_ended(Ending.CANCELLED, Ending.HUMAN)})"
_TOKENS = ", ".join(f"sum(coalesce({{0}}.{kind}, 0)) AS {kind}" for kind in ("input", "output", "cached"))
_OUTCOME_SUMS = f"""
  count(*) AS requests, sum(o.attempts) AS attempts, sum(o.failed_attempts) AS failed_attempts,
  {_count(f"o.ending = '{Ending.ACCEPTED}' AND o.judged = 1")} AS judged,
  {", ".join(_count(f"o.ending = '{ending}'") + f" AS {ending}" for ending in Ending)},
  {_TOKENS.format("o")}, coalesce(sum(o.cost), 0) AS cost, coalesce(sum(o.default_cost), 0) AS default_cost,
  {_count(f"{_USAGE_DUE} AND o.cost IS NULL")} AS unknown
"""
_REJECTION_SUMS = f"""
  count(*) AS rejected, {_TOKENS.format("r")}, coalesce(sum(r.cost), 0) AS cost,
  {_count("r.cost IS NULL")} AS unknown
"""
# The second requests of `--explore` are not traffic of clients.
FROM_CLIENTS = "(o.request IS NULL OR o.request NOT IN (SELECT id FROM explorations))"
_OUTCOMES = f"outcomes o WHERE o.time >= ? AND {FROM_CLIENTS}"
_REJECTIONS = f"rejections r JOIN outcomes o ON o.id = r.outcome WHERE o.time >= ? AND {FROM_CLIENTS}"


def outcome_sums(by: By | Literal["-"]) -> str:
    """Sums of the outcomes, for each `name` and `reason`."""
    return f"SELECT {_NAMES[by]} AS name, o.reason, {_OUTCOME_SUMS} FROM {_OUTCOMES} GROUP BY 1, 2"


def unjudged(by: By | Literal["-"]) -> str:
    """For each `name`, the accepted answers that no rule looked at, by `why`."""
    return (
        f"SELECT {_NAMES[by]} AS name, coalesce(o.unjudged, '{Unjudged.UNKNOWN}') AS why, count(*) AS requests "
        f"FROM {_OUTCOMES} AND o.judged = 0 AND o.ending = '{Ending.ACCEPTED}' GROUP BY 1, 2"
    )


def rejection_sums(by: By | Literal["-"]) -> str:
    """Sums of the rejected answers, for each `name` and `reason`."""
    return f"SELECT {_REJECTED_NAMES[by]} AS name, r.reason, {_REJECTION_SUMS} FROM {_REJECTIONS} GROUP BY 1, 2"


def escalated_requests(by: By | Literal["-"]) -> str:
    """For each `name`, the number of requests with a rejected answer, as `escalated`."""
    return f"SELECT {_REJECTED_NAMES[by]} AS name, {_ESCALATED} GROUP BY 1"


_ESCALATED = f"count(DISTINCT r.outcome) AS escalated FROM {_REJECTIONS}"
# The same for all requests, in one row.
ALL_ESCALATED_REQUESTS = f"SELECT {_ESCALATED}"


# The second requests of `--explore`, in one row.
EXPLORED = f"""
  SELECT count(*) AS requests, {_count("accepted = 1")} AS accepted, {_count("accepted = 0")} AS rejected,
  coalesce(sum(cost), 0) AS cost FROM explorations WHERE time >= ?
"""


def first_bytes(by: By | Literal["-"]) -> str:
    """`name` and `first_byte_s` of each answer that was served."""
    served = f"{_ended(*SERVED)} AND o.first_byte_s IS NOT NULL"
    return f"SELECT {_NAMES[by]} AS name, o.first_byte_s FROM {_OUTCOMES} AND {served}"
