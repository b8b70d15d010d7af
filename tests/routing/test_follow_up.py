"""Follow-ups: which asks are read with the ones before them, and which of them are matched alone."""

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from extproc.config.compile import compile_snapshot
from extproc.config.load import load_config
from extproc.contract.words import Reason
from extproc.encoder.batcher import Batcher
from extproc.encoder.protocols import DeadlineError
from extproc.evidence.data.decided import DecidedRows
from extproc.evidence.data.traffic import read_traffic
from extproc.evidence.routed_rows import Memory, route_each
from extproc.routing.ask import find_ask
from extproc.routing.findings import read_findings
from extproc.routing.follow_up import is_follow_up, is_short, refers_back
from extproc.routing.routed import Routed
from extproc.routing.router import Router
from extproc.routing.snapshot import Rollout
from extproc.settings import Candidate, Conditions, Rule
from tests.conftest import WordEncoder
from tests.routing.test_ask import assistant, user


@pytest.mark.parametrize(
    "text",
    [
        "yes",
        "and in French?",
        "the second one",
        "那在中国呢？",
        "日本ではどうですか？",
        "और भारत में?",
        "και στην Ελλάδα;",
        "а что насчёт Германии?",
        "그럼 독일은요?",
    ],
)
def test_a_few_words_are_short_in_every_script(text: str) -> None:
    assert is_short(text)


@pytest.mark.parametrize(
    "text", ["Write tests for the parser.", "把这段话翻译成英语吧", "Напиши функцию для сортировки"]
)
def test_a_sentence_is_not_short_in_any_script(text: str) -> None:
    assert not is_follow_up(text)


@pytest.mark.parametrize(
    "text",
    [
        "Are you sure about that?",
        "Could you rephrase that in simpler words?",
        "ok but what about people outside the country",
        "What happens if they refuse to sign it?",
        "So in our case it would be fine?",
        "I still don't understand the third point",
        "Now do it without the last line",
        "Gilt das auch für Praktikanten?",
        "Und was ist, wenn sie nicht zustimmen?",
        "Est-ce que cela vaut aussi pour les stagiaires ?",
        "¿Eso vale también para los becarios?",
        "Maar geldt dat ook voor zzp'ers?",
        "Это касается и стажёров?",
        "もう少し詳しく説明してください",
        "实习生也一样吗？",
        "그럼 아르바이트생은 어떻게 되나요?",
        "आप इसके बारे में कितने सुनिश्चित हैं?",
        "وماذا عن المتدربين؟",
    ],
)
def test_a_longer_ask_may_refer_to_what_was_said(text: str) -> None:
    assert is_follow_up(text)


@pytest.mark.parametrize(
    "text",
    [
        "Classify this review: the soup was cold.",
        'Translate this into French: "good morning"',
        "Is it legal to record a phone call?",
        "What time is it in Tokyo?",
        "What is the weather like this week?",
        "Prove that 17 is a prime number.",
        "Write a script that deletes old log files",
        "Take the invoice and convert it to JSON",
        "Find the flaky test in the repo, fix it and commit",
        "Who was the last emperor of China?",
        "Now write about a mountain in spring.",
        "Was kostet ein Zugticket nach Wien?",
        "¿Cuál es la capital de Mongolia?",
        "モンゴルの首都はどこですか？",
        "Explain this:\ndef add(a, b): return a - b",
        "Does it apply to that? " * 4,
    ],
)
def test_an_ask_with_its_own_task_does_not(text: str) -> None:
    assert not refers_back(text)


def test_it_is_joined_to_the_ask_before_it() -> None:
    """Its own text is kept, too, unless it names no task."""
    first, second = "Does the law allow a copy of the contract?", "Does that also hold for interns?"
    ask = find_ask([user(first), assistant(), user(second)])
    assert (ask.text, ask.source) == (f"{first}\n{second}", "joined")
    assert ask.alone is not None and (ask.alone.text, ask.alone.source) == (second, "last_user")
    assert find_ask([user(first), assistant(), user("Thank you!")]).alone is None
    assert find_ask([user(second)]).source == "last_user"


