"""`extproc demo`: real prompts through the real Envoy, and a table of where they went."""

import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import openai

from extproc.config.load import load_config
from extproc.contract.names import HeaderName
from extproc.contract.words import Reason
from extproc.demo.stack import PLAIN_CLUSTER, Stack, running

_PROMPTS = (
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


_INVOICE = "Extract the sender and the total as JSON: Invoice from Nordwind, 420 EUR, due 3 May."
_INVOICE_FORMAT = {
    "type": "json_schema",
    "json_schema": {"name": "invoice", "schema": {"type": "object", "required": ["sender", "total"]}},
}
_PASSWORD = "I forgot my password and cannot get into my account, what can I do?"


class _Row(msgspec.Struct):
    prompt: str
    stream: bool
    cohort: str
    tier: str
    reasoning: str
    reason: str
    added_ms: float
    as_decided: bool


def run_demo(intents: Path, keep_serving: bool) -> int:
    """Run the demo; return 0 when every prompt was served by the tier its cohort names."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    print("starting sample upstreams, router and Envoy ...", flush=True)
    began = time.monotonic()
    with running(intents) as stack:
        print(f"ready after {time.monotonic() - began:.1f} s\n", flush=True)
        rows = _table(stack)
        served = sum(row.as_decided for row in rows)
        print(
            f"\n{served} of {len(rows)} prompts were served by the tier that their cohort names; "
            "every other prompt was streamed (*).\n"
            "ms = added by routing, at the first byte, against the same request through Envoy without it;\n"
            "each text is new to the router, so this includes one embedding."
        )
        climbed = _cascade(stack)
        if keep_serving:
            _keep_serving(stack)
    return 0 if served == len(rows) and climbed else 1


def _table(stack: Stack) -> list[_Row]:
    routed = openai.OpenAI(base_url=f"{stack.url}/v1", api_key="demo", max_retries=0, timeout=30)
    config = load_config(stack.intents)
    tiers = {tier.name: tier for tier in config.policy.tiers}
    wanted = {intent.intent: intent.tier for intent in config.intents}
    with routed:
        for tier in tiers.values():  # connections are not what we measure
            _ask(_plain(stack, tier.cluster_name), tier.model, "warm up", False)
        _ask(routed, "auto", "warm up", False)
        rows = []
        form = "{:<46} {:<1} {:<16} {:<9} {:<9} {:<13} {:>6}"
        print(form.format("prompt", "", "cohort", "tier", "reasoning", "reason", "ms"))
        print("-" * 106)
        for i, prompt in enumerate(_PROMPTS):
            row = _row(stack, routed, tiers, prompt, stream=i % 2 == 1)
            row.as_decided &= row.reason != Reason.MATCHED or row.tier == wanted[row.cohort]
            rows.append(row)
            short = prompt if len(prompt) <= 46 else prompt[:45] + "…"
            mark = "*" if row.stream else ""
            print(
                form.format(short, mark, row.cohort, row.tier, row.reasoning, row.reason, f"{row.added_ms:.1f}"),
                flush=True,
            )
    return rows


def _row(stack: Stack, routed: openai.OpenAI, tiers: dict[str, Any], prompt: str, stream: bool) -> _Row:
    seconds, headers, _ = _ask(routed, "auto", prompt, stream)
    arrived = stack.upstreams.received[-1]
    body = msgspec.json.decode(arrived.body)
    tier = tiers[headers[HeaderName.TIER]]
    with _plain(stack, tier.cluster_name) as plain:
        _ask(plain, tier.model, prompt, stream)
        without = min(_ask(plain, tier.model, prompt, stream)[0] for _ in range(3))
    reasoning = body.get("chat_template_kwargs", {}).get("enable_thinking")
    effort = body.get("reasoning_effort") or {True: "on", False: "off", None: "-"}[reasoning]
    return _Row(
        prompt=prompt,
        stream=stream,
        cohort=headers.get(HeaderName.COHORT, "-"),
        tier=tier.name,
        reasoning=effort,
        reason=headers[HeaderName.REASON],
        added_ms=(seconds - without) * 1000,
        as_decided=arrived.tier == tier.name and body["model"] == tier.model,
    )


def _cascade(stack: Stack) -> bool:
    """Requests whose first answer is rejected, or whose first tier is dead; whether all ended well."""
    tiers = load_config(stack.intents).policy.tiers
    prices = {tier.name: tier.price for tier in tiers}
    form = "{:<46} {:<1} {:<17} {:<10} {:<8} {:<26}"
    print("\nWhen the small tier's answer is not good enough, or its server is dead:\n")
    print(form.format("prompt", "", "served by", "why", "attempts", "paid, per million requests"))
    print("-" * 106)
    well = True
    with openai.OpenAI(base_url=f"{stack.url}/v1", api_key="demo", max_retries=0, timeout=30) as client:
        for prompt, stream, extra, dead in (
            (_INVOICE, False, {"response_format": _INVOICE_FORMAT}, None),
            (_PASSWORD, False, {}, None),
            (_PASSWORD, True, {}, None),
            ("Rewrite this more politely: Send me the report now.", False, {}, tiers[0].name),
            ("Rewrite this more politely: Send me the report now.", True, {}, tiers[0].name),
        ):
            if dead is not None:
                stack.upstreams.stop_tier(dead)
            stack.upstreams.billed.clear()
            _, headers, text = _ask(client, "auto", prompt, stream, extra)
            paid = [
                f"{a.tier} ${(a.input_tokens * prices[a.tier].input + a.output_tokens * prices[a.tier].output):.1f}"
                for a in stack.upstreams.billed
            ]
            why = "dead" if dead is not None else headers.get(HeaderName.VERDICT_REASON, "-")
            served = headers[HeaderName.TIER]
            well &= served == tiers[1].name and headers[HeaderName.ATTEMPTS] == "2" and "sorry" not in text
            short = prompt if len(prompt) <= 46 else prompt[:45] + "…"
            costs = " + ".join(paid)
            line = form.format(short, "*" if stream else "", served, why, headers[HeaderName.ATTEMPTS], costs)
            print(line, flush=True)
    stack.upstreams.restart_tier(tiers[0].name)
    return well


def _plain(stack: Stack, cluster: str) -> openai.OpenAI:
    return openai.OpenAI(
        base_url=f"{stack.plain_url}/v1", api_key="demo", max_retries=0, timeout=30,
        default_headers={PLAIN_CLUSTER: cluster},
    )  # fmt: skip


def _ask(
    client: openai.OpenAI, model: str, prompt: str, stream: bool, extra: dict[str, Any] | None = None
) -> tuple[float, Any, str]:
    """Seconds to the first byte of the answer, its headers, and the text."""
    began = time.perf_counter()
    with client.chat.completions.with_streaming_response.create(
        model=model, messages=[{"role": "user", "content": prompt}], stream=stream, extra_body=extra
    ) as answer:
        pieces = answer.iter_bytes()
        first = next(pieces)
        seconds = time.perf_counter() - began
        whole = b"".join(_chain(first, pieces))
    return seconds, answer.headers, whole.decode()


def _chain(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    yield first
    yield from rest


def _keep_serving(stack: Stack) -> None:
    print(
        f"""
Envoy listens on {stack.url}. Paste this:

  curl -si {stack.url}/v1/chat/completions -H 'content-type: application/json' \\
    -d '{{"model": "auto", "messages": [{{"role": "user", "content": "Prove that 17 is prime."}}]}}'

The intents it serves, which you can edit while it runs: {stack.intents}
Ctrl-C stops everything.""",
        flush=True,
    )
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        print("stopping", file=sys.stderr)
