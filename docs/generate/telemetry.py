"""The page about metrics and spans, from the instruments that the server creates."""

from typing import Any
from unittest import mock

import msgspec

from docs.generate import words
from docs.generate.markdown import code, described, no_leftovers, page, table


class Metric(msgspec.Struct, frozen=True):
    """One metric as it is created."""

    name: str
    kind: str
    unit: str
    description: str

    @property
    def prometheus_name(self) -> str:
        """The name that OpenTelemetry's exporter for Prometheus gives it."""
        name = self.name.replace(".", "_")
        unit = "" if self.unit.startswith("{") else {"s": "_seconds"}.get(self.unit, f"_{self.unit}")
        return name + (unit if self.unit else "") + ("_total" if self.kind == "counter" else "")


class _Meter:
    """Notes what is created, and measures nothing."""

    def __init__(self) -> None:
        self.metrics: list[Metric] = []

    def __getattr__(self, name: str) -> Any:
        def create(metric: str, *_: object, unit: str = "", description: str = "", **__: object) -> mock.Mock:
            self.metrics.append(Metric(metric, name.removeprefix("create_").replace("_", " "), unit, description))
            return mock.Mock()

        return create


def metrics() -> list[Metric]:
    """Every metric of the server, in the order of creation."""
    from extproc.serving.telemetry import Telemetry

    meter = _Meter()
    with mock.patch("opentelemetry.metrics.get_meter", return_value=meter):
        Telemetry("revision")
    return meter.metrics


def telemetry_page() -> str:
    """Tables of metrics and of span attributes."""
    found = metrics()
    no_leftovers(words.METRIC_LABELS, (metric.name for metric in found), "metric")
    rows = [
        (
            code(metric.name),
            metric.kind,
            metric.unit.strip("{}"),
            ", ".join(described(words.METRIC_LABELS, metric.name, "metric")),
            metric.description,
        )
        for metric in found
    ]
    names = [(code(metric.name), code(metric.prometheus_name)) for metric in found]
    labels = dict.fromkeys(label for metric in found for label in words.METRIC_LABELS[metric.name])
    no_leftovers(words.LABELS, labels, "label")
    meanings = [(code(label), described(words.LABELS, label, "label")) for label in labels]
    return page(
        "Metrics and spans",
        words.TELEMETRY,
        "## Metrics",
        table(("Metric", "Kind", "Unit", "Labels", "Meaning"), rows),
        "## Labels",
        table(("Label", "Meaning"), meanings),
        "## Names in Prometheus",
        table(("Metric", "Name that Prometheus scrapes"), names),
        words.SPANS,
    )
