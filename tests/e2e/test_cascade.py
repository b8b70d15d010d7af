"""The cascade through the real Envoy: verdicts, rungs, limits, streams, and a verifier that is killed."""

import asyncio
import concurrent.futures
import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from extproc.demo.stack import Stack
from tests.e2e.faulty_upstream import (
    CHAT,
    LONG,
    MESSAGES,
    RESPONSES,
    FaultyUpstreams,
    ask,
    body_of,
    new_id,
    post,
    read,
    running_faulty,
    text_of,
)  # fmt: skip
from tests.e2e.nameserver import NameServer
from tests.e2e.traffic import envoy_beside, eventually, manager_of

_RULES = "accept: [complete, non_empty, no_refusal]"
_UP = "escalate: {to: large, share: 1}"
_COHORTS = {
    "early": f"tier: small\nreasoning: off\n{_RULES}\n{_UP}",
    "buffer": f"tier: small\n{_RULES}\n{_UP}\nstream: buffer",
    "record": f"tier: small\n{_RULES}\n{_UP}\nstream: record",
    "plain": "tier: small",
    "climb": f"tier: small\nreasoning: off\n{_RULES}\nescalate:\n  to: [{{tier: small, reasoning: on}}, large]\n"
    "  max: 2\n  share: 1",
    "shared": f"tier: small\n{_RULES}\nescalate: {{to: large, share: 0.01}}",
    "schema": f"tier: small\naccept: [complete, json_schema]\n{_UP}",
    "tools": f"tier: small\naccept: [complete, tool_calls]\n{_UP}",
    "gone": f"tier: small\n{_RULES}\n{_UP}",
    "three": f"tier: small\nreasoning: off\n{_RULES}\nescalate:\n"
    "  to: [{tier: large, reasoning: on}, {tier: frontier, reasoning: {budget_tokens: 9000}}]\n  max: 2\n"
    "  share: 1",
}
_COHORTS["certain"] = f"tier: small\naccept: [non_empty, no_refusal]\n{_UP}"
_COHORTS["skip"] = (
    f"tier: small\nreasoning: off\n{_RULES}\nescalate:\n  to: [large, frontier]\n  max: 2\n  share: 1\n"
    "  skip: [no_refusal]\nstream: buffer"
)
_COHORTS["skip_early"] = _COHORTS["skip"].replace("buffer", "early")
_COHORTS["again"] = (
    f"tier: small\nreasoning: off\n{_RULES}\nescalate: {{to: {{tier: small, reasoning: on}}, share: 1}}"
)
# Answers shorter than about 300 characters have a score below 0.5.
_SCORER = (
    'scorer: {date: "2026-11-22", data: "123456789012", rows: 300, tier: small, model: qwen3-8b, '
    "auroc: [0.6, 0.7], offset: -22.8, weights: {length: 4.0}}"
)
_COHORTS["scored"] = f"tier: small\naccept: [complete, {{score: 0.5}}]\n{_UP}\nstream: buffer\n{_SCORER}"
_COHORTS["scored_early"] = _COHORTS["scored"].replace("buffer", "early")
_BURST = 5
_POLICY = f"escalations: {{per_minute: 0.01, burst: {_BURST}}}\ntimeouts: {{attempt_s: 40, request_s: 80}}\n"


class Cascade:
    """The stack, with the requests that its tests send."""

    def __init__(self, stack: Stack, prompts: dict[str, str]) -> None:
        self.stack, self.prompts = stack, prompts
        self.upstreams: FaultyUpstreams = stack.upstreams  # type: ignore[assignment]
        self.pool = concurrent.futures.ThreadPoolExecutor(8)

    def ask(
        self, cohort: str, stream: bool = False, path: str = CHAT, key: str | None = None, **script: Any
    ) -> Any:
        """Send a request with this script. Return (id, wire, reading)."""
        more = script.pop("more", {})
        script.setdefault("id", new_id())
        headers = {"authorization": key} if key is not None else None
        wire, reading = ask(self.stack, self.prompts[cohort], script, stream, path, headers, **more)
        return script["id"], wire, reading

    def later(self, cohort: str, stream: bool, **script: Any) -> tuple[str, concurrent.futures.Future[Any]]:
        """Send a request in a thread. Return when the first tier has received it."""
        request_id = new_id()
        future = self.pool.submit(self.ask, cohort, stream, id=request_id, **script)
        eventually(lambda: self.upstreams.sent.get((request_id, "small")) is not None, "the request is upstream")
        return request_id, future

    def sent(self, request_id: str, tier: str, attempt: int = 0) -> bytes:
        return bytes(self.upstreams.sent[request_id, tier][attempt])

    def streams_opened(self) -> int:
        """Return how many streams Envoy has opened, when none is open any more."""

        def look() -> tuple[int] | None:
            counts = self.stack.stats(r"cluster\.[a-z]*\.ext_proc\.")
            started, closed = (
                sum(count for name, count in counts.items() if name.endswith(f".streams_{state}"))
                for state in ("started", "closed")
            )
            return (started,) if started == closed else None

        return eventually(look, "the streams of earlier requests are closed")[0]


def said(wire: Any) -> dict[str, str]:
    """Return the contract's headers of an answer, without the cohort."""
    found = {n: v for n, v in wire.headers.items() if n.startswith(("x-cascade-", "x-router-"))}
    found.pop("x-router-cohort", None)
    return found


@pytest.fixture(scope="module")
def cascade(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cascade]:
    with running_faulty(tmp_path_factory.mktemp("cascade"), _COHORTS, _POLICY) as (stack, prompts):
        found = Cascade(stack, prompts)
        yield found
        found.pool.shutdown(wait=True, cancel_futures=True)


STREAMS = pytest.mark.parametrize("stream", [False, True], ids=["json", "sse"])

