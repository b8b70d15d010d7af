"""Envoy's chain without an intent that judges answers, and the first intent that does."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from extproc.demo.processes import end
from extproc.demo.sample_upstream import SampleUpstreams
from extproc.demo.stack import Stack
from tests.e2e.traffic import EXTRACT, EXTRACTED, MODELS, ask, eventually, small_intent, write_small_intents

JUDGING = "tier: small\nreasoning: off\nmax_output_tokens: 512\naccept: [{min_chars: 1}]"


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    """Three intents without rules for answers, so Envoy has no filters for them."""
    with SampleUpstreams(MODELS) as upstreams:
        started = Stack(write_small_intents(tmp_path / "source"), tmp_path / "stack", upstreams)
        try:
            started.start_router()
            started.start_envoy()
            yield started
        finally:
            started.stop()


def test_the_first_rules_wait_for_envoy(stack: Stack) -> None:
    """The log says so. Until Envoy is rendered again, answers pass unjudged, and no request fails."""
    before = ask(stack.port, EXTRACT)
    assert (before.status, before.said) == (200, EXTRACTED) and "x-cascade-verdict" not in before.headers
    (stack.intents / "extraction.yaml").write_text(small_intent("extraction", JUDGING))
    eventually(lambda: "needs Envoy: extraction.yaml:5 accept" in stack.log("router.log"), "the reload")
    unjudged = ask(stack.port, EXTRACT)
    assert (unjudged.status, unjudged.said) == (200, EXTRACTED) and "x-cascade-verdict" not in unjudged.headers
    assert stack.envoy is not None
    end(stack.envoy)
    stack.start_envoy()
    judged = ask(stack.port, EXTRACT)
    assert (judged.status, judged.said) == (200, EXTRACTED) and judged.headers["x-cascade-verdict"] == "accept"
