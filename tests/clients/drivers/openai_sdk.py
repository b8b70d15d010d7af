"""The OpenAI SDK for Python: chat completions and responses."""

import json
import sys
from typing import Any

from driving import READ_FILE, drive, read_file, shown
from recipe import client

_FUNCTION = {
    "name": READ_FILE["name"],
    "description": READ_FILE["description"],
    "parameters": READ_FILE["schema"],
    "strict": True,
}


def chat(prompt: str, **more: Any) -> str:
    messages = [{"role": "user", "content": prompt}]
    answer = client.chat.completions.create(**{"model": "auto", "messages": messages} | more)
    return answer.choices[0].message.content


def chat_stream(prompt: str) -> list[str]:
    messages = [{"role": "user", "content": prompt}]
    options = {"include_usage": True}
    with client.chat.completions.create(
        model="auto", messages=messages, stream=True, stream_options=options
    ) as stream:
        pieces = [shown(chunk.choices[0].delta.content or "") if chunk.choices else chunk.usage for chunk in stream]
    assert pieces.pop().total_tokens == 25
    return pieces


def chat_tools(prompt: str) -> str:
    messages: list[Any] = [{"role": "user", "content": prompt}]
    tools = [{"type": "function", "function": _FUNCTION}]
    while True:
        message = client.chat.completions.create(model="auto", messages=messages, tools=tools).choices[0].message
        if not message.tool_calls:
            return message.content
        messages.append(message)
        for call in message.tool_calls:
            text = read_file(**json.loads(call.function.arguments))
            messages.append({"role": "tool", "tool_call_id": call.id, "content": text})


def chat_turns(prompts: list[str]) -> list[str]:
    messages: list[Any] = []
    texts = []
    for prompt in prompts:
        messages.append({"role": "user", "content": prompt})
        message = client.chat.completions.create(model="auto", messages=messages).choices[0].message
        messages.append(message)
        texts.append(message.content)
    return texts


def chat_cancel(prompt: str) -> int:
    messages = [{"role": "user", "content": prompt}]
    with client.chat.completions.create(model="auto", messages=messages, stream=True) as stream:
        return len([next(stream) for _ in range(5)])


def responses(prompt: str, **more: Any) -> str:
    return client.responses.create(**{"model": "auto", "input": prompt} | more).output_text


def responses_stream(prompt: str) -> list[str]:
    with client.responses.stream(model="auto", input=prompt) as stream:
        pieces = [shown(event.delta) for event in stream if event.type == "response.output_text.delta"]
        assert stream.get_final_response().output_text == "".join(pieces)
    return pieces


def responses_tools(prompt: str) -> str:
    items: list[Any] = [{"role": "user", "content": prompt}]
    tools = [{"type": "function", **_FUNCTION}]
    while True:
        response = client.responses.create(model="auto", input=items, tools=tools)
        calls = [item for item in response.output if item.type == "function_call"]
        if not calls:
            return response.output_text
        items += response.output
        for call in calls:
            text = read_file(**json.loads(call.arguments))
            items.append({"type": "function_call_output", "call_id": call.call_id, "output": text})


def responses_turns(prompts: list[str], by: str) -> list[str]:
    """Continue by the history, by its sealed reasoning too, or by the id of the last response."""
    more: dict[str, Any] = {}
    if by == "sealed":
        more = {"store": False, "include": ["reasoning.encrypted_content"]}
    items: list[Any] = []
    texts = []
    for prompt in prompts:
        items.append({"role": "user", "content": prompt})
        response = client.responses.create(model="auto", input=items, **more)
        if by == "id":
            items, more = [], {"previous_response_id": response.id}
        else:
            items += response.output
        texts.append(response.output_text)
    return texts


def responses_cancel(prompt: str) -> int:
    with client.responses.create(model="auto", input=prompt, stream=True) as stream:
        return len([next(stream) for _ in range(8)])


def models() -> list[str]:
    return [model.id for model in client.models.list()]


drive({name: scenario for name, scenario in vars(sys.modules[__name__]).items() if callable(scenario)})
