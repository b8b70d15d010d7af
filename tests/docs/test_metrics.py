"""The labels of every metric are the ones that its page lists."""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any
from unittest import mock

from docs.generate import words
from extproc.accounting.outcome import Cost, Ending, Outcome, Rejection
from extproc.api.observation import Usage
from extproc.contract.records import DecisionRecord
from extproc.contract.words import Bound, Reason, VerdictWord
from extproc.serving.telemetry import Telemetry


class LabelMeter:
    """Notes with which labels each instrument is used."""

    def __init__(self) -> None:
        self.labels: dict[str, set[str]] = defaultdict(set)

    def create_counter(self, name: str, **_: object) -> mock.Mock:
        return self._instrument(name, "add")

    def create_histogram(self, name: str, **_: object) -> mock.Mock:
        return self._instrument(name, "record")

    def create_observable_gauge(self, name: str, callbacks: Any, **_: object) -> None:
        # The telemetry sets what a gauge reads after it has made the gauge: `observe` asks it later.
        self._instrument(name, "")
        self._callbacks = [*getattr(self, "_callbacks", []), (name, callbacks)]

    def observe(self) -> None:
        for name, callbacks in self._callbacks:
            for callback in callbacks:
                for observation in callback(None):
                    self.labels[name] |= set(observation.attributes or ())

    def _instrument(self, name: str, method: str) -> mock.Mock:
        self.labels[name] |= set()

        def note(_: float, labels: Mapping[str, str] | None = None, *__: object) -> None:
            self.labels[name] |= set(labels or ())

        return mock.Mock(**{method: note}) if method else mock.Mock()


def test_every_label_is_documented() -> None:
    """A decision, a verdict, a failure, a reload and an outcome with everything that they may have."""
    meter = LabelMeter()
    with mock.patch("opentelemetry.metrics.get_meter", return_value=meter):
        telemetry = Telemetry("abc")
    telemetry.shares = lambda: {"billing": 0.35}
    record = DecisionRecord(
        cluster="small", tier="small", reason=Reason.MATCHED, reasoning="off", revision="abc", mode="enforce",
        cohort="billing",
    )  # fmt: skip
    telemetry.decided({}, record, {"read": 0.001}, None)
    telemetry.ruled({}, "billing", 1, VerdictWord.DEGRADED, "refusal", Bound.LAST_RUNG, ["judge"])
    telemetry.failed({}, ValueError())
    telemetry.reloaded("invalid", "abc")
    usage = Usage(input=3, output=2, cached=1)
    rejections = (Rejection(1, "small", "refusal", usage), Rejection(2, "small", "refusal"))
    outcome = Outcome(
        time=0, api="chat", ending=Ending.ACCEPTED, status=200, attempts=3, reason=Reason.MATCHED, cohort="billing",
        tier="large", rejections=rejections, usage=usage, first_byte_s=0.1,
    )  # fmt: skip
    telemetry.ended(outcome, Cost(1.0, (1.0, None), 2.0))
    telemetry.lost(1)
    telemetry.lagged(0.1)
    meter.observe()
    assert dict(meter.labels) == {name: set(labels) for name, labels in words.METRIC_LABELS.items()}
