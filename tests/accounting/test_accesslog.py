"""Envoy's access log as outcomes: the tier that served, the ending, and the source of the token counts."""

from typing import Any

import msgspec
import pytest
from google.protobuf.json_format import ParseDict

from extproc.accounting.accesslog import read_outcomes
from extproc.accounting.outcome import Ending, LateVerdict, Outcome, Rejection, TierError, Unjudged
from extproc.api.observation import Usage
from extproc.contract.names import Namespace
from extproc.contract.words import VerdictWord
from extproc.pb import access_log_pb2 as pb
from extproc.pb import token_usage_pb2 as ai

DECISION = {"cohort": "faq", "tier": "small", "reason": "matched", "revision": "r1", "mode": "enforce"}
COMMON = {
    "startTime": "2026-01-02T03:04:05.500Z",
    "routeName": "chat",
    "duration": "1.5s",
    "timeToFirstDownstreamTxByte": "0.25s",
    "customTags": {"tier": "small"},
    "upstreamRequestAttemptCount": 1,
}
PLAIN = Outcome(
    time=1767323045.5, api="chat", ending=Ending.ACCEPTED, status=200, attempts=1, reason="matched", cohort="faq",
    tier="small", revision="r1", mode="enforce", duration_s=1.5, first_byte_s=0.25, unjudged=Unjudged.NO_RULE,
    decision='{"cohort":"faq","mode":"enforce","reason":"matched","revision":"r1","tier":"small"}',
)  # fmt: skip


def batch(
    ledger: dict[str, Any] | None = None,
    usage: ai.TokenUsage | None = None,
    status: int = 200,
    decision: dict[str, Any] | None = DECISION,
    **common: Any,
) -> bytes:
    message = pb.StreamAccessLogsMessage()
    entry = message.http_logs.log_entry.add()
    ParseDict(COMMON | common, entry.common_properties)
    metadata = entry.common_properties.metadata
    for namespace, value in ((Namespace.DECISION, decision), (Namespace.LEDGER, ledger)):
        if value is not None:
            metadata.filter_metadata[namespace].update(value)
    if usage is not None:
        metadata.typed_filter_metadata[Namespace.USAGE].Pack(usage)
    if status:
        entry.response.response_code.value = status
    return message.SerializeToString()


def read(*arguments: Any, **more: Any) -> Outcome:
    (outcome,) = read_outcomes(batch(*arguments, **more))
    return outcome


def envoys(
    input: int | None, output: int | None, cached: int | None = None, status: str = "COMPLETE"
) -> ai.TokenUsage:
    usage = ai.TokenUsage(extraction_status=status)  # type: ignore[arg-type]
    for field, count in (("input_tokens", input), ("output_tokens", output)):
        if count is not None:
            getattr(usage, field).value = count
    if cached is not None:
        usage.input_token_details.cached_tokens.value = cached
    return usage


def test_a_plain_exchange() -> None:
    """The outcome has all values of the decision and of Envoy, and no usage if none was reported."""
    assert read() == PLAIN


def test_the_principal_and_the_conversation_are_hashes() -> None:
    outcome = read({"principal": "p", "session": "s"})
    assert (outcome.principal, outcome.session) == ("p", "s")


def test_the_course_of_the_conversation_and_a_refused_key_are_kept() -> None:
    outcome = read({"key_refused": "large"}, decision=DECISION | {"conversation": "kept_cache"})
    assert (outcome.conversation, outcome.key_refused) == ("kept_cache", "large")


@pytest.mark.parametrize(
    ("decision", "cohort", "unjudged"),
    [
        ({}, "faq", "no_rule"),
        ({"judge": {"small": "body"}}, "faq", "lost"),
        ({"judge": {"tiny": "body"}}, "faq", "last_rung"),
        ({"counted_as": "faq", "reason": "capability"}, "faq", "no_rule"),
        ({"counted_as": "out_of_scope", "reason": "out_of_scope"}, "out_of_scope", "no_cohort"),
        ({"counted_as": "out_of_scope", "reason": "capability"}, "out_of_scope", "no_cohort"),
        ({"cohort": None, "counted_as": "pinned", "reason": "pinned"}, "pinned", "no_cohort"),
        ({"cohort": None, "reason": "passthrough"}, "passthrough", "no_cohort"),  # of an older router
    ],
)
def test_the_cohort_and_why_no_rule_looked_at_the_answer(
    decision: dict[str, Any], cohort: str, unjudged: str
) -> None:
    outcome = read(decision=DECISION | decision)
    assert (outcome.cohort, outcome.unjudged) == (cohort, unjudged)


@pytest.mark.parametrize(
    ("ledger", "late"),
    [
        ({"1": {"verdict": "recorded", "reason": "cut"}}, None),
        ({"open": "1 small"}, None),
        ({"open": "2 small", "1": {"verdict": "recorded"}}, None),
        ({"open": "1 small", "1": {"verdict": "nonsense"}}, None),
        ({"open": "1 small", "1": {"verdict": "accept"}}, LateVerdict("faq", 1, VerdictWord.ACCEPT)),
        ({"open": "1", "1": {"verdict": "recorded", "reason": "cut"}},
         LateVerdict("faq", 1, VerdictWord.RECORDED, "cut")),
    ],
    ids=["the verifier's", "the stream broke", "another attempt", "no verdict", "a good end", "a cut end"],
)  # fmt: skip
def test_a_verdict_that_envoy_completed_is_told_apart(ledger: dict[str, Any], late: LateVerdict | None) -> None:
    assert read(ledger).late == late


