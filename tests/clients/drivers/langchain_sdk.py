"""LangChain for Python: its OpenAI model over chat completions and over responses, and its Anthropic model."""

import sys
from typing import Any

from driving import drive, read_file, shown
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from recipe import chat_model, messages_model, responses_model

_MODELS = {"chat": chat_model, "responses": responses_model, "messages": messages_model}
_TOOL = tool(read_file)


def simple(api: str, prompt: str, **more: Any) -> str:
    return _text(_MODELS[api].invoke(prompt, **more))


def stream(api: str, prompt: str) -> list[str]:
    return [shown(text) for text in map(_text, _MODELS[api].stream(prompt)) if text]


def tools(api: str, prompt: str) -> str:
    model = _MODELS[api].bind_tools([_TOOL])
    messages: list[BaseMessage] = [HumanMessage(prompt)]
    while True:
        answer = model.invoke(messages)
        assert isinstance(answer, AIMessage)
        messages.append(answer)
        if not answer.tool_calls:
            return _text(answer)
        for call in answer.tool_calls:
            messages.append(ToolMessage(_TOOL.invoke(call["args"]), tool_call_id=call["id"]))


def turns(api: str, prompts: list[str]) -> list[str]:
    messages: list[BaseMessage] = []
    for prompt in prompts:
        messages.append(HumanMessage(prompt))
        messages.append(_MODELS[api].invoke(messages))
    return [_text(message) for message in messages[1::2]]


def cancel(api: str, prompt: str) -> int:
    pieces = _MODELS[api].stream(prompt)
    count = len([next(pieces) for _ in range(5)])
    pieces.close()
    return count


def _text(message: BaseMessage) -> str:
    return message.text


drive({name: scenario for name, scenario in vars(sys.modules[__name__]).items() if callable(scenario)})
