"""`failover` of a tier for Envoys before 1.40: rendered, or refused with its place in the YAML."""

from pathlib import Path

import pytest
import yaml

from extproc.config.load import load_config
from extproc.envoy.bootstrap import render_envoy
from extproc.envoy.unsupported import Cascade

_POLICY = """version: 1
default_tier: b
tiers:
  - {name: a, url: "http://a", model: a, context: 9, price: {input: 1, output: 1}}
  - name: b
    url: http://b
    model: b
    failover: [a, c]
    context: 9
    price: {input: 1, output: 1}
  - {name: c, url: "http://c", model: c, context: 9, price: {input: 1, output: 1}}
"""
_INTENT = "intent: faq\ntier: b\nutterances: [one text, another text, a third text]\n"


def clusters(folder: Path, cascade: Cascade, intent: str = "") -> set[str]:
    """The names of the clusters that are rendered."""
    (folder / "policy.yaml").write_text(_POLICY)
    (folder / "faq.yaml").write_text(_INTENT + intent)
    text = render_envoy(load_config(folder), "127.0.0.1:1", ["127.0.0.1:2"], None, None, cascade=cascade)
    return {cluster["name"] for cluster in yaml.safe_load(text)["static_resources"]["clusters"]}


def test_a_cluster_is_rendered_for_each_order_of_attempts(tmp_path: Path) -> None:
    """A tier of the list may be left out, if it cannot serve a request."""
    ladders = {name for name in clusters(tmp_path, "composite") if "+" in name}
    assert ladders >= {"a+b", "a+c", "b+a", "b+c", "b+a+c"}


def test_rungs_behind_their_own_failover_tiers_need_a_newer_envoy(tmp_path: Path) -> None:
    """A rejected answer of b would pass over a, to c."""
    with pytest.raises(ValueError, match=r"policy\.yaml:8: `failover` needs Envoy 1\.40 here, because rejected"):
        clusters(tmp_path, "composite", "accept: [no_refusal]\n")
    assert "retry:same" in clusters(tmp_path, "priority-group", "accept: [no_refusal]\n")


def test_without_repeated_attempts_there_is_no_failover(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"policy\.yaml:8: `failover` needs further attempts, which `--version 1\.36` does not"
    ):
        clusters(tmp_path, "none")
