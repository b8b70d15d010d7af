"""Set up the OpenTelemetry SDK: which exporters run is decided by the standard OTEL_* variables.

OTEL_EXPORTER_OTLP_ENDPOINT turns on OTLP for spans and metrics. `prometheus` in OTEL_METRICS_EXPORTER opens a port
that Prometheus scrapes. Without either, the API's no-op providers stay in place and cost next to nothing.

Over OTLP, a count or a time that was recorded within a sampled trace carries the trace as an exemplar
(OTEL_METRICS_EXEMPLAR_FILTER). The SDK's exporter for Prometheus writes no exemplars.
"""

import logging
import os
import uuid
from typing import TYPE_CHECKING

from opentelemetry import metrics, trace

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics.export import MetricReader
    from opentelemetry.sdk.resources import Resource

log = logging.getLogger(__name__)


def set_up_exporters() -> None:
    """Install the configured exporters. Call it once per process, before any `Telemetry` is made."""
    over_otlp = bool(os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT"))
    scraped = "prometheus" in os.environ.get("OTEL_METRICS_EXPORTER", "").split(",")
    if not (over_otlp or scraped):
        return
    from opentelemetry.sdk.metrics import MeterProvider

    resource = _resource()
    readers: list[MetricReader] = [_prometheus_reader()] if scraped else []
    if over_otlp:
        _export_spans(resource)
        readers.append(_otlp_reader())
    metrics.set_meter_provider(MeterProvider(resource=resource, metric_readers=readers))


def _resource() -> "Resource":
    """Name this process. Every process has its own instance id, so that a collector adds up their counters."""
    from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, SERVICE_NAME, Resource

    name = os.environ.get("OTEL_SERVICE_NAME", "semantic-router")
    return Resource.create({SERVICE_NAME: name, SERVICE_INSTANCE_ID: str(uuid.uuid4())})


def _export_spans(resource: "Resource") -> None:
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    tracers = TracerProvider(resource=resource)
    tracers.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(tracers)


def _otlp_reader() -> "MetricReader":
    from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader

    return PeriodicExportingMetricReader(OTLPMetricExporter())


def _prometheus_reader() -> "MetricReader":
    """Open the port that Prometheus scrapes: OpenTelemetry's own variables and defaults name it."""
    from opentelemetry.exporter.prometheus import PrometheusMetricReader
    from prometheus_client import start_http_server

    host = os.environ.get("OTEL_EXPORTER_PROMETHEUS_HOST", "localhost")
    port = int(os.environ.get("OTEL_EXPORTER_PROMETHEUS_PORT", "9464"))
    try:
        start_http_server(port, host)
    except OSError as error:  # perhaps another worker uses the port; traffic is more important than metrics
        log.error("cannot serve metrics to Prometheus on %s:%d: %s", host, port, error)
    return PrometheusMetricReader()