ACCEPTED = {
    "x-cascade-verdict": "accept", "x-router-reason": "matched", "x-router-escalations": "0",
    "x-router-tier": "small", "x-router-attempts": "1",
}  # fmt: skip


@STREAMS
@pytest.mark.parametrize("path", [CHAT, MESSAGES, RESPONSES])
@pytest.mark.parametrize("cohort", ["early", "buffer"])
def test_a_good_small_answer_is_the_answer(cascade: Cascade, cohort: str, path: str, stream: bool) -> None:
    """The client gets the bytes that the small tier sent."""
    request_id, wire, reading = cascade.ask(cohort, stream, path, words=LONG)
    assert (wire.status, reading.problems, said(wire)) == (200, [], ACCEPTED)
    assert reading.text == text_of("small", request_id, LONG)
    assert wire.body == cascade.sent(request_id, "small")
    assert cascade.upstreams.attempts(request_id, "large") == []


@STREAMS
@pytest.mark.parametrize("path", [CHAT, MESSAGES, RESPONSES])
@pytest.mark.parametrize(
    ("fault", "reason"),
    [("refuses", "refusal"), ("empty_content", "empty"), ("html_as_asked", "malformed"),
     ("error_in_200", "upstream_error"), ("wrong_type", "wrong_type"), ("other_framing", "wrong_framing")],
)  # fmt: skip
def test_a_weak_small_answer_climbs(cascade: Cascade, path: str, stream: bool, fault: str, reason: str) -> None:
    """The client gets the bytes of the large tier's answer, and the reason why the small tier's was rejected."""
    if stream and fault == "error_in_200":
        reason = "wrong_framing"  # JSON instead of a stream: known before the text is read
    request_id, wire, reading = cascade.ask("early", stream, path, small=fault)
    assert (wire.status, reading.problems) == (200, [])
    assert wire.body == cascade.sent(request_id, "large")
    assert reading.text == text_of("large", request_id, 6)
    assert said(wire) == {
        "x-router-reason": "matched", "x-router-escalations": "1", "x-router-tier": "large",
        "x-router-attempts": "2", "x-cascade-reason": reason,
    }  # fmt: skip


@STREAMS
def test_an_answer_that_scores_low_climbs(cascade: Cascade, stream: bool) -> None:
    """The fitted score rejects a short answer before the client sees it. A long answer is accepted."""
    request_id, wire, reading = cascade.ask("scored", stream, words=6)
    assert (wire.status, reading.problems, wire.body) == (200, [], cascade.sent(request_id, "large"))
    assert said(wire) == {
        "x-router-reason": "matched", "x-router-escalations": "1", "x-router-tier": "large",
        "x-router-attempts": "2", "x-cascade-reason": "low_score",
    }  # fmt: skip
    request_id, wire, reading = cascade.ask("scored", stream, words=LONG)
    assert (said(wire), wire.body) == (ACCEPTED, cascade.sent(request_id, "small"))


def test_a_stream_held_for_its_first_tokens_passes_the_score(cascade: Cascade) -> None:
    """The score needs the whole answer. Once the early part was sent, the score can only be recorded."""
    request_id, wire, reading = cascade.ask("scored_early", True, words=24)
    assert (reading.problems, wire.body) == ([], cascade.sent(request_id, "small"))
    assert said(wire)["x-router-escalations"] == "0"


# No JSON encoder writes this white space and order. The body of a rung differs only in the members that it changes.
_ODD = (
    '{ "messages":[{"role":"user",\t"content":"%s"}] ,\n "model" : "auto", "stream": %s, '
    '"metadata": {"id": "%s", "small": %s, "large": "%s"}, "user":"\\u00fc" }'
)


@STREAMS
def test_each_rung_gets_its_own_model_and_reasoning(cascade: Cascade, stream: bool) -> None:
    """The same tier with reasoning, then the next tier: three attempts, each with the exact bytes of its rung."""
    request_id = new_id()
    values = (cascade.prompts["climb"], str(stream).lower(), request_id, '["refuses", "refuses"]', "fine")
    body = _ODD % values
    wire = asyncio.run(post(cascade.stack.port, CHAT, body.encode(), {"authorization": request_id}))
    arrived = cascade.upstreams.attempts(request_id)
    assert [r.tier for r in arrived] == ["small", "small", "large"]
    thinking = ',"chat_template_kwargs":{"enable_thinking":%s} }'
    # The last rung has no reasoning setting, so the cohort's applies.
    for got, model, on in zip(
        arrived, ("qwen3-8b", "qwen3-8b", "qwen3-32b"), ("false", "true", "false"), strict=True
    ):
        expected = body.replace('"auto"', f'"{model}"').removesuffix(" }") + thinking % on
        assert got.body.decode() == expected
        assert got.headers["content-length"] == str(len(got.body))
    assert wire.body == cascade.sent(request_id, "large")
    assert said(wire)["x-router-escalations"] == "2"
    assert said(wire)["x-router-attempts"] == "3"


def test_three_tiers_in_three_dialects(cascade: Cascade) -> None:
    """Two tiers use Qwen's field and the third OpenAI's. No field of one rung is left in the next."""
    request_id, wire, reading = cascade.ask("three", small="refuses", large="empty_content")
    small, large, frontier = (msgspec.json.decode(r.body) for r in cascade.upstreams.attempts(request_id))
    assert (small["model"], small["chat_template_kwargs"]) == ("qwen3-8b", {"enable_thinking": False})
    assert (large["model"], large["chat_template_kwargs"]) == ("qwen3-32b", {"enable_thinking": True})
    assert (frontier["model"], frontier["reasoning_effort"]) == ("frontier-1", "high")
    assert "chat_template_kwargs" not in frontier
    assert reading.text == text_of("frontier", request_id, 6)
    assert said(wire)["x-router-tier"] == "frontier"


