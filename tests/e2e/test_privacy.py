"""Spans, metrics and logs have the decision of a request, and never its text or a key."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes

from bench.collector import Collector, attributes
from extproc.api.request import parse_request
from extproc.demo.sample_upstream import SampleUpstreams
from extproc.demo.stack import Stack
from extproc.serving.genai import request_attributes
from tests.e2e.traffic import CHAT, EXTRACT, MESSAGES, MODELS, PROVE, ask, body_of, eventually, send

_MARK, _SECRET = "zanzibarquokka7391", "sk-hushhush-55aa"


@pytest.fixture(scope="module")
def traced(small_intents: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Stack, Collector]]:
    """A stack whose router and Envoy report to one collector."""
    with Collector() as collector, SampleUpstreams(MODELS) as upstreams:
        stack = Stack(small_intents, tmp_path_factory.mktemp("traced"), upstreams, deadline_ms=5000)
        try:
            stack.start_router({
                "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{collector.address}",
                "OTEL_METRIC_EXPORT_INTERVAL": "300",
                "OTEL_BSP_SCHEDULE_DELAY": "100",
            })  # fmt: skip
            stack.start_envoy(otlp=collector.address)

            def reports() -> bool:
                ask(stack.port, EXTRACT)
                return bool(collector.spans("semantic-router"))

            eventually(reports, "the router reports")
            yield stack, collector
        finally:
            stack.stop()


def _decided(collector: Collector, model: str) -> tuple[Any, dict[str, Any]]:
    """Return the router's span of the request for `model`."""

    def look() -> list[tuple[Any, Any]]:
        spans = [(span, attributes(span)) for span in collector.spans("semantic-router")]
        return [(span, told) for span, told in spans if told.get("gen_ai.request.model") == model]

    ((span, told),) = eventually(look, "the router's span")
    return span, dict(told)


def test_a_span_tells_the_decision(traced: tuple[Stack, Collector]) -> None:
    """Cohort, tier, reason, similarity, margin, reasoning, revision, stage times, and the GenAI conventions."""
    stack, collector = traced
    assert ask(stack.port, PROVE, model="gpt-4-span").status == 200
    span, told = _decided(collector, "gpt-4-span")
    ours = {
        name.removeprefix("semantic_router."): v for name, v in told.items() if name.startswith("semantic_router.")
    }
    assert {k: ours[k] for k in ("cohort", "tier", "cluster", "reason", "reasoning", "mode")} == {
        "cohort": "math_reasoning", "tier": "large", "cluster": "large", "reason": "matched", "reasoning": "on",
        "mode": "enforce",
    }  # fmt: skip
    assert 0 < ours["similarity"] <= 1 and 0 < ours["margin"] <= 1
    assert len(ours["revision"]) == 12
    assert {"read_ms", "embed_ms", "match_ms", "write_ms"} <= set(ours)
    genai = {name: value for name, value in told.items() if name.startswith("gen_ai.")}
    assert genai == {
        "gen_ai.operation.name": "chat", "gen_ai.provider.name": "openai", "gen_ai.request.model": "gpt-4-span",
    }  # fmt: skip
    assert (span.name, span.end_time_unix_nano > span.start_time_unix_nano) == ("semantic_router.decide", True)


def test_a_span_tells_what_was_asked_for_by_the_genai_conventions() -> None:
    """The names are from OpenTelemetry's list. A field that the request does not have adds no attribute."""
    asked = {"model": "auto", "max_tokens": 9, "stream": True, "messages": [{"role": "user", "content": "hi"}]}
    request = parse_request(MESSAGES, msgspec.json.encode(asked))
    assert request is not None
    told = request_attributes(request)
    assert told == {
        "gen_ai.operation.name": "chat", "gen_ai.provider.name": "anthropic", "gen_ai.request.model": "auto",
        "gen_ai.request.max_tokens": 9, "gen_ai.request.stream": True,
    }  # fmt: skip
    strict = parse_request(CHAT, msgspec.json.encode(asked | {"response_format": {"type": "json_object"}}))
    assert strict is not None and request_attributes(strict)["gen_ai.output.type"] == "json"
    assert {*told, "gen_ai.output.type"} <= {
        value for name, value in vars(gen_ai_attributes).items() if name.isupper()
    }


