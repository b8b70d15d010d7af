"""Other people's files -> the traffic format: a function a format, one source line to one row."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from extproc.evidence.data.traffic import BadRow, read_lines

_LETTERS = "ABCDEFGHIJ"
# MMLU-Pro's recording cut answers here: a model whose answer is so long had not stopped.
_CUT_CHARS = 4000
# What the text of a stream of events begins with.
_STREAM = ("data:", "event:", "id:", ":")

Source = dict[str, Any]


def clinc150(source: Source) -> Source:
    """CLINC150 (Larson et al. 2019): `split`, `intent` ("oos": out of scope), `text`."""
    return {"text": source["text"], "intent": source["intent"]}


def routellm(source: Source) -> Source | None:
    """RouteLLM's MMLU: whether each of two models was right; contaminated prompts are left out, as theirs are."""
    if source["contaminated"]:
        return None
    outcomes = {tier: {"success": source[tier]} for tier in ("weak", "strong")}
    return {"text": source["prompt"], "intent": source["subject"], "outcomes": outcomes}


def mmlupro(source: Source) -> Source:
    """MMLU-Pro with recorded answers: right where the letter that was chosen is the answer's."""
    options = [f"{letter}. {option}" for letter, option in zip(_LETTERS, source["options"], strict=False)]
    outcomes = {
        tier: {
            "success": said["choice"] == source["answer"],
            "answer": said["text"],
            "finish": "length" if len(said["text"]) >= _CUT_CHARS else "stop",
        }
        for tier, said in source["answers"].items()
    }
    return {
        "id": source["id"],
        "text": "\n".join((source["question"].strip(), "", *options)),
        "intent": source["category"].replace(" ", "-"),
        "outcomes": outcomes,
    }


def openai_log(source: Source) -> Source:
    """A logged request, with its `response` if that answers: bare bodies, pairs, or batch files' lines."""
    request = source.get("request") or source.get("body")
    if request is None and ({"messages", "input", "prompt"} & set(source)):
        request = source
    if not isinstance(request, dict):
        raise ValueError("no request: expected `request`, `body`, or the request's own members")
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
    """A response that answers, as JSON or as the text of a stream: not one that failed, nor any other text."""
    if isinstance(logged, dict) and "body" in logged:
        failed = not 200 <= logged.get("status_code", 200) < 300
        logged = None if failed else logged["body"]
    if isinstance(logged, str) and not logged.lstrip().startswith(_STREAM):
        logged = msgspec.json.decode(logged) if logged.lstrip().startswith("{") else None
    if isinstance(logged, dict) and logged.get("error"):
        return None
    return logged if isinstance(logged, dict | str) else None


FORMATS: dict[str, Callable[[Source], Source | None]] = {
    "clinc150": clinc150,
    "routellm": routellm,
    "mmlupro": mmlupro,
    "openai-log": openai_log,
}


def convert(kind: str, path: Path, where: dict[str, str]) -> Iterator[bytes | BadRow]:
    """Each line of a file in our format, or what of it cannot be; only those whose members are as `where` says."""
    for number, line in read_lines(path):
        try:
            source = msgspec.json.decode(line, type=dict[str, Any])
            if any(str(source.get(name)) != value for name, value in where.items()):
                continue
            row = FORMATS[kind](source)
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            what = f"no member {error}" if isinstance(error, KeyError) else str(error)
            yield BadRow(number, f"is not {kind}: {what}")
            continue
        if row is not None:
            yield msgspec.json.encode(row)
            if source.get("response") and "outcomes" not in row:
                yield BadRow(number, "its response failed or is no answer; its request is kept")