@STREAMS
@pytest.mark.parametrize("cohort", ["skip", "skip_early"])
def test_a_rule_may_jump_a_rung(cascade: Cascade, cohort: str, stream: bool) -> None:
    """A refusal skips the large tier, which gets no request. An empty answer goes to the large tier."""
    request_id, wire, reading = cascade.ask(cohort, stream, small="refuses", frontier="paced")
    small, frontier = cascade.upstreams.attempts(request_id)
    assert (small.tier, frontier.tier) == ("small", "frontier")
    asked = msgspec.json.decode(frontier.body)
    assert (asked["model"], asked["reasoning_effort"]) == ("frontier-1", "none")
    assert "chat_template_kwargs" not in asked
    assert (reading.problems, reading.text) == ([], text_of("frontier", request_id, 6))
    assert wire.body == cascade.sent(request_id, "frontier")
    assert said(wire) == {
        "x-router-reason": "matched", "x-router-escalations": "1", "x-router-tier": "frontier",
        "x-router-attempts": "2", "x-cascade-reason": "refusal",
    }  # fmt: skip
    request_id, wire, reading = cascade.ask(cohort, stream, small="empty_content")
    assert [r.tier for r in cascade.upstreams.attempts(request_id)] == ["small", "large"]
    assert (reading.text, said(wire)["x-cascade-verdict"]) == (text_of("large", request_id, 6), "accept")


@STREAMS
def test_there_is_no_jump_from_the_last_rung_but_one(cascade: Cascade, stream: bool) -> None:
    """The next rung is the last one, so the refusal goes there."""
    request_id, wire, _ = cascade.ask("skip", stream, small="status_500", large="refuses")
    assert [r.tier for r in cascade.upstreams.attempts(request_id)] == ["small", "large", "frontier"]
    assert wire.body == cascade.sent(request_id, "frontier")
    assert (said(wire)["x-router-attempts"], said(wire)["x-router-escalations"]) == ("3", "1")


@STREAMS
def test_the_attempt_that_a_jump_saved_is_a_second_one_at_the_last_tier(cascade: Cascade, stream: bool) -> None:
    """Envoy counts attempts. Attempts after the end of the ladder go to the last rung, with its own model."""
    request_id, wire, reading = cascade.ask("skip", stream, small="refuses", frontier=["status_503", "fine"])
    arrived = cascade.upstreams.attempts(request_id)
    assert [r.tier for r in arrived] == ["small", "frontier", "frontier"]
    assert arrived[1].body == arrived[2].body
    assert (reading.problems, wire.body) == ([], cascade.sent(request_id, "frontier", 1))
    assert (said(wire)["x-router-attempts"], said(wire)["x-router-escalations"]) == ("3", "1")


@pytest.mark.parametrize(
    ("small", "large", "tiers"),
    [(["refuses", "fine"], "fine", ["small", "small"]),
     (["status_500", "refuses"], "fine", ["small", "small", "large"]),
     (["refuses", "reset_before_headers"], "fine", ["small", "small", "large"])],
    ids=["second", "failure, rejection", "rejection, failure"],
)  # fmt: skip
@STREAMS
def test_failures_and_rejections_share_one_ladder(
    cascade: Cascade, stream: bool, small: Any, large: str, tiers: list[str]
) -> None:
    """After an attempt fails for any reason, the next attempt goes one rung up."""
    request_id, wire, reading = cascade.ask("climb", stream, small=small, large=large)
    assert [r.tier for r in cascade.upstreams.attempts(request_id)] == tiers
    assert (reading.problems, reading.text) == ([], text_of(tiers[-1], request_id, 6))
    assert wire.body == cascade.sent(request_id, tiers[-1], tiers.count(tiers[-1]) - 1)


@STREAMS
def test_the_last_rung_is_never_rejected(cascade: Cascade, stream: bool) -> None:
    """Its answer is not judged and always reaches the client."""
    request_id, wire, _ = cascade.ask("early", stream, small="refuses", large="refuses")
    assert wire.status == 200
    assert wire.body == cascade.sent(request_id, "large")
    assert len(cascade.upstreams.attempts(request_id)) == 2
    assert said(wire).get("x-cascade-verdict") != "escalate"


@STREAMS
@pytest.mark.parametrize("small", ["status_500", "empty_content", "error_in_200", "cut_midway"])
def test_a_failing_last_rung_is_reported_honestly(cascade: Cascade, small: str, stream: bool) -> None:
    """If no tier gave an answer, the client sees the error of the last tier. The router invents no error."""
    _, wire, reading = cascade.ask("early", stream, small=small, large="status_503")
    assert wire.status == 503
    assert reading.problems == ["status 503"]


@STREAMS
@pytest.mark.parametrize("large", ["status_429", "status_500", "reset_before_headers"])
@pytest.mark.parametrize("path", [CHAT, MESSAGES, RESPONSES])
def test_a_weak_answer_is_better_than_the_last_rungs_failure(
    cascade: Cascade, path: str, large: str, stream: bool
) -> None:
    """The client gets the small tier's bytes, with status 200 and that tier's name, marked degraded."""
    request_id, wire, reading = cascade.ask("buffer", stream, path, small="refuses", large=large)
    # A connection that breaks is tried once more at the last tier.
    tiers = ["small", "large", "large"] if large == "reset_before_headers" else ["small", "large"]
    assert [r.tier for r in cascade.upstreams.attempts(request_id)] == tiers
    assert (wire.status, reading.problems, wire.body) == (200, [], cascade.sent(request_id, "small"))
    assert said(wire) == {
        "x-router-reason": "matched", "x-router-escalations": "1", "x-router-tier": "small",
        "x-router-attempts": str(len(tiers)), "x-cascade-verdict": "degraded", "x-cascade-reason": "refusal",
    }  # fmt: skip
    assert wire.headers["x-router-cohort"] == "buffer"
    eventually(lambda: '"verdict":"rescued"' in cascade.stack.log("envoy.log"), "the access log says so")
    assert request_id not in cascade.stack.log("envoy.log") + cascade.stack.log("router.log")


