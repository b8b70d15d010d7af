"""Limits on escalations: token buckets for the share of a cohort and the rate of a principal."""

from extproc.routing.limits import Bounds, principal_of


def escalations(
    bounds: Bounds, times: int, principal: str = "p", cohort: str = "c", now_s: float = 0.0
) -> list[str | None]:
    return [bounds.allow(cohort, principal, 60, 3, now_s) for _ in range(times)]


def test_a_principal_may_climb_its_burst_and_no_more() -> None:
    assert escalations(Bounds(), 5) == [None, None, None, "principal_rate", "principal_rate"]


def test_a_principals_rate_comes_back_with_time_up_to_its_burst() -> None:
    """Sixty per minute is one per second."""
    bounds = Bounds()
    escalations(bounds, 3)
    assert escalations(bounds, 1, now_s=0.9) == ["principal_rate"]
    assert escalations(bounds, 2, now_s=1.0) == [None, "principal_rate"]
    assert escalations(bounds, 4, now_s=1000.0) == [None, None, None, "principal_rate"]


def test_workers_together_allow_what_one_would() -> None:
    """Envoy spreads requests over them. The limits stay the same for any number of workers."""

    def allowed(workers: int) -> int:
        all_bounds = [Bounds(workers) for _ in range(workers)]
        requests = [(i, now_s) for now_s in (0.0, 120.0) for i in range(60)]
        return sum(all_bounds[i % workers].allow(f"c{i}", "p", 6, 12, now_s) is None for i, now_s in requests)

    assert {workers: allowed(workers) for workers in (1, 2, 3, 4, 6)} == dict.fromkeys((1, 2, 3, 4, 6), 12 + 12)


def test_a_worker_may_escalate_once_unless_the_burst_is_zero() -> None:
    """With a burst of two, four workers allow one each. Half of one would never allow any."""
    assert [Bounds(4).allow("c", "p", 60, burst, 0.0) for burst in (2, 0)] == [None, "principal_rate"]


def test_workers_share_the_first_free_escalations_of_a_cohort() -> None:
    worker = Bounds(5)
    assert [worker.allow("c", f"p{i}", 60, 30, 0.0) for i in range(3)] == [None, None, "cohort_share"]


def test_each_principal_has_its_own_rate() -> None:
    bounds = Bounds()
    escalations(bounds, 4, "greedy")
    assert escalations(bounds, 1, "modest") == [None]


def test_a_cohort_may_climb_ten_times_and_then_its_share() -> None:
    bounds = Bounds()
    bounds_reached = [bounds.allow("c", f"p{i}", 60, 3, 0.0) for i in range(11)]
    assert bounds_reached == [None] * 10 + ["cohort_share"]
    for _ in range(4):
        bounds.judged("c", 0.25)
    assert [bounds.allow("c", "q", 60, 3, 0.0) for _ in range(2)] == [None, "cohort_share"]


def test_the_share_holds_in_the_long_run() -> None:
    """All answers are rejected. A quarter of them escalates, after ten free escalations."""
    bounds = Bounds()
    escalated = 0
    for i in range(4000):
        bounds.judged("c", 0.25)
        escalated += bounds.allow("c", f"p{i}", 60, 3, 0.0) is None
    assert 1000 <= escalated <= 1010


def test_a_cohort_cannot_save_up_escalations() -> None:
    """After a quiet week, only the usual ten are free."""
    bounds = Bounds()
    for _ in range(10_000):
        bounds.judged("c", 1.0)
    bounds_reached = [bounds.allow("c", f"p{i}", 60, 3, 0.0) for i in range(12)]
    assert bounds_reached.count(None) == 10


def test_each_cohort_has_its_own_share() -> None:
    bounds = Bounds()
    for i in range(12):
        bounds.allow("a", f"p{i}", 60, 3, 0.0)
    assert bounds.allow("b", "q", 60, 3, 0.0) is None


def test_a_rejected_escalation_takes_no_token() -> None:
    """A principal over its rate does not use up the share of its cohort, and the other way round."""
    bounds = Bounds()
    escalations(bounds, 100, "greedy")  # three are allowed
    assert [bounds.allow("c", f"p{i}", 60, 3, 0.0) for i in range(8)] == [None] * 7 + ["cohort_share"]
    bounds.judged("c", 1.0)
    assert bounds.allow("c", "p7", 60, 1, 0.0) is None


def test_no_escalation_is_allowed_at_a_rate_of_zero() -> None:
    assert Bounds().allow("c", "p", 0, 0, 0.0) == "principal_rate"


def test_the_number_of_cached_principals_is_limited() -> None:
    """Many invented keys cannot fill the memory: the least recently used principal is evicted."""
    bounds = Bounds()
    escalations(bounds, 3, "kept")
    for i in range(10_500):
        bounds.judged("c", 1.0)
        bounds.allow("c", f"p{i}", 60, 3, 0.0)
        if i % 1000 == 0:
            assert escalations(bounds, 1, "kept") == ["principal_rate"]
    assert len(bounds._rates._principals) == 10_000
    assert escalations(bounds, 1, "kept") == ["principal_rate"]


def test_a_clock_that_stands_still_or_runs_back_gives_nothing_away() -> None:
    bounds = Bounds()
    escalations(bounds, 3, now_s=100.0)
    assert escalations(bounds, 2, now_s=100.0) == ["principal_rate"] * 2


def test_who_asks_is_kept_as_a_hash_only() -> None:
    assert principal_of(None) == "anonymous"
    assert "sk-secret" not in principal_of("Bearer sk-secret")
    assert principal_of("Bearer a") == principal_of("Bearer a") != principal_of("Bearer b")
    assert len(principal_of("ü\udcff" * 1000)) == 16
