"""The nearest cohort: an exact search, and the margin to the best other cohort."""

from typing import Any

import msgspec
import numpy as np
import pytest

from extproc.routing.index import Index, Match, nearest, similarities

approx: Any = pytest.approx  # it takes the place of a number in a whole value


def unit(*values: float) -> np.ndarray:
    vector = np.array(values, dtype=np.float32)
    return vector / np.linalg.norm(vector)


X, Y, Z = np.eye(3, dtype=np.float32)
INDEX = Index({"code": np.stack([X, unit(1, 0.1, 0)]), "faq": Y[None, :], "legal": Z[None, :]})


def test_the_nearest_cohort_is_found_with_its_margin():
    """The margin compares with the best centroid of another cohort, and not with others of the same one."""
    match = nearest(INDEX, unit(0.8, 0.6, 0))
    assert (match.cohort, match.runner_up) == ("code", "faq")
    best = unit(1, 0.1, 0) @ unit(0.8, 0.6, 0)
    assert match.similarity == pytest.approx(best, abs=1e-6)
    assert match.margin == pytest.approx(best - 0.6, abs=1e-6)


def test_the_runner_up_is_found_behind_many_centroids_of_the_best():
    """Twenty nearer centroids of the best cohort do not hide it."""
    near = np.stack([unit(1, i / 1_000, 0) for i in range(20)])
    match = nearest(Index({"code": near, "faq": Z[None, :]}), X)
    assert match == Match("code", approx(1.0), approx(1.0), "faq")


def test_with_one_cohort_the_margin_is_the_similarity():
    """There is no other cohort to compare with."""
    match = nearest(Index({"code": X[None, :]}), unit(0.6, 0.8, 0))
    assert match == Match("code", approx(0.6), approx(0.6), None)


def test_similarity_is_a_weighted_mean_of_two_cosines():
    """The nearest centroid alone sets cohort and margin. The similarity also counts the mean."""
    centroids = {"code": np.stack([unit(0, -1, 0), X]), "faq": Y[None, :]}
    index = Index(centroids, {"code": unit(1, 0, 1), "faq": unit(0, 1, 1)})
    query = unit(2, 1, 2)
    match = nearest(index, query)
    assert match == Match("code", approx(0.7 * 2 / 3 + 0.3 * np.sqrt(8 / 9)), approx(1 / 3), "faq")
    assert similarities(index, query) == {
        "code": pytest.approx(0.7 * 2 / 3 + 0.3 * np.sqrt(8 / 9)),
        "faq": pytest.approx(0.7 / 3 + 0.3 * np.sqrt(1 / 2)),
    }
    assert type(match.similarity) is float
    heavier = Index(centroids, index.means, back=0.8)
    assert nearest(heavier, query) == msgspec.structs.replace(
        match, similarity=pytest.approx(0.2 * 2 / 3 + 0.8 * np.sqrt(8 / 9))
    )


def test_a_vector_opposite_to_all_centroids_has_a_nearest_one():
    """Similarities go down to -1. The floor decides whether a match is near enough."""
    match = nearest(INDEX, -unit(1, 1, 0.5))
    assert (match.cohort, match.runner_up) == ("legal", "faq")
    assert match.similarity == pytest.approx(-1 / 3, abs=1e-6)


def test_a_match_is_made_of_plain_numbers():
    """Spans, metadata and JSON cannot hold numpy scalars."""
    match = nearest(INDEX, X)
    assert [type(match.similarity), type(match.margin)] == [float, float]


def test_every_cohorts_best_similarity_is_listed_best_first():
    """Each cohort is listed once, for any number of centroids."""
    listed = similarities(INDEX, unit(0, 0.6, 0.8))
    assert list(listed) == ["legal", "faq", "code"]
    assert listed == {
        "legal": pytest.approx(0.8),
        "faq": pytest.approx(0.6),
        "code": pytest.approx(float(unit(1, 0.1, 0) @ unit(0, 0.6, 0.8))),
    }


def test_the_search_is_exact():
    """FAISS returns the same as a comparison with every centroid."""
    dice = np.random.default_rng(0)
    rows = dice.standard_normal((200, 32)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    index = Index({f"cohort {i}": rows[2 * i : 2 * i + 2] for i in range(100)})
    for query in rows[:20] + 0.1 * rows[20:40]:
        query /= np.linalg.norm(query)
        best = (rows @ query).reshape(100, 2).max(axis=1)
        order = np.argsort(-best)
        match = nearest(index, query)
        assert (match.cohort, match.runner_up) == (f"cohort {order[0]}", f"cohort {order[1]}")
        assert match.similarity == pytest.approx(best[order[0]], abs=1e-6)
        assert match.margin == pytest.approx(best[order[0]] - best[order[1]], abs=1e-6)


def test_an_index_needs_a_cohort():
    """Without one, there is no nearest cohort."""
    with pytest.raises(ValueError, match="the index has no cohort: give at least one cohort with its centroids"):
        Index({})