def test_the_latest_rung_with_an_answer_rescues(cascade: Cascade) -> None:
    """The client gets the large tier's refusal, not the small one's. An error that no tier can repair stays."""
    request_id, wire, _ = cascade.ask("three", small="refuses", large="refuses", frontier="status_503")
    assert (wire.status, wire.body) == (200, cascade.sent(request_id, "large"))
    assert (said(wire)["x-router-tier"], said(wire)["x-router-attempts"]) == ("large", "3")
    request_id, wire, _ = cascade.ask("three", small="refuses", large="empty_content", frontier="status_503")
    assert (wire.status, wire.body) == (200, cascade.sent(request_id, "small"))
    _, wire, _ = cascade.ask("early", small="refuses", large="status_400")
    assert wire.status == 400


@pytest.fixture(scope="module", params=["no host", "full", "too slow"])
def in_trouble(
    cascade: Cascade, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Stack]:
    """A second Envoy, whose large tier never answers."""

    def edit(bootstrap: dict[str, Any]) -> None:
        large = cluster_of(bootstrap, "large")
        if request.param == "no host":
            large["load_assignment"]["endpoints"][0]["lb_endpoints"] = []
        elif request.param == "full":
            large["circuit_breakers"]["thresholds"][0]["max_requests"] = 0
        else:
            for route in manager_of(bootstrap)["route_config"]["virtual_hosts"][0]["routes"]:
                if "retry_policy" in route.get("route", {}):
                    # Long enough for the small tier's answer and its judgement on a busy machine.
                    route["route"]["retry_policy"]["per_try_timeout"] = "6s"

    with envoy_beside(cascade.stack, tmp_path_factory.mktemp("trouble"), edit) as beside:
        yield beside


def test_whatever_keeps_the_last_rung_from_answering_is_rescued(cascade: Cascade, in_trouble: Stack) -> None:
    """This includes Envoy's own errors. It needs the whole answer, so a stream that stopped early is not kept."""

    def asked(stream: bool) -> tuple[str, Any, Any]:
        request_id = new_id()
        script = {"id": request_id, "small": "refuses", "large": "no_headers_in_time"}
        return request_id, *ask(in_trouble, cascade.prompts["buffer"], script, stream)

    # Side by side, because both wait for the same time.
    for request_id, wire, reading in cascade.pool.map(asked, (False, True)):
        assert (wire.status, reading.problems, wire.body) == (200, [], cascade.sent(request_id, "small"))
        assert (said(wire)["x-router-tier"], said(wire)["x-cascade-verdict"]) == ("small", "degraded")


def test_without_us_the_failure_is_the_answer(cascade: Cascade, tmp_path: Path) -> None:
    """Without the router Envoy cannot ask for another answer, so the failure reaches the client."""

    def nobody(bootstrap: dict[str, Any]) -> None:
        rescue = manager_of(bootstrap)["http_filters"][0]
        service = rescue["typed_config"]["extension_config"]["typed_config"]["grpc_service"]
        service["envoy_grpc"]["cluster_name"] = "dead"

    with envoy_beside(cascade.stack, tmp_path, nobody) as beside:
        script = {"id": new_id(), "small": "refuses", "large": "status_503"}
        wire, _ = ask(beside, cascade.prompts["early"], script)
        assert (wire.status, said(wire)["x-router-tier"], said(wire)["x-router-attempts"]) == (503, "large", "2")


@STREAMS
def test_exhausted_is_the_last_answer_marked_degraded(cascade: Cascade, stream: bool) -> None:
    """If an answer is rejected and no rung is left, the client gets that answer with 200, marked degraded."""
    request_id, wire, reading = cascade.ask("again", stream, small="refuses")
    assert (wire.status, reading.problems) == (200, [])
    assert wire.body == cascade.sent(request_id, "small", 1)
    assert len(cascade.upstreams.attempts(request_id)) == 2
    assert said(wire)["x-cascade-verdict"] == "degraded"
    assert said(wire)["x-cascade-reason"] == "refusal"
    # An answer that is not judged has no mark.
    request_id, wire, _ = cascade.ask("climb", stream, small="status_500", large="refuses")
    assert (wire.status, wire.body) == (200, cascade.sent(request_id, "large"))
    assert "x-cascade-verdict" not in wire.headers


def test_a_key_over_its_burst_gets_degraded_answers_and_another_still_climbs(cascade: Cascade) -> None:
    """A client can escalate only its own share, and other clients are not affected."""
    verdicts = []
    for i in range(_BURST + 2):
        request_id, wire, _ = cascade.ask("early", i % 2 == 1, key="Bearer greedy", small="refuses")
        assert wire.status == 200
        verdicts.append(said(wire).get("x-router-tier"))
        if i >= _BURST:
            assert said(wire)["x-cascade-verdict"] == "degraded"
            assert said(wire)["x-cascade-reason"] == "refusal"
            assert said(wire)["x-router-escalations"] == "0"
            assert wire.body == cascade.sent(request_id, "small")
    assert verdicts == ["large"] * _BURST + ["small"] * 2
    request_id, wire, _ = cascade.ask("early", key="Bearer modest", small="refuses")
    assert said(wire)["x-router-tier"] == "large"
    assert "greedy" not in cascade.stack.log("router.log") + cascade.stack.log("envoy.log")


def test_a_cohort_over_its_share_gets_degraded_answers(cascade: Cascade) -> None:
    """The first ten may escalate, then 1 %. Each request has its own principal."""
    asked = [cascade.ask("shared", small="refuses") for _ in range(14)]
    tiers = [said(wire)["x-router-tier"] for _, wire, _ in asked]
    assert tiers == ["large"] * 10 + ["small"] * 4
    assert {said(wire)["x-cascade-verdict"] for _, wire, _ in asked[10:]} == {"degraded"}
    assert all(wire.status == 200 for _, wire, _ in asked)


