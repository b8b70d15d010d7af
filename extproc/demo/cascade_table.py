"""The second part of the demo: requests whose first answer is rejected, or whose first tier is down."""

from typing import Any

import msgspec

from extproc.config.load import load_config
from extproc.contract.names import HeaderName
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
from extproc.demo.stack import Stack
from extproc.settings import Price

_INVOICE = "Extract the sender and the total as JSON: Invoice from Nordwind, 420 EUR, due 3 May."
_INVOICE_FORMAT = {
    "type": "json_schema",
    "json_schema": {"name": "invoice", "schema": {"type": "object", "required": ["sender", "total"]}},
}
_PASSWORD = "I forgot my password and cannot get into my account, what can I do?"
_POLITE = "Rewrite this more politely: Send me the report now."
_COLUMNS = f"{{:<{PROMPT_WIDTH}}} {{:<6}} {{:<9}} {{:<11}} {{:<8}} {{}}"
_TERMS = {
    "why": 'the reason for the second attempt. "not_json": the answer is not the JSON that the request asks for. '
    '"refusal": the model refused to answer.',
    "cost": "in dollars, at the prices in policy.yaml. A rejected answer is charged, too.",
}


class Case(msgspec.Struct, frozen=True):
    """A request, and whether the server of its first tier is down."""

    prompt: str
    stream: bool
    extra: dict[str, Any] = {}
    is_down: bool = False


CASES = (
    Case(_INVOICE, False, {"response_format": _INVOICE_FORMAT}),
    Case(_PASSWORD, False),
    Case(_PASSWORD, True),
    Case(_POLITE, False, is_down=True),
    Case(_POLITE, True, is_down=True),
)


class EscalatedPrompt(msgspec.Struct, frozen=True):
    """One answer, and whether it is the second attempt's, from the next tier."""

    prompt: str
    tier: str
    why: str
    attempts: str
    cost: str
    as_expected: bool


def show_cascade(stack: Stack) -> list[EscalatedPrompt]:
    """Send the requests and print a table of them. Raises StackError."""
    tiers = load_config(stack.intents).policy.tiers
    first, second = tiers[0].name, tiers[1].name
    print_heading(
        f"2. When an answer of the {first} tier is rejected, or its server is down",
        f"The router judges an answer of the {first} tier before the client sees it. If it rejects the answer, or "
        f"if the server is down, Envoy sends the request to the next tier, which is {second}.",
    )
    print_columns(_COLUMNS, "prompt", "stream", "tier", "why", "attempts", "cost of 1 million requests")
    prices = {tier.name: tier.price for tier in tiers}
    rows = []
    with Client(stack.url) as client:
        for case in CASES:
            if case.is_down:
                stack.upstreams.stop_tier(first)
            row = _escalate(stack, client, case, second, prices)
            rows.append(row)
            stream = yes_or_no(case.stream)
            print_row(_COLUMNS, shortened(case.prompt), stream, row.tier, row.why, row.attempts, row.cost)
    stack.upstreams.restart_tier(first)
    served = sum(row.as_expected for row in rows)
    print(f"\n{served} of {len(rows)} requests were served by the {second} tier, after one failed attempt.\n")
    print_terms(_TERMS)
    return rows


def _escalate(stack: Stack, client: Client, case: Case, second: str, prices: dict[str, Price]) -> EscalatedPrompt:
    stack.upstreams.billed.clear()
    answer = client.ask("auto", case.prompt, case.stream, case.extra)
    costs = []
    for billed in stack.upstreams.billed:
        price = prices[billed.tier]
        dollars = billed.input_tokens * price.input + billed.output_tokens * price.output
        costs.append(f"{billed.tier} ${dollars:.1f}")
    tier, attempts = answer.headers[HeaderName.TIER], answer.headers[HeaderName.ATTEMPTS]
    return EscalatedPrompt(
        prompt=case.prompt,
        tier=tier,
        why="server down" if case.is_down else answer.headers.get(HeaderName.VERDICT_REASON, "-"),
        attempts=attempts,
        cost=" + ".join(costs),
        as_expected=tier == second and attempts == "2" and "sorry" not in answer.text,
    )
