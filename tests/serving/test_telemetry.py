"""Every metric is exported as it is defined, with exactly the labels of its definition."""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import Histogram, InMemoryMetricReader, Sum
from opentelemetry.sdk.metrics.export import Metric as Exported
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from extproc.accounting.drift_limits import LEAST_RECENT
from extproc.accounting.feedback import AnsweredRequest, Feedback
from extproc.accounting.outcome import Cost, Ending, LateVerdict, Outcome, Rejection, TierError
from extproc.api.observation import Usage
from extproc.contract.records import DecisionRecord
from extproc.contract.words import Bound, Reason, Signal, VerdictWord
from extproc.routing.cache_store import Checks
from extproc.serving.metrics import METRICS, Metric
from extproc.serving.telemetry import Telemetry
from extproc.settings import Price, Tier, TierKey
from tests.serving.test_drift import matched

USAGE = Usage(input=3, output=2, cached=1)
OUTCOME = Outcome(
    time=0, api="chat", ending=Ending.ACCEPTED, status=200, attempts=3, reason=Reason.MATCHED, cohort="billing",
    tier="large", rejections=(Rejection(1, "small", "refusal", USAGE), Rejection(2, "small", "refusal")),
    usage=USAGE, first_byte_s=0.1, key_refused="large", model="large-2026", stream=True, duration_s=1.0,
    errors=(TierError("small", 503), TierError("medium", 0)),
)  # fmt: skip
DECISION = DecisionRecord(
    cluster="small", tier="small", reason=Reason.MATCHED, reasoning="off", revision="abc", mode="enforce",
    cohort="billing", cache="miss",
)  # fmt: skip


PRICE = Price(input=1, output=2)
TIERS = {"large": Tier("large", "large-1", "http://large", 8000, PRICE, key=TierKey("key"))}
UNSENT = Outcome(
    time=0, api="chat", ending=Ending.FAILED, status=400, attempts=0, reason=Reason.BAD_REQUEST, duration_s=0.1
)
GENAI = {
    "gen_ai.operation.name": "chat", "gen_ai.provider.name": "openai", "gen_ai.request.model": "large-1",
    "gen_ai.response.model": "large-2026",
}  # fmt: skip


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
    telemetry.candidates = lambda: {"candidate-1": 0.05}
    telemetry.tiers = lambda: TIERS
    telemetry.caches = lambda: {"billing": Checks()}
    telemetry.budgets = lambda: {"all": 0.5}
    telemetry.refused_apps = lambda: {"support": False}
    telemetry.apps = lambda: {"support": {"team": "search"}}
    telemetry.decided({}, msgspec.structs.replace(DECISION, app="support"), {"read": 0.001}, None)
    telemetry.ruled({}, "billing", 1, VerdictWord.DEGRADED, "refusal", Bound.LAST_RUNG, ["judge"])
    telemetry.failed({}, ValueError())
    telemetry.reloaded("invalid", "abc")
    ended = msgspec.structs.replace(OUTCOME, app="support")
    telemetry.ended(ended, Cost(1.0, (1.0, None), 2.0, saved=1.0))
    telemetry.ended(
        msgspec.structs.replace(OUTCOME, ending=Ending.FAILED, status=503), Cost(None, (None, None), None)
    )
    telemetry.lost(1)
    telemetry.explored("billing", "large", "accepted")
    telemetry.replayed(1, 3)
    answer = AnsweredRequest("alice", "billing", "large", "billing", 0.9)
    telemetry.rated(answer, Feedback("5-5", 1.0, "billing"))
    for _ in range(LEAST_RECENT):
        telemetry.drift.saw(matched())
    telemetry.signalled("billing", "large", Signal.RE_ASKED)
    telemetry.cache_checked("billing", "right")
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
    assert metric.name.startswith(("semantic_router.", "gen_ai.client."))
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


def test_the_errors_of_a_tier_are_counted_by_status(collected: Collected) -> None:
    collected.telemetry.ended(OUTCOME, Cost(1.0, (0.5, None), 2.0))
    assert collected.series("semantic_router.tier.errors") == {
        frozenset({("tier", "small"), ("status", "503")}): 1,
        frozenset({("tier", "medium"), ("status", "no_answer")}): 1,
    }