def test_a_stream_that_broke_before_its_end_is_not_judged() -> None:
    """As if the verifier had read it until then."""
    outcome = read({"open": "1 small"}, responseFlags={"upstreamRemoteReset": True})
    assert (outcome.ending, outcome.judged, outcome.unjudged) == (Ending.FAILED, False, None)


def test_the_model_the_stream_and_the_trace_are_kept() -> None:
    usage = envoys(3, 2)
    usage.model = "qwen3-8b"
    tags = {"tier": "small", "traceparent": "00-a-b-01"}
    outcome = read(usage=usage, decision=DECISION | {"stream": True}, customTags=tags)
    assert (outcome.model, outcome.stream, outcome.traceparent) == ("qwen3-8b", True, "00-a-b-01")


def test_errors_of_attempts_have_their_tier_and_status() -> None:
    """Envoy notes the status of each error. The first and the last attempt's tier is known without an answer."""
    noted = {"failed1": "small 401", "failed2": "medium 529", "failed": "x 500", "failed3": "no status"}
    outcome = read(noted, status=529, upstreamRequestAttemptCount=2)
    assert outcome.errors == (TierError("small", 401), TierError("medium", 529))
    outcome = read({}, status=503, upstreamRequestAttemptCount=3, customTags={"tier": "large"})
    assert outcome.errors == (TierError("small", 0), TierError("large", 0))
    assert read({"1": {"verdict": "escalate"}}, upstreamRequestAttemptCount=2).errors == ()


def test_without_a_decision_a_cluster_without_hosts_refused_it() -> None:
    """Envoy refused the request, because `only` excludes the default tier."""
    outcome = read(status=503, decision=None, responseFlags={"noHealthyUpstream": True}, customTags={})
    assert (outcome.reason, outcome.ending, outcome.tier) == ("residency", Ending.FAILED, None)


def test_without_a_decision_it_failed_open() -> None:
    """Envoy continued without the router, and the default tier served."""
    outcome = read(decision=None, customTags={"tier": "large"})
    assert (outcome.reason, outcome.cohort, outcome.tier) == ("fail_open", "fail_open", "large")


def test_attempts_that_reached_no_tier_are_not_counted() -> None:
    """Envoy counts them, and judged attempts have its numbers."""
    message = pb.StreamAccessLogsMessage.FromString(
        batch({"3": {"verdict": "accept", "tier": "small"}}, upstreamRequestAttemptCount=3)
    )
    metadata = message.http_logs.log_entry[0].common_properties.metadata
    metadata.filter_metadata[Namespace.ATTEMPT].update({"attempts": 3, "detours": 1, "made": 2})
    (outcome,) = read_outcomes(message.SerializeToString())
    assert (outcome.attempts, outcome.failed_attempts, outcome.judged) == (2, 1, True)


def test_a_request_without_an_attempt_did_not_fail_open() -> None:
    """Its body was too large, or the client left before the end of the body. There is no decision."""
    outcome = read(decision=None, status=413, upstreamRequestAttemptCount=0, customTags={})
    assert (outcome.reason, outcome.ending, outcome.attempts, outcome.tier) == ("none", "failed", 0, None)


@pytest.mark.parametrize("route", ["rest", "", "elsewhere"])
def test_exchanges_with_other_apis_are_left_out(route: str) -> None:
    assert list(read_outcomes(batch(routeName=route))) == []


def test_token_counts_of_envoy_come_first() -> None:
    """The counts of the verifier are used if Envoy has none, or not all of them."""
    judged = {"1": {"verdict": "accept", "tier": "small", "input": 7.0, "output": 3.0, "cached": 2.0}}
    outcome = read(judged, envoys(9, 4, 1))
    assert (outcome.usage, outcome.usage_from, outcome.judged) == (Usage(9, 4, 1), "envoy", True)
    for usage in (None, envoys(9, 4, status="PARTIAL"), envoys(9, None), envoys(None, None, status="FAILED")):
        outcome = read(judged, usage)
        assert (outcome.usage, outcome.usage_from) == (Usage(7, 3, 2), "verifier")
    assert read({"1": {"verdict": "accept"}}).usage is None


def test_rejected_answers_have_their_tokens() -> None:
    """Each also has its tier and reason. The last attempt is not a rejection."""
    outcome = read(
        {
            "1": {"verdict": "escalate", "tier": "small", "reason": "refusal", "input": 7.0, "output": 3.0},
            "3": {"verdict": "escalate", "tier": "large", "reason": "cut"},
        },
        envoys(9, 4),
        upstreamRequestAttemptCount=4,
        customTags={"tier": "frontier"},
    )
    assert outcome.rejections == (Rejection(1, "small", "refusal", Usage(7, 3)), Rejection(3, "large", "cut"))
    assert (outcome.ending, outcome.tier, outcome.usage, outcome.failed_attempts) == (
        "accepted",
        "frontier",
        Usage(9, 4),
        1,
    )