def test_it_is_not_joined_to_long_material() -> None:
    """The material would fill the joined text."""
    ask = find_ask(
        [user("A clause of a contract. " * 40), assistant(), user("Summarise this contract in one line")]
    )
    assert (ask.text, ask.source, ask.alone) == ("Summarise this contract in one line", "last_user", None)


# Matching

_POLICY = """
version: 1
default_tier: large
retarget: [auto]
encoder: {model: all-MiniLM-L6-v2, deadline_ms: 20000}
tiers:
  - {name: small, url: "http://127.0.0.1:1", model: a, price: {input: 1, output: 1}, context: 9000}
  - {name: large, url: "http://127.0.0.1:2", model: b, price: {input: 2, output: 2}, context: 9000}
"""
_INTENTS = {
    "cooking": ("small", ["cook soup", "bake bread", "boil egg", "fry fish"]),
    "law": ("large", ["sue landlord", "sign contract", "break lease", "appeal verdict"]),
}


@pytest.fixture
def router(tmp_path) -> Router:
    (tmp_path / "policy.yaml").write_text(_POLICY)
    for name, (tier, utterances) in _INTENTS.items():
        text = f"intent: {name}\ntier: {tier}\nfloor: 0.2\nutterances: {utterances}\n"
        (tmp_path / f"{name}.yaml").write_text(text)
    encoder = WordEncoder()
    return Router(compile_snapshot(load_config(tmp_path), encoder), Batcher(encoder))  # type: ignore[arg-type]


def routed(router: Router, *texts: str) -> Routed:
    messages = [{"role": "user", "content": text} for text in texts]
    body = msgspec.json.encode({"model": "auto", "messages": messages})
    return asyncio.run(router.route(body, {":path": "/v1/chat/completions"}))


SUE = "break lease and sue landlord"


@pytest.mark.parametrize(
    ("texts", "ask", "tier"),
    [
        ((SUE, "do that again"), f"{SUE}\ndo that again", "large"),
        (("cook soup", "break lease"), "break lease", "large"),  # alone, it needs more
        ((SUE, "cook soup"), f"{SUE}\ncook soup", "large"),  # alone, it needs less
        (("cook soup", "boil it again"), "cook soup\nboil it again", "small"),
        # Alone, it belongs to nothing, so the default tier is safe.
        (
            ("cook soup and bake bread", "could you paint a picture of that?"),
            "could you paint a picture of that?",
            "large",
        ),
    ],
)
def test_a_follow_up_goes_to_no_tier_below_its_conversation(
    router: Router, texts: tuple[str, ...], ask: str, tier: str
) -> None:
    """Nor below what it asks for alone. The record shows the ask that counted."""
    result = routed(router, *texts)
    assert result.signals is not None
    assert (result.signals.ask.text, result.decision.tier.name) == (ask, tier)


def with_policy(router: Router, **changes: Any) -> Router:
    """The router with other values in its policy, and a tier between the two."""
    policy = router.snapshot.policy
    small, large = policy.tiers[0], policy.tiers[-1]
    tiers = (small, msgspec.structs.replace(small, name="medium", model="m"), large)
    cohorts = {
        name: msgspec.structs.replace(cohort, **changes.get(name, {})) for name, cohort in policy.cohorts.items()
    }
    policy = msgspec.structs.replace(policy, tiers=tiers, cohorts=cohorts, rules=changes.get("rules", ()))
    router.swap(msgspec.structs.replace(router.snapshot, policy=policy))
    return router


