"""OpenTelemetry: one span a decision, counters, stage latencies. Never a prompt, never a key.

Exported over OTLP when OTEL_EXPORTER_OTLP_ENDPOINT is set (the SDK reads the standard OTEL_* variables), and to
whatever Prometheus scrapes us when OTEL_METRICS_EXPORTER names it; otherwise the API's no-op providers stay in
place and cost next to nothing. Over OTLP, what is counted and timed within a sampled trace has it as an exemplar
(OTEL_METRICS_EXEMPLAR_FILTER; the SDK's exporter for Prometheus writes none).
"""

import logging
import os
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from opentelemetry import metrics, trace
from opentelemetry.context import Context
from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from extproc.accounting.outcome import Cost, Outcome
from extproc.api.observation import Usage
from extproc.api.request import Request
from extproc.contract.names import PREFIX, Key
from extproc.contract.records import DecisionRecord
from extproc.contract.words import Bound, VerdictWord

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics.export import MetricReader

log = logging.getLogger(__name__)

# By API: gen_ai.operation.name and gen_ai.provider.name of the OpenTelemetry GenAI conventions. Where nobody knows
# who answers, they call a provider by the API that is spoken.
_OPERATIONS = {
    "chat": ("chat", "openai"),
    "completions": ("text_completion", "openai"),
    "responses": ("chat", "openai"),
    "messages": ("chat", "anthropic"),
}
_PREFIX = PREFIX  # of every metric, span and attribute

# How a reload ends: applied, or why it was refused.
_RELOADS = ("applied", "invalid", "regression", "gate", "error")

_propagator = TraceContextTextMapPropagator()


def set_up_telemetry() -> None:
    """Install the exporters that are configured; call once per process, before Telemetry()."""
    over_otlp = bool(os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT"))
    scraped = "prometheus" in os.environ.get("OTEL_METRICS_EXPORTER", "").split(",")
    if not (over_otlp or scraped):
        return
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, SERVICE_NAME, Resource

    name = os.environ.get("OTEL_SERVICE_NAME", "semantic-router")
    # Of its own for each process: counters of several are added up, not mixed up.
    resource = Resource.create({SERVICE_NAME: name, SERVICE_INSTANCE_ID: str(uuid.uuid4())})
    readers: list[MetricReader] = [_scraped()] if scraped else []
    if over_otlp:
        from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        tracers = TracerProvider(resource=resource)
        tracers.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        trace.set_tracer_provider(tracers)
        readers.append(PeriodicExportingMetricReader(OTLPMetricExporter()))
    metrics.set_meter_provider(MeterProvider(resource=resource, metric_readers=readers))


def _scraped() -> "MetricReader":
    """Open the port that Prometheus scrapes, under OpenTelemetry's own variables and default."""
    from opentelemetry.exporter.prometheus import PrometheusMetricReader
    from prometheus_client import start_http_server

    host = os.environ.get("OTEL_EXPORTER_PROMETHEUS_HOST", "localhost")
    port = int(os.environ.get("OTEL_EXPORTER_PROMETHEUS_PORT", "9464"))
    try:
        start_http_server(port, host)
    except OSError as error:  # taken, by another process of ours perhaps: traffic goes first
        log.error("no metrics for Prometheus on %s:%d: %s", host, port, error)
    return PrometheusMetricReader()


def _genai(request: Request) -> dict[str, str | int | bool]:
    """What the GenAI conventions tell of a request, but for its words; what it does not say is left out."""
    operation, provider = _OPERATIONS[request.api]
    told: dict[str, str | int | bool | None] = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": provider,
        "gen_ai.request.model": request.model,
        "gen_ai.request.max_tokens": request.max_output_tokens,
        "gen_ai.request.stream": request.stream or None,  # told of streams only
        "gen_ai.output.type": "json" if request.strict_output else None,
    }
    return {name: value for name, value in told.items() if value is not None}