@STREAMS
def test_over_envoys_retry_budget_the_answer_is_marked_degraded(
    cascade: Cascade, tmp_path: Path, stream: bool
) -> None:
    """Envoy may refuse an escalation that the verifier asked for. Then the client's headers show no escalation."""

    def no_retries(bootstrap: dict[str, Any]) -> None:
        cluster_of(bootstrap, "small")["circuit_breakers"]["thresholds"][0]["retry_budget"] = {
            "budget_percent": {"value": 0}, "min_retry_concurrency": 0,
        }  # fmt: skip

    with envoy_beside(cascade.stack, tmp_path, no_retries) as beside:
        request_id = new_id()
        script = {"id": request_id, "small": "refuses"}
        wire, _ = ask(beside, cascade.prompts["early"], script, stream)
        assert (wire.status, wire.body) == (200, cascade.sent(request_id, "small"))
        assert said(wire) == ACCEPTED | {"x-cascade-verdict": "degraded", "x-cascade-reason": "refusal"}
        # Nothing else changes: an accepted answer is marked as accepted, and an unjudged one has no mark.
        wire, _ = ask(beside, cascade.prompts["early"], {"id": new_id()}, stream)
        assert said(wire)["x-cascade-verdict"] == "accept"
        wire, _ = ask(beside, cascade.prompts["plain"], {"id": new_id()}, stream)
        assert "x-cascade-verdict" not in wire.headers


def cluster_of(bootstrap: dict[str, Any], name: str) -> dict[str, Any]:
    clusters: list[dict[str, Any]] = bootstrap["static_resources"]["clusters"]
    return next(cluster for cluster in clusters if cluster["name"] == name)


@pytest.fixture(scope="module")
def without_hosts(cascade: Cascade, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Stack]]:
    """Tier -> an Envoy beside the first one, whose tier has no hosts."""

    def nobody(name: str) -> Callable[[dict[str, Any]], None]:
        def empty(bootstrap: dict[str, Any]) -> None:
            cluster_of(bootstrap, name)["load_assignment"]["endpoints"][0]["lb_endpoints"] = []

        return empty

    with contextlib.ExitStack() as ending:
        yield {
            name: ending.enter_context(envoy_beside(cascade.stack, tmp_path_factory.mktemp(name), nobody(name)))
            for name in ("small", "large")
        }


@STREAMS
@pytest.mark.parametrize("cohort", ["early", "buffer", "plain"])
def test_a_tier_without_hosts_is_climbed_over(
    cascade: Cascade, without_hosts: dict[str, Stack], cohort: str, stream: bool
) -> None:
    """It is like a tier that refuses, first or in the middle of a ladder. As the last one it is an honest error."""
    request_id = new_id()
    wire, reading = ask(without_hosts["small"], cascade.prompts[cohort], {"id": request_id}, stream)
    assert (reading.problems, wire.body) == ([], cascade.sent(request_id, "large"))
    assert said(wire) == {
        "x-router-reason": "matched", "x-router-escalations": "0", "x-router-tier": "large",
        "x-router-attempts": "2",
    }  # fmt: skip
    request_id, beside = new_id(), without_hosts["large"]
    wire, _ = ask(beside, cascade.prompts["three"], {"id": request_id, "small": "refuses"}, stream)
    assert (wire.body, said(wire)["x-router-tier"]) == (cascade.sent(request_id, "frontier"), "frontier")
    assert (said(wire)["x-router-attempts"], said(wire)["x-router-escalations"]) == ("3", "1")
    wire, _ = ask(beside, cascade.prompts[cohort], {"id": new_id(), "small": "status_500"}, stream)
    assert (wire.status, said(wire)["x-router-attempts"]) == (503, "3")  # the last tier is asked twice


def test_a_tier_whose_name_loses_its_hosts_is_climbed_over(cascade: Cascade, tmp_path: Path) -> None:
    """A service is scaled to zero and back. While it has a host, no request skips it."""
    with NameServer("127.0.0.1") as names:

        def named(bootstrap: dict[str, Any]) -> None:
            cluster = cluster_of(bootstrap, "small")
            endpoint = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]
            endpoint["address"]["socket_address"]["address"] = "small.test"
            resolver = {
                "@type": "type.googleapis.com/"
                "envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig",
                "resolvers": [{"socket_address": {"address": "127.0.0.1", "port_value": names.port}}],
                "dns_resolver_options": {"no_default_search_domain": True},
            }
            cluster |= {"type": "STRICT_DNS", "dns_refresh_rate": "0.1s"}
            cluster["typed_dns_resolver_config"] = {
                "name": "envoy.network.dns_resolver.cares",
                "typed_config": resolver,
            }

        def tiers(beside: Stack) -> set[str]:
            asked = [ask(beside, cascade.prompts["early"], {"id": new_id()}) for _ in range(20)]
            assert [reading.problems for _, reading in asked] == [[]] * 20
            return {said(wire)["x-router-tier"] for wire, _ in asked}

        with envoy_beside(cascade.stack, tmp_path, named) as beside:
            assert tiers(beside) == {"small"}
            assert beside.stats(r"cluster\.small\.upstream_cx_connect_fail$") == {
                "cluster.small.upstream_cx_connect_fail": 0
            }
            names.host = None
            eventually(lambda: tiers(beside) == {"large"}, "the tier has no host")
            names.host = "127.0.0.1"
            eventually(lambda: tiers(beside) == {"small"}, "it has one again")


