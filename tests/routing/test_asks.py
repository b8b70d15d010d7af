"""Asks that come again: which requests are signals about the answer before."""

import asyncio
from collections.abc import Callable
from pathlib import Path

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