def test_the_routers_span_is_a_child_of_envoys(traced: tuple[Stack, Collector]) -> None:
    """There is one trace from the listener to the decision. Envoy's own span has cohort, tier and reason."""
    stack, collector = traced
    assert ask(stack.port, PROVE, model="gpt-4-child").status == 200
    span, _ = _decided(collector, "gpt-4-child")
    envoys = eventually(
        lambda: (
            {s.span_id: s for s in collector.spans("envoy") if s.trace_id == span.trace_id}
            if any(s.span_id == span.parent_span_id for s in collector.spans("envoy"))
            else {}
        ),
        "Envoy's spans of the same trace",
    )
    call = envoys[span.parent_span_id]
    assert "ExternalProcessor" in call.name
    ingress = eventually(
        lambda: next((s for s in collector.spans("envoy") if s.span_id == call.parent_span_id), None),
        "Envoy's ingress span",
    )
    told = attributes(ingress)
    assert {k: told[f"semantic_router.{k}"] for k in ("cohort", "tier", "reason")} == {
        "cohort": "math_reasoning", "tier": "large", "reason": "matched",
    }  # fmt: skip


def test_a_trace_that_the_client_began_is_kept(traced: tuple[Stack, Collector]) -> None:
    """The router's span belongs to the trace of the client's traceparent."""
    stack, collector = traced
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    body = msgspec.json.encode(body_of(CHAT, PROVE, "gpt-4-outside"))
    send(stack.port, CHAT, body, {"traceparent": f"00-{trace}-00f067aa0ba902b7-01"})
    span, _ = _decided(collector, "gpt-4-outside")
    assert span.trace_id.hex() == trace


def test_metrics_count_decisions_and_time_stages(traced: tuple[Stack, Collector]) -> None:
    """Decisions by cohort, tier and reason, a histogram of each stage, and the active revision."""
    stack, collector = traced
    labels = {"cohort": "extraction", "tier": "small", "reason": "matched"}

    def counted() -> int:
        points = collector.points("semantic_router.decisions")
        return sum(point.as_int for point in points if labels.items() <= attributes(point).items())

    before = counted()
    for _ in range(3):
        ask(stack.port, EXTRACT)
    eventually(lambda: counted() >= before + 3, "the decisions are counted")
    stages = eventually(lambda: collector.points("semantic_router.stage.duration"), "stages are timed")
    assert {"read", "embed", "match", "write"} <= {attributes(point)["stage"] for point in stages}
    revisions = {attributes(point)["revision"] for point in collector.points("semantic_router.revision")}
    assert {len(revision) for revision in revisions} == {12}


def test_an_error_of_a_tier_is_counted_with_its_status(traced: tuple[Stack, Collector]) -> None:
    """Envoy notes it for each attempt, and the access log brings it."""
    stack, collector = traced
    assert ask(stack.port, PROVE, model="nobody's").status == 404
    errors = eventually(lambda: collector.points("semantic_router.tier.errors"), "the error is counted")
    assert {"tier": "large", "status": "404"} in [attributes(point) for point in errors]


@pytest.mark.parametrize(("metric", "label"), [("decisions", "cohort"), ("stage.duration", "stage")])
def test_metrics_name_a_trace_to_look_at(traced: tuple[Stack, Collector], metric: str, label: str) -> None:
    """A count or a time has exemplars, which are spans of its decisions, in the trace of their request."""
    stack, collector = traced

    def named() -> set[tuple[bytes, bytes]]:
        ask(stack.port, PROVE)
        points = [p for p in collector.exported(f"semantic_router.{metric}") if label in attributes(p)]
        exemplars = {(exemplar.trace_id, exemplar.span_id) for point in points for exemplar in point.exemplars}
        spans = [span for span in collector.spans("semantic-router") if span.name == "semantic_router.decide"]
        return exemplars & {(span.trace_id, span.span_id) for span in spans}

    assert eventually(named, f"an exemplar of {metric}")


