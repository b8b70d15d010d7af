"""The lag of the event loop is measured all the time, and logged once in a while."""

import asyncio
import logging
import time

import pytest

from extproc.serving.watchdog import WARN_S, watch_lag


def lags(*blocked_s: float) -> list[float]:
    """Block the loop for each of these times in turn. Return every lag that was reported."""
    reported: list[float] = []

    async def run() -> None:
        watching = asyncio.create_task(watch_lag(reported.append))
        for seconds in blocked_s:
            seen = len(reported)
            while len(reported) == seen:
                await asyncio.sleep(0)
            await asyncio.sleep(0)  # the next wait has begun
            time.sleep(seconds)
            while len(reported) == seen + 1:
                await asyncio.sleep(0)
        watching.cancel()

    asyncio.run(run())
    return reported


def test_a_blocked_loop_is_reported_each_time_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """Two stalls in a row are two measurements and one line."""
    with caplog.at_level(logging.WARNING, "extproc"):
        reported = lags(0.5, 0.5)
    assert sum(lag > 0.3 for lag in reported) == 2
    assert [record.message.partition(" for ")[0] for record in caplog.records] == ["the event loop was blocked"]


def test_a_lag_within_the_bound_is_reported_only(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A busy machine causes a small lag, which is not worth a warning."""
    monkeypatch.setattr("extproc.serving.watchdog.WARN_S", 100 * WARN_S)
    with caplog.at_level(logging.WARNING, "extproc"):
        reported = lags(0.2)
    assert max(reported) > 0.05 and all(lag >= 0 for lag in reported)
    assert caplog.records == []
