"""The first part of the demo: prompts of every cohort, and the tier that serves each."""

from pathlib import Path

import msgspec

from extproc.config.load import load_config
from extproc.contract.names import HeaderName
from extproc.contract.words import Reason
from extproc.demo.client import Client
from extproc.demo.screen import (
    PROMPT_WIDTH,
    print_columns,
    print_heading,
    print_row,
    print_terms,
    shortened,
    yes_or_no,
)
from extproc.demo.stack import PLAIN_CLUSTER, Stack
from extproc.settings import Tier

PROMPTS = (
    "Where is my order? It should have arrived last Tuesday.",
    "I was charged twice for my subscription this month, can I get a refund?",
    "Is this review positive, negative or neutral? 'The battery lasts two days, love it.'",
    "Assign one label to this ticket, bug or feature request: 'Export to PDF crashes on page 3.'",
    "Extract the sender, amount and due date as JSON: Invoice from Nordwind, 420 EUR, due 3 May.",
    "List every person and company named in this text: Ana Ruiz left Vela to join Kestrel.",
    "Summarize in one sentence: The council met on Monday, agreed the budget and postponed the bridge.",
    "Give me the key points of these meeting notes: launch slips two weeks, QA needs one more tester.",
    "Rewrite this more politely: Send me the report now.",
    "Fix the grammar: Me and him goes to the office yesterday.",
    "Write a Python function that merges two sorted lists.",
    "Why does this raise a KeyError? d = {}; d['a'] += 1",
    "A train leaves at 9:40 and covers 210 km at 84 km/h. When does it arrive? Show each step.",
    "Prove that the sum of two odd numbers is even.",
    "Does the GDPR allow us to keep job applicants' CVs for three years without consent?",
    "Is this non-compete clause enforceable if the employee was made redundant?",
    "Search for flights to Lisbon, compare the prices and book the cheapest one with the travel tool.",
    "Open the repository, rename the config module, run the tests and commit the result.",
    "What rhymes with orange, and who would win, a shark or a bear?",
    "yes",
)
_COLUMNS = f"{{:<{PROMPT_WIDTH}}} {{:<6}} {{:<16}} {{:<8}} {{:<9}} {{:<13}} {{:>8}}"
_TERMS = {
    "stream": "whether the client asks for a streamed answer",
    "reasoning": "whether, or how much, the model thinks before it answers. -: nothing is set",
    "cohort": "the intent of the prompt. -: no intent is likely enough",
    "reason": '"matched": the cohort is likely enough for its tier. "out_of_scope" and "ambiguous": the router is '
    "in doubt, and doubt never leads to a cheaper tier",
    "added ms": "the milliseconds that routing adds to the first byte of the answer, compared with the same Envoy "
    "without the router. They include one embedding, because every prompt is new to the router.",
}


class RoutedPrompt(msgspec.Struct, frozen=True):
    """One routed prompt: the decision, and whether it agrees with the intents and with the request upstream."""

    prompt: str
    stream: bool
    cohort: str
    tier: str
    reasoning: str
    reason: str
    added_ms: float
    as_decided: bool


def show_routing(stack: Stack, intents: Path) -> list[RoutedPrompt]:
    """Send the prompts and print a table of them. `intents` is the folder that the user gave. Raises StackError."""
    print_heading(
        "1. Which tier serves which prompt",
        'Each prompt is sent to Envoy with the model name "auto". The router finds the cohort of the prompt. '
        f"Every cohort is an intent in the folder {intents}, which names a tier and a reasoning mode.",
    )
    config = load_config(stack.intents)
    tiers = {tier.name: tier for tier in config.policy.tiers}
    tier_of = {intent.intent: intent.tier for intent in config.intents}
    rows = []
    with Client(stack.url) as client:
        _warm_up(stack, client, tiers)
        print_columns(_COLUMNS, "prompt", "stream", "cohort", "tier", "reasoning", "reason", "added ms")
        for i, prompt in enumerate(PROMPTS):
            row = _route(stack, client, tiers, tier_of, prompt, stream=i % 2 == 1)
            rows.append(row)
            cells = (row.cohort, row.tier, row.reasoning, row.reason, f"{row.added_ms:.1f}")
            print_row(_COLUMNS, shortened(prompt), yes_or_no(row.stream), *cells)
    served = sum(row.as_decided for row in rows)
    print(f"\n{served} of {len(rows)} prompts were served by the tier of their cohort.\n")
    print_terms(_TERMS)
    return rows


def _warm_up(stack: Stack, client: Client, tiers: dict[str, Tier]) -> None:
    """Open the connections, so that they are not measured."""
    for tier in tiers.values():
        with _plain_client(stack, tier) as plain:
            plain.ask(tier.model, "warm up", False)
    client.ask("auto", "warm up", False)


def _route(
    stack: Stack, client: Client, tiers: dict[str, Tier], tier_of: dict[str, str], prompt: str, stream: bool
) -> RoutedPrompt:
    answer = client.ask("auto", prompt, stream)
    received = stack.upstreams.received[-1]
    body = msgspec.json.decode(received.body)
    tier = tiers[answer.headers[HeaderName.TIER]]
    with _plain_client(stack, tier) as plain:
        plain.ask(tier.model, prompt, stream)
        plain_s = min(plain.ask(tier.model, prompt, stream).first_byte_s for _ in range(3))
    cohort, reason = answer.headers.get(HeaderName.COHORT, "-"), Reason(answer.headers[HeaderName.REASON])
    thinking = body.get("chat_template_kwargs", {}).get("enable_thinking")
    return RoutedPrompt(
        prompt=prompt,
        stream=stream,
        cohort="-" if reason.is_fallback else cohort,
        tier=tier.name,
        reasoning=body.get("reasoning_effort") or {True: "on", False: "off", None: "-"}[thinking],
        reason=reason,
        added_ms=(answer.first_byte_s - plain_s) * 1000,
        as_decided=received.tier == tier.name
        and body["model"] == tier.model
        and (reason != Reason.MATCHED or tier.name == tier_of[cohort]),
    )


def _plain_client(stack: Stack, tier: Tier) -> Client:
    return Client(stack.plain_url, {PLAIN_CLUSTER: tier.cluster_name})
