"""Several tasks in one request. Each is matched, and the costliest one decides."""

from typing import Any

import msgspec
import pytest

from extproc.api.request import parse_request
from extproc.routing.router import Router
from extproc.routing.signals import read_signals
from tests.routing.test_follow_up import routed, router, with_policy  # noqa: F401

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


@pytest.mark.parametrize(
    ("text", "texts"),
    [
        (
            "1. Summarise the text below in a line.\n2. Is this clause enforceable in France?",
            ["Summarise the text below in a line.", "Is this clause enforceable in France?"],
        ),
        (
            "Two things: (1) sum up the report of today; (2) prove that 17 is a prime number.",
            ["sum up the report of today;", "prove that 17 is a prime number."],
        ),
        (
            "- Fix the typo in this sentence\n- Prove that 17 is a prime number",
            ["Fix the typo in this sentence", "Prove that 17 is a prime number"],
        ),
        (
            "Translate the sentence below. Also, say whether we may dismiss them.",
            ["Translate the sentence below.", "say whether we may dismiss them."],
        ),
        ("Translate 'hello', then prove that 17 is prime.", ["prove that 17 is prime."]),
        (
            "Sum up the report of today and calculate when both trains meet",
            ["Sum up the report of today", "calculate when both trains meet"],
        ),
        (
            "Übersetze den Satz ins Französische. Außerdem: Dürfen wir die Daten speichern?",
            ["Übersetze den Satz ins Französische.", "Dürfen wir die Daten speichern?"],
        ),
        ("把这句话翻译成英语。另外，证明根号二是无理数。", ["把这句话翻译成英语。", "证明根号二是无理数。"]),
        ("Where is the next parcel, and what else do you plan to send?", []),
        ("Summarise the text: the court met last month and rose again in the evening.", []),
        ("thanks, also ok", []),
        # A list to work on, and code.
        (
            "Tag each of these with one of: device, network.\n1. The laptop sleeps on 2. The shared drive is gone",
            [],
        ),
        ("What is the mood of each: (a) the new update is so smooth (b) two hours on hold, never again", []),
        ("Translate into German:\n1. Sue the landlord for it.\n2. Prove that you paid the rent.", []),
        ("Summarise: First, we sued the landlord. Then we appealed the verdict.", []),
        ("请把下面的句子翻译成英语：\n1. 起诉房东并要求退还押金 2. 证明根号二是无理数", []),
        ("What is wrong here?\n```\na = b - c * d  # then explain the result to the user\n```", []),
        (
            "Two things: 1. Translate the sentence below 2. Prove that 17 is a prime number",
            ["Translate the sentence below", "Prove that 17 is a prime number"],
        ),
    ],
)
def test_the_parts_of_a_short_text_are_tasks(text: str, texts: list[str]) -> None:
    """Items of a list, and sentences that begin with "also" or "then". A part of a few words is not a task."""
    assert tasks(CHAT, messages=[{"role": "user", "content": text}]) == texts


def test_a_long_text_and_a_follow_up_are_one_task() -> None:
    """A long text has a text to work on. A follow-up is matched alone already."""
    long = "Summarise the text below in a line. Also, prove that 17 is prime. " + "The boats left. " * 40
    assert tasks(CHAT, messages=[{"role": "user", "content": long}]) == []
    turns = [
        {"role": "user", "content": "Is this clause enforceable in France?"},
        {"role": "assistant", "content": "No."},
        {"role": "user", "content": "Are you sure about that? Also, is it legal in Spain?"},
    ]
    assert tasks(CHAT, messages=turns) == []


@pytest.mark.parametrize(
    ("text", "ask", "tier"),
    [
        (
            "cook soup and bake bread and boil egg and fry fish. Then, break lease and sue landlord?",
            "break lease and sue landlord?",
            "large",
        ),
        ("1. sue landlord and appeal verdict 2. bake bread and boil egg", None, "large"),
        ("bake bread and boil egg. Also, cook soup and fry fish.", None, "small"),
        # A part that belongs to no cohort says nothing about the whole.
        ("cook soup and bake bread and fry fish. Also, paint a picture of the sea.", None, "small"),
    ],
)
def test_the_costliest_task_of_a_text_decides(router: Router, text: str, ask: str | None, tier: str) -> None:  # noqa: F811
    result = routed(router, text)
    assert result.signals is not None
    assert (result.signals.ask.text, result.decision.tier.name) == (ask or text, tier)


def test_a_task_keeps_the_guard_of_the_whole_text(router: Router) -> None:  # noqa: F811
    with_policy(router, cooking={"only": ("small", "medium")})
    result = routed(router, "cook soup, bake bread and fry fish. Also, break lease and sue landlord?")
    assert (result.decision.tier.name, result.decision.refused) == ("medium", False)