@STREAMS
def test_a_full_tier_is_an_honest_503(cascade: Cascade, tmp_path: Path, stream: bool) -> None:
    """Envoy does not retry a request that a circuit breaker refused, regardless of `retry_on`."""

    def full(bootstrap: dict[str, Any]) -> None:
        cluster_of(bootstrap, "small")["circuit_breakers"]["thresholds"][0]["max_requests"] = 0
        for route in manager_of(bootstrap)["route_config"]["virtual_hosts"][0]["routes"]:
            if "retry_policy" in route.get("route", {}):
                policy = route["route"]["retry_policy"]
                policy["retry_on"] += (
                    ",5xx,gateway-error,reset-before-request,envoy-ratelimited,retriable-status-codes"
                )
                policy["retriable_status_codes"] = [503]
                policy["retriable_headers"].append({"name": "x-envoy-overloaded"})

    with envoy_beside(cascade.stack, tmp_path, full) as beside:
        request_id = new_id()
        wire, _ = ask(beside, cascade.prompts["early"], {"id": request_id}, stream)
        assert (wire.status, wire.headers["x-envoy-overloaded"], wire.fault) == (503, "true", None)
        assert said(wire)["x-router-attempts"] == "1"
        assert cascade.upstreams.attempts(request_id) == []


def test_a_recorded_stream_passes_and_its_verdict_is_written_down(cascade: Cascade) -> None:
    """`record` judges JSON answers as usual, and holds no stream back."""
    request_id, wire, reading = cascade.ask("record", True, small="refuses")
    assert (wire.body, reading.problems) == (cascade.sent(request_id, "small"), [])
    assert said(wire)["x-router-tier"] == "small"
    assert "x-cascade-verdict" not in wire.headers
    request_id, wire, _ = cascade.ask("record", False, small="refuses")
    assert said(wire)["x-router-tier"] == "large"


@pytest.mark.parametrize("small", ["fine", "trickled", "paced", "refuses_late"])
@pytest.mark.parametrize("cohort", ["early", "buffer", "record", "plain"])
def test_held_bytes_are_neither_lost_nor_reordered(cascade: Cascade, cohort: str, small: str) -> None:
    """The client gets everything that one tier sent, in order, for every mode and size of buffering."""
    climbs = small == "refuses_late" and cohort in ("early", "buffer")
    # A busy machine needs time to stop the small tier, whose whole answer would take half a minute.
    words = 1000 if climbs and cohort == "early" else 60
    request_id, wire, reading = cascade.ask(cohort, True, small=small, words=words)
    assert wire.body == cascade.sent(request_id, "large" if climbs else "small")
    assert reading.problems == []
    if climbs and cohort == "early":  # the small tier was stopped after its first words
        eventually(lambda: (request_id, "small") in cascade.upstreams.gone, "the small stream was cancelled")
        assert b"[DONE]" not in cascade.sent(request_id, "small")


@STREAMS
def test_a_request_of_five_megabytes_climbs_too(cascade: Cascade, stream: bool) -> None:
    """Envoy buffers it and patches it for each rung. It is complete on all of them."""
    pad = "ü" * 2_500_000
    request_id, wire, reading = cascade.ask("climb", stream, small=["refuses", "empty_content"], more={"pad": pad})
    arrived = cascade.upstreams.attempts(request_id)
    assert [r.tier for r in arrived] == ["small", "small", "large"]
    assert all(msgspec.json.decode(r.body)["pad"] == pad for r in arrived)
    assert (reading.problems, wire.body) == ([], cascade.sent(request_id, "large"))


@pytest.mark.parametrize("cohort", ["early", "buffer", "record", "plain"])
@STREAMS
def test_an_answer_of_three_megabytes_is_passed_whole(cascade: Cascade, cohort: str, stream: bool) -> None:
    """It is larger than every buffer that was not made for it, and than the buffer of a judged stream."""
    request_id, wire, reading = cascade.ask(cohort, stream, words=20_000 if stream else 200_000)
    assert (wire.status, reading.problems) == (200, [])
    assert len(wire.body) > 3_000_000
    assert wire.body == cascade.sent(request_id, "small")


def test_long_streams_at_once_are_passed_whole(cascade: Cascade) -> None:
    """They are faster than their clients, on one connection to the verifier, and Envoy survives."""

    async def ask_all() -> list[tuple[str, Any]]:
        flights = []
        for i in range(12):
            request_id, prompt = new_id(), cascade.prompts["buffer" if i % 2 else "early"]
            body = body_of(CHAT, prompt, True, {"id": request_id, "words": 10_000})
            own = {"authorization": request_id}
            flights.append((request_id, post(cascade.stack.port, CHAT, body, own, within_s=300)))
        wires = await asyncio.gather(*(flight for _, flight in flights))
        return [(request_id, wire) for (request_id, _), wire in zip(flights, wires, strict=True)]

    for request_id, wire in asyncio.run(ask_all()):
        assert (wire.status, wire.fault) == (200, None)
        # On a busy machine the small tier may not answer in time.
        assert wire.body == cascade.sent(request_id, wire.headers["x-router-tier"], -1)
    assert cascade.stack.envoy is not None and cascade.stack.envoy.poll() is None


def test_an_early_judgement_lets_go_while_the_answer_still_grows(cascade: Cascade) -> None:
    """The client reads the first tokens before the upstream sends its last. A buffered stream waits."""

    async def first_bytes(cohort: str) -> tuple[str, bytes]:
        request_id = new_id()
        script = {"id": request_id, "small": "gated_midway", "words": LONG}
        body = body_of(CHAT, cascade.prompts[cohort], True, script)
        reader, writer = await asyncio.open_connection("127.0.0.1", cascade.stack.port)
        writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: r\r\ncontent-type: application/json\r\n"
            + f"content-length: {len(body)}\r\n\r\n".encode() + body
        )  # fmt: skip
        try:
            got = await asyncio.wait_for(reader.readuntil(b"w5"), 30 if cohort == "early" else 2)
        except TimeoutError:
            got = b""
        cascade.upstreams.release(request_id)
        rest = await asyncio.wait_for(reader.readuntil(b"\r\n0\r\n\r\n"), 30)
        writer.transport.abort()
        return request_id, got + rest

    _, got = asyncio.run(first_bytes("early"))
    assert b"x-cascade-verdict: accept" in got
    _, whole = asyncio.run(first_bytes("buffer"))
    assert b"[DONE]" in whole and b"[DONE]" in got


