"""Several tasks in one request. Each is matched, and the costliest one decides."""

from typing import Any

import msgspec
import pytest

from extproc.api.request import parse_request
from extproc.routing.signals import read_signals

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"


def tasks(path: str, **body: Any) -> list[str]:
    request = parse_request(path, msgspec.json.encode({"model": "auto"} | body))
    assert request is not None
    return [task.text for task in read_signals(request, 512).ask.tasks]


@pytest.mark.parametrize(
    ("prompts", "texts"),
    [
        (["Prove it", "Is that legal?"], ["Prove it", "Is that legal?"]),
        (["Prove it", "Prove it", "Is  that legal?"], ["Prove it", "Is that legal?"]),
        (["a", "b", "c", "d"], ["a", "b", "c", "d"]),
        ([str(n) for n in range(10)], ["0", "3", "6", "9"]),
        (["Prove it", " "], ["Prove it"]),
        (["Prove it", [1, 2, 3]], []),
        (["Prove it"], []),
        ("Prove it", []),
        ([1, 2], []),
    ],
)
def test_the_prompts_of_a_list_are_tasks(prompts: Any, texts: list[str]) -> None:
    """Each of them gets an answer. At most four are matched, evenly spaced."""
    assert tasks(COMPLETIONS, prompt=prompts) == texts


def test_the_parts_of_a_message_are_one_task() -> None:
    parts = [{"type": "text", "text": "Summarise this."}, {"type": "text", "text": "Boats left."}]
    assert tasks(CHAT, messages=[{"role": "user", "content": parts}]) == []
