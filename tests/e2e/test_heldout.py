"""The sample intents match prompts that they have never seen."""

import asyncio
from collections import Counter
from collections.abc import Callable

import msgspec
import yaml

from extproc.api.request import parse_request
from extproc.config.compile import compile_snapshot
from extproc.config.load import load_config
from extproc.contract.words import Reason
from extproc.encoder.backends import load_encoder
from extproc.encoder.batcher import Batcher, RememberingEncoder
from extproc.encoder.protocols import Encoder
from extproc.routing.index import Match, nearest
from extproc.routing.router import Router
from extproc.routing.signals import read_signals
from extproc.routing.snapshot import Snapshot
from extproc.routing.trust import trust, weigh
from tests.conftest import SUMMARY
from tests.e2e.traffic import CHAT, INTENTS, REPOSITORY

_NONE = "no cohort"
_LEAST_SHARE = 0.9


def _matched(snapshot: Snapshot, encoder: Encoder, prompts: list[str]) -> list[Match]:
    """Return the match of each prompt, as serving finds it."""
    asks = []
    for prompt in prompts:
        body = msgspec.json.encode({"model": "auto", "messages": [{"role": "user", "content": prompt}]})
        request = parse_request(CHAT, body)
        assert request is not None
        asks.append(read_signals(request, snapshot.encoder.max_chars).ask.text)
    return [nearest(snapshot.index, vector) for vector in encoder.encode(asks)]


def _table(counts: dict[str, Counter[str]], columns: list[str]) -> str:
    width = max(map(len, counts)) + 2
    heads = [f"{column[:9]:>10}" for column in columns]
    rows = [
        f"{true:<{width}}" + "".join(f"{counted[column] or '.':>10}" for column in columns)
        for true, counted in counts.items()
    ]
    return "\n".join([f"{'true / landed':<{width}}" + "".join(heads), *rows])


def test_held_out_prompts_land_in_their_cohort(record_property: Callable[[str, object], None]) -> None:
    """Nine of ten held-out prompts have their cohort as the likeliest one, and get its tier.

    Those of no cohort get the default tier.
    """
    config = load_config(INTENTS)
    encoder = load_encoder(config.policy.encoder.model)
    snapshot = compile_snapshot(config, encoder)
    policy = snapshot.policy
    prompts: dict[str, list[str]] = yaml.safe_load((REPOSITORY / "tests" / "heldout.yaml").read_text())
    names = [intent.intent for intent in config.intents]
    assert set(prompts) == {*names, "out_of_scope"}

    matches = {name: _matched(snapshot, encoder, texts) for name, texts in prompts.items()}
    landed = {
        name: Counter(m.cohort if trust(policy, m) is Reason.MATCHED else _NONE for m in found)
        for name, found in matches.items()
    }
    total = sum(len(prompts[name]) for name in names)
    right = sum(m.cohort == name for name in names for m in matches[name])
    needed = {name: policy.cohorts[name].tier for name in names} | {"out_of_scope": policy.default_tier}
    served = {name: [policy.tiers[weigh(policy, m).rank].name for m in found] for name, found in matches.items()}
    tier = sum(tier == needed[name] for name in names for tier in served[name])
    outside = served["out_of_scope"].count(policy.default_tier) / len(prompts["out_of_scope"])
    record_property(
        SUMMARY,
        f"{_table(landed, [*names, _NONE])}\n"
        f"likeliest cohort {right / total:.1%}, tier {tier / total:.1%}, out of scope {outside:.0%}",
    )
    assert right / total >= _LEAST_SHARE
    assert tier / total >= _LEAST_SHARE
    assert outside >= _LEAST_SHARE


_EASY = (
    "summarise the text below in a line",
    "translate 'good morning' into French",
    "extract the sender and the total as JSON from: Nordwind, 420 EUR",
    "classify this review as positive or negative: the soup was cold",
)
_HARD = {
    "tell me whether the GDPR allows us to keep CVs for three years without consent": "frontier",
    "say if we may dismiss an employee who is on sick leave": "frontier",
    "prove that there are infinitely many primes": "large",
    "write a Python function that merges two sorted lists": "large",
}
_FORMS = (
    "1. {easy}\n2. {hard}", "- {hard}\n- {easy}", "{easy}. Also, {hard}.", "{hard}, then {easy}.",
    "Please {easy} and {hard}", "First {easy}. Second, {hard}. Thanks!",
)  # fmt: skip


def test_a_hard_task_beside_an_easy_one_keeps_its_tier() -> None:
    """In any order, and in a list or in a sentence."""
    config = load_config(INTENTS)
    encoder = load_encoder(config.policy.encoder.model)
    snapshot = compile_snapshot(config, encoder)
    snapshot = msgspec.structs.replace(
        snapshot, encoder=msgspec.structs.replace(snapshot.encoder, deadline_ms=60_000)
    )
    router, policy = Router(snapshot, Batcher(RememberingEncoder(encoder))), snapshot.policy

    async def tier_of(text: str) -> str:
        body = msgspec.json.encode({"model": "auto", "messages": [{"role": "user", "content": text}]})
        return (await router.route(body, {":path": CHAT})).decision.tier.name

    async def too_low() -> list[tuple[str, str]]:
        return [
            (text, tier)
            for form in _FORMS
            for easy in _EASY
            for hard, needed in _HARD.items()
            if policy.rank(tier := await tier_of(text := form.format(easy=easy, hard=hard))) < policy.rank(needed)
        ]

    assert asyncio.run(too_low()) == []