@pytest.mark.parametrize("cohort", ["certain", "early", "tools"])
def test_a_stream_whose_verdict_is_known_costs_no_more_messages(cascade: Cascade, cohort: str) -> None:
    """After the verdict, no chunk travels to the router, also if `complete` is open. Other rules keep it there."""
    names = ("stream_msgs_sent", "stream_msgs_received", "server_half_closed")

    def counts() -> list[int]:
        stats = cascade.stack.stats(r"cluster\.small\.ext_proc\.verifier\.")
        return [stats[f"cluster.small.ext_proc.verifier.{name}"] for name in names]

    cascade.streams_opened()  # no stream of an earlier test counts
    before = counts()
    request_id, asking = cascade.later(cohort, True, small="gated_midway", words=LONG)
    eventually(lambda: counts()[1] > before[1], "the headers are released")
    if cohort != "tools":
        eventually(lambda: counts()[2] == before[2] + 1, "the router has ended its stream")
    midway = counts()
    cascade.upstreams.release(request_id)
    _, wire, reading = asking.result(60)
    assert reading.problems == [] and wire.body == cascade.sent(request_id, "small")
    assert said(wire) == ACCEPTED
    cascade.streams_opened()
    after = counts()
    if cohort != "tools":
        assert after == midway and after[1] == before[1] + 1  # one reply
    else:
        assert after[0] > midway[0] and after[0] - before[0] == after[1] - before[1]  # a reply to each message


@STREAMS
def test_a_cohort_without_rules_pays_nothing(cascade: Cascade, stream: bool) -> None:
    """Envoy opens no verifier stream for it, and none for the last rung of a ladder."""
    before = cascade.streams_opened()
    for fault in ("fine", "refuses", "empty_content", "status_500"):
        cascade.ask("plain", stream, small=fault)
    assert cascade.streams_opened() == before
    cascade.ask("early", stream, small="refuses")
    assert cascade.streams_opened() == before + 1


@STREAMS
def test_a_forged_verdict_is_ignored(cascade: Cascade, stream: bool) -> None:
    """A tier can neither cause an escalation nor set the router's headers."""
    for cohort, verdict in (("early", {"x-cascade-verdict": "accept"}), ("plain", {})):
        request_id, wire, _ = cascade.ask(cohort, stream, small="forged")
        assert wire.body == cascade.sent(request_id, "small")
        expected = {k: v for k, v in ACCEPTED.items() if not k.startswith("x-cascade-")} | verdict
        assert said(wire) == expected


@STREAMS
def test_a_forged_verdict_of_the_last_tier_is_ignored(cascade: Cascade, stream: bool) -> None:
    """The same is true on the last rung, which is not judged."""
    request_id, wire, _ = cascade.ask("early", stream, small="refuses", large="forged")
    assert wire.body == cascade.sent(request_id, "large")
    assert "forged" not in " ".join(wire.headers.values())


