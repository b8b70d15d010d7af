"""Envoy's access log as outcomes: who served, how it ended, and whose count of tokens is believed."""

from typing import Any

import pytest
from google.protobuf.json_format import ParseDict

from extproc.accounting.accesslog import read_outcomes
from extproc.accounting.outcome import Ending, Outcome, Rejection
from extproc.api.observation import Usage
from extproc.contract.names import Namespace
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
    tier="small", revision="r1", mode="enforce", duration_s=1.5, first_byte_s=0.25,
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
    (found,) = read_outcomes(batch(*arguments, **more))
    return found


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
    """Everything that the decision and Envoy tell of it, and no usage where nobody told one."""
    assert read() == PLAIN


def test_the_one_who_asked_is_known_by_hashes() -> None:
    found = read({"principal": "p", "session": "s"})
    assert (found.principal, found.session) == ("p", "s")


def test_without_a_decision_it_failed_open() -> None:
    """Envoy went on without us: the default tier served."""
    found = read(decision=None, customTags={"tier": "large"})
    assert (found.reason, found.cohort, found.tier) == ("fail_open", None, "large")


def test_what_was_never_sent_on_did_not_fail_open() -> None:
    """A body too long, or a client that left while it sent one: no decision, and no attempt."""
    found = read(decision=None, status=413, upstreamRequestAttemptCount=0, customTags={})
    assert (found.reason, found.ending, found.attempts, found.tier) == ("none", "failed", 0, None)


@pytest.mark.parametrize("route", ["rest", "", "elsewhere"])
def test_what_is_no_api_of_ours_is_left_out(route: str) -> None:
    assert list(read_outcomes(batch(routeName=route))) == []


def test_envoys_count_is_believed_first() -> None:
    """Of the answer that it passed on; the verifier's stands where Envoy has none, or not a complete one."""
    judged = {"1": {"verdict": "accept", "tier": "small", "input": 7.0, "output": 3.0, "cached": 2.0}}
    found = read(judged, envoys(9, 4, 1))
    assert (found.usage, found.usage_from, found.judged) == (Usage(9, 4, 1), "envoy", True)
    for told in (None, envoys(9, 4, status="PARTIAL"), envoys(9, None), envoys(None, None, status="FAILED")):
        found = read(judged, told)
        assert (found.usage, found.usage_from) == (Usage(7, 3, 2), "verifier")
    assert read({"1": {"verdict": "accept"}}).usage is None


def test_rejected_answers_are_told_with_their_tokens() -> None:
    """Each with tier and reason; the last attempt is none of them."""
    found = read(
        {
            "1": {"verdict": "escalate", "tier": "small", "reason": "refusal", "input": 7.0, "output": 3.0},
            "3": {"verdict": "escalate", "tier": "large", "reason": "cut"},
        },
        envoys(9, 4),
        upstreamRequestAttemptCount=4,
        customTags={"tier": "frontier"},
    )
    assert found.rejections == (Rejection(1, "small", "refusal", Usage(7, 3)), Rejection(3, "large", "cut"))
    assert (found.ending, found.tier, found.usage, found.failed_attempts) == (
        "accepted",
        "frontier",
        Usage(9, 4),
        1,
    )


@pytest.mark.parametrize("verdict", ["degraded", "recorded", "escalate"])
def test_a_rejected_answer_that_was_served_is_degraded(verdict: str) -> None:
    """Out of bounds, already on its way, or a climb that Envoy refused."""
    found = read({"1": {"verdict": verdict, "tier": "small", "reason": "empty"}})
    assert (found.ending, found.judged, found.rejections) == ("degraded", True, ())


def test_a_person_s_case() -> None:
    found = read({"1": {"verdict": "human", "input": 7.0, "output": 3.0}}, status=422)
    assert (found.ending, found.usage) == ("human", Usage(7, 3))


@pytest.mark.parametrize(
    ("status", "flag", "ending"),
    [
        (0, None, "cancelled"),
        (200, "downstreamConnectionTermination", "cancelled"),
        (200, "downstreamRemoteReset", "cancelled"),
        (503, None, "failed"),
        (413, None, "failed"),
        (200, "upstreamConnectionTermination", "failed"),
        (200, "streamIdleTimeout", "failed"),
    ],
)
def test_how_it_ended(status: int, flag: str | None, ending: str) -> None:
    """A client that left, an error, or an answer that was cut after it had begun."""
    flags = {} if flag is None else {"responseFlags": {flag: True}}
    assert read({"1": {"verdict": "accept"}}, status=status, **flags).ending == ending


def test_what_is_no_log_is_refused() -> None:
    with pytest.raises(ValueError, match="not an access log"):
        read_outcomes(b"\xff\xff")


@pytest.mark.parametrize(
    ("sent", "kept"),
    [("8d875a95-12ac-404f-acae-0738446164e9", "8d875a95-12ac-404f-acae-0738446164e9"), ("my own words", None),
     ("x" * 65, None), ("", None)],
)  # fmt: skip
def test_a_request_is_known_by_an_id_that_can_hold_no_words(sent: str, kept: str | None) -> None:
    """Where Envoy is told to keep the client's, that may be anything."""
    message = pb.StreamAccessLogsMessage.FromString(batch())
    message.http_logs.log_entry[0].request.request_id = sent
    (found,) = read_outcomes(message.SerializeToString())
    assert found.request == kept
