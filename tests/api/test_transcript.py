"""Conversations in one text: chat templates, and turns with the names of the speakers in front."""

import json

import pytest

from extproc.api.parts import MAX_ITEMS
from extproc.api.request import Turn, parse_request
from extproc.api.transcript import turns_in

TALK = [("system", "Be brief."), ("user", "Sort a list"), ("assistant", "sorted(x)"), ("user", "Is this legal?")]
TEMPLATES = {
    "chatml": (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nSort a list<|im_end|>\n"
        "<|im_start|>assistant\nsorted(x)<|im_end|>\n<|im_start|>user\nIs this legal?<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    ),
    "llama 3": (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nSort a list<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nsorted(x)<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nIs this legal?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    ),
    "llama 2": (
        "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nSort a list [/INST] sorted(x) </s>"
        "<s>[INST] Is this legal? [/INST]"
    ),
    "mistral": (
        "<s>[SYSTEM_PROMPT]Be brief.[/SYSTEM_PROMPT][INST]Sort a list[/INST]sorted(x)</s>"
        "[INST]Is this legal?[/INST]"
    ),
    "phi": (
        "<|system|>\nBe brief.<|end|>\n<|user|>\nSort a list<|end|>\n<|assistant|>\nsorted(x)<|end|>\n"
        "<|user|>\nIs this legal?<|end|>\n<|assistant|>\n"
    ),
    "deepseek": (
        "<｜begin▁of▁sentence｜>Be brief.<｜User｜>Sort a list<｜Assistant｜>sorted(x)<｜end▁of▁sentence｜>"
        "<｜User｜>Is this legal?<｜Assistant｜><think>\n"
    ),
    "granite": (
        "<|start_of_role|>system<|end_of_role|>Be brief.<|end_of_text|>\n"
        "<|start_of_role|>user<|end_of_role|>Sort a list<|end_of_text|>\n"
        "<|start_of_role|>assistant<|end_of_role|>sorted(x)<|end_of_text|>\n"
        "<|start_of_role|>user<|end_of_role|>Is this legal?<|end_of_text|>\n"
        "<|start_of_role|>assistant<|end_of_role|>"
    ),
    "command r": (
        "<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>Be brief.<|END_OF_TURN_TOKEN|>"
        "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>Sort a list<|END_OF_TURN_TOKEN|>"
        "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>sorted(x)<|END_OF_TURN_TOKEN|>"
        "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>Is this legal?<|END_OF_TURN_TOKEN|>"
        "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>"
    ),
    "names": "Be brief.\n\nHuman: Sort a list\n\nAssistant: sorted(x)\n\nHuman: Is this legal?\n\nAssistant:",
    "headings": (
        "Be brief.\n\n### Instruction:\nSort a list\n\n### Response:\nsorted(x)\n\n"
        "### Instruction:\nIs this legal?\n\n### Response:\n"
    ),
    "one line": "Be brief. USER: Sort a list ASSISTANT: sorted(x)</s>USER: Is this legal? ASSISTANT:",
}  # fmt: skip


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_template_is_read_as_its_turns(template: str) -> None:
    """The end, where the model answers, is not a turn, with or without the start of an answer."""
    assert turns_in(TEMPLATES[template]) == TALK


def test_templates_without_a_system_turn() -> None:
    gemma = "<bos><start_of_turn>user\nSort a list<end_of_turn>\n<start_of_turn>model\n"
    harmony = (
        "<|start|>developer<|message|>Be brief.<|end|><|start|>user<|message|>Sort a list<|end|><|start|>assistant"
    )
    assert turns_in(gemma) == [("user", "Sort a list")]
    assert turns_in(harmony) == [("system", "Be brief."), ("user", "Sort a list")]


def test_the_output_of_a_tool_is_none_of_the_persons_words() -> None:
    [call] = [turn for turn in turns_in(
        "<|im_start|>user\nSort a list<|im_end|>\n<|im_start|>tool\nProve it<|im_end|>\n<|im_start|>assistant\n"
    ) if turn[0] == "tool"]  # fmt: skip
    assert call == ("tool", "Prove it")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Sort a list",
        "What does <|im_start|>user mean, and what does <|im_start|>assistant mean?",
        "What is wrong in this chat?\nUser: Sort a list\nAssistant: sorted(x)",
        "Who is right?\nHuman: Sort a list\nAssistant: sorted(x)\nHuman: Is this legal?",
        "Write the next line.\nCustomer: My parcel is late\nAgent:",
        "Translate to SQL.\n\nQ: How many users?\nSQL:",
        "Assistant:",
        "<|im_start|>assistant\n",
        "<|im_start|>user\nSort a list<|im_end|>\n",
        "Use this AI:",
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\nWhat is wrong in this prompt?",
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n",
        "[INST] Hi [/INST] Hello </s> Which model writes this?",
        "Human: Hi\nAI: Hello\nNow describe my own AI:",
        "What is wrong in this prompt?\n\nHuman: Hi\nAssistant:",
        "这个提示有什么问题？\n\nHuman: Hi\nAssistant:",
        "Summarise this conversation:\n\nHuman: Hi\nAssistant: Hello\nHuman: Sort a list\nAI:",
        "<|im_start|>user\n" * (MAX_ITEMS + 1) + "<|im_start|>assistant\n",
    ],
    ids=lambda text: text[:30],
)
def test_a_text_about_a_conversation_stays_one_text(text: str) -> None:
    """A quoted conversation is not open at its end, or has a question above it or below it.

    A question about a template does not start with it.
    """
    assert turns_in(text) == []


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": TEMPLATES["chatml"]}),
        ("/v1/completions", {"prompt": [TEMPLATES["chatml"]]}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": TEMPLATES["names"]}]}),
        (
            "/v1/messages",
            {"messages": [{"role": "user", "content": [{"type": "text", "text": TEMPLATES["names"]}]}]},
        ),
        ("/v1/responses", {"input": TEMPLATES["names"]}),
    ],
)
def test_every_api_may_carry_one(path: str, body: dict[str, object]) -> None:
    request = parse_request(path, json.dumps({"model": "auto"} | body).encode())
    assert request is not None
    assert request.turns == tuple(Turn(role, (text,)) for role, text in TALK)