def test_a_follow_up_alone_stays_in_the_tiers_of_its_conversation(router: Router) -> None:
    """Both sets hold. If no tier is in both, that of the conversation holds."""
    texts = ("cook soup and bake bread", "break lease")
    with_policy(router, cooking={"only": ("small", "medium")})
    of_no_cohort = routed(router, texts[0], "could you paint a picture of that?")
    for result in (routed(router, *texts), of_no_cohort):
        assert (result.decision.tier.name, result.decision.refused) == ("medium", False)
    result = routed(with_policy(router, cooking={"only": ("small",)}, law={"only": ("large",)}), *texts)
    assert (result.decision.tier.name, result.decision.refused) == ("small", False)


def test_a_follow_up_alone_keeps_the_floor_of_its_conversation(router: Router) -> None:
    """So a client that names a tier, or a budget that is used up, does not lower it."""
    with_policy(router, cooking={"tier_floor": "medium"})
    result = routed(router, "cook soup and bake bread", "break lease")
    assert result.signals is not None and result.decision.match is not None
    policy = router.snapshot.policy
    findings = read_findings(policy, result.signals, result.decision.match, {}, Reason.NO_TEXT)
    assert (result.decision.tier.name, findings.guard.floor) == ("large", 1)


def test_a_candidate_beside_matches_a_follow_up_as_if_it_decided(router: Router) -> None:
    """A copy of the policy decides the same."""
    with_policy(router, cooking={"only": ("small", "medium")})
    spec = Candidate("new", shadow=True)
    rollout = Rollout(spec, "new", snapshot=msgspec.structs.replace(router.snapshot))
    router.swap(msgspec.structs.replace(router.snapshot, rollout=rollout))
    for last in ("break lease", "boil it again"):
        result = routed(router, "cook soup and bake bread", last)
        assert result.candidate is not None
        assert msgspec.structs.replace(result.candidate, cache=result.decision.cache) == result.decision


def test_a_follow_up_alone_goes_to_no_tier_below_that_of_a_rule(router: Router) -> None:
    rule = Rule(name="chefs", when=Conditions(intents=("cooking",)), tier="large")
    with_policy(router, rules=(rule,), law={"tier": "medium"})
    result = routed(router, "cook soup and bake bread", "break lease")
    assert (result.decision.tier.name, result.decision.rule) == ("large", "chefs")


def test_an_encoder_without_time_for_the_second_text_leaves_the_first(router: Router) -> None:
    class Slow:
        async def embed(self, text: str, deadline_s: float, principal: str = "") -> object:
            if "\n" not in text:
                raise DeadlineError("late")
            return await fast.embed(text, deadline_s, principal)

    fast = router.embedder
    router.embedder = Slow()  # type: ignore[assignment]
    result = routed(router, "cook soup and bake bread", "break lease")
    assert (result.decision.tier.name, result.decision.reason) == ("small", "matched")


def test_evidence_has_the_ask_that_was_matched(router: Router, tmp_path: Path) -> None:
    """Fits read the signals of a row after its decision. They are those that the router had."""
    path = tmp_path / "rows.jsonl"
    tasks = "cook soup and bake bread and boil egg and fry fish. Then, break lease and sue landlord?"
    for texts in ((SUE, "do that again"), ("cook soup", "break lease"), (tasks,)):
        messages = [{"role": "user", "content": text} for text in texts]
        with path.open("ab") as file:
            file.write(msgspec.json.encode({"request": {"model": "auto", "messages": messages}}) + b"\n")
    rows = read_traffic(path).rows
    decided, matched = DecidedRows(router.snapshot, rows), []
    for _, each in route_each(router.snapshot, Memory(WordEncoder()), rows):
        decided.add(each.decision)
        matched.append(each.signals)
    assert [row.signals for row in decided] == matched
    asks = [(signals.ask.source, signals.ask.text) for signals in matched if signals is not None]
    assert asks == [
        ("joined", f"{SUE}\ndo that again"), ("last_user", "break lease"),
        ("last_user", "break lease and sue landlord?"),
    ]  # fmt: skip
