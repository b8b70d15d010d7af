"""The metrics and spans of OpenTelemetry's GenAI conventions, for each exchange. They hold no prompt text.

The router is the client of the tiers. So the requested model is that of the tier, and each exchange has the
span of a client. It is a child of Envoy's last span for the request, and is written when the outcome is known.
"""

from collections.abc import Mapping

from opentelemetry.context import Context
from opentelemetry.metrics import Meter
from opentelemetry.trace import SpanKind, Status, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from extproc.accounting.outcome import Outcome
from extproc.api.observation import Usage
from extproc.api.request import Request
from extproc.contract.names import PREFIX
from extproc.serving import metrics as definitions
from extproc.serving.instruments import histogram
from extproc.settings import Tier

# By API: gen_ai.operation.name and gen_ai.provider.name. If the provider is unknown, the conventions name it by the
# API that is spoken.
_OPERATIONS = {
    "chat": ("chat", "openai"),
    "completions": ("text_completion", "openai"),
    "responses": ("chat", "openai"),
    "messages": ("chat", "anthropic"),
}
_propagator = TraceContextTextMapPropagator()
Attributes = dict[str, str | int | float | bool]


def request_attributes(request: Request) -> Attributes:
    """Return the attributes that `request` has."""
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


def usage_attributes(usage: Usage | None) -> Attributes:
    """Return the tokens that are known."""
    if usage is None:
        return {}
    counts = {
        "gen_ai.usage.input_tokens": usage.input,
        "gen_ai.usage.output_tokens": usage.output,
        "gen_ai.usage.cache_read.input_tokens": usage.cached,
    }
    return {name: count for name, count in counts.items() if count is not None}


class GenAi:
    """Records the outcome of each exchange by the conventions."""

    def __init__(self, meter: Meter, tracer: Tracer) -> None:
        self._tracer = tracer
        self._tokens = histogram(meter, definitions.GENAI_TOKENS)
        self._duration = histogram(meter, definitions.GENAI_DURATION)
        self._first_chunk = histogram(meter, definitions.GENAI_FIRST_CHUNK)

    def ended(self, outcome: Outcome, tiers: Mapping[str, Tier]) -> None:
        """Report an exchange that reached a tier. May be called from any thread."""
        tier = tiers.get(outcome.tier or "")
        if tier is None or outcome.api not in _OPERATIONS:
            return
        labels = _labels(outcome, tier)
        error: Attributes = {} if outcome.served else {"error.type": _error(outcome)}
        if outcome.duration_s is not None:
            self._duration.record(outcome.duration_s, labels | error)
        if outcome.stream and outcome.served and outcome.first_byte_s is not None:
            self._first_chunk.record(outcome.first_byte_s, labels)
        for kind, count in _tokens(outcome.usage):
            self._tokens.record(count, labels | {"gen_ai.token.type": kind})
        self._span(outcome, tier, labels | error)

    def _span(self, outcome: Outcome, tier: Tier, labels: Attributes) -> None:
        if outcome.traceparent is None or outcome.duration_s is None:
            return
        start = int(outcome.time * 1e9)
        span = self._tracer.start_span(
            f"{labels['gen_ai.operation.name']} {tier.model}",
            _propagator.extract({"traceparent": outcome.traceparent}),
            SpanKind.CLIENT,
            start_time=start,
        )
        if span.is_recording():
            span.set_attributes(labels | usage_attributes(outcome.usage))
            span.set_attribute(f"{PREFIX}.tier", tier.name)
            if outcome.stream:
                span.set_attribute("gen_ai.request.stream", True)
                if outcome.first_byte_s is not None:
                    span.set_attribute("gen_ai.response.time_to_first_chunk", outcome.first_byte_s)
            if "error.type" in labels:
                span.set_status(Status(StatusCode.ERROR))
        span.end(start + int(outcome.duration_s * 1e9))


def _labels(outcome: Outcome, tier: Tier) -> Attributes:
    operation, provider = _OPERATIONS[outcome.api]
    labels: Attributes = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": provider,
        "gen_ai.request.model": tier.model,
    }
    return labels | ({"gen_ai.response.model": outcome.model} if outcome.model is not None else {})


def _error(outcome: Outcome) -> str:
    """The status of a failure, or the ending if the status says nothing."""
    return str(outcome.status) if outcome.status >= 400 else str(outcome.ending)


def _tokens(usage: Usage | None) -> list[tuple[str, int]]:
    counts = {"input": usage.input, "output": usage.output} if usage is not None else {}
    return [(kind, count) for kind, count in counts.items() if count is not None]


def trace_context(parent: Mapping[str, str]) -> Context:
    """Return the context of the `traceparent` in `parent`."""
    return _propagator.extract(parent)
