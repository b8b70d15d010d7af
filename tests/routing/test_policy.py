"""The policy: models that may be replaced, fallbacks, clusters of tiers."""

import msgspec
import pytest

from extproc.contract.words import Reason
from extproc.routing.policy import Policy, may_retarget
from extproc.settings import Price, Tier

SMALL = Tier("small", "qwen3-8b", "http://small:80", 1_000, Price(1, 2))


@pytest.mark.parametrize(
    ("model", "may"),
    [("auto", True), ("gpt-4o-mini", True), ("gpt-4", True), ("gpt-5", False), ("Auto", False), ("", False)],
)
def test_only_listed_models_may_be_replaced(model, may):
    """By name or by pattern. Upper and lower case differ."""
    policy = Policy((SMALL,), "small", {}, retarget=("auto", "gpt-4*"))
    assert may_retarget(policy, model) is may


# Reasons


def test_fallbacks_are_the_reasons_without_a_decision():
    """Dashboards count exactly these."""
    assert {reason.value for reason in Reason if reason.is_fallback} == {
        "out_of_scope",
        "ambiguous",
        "abstained",
        "no_text",
        "unreadable",
        "deadline",
        "encoder_error",
        "app_off",
    }


def test_a_tiers_cluster_is_its_name_unless_another_is_set():
    """Envoy may use another name for the upstream."""
    assert [SMALL.cluster_name, msgspec.structs.replace(SMALL, cluster="pool-a").cluster_name] == [
        "small",
        "pool-a",
    ]
