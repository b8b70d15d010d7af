"""Logs of other tools -> the traffic format. Each format has one function, from one line to one row."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from extproc.evidence.data.traffic import BadRow, read_lines

# The first characters of an event stream that was logged as text.
_STREAM = ("data:", "event:", "id:", ":")

Source = dict[str, Any]
Formats = Mapping[str, Callable[[Source], Source | None]]  # None: the line is left out


def openai_log(source: Source) -> Source:
    """Convert a logged request, with its `response` if that is an answer.

    A line is a request body, a pair of `request` and `response`, or a line of a batch file.
    """
    request = source.get("request") or source.get("body")
    if request is None and ({"messages", "input", "prompt"} & set(source)):
        request = source
    if not isinstance(request, dict):
        raise ValueError("found no request: expected `request`, `body`, or a request body itself")
    row: Source = {"request": request}
    name = source.get("custom_id") or source.get("id")
    if request is not source and name is not None:
        row["id"] = name
    if (path := source.get("path") or source.get("url")) is not None:
        row["path"] = path
    if (response := _answer(source.get("response"))) is not None:
        model = response.get("model") if isinstance(response, dict) else None
        row["outcomes"] = {model or request["model"]: {"response": response}}
    return row


def _answer(logged: Any) -> Source | str | None:
    """Return the response as JSON, or as the text of an event stream. None: it failed, or it is some other text."""
    if isinstance(logged, dict) and "body" in logged:
        failed = not 200 <= logged.get("status_code", 200) < 300
        logged = None if failed else logged["body"]
    if isinstance(logged, str) and not logged.lstrip().startswith(_STREAM):
        logged = msgspec.json.decode(logged) if logged.lstrip().startswith("{") else None
    if isinstance(logged, dict) and logged.get("error"):
        return None
    return logged if isinstance(logged, dict | str) else None


FORMATS: Formats = {"openai-log": openai_log}


def convert(kind: str, path: Path, where: dict[str, str], formats: Formats = FORMATS) -> Iterator[bytes | BadRow]:
    """Yield each line of a file as a row of traffic, or why it cannot be one.

    `kind` names one of the formats. Only lines whose members have the values in `where` are converted.
    """
    for number, line in read_lines(path):
        try:
            source = msgspec.json.decode(line, type=dict[str, Any])
            if any(str(source.get(name)) != value for name, value in where.items()):
                continue
            row = formats[kind](source)
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            what = f"member {error} is missing" if isinstance(error, KeyError) else str(error)
            yield BadRow(number, f"cannot be read as {kind}: {what}")
            continue
        if row is not None:
            yield msgspec.json.encode(row)
            if source.get("response") and "outcomes" not in row:
                yield BadRow(number, "its response failed or is not an answer; its request is kept")
