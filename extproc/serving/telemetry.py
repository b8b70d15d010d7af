"""Records spans and metrics through the OpenTelemetry API. No prompt text and no key gets into them.

`exporters` decides where they go, and `metrics` defines every metric.
"""

import time
from collections.abc import Callable, Mapping, Sequence

from opentelemetry import metrics, trace
from opentelemetry.context import Context
from opentelemetry.metrics import CallbackOptions, Counter, Histogram, Meter, Observation
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from extproc.accounting.outcome import Cost, Outcome
from extproc.api.observation import Usage
from extproc.api.request import Request
from extproc.contract.names import PREFIX, Key
from extproc.contract.records import DecisionRecord
from extproc.contract.words import Bound, VerdictWord
from extproc.serving import metrics as definitions
from extproc.serving.metrics import Metric

# By API: gen_ai.operation.name and gen_ai.provider.name of the OpenTelemetry GenAI conventions. If the provider is
# unknown, the conventions name it by the API that is spoken.
_OPERATIONS = {
    "chat": ("chat", "openai"),
    "completions": ("text_completion", "openai"),
    "responses": ("chat", "openai"),
    "messages": ("chat", "anthropic"),
}

# The outcome of a reload: applied, or why it was refused.
_RELOADS = ("applied", "invalid", "regression", "unseen", "unclear", "gate", "error")

_propagator = TraceContextTextMapPropagator()
_NO_CONTEXT = Context()


def genai_attributes(request: Request) -> dict[str, str | int | bool]:
    """Return the attributes of the OpenTelemetry GenAI conventions that `request` has. They hold no prompt text."""
    operation, provider = _OPERATIONS[request.api]
    attributes: dict[str, str | int | bool | None] = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": provider,
        "gen_ai.request.model": request.model,
        "gen_ai.request.max_tokens": request.max_output_tokens,
        "gen_ai.request.stream": request.stream or None,  # absent unless true
        "gen_ai.output.type": "json" if request.strict_output else None,
    }
    return {name: value for name, value in attributes.items() if value is not None}


