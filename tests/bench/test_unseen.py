"""The halves of the sources that `bench.unseen` calibrates on."""

from bench.unseen import halves


def test_each_pair_of_halves_has_every_source_once():
    """The halves have about equally many rows, and are the same in every run."""
    rows: list[dict[str, object]] = [{"source": f"s{i % 7}"} for i in range(70)]
    drawn = [*halves(rows, 3)]
    assert len(drawn) == 6 and drawn == [*halves(rows, 3)]
    for half, other in zip(drawn[::2], drawn[1::2], strict=True):
        assert half | other == {f"s{i}" for i in range(7)} and not half & other
    assert len({frozenset(half) for half in drawn[::2]}) > 1