@pytest.mark.parametrize(
    ("late", "reason", "unavailable"),
    [
        (LateVerdict("billing", 1, VerdictWord.ACCEPT), "ok", []),
        (LateVerdict("billing", 1, VerdictWord.RECORDED, "cut"), "cut", []),
        (LateVerdict("billing", 1, VerdictWord.DEGRADED, "unavailable"), "unavailable", ["complete"]),
    ],
)
def test_a_verdict_that_envoy_completed_is_counted_as_one_of_the_verifier(
    collected: Collected, late: LateVerdict, reason: str, unavailable: list[str]
) -> None:
    collected.telemetry.ended(msgspec.structs.replace(OUTCOME, late=late), Cost(1.0, (0.5, None), 2.0))
    labels = {("cohort", "billing"), ("verdict", late.verdict.value), ("reason", reason)}
    assert collected.series("semantic_router.verdicts") == {frozenset(labels): 1}
    rules = [frozenset({("cohort", "billing"), ("rule", rule)}) for rule in unavailable]
    counted = collected.metrics().get("semantic_router.rules.unavailable")
    assert (counted is None) == (rules == [])
    assert not rules or collected.series("semantic_router.rules.unavailable") == dict.fromkeys(rules, 1)


def test_a_tier_with_a_key_counts_refusals_from_zero(collected: Collected) -> None:
    collected.telemetry.know_keys(TIERS.values())
    assert collected.series("semantic_router.keys.refused") == {frozenset({("tier", "large")}): 0}


def test_an_exchange_has_the_metrics_of_the_genai_conventions(collected: Collected) -> None:
    """The duration of a failure has its status. Only streams have a first chunk."""
    telemetry = collected.telemetry
    telemetry.tiers = lambda: TIERS
    failed = msgspec.structs.replace(OUTCOME, ending=Ending.FAILED, status=503, usage=None, model=None)
    for outcome in (OUTCOME, failed, msgspec.structs.replace(OUTCOME, stream=False, usage=None), UNSENT):
        telemetry.ended(outcome, Cost(None, (None,) * len(outcome.rejections), None))
    points: dict[str, Any] = {name: metric.data.data_points for name, metric in collected.metrics().items()}
    unnamed = {name: value for name, value in GENAI.items() if name != "gen_ai.response.model"}

    def counts(name: str) -> list[tuple[dict[str, Any], int, float]]:
        return [(dict(point.attributes), point.count, point.sum) for point in points[name]]

    assert counts("gen_ai.client.operation.duration") == [
        (GENAI, 2, 2.0), (unnamed | {"error.type": "503"}, 1, 1.0)
    ]  # fmt: skip
    assert counts("gen_ai.client.operation.time_to_first_chunk") == [(GENAI, 1, 0.1)]
    assert counts("gen_ai.client.token.usage") == [
        (GENAI | {"gen_ai.token.type": kind}, 1, count) for kind, count in (("input", 3), ("output", 2))
    ]


def test_an_exchange_is_a_client_span_below_the_one_of_envoy(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has the usage, and the times of the exchange. Without a trace there is no span."""
    spans = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    telemetry = Telemetry("abc")
    telemetry.tiers = lambda: TIERS
    telemetry.ended(OUTCOME, Cost(1.0, (0.5, None), 2.0))
    traced = msgspec.structs.replace(OUTCOME, time=1.0, traceparent=f"00-{'a' * 32}-{'b' * 16}-01")
    telemetry.ended(traced, Cost(1.0, (0.5, None), 2.0))
    [span] = spans.get_finished_spans()
    assert (span.name, span.kind) == ("chat large-1", trace.SpanKind.CLIENT)
    assert span.parent is not None and f"{span.parent.span_id:016x}" == "b" * 16
    assert (span.start_time, span.end_time) == (10**9, 2 * 10**9)
    assert dict(span.attributes or {}) == GENAI | {
        "gen_ai.usage.input_tokens": 3, "gen_ai.usage.output_tokens": 2,
        "gen_ai.usage.cache_read.input_tokens": 1, "gen_ai.request.stream": True,
        "gen_ai.response.time_to_first_chunk": 0.1, "semantic_router.tier": "large",
    }  # fmt: skip


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


def test_a_hit_of_the_cache_is_no_call_of_a_model(collected: Collected) -> None:
    """It saved dollars, and its time to the first byte says nothing about a tier."""
    hit = msgspec.structs.replace(
        UNSENT, ending=Ending.ACCEPTED, status=200, attempts=0, tier="large", cache="hit", first_byte_s=0.01
    )
    collected.telemetry.ended(hit, Cost(0.0, (), 2.0, 0.5))
    metrics = collected.metrics()
    assert sum(collected.series("semantic_router.cache.saved").values()) == 0.5
    assert "semantic_router.first_byte.duration" not in metrics
    assert "gen_ai.client.operation.duration" not in metrics
