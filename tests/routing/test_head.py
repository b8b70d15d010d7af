"""The head: the chance of each cohort and of the background, fitted on the utterances and the background."""

import numpy as np
import pytest

from extproc.encoder.protocols import Vectors, unit
from extproc.routing.head import Head, fit_head, softmax


def around(axis: int, count: int, spread: float = 0.5) -> Vectors:
    """Unit vectors near one axis of a space of 24 dimensions."""
    rows = np.random.default_rng(axis).standard_normal((count, 24), dtype=np.float32) * np.float32(spread / 5)
    rows[:, axis] += 1
    return unit(rows)


THREE = {"code": around(0, 12), "faq": around(1, 12), "legal": around(2, 12)}


def chances(head: Head, rows: Vectors) -> Vectors:
    return softmax(rows @ head.weights.T + head.bias)


def test_chances_add_up_and_the_own_class_is_likeliest():
    """The classes are the cohorts in order, then the background."""
    background = around(3, 30)
    head = fit_head(THREE, background)
    assert head.weights.shape == (4, 24) and head.bias.shape == (4,)
    for member, rows in enumerate([*THREE.values(), background]):
        found = chances(head, rows)
        assert found.sum(axis=1) == pytest.approx(1, abs=1e-5)
        assert (found.argmax(axis=1) == member).all()


def test_a_text_between_two_cohorts_has_half_of_each():
    """Both are about equally likely, and the third one is not."""
    between = unit((np.eye(24)[0] + np.eye(24)[1])[None, :]).astype(np.float32)
    [found] = chances(fit_head(THREE), between)
    assert found[0] == pytest.approx(found[1], abs=0.2)
    assert found[2] < 0.1


def test_a_text_like_no_class_is_less_certain():
    """It is far from every utterance."""
    head = fit_head(THREE)
    away = unit(-np.ones((1, 24), dtype=np.float32))
    assert chances(head, away).max() < chances(head, around(0, 12)).max(axis=1).min()


def test_the_fit_is_deterministic_and_does_not_depend_on_the_order():
    """The same texts give the same chances."""
    first, second = fit_head(THREE), fit_head({name: rows.copy() for name, rows in THREE.items()})
    assert np.array_equal(first.weights, second.weights) and np.array_equal(first.bias, second.bias)
    turned = fit_head(dict(reversed(THREE.items())))
    assert chances(turned, THREE["faq"])[:, ::-1] == pytest.approx(chances(first, THREE["faq"]), abs=0.02)


def test_a_class_with_many_texts_weighs_as_much_as_one_with_few():
    """A long list of texts does not draw requests to itself."""
    few = fit_head({"code": around(0, 6), "faq": around(1, 6)})
    many = fit_head({"code": np.repeat(around(0, 6), 20, axis=0), "faq": around(1, 6)})
    middle = unit((np.eye(24)[0] + np.eye(24)[1])[None, :]).astype(np.float32)
    assert chances(many, middle) == pytest.approx(chances(few, middle), abs=0.05)


def test_a_single_cohort_is_certain():
    """There is nothing else that a text could belong to."""
    assert chances(fit_head({"code": around(0, 5)}), around(1, 3)) == pytest.approx(1)


def test_many_rows_are_fitted_in_parts():
    """More rows than one part holds give the same head as few rows that say the same."""
    rows = {name: np.repeat(group, 500, axis=0) for name, group in THREE.items()}
    assert chances(fit_head(rows), THREE["code"]) == pytest.approx(
        chances(fit_head(THREE), THREE["code"]), abs=0.02
    )
