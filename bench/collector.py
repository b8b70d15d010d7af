"""A small OTLP/gRPC collector that stores the spans and metrics sent to it."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as metrics
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as traces
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc


class _Traces(trace_service_pb2_grpc.TraceServiceServicer):
    def __init__(self, requests: list[Any]) -> None:
        self._requests = requests

    def Export(self, request: Any, context: Any) -> Any:
        self._requests.append(request)
        return traces.ExportTraceServiceResponse()


class _Metrics(metrics_service_pb2_grpc.MetricsServiceServicer):
    def __init__(self, requests: list[Any]) -> None:
        self._requests = requests

    def Export(self, request: Any, context: Any) -> Any:
        self._requests.append(request)
        return metrics.ExportMetricsServiceResponse()


class Collector:
    """Listens on a free loopback port while the `with` block runs."""

    def __enter__(self) -> "Collector":
        self.traces: list[Any] = []
        self.metrics: list[Any] = []
        self._server = grpc.server(ThreadPoolExecutor(4))
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(_Traces(self.traces), self._server)  # type: ignore[no-untyped-call]
        metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(_Metrics(self.metrics), self._server)  # type: ignore[no-untyped-call]
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(1).wait(5)

    def spans(self, service: str) -> list[Any]:
        """Every span of `service` that was received."""
        return [
            span
            for request in list(self.traces)
            for resource in request.resource_spans
            if attributes(resource.resource)["service.name"] == service
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    def points(self, name: str) -> list[Any]:
        """The points of the metric `name` in its last export."""
        exports = self._exports(name)
        return exports[-1] if exports else []

    def exported(self, name: str) -> list[Any]:
        """The points of the metric `name` in all exports. An exemplar is in only one of them."""
        return [point for points in self._exports(name) for point in points]

    def _exports(self, name: str) -> list[list[Any]]:
        return [
            list(getattr(metric, str(metric.WhichOneof("data"))).data_points)
            for request in list(self.metrics)
            for resource in request.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
        ]

    def everything(self) -> bytes:
        """Everything that was received, as bytes to search."""
        requests = [*self.traces, *self.metrics]
        return b"\n".join(request.SerializeToString() + str(request).encode() for request in requests)


def attributes(holder: Any) -> Mapping[str, Any]:
    """Attributes as plain values."""
    return {a.key: getattr(a.value, str(a.value.WhichOneof("value"))) for a in holder.attributes}
