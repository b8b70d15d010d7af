"""The SDKs, each with its recipe of the page `Clients`, through Envoy and the router."""

import contextlib
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.clients.recipes import recipe
from tests.clients.script import ENDLESS, FORBIDDEN, HALTING, answer_text
from tests.clients.served import INVOICE, TURNS, Driver, Raised, Served, turns_of
from tests.e2e.traffic import EXTRACT, LEGAL, PROVE, eventually

RECIPES = {
    "openai_sdk.py": "OpenAI SDK for Python",
    "openai_sdk.mjs": "OpenAI SDK for Node",
    "anthropic_sdk.py": "Anthropic SDK for Python",
    "anthropic_sdk.mjs": "Anthropic SDK for Node",
    "langchain_sdk.py": "LangChain",
    "ai_sdk.mjs": "AI SDK",
}
PATHS = {"chat": "/v1/chat/completions", "responses": "/v1/responses", "messages": "/v1/messages"}
# In these drivers one scenario serves every API. The other drivers have a scenario for each API.
_SEVERAL_APIS = ("langchain_sdk.py", "ai_sdk.mjs")
CLIENTS = [
    ("openai_sdk.py", "chat"), ("openai_sdk.py", "responses"),
    ("openai_sdk.mjs", "chat"), ("openai_sdk.mjs", "responses"),
    ("anthropic_sdk.py", "messages"), ("anthropic_sdk.mjs", "messages"),
    *((driver, api) for driver in _SEVERAL_APIS for api in PATHS),
]  # fmt: skip
_TOO_LARGE = 33 * 1024 * 1024


class Client:
    """One API of one SDK."""

    def __init__(self, name: str, api: str, driver: Driver) -> None:
        self.name, self.api = name, api
        self._driver = driver

    def run(self, scenario: str, **options: Any) -> Any:
        """Run a scenario. Raises Raised if the client raises an error."""
        if self.name in _SEVERAL_APIS:
            return self._driver(scenario, api=self.api, **options)
        return self._driver(self.api if scenario == "simple" else f"{self.api}_{scenario}", **options)


@pytest.fixture(scope="module")
def driver_of(served: Served) -> Iterator[Callable[[str], Driver]]:
    """Return a function that starts the driver of an SDK when it is needed first."""
    with contextlib.ExitStack() as running:
        started: dict[str, Driver] = {}

        def driver_of(name: str) -> Driver:
            if name not in started:
                text = recipe(RECIPES[name], served.url)
                started[name] = running.enter_context(served.driver(name, text))
            return started[name]

        yield driver_of


@pytest.fixture(params=CLIENTS, ids="-".join)
def client(request: pytest.FixtureRequest, driver_of: Callable[[str], Driver]) -> Client:
    name, api = request.param
    return Client(name, api, driver_of(name))


def test_nothing_outside_can_be_reached(served: Served) -> None:
    """The tests see the loopback interface only, and no route leaves it."""
    assert [name for _, name in socket.if_nameindex()] == ["lo"]
    with pytest.raises(OSError, match="unreachable"):
        socket.create_connection(("192.0.2.1", 443), timeout=5)


@pytest.mark.parametrize(("prompt", "tier"), [(EXTRACT, "small"), (PROVE, "large"), (LEGAL, "frontier")])
def test_a_question_is_answered_by_the_tier_of_its_cohort(
    served: Served, client: Client, prompt: str, tier: str
) -> None:
    """One request reaches the tier, and the client reads the text of the answer."""
    recorded = served.recorded()
    assert client.run("simple", prompt=prompt) == answer_text(tier, 1)
    assert [(request.tier, request.path) for request in recorded.requests] == [(tier, PATHS[client.api])]
    assert recorded.refused == []


def test_a_stream_arrives_in_pieces(served: Served, client: Client) -> None:
    """The client reads the first word before the upstream sends the next. Its pieces make the whole answer."""
    recorded = served.recorded()
    served.upstreams.first_word_seen.clear()
    pieces = client.run("stream", prompt=f"{PROVE} Speak {HALTING}.", on_text=served.upstreams.first_word_seen.set)
    assert ("".join(pieces), recorded.tiers) == (answer_text("large", 1), ["large"])
    assert len([piece for piece in pieces if piece]) > 3


def test_a_tool_loop_runs_its_tool(served: Served, client: Client) -> None:
    """The call reaches the client, its result reaches the same tier, and the answer has it."""
    recorded = served.recorded()
    text = client.run("tools", prompt=served.read_invoice)
    assert text == answer_text("small", 1, INVOICE)
    assert (recorded.tiers, recorded.refused) == (["small", "small"], [])


def test_six_turns_land_in_three_cohorts(served: Served, client: Client) -> None:
    """The tier of its cohort serves each turn, and gets the whole conversation."""
    by_history: dict[str, dict[str, Any]] = {
        "openai_sdk.py": {"by": "history"}, "openai_sdk.mjs": {"by": "history"}, "ai_sdk.mjs": {"store": False},
    }  # fmt: skip
    more = by_history.get(client.name, {}) if client.api == "responses" else {}
    recorded = served.recorded()
    texts = client.run("turns", prompts=turns_of(f"{client.name} {client.api}"), **more)
    assert (texts, recorded.refused) == (
        [answer_text(tier, number) for number, tier in enumerate(TURNS.values(), 1)], [],
    )  # fmt: skip


