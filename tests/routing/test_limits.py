"""The caps on escalation: a cohort's share and a principal's rate, as token buckets."""

from extproc.routing.limits import Bounds, principal_of, session_of


def climbs(
    bounds: Bounds, times: int, principal: str = "p", cohort: str = "c", now_s: float = 0.0
) -> list[str | None]:
    return [bounds.allow(cohort, principal, 60, 3, now_s) for _ in range(times)]


def test_a_principal_may_climb_its_burst_and_no_more() -> None:
    assert climbs(Bounds(), 5) == [None, None, None, "principal_rate", "principal_rate"]


def test_a_principals_rate_comes_back_with_time_up_to_its_burst() -> None:
    """Sixty a minute is one a second."""
    bounds = Bounds()
    climbs(bounds, 3)
    assert climbs(bounds, 1, now_s=0.9) == ["principal_rate"]
    assert climbs(bounds, 2, now_s=1.0) == [None, "principal_rate"]
    assert climbs(bounds, 4, now_s=1000.0) == [None, None, None, "principal_rate"]


def test_workers_together_allow_what_one_would() -> None:
    """Requests are spread over them: a burst of twelve and six a minute, however many there are."""

    def allowed(workers: int) -> int:
        each = [Bounds(workers) for _ in range(workers)]
        asked = [(i, now_s) for now_s in (0.0, 120.0) for i in range(60)]
        return sum(each[i % workers].allow(f"c{i}", "p", 6, 12, now_s) is None for i, now_s in asked)

    assert {workers: allowed(workers) for workers in (1, 2, 3, 4, 6)} == dict.fromkeys((1, 2, 3, 4, 6), 12 + 12)


def test_a_worker_may_always_climb_once_but_where_nobody_may() -> None:
    """A burst of two among four workers is one each: a part of one would be none for ever."""
    assert [Bounds(4).allow("c", "p", 60, burst, 0.0) for burst in (2, 0)] == [None, "principal_rate"]


def test_the_free_climbs_of_a_cohort_are_shared_among_workers() -> None:
    worker = Bounds(5)
    assert [worker.allow("c", f"p{i}", 60, 30, 0.0) for i in range(3)] == [None, None, "cohort_share"]


def test_principals_do_not_pay_for_each_other() -> None:
    bounds = Bounds()
    climbs(bounds, 4, "greedy")
    assert climbs(bounds, 1, "modest") == [None]


def test_a_cohort_may_climb_ten_times_and_then_its_share() -> None:
    bounds = Bounds()
    found = [bounds.allow("c", f"p{i}", 60, 3, 0.0) for i in range(11)]
    assert found == [None] * 10 + ["cohort_share"]
    for _ in range(4):
        bounds.judged("c", 0.25)
    assert [bounds.allow("c", "q", 60, 3, 0.0) for _ in range(2)] == [None, "cohort_share"]


def test_the_share_holds_in_the_long_run() -> None:
    """Every answer rejected: a quarter of them climbs, and the ten that are free."""
    bounds = Bounds()
    climbed = 0
    for i in range(4000):
        bounds.judged("c", 0.25)
        climbed += bounds.allow("c", f"p{i}", 60, 3, 0.0) is None
    assert 1000 <= climbed <= 1010


def test_what_a_cohort_saves_is_no_store() -> None:
    """A quiet week does not allow a storm."""
    bounds = Bounds()
    for _ in range(10_000):
        bounds.judged("c", 1.0)
    found = [bounds.allow("c", f"p{i}", 60, 3, 0.0) for i in range(12)]
    assert found.count(None) == 10


def test_cohorts_do_not_pay_for_each_other() -> None:
    bounds = Bounds()
    for i in range(12):
        bounds.allow("a", f"p{i}", 60, 3, 0.0)
    assert bounds.allow("b", "q", 60, 3, 0.0) is None


def test_a_refused_climb_costs_neither_bucket() -> None:
    """A principal over its rate does not use up its cohort's share, nor the other way round."""
    bounds = Bounds()
    climbs(bounds, 100, "greedy")  # three climb
    assert [bounds.allow("c", f"p{i}", 60, 3, 0.0) for i in range(8)] == [None] * 7 + ["cohort_share"]
    bounds.judged("c", 1.0)
    assert bounds.allow("c", "p7", 60, 1, 0.0) is None


def test_nothing_may_climb_at_a_rate_of_nothing() -> None:
    assert Bounds().allow("c", "p", 0, 0, 0.0) == "principal_rate"


def test_only_so_many_principals_are_remembered() -> None:
    """A storm of made-up keys cannot fill the memory; it forgets those longest unheard of."""
    bounds = Bounds()
    climbs(bounds, 3, "kept")
    for i in range(10_500):
        bounds.judged("c", 1.0)
        bounds.allow("c", f"p{i}", 60, 3, 0.0)
        if i % 1000 == 0:
            assert climbs(bounds, 1, "kept") == ["principal_rate"]
    assert len(bounds._rates._principals) == 10_000
    assert climbs(bounds, 1, "kept") == ["principal_rate"]


def test_a_clock_that_stands_still_or_runs_back_gives_nothing_away() -> None:
    bounds = Bounds()
    climbs(bounds, 3, now_s=100.0)
    assert climbs(bounds, 2, now_s=100.0) == ["principal_rate"] * 2


def test_who_asks_is_kept_as_a_hash_only() -> None:
    assert principal_of(None) == "anonymous"
    assert "sk-secret" not in principal_of("Bearer sk-secret")
    assert principal_of("Bearer a") == principal_of("Bearer a") != principal_of("Bearer b")
    assert len(principal_of("ü\udcff" * 1000)) == 16


def test_a_conversation_is_kept_as_a_hash_that_needs_the_key() -> None:
    """The same first words are the same session to one principal, and another to the next."""
    assert session_of("Bearer a", ["Hello"]) == session_of("Bearer a", ["Hello"])
    asked = [("Bearer a", "Hello"), ("Bearer a", "Good morning"), ("Bearer b", "Hello"), (None, "Hello")]
    assert len({session_of(key, [words]) for key, words in asked}) == len(asked)
    assert len(session_of("ü\udcff" * 1000, ["ü\udcff" * 9000])) == 16
