"""Bodies as coding agents send them, where they are beside the checkout: their own calls, and their caps."""

import asyncio
from pathlib import Path

import pytest

from extproc.api.request import path_of
from extproc.config.compile import compile_snapshot
from extproc.config.load import load_config
from extproc.encoder.batcher import Batcher
from extproc.routing.router import Router
from tests.conftest import WordEncoder

ROOT = Path(__file__).parents[2]
CASES = ROOT.parent / "shared" / "cases" / "agents"
BACKGROUND = (
    "claude_code_title", "claude_code_count_fallback", "claude_code_count_fallback_harness", "opencode_title",
    "qwen_memory_task",
)  # fmt: skip
ORDINARY = ("claude_code_small", "claude_code_resumed", "codex_resume", "agent_cap", "effort_none")
_INTENT = """
intent: everything
tier: large
max_output_tokens: 1024
floor: -1
utterances: [Count the files, Write a title, Translate this text]
"""


@pytest.fixture(scope="module")
def router(tmp_path_factory: pytest.TempPathFactory) -> Router:
    """One intent that every request matches, with the OpenAI tiers of the cases."""
    folder = tmp_path_factory.mktemp("agents")
    policy = (CASES / "policy_C.yaml").read_text()
    (folder / "policy.yaml").write_text(policy.replace('"o?-*"', '"o?-*", "claude-*"'))
    (folder / "everything.yaml").write_text(_INTENT)
    encoder = WordEncoder()
    return Router(compile_snapshot(load_config(folder), encoder), Batcher(encoder))  # type: ignore[arg-type]


pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason="the cases are not beside this checkout")


@pytest.mark.parametrize("name", BACKGROUND)
def test_an_agents_own_call_goes_to_the_cheapest_tier(router: Router, name: str) -> None:
    """Whatever the work is about."""
    body = (CASES / f"{name}.json").read_bytes()
    decision = asyncio.run(router.route(body, {":path": path_of(body)})).decision
    assert (decision.reason, decision.tier.name, decision.cohort) == ("background", "small", None)


@pytest.mark.parametrize("name", ORDINARY)
def test_work_that_a_person_waits_for_is_matched(router: Router, name: str) -> None:
    """A tool loop gets no cap."""
    body = (CASES / f"{name}.json").read_bytes()
    routed = asyncio.run(router.route(body, {":path": path_of(body)}))
    assert (routed.decision.reason, routed.decision.tier.name) == ("matched", "large")
    assert (routed.decision.max_output_tokens is None) == (b'"tools"' in body)