@pytest.mark.parametrize("verdict", ["degraded", "recorded", "escalate"])
def test_a_rejected_answer_that_was_served_is_degraded(verdict: str) -> None:
    """A bound was reached, the client already had a part of it, or Envoy refused the escalation."""
    outcome = read({"1": {"verdict": verdict, "tier": "small", "reason": "empty"}})
    assert (outcome.ending, outcome.judged, outcome.rejections) == ("degraded", True, ())


def test_a_case_for_a_person_has_its_own_ending() -> None:
    outcome = read({"1": {"verdict": "human", "input": 7.0, "output": 3.0}}, status=422)
    assert (outcome.ending, outcome.usage) == ("human", Usage(7, 3))


@pytest.mark.parametrize(
    ("status", "flag", "ending"),
    [
        (0, None, "cancelled"),
        (200, "downstreamConnectionTermination", "cancelled"),
        (200, "downstreamRemoteReset", "cancelled"),
        (503, None, "failed"),
        (413, None, "failed"),
        (201, None, "accepted"),
        (206, None, "accepted"),
        (204, None, "failed"),
        (205, None, "failed"),
        (299, "upstreamConnectionTermination", "failed"),
        (200, "upstreamConnectionTermination", "failed"),
        (200, "streamIdleTimeout", "failed"),
    ],
)
def test_the_status_and_the_flags_give_the_ending(status: int, flag: str | None, ending: str) -> None:
    """The client left, there was an error or no answer, or the answer was cut after its start."""
    flags = {} if flag is None else {"responseFlags": {flag: True}}
    assert read({"1": {"verdict": "accept"}}, status=status, **flags).ending == ending


def test_a_batch_that_cannot_be_read_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a StreamAccessLogsMessage from Envoy"):
        read_outcomes(b"\xff\xff")


def test_ids_that_are_not_utf_8_cost_no_outcome() -> None:
    """A batch has the exchanges of many clients, and each of them chooses its id and its trace."""
    message = pb.StreamAccessLogsMessage.FromString(batch())
    entry = message.http_logs.log_entry[0]
    message.http_logs.log_entry.add().CopyFrom(entry)
    entry.request.request_id = "5-#"
    entry.common_properties.custom_tags["traceparent"] = "00-#"
    first, second = read_outcomes(message.SerializeToString().replace(b"-#", b"-\xff"))
    assert (first.request, first.traceparent) == (None, "00-\ufffd")
    assert msgspec.structs.replace(first, request=second.request, traceparent=second.traceparent) == second


@pytest.mark.parametrize(
    ("sent", "kept"),
    [("8d875a95-12ac-404f-acae-0738446164e9", "8d875a95-12ac-404f-acae-0738446164e9"), ("my own words", None),
     ("x" * 65, None), ("", None)],
)  # fmt: skip
def test_a_request_id_that_could_hold_words_is_not_kept(sent: str, kept: str | None) -> None:
    """Envoy may be configured to keep the id of the client, which may be any text."""
    message = pb.StreamAccessLogsMessage.FromString(batch())
    message.http_logs.log_entry[0].request.request_id = sent
    (outcome,) = read_outcomes(message.SerializeToString())
    assert outcome.request == kept


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_a_count_that_is_not_a_finite_number_is_unknown(number: float) -> None:
    """Another filter may have written it. The other values of the ledger metadata are still read."""
    judged = {"principal": "p", "1": {"verdict": "accept", "tier": "small", "input": number, "output": 3.0}}
    expected = msgspec.structs.replace(PLAIN, principal="p", judged=True, unjudged=None)
    assert read(judged) == expected


def test_values_of_an_unexpected_type_are_as_if_absent() -> None:
    """A list, a null and a nested object say nothing about the exchange."""
    odd: dict[str, Any] = {"principal": ["p"], "session": None, "1": {"verdict": {"a": "b"}}, "2": "accept"}
    assert read(odd) == msgspec.structs.replace(PLAIN, judged=True, unjudged=None)


def test_a_hit_of_the_cache_has_the_tier_and_tokens_of_its_answer_and_no_usage() -> None:
    decision = {"tier": "small", "reason": "matched", "counted_as": "faq", "cache": "semantic", "revision": "r"}
    hit = {"hit": {"verdict": "accept", "tier": "large", "input": 30.0, "output": 12.0, "cached": 0.0}}
    outcome = read(hit, decision=decision, upstreamRequestAttemptCount=0, customTags={})
    assert (outcome.cache, outcome.tier, outcome.reused, outcome.usage) == (
        "semantic",
        "large",
        Usage(30, 12, 0),
        None,
    )
    assert (outcome.ending, outcome.attempts, outcome.judged, outcome.unjudged) == ("accepted", 0, False, "cached")
    assert outcome.is_hit
