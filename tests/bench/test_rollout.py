"""The simulated rollouts: a verdict is the first one in time, and the control is hasty."""

import numpy as np

from bench.rollout import Traffic, sequential_verdict, simulate, z_verdict
from extproc.accounting.sequential import RolloutVerdict


def test_a_candidate_whose_answers_are_rejected_is_stopped_soon() -> None:
    n = 200
    candidate = np.arange(n) % 2 == 1
    verdict = sequential_verdict(Traffic(np.zeros(n, int), candidate, ~candidate), 0.02)
    assert (verdict.word, verdict.after) == (RolloutVerdict.STOP, 18)


def test_the_share_that_is_stopped_or_promoted_wrongly_is_as_stated() -> None:
    """The z-test that is looked at after every conversation is wrong far more often."""
    rng = np.random.default_rng(3)
    tolerated = [simulate(np.full(4, -0.02), 3000, rng) for _ in range(60)]
    same = [simulate(np.zeros(4), 3000, rng) for _ in range(60)]
    promoted = [
        judge(t, 0.02).word is RolloutVerdict.PROMOTE
        for judge in (sequential_verdict, z_verdict)
        for t in tolerated
    ]
    stopped = [
        judge(t, 0.02).word is RolloutVerdict.STOP for judge in (sequential_verdict, z_verdict) for t in same
    ]
    assert sum(promoted[:60]) <= 3 and sum(stopped[:60]) <= 3
    assert sum(promoted[60:]) > 9 and sum(stopped[60:]) > 3
