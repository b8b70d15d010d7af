"""The loop of the Python drivers. Each line of stdin is a command in JSON, each line of stdout its result."""

import json
import sys
from collections.abc import Callable
from typing import Any

# The tool of the tests, as a JSON Schema.
READ_FILE = {
    "name": "read_file",
    "description": "Read a text file",
    "schema": {
        "type": "object",
        "properties": {"path": {"type": "string"}},
        "required": ["path"],
        "additionalProperties": False,
    },
}


def read_file(path: str) -> str:
    """Read a text file."""
    with open(path, encoding="utf-8") as file:
        return file.read()


def shown(text: str) -> str:
    """Print that a piece of a text has arrived, and return it."""
    print(json.dumps({"shown": text}), flush=True)
    return text


def drive(scenarios: dict[str, Callable[..., Any]]) -> None:
    """Run one scenario for each command, and print what it returned or raised."""
    for line in sys.stdin:
        command = json.loads(line)
        try:
            result = {"result": scenarios[command.pop("do")](**command)}
        except Exception as error:
            status = getattr(error, "status_code", None)
            names = [kind.__name__ for kind in type(error).__mro__]
            result = {"raised": names, "status": status, "text": str(error)[:500]}
        print(json.dumps(result), flush=True)
