"""Fitted centroids: deterministic, of unit length, fair to small cohorts, with floors that accept utterances."""

import numpy as np
import pytest

from extproc.encoder.protocols import Vectors
from extproc.routing.centroids import Fitted, fit_centroids


def around(direction: int, count: int, noise: float = 0.5, seed: int = 0) -> Vectors:
    """Unit vectors scattered around one axis of 32."""
    dice = np.random.default_rng(seed + 1_000 * direction)
    rows = np.eye(32)[direction] + noise * dice.standard_normal((count, 32)) / np.sqrt(32)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def right(fitted: dict[str, Fitted], cohort: str, rows: Vectors) -> float:
    """The share of `rows` whose nearest centroid is that of `cohort`."""
    centroids = np.stack([f.centroid for f in fitted.values()])
    return float(np.mean((rows @ centroids.T).argmax(axis=1) == list(fitted).index(cohort)))


THREE = {name: around(i, 12) for i, name in enumerate(("code", "faq", "legal"))}


def test_the_same_utterances_give_the_same_centroids():
    """So every replica serves the same revision, also after a restart."""
    first, second = fit_centroids(THREE), fit_centroids({name: rows.copy() for name, rows in THREE.items()})
    for name in THREE:
        assert np.array_equal(first[name].centroid, second[name].centroid)
        assert first[name].floor == second[name].floor


def test_each_cohort_has_one_centroid_of_unit_length():
    """So an inner product with a centroid is a cosine."""
    fitted = fit_centroids(THREE)
    assert list(fitted) == list(THREE)
    for cohort in fitted.values():
        assert (cohort.centroid.shape, cohort.centroid.dtype) == ((32,), np.float32)
        assert np.linalg.norm(cohort.centroid) == pytest.approx(1, abs=1e-5)


def test_centroids_point_in_the_direction_of_their_utterances():
    """Utterances of distant cohorts are matched to them, and so are new similar texts."""
    fitted = fit_centroids(THREE)
    for i, name in enumerate(THREE):
        assert fitted[name].centroid.argmax() == i
        assert right(fitted, name, THREE[name]) == 1
        assert right(fitted, name, around(i, 200, seed=7)) == 1


def test_centroids_separate_overlapping_cohorts_better_than_means():
    """The fit turns centroids away from the direction that two cohorts share."""
    shared = np.eye(32, dtype=np.float32)[5]
    rows = {name: around(i, 40, 1.0) * 0.35 + shared for i, name in enumerate(("code", "faq"))}
    rows = {name: (r / np.linalg.norm(r, axis=1, keepdims=True)).astype(np.float32) for name, r in rows.items()}
    units = {name: r.mean(axis=0) / np.linalg.norm(r.mean(axis=0)) for name, r in rows.items()}
    means = {name: Fitted(unit, unit, 0) for name, unit in units.items()}
    fitted = fit_centroids(rows)
    assert min(right(fitted, name, rows[name]) for name in rows) >= min(
        right(means, name, rows[name]) for name in rows
    )
    assert fitted["code"].centroid @ fitted["faq"].centroid < means["code"].centroid @ means["faq"].centroid


def test_a_text_like_both_cohorts_is_more_similar_than_the_centroids_alone_show():
    """The similarity also counts the mean, which keeps the direction that both cohorts share."""
    shared = np.eye(32, dtype=np.float32)[5]
    rows = {name: around(i, 40) * 0.35 + shared for i, name in enumerate(("code", "faq"))}
    rows = {name: (r / np.linalg.norm(r, axis=1, keepdims=True)).astype(np.float32) for name, r in rows.items()}
    for name, cohort in fit_centroids(rows).items():
        mean = rows[name].mean(axis=0) / np.linalg.norm(rows[name].mean(axis=0))
        assert cohort.centroid @ shared < cohort.typical @ shared < mean @ shared
        assert np.linalg.norm(cohort.typical) <= 1


def test_a_large_cohort_does_not_displace_a_small_one():
    """Three utterances have the same weight as three hundred."""
    fitted = fit_centroids({"large": around(0, 300, 0.8), "small": around(1, 3, 0.8)})
    assert right(fitted, "small", around(1, 200, 0.8, seed=7)) > 0.95
    assert right(fitted, "large", around(0, 200, 0.8, seed=7)) > 0.95


def test_the_order_of_cohorts_changes_only_rounding():
    """So a renamed file moves no centroid."""
    fitted, turned = fit_centroids(THREE), fit_centroids(dict(reversed(THREE.items())))
    for name in THREE:
        assert np.allclose(fitted[name].centroid, turned[name].centroid, atol=1e-3)
        assert fitted[name].floor == pytest.approx(turned[name].floor, abs=1e-3)


def test_one_cohort_is_its_mean():
    """There is no other cohort, so the centroid does not move."""
    rows = THREE["code"]
    mean = rows.mean(axis=0)
    fitted = fit_centroids({"code": rows})
    assert np.allclose(fitted["code"].centroid, mean / np.linalg.norm(mean), atol=1e-6)
    assert np.allclose(fitted["code"].typical, fitted["code"].centroid, atol=1e-6)
    assert 0.5 < fitted["code"].floor < 1


def test_a_floor_accepts_similar_texts_and_rejects_others():
    """It lies between texts of the cohort and texts of no cohort."""
    fitted = fit_centroids(THREE)
    for i, name in enumerate(THREE):
        alike = around(i, 200, seed=7) @ fitted[name].typical
        strange = around(20 + i, 200) @ fitted[name].typical
        assert strange.max() < fitted[name].floor < np.quantile(alike, 0.2)


def test_no_utterance_of_a_distant_cohort_is_below_its_floor():
    """The floor comes from fits that held the utterance out. Those have lower similarities than the served fit."""
    fitted = fit_centroids(THREE)
    for name, rows in THREE.items():
        assert (rows @ fitted[name].typical).min() >= fitted[name].floor


def test_an_unusual_utterance_is_not_below_the_floor_either():
    """Every listed utterance is accepted, so the floor is just below its similarity."""
    odd = np.concatenate([around(0, 100), 0.3 * around(0, 1) + around(9, 1)])
    odd /= np.linalg.norm(odd, axis=1, keepdims=True)
    fitted = fit_centroids({"code": odd, "faq": around(1, 100)})
    assert (odd @ fitted["code"].typical).min() == pytest.approx(fitted["code"].floor + 1e-3)
    assert fitted["faq"].floor > fitted["code"].floor


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_utterances_are_no_error(count):
    """One utterance is enough for a centroid and a finite floor, even if some fits have none of its cohort."""
    fitted = fit_centroids({"code": around(0, count), "faq": around(1, 12)})
    for cohort in fitted.values():
        assert np.linalg.norm(cohort.centroid) == pytest.approx(1, abs=1e-5)
        assert -1 <= cohort.floor <= 1


def test_cohorts_with_the_same_utterances_are_no_error():
    """Their centroids and floors are finite. The checks of the configuration report such cohorts."""
    rows = around(0, 6)
    for cohort in fit_centroids({"one": rows, "two": rows.copy()}).values():
        assert np.linalg.norm(cohort.centroid) == pytest.approx(1, abs=1e-5)
        assert -1 <= cohort.floor <= 1