class Telemetry:
    """The spans and metrics of one server process."""

    def __init__(self, revision: str) -> None:
        self.revision = revision
        # Cohort -> largest share of its judged answers that may escalate. A dashboard compares escalations with it.
        self.shares: Callable[[], Mapping[str, float]] = dict
        # Without an exporter of spans, nothing reads them, and the parent of a span is not read either.
        self._traced = not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)
        self._tracer = trace.get_tracer("extproc")
        meter = metrics.get_meter("extproc")
        self._decisions = _counter(meter, definitions.DECISIONS)
        self._stages = _histogram(meter, definitions.STAGE_DURATION)
        self._verdicts = _counter(meter, definitions.VERDICTS)
        self._unavailable = _counter(meter, definitions.RULES_UNAVAILABLE)
        self._failures = _counter(meter, definitions.FAILURES)
        self._lag = _histogram(meter, definitions.LOOP_LAG)
        self._reloads = _counter(meter, definitions.RELOADS)
        self._outcomes = _counter(meter, definitions.OUTCOMES)
        self._rejections = _counter(meter, definitions.REJECTIONS)
        self._tokens = _counter(meter, definitions.TOKENS)
        self._cost = _counter(meter, definitions.COST)
        self._default_cost = _counter(meter, definitions.DEFAULT_COST)
        self._unknown = _counter(meter, definitions.USAGE_UNKNOWN)
        self._first_byte = _histogram(meter, definitions.FIRST_BYTE)
        self._lost = _counter(meter, definitions.LEDGER_LOST)
        self._state_failures = _counter(meter, definitions.STATE_FAILURES)
        self._keys_refused = _counter(meter, definitions.KEYS_REFUSED)
        _gauge(meter, definitions.REVISION, self._observe_revision)
        _gauge(meter, definitions.ESCALATION_SHARE, self._observe_shares)
        # Export zeros, so that `increase()` in Prometheus also counts the first event.
        self._lost.add(0)
        self._state_failures.add(0)
        for outcome in _RELOADS:
            self._reloads.add(0, _reload_labels(outcome))

    def decided(
        self,
        parent: Mapping[str, str],
        record: DecisionRecord,
        stages: Mapping[str, float],
        request: Request | None,
    ) -> None:
        """Report one decision. Its span is a child of the `traceparent` in `parent`, and as long as its stages."""
        end = time.time_ns()
        span, context = self._begin("decide", parent, end - int(sum(stages.values()) * 1e9))
        labels = {Key.COHORT.value: record.cohort} if record.cohort is not None else {}
        labels |= {Key.TIER.value: record.tier, Key.REASON.value: record.reason}
        self._decisions.add(1, labels, context)
        for stage, seconds in stages.items():
            self._stages.record(seconds, {"stage": stage}, context)
        if span.is_recording():
            span.set_attributes({f"{PREFIX}.{k}": v for k, v in record.to_metadata().items()})
            span.set_attributes({f"{PREFIX}.{s}_ms": round(t * 1e3, 3) for s, t in stages.items()})
            if request is not None:
                span.set_attributes(genai_attributes(request))
        span.end(end)

    def _begin(self, name: str, parent: Mapping[str, str], start_ns: int | None = None) -> tuple[Span, Context]:
        """Start a span. A count that is recorded in the returned context may carry the span as an exemplar."""
        if not self._traced:
            return trace.INVALID_SPAN, _NO_CONTEXT
        context = _propagator.extract(parent)
        span = self._tracer.start_span(f"{PREFIX}.{name}", context, SpanKind.SERVER, start_time=start_ns)
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
        """Report one verdict on an answer. `unavailable` names the rules that could not run."""
        labels = {Key.COHORT.value: cohort, Key.VERDICT.value: word.value, Key.REASON.value: reason}
        if bound is not None:
            labels[Key.BOUND.value] = bound.value
        span, context = self._begin("judge", parent)
        self._verdicts.add(1, labels, context)
        for rule in unavailable:
            self._unavailable.add(1, {"cohort": cohort, "rule": rule}, context)
        span.set_attributes({f"{PREFIX}.{k}": v for k, v in labels.items()} | {f"{PREFIX}.attempt": attempt})
        span.end()

    def failed(self, parent: Mapping[str, str], error: Exception) -> None:
        """Report an exchange that an unexpected error ended."""
        span, context = self._begin("decide", parent)
        self._failures.add(1, {"error.type": type(error).__name__}, context)
        span.set_attribute("error.type", type(error).__name__)
        span.set_status(Status(StatusCode.ERROR))
        span.end()

    def reloaded(self, outcome: str, revision: str) -> None:
        """Report a reload: "applied", or why it was refused. `revision` is in force after it."""
        self._reloads.add(1, _reload_labels(outcome))
        self.revision = revision

    def ended(self, outcome: Outcome, cost: Cost) -> None:
        """Report the outcome of an exchange. May be called from any thread."""
        place = {"cohort": outcome.cohort or "", "tier": outcome.tier or ""}
        self._outcomes.add(1, place | {"reason": outcome.reason, "outcome": outcome.ending})
        self._paid(place | {"answer": "last"}, outcome.usage, cost.last)
        if outcome.usage_due and outcome.usage is None:
            self._unknown.add(1, place | {"answer": "last"})
        if cost.default is not None:
            self._default_cost.add(cost.default, place)
        if outcome.first_byte_s is not None and outcome.served:
            self._first_byte.record(outcome.first_byte_s, place)
        if outcome.key_refused is not None:
            self._keys_refused.add(1, {"tier": outcome.key_refused})
        for rejection, price in zip(outcome.rejections, cost.rejected, strict=True):
            rejected = {"cohort": place["cohort"], "tier": rejection.tier or ""}
            self._rejections.add(1, rejected | {"reason": rejection.reason})
            self._paid(rejected | {"answer": "rejected"}, rejection.usage, price)
            if rejection.usage is None:
                self._unknown.add(1, rejected | {"answer": "rejected"})

    def _paid(self, labels: dict[str, str], usage: Usage | None, price: float | None) -> None:
        if usage is not None:
            for kind, count in (("input", usage.input), ("output", usage.output), ("cached", usage.cached)):
                if count is not None:
                    self._tokens.add(count, labels | {"type": kind})
        if price is not None:
            self._cost.add(price, labels)

    def lost(self, count: int) -> None:
        """Report outcomes that the ledger could not store."""
        self._lost.add(count)

    def state_failed(self) -> None:
        """Report a call to the store of conversations that failed."""
        self._state_failures.add(1)

    def lagged(self, seconds: float) -> None:
        """Report how late the event loop woke up."""
        self._lag.record(seconds)

    def _observe_revision(self, _options: CallbackOptions) -> list[Observation]:
        return [Observation(1, {"revision": self.revision})]

    def _observe_shares(self, _options: CallbackOptions) -> list[Observation]:
        return [Observation(share, {"cohort": cohort}) for cohort, share in self.shares().items()]


def _counter(meter: Meter, metric: Metric) -> Counter:
    return meter.create_counter(metric.name, unit=metric.unit, description=metric.description)


def _histogram(meter: Meter, metric: Metric) -> Histogram:
    return meter.create_histogram(
        metric.name,
        unit=metric.unit,
        description=metric.description,
        explicit_bucket_boundaries_advisory=metric.buckets,
    )


def _gauge(meter: Meter, metric: Metric, observe: Callable[[CallbackOptions], list[Observation]]) -> None:
    meter.create_observable_gauge(metric.name, [observe], unit=metric.unit, description=metric.description)


def _reload_labels(outcome: str) -> dict[str, str]:
    return {"outcome": "applied"} if outcome == "applied" else {"outcome": "refused", "reason": outcome}
