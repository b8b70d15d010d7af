"""The arithmetic of the tables of bench/routing.py, on cases computed by hand."""

import math

import numpy as np
import pytest

from bench.cache import Cache, means
from bench.frontier_table import Paid, RecordedQuestions, _line, _oracle, area_of
from bench.intents_table import Clinc, floor_nearly_always, floor_on_average, left_out
from bench.scorer import Judged


def test_a_floor_counts_one_mistake_more_than_there_were():
    """The last of ten is wrong. Nine without a mistake are 1/9 * 10/11, ten with one are 2/10 * 10/11."""
    scores, wrong = np.arange(10.0)[::-1], np.array([False] * 9 + [True])
    assert floor_on_average(scores, wrong, risk=0.15) == 1.0
    assert floor_on_average(scores, wrong, risk=0.2) == 0.0
    assert floor_on_average(scores, wrong, risk=0.1) == math.inf


@pytest.mark.parametrize("rule", [floor_on_average, floor_nearly_always])
def test_floors_keep_their_risk_on_simulated_data(rule):
    """On average over 200 fits, or in 95 % of them if that is promised. Compared with the true risk."""
    rng = np.random.default_rng(0)

    def draw(n: int) -> tuple[np.ndarray, np.ndarray]:
        scores = rng.random(n)
        return scores, rng.random(n) < 0.9 * (1 - scores) ** 4

    floors = np.array([rule(*draw(1000), 0.05) for _ in range(200)])
    # Above a floor f, the true share of wrong matches is 0.9 * (1 - f) ** 4 / 5.
    risks = 0.18 * (1 - np.minimum(floors, 1)) ** 4
    assert risks.mean() <= 0.05
    assert risks.mean() > 0.03
    if rule is floor_nearly_always:
        assert (risks > 0.05).mean() <= 0.05


@pytest.mark.parametrize("rule", [floor_on_average, floor_nearly_always])
def test_floors_of_all_wrong_and_of_all_right_matches(rule):
    """If all are wrong, nothing is accepted. If all are right, everything is."""
    scores = np.linspace(0, 1, 500)
    assert rule(scores, np.ones(500, dtype=bool), 0.05) == math.inf
    assert rule(scores, np.zeros(500, dtype=bool), 0.05) == 0.0


def test_texts_of_intents_left_out_are_out_of_scope():
    """The other intents keep their names. Texts without an intent are removed."""
    names = tuple(f"i{n:02}" for n in range(34))
    texts, labels = [*names, "none"], np.array([*range(34), -1])
    part = left_out(Clinc(names, {name: [name] for name in names}, texts, labels, texts, labels), seed=0)
    assert len(part.intents) == 4 and part.train == {name: [name] for name in part.intents}
    for texts_of_part, labels_of_part in ((part.val, part.val_labels), (part.test, part.test_labels)):
        assert texts_of_part == list(names)
        assert {text: part.intents[i] for text, i in zip(texts_of_part, labels_of_part, strict=True) if i >= 0} == {
            name: name for name in part.intents
        }


@pytest.fixture
def recorded():
    """Four questions: both tiers right, only large right, only large right at a higher cost, only small right."""
    four = np.zeros((4, 1))
    return RecordedQuestions(
        questions=[],
        cohort=np.array(["a"] * 4),
        vectors=four.astype(np.float32),
        facts=four,
        asked=four.astype(np.float32),
        judged=Judged(np.array(["a"] * 4), four, four.astype(np.float32)),
        scored=four,
        small=np.array([1.0, 0, 0, 1]),
        large=np.array([1.0, 1, 1, 0]),
        small_cost=np.full(4, 1.0),
        large_cost=np.array([5.0, 5, 9, 5]),
    )


def test_a_cascade_pays_for_rejected_answers(recorded):
    """An escalation costs both answers. Asking the large tier first costs one."""
    up = np.array([0.0, 1, 0, 0])
    assert Paid(np.ones(4), up).cost(recorded).tolist() == [1, 6, 1, 1]
    assert Paid(1 - up, up).cost(recorded).tolist() == [1, 5, 1, 1]
    assert Paid(1 - up, up).quality(recorded).tolist() == [1, 1, 0, 1]


def test_the_oracle_buys_the_cheapest_wins_first(recorded):
    """A mean cost of 2 buys one win, and 4 buys both. It never buys more than it needs."""
    assert _oracle(recorded, 2.0).large.tolist() == [0, 1, 0, 0]
    assert _oracle(recorded, 4.0).large.tolist() == [0, 1, 1, 0]
    assert _oracle(recorded, 99.0).quality(recorded).tolist() == [1, 1, 1, 1]


def test_a_line_is_compared_with_the_static_mix_of_its_cost(recorded):
    """A mean of 2 is a fifth of the way from 1 to 6. The mix there has 0.55 and the policy has 0.75."""
    up = np.array([0.0, 1, 0, 0])
    line = _line("one", Paid(1 - up, up), recorded, seed=0)
    assert line.split()[:2] == ["one", "75.0"]
    assert "+20.0" in line


def test_the_area_of_a_mix_is_a_half_and_of_the_best_policy_one():
    """For the two tiers alone, and with the whole gap recovered at the cost of the small tier."""
    tiers = [0.4, 0.8, 1.0, 5.0]
    assert area_of(np.array([0.4, 0.8, 1.0, 5.0, *tiers])) == pytest.approx((0.5, 1.0), abs=1e-6)
    assert area_of(np.array([0.8, 0.8, 1.0, 5.0, *tiers])) == pytest.approx((1.0, 0.2), abs=2e-3)


def test_arrays_are_cached(tmp_path):
    """An array is made once for each key, in any process."""
    calls = []

    def make():
        calls.append(1)
        return np.arange(3, dtype=np.float32)

    for _ in range(2):
        assert Cache(tmp_path).array("key", make).tolist() == [0, 1, 2]
    assert Cache(tmp_path).array("other", make).tolist() == [0, 1, 2]
    assert len(calls) == 2


def test_means_have_one_unit_centroid_per_label_in_order():
    """Two rows with one label, one with the other."""
    rows = np.array([[0, 1], [1, 0], [0, 1]], dtype=np.float32)
    assert means(rows, np.array([1, 0, 1])).tolist() == [[1, 0], [0, 1]]