def test_a_cancelled_stream_is_cancelled_upstream(served: Served, client: Client) -> None:
    """The upstream sees that the client left, and the client's next request is served."""
    recorded = served.recorded()
    assert client.run("cancel", prompt=f"{PROVE} Go on {ENDLESS}.") >= 5
    assert eventually(lambda: recorded.cancelled, "the upstream sees the end of the stream") == recorded.tiers
    assert client.run("simple", prompt=EXTRACT) == answer_text("small", 1)


def _error_class(name: str, status: int) -> str:
    """Return the class that an SDK documents for a status."""
    if name == "ai_sdk.mjs":
        return "APICallError"
    if status == 413:
        by_name = {"openai_sdk.mjs": "APIError", "anthropic_sdk.mjs": "ContentTooLargeError"}
        return by_name.get(name, "APIStatusError")
    return {400: "BadRequestError", 404: "NotFoundError"}[status]


def test_a_refused_request_is_the_clients_own_exception(client: Client) -> None:
    """The upstream's 400 reaches the client with its text."""
    _raises(client, 400, FORBIDDEN, prompt=f"{PROVE} {FORBIDDEN}")


_FIXED_MODEL = "ai_sdk.mjs"  # its recipe has the name of the model


@pytest.mark.parametrize("client", [c for c in CLIENTS if c[0] != _FIXED_MODEL], ids="-".join, indirect=True)
def test_an_unknown_model_is_the_clients_own_exception(client: Client) -> None:
    """A name that `retarget` does not list passes unchanged, and the default tier does not know it."""
    _raises(client, 404, "no-such-model", prompt=PROVE, model="no-such-model")


@pytest.mark.parametrize("client", [(c, dict(CLIENTS)[c]) for c in RECIPES], ids="-".join, indirect=True)
def test_a_body_above_the_limit_is_the_clients_own_exception(client: Client) -> None:
    """Envoy's 413 reaches the client."""
    _raises(client, 413, "max_body_mb", prompt="a " * (_TOO_LARGE // 2))


def _raises(client: Client, status: int, text: str, **options: Any) -> None:
    with pytest.raises(Raised) as raised:
        client.run("simple", **options)
    assert raised.value.status == status
    assert _error_class(client.name, status) in raised.value.classes
    assert text in raised.value.text


@pytest.mark.parametrize(
    ("name", "scenario", "options"),
    [
        ("openai_sdk.py", "responses_turns", {"by": "id"}),
        ("openai_sdk.mjs", "responses_turns", {"by": "id"}),
        ("openai_sdk.py", "responses_turns", {"by": "sealed"}),
        ("openai_sdk.mjs", "responses_turns", {"by": "sealed"}),
        ("anthropic_sdk.py", "messages_turns", {"thinking": True}),
        ("anthropic_sdk.mjs", "messages_turns", {"thinking": True}),
        ("ai_sdk.mjs", "turns", {"api": "responses"}),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else value,
)
def test_a_conversation_with_state_of_its_maker_stays_there(
    served: Served, driver_of: Callable[[str], Driver], name: str, scenario: str, options: dict[str, Any]
) -> None:
    """Response ids, sealed reasoning, signed thinking and item references are known to one tier only."""
    recorded = served.recorded()
    texts = driver_of(name)(scenario, prompts=turns_of(f"{name} {options}"), **options)
    assert texts == [answer_text("small", number) for number in range(1, 7)]
    assert (recorded.tiers, recorded.refused) == (["small"] * 6, [])


@pytest.mark.parametrize("name", ["anthropic_sdk.py", "anthropic_sdk.mjs"])
def test_a_tool_loop_with_thinking_stays_at_its_tier(
    served: Served, driver_of: Callable[[str], Driver], name: str
) -> None:
    """The signed thinking before the tool call goes back to the tier that signed it."""
    recorded = served.recorded()
    text = driver_of(name)("messages_tools", prompt=served.read_invoice, thinking=True)
    assert text == answer_text("small", 1, INVOICE)
    assert (recorded.tiers, recorded.refused) == (["small", "small"], [])


@pytest.mark.parametrize("name", ["anthropic_sdk.py", "anthropic_sdk.mjs"])
def test_tokens_are_counted(driver_of: Callable[[str], Driver], name: str) -> None:
    """A client can count the tokens of a request for the router's own model name."""
    assert driver_of(name)("count_tokens", prompt=PROVE) > 0


@pytest.mark.parametrize("name", [name for name in RECIPES if name not in _SEVERAL_APIS])
def test_the_router_s_model_name_is_listed(driver_of: Callable[[str], Driver], name: str) -> None:
    """A client that asks which models there are finds `auto`."""
    assert "auto" in driver_of(name)("models")
