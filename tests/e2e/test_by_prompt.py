"""The prompt chooses between two tiers on the real Envoy, and the header, the ledger and `why` say so."""

import contextlib
from collections.abc import Iterator

import msgspec
import numpy as np
import pytest

from extproc.acceptance.score import SCORE_FACTS
from extproc.accounting.why import why
from extproc.config.compile import utterances_digest
from extproc.config.load import load_config
from extproc.demo.sample_upstream import SampleUpstreams
from extproc.demo.stack import Stack
from extproc.routing.gain_file import GAINS_FILE, VERSION, GainHeader, decode_gains, encode_gains
from extproc.routing.prompt_facts import PROMPT_FACTS
from extproc.routing.prompt_gain import RATES, GainTrees, PromptColumns, PromptGains, Trees
from tests.e2e.traffic import (
    CHAT,
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

_LONG = f"{PROVE} Then prove that the product of two odd numbers is odd, and that their difference is even."
_WIDTH = 2 + len(PROMPT_FACTS)


def _gains() -> PromptGains:
    """One tree: the frontier tier gains 0.3 for asks of more than 80 characters, and -0.1 for others."""
    columns = PromptColumns(
        np.zeros(384, dtype=np.float32),
        np.zeros((384, 2), dtype=np.float32),
        np.full(_WIDTH, -1e6, dtype=np.float32),
        np.full(_WIDTH, 1e6, dtype=np.float32),
    )
    rates = {"math_reasoning": np.zeros(RATES, dtype=np.float32)}
    trees = GainTrees(("large", "frontier"), _stump(0.1, 0.2), _stump(1.0, 0.0), rates)
    return PromptGains(columns, {trees.tiers: trees}, {trees.tiers: _with_answer(rates)})


def _with_answer(rates: dict[str, np.ndarray]) -> GainTrees:
    """One tree: with its answer, the frontier tier gains 0.4 for questions with a formula, and -0.4 for others."""
    formulas = _WIDTH + SCORE_FACTS.index("formulas")
    gain = Trees(
        0.0,
        np.array([[formulas]]),
        np.array([[0.1]], dtype=np.float32),
        np.array([[-0.4, 0.4]], dtype=np.float32),
    )
    return GainTrees(("large", "frontier"), gain, _stump(1.0, 0.0), rates)


def _stump(base: float, leaf: float) -> Trees:
    return Trees(
        base,
        np.array([[2]]),
        np.array([[np.log1p(80)]], dtype=np.float32),
        np.array([[-leaf, leaf]], dtype=np.float32),
    )


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("by-prompt")
    with contextlib.ExitStack() as ending:
        upstreams = ending.enter_context(SampleUpstreams(MODELS))
        stack = Stack(write_small_intents(folder / "written"), folder, upstreams)
        config = load_config(stack.intents)
        raw = encode_gains(
            GainHeader(
                version=VERSION,
                date="2026-11-29",
                data="f1f958a82ea0",
                rows=400,
                encoder=config.policy.encoder.name,
                utterances=utterances_digest(config),
                pairs=(("large", "frontier"),),
                models={tier: MODELS[tier] for tier in ("large", "frontier")},
                cohorts=("math_reasoning",),
                judged=(("large", "frontier"),),
            ),
            _gains(),
        )
        (stack.intents / GAINS_FILE).write_bytes(raw)
        seal = decode_gains(raw).header.seal
        choice = f"{{tiers: [large, frontier], least: 0, gain: [0, 0.1], rows: 300, fit: '{seal}'}}"
        path = stack.intents / "math_reasoning.yaml"
        judged = "accept: [{gain: {least: 0.2}}]\nescalate: {to: frontier, share: 1}"
        path.write_text(small_intent("math_reasoning", f"tier: large\nby_prompt: {choice}\n{judged}"))
        yield ending.enter_context(with_ledger(stack))


def _ask(stack: Stack, prompt: str) -> Answer:
    return send(stack.port, CHAT, msgspec.json.encode(body_of(CHAT, prompt)))


def _story(stack: Stack, answer: Answer) -> str:
    def look() -> str | None:
        with contextlib.suppress(OSError):
            return why(ledger_of(stack), answer.headers["x-request-id"])
        return None

    return eventually(look, "the row of the request is in the ledger")


@pytest.mark.parametrize(("prompt", "tier", "gain"), [(PROVE, "large", "-10.0"), (_LONG, "frontier", "+30.0")])
def test_the_prompt_chooses_and_every_record_says_so(stack: Stack, prompt: str, tier: str, gain: str) -> None:
    """The header has the reason, and `why` the predicted gain."""
    answer = _ask(stack, prompt)
    assert answer.said == {
        "x-router-cohort": "math_reasoning",
        "x-router-tier": tier,
        "x-router-reason": "by_prompt",
    }
    story = _story(stack, answer)
    assert f"Tier {tier} was asked first, because the predicted gain of the prompt chose" in story
    assert (
        f"The predicted gain of the costlier tier is {gain} points for the mean extra cost, and it serves from +0.0"
        in story
    )


def test_the_answer_is_judged_by_the_gain_that_is_predicted_with_it(stack: Stack) -> None:
    """The prompt alone keeps the large tier. With its answer the frontier tier is asked, and `why` says so."""
    answer = _ask(stack, f"{PROVE} x = 2")
    assert answer.said == {
        "x-router-cohort": "math_reasoning",
        "x-router-tier": "frontier",
        "x-router-reason": "by_prompt",
    }
    assert (answer.headers["x-router-escalations"], answer.headers["x-cascade-reason"]) == ("1", "predicted_gain")
    assert "predicted_gain" in _story(stack, answer)
