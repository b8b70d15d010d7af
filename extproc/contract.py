"""The names that Envoy and we agree on; the README's contract table, as code."""

from collections.abc import Sequence
from typing import Any

# Dynamic metadata.
METADATA = "semantic_router"  # the decision record, and what the verifier adds to it
LADDER = "semantic_router.ladder"  # priority_groups: where each attempt goes
RUNGS = "semantic_router.rungs"  # attempts: what changes in the body from the second attempt on
FACTS = "semantic_router.facts"  # what the request asked for, for the verifier; never logged
ANSWER = "semantic_router.answer"  # the last rejected answer, in case that every rung above fails; never logged
LEDGER = "semantic_router.ledger"  # who asked, hashed; under each judged attempt's number, what it cost
USAGE = "envoy.ai.token_usage"  # typed, Envoy's own: the tokens of the answer that it passed on
# An attribute of the verifier's streams: the tier of this attempt, from its endpoint's metadata.
TIER_ATTRIBUTE = f"xds.upstream_host_metadata.filter_metadata['{METADATA}']['tier']"
TIER_TAG = "tier"  # of the access log: the tier that served
DECISION_LOG = 1  # version of the lines that Envoy logs of every exchange: docs/decision-log.schema.json
# Headers.
CLUSTER_HEADER = "x-router-cluster"
VERDICT_HEADER = "x-cascade-verdict"
REASON_HEADER = "x-cascade-reason"

# What a client may send; Envoy answers 413 above it. Of a FULL_DUPLEX_STREAMED body, which is ours to hold, what
# is longer goes on unrouted.
MAX_BODY_BYTES = 8 * 1024 * 1024


def ladder_of(clusters: Sequence[str]) -> dict[str, Any]:
    """What stands under LADDER: attempt n goes to the nth of these clusters, and past their end to the last."""
    groups = [
        {"name": f"rung{i}", "clusters": [{"cluster_name": cluster, "weight": 1}]}
        for i, cluster in enumerate(clusters)
    ]
    return {"priority_groups": groups}