def test_a_router_that_stood_still_says_so(traced: tuple[Stack, Collector]) -> None:
    """The lag of the event loop is a metric. Above a limit it is also a line in the log."""
    stack, collector = traced
    assert stack.router is not None
    os.kill(stack.router.pid, signal.SIGSTOP)
    try:
        time.sleep(0.6)  # the fault itself
    finally:
        os.kill(stack.router.pid, signal.SIGCONT)
    eventually(
        lambda: any(point.max > 0.3 for point in collector.points("semantic_router.loop.lag")),
        "the lag is a metric",
    )
    assert "the event loop was blocked for" in stack.log("router.log")


def _marked(path: str) -> bytes:
    tool = {"role": "tool", "tool_call_id": "t1", "content": f"tool said {_MARK}"}
    call = {"id": "t1", "type": "function", "function": {"name": "f", "arguments": f'{{"a":"{_MARK}"}}'}}
    body = {
        "model": "auto",
        "max_tokens": 100,
        "user": _MARK,
        "metadata": {"note": _MARK},
        "messages": [
            {"role": "system", "content": f"You are {_MARK}."},
            {"role": "user", "content": f"Prove {_MARK} theorem."},
            {"role": "assistant", "content": f"I will ask {_MARK}.", "tool_calls": [call]},
            tool,
            {"role": "user", "content": [{"type": "text", "text": f"Prove that {_MARK} is even."}]},
        ],
    }
    if path == MESSAGES:
        body["messages"] = [{"role": "user", "content": f"Prove that {_MARK} is even."}]
        body["system"] = f"You are {_MARK}."
    return msgspec.json.encode(body)


def test_no_word_and_no_key_leaves_the_request(traced: tuple[Stack, Collector]) -> None:
    """No span, metric or log has the marked prompt or the marked key, even if something fails."""
    stack, collector = traced
    headers = {"authorization": f"Bearer {_SECRET}", "x-api-key": _SECRET, "cookie": f"s={_SECRET}"}
    unroutable = (
        f'{{"model":"auto","messages":[{{"role":"user","content":"{_MARK}'.encode(),
        f'{{"model":"auto","{_MARK}":1,"{_MARK}":2,"messages":[{{"role":"user","content":"{_MARK}"}}]}}'.encode(),
        f'{{"model":"auto","messages":"{_MARK}"}}'.encode(),
        f'{{"model":"auto","messages":[{{"role":"{_MARK}","content":[{{"type":"{_MARK}","text":7}}]}}]}}'.encode(),
        _MARK.encode(),
    )
    for path in (CHAT, MESSAGES):
        assert send(stack.port, path, _marked(path), headers).status == 200
        assert _MARK.encode() in stack.upstreams.received[-1].body
        for body in unroutable:
            assert send(stack.port, path, body, headers).status < 500
    # A later request that is in every place shows that the earlier ones were written there.
    ask(stack.port, PROVE, model="gpt-4-after")
    _decided(collector, "gpt-4-after")
    after = len(collector.metrics)
    eventually(lambda: len(collector.metrics) > after + 1, "metrics are exported")
    lines = len(stack.upstreams.received)
    eventually(lambda: stack.log("envoy.log").count('"path":"/v1/') >= lines, "the access log is written", 30)

    everything = collector.everything()
    assert b"gpt-4-after" in everything  # the search works
    for name in ("router.log", "envoy.log", "envoy.err"):
        everything += stack.log(name).encode()
    assert _MARK.encode() not in everything
    assert _SECRET.encode() not in everything


def test_telemetry_is_flushed_when_the_router_ends(traced: tuple[Stack, Collector]) -> None:
    """The last spans before a SIGTERM arrive, too."""
    stack, collector = traced
    assert stack.router is not None
    ask(stack.port, PROVE, model="gpt-4-last")
    stack.router.terminate()
    assert stack.router.wait(30) == 0
    span, _ = _decided(collector, "gpt-4-last")
    assert span.name == "semantic_router.decide"