class Telemetry:
    """What the server tells of its work."""

    def __init__(self, revision: str) -> None:
        self.revision = revision
        # Cohort -> the share of its judged answers that may climb; what escalations are held against.
        self.shares: Callable[[], Mapping[str, float]] = dict
        self._tracer = trace.get_tracer("extproc")
        meter = metrics.get_meter("extproc")
        self._decisions = meter.create_counter(
            f"{_PREFIX}.decisions", unit="{request}", description="Decisions by cohort, tier and reason"
        )
        self._stages = meter.create_histogram(
            f"{_PREFIX}.stage.duration",
            unit="s",
            description="Time spent in each stage of a decision",
            explicit_bucket_boundaries_advisory=[
                1e-5,
                1e-4,
                1e-3,
                2.5e-3,
                5e-3,
                1e-2,
                2.5e-2,
                5e-2,
                0.1,
                0.25,
                0.5,
                1.0,
            ],
        )
        self._verdicts = meter.create_counter(
            f"{_PREFIX}.verdicts", unit="{answer}", description="Verdicts on answers by cohort and reason"
        )
        self._unavailable = meter.create_counter(
            f"{_PREFIX}.rules.unavailable",
            unit="{answer}",
            description="Acceptance rules that could not run and took their declared outcome",
        )
        self._failures = meter.create_counter(
            f"{_PREFIX}.failures",
            unit="{exchange}",
            description="Exchanges that an error of ours ended; Envoy failed open",
        )
        self._lag = meter.create_histogram(
            f"{_PREFIX}.loop.lag",
            unit="s",
            description="By how much the event loop woke too late",
            explicit_bucket_boundaries_advisory=[1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1, 0.25, 0.5, 1.0, 2.5],
        )
        self._reloads = meter.create_counter(
            f"{_PREFIX}.reloads", unit="{reload}", description="Configuration reloads by outcome"
        )
        self._set_up_ledger(meter)
        for outcome in _RELOADS:  # from nought on: who watches for an increase sees the first, too
            self._reloads.add(0, _reload_labels(outcome))
        meter.create_observable_gauge(
            f"{_PREFIX}.revision",
            [self._observe_revision],
            description="1 for the configuration revision in force",
        )
        meter.create_observable_gauge(
            f"{_PREFIX}.escalation.share",
            [self._observe_shares],
            description="The part of a cohort's judged answers that may climb, as its intent says",
        )

    def decided(
        self,
        parent: Mapping[str, str],
        record: DecisionRecord,
        stages: Mapping[str, float],
        request: Request | None,
    ) -> None:
        """Report one decision: a span as long as its stages took, child of the `traceparent` in `parent`."""
        end = time.time_ns()
        span, context = self._begin("decide", parent, end - int(sum(stages.values()) * 1e9))
        labels = {Key.COHORT.value: record.cohort} if record.cohort is not None else {}
        labels |= {Key.TIER.value: record.tier, Key.REASON.value: record.reason}
        self._decisions.add(1, labels, context)
        for stage, seconds in stages.items():
            self._stages.record(seconds, {"stage": stage}, context)
        if span.is_recording():
            span.set_attributes({f"{_PREFIX}.{k}": v for k, v in record.to_metadata().items()})
            span.set_attributes({f"{_PREFIX}.{s}_ms": round(t * 1e3, 3) for s, t in stages.items()})
            if request is not None:
                span.set_attributes(_genai(request))
        span.end(end)

    def _begin(self, name: str, parent: Mapping[str, str], start_ns: int | None = None) -> tuple[Span, Context]:
        """Start a span. What is counted in its context may carry it as an exemplar: one request of many."""
        context = _propagator.extract(parent)
        span = self._tracer.start_span(f"{_PREFIX}.{name}", context, SpanKind.SERVER, start_time=start_ns)
        return span, trace.set_span_in_context(span, context)

    def ruled(
        self,
        parent: Mapping[str, str],
        cohort: str,
        attempt: int,
        word: VerdictWord,
        reason: str,
        bound: Bound | None,
        unavailable: Sequence[str],
    ) -> None:
        """Report one verdict on an answer, as a span and a count."""
        labels = {Key.COHORT.value: cohort, Key.VERDICT.value: word.value, Key.REASON.value: reason}
        if bound is not None:
            labels[Key.BOUND.value] = bound.value
        span, context = self._begin("judge", parent)
        self._verdicts.add(1, labels, context)
        for rule in unavailable:
            self._unavailable.add(1, {"cohort": cohort, "rule": rule}, context)
        span.set_attributes({f"{_PREFIX}.{k}": v for k, v in labels.items()} | {f"{_PREFIX}.attempt": attempt})
        span.end()

    def failed(self, parent: Mapping[str, str], error: Exception) -> None:
        """Report an exchange that an unexpected error ended."""
        span, context = self._begin("decide", parent)
        self._failures.add(1, {"error.type": type(error).__name__}, context)
        span.set_attribute("error.type", type(error).__name__)
        span.set_status(Status(StatusCode.ERROR))
        span.end()

    def reloaded(self, outcome: str, revision: str) -> None:
        """Report a reload: "applied", or why it was refused; `revision` is in force after it."""
        self._reloads.add(1, _reload_labels(outcome))
        self.revision = revision

    def _set_up_ledger(self, meter: metrics.Meter) -> None:
        self._outcomes = meter.create_counter(
            f"{_PREFIX}.outcomes", unit="{request}", description="Exchanges by how they ended"
        )
        self._rejections = meter.create_counter(
            f"{_PREFIX}.rejections", unit="{answer}", description="Answers that were paid for and never served"
        )
        self._tokens = meter.create_counter(
            f"{_PREFIX}.tokens", unit="{token}", description="Tokens as upstreams counted them"
        )
        self._cost = meter.create_counter(
            f"{_PREFIX}.cost", unit="USD", description="What answers cost, rejected ones apart"
        )
        self._default_cost = meter.create_counter(
            f"{_PREFIX}.cost.default", unit="USD", description="What served answers cost at the default tier"
        )
        self._unknown = meter.create_counter(
            f"{_PREFIX}.usage.unknown", unit="{answer}", description="Answers that told no tokens"
        )
        self._first_byte = meter.create_histogram(
            f"{_PREFIX}.first_byte.duration",
            unit="s",
            description="Until the client had the first byte of its answer",
            explicit_bucket_boundaries_advisory=[0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0],
        )
        self._lost = meter.create_counter(
            f"{_PREFIX}.ledger.lost", unit="{request}", description="Outcomes that the ledger could not keep"
        )
        self._lost.add(0)

    def ended(self, outcome: Outcome, cost: Cost) -> None:
        """Report what became of an exchange; from any thread."""
        at = {"cohort": outcome.cohort or "", "tier": outcome.tier or ""}
        self._outcomes.add(1, at | {"reason": outcome.reason, "outcome": outcome.ending})
        self._paid(at | {"answer": "last"}, outcome.usage, cost.last)
        if outcome.usage_due and outcome.usage is None:
            self._unknown.add(1, at | {"answer": "last"})
        if cost.default is not None:
            self._default_cost.add(cost.default, at)
        if outcome.first_byte_s is not None and outcome.served:
            self._first_byte.record(outcome.first_byte_s, at)
        for rejection, price in zip(outcome.rejections, cost.rejected, strict=True):
            there = {"cohort": at["cohort"], "tier": rejection.tier or ""}
            self._rejections.add(1, there | {"reason": rejection.reason})
            self._paid(there | {"answer": "rejected"}, rejection.usage, price)
            if rejection.usage is None:
                self._unknown.add(1, there | {"answer": "rejected"})

    def _paid(self, labels: dict[str, str], usage: Usage | None, price: float | None) -> None:
        if usage is not None:
            for kind, count in (("input", usage.input), ("output", usage.output), ("cached", usage.cached)):
                if count is not None:
                    self._tokens.add(count, labels | {"type": kind})
        if price is not None:
            self._cost.add(price, labels)

    def lost(self, count: int) -> None:
        """Report outcomes that the ledger could not keep."""
        self._lost.add(count)

    def lagged(self, seconds: float) -> None:
        """Report by how much the event loop woke too late."""
        self._lag.record(seconds)

    def _observe_revision(self, _options: CallbackOptions) -> list[Observation]:
        return [Observation(1, {"revision": self.revision})]

    def _observe_shares(self, _options: CallbackOptions) -> list[Observation]:
        return [Observation(share, {"cohort": cohort}) for cohort, share in self.shares().items()]


def _reload_labels(outcome: str) -> dict[str, str]:
    return {"outcome": "applied"} if outcome == "applied" else {"outcome": "refused", "reason": outcome}
