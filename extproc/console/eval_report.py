"""The part of a report of `extproc eval` that the console shows."""

from collections.abc import Sequence
from pathlib import Path

import msgspec


class Span(msgspec.Struct, frozen=True):
    """A number of a report with its interval. None: there was nothing to measure."""

    value: float | None
    low: float | None
    high: float | None


class Way(msgspec.Struct, frozen=True):
    """One way to serve the rows of a report: the configuration, or a control."""

    name: str
    quality: Span  # shares
    per_1000: Span  # dollars per 1,000 requests


class FrontierPoint(msgspec.Struct, frozen=True):
    """A point of the frontier of one tier per cohort."""

    per_1000: float
    quality: float


class Verdict(msgspec.Struct, frozen=True):
    """A verdict of a report: a word and its sentence."""

    word: str
    sentence: str


class EvalReport(msgspec.Struct, frozen=True):
    """The part of the JSON of `extproc eval` that the console shows."""

    verdicts: Sequence[Verdict]
    lines: Sequence[Way]
    frontier: Sequence[FrontierPoint]


def read_eval_report(path: Path) -> EvalReport:
    """Read what `extproc eval --json FILE` wrote. Raises OSError with a remedy."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=EvalReport)
    except FileNotFoundError as error:
        raise OSError(f"no report at {path}: write one with `extproc eval --json {path}`") from error
    except msgspec.DecodeError as error:
        raise OSError(
            f"{path} is not a report of `extproc eval` ({error}): write one with `extproc eval --json {path}`"
        ) from error
