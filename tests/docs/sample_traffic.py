"""The files that the commands of the guides name, made from the sample intents."""

import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from tests.docs.fences import ROOT

# Every fifth utterance of an intent stays in its file. So many of the others become labelled traffic.
_STEP, _ROWS = 5, 12
_OUT_OF_SCOPE = ("what is the capital of Peru", "weather in Oslo tomorrow", "who painted the Night Watch")


def write_samples(folder: Path) -> None:
    """Write `intents`, an older version of it in `main`, `traffic.jsonl`, `requests.jsonl` and `request.json`."""
    shutil.copytree(ROOT / "intents", folder / "intents")
    asked = [*_thinned(folder / "intents"), *((text, None) for text in _OUT_OF_SCOPE)]
    shutil.copytree(folder / "intents", folder / "main" / "intents")
    rows = [{"text": text, "intent": intent} for text, intent in asked]
    bodies = [{"model": "auto", "messages": [{"role": "user", "content": text}]} for text, _ in asked]
    _write_lines(folder / "traffic.jsonl", rows)
    _write_lines(folder / "requests.jsonl", bodies)
    (folder / "request.json").write_text(json.dumps(bodies[0]))


def _thinned(intents: Path) -> Iterator[tuple[str, str | None]]:
    """Leave fewer utterances in the files. Yield some of the others with their intent."""
    for path in sorted(intents.glob("*.yaml")):
        intent = yaml.safe_load(path.read_text())
        if "utterances" not in intent:
            continue
        utterances = intent["utterances"]
        path.write_text(yaml.safe_dump(intent | {"utterances": utterances[::_STEP]}))
        others = [text for i, text in enumerate(utterances) if i % _STEP]
        yield from ((text, intent["intent"]) for text in others[:_ROWS])


def _write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
