"""Values are counted before anything is decoded: exactly, and only outside strings."""

import json
import random
from typing import Any

import pytest

from extproc.api import structure
from extproc.api.structure import MAX_COMMAS, MAX_CONTAINERS, TooManyValues, check_structure, count_structure


def written(dice: random.Random, depth: int = 0) -> Any:
    """Return a random value whose texts look like structure."""
    kind = dice.randrange(4) if depth < 4 else 3
    if kind == 0:
        return [written(dice, depth + 1) for _ in range(dice.randrange(4))]
    if kind == 1:
        return {text(dice): written(dice, depth + 1) for _ in range(dice.randrange(4))}
    return text(dice) if kind == 2 else dice.randrange(100)


def text(dice: random.Random) -> str:
    return "".join(dice.choice(('"', "\\", "[", "{", ",", "a", "\\\\", "é")) for _ in range(dice.randrange(9)))


def counted(value: Any) -> tuple[int, int]:
    """Return the arrays and objects, and the commas, that the text of `value` has."""
    if not isinstance(value, list | dict):
        return 0, 0
    inner = [counted(item) for item in (value.values() if isinstance(value, dict) else value)]
    return 1 + sum(c for c, _ in inner), max(0, len(inner) - 1) + sum(c for _, c in inner)


@pytest.mark.parametrize("chunk_bytes", [1, 2, 3, 7, 1 << 17])
def test_the_count_is_exact_wherever_the_chunks_end(monkeypatch, chunk_bytes):
    """Quotes, backslashes and brackets in texts and names do not count."""
    monkeypatch.setattr(structure, "_CHUNK_BYTES", chunk_bytes)
    dice = random.Random(chunk_bytes)
    for _ in range(200):
        value = [written(dice), written(dice)]
        for ascii_only in (True, False):
            body = json.dumps(value, ensure_ascii=ascii_only).encode()
            assert count_structure(body, 10**6, 10**6) == counted(value)


@pytest.mark.parametrize(
    "body",
    [
        json.dumps({"messages": [{"role": "user", "content": '[{,\\"' * 2 * MAX_COMMAS}]}).encode(),
        json.dumps({"prompt": list(range(MAX_COMMAS - 1))}).encode(),
        json.dumps({"tools": [{"a": 1}] * (MAX_CONTAINERS - 2)}).encode(),
    ],
    ids=["text", "token ids", "tools"],
)
def test_what_a_real_request_may_have_is_read(body):
    """Megabytes of code or CSV in a text, and hundreds of thousands of token ids."""
    check_structure(body)


@pytest.mark.parametrize("item", [b"[]", b"{}", b'{"a":[]}', b"0", b'""', b'"a":1', b"NaN", b"["])
def test_millions_of_values_are_not(item):
    """It does not matter whether they are well formed."""
    with pytest.raises(TooManyValues):
        check_structure(b'{"x":[' + (item + b",") * (MAX_COMMAS + 1) + b"0]}")
