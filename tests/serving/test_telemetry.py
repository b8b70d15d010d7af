"""Every metric is exported as it is defined, with exactly the labels of its definition."""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import Histogram, InMemoryMetricReader, Sum
from opentelemetry.sdk.metrics.export import Metric as Exported
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from extproc.accounting.outcome import Cost, Ending, Outcome, Rejection
from extproc.api.observation import Usage
from extproc.contract.records import DecisionRecord
from extproc.contract.words import Bound, Reason, VerdictWord
from extproc.serving.metrics import METRICS, Metric
from extproc.serving.telemetry import Telemetry

USAGE = Usage(input=3, output=2, cached=1)
OUTCOME = Outcome(
    time=0, api="chat", ending=Ending.ACCEPTED, status=200, attempts=3, reason=Reason.MATCHED, cohort="billing",
    tier="large", rejections=(Rejection(1, "small", "refusal", USAGE), Rejection(2, "small", "refusal")),
    usage=USAGE, first_byte_s=0.1, key_refused="large",
)  # fmt: skip
DECISION = DecisionRecord(
    cluster="small", tier="small", reason=Reason.MATCHED, reasoning="off", revision="abc", mode="enforce",
    cohort="billing",
)  # fmt: skip


class Collected:
    """A `Telemetry` whose metrics are collected in memory."""

    def __init__(self) -> None:
        self._reader = InMemoryMetricReader()
        self._provider = MeterProvider([self._reader])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(metrics, "get_meter", self._provider.get_meter)
            self.telemetry = Telemetry("abc")

    def metrics(self) -> dict[str, Exported]:
        """The metrics recorded so far, by name."""
        data = self._reader.get_metrics_data()
        assert data is not None
        return {m.name: m for r in data.resource_metrics for s in r.scope_metrics for m in s.metrics}

    def series(self, name: str) -> dict[frozenset[tuple[str, object]], float]:
        """The value of each series of a counter or gauge, by its labels."""
        points: Any = self.metrics()[name].data.data_points
        return {frozenset(point.attributes.items()): point.value for point in points}

    def close(self) -> None:
        self._provider.shutdown()


@pytest.fixture
def collected() -> Iterator[Collected]:
    collected = Collected()
    yield collected
    collected.close()


def record_everything(telemetry: Telemetry) -> None:
    """Report every kind of event, each with everything that it may have."""
    telemetry.shares = lambda: {"billing": 0.35}
    telemetry.decided({}, DECISION, {"read": 0.001}, None)
    telemetry.ruled({}, "billing", 1, VerdictWord.DEGRADED, "refusal", Bound.LAST_RUNG, ["judge"])
    telemetry.failed({}, ValueError())
    telemetry.reloaded("invalid", "abc")
    telemetry.ended(OUTCOME, Cost(1.0, (1.0, None), 2.0))
    telemetry.lost(1)
    telemetry.lagged(0.1)


def kind_of(exported: Exported) -> str:
    if isinstance(exported.data, Histogram):
        return "histogram"
    return "counter" if isinstance(exported.data, Sum) else "gauge"


def test_every_metric_is_exported_as_defined(collected: Collected) -> None:
    """Name, kind, unit, description, labels and buckets; no metric is exported without a definition."""
    record_everything(collected.telemetry)
    exported: list[tuple[str, str, str | None, str | None, set[str], tuple[float, ...]]] = []
    for name, metric in collected.metrics().items():
        labels, buckets = defaultdict[str, None](), ()
        for point in metric.data.data_points:
            labels |= dict.fromkeys(point.attributes or ())
            buckets = getattr(point, "explicit_bounds", ())
        exported.append((name, kind_of(metric), metric.unit, metric.description, set(labels), tuple(buckets)))
    assert sorted(exported, key=lambda row: row[0]) == [
        (m.name, m.kind, m.unit, m.description, set(m.labels), m.buckets)
        for m in sorted(METRICS, key=lambda m: m.name)
    ]


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_a_definition_is_complete(metric: Metric) -> None:
    """The description is one phrase without a full stop, and only histograms have buckets, in rising order."""
    assert metric.name.startswith("semantic_router.")
    assert metric.description[0] in "1ABCDEFGHIJKLMNOPQRSTUVWXYZ" and not metric.description.endswith(".")
    assert bool(metric.buckets) == (metric.kind == "histogram")
    assert list(metric.buckets) == sorted(set(metric.buckets))


def test_counters_that_an_alert_watches_start_at_zero(collected: Collected) -> None:
    """`increase()` in Prometheus would miss the first event of a counter that starts with it."""
    assert collected.series("semantic_router.ledger.lost") == {frozenset(): 0}
    applied = frozenset({("outcome", "applied")})
    refused = {
        frozenset({("outcome", "refused"), ("reason", reason)})
        for reason in ("invalid", "regression", "unseen", "unclear", "gate", "error")
    }
    assert collected.series("semantic_router.reloads") == dict.fromkeys({applied, *refused}, 0)


def test_a_refused_key_is_counted_under_its_tier(collected: Collected) -> None:
    collected.telemetry.ended(OUTCOME, Cost(1.0, (0.5, None), 2.0))
    assert collected.series("semantic_router.keys.refused") == {frozenset({("tier", "large")}): 1}


def test_the_tokens_and_cost_of_rejected_answers_have_their_own_label(collected: Collected) -> None:
    """Under the tier that gave the answer. An answer without token counts is counted as unknown."""
    collected.telemetry.ended(OUTCOME, Cost(1.0, (0.5, None), 2.0))
    last = {("cohort", "billing"), ("tier", "large"), ("answer", "last")}
    rejected = {("cohort", "billing"), ("tier", "small"), ("answer", "rejected")}
    assert collected.series("semantic_router.cost") == {frozenset(last): 1.0, frozenset(rejected): 0.5}
    assert collected.series("semantic_router.usage.unknown") == {frozenset(rejected): 1}
    assert collected.series("semantic_router.tokens") == {
        frozenset({*labels, ("type", kind)}): count
        for labels in (last, rejected)
        for kind, count in (("input", 3), ("output", 2), ("cached", 1))
    }


def test_the_revision_in_force_is_the_one_of_the_last_reload(collected: Collected) -> None:
    collected.telemetry.reloaded("applied", "def")
    assert collected.series("semantic_router.revision") == {frozenset({("revision", "def")}): 1}


class Parent(dict[str, str]):
    """The metadata of a call, which counts how often it is read."""

    reads = 0

    def get(self, *args: Any) -> Any:
        self.reads += 1
        return super().get(*args)


def test_the_parent_of_a_span_is_read_only_if_spans_are_exported(monkeypatch):
    """It takes a tenth of a decision. Metrics are counted in both cases."""
    traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    spans = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    for exported in (False, True):
        if exported:
            monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
            monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
        collected, parent = Collected(), Parent(traceparent=traceparent)
        collected.telemetry.decided(parent, DECISION, {"read": 0.1}, None)
        collected.telemetry.ruled(parent, "billing", 1, VerdictWord.ACCEPT, "accepted", None, ())
        collected.telemetry.failed(parent, ValueError())
        assert len(collected.series("semantic_router.decisions")) == 1
        assert (parent.reads > 0) == exported
        collected.close()
    assert [span.name for span in spans.get_finished_spans()] == [
        "semantic_router.decide",
        "semantic_router.judge",
        "semantic_router.decide",
    ]
    assert {span.parent.trace_id for span in spans.get_finished_spans() if span.parent is not None} == {
        0x0AF7651916CD43DD8448EB211C80319C
    }
    provider.shutdown()