_SCHEMA = {
    "type": "object", "properties": {"sender": {"type": "string"}, "total": {"type": "number"}},
    "required": ["sender", "total"], "additionalProperties": False,
}  # fmt: skip
_FORMAT = {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": _SCHEMA}}}
_GOOD = '{"sender": "Nordwind", "total": 420}'


@STREAMS
@pytest.mark.parametrize(
    ("small", "verdict"),
    [(_GOOD, None), ('{"sender": "Nordwind"}', "schema"), ('{"sender": "N", "total": "420"}', "schema"),
     ("The sender is Nordwind.", "not_json"), (f"```json\n{_GOOD}\n```", "not_json"), (_GOOD[:-4], "not_json")],
    ids=["fits", "lacks a member", "wrong type", "prose", "fenced", "cut"],
)  # fmt: skip
def test_an_answer_is_held_to_the_requests_own_schema(
    cascade: Cascade, stream: bool, small: str, verdict: str | None
) -> None:
    """The verdict uses the schema of the request. An answer that does not match it never reaches the client."""
    request_id, wire, reading = cascade.ask(
        "schema", stream, say={"small": small, "large": _GOOD}, more=_FORMAT
    )  # fmt: skip
    assert (reading.problems, reading.text) == ([], _GOOD)
    assert said(wire)["x-router-tier"] == ("small" if verdict is None else "large")
    assert wire.body == cascade.sent(request_id, said(wire)["x-router-tier"])
    assert said(wire).get("x-cascade-reason") == verdict


def test_without_a_schema_there_is_nothing_to_hold_it_to(cascade: Cascade) -> None:
    _, wire, _ = cascade.ask("schema", say={"small": "prose"})
    assert (said(wire)["x-router-tier"], said(wire)["x-cascade-verdict"]) == ("small", "accept")


@STREAMS
def test_a_schema_that_is_too_large_to_be_checked_is_seen_in_the_verdict(cascade: Cascade, stream: bool) -> None:
    """The client gets the answer. The verdict is not `accept`, as the answer was not compared with the schema."""
    large = _SCHEMA | {"$defs": {f"d{i}": {"enum": ["x" * 1000]} for i in range(300)}}
    more = {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": large}}}
    for text in (
        _GOOD,
        f'{{"sender": "{"N" * 3000}", "total": 4}}',
    ):  # the second stream is released before its end
        request_id, wire, reading = cascade.ask("schema", stream, say={"small": text}, more=more)
        assert (reading.problems, reading.text) == ([], text)
        assert wire.body == cascade.sent(request_id, "small")
        assert (said(wire)["x-cascade-verdict"], said(wire)["x-cascade-reason"]) == ("degraded", "unavailable")


_TOOLS = {
    "tools": [
        {"type": "function", "function": {"name": "get_weather", "parameters": {
            "type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}
    ],
    "tool_choice": "required",
}  # fmt: skip
_CALL = {"get_weather": '{"city": "Lisbon"}'}


@STREAMS
@pytest.mark.parametrize(
    ("small", "verdict"),
    [({"calls": {"small": _CALL}}, None), ({"calls": {"small": {"get_wether": "{}"}}}, "unknown_tool"),
     ({"calls": {"small": {"get_weather": '{"town": 1}'}}}, "tool_arguments"),
     ({"calls": {"small": {"get_weather": '{"city": '}}}, "tool_arguments"), ({}, "no_tool_call")],
    ids=["fits", "unknown tool", "wrong arguments", "cut arguments", "no call"],
)  # fmt: skip
def test_calls_are_held_to_the_requests_own_tools(
    cascade: Cascade, stream: bool, small: dict[str, Any], verdict: str | None
) -> None:
    """Names and arguments are compared with the tools that the request offers."""
    script = {"calls": {"large": _CALL} | small.get("calls", {})}
    request_id, wire, reading = cascade.ask("tools", stream, more=_TOOLS, **script)
    assert (reading.problems, reading.calls) == ([], _CALL)
    assert said(wire)["x-router-tier"] == ("small" if verdict is None else "large")
    assert wire.body == cascade.sent(request_id, said(wire)["x-router-tier"])
    assert said(wire).get("x-cascade-reason") == verdict


@STREAMS
@pytest.mark.parametrize("small", ["gated", "gated_midway"])
def test_a_client_that_leaves_in_the_middle_stops_the_upstream(cascade: Cascade, stream: bool, small: str) -> None:
    """The small tier's stream is reset, the next tier gets no request, and no error is logged."""
    before = len(cascade.stack.log("router.log"))
    request_id = new_id()
    body = body_of(CHAT, cascade.prompts["buffer"], stream, {"id": request_id, "small": small})

    async def leave() -> None:
        asking = asyncio.create_task(post(cascade.stack.port, CHAT, body))
        for _ in range(600):
            if cascade.upstreams.attempts(request_id):
                break
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.2)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)

    asyncio.run(leave())
    eventually(lambda: (request_id, "small") in cascade.upstreams.gone, "the upstream is told")
    assert [r.tier for r in cascade.upstreams.attempts(request_id)] == ["small"]
    logged = cascade.stack.log("router.log")[before:]
    assert "Traceback" not in logged and "ERROR" not in logged


@STREAMS
def test_a_cohort_that_a_reload_takes_away_judges_nothing(cascade: Cascade, stream: bool) -> None:
    """An answer in flight passes unchanged."""
    file = cascade.stack.intents / "gone.yaml"
    text = file.read_text()
    request_id, future = cascade.later("gone", stream, small="gated_refusal")
    file.unlink()
    try:
        eventually(
            lambda: cascade.ask("gone")[1].headers.get("x-router-cohort") != "gone", "the cohort is gone"
        )  # fmt: skip
        cascade.upstreams.release(request_id)
        _, wire, reading = future.result(60)
    finally:
        cascade.upstreams.release(request_id)
        file.write_text(text)
    assert (wire.status, reading.problems) == (200, [])
    assert wire.body == cascade.sent(request_id, "small")
    assert "x-cascade-verdict" not in wire.headers
    eventually(lambda: cascade.ask("gone")[1].headers.get("x-router-cohort") == "gone", "the cohort is back")


def test_no_error_was_logged(cascade: Cascade) -> None:
    """The router logged no error in any of the tests above."""
    logged = cascade.stack.log("router.log")
    assert "Traceback" not in logged and "ERROR" not in logged, logged[-2000:]


class TestKilledVerifier:
    """Last in this module, because the server is killed and not started again."""

    def test_what_is_in_flight_passes_unjudged(self, cascade: Cascade) -> None:
        """At the kill some streams are held, some are released and some have not begun. All arrive complete."""
        flights = []
        for cohort in ("early", "buffer", "record", "plain"):
            for stream in (False, True):
                for small in ("gated", "gated_midway", "gated_refusal"):
                    flights.append((cohort, small, stream, *self._fly(cascade, cohort, stream, small)))
        assert cascade.stack.router is not None
        os.kill(cascade.stack.router.pid, 9)
        cascade.stack.router.wait(10)
        for _, small, _, request_id, future in flights:
            cascade.upstreams.release(request_id)
            _, wire, reading = future.result(60)
            assert (wire.status, reading.problems) == (200, [])
            assert wire.body == cascade.sent(request_id, "small"), small
            assert [r.tier for r in cascade.upstreams.attempts(request_id)] == ["small"]
            assert "x-cascade-verdict" not in wire.headers

    def test_envoy_lives_and_the_default_tier_serves(self, cascade: Cascade) -> None:
        """No answer is judged."""
        request_id, _, reading = cascade.ask("early", True)
        assert (reading.problems, reading.text) == ([], text_of("large", request_id, 6))
        assert cascade.stack.envoy is not None and cascade.stack.envoy.poll() is None

    @staticmethod
    def _fly(cascade: Cascade, cohort: str, stream: bool, small: str) -> Any:
        request_id = new_id()
        body = body_of(CHAT, cascade.prompts[cohort], stream, {"id": request_id, "small": small, "words": 20})

        def one() -> Any:
            headers = {"authorization": request_id}
            wire = asyncio.run(post(cascade.stack.port, CHAT, body, headers))
            return request_id, wire, read(wire, CHAT, stream)

        pool = concurrent.futures.ThreadPoolExecutor(1)
        future = pool.submit(one)
        pool.shutdown(wait=False)
        eventually(lambda: cascade.upstreams.attempts(request_id), "the request is upstream")
        if small == "gated_midway":
            eventually(lambda: cascade.upstreams.sent[request_id, "small"][0], "half of the answer is sent")
        return request_id, future
