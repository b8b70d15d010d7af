"""Claude Code, Codex and opencode, each with its recipe of the page `Clients`, through Envoy and the router."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.agents import Agent, AgentError, ClaudeCode, Codex, OpenCode, OpenCodeServer
from tests.clients.script import ENDLESS, FORBIDDEN, HALTING, answer_text
from tests.clients.served import INVOICE, TURNS, Recorded, Served
from tests.clients.upstream import Refusal
from tests.e2e.traffic import PROVE, eventually

# The tiers that get the requests of an agent's first turn. opencode also asks for a title, at the cheapest tier.
# Claude Code also sends HEAD to the root path, which is closed.
SENT = {
    "claude": {("/v1/messages", "large"): 1},
    "codex": {("/v1/responses", "large"): 1},
    "opencode": {("/v1/chat/completions", "large"): 1, ("/v1/chat/completions", "small"): 1},
}


@pytest.fixture(scope="module")
def opencode(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenCodeServer]:
    server = OpenCodeServer(tmp_path_factory.mktemp("opencode"), served.url)
    yield server
    server.close()


@pytest.fixture
def claude(served: Served, tmp_path: Path) -> ClaudeCode:
    return ClaudeCode(tmp_path, served.url)


@pytest.fixture
def codex(served: Served, tmp_path: Path) -> Codex:
    return Codex(tmp_path, served.url)


@pytest.fixture(params=SENT)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def agent(name: str, request: pytest.FixtureRequest) -> Agent:
    """A new conversation with each agent. Its folder has an invoice."""
    agent = request.getfixturevalue(name)
    if name == "opencode":
        agent = OpenCode(agent)
    (agent.folder / "invoice.txt").write_text(INVOICE + "\n")
    return agent


def test_a_question_is_answered_by_the_tier_of_its_cohort(served: Served, name: str, agent: Agent) -> None:
    """The answer reaches the agent as a stream. No other request reaches an upstream."""
    recorded = served.recorded()
    assert agent.turn(PROVE) == answer_text("large", 1)
    assert Counter((request.path, request.tier) for request in recorded.requests) == SENT[name]
    assert all(body["stream"] for body in recorded.bodies())


def test_a_tool_loop_runs_its_tool(served: Served, agent: Agent) -> None:
    """The agent reads a file, and its content reaches the same tier."""
    recorded = served.recorded()
    text = agent.turn(f"Extract the sender, amount and due date as JSON from {agent.folder}/invoice.txt")
    assert text.startswith(answer_text("small", 1, "")[:-1]) and INVOICE in text
    assert set(recorded.tiers) == {"small"}


@pytest.mark.parametrize("name", ["claude", "opencode"])
def test_six_turns_land_in_three_cohorts(agent: Agent) -> None:
    """Each turn continues the conversation, and the tier of its cohort serves it."""
    texts = [agent.turn(prompt) for prompt in TURNS]
    assert texts == [answer_text(tier, number) for number, tier in enumerate(TURNS.values(), 1)]


def test_six_turns_of_codex_stay_at_one_tier(codex: Codex) -> None:
    """Codex sends sealed reasoning back, which only the tier of the first turn can read."""
    texts = [codex.turn(prompt) for prompt in TURNS]
    assert texts == [answer_text("small", number) for number in range(1, 7)]


def test_an_interrupted_turn_is_cancelled_upstream(served: Served, agent: Agent) -> None:
    """The upstream sees that the agent left, and the conversation goes on."""
    agent.turn(PROVE)
    recorded = served.recorded()
    with agent.interrupted(f"{PROVE} Go on {ENDLESS}."):
        eventually(lambda: recorded.endless, "the stream flows")
    eventually(lambda: recorded.cancelled, "the upstream sees the end of the stream")
    assert agent.turn(PROVE).startswith("tier large")


def test_an_error_is_shown(agent: Agent) -> None:
    """The agent stops, and shows the message of the upstream."""
    with pytest.raises(AgentError, match=FORBIDDEN):
        agent.turn(f"{PROVE} {FORBIDDEN}")


def test_an_answer_arrives_in_pieces(served: Served, agent: Agent) -> None:
    """The agent shows the first word before the upstream sends the next."""
    served.upstreams.first_word_seen.clear()
    pieces = []
    for piece in agent.pieces(f"{PROVE} Speak {HALTING}."):
        pieces.append(piece)
        served.upstreams.first_word_seen.set()
    assert ("".join(pieces), len(pieces) > 1) == (answer_text("large", 1), True)


def test_claude_code_counts_the_tokens_of_a_long_file(served: Served, claude: ClaudeCode) -> None:
    """It asks how many tokens a long file has. The count is answered, and no upstream refuses a request."""
    (claude.folder / "invoice.txt").write_text("".join(f"{n} chairs for Nordwind\n" for n in range(4000)))
    recorded = served.recorded()
    claude.turn(f"Extract the sender, amount and due date as JSON from {claude.folder}/invoice.txt")
    assert _refused_messages(recorded) == []


def test_on_its_screen_claude_code_also_asks_for_a_title(served: Served, claude: ClaudeCode) -> None:
    """The title is a second request of the first turn, without tools. It goes to the cheapest tier."""
    recorded = served.recorded()
    with claude.in_terminal(PROVE):
        eventually(lambda: len(recorded.bodies()) == 2, "the question and the title arrive")
    with_tools = [bool(body.get("tools")) for body in recorded.bodies()]
    assert set(zip(with_tools, recorded.tiers, strict=True)) == {(True, "large"), (False, "small")}
    assert _refused_messages(recorded) == []


def _refused_messages(recorded: Recorded) -> list[Refusal]:
    """Claude Code's requests that were refused. opencode may still ask for the title of an earlier conversation."""
    return [refusal for refusal in recorded.refused if refusal.path.startswith("/v1/messages")]


def test_codex_asks_for_a_websocket_once(served: Served, codex: Codex) -> None:
    """If its settings allow it, Codex asks for a WebSocket, and goes on with HTTP after the answer 426."""
    config = codex.config.read_text()
    codex.config.write_text(config.replace("[agents]", "supports_websockets = true\n\n[agents]"))
    before = _refusals_by_envoy(served)
    assert codex.turn(PROVE) == answer_text("large", 1)
    assert _refusals_by_envoy(served) - before == 1


def _refusals_by_envoy(served: Served) -> int:
    return sum(served.stack.stats(r"http\..*\.downstream_rq_4xx$").values())
