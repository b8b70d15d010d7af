"""Makes OpenTelemetry's instruments from the definitions of metrics."""

from collections.abc import Callable, Mapping, Sequence

from opentelemetry.metrics import CallbackOptions, Counter, Histogram, Meter, Observation

from extproc.serving.metrics import Metric

# The value of a series, and its labels.
Sample = tuple[float, Mapping[str, str]]


def counter(meter: Meter, metric: Metric) -> Counter:
    """Make a counter."""
    return meter.create_counter(metric.name, unit=metric.unit, description=metric.description)


def histogram(meter: Meter, metric: Metric) -> Histogram:
    """Make a histogram with the buckets of the definition."""
    return meter.create_histogram(
        metric.name,
        unit=metric.unit,
        description=metric.description,
        explicit_bucket_boundaries_advisory=metric.buckets,
    )


def observe(meter: Meter, metric: Metric, samples: Callable[[], Sequence[Sample]]) -> None:
    """Make a gauge, or a counter, whose values are read at each export."""

    def callback(_options: CallbackOptions) -> list[Observation]:
        return [Observation(value, labels) for value, labels in samples()]

    create = meter.create_observable_gauge if metric.kind == "gauge" else meter.create_observable_counter
    create(metric.name, [callback], unit=metric.unit, description=metric.description)
