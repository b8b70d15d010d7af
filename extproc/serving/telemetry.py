"""Records spans and metrics through the OpenTelemetry API. No prompt text and no key gets into them.

`exporters` decides where they go, and `metrics` defines every metric.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from opentelemetry import metrics, trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Status, StatusCode

from extproc.acceptance.checks import OK, UNAVAILABLE
from extproc.acceptance.rules import Complete, rule_name
from extproc.accounting.feedback import AnsweredRequest, Feedback
from extproc.accounting.outcome import Cost, LateVerdict, Outcome
from extproc.api.observation import Usage
from extproc.api.request import Request
from extproc.contract.names import PREFIX, TRACEPARENT, Key
from extproc.contract.records import DecisionRecord
from extproc.contract.words import Bound, VerdictWord
from extproc.encoder.batcher import EncoderLoad
from extproc.routing.cache_store import Checks
from extproc.serving import metrics as definitions
from extproc.serving.drift import DriftWatch
from extproc.serving.genai import GenAi, request_attributes, trace_context, usage_attributes
from extproc.serving.instruments import counter, histogram, observe
from extproc.settings import Tier

# The outcome of a reload: applied, or why it was refused.
_RELOADS = ("applied", "invalid", "regression", "unseen", "unclear", "gate", "error")

_NO_CONTEXT = Context()


class Telemetry:
    """The spans and metrics of one server process."""

    def __init__(self, revision: str) -> None:
        self.revision = revision
        # Cohort -> largest share of its judged answers that may escalate. A dashboard compares escalations with it.
        self.shares: Callable[[], Mapping[str, float]] = dict
        self.refused: Callable[[], bool] = bool  # whether the files on disk may not serve
        self.candidates: Callable[[], Mapping[str, float]] = dict  # revision -> share of the conversations
        self.candidate_refused: Callable[[], bool] = bool  # whether the files of the candidate have mistakes
        self.encoder: Callable[[], EncoderLoad] = EncoderLoad
        self.caches: Callable[[], Mapping[str, Checks]] = dict  # by cohort
        self.tiers: Callable[[], Mapping[str, Tier]] = dict  # by name
        self.golden: tuple[int, int] | None = None  # flips and rows; None: nothing was replayed yet
        self.budgets: Callable[[], Mapping[str, float]] = dict  # name -> spent share
        self.apps: Callable[[], Mapping[str, Mapping[str, str]]] = dict  # name -> labels
        self.refused_apps: Callable[[], Mapping[str, bool]] = dict  # name -> whether its files have mistakes
        self.state_away: Callable[[], bool] = bool  # whether the store of `state` cannot be reached
        self.open_exchanges = 0
        # Without an exporter of spans, nothing reads them, and the parent of a span is not read either.
        self._traced = not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)
        self._tracer = trace.get_tracer("extproc")
        meter = metrics.get_meter("extproc")
        self._decisions = counter(meter, definitions.DECISIONS)
        self._stages = histogram(meter, definitions.STAGE_DURATION)
        self._verdicts = counter(meter, definitions.VERDICTS)
        self._unavailable = counter(meter, definitions.RULES_UNAVAILABLE)
        self._failures = counter(meter, definitions.FAILURES)
        self._lag = histogram(meter, definitions.LOOP_LAG)
        self._reloads = counter(meter, definitions.RELOADS)
        self._outcomes = counter(meter, definitions.OUTCOMES)
        self._rejections = counter(meter, definitions.REJECTIONS)
        self._tokens = counter(meter, definitions.TOKENS)
        self._cost = counter(meter, definitions.COST)
        self._default_cost = counter(meter, definitions.DEFAULT_COST)
        self._unknown = counter(meter, definitions.USAGE_UNKNOWN)
        self._first_byte = histogram(meter, definitions.FIRST_BYTE)
        self._lost = counter(meter, definitions.LEDGER_LOST)
        self._explorations = counter(meter, definitions.EXPLORATIONS)
        self._feedback = counter(meter, definitions.FEEDBACK)
        self._signals = counter(meter, definitions.SIGNALS)
        self._state_failures = counter(meter, definitions.STATE_FAILURES)
        self._cache_looks = counter(meter, definitions.CACHE_LOOKS)
        self._cache_saved = counter(meter, definitions.CACHE_SAVED)
        self._cache_checks = counter(meter, definitions.CACHE_CHECKS)
        observe(
            meter, definitions.CACHE_OFF, lambda: [(int(c.off), {"cohort": k}) for k, c in self.caches().items()]
        )
        observe(meter, definitions.CACHE_BOUND, lambda: [(c.most, {"cohort": k}) for k, c in self.caches().items()])
        self.drift = drift = DriftWatch()
        observe(meter, definitions.MATCHES, drift.matches)
        observe(meter, definitions.NEARNESS, drift.nearness)
        observe(meter, definitions.NEARNESS_LIMIT, drift.limits)
        observe(meter, definitions.LABELS, drift.labels)
        observe(meter, definitions.LABELS_EXPECTED, drift.expected)
        self._keys_refused = counter(meter, definitions.KEYS_REFUSED)
        self._tier_errors = counter(meter, definitions.TIER_ERRORS)
        self._genai = GenAi(meter, self._tracer)
        observe(meter, definitions.REVISION, lambda: [(1, {"revision": self.revision})])
        observe(meter, definitions.ESCALATION_SHARE, lambda: [(v, {"cohort": k}) for k, v in self.shares().items()])
        observe(
            meter, definitions.CANDIDATE_SHARE, lambda: [(v, {"revision": k}) for k, v in self.candidates().items()]
        )
        observe(meter, definitions.CANDIDATE_REFUSED, lambda: [(int(self.candidate_refused()), {})])
        observe(meter, definitions.GOLDEN_FLIPPED, lambda: [(self.golden[0], {})] if self.golden else [])
        observe(meter, definitions.GOLDEN_ROWS, lambda: [(self.golden[1], {})] if self.golden else [])
        observe(meter, definitions.REFUSED, lambda: [(int(self.refused()), {})])
        observe(meter, definitions.OPEN_EXCHANGES, lambda: [(self.open_exchanges, {})])
        observe(meter, definitions.ENCODER_QUEUE, lambda: [(self.encoder().queue, {})])
        observe(meter, definitions.ENCODER_BUSY, lambda: [(self.encoder().busy_s, {})])
        observe(meter, definitions.ENCODER_LOOKUPS, lambda: list(_lookups(self.encoder())))
        observe(meter, definitions.STATE_AWAY, lambda: [(int(self.state_away()), {})])
        observe(
            meter, definitions.BUDGET_SPENT, lambda: [(v, {Key.BUDGET.value: k}) for k, v in self.budgets().items()]
        )
        observe(
            meter,
            definitions.APP_REFUSED,
            lambda: [(int(v), {Key.APP.value: k}) for k, v in self.refused_apps().items()],
        )
        observe(meter, definitions.APP, lambda: [(1, {**v, Key.APP.value: k}) for k, v in self.apps().items()])
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
        labels = {
            Key.COHORT.value: record.counted_as or "", Key.TIER.value: record.tier, Key.REASON.value: record.reason,
        } | _app_label(record.app)  # fmt: skip
        self._decisions.add(1, labels, context)
        if record.cache is not None:
            self._cache_looks.add(1, {"cohort": record.counted_as or "", "result": record.cache}, context)
        for stage, seconds in stages.items():
            self._stages.record(seconds, {"stage": stage}, context)
        if span.is_recording():
            span.set_attributes({f"{PREFIX}.{k}": v for k, v in record.to_metadata().items()})
            span.set_attributes({f"{PREFIX}.{s}_ms": round(t * 1e3, 3) for s, t in stages.items()})
            if request is not None:
                span.set_attributes(request_attributes(request))
        span.end(end)

    def _begin(self, name: str, parent: Mapping[str, str], start_ns: int | None = None) -> tuple[Span, Context]:
        """Start a span. A count that is recorded in the returned context may carry the span as an exemplar."""
        if not self._traced:
            return trace.INVALID_SPAN, _NO_CONTEXT
        context = trace_context(parent)
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
        usage: Usage | None = None,
    ) -> None:
        """Report one verdict on an answer with this `usage`. `unavailable` names the rules that could not run."""
        labels = {Key.COHORT.value: cohort, Key.VERDICT.value: word.value, Key.REASON.value: reason}
        if bound is not None:
            labels[Key.BOUND.value] = bound.value
        span, context = self._begin("judge", parent)
        self._verdicts.add(1, labels, context)
        for rule in unavailable:
            self._unavailable.add(1, {"cohort": cohort, "rule": rule}, context)
        span.set_attributes({f"{PREFIX}.{k}": v for k, v in labels.items()} | {f"{PREFIX}.attempt": attempt})
        span.set_attributes(usage_attributes(usage))
        span.end()

    def failed(self, parent: Mapping[str, str], error: Exception) -> None:
        """Report an exchange that an unexpected error ended."""
        span, context = self._begin("decide", parent)
        self._failures.add(1, {"error.type": type(error).__name__}, context)
        span.set_attribute("error.type", type(error).__name__)
        span.set_status(Status(StatusCode.ERROR))
        span.end()

    def reloaded(self, outcome: str, revision: str) -> None:
        """Report a reload: "applied", "unchanged", or why it was refused. `revision` is in force after it."""
        if outcome != "unchanged":
            self._reloads.add(1, _reload_labels(outcome))
        self.revision = revision

    def ended(self, outcome: Outcome, cost: Cost) -> None:
        """Report the outcome of an exchange. May be called from any thread."""
        place = {"cohort": outcome.cohort or outcome.reason, "tier": outcome.tier or ""}
        app = _app_label(outcome.app)
        self._outcomes.add(1, place | app | {"reason": outcome.reason, "outcome": outcome.ending})
        self._paid(place | app | {"answer": "last"}, outcome.usage, cost.last)
        if outcome.usage_due and outcome.usage is None:
            self._unknown.add(1, place | {"answer": "last"})
        if cost.saved is not None:
            self._cache_saved.add(cost.saved, place)
        if cost.default is not None:
            self._default_cost.add(cost.default, place | app)
        if outcome.first_byte_s is not None and outcome.served and not outcome.is_hit:
            self._first_byte.record(outcome.first_byte_s, place)
        if outcome.late is not None:
            self._completed(outcome.late, outcome)
        for error in outcome.errors:
            self._tier_errors.add(1, {"tier": error.tier, "status": str(error.status or "no_answer")})
        if not outcome.is_hit:  # no model was called
            self._genai.ended(outcome, self.tiers())
        if outcome.key_refused is not None:
            self._keys_refused.add(1, {"tier": outcome.key_refused})
        for rejection, price in zip(outcome.rejections, cost.rejected, strict=True):
            rejected = {"cohort": place["cohort"], "tier": rejection.tier or ""}
            self._rejections.add(1, rejected | {"reason": rejection.reason})
            self._paid(rejected | app | {"answer": "rejected"}, rejection.usage, price)
            if rejection.usage is None:
                self._unknown.add(1, rejected | {"answer": "rejected"})

    def _completed(self, late: LateVerdict, outcome: Outcome) -> None:
        parent = {TRACEPARENT: outcome.traceparent} if outcome.traceparent is not None else {}
        unavailable = (rule_name(Complete()),) if late.reason == UNAVAILABLE else ()
        reason = late.reason or OK
        self.ruled(parent, late.cohort, late.attempt, late.verdict, reason, None, unavailable, outcome.usage)

    def _paid(self, labels: dict[str, str], usage: Usage | None, price: float | None) -> None:
        if usage is not None:
            for kind, count in (("input", usage.input), ("output", usage.output), ("cached", usage.cached)):
                if count is not None:
                    self._tokens.add(count, labels | {"type": kind})
        if price is not None:
            self._cost.add(price, labels)

    def know_keys(self, tiers: Iterable[Tier]) -> None:
        """Export zeros for the tiers that have a key, so that an alert also sees the first refusal."""
        for tier in tiers:
            if tier.key is not None:
                self._keys_refused.add(0, {"tier": tier.name})

    def lost(self, count: int) -> None:
        """Report outcomes that the ledger could not store."""
        self._lost.add(count)

    def explored(self, cohort: str, tier: str, outcome: str) -> None:
        """Report a second request: "accepted", "rejected", "unjudged" or "failed"."""
        self._explorations.add(1, {"cohort": cohort, "tier": tier, "outcome": outcome})

    def rated(self, answer: AnsweredRequest | None, feedback: Feedback) -> None:
        """Report feedback about an answer. None: the answer is not in the ledger yet."""
        score = feedback.score
        rating = "none" if score is None else "up" if score >= 0.5 else "down"
        cohort, tier = (answer.cohort, answer.tier) if answer is not None else (None, None)
        self._feedback.add(1, {"cohort": cohort or "", "tier": tier or "", "rating": rating})
        if answer is not None and feedback.label is not None:
            self.drift.labelled(answer, feedback.label)

    def signalled(self, cohort: str, tier: str, signal: str) -> None:
        """Report that the client asked again after an answer."""
        self._signals.add(1, {"cohort": cohort, "tier": tier, "signal": signal})

    def state_failed(self) -> None:
        """Report a call to the store of `state` that failed."""
        self._state_failures.add(1)

    def replayed(self, flips: int, rows: int) -> None:
        """Report the rows of --golden whose decisions flipped, and all of them."""
        self.golden = flips, rows

    def cache_checked(self, cohort: str, result: str) -> None:
        """Report a check of a hit: "right", "wrong" or "unknown"."""
        self._cache_checks.add(1, {"cohort": cohort, "result": result})

    def lagged(self, seconds: float) -> None:
        """Report how late the event loop woke up."""
        self._lag.record(seconds)


def _lookups(load: EncoderLoad) -> Iterator[tuple[float, dict[str, str]]]:
    for result, count in (("cached", load.cached), ("encoded", load.encoded), ("late", load.late)):
        yield count, {"result": result}


def _app_label(app: str | None) -> dict[str, str]:
    """The label of the app. The requests of no app have none."""
    return {Key.APP.value: app} if app is not None else {}


def _reload_labels(outcome: str) -> dict[str, str]:
    return {"outcome": "applied"} if outcome == "applied" else {"outcome": "refused", "reason": outcome}
