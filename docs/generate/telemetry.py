"""The page about metrics and spans, from the definitions of the metrics."""

from docs.generate import words
from docs.generate.markdown import code, described, no_leftovers, page, table
from extproc.serving.metrics import METRICS, Metric


def prometheus_name(metric: Metric) -> str:
    """The name that OpenTelemetry's exporter for Prometheus gives a metric."""
    name = metric.name.replace(".", "_")
    unit = "" if metric.unit.startswith("{") else {"s": "_seconds"}.get(metric.unit, f"_{metric.unit}")
    return name + (unit if metric.unit else "") + ("_total" if metric.kind == "counter" else "")


def telemetry_page() -> str:
    """Tables of metrics and of span attributes."""
    rows = [
        (
            code(metric.name),
            metric.kind,
            metric.unit.strip("{}"),
            ", ".join(metric.labels),
            metric.description,
        )
        for metric in METRICS
    ]
    names = [(code(metric.name), code(prometheus_name(metric))) for metric in METRICS]
    labels = dict.fromkeys(label for metric in METRICS for label in metric.labels)
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
