"""Asks that come again: which requests are signals about the answer before."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from extproc.api.request import Turn
from extproc.config.compile import compile_snapshot
from extproc.config.load import load_config
from extproc.contract.words import Signal
from extproc.encoder.features import FeatureEncoder
from extproc.routing.asks import WITHIN_S, AskedAgain, Asks, LastAsk, last_ask, signal_of, words_that_matter
from extproc.routing.conversations import Conversations
from extproc.routing.router import Router
from extproc.routing.snapshot import AppRoute
from extproc.routing.store import MemoryStore

KYOTO = "Plan a trip to Kyoto for 3 days"
AGAIN = "Please plan a trip to Kyoto for 3 days"


def described(
    encoder: FeatureEncoder, *texts: str, at_s: float = 0.0, request: str = "", named: bool = False
) -> LastAsk:
    """The last ask of a conversation with these texts of the person and of the model, in turn."""
    turns = [Turn(("user", "assistant")[i % 2], (text,)) for i, text in enumerate(texts)]
    vector = encoder.encode([texts[-1]])[0].tobytes()
    return last_ask(turns, texts[-1], vector, request or str(at_s), "faq", "small", at_s, b"key", named)


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        ((KYOTO,), (KYOTO, "Day 1: ...", AGAIN), Signal.RE_ASKED),
        ((KYOTO,), (KYOTO, "Day 1: ...", KYOTO), Signal.RE_ASKED),
        ((KYOTO,), (KYOTO, "Day 1: ...", "Which hotels do you recommend?"), None),
        ((KYOTO,), (KYOTO, "Day 1: ...", "Plan a trip to Osaka for 3 days"), None),
        ((KYOTO,), (KYOTO, "Day 1: ...", "Plan a trip to Kyoto for 5 days"), None),
        (("Hi", "Hello", KYOTO), ("Hi", "Hello", AGAIN), Signal.EDITED),
        (("Hi", "Hello", KYOTO), ("Hi", "Hello", KYOTO), Signal.REPEATED),
        (("Hi", "Hello", KYOTO), ("Hi", "Good day", KYOTO), None),
        ((KYOTO,), (KYOTO,), None),  # a script may send it again and again
    ],
)
def test_the_same_ask_in_the_same_conversation_is_a_signal(
    encoder: FeatureEncoder, before: tuple[str, ...], now: tuple[str, ...], expected: Signal | None
) -> None:
    """In the same words or in others. A name or a number that changes makes another ask."""
    first, second = described(encoder, *before), described(encoder, *now, at_s=60)
    assert signal_of(first, second) is expected
    late = msgspec.structs.replace(second, at_s=WITHIN_S + 1)
    assert signal_of(first, late) is None


def test_with_the_clients_id_the_first_turn_counts_too(encoder: FeatureEncoder) -> None:
    before = described(encoder, KYOTO, named=True)
    assert signal_of(before, described(encoder, AGAIN, at_s=9, named=True)) is Signal.EDITED
    assert signal_of(before, described(encoder, KYOTO, at_s=9, named=True)) is Signal.REPEATED


def test_an_entry_has_no_text_and_is_small(encoder: FeatureEncoder) -> None:
    entry = msgspec.msgpack.encode(described(encoder, KYOTO * 300))
    assert b"Kyoto" not in entry and len(entry) < 600


def test_words_that_matter_are_long_or_names_or_have_a_digit() -> None:
    assert words_that_matter("Hi! Can you fix bug 42 for Ann? The sorting is off.") == {"42", "ann", "sorting"}
    assert words_that_matter("京都への旅行を計画して") == set()
    assert words_that_matter("go to a4 by x² or café ½ Ⅷ, _Bo and Al_ko: Ed") == {"a4", "x²", "ⅷ", "bo", "al"}


@pytest.fixture(scope="module")
def ask(encoder: FeatureEncoder, small_folder: Path) -> Callable[..., AskedAgain | None]:
    """Route a request, and compare it as the server does."""
    snapshot = compile_snapshot(load_config(small_folder), encoder)
    store = MemoryStore()
    asks = Asks(store, clock=lambda: 1.8e9)

    class Now:
        async def embed(self, text: str, deadline_s: float, principal: str = "") -> object:
            return encoder.encode([text])[0]

    router = Router(snapshot, Now(), conversations=Conversations(store))  # type: ignore[arg-type]

    def route(request: str, *texts: str, key: str = "mine", **more: object) -> AskedAgain | None:
        roles = ("user", "assistant")
        messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]
        headers = {":path": "/v1/chat/completions", "x-request-id": request, "authorization": key}
        headers |= {name: str(value) for name, value in more.items()}

        async def both() -> AskedAgain | None:
            body = msgspec.json.encode({"model": "auto", "messages": messages})
            return await asks.follow(await router.route(body, headers), headers)

        return asyncio.run(both())

    return route


@pytest.fixture(scope="module")
def small_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.e2e.traffic import write_small_intents

    return write_small_intents(tmp_path_factory.mktemp("asks") / "intents")


def test_a_signal_names_the_request_before_and_its_decision(ask: Callable[..., AskedAgain | None]) -> None:
    """Only requests of the same principal are compared."""
    prove = "Prove that the product of two even numbers is even"
    assert ask("a", prove) is None
    assert ask("b", prove, "No.", prove, key="theirs") is None
    again = ask("c", prove, "No.", prove)
    assert again == AskedAgain(Signal.RE_ASKED, "a", "math_reasoning", "large", 1.8e9)
    assert ask("", prove, "No.", prove) is None  # without an id there is no row to speak about


def test_a_follow_up_does_not_ask_again(ask: Callable[..., AskedAgain | None]) -> None:
    """It is matched with the ask before it, so its text has all of that."""
    prove = "Prove that the sum of two odd numbers is even"
    for i, follow_up in enumerate(("yes", "Does that also hold for three of them?")):
        assert ask(f"d{i}", prove) is None
        assert ask(f"e{i}", prove, "Here.", follow_up) is None


def test_the_same_task_in_another_text_does_not_ask_again(ask: Callable[..., AskedAgain | None]) -> None:
    """The task decides about both texts. They are still two texts."""
    task = "Also, prove that the product of two even numbers is even."
    first, second = f"Write a short birthday greeting for Ann. {task}", f"Say hello to Bo in a line of text. {task}"
    assert ask("f0", first) is None
    assert ask("f1", first, "Here.", second) is None
    again = ask("f2", first, "Here.", second, "Hello, Bo.", second)
    assert again == AskedAgain(Signal.RE_ASKED, "f1", "math_reasoning", "large", 1.8e9)


class FirstTurns:
    """Sends first turns without an id of a conversation, and compares them as the server does."""

    def __init__(self, encoder: FeatureEncoder, folder: Path) -> None:
        self.now, self.sent = 1.8e9, 0
        snapshot = compile_snapshot(load_config(folder), encoder)
        store = MemoryStore()
        self.asks = Asks(store, clock=lambda: self.now)

        class Embedder:
            async def embed(self, text: str, deadline_s: float, principal: str = "") -> object:
                return encoder.encode([text])[0]

        apps = tuple(
            AppRoute(app, msgspec.structs.replace(snapshot, app=app), (f"{app}.example",))
            for app in ("support", "sales")
        )
        serving = msgspec.structs.replace(snapshot, apps=apps)
        self.router = Router(serving, Embedder(), conversations=Conversations(store))  # type: ignore[arg-type]

    def ask(
        self, text: str, after_s: float = 60.0, key: str | None = "mine", system: str = "", host: str = ""
    ) -> str | None:
        """Send it this long after the one before. Return the earlier request that it asks again, or None."""
        self.now += after_s
        self.sent += 1
        headers = {":path": "/v1/chat/completions", "x-request-id": f"{self.sent}", ":authority": host}
        headers |= {"authorization": key} if key is not None else {}
        turns = [{"role": "system", "content": system}] if system else []
        body = msgspec.json.encode({"model": "auto", "messages": [*turns, {"role": "user", "content": text}]})

        async def both() -> AskedAgain | None:
            return await self.asks.follow(await self.router.route(body, headers), headers)

        again = asyncio.run(both())
        assert again is None or again.kind is Signal.RE_ASKED
        return again.request if again is not None else None


@pytest.fixture
def first(encoder: FeatureEncoder, small_folder: Path) -> FirstTurns:
    return FirstTurns(encoder, small_folder)


def test_a_person_who_asks_again_in_a_new_conversation_is_a_signal(first: FirstTurns) -> None:
    assert first.ask(KYOTO) is None
    assert first.ask("Which hotels in Osaka are cheap?") is None
    assert first.ask(AGAIN) == "1"


@pytest.mark.parametrize(("between", "expected"), [(5, "1"), (6, None)])
def test_a_first_turn_is_compared_with_the_last_six(first: FirstTurns, between: int, expected: str | None) -> None:
    others = ("a mortgage", "snow", "the shop", "Hamlet", "butter", "gravity")[:between]
    assert [first.ask(text) for text in (KYOTO, *(f"What about {other}?" for other in others))] == [None] * (
        between + 1
    )
    assert first.ask(AGAIN) == expected


def test_the_same_words_count_in_any_script(first: FirstTurns) -> None:
    assert [first.ask("京都への旅行を計画して"), first.ask("京都への旅行を計画して")] == [None, "1"]
    assert first.ask("東京への旅行を計画して") is None


@pytest.mark.parametrize(
    "change",
    [
        {"key": "theirs"}, {"key": None}, {"system": "Be brief."}, {"host": "support.example"}, {"after_s": 601.0},
        {"after_s": 9.0},  # a person does not read so fast: a client that tries again
    ],
)  # fmt: skip
def test_only_the_same_principal_within_minutes_asks_again(first: FirstTurns, change: dict[str, Any]) -> None:
    """In the same app, below the same system prompt, and after the time to read an answer."""
    assert first.ask(KYOTO) is None
    assert first.ask(AGAIN, **change) is None


def test_without_a_principal_nobody_asks_again(first: FirstTurns) -> None:
    assert [first.ask(KYOTO, key=None) for _ in range(2)] == [None, None]


@pytest.mark.parametrize("every_s", [0.5, 5.0, 20.0, 120.0])
@pytest.mark.parametrize(
    "template",
    [
        "Classify ticket {}: the printer in the office does not print",
        "Is an order of {} items above the limit of the warehouse? Answer yes or no.",
        "Translate this word into French: {word}",
        "Rate the sentiment of this review from 1 to 5: {word} is what I wanted",
    ],
)
def test_a_template_with_other_numbers_or_words_never_asks_again(
    first: FirstTurns, template: str, every_s: float
) -> None:
    words = ("cat", "dog", "sun", "tea", "bus", "ice", "map", "pen", "cup", "box")
    asks = [template.format(4700 + number, word=words[number]) for number in range(10)]
    assert [first.ask(text, after_s=every_s) for text in asks] == [None] * 10


@pytest.mark.parametrize(("every_s", "signals"), [(0.5, 0), (5.0, 0), (20.0, 1), (60.0, 1), (400.0, 1), (700.0, 0)])
def test_a_monitor_that_sends_the_same_text_is_at_most_one_signal(
    first: FirstTurns, every_s: float, signals: int
) -> None:
    asked = [first.ask(KYOTO, after_s=every_s) for _ in range(30)]
    assert sum(again is not None for again in asked) <= signals


def test_a_key_of_many_people_is_no_person(first: FirstTurns) -> None:
    """Two users of an application ask the same within a minute in which the application sends more."""
    others = ("What is a mortgage?", "Write a haiku about snow", "Is the shop open?", "Who wrote Hamlet?")
    assert [first.ask(text, after_s=12) for text in (KYOTO, *others, AGAIN)] == [None] * 6


def test_first_turns_are_kept_without_text_and_within_bounds(first: FirstTurns) -> None:
    for number in range(20):
        first.ask(f"{KYOTO} with guide {number}")
    store = first.asks._first_turns
    assert 1000 < store.size < 6 * 900
    for _, (value, _) in store._entries.items():
        assert b"Kyoto" not in value and b"guide" not in value and b"mine" not in value