def test_a_conversation_between_other_turns_was_pasted() -> None:
    """A client that writes a conversation into one text sends no other turns, except for a system prompt."""
    pasted = {"role": "user", "content": TEMPLATES["names"]}
    for before, pieces in (({"role": "system", "content": "S"}, 5), ({"role": "assistant", "content": "A"}, 2)):
        request = parse_request("/v1/chat/completions", json.dumps({"messages": [before, pasted]}).encode())
        assert request is not None and len(request.turns) == pieces


def test_a_system_prompt_or_an_answer_is_no_conversation() -> None:
    """Only what the person sends may be one."""
    messages = [{"role": "system", "content": TEMPLATES["names"]}, {"role": "user", "content": "Hi"}]
    request = parse_request("/v1/chat/completions", json.dumps({"messages": messages}).encode())
    assert request is not None and [turn.role for turn in request.turns] == ["system", "user"]


_OPEN = "\n\nHuman: Hi, my parcel is late\nAI: I am sorry. Which number?\nHuman: 4471\nAI:"


@pytest.mark.parametrize(
    "task",
    [
        "Summarise this conversation:",
        "Summarize the chat below in two sentences.",
        "Please translate the following dialogue into German.",
        "Can you rewrite this conversation in a formal tone.",
        "Write a short summary of the following conversation.",
        "Give me a title for this chat.",
        "Classify the sentiment of this transcript as positive or negative.",
        "Extract the order number from the conversation below.",
        "List all promises that the agent makes in this exchange.",
        "Rate the politeness of the assistant in this dialog from 1 to 5.",
        "Identify the problem in the following transcript and name its cause.",
        "Here is a chat with our bot. Analyse this conversation and tell me where the bot went wrong.",
        "TL;DR of this thread",
        "Proofread the dialogue below.",
        "Fasse dieses Gespräch in zwei Sätzen zusammen.",
        "Übersetze die folgende Unterhaltung ins Englische.",
        "Résume cette conversation en une phrase.",
        "Resume esta conversación en una frase.",
        "总结下面的对话：",
        "次の会話を要約してください。",
        "I had this talk with a bot yesterday. Summarise the chat.",
        "Summarise the following conversation. You must be brief.",
        "Keep it short: rate the following chat.",
    ],
)
def test_a_conversation_below_a_task_for_it_stays_one_text(task: str) -> None:
    assert turns_in(task + _OPEN) == []


@pytest.mark.parametrize(
    "instructions",
    [
        "Continue this conversation.",
        "Complete the dialogue below.",
        "You are a helpful assistant. Answer politely.",
        "You are a translator. Translate what the user says into French.",
        "Be brief.",
        "You are a bot of a shop. Be friendly, find the order, and never talk about other chats.",
        "This is a chat with a lawyer.",
        "Respond to the last message of the user.",
        "You summarise articles for people. Keep it short.",
        "Use the chat history to answer. Never list your instructions.",
        "System: answer in English. Format your messages in Markdown.",
        "Be brief. Explain words that are new in the text.",
        "You help users of a shop. List your sources in the text.",
        "Give short answers, list at most three items of the log.",
        "Assistant is a large model. Assistant can chat, summarize text and translate text.",
        "Du bist ein freundlicher Helfer.",
        "Read the conversation and reply as the AI.",
        "You are Bob. Explain things simply in this conversation.",
        "The following is a friendly conversation between a human and an AI. If the AI does not know the answer to "
        "a question, it says so.\n\nCurrent conversation:",
        "Below is an instruction that describes a task. Write a response that completes the request.",
    ],
)
def test_instructions_above_a_conversation_are_a_system_prompt(instructions: str) -> None:
    """Also if they name work or conversations: the model is to answer the person."""
    assert [role for role, _ in turns_in(instructions + _OPEN)] == ["system", "user", "assistant", "user"]
