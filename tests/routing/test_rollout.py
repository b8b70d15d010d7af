"""A candidate decides about its share of the conversations, or beside the policy that serves."""

import asyncio
import json
import math
from pathlib import Path
from typing import Any

import msgspec
import pytest

from extproc.config.compile import compile_snapshot
from extproc.config.load import load_config
from extproc.contract.names import Namespace
from extproc.routing.record import asker_record, envoy_metadata
from extproc.routing.rollout import candidate_shares, is_in_share
from extproc.routing.routed import Routed
from extproc.routing.router import Router
from extproc.routing.snapshot import Rollout, Snapshot
from extproc.settings import Candidate
from tests.routing.test_exchange import WordEmbedder

ASK = "Send my last invoice again"
REVISION = "candidate-0123456789ab"


@pytest.fixture(scope="module")
def snapshots(words) -> tuple[Snapshot, Snapshot]:
    """The folder configs/good, and a candidate that sends billing to the larger tier."""
    config = load_config(Path(__file__).parents[1] / "configs/good")
    intents = tuple(msgspec.structs.replace(intent, floor=0.1) for intent in config.intents)
    serving = msgspec.structs.replace(config, intents=intents)
    moved = tuple(msgspec.structs.replace(intent, tier="large") for intent in intents)
    candidate = msgspec.structs.replace(config, intents=moved, revision=REVISION)
    return compile_snapshot(serving, words), compile_snapshot(candidate, words)


def router_with(snapshots: tuple[Snapshot, Snapshot], words: Any, **spec: Any) -> Router:
    serving, candidate = snapshots
    rollout = Rollout(Candidate("next", **spec), "/next", snapshot=candidate)
    return Router(msgspec.structs.replace(serving, rollout=rollout), WordEmbedder(words))


def route(router: Router, conversation: str, ask: str = ASK, model: str = "auto") -> Routed:
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": ask}]}).encode()
    return asyncio.run(router.route(body, {":path": "/v1/chat/completions", "session-id": conversation}))


def test_a_share_of_the_conversations_goes_to_the_candidate_and_stays_there(snapshots, words):
    router, n = router_with(snapshots, words, percent=20), 1000
    routed = [route(router, f"c{i}") for i in range(n)]
    chosen = [r.record.revision == REVISION for r in routed]
    assert abs(sum(chosen) - 0.2 * n) <= 5 * math.sqrt(n * 0.2 * 0.8)  # 1 in 1.7 million by chance
    tiers = {(r.record.revision == REVISION, r.decision.tier.name) for r in routed}
    assert tiers == {(True, "large"), (False, "small")}
    assert [route(router, f"c{i}").record.revision == REVISION for i in range(50)] == chosen[:50]


def test_replicas_agree_and_a_larger_share_keeps_its_conversations():
    names = [f"c{i}" for i in range(500)]
    small, large = ({name for name in names if is_in_share(name, REVISION, share)} for share in (0.1, 0.3))
    assert small < large
    assert {name for name in names if is_in_share(name, "candidate-ba9876543210", 0.1)} != small
    assert not any(is_in_share(name, REVISION, 0) for name in names)
    assert all(is_in_share(name, REVISION, 1) for name in names)


@pytest.mark.parametrize(("share", "tier"), [(0.0, "small"), (1.0, "large")])
def test_a_verdict_takes_the_place_of_the_share(snapshots, words, share, tier):
    router = router_with(snapshots, words, percent=50)
    router.shares = {REVISION: share}
    assert {route(router, f"c{i}").decision.tier.name for i in range(30)} == {tier}
    assert candidate_shares(router.snapshot.rollout, router.shares) == {REVISION: share}
    router.shares = {"candidate-of-before": share}
    assert {route(router, f"c{i}").decision.tier.name for i in range(30)} == {"small", "large"}


def test_a_candidate_beside_is_only_recorded(snapshots, words):
    router = router_with(snapshots, words, shadow=True, percent=100)
    routed = route(router, "c")
    metadata = envoy_metadata(
        routed.record, routed.decision, routed.mutation, routed.request, asker_record(routed.snapshot, None, {})
    )[Namespace.DECISION]
    assert (metadata["tier"], metadata["cohort"]) == ("small", "billing")
    assert metadata["revision"] == snapshots[0].revision
    assert (metadata["candidate_tier"], metadata["candidate_cohort"]) == ("large", "billing")
    assert isinstance(router.embedder, WordEmbedder)
    assert router.embedder.asked == [(ASK, 0.2)], "both decisions use one vector"
    assert candidate_shares(router.snapshot.rollout, {}) == {}


def test_a_model_that_the_client_names_has_no_decision_beside(snapshots, words):
    router = router_with(snapshots, words, shadow=True)
    assert route(router, "c", model="qwen3-8b").record.candidate_tier is None


def test_without_a_candidate_or_with_a_broken_one_the_policy_decides(snapshots, words):
    serving, _ = snapshots
    broken = msgspec.structs.replace(serving, rollout=Rollout(Candidate("next", percent=100), "/next"))
    for snapshot in (serving, broken):
        assert route(Router(snapshot, WordEmbedder(words)), "c").decision.tier.name == "small"
