"""The Anthropic SDK for Python: messages."""

import sys
from typing import Any

from driving import READ_FILE, drive, read_file, shown
from recipe import client

_TOOL = {
    "name": READ_FILE["name"],
    "description": READ_FILE["description"],
    "input_schema": READ_FILE["schema"],
}
_THINKING = {"thinking": {"type": "enabled", "budget_tokens": 1024}}


def messages(prompt: str, **more: Any) -> str:
    said = [{"role": "user", "content": prompt}]
    return _text(client.messages.create(**{"model": "auto", "max_tokens": 500, "messages": said} | more))


def messages_stream(prompt: str) -> list[str]:
    said = [{"role": "user", "content": prompt}]
    with client.messages.stream(model="auto", max_tokens=500, messages=said) as stream:
        pieces = list(map(shown, stream.text_stream))
        assert _text(stream.get_final_message()) == "".join(pieces)
    return pieces


def messages_tools(prompt: str, thinking: bool = False) -> str:
    said: list[Any] = [{"role": "user", "content": prompt}]
    more = _THINKING if thinking else {}
    while True:
        answer = client.messages.create(model="auto", max_tokens=2000, messages=said, tools=[_TOOL], **more)
        if answer.stop_reason != "tool_use":
            return _text(answer)
        said.append({"role": "assistant", "content": answer.content})
        results = [
            {"type": "tool_result", "tool_use_id": block.id, "content": read_file(**block.input)}
            for block in answer.content
            if block.type == "tool_use"
        ]
        said.append({"role": "user", "content": results})


def messages_turns(prompts: list[str], thinking: bool = False) -> list[str]:
    said: list[Any] = []
    texts = []
    for prompt in prompts:
        said.append({"role": "user", "content": prompt})
        more = _THINKING if thinking else {}
        answer = client.messages.create(model="auto", max_tokens=2000, messages=said, **more)
        said.append({"role": "assistant", "content": answer.content})
        texts.append(_text(answer))
    return texts


def messages_cancel(prompt: str) -> int:
    said = [{"role": "user", "content": prompt}]
    with client.messages.create(model="auto", max_tokens=500, messages=said, stream=True) as stream:
        return len([next(stream) for _ in range(8)])


def count_tokens(prompt: str) -> int:
    said = [{"role": "user", "content": prompt}]
    return client.messages.count_tokens(model="auto", messages=said).input_tokens


def models() -> list[str]:
    return [model.id for model in client.models.list()]


def _text(answer: Any) -> str:
    return "".join(block.text for block in answer.content if block.type == "text")


drive({name: scenario for name, scenario in vars(sys.modules[__name__]).items() if callable(scenario)})
