"""The nearest cohort: an exact search, and the margin to the best other cohort."""

from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from extproc.encoder.features import WORD_COLUMNS
from extproc.routing import index as index_module
from extproc.routing.head import Head
from extproc.routing.index import Index, Kind, Match, nearest, similarities
from extproc.routing.products import Products

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
    """The same as a comparison with every centroid."""
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


EMBEDDING = 8


@given(
    rows=st.sampled_from([1, 2, 127, 128, 300]),
    words=st.sampled_from([0, 1, 12, 15, 16, 17, 200, WORD_COLUMNS]),
    embedded=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=40, deadline=None)
def test_the_products_are_exact_for_any_number_of_rows_and_words(rows, words, embedded, seed):
    """Also for a text without a word, and for a vector that sets every column."""
    dice = np.random.default_rng(seed)
    table = unit_rows(dice.standard_normal((rows, EMBEDDING + WORD_COLUMNS)))
    vector = np.zeros(EMBEDDING + WORD_COLUMNS)
    vector[:EMBEDDING] = dice.standard_normal(EMBEDDING) * embedded
    vector[EMBEDDING + dice.choice(WORD_COLUMNS, words, replace=False)] = dice.standard_normal(words)
    products = Products(table).with_vector(vector.astype(np.float32))
    assert products.dtype == np.float32 and products.shape == (rows,)
    assert products == pytest.approx(table.astype(np.float64) @ vector, abs=1e-4)


@given(
    cohorts=st.sampled_from([1, 2, 9, 300]),
    each=st.sampled_from([1, 3]),
    headed=st.booleans(),
    outside=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=60, deadline=None)
def test_a_match_is_that_of_a_comparison_with_every_row(cohorts, each, headed, outside, seed):
    """With centroids and with a head, with and without a background, for few cohorts and for many."""
    dice = np.random.default_rng(seed)
    width, names = EMBEDDING + WORD_COLUMNS, [f"cohort {i}" for i in range(cohorts)]
    centroids = {name: unit_rows(dice.standard_normal((each, width))) for name in names}
    classes = cohorts + outside
    head = Head(dice.standard_normal((classes, width), np.float32), dice.standard_normal(classes, np.float32))
    vector = np.zeros(width, dtype=np.float32)
    vector[dice.choice(width, 20, replace=False)] = dice.standard_normal(20)
    vector /= np.linalg.norm(vector)
    kinds = {name: Kind(f"tier {i % 3}", names[i // 2 * 2]) for i, name in enumerate(names)}
    cosine = np.array([float((centroids[name] @ vector).max()) for name in names])
    if headed:
        scores = head.weights.astype(np.float64) @ vector + head.bias
        chance = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
        background = float(chance[-1]) if outside else 0.0
    else:
        chance, background = cosine, -1.0
    order = [int(i) for i in np.argsort(-chance) if i < cohorts]
    second = float(chance[order[1]]) if cohorts > 1 else 0.0
    match = nearest(Index(centroids, head=head if headed else None, kinds=kinds), vector)
    expected = Match(
        names[order[0]],
        approx(float(cosine[order[0]]), abs=1e-5),
        approx(max(0.0, float(chance[order[0]]) - max(second, background)), abs=1e-5),
        names[order[1]] if cohorts > 1 else None,
    )
    if headed:
        tiers = [kinds[name].tier for name in names]
        by_tier = {tier: sum(float(chance[i]) for i in range(cohorts) if tiers[i] == tier) for tier in tiers}
        pair = [i for i in range(cohorts) if i // 2 == order[0] // 2]
        expected = msgspec.structs.replace(
            expected,
            chance=approx(float(chance[order[0]]), abs=1e-5),
            runner_up_chance=approx(second, abs=1e-5),
            alike=approx(float(chance[pair].sum()), abs=1e-5),
            background=approx(background, abs=1e-5),
            tiers=approx(by_tier, abs=1e-5),
        )
    assert match == expected


def unit_rows(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_the_match_of_an_array_that_cannot_change_is_kept():
    """The same object is returned, and another array of the same values is searched for."""
    vector, other = read_only(0.8, 0.6, 0), read_only(0.8, 0.6, 0)
    index = Index({"code": X[None, :], "faq": Y[None, :]})
    match = nearest(index, vector)
    assert nearest(index, vector) is match
    assert nearest(index, other) == match and nearest(index, other) is not match
    assert nearest(INDEX, vector) != match  # another index
    assert nearest(index, vector) is match


def test_the_match_of_an_array_that_may_change_is_not_kept():
    """It is searched for each time."""
    vector = unit(0.8, 0.6, 0)
    assert nearest(INDEX, vector).cohort == "code"
    vector[:] = Z
    assert nearest(INDEX, vector).cohort == "legal"


def test_a_kept_match_is_never_that_of_a_vector_that_is_gone(monkeypatch):
    """A new array may get the id of one that was freed. Kept matches are also bounded."""
    monkeypatch.setattr(index_module, "_KEPT_MATCHES", 4)
    index = Index({"code": X[None, :], "faq": Y[None, :], "legal": Z[None, :]})
    for i in range(200):
        row = i % 3
        vector = read_only(*np.eye(3)[row])
        assert nearest(index, vector).cohort == ("code", "faq", "legal")[row]
        del vector
    alive = [read_only(1, i / 100, 0) for i in range(9)]
    first = [nearest(index, vector) for vector in alive]
    assert [nearest(index, vector) for vector in alive] == first
    assert nearest(index, alive[-1]) is nearest(index, alive[-1])


def read_only(*values: float) -> np.ndarray:
    vector = unit(*values)
    vector.flags.writeable = False
    return vector


def test_an_index_needs_a_cohort():
    """Without one, there is no nearest cohort."""
    with pytest.raises(ValueError, match="the index has no cohort: give at least one cohort with its centroids"):
        Index({})
