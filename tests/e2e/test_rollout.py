"""A candidate behind the real Envoy: its share, conversations that stay, and a regression that ends by itself."""

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest

from extproc.cli.main import main
from extproc.config.load import load_candidate, load_config
from extproc.demo.sample_upstream import SampleUpstreams
from extproc.demo.stack import Stack
from tests.e2e.traffic import (
    CHAT,
    EXTRACT,
    MODELS,
    PROVE,
    Answer,
    body_of,
    eventually,
    ledger_of,
    send,
    small_intent,
    with_ledger,
    write_small_intents,
)

_PERCENT, _CONVERSATIONS = 40, 60
_RULES = "accept: [complete, non_empty, no_refusal]\nescalate: {to: frontier, share: 1}"
# No answer is that short, so the candidate's cohort escalates every answer of its cheaper tier.
_REGRESSION = "accept: [complete, {max_chars: 5}]\nescalate: {to: frontier, share: 1}"


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The candidate sends proofs to the frontier tier, and extractions to the small one, which it rejects."""
    folder = tmp_path_factory.mktemp("rollout")
    written = write_small_intents(folder / "written")
    (written / "extraction.yaml").write_text(small_intent("extraction", f"tier: large\n{_RULES}"))
    with SampleUpstreams(MODELS) as upstreams:
        running = Stack(written, folder, upstreams)
        candidate = running.intents / "next"
        candidate.mkdir()
        (candidate / "compliance.yaml").write_text((written / "compliance.yaml").read_text())
        (candidate / "extraction.yaml").write_text(small_intent("extraction", f"tier: small\n{_REGRESSION}"))
        (candidate / "math_reasoning.yaml").write_text(small_intent("math_reasoning", "tier: frontier"))
        with (running.intents / "policy.yaml").open("a") as policy:
            policy.write(f"candidate: {{dir: next, percent: {_PERCENT}}}\n")
        with with_ledger(running):
            yield running


def ask_each(stack: Stack, prompt: str, mark: str) -> list[Answer]:
    """Ask once in each conversation. Its id chooses the arm, and the prompt is encoded once."""
    body = msgspec.json.encode(body_of(CHAT, prompt))

    def ask(i: int) -> Answer:
        return send(stack.port, CHAT, body, {"session-id": f"{mark}{i}"})

    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(ask, range(_CONVERSATIONS)))


def tiers_of(answers: list[Answer]) -> list[str]:
    return [answer.headers["x-router-tier"] for answer in answers]


def test_a_candidate_gets_its_share_and_a_regression_is_rolled_back(
    stack: Stack, capsys: pytest.CaptureFixture[str]
) -> None:
    """Conversations stay in their arm. Then every answer to one cohort of the candidate is rejected."""
    first = tiers_of(ask_each(stack, PROVE, "a"))
    assert set(first) == {"large", "frontier"}
    share, n = _PERCENT / 100, _CONVERSATIONS
    assert abs(first.count("frontier") - share * n) <= 5 * math.sqrt(n * share * (1 - share))
    assert tiers_of(ask_each(stack, PROVE, "a")) == first

    regressed = ask_each(stack, EXTRACT, "b")
    escalations = {(a.headers["x-router-tier"], a.headers["x-router-escalations"]) for a in regressed}
    # The candidate's own rules judge its answers. Beyond the limit of a principal, a rejected answer is served.
    assert {("large", "0"), ("frontier", "1")} <= escalations <= {("large", "0"), ("frontier", "1"), ("small", "0")}

    config = load_config(stack.intents)
    revision = load_candidate(config, stack.intents).revision
    log = stack.folder / "router.log"
    stopped = f"rollout of {revision}: STOP: the candidate is worse in "
    eventually(lambda: stopped in log.read_text(), "the router stops the candidate")
    assert set(tiers_of(ask_each(stack, PROVE, "a"))) == {"large"}
    assert {answer.status for answer in regressed} == {200}

    arguments = ["rollout", "status", "--intents", str(stack.intents), "--ledger", str(ledger_of(stack))]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("STOP: the candidate is worse in ") and revision in shown
    assert main(["rollout", "stop", "--intents", str(stack.intents)]) == 0
    assert load_config(stack.intents).policy.candidate is None
