"""The SQL that stores outcomes, with `?` for a value."""

from collections.abc import Iterator, Sequence
from typing import Any

from extproc.accounting.outcome import Cost, Explored, Outcome
from extproc.accounting.signals import AnswerSignal
from extproc.accounting.tables import COLUMNS
from extproc.api.observation import Usage

Statement = tuple[str, Sequence[Any]]
_REJECTION = "INSERT INTO rejections (outcome, attempt, tier, reason, input, output, cached, cost, time)"


def outcome_statements(outcome: Outcome, cost: Cost, last: str) -> Iterator[Statement]:
    """Yield the statements that store an outcome. `last` is SQL for the id of the last inserted one."""
    row = (
        outcome.time, outcome.api, outcome.ending, outcome.status, outcome.attempts, outcome.failed_attempts,
        outcome.reason, int(outcome.judged), outcome.cohort, outcome.tier, outcome.principal, outcome.session,
        outcome.revision, outcome.mode, outcome.duration_s, outcome.first_byte_s,
        *_counts(outcome.usage), outcome.usage_from, cost.last, cost.default, outcome.request,
        outcome.conversation, outcome.unjudged, outcome.decision, outcome.chances, outcome.explored,
        outcome.cache, cost.saved,
        outcome.app, outcome.team,
    )  # fmt: skip
    yield f"INSERT INTO outcomes ({', '.join(COLUMNS)}) VALUES (?{', ?' * (len(row) - 1)})", row
    for rejection, price in zip(outcome.rejections, cost.rejected, strict=True):
        values = (
            rejection.attempt, rejection.tier, rejection.reason, *_counts(rejection.usage), price, outcome.time,
        )  # fmt: skip
        yield f"{_REJECTION} VALUES ({last}{', ?' * len(values)})", values


def explored_statement(explored: Explored) -> Statement:
    """Return the statement that stores the answer of a second tier."""
    accepted = None if explored.accepted is None else int(explored.accepted)
    row = (
        explored.id, explored.time, explored.tier, explored.propensity, explored.status, accepted, explored.reason,
        *_counts(explored.usage), explored.cost, explored.duration_s,
    )  # fmt: skip
    return f"INSERT INTO explorations VALUES (?{', ?' * (len(row) - 1)})", row


def signal_statement(signal: AnswerSignal) -> Statement:
    """Return the statement that stores a signal. The score and the label of a later one of its kind count."""
    row = (signal.request, signal.kind, signal.principal, signal.time, signal.score, signal.label)
    return (
        "INSERT INTO signals (request, kind, principal, time, score, label) VALUES (?, ?, ?, ?, ?, ?) "
        "ON CONFLICT (request, kind, principal) DO UPDATE SET time = excluded.time, "
        "score = coalesce(excluded.score, signals.score), label = coalesce(excluded.label, signals.label)",
        row,
    )


def _counts(usage: Usage | None) -> tuple[int | None, int | None, int | None]:
    return (None, None, None) if usage is None else (usage.input, usage.output, usage.cached)
