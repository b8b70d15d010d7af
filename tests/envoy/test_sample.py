"""The rendered sample in envoy/ is what the code renders today."""

from pathlib import Path

from extproc.config.load import load_config
from extproc.envoy.bootstrap import render_envoy

ROOT = Path(__file__).parents[2]


def test_the_sample_bootstrap_is_up_to_date() -> None:
    """`make envoy` has been run since the tiers or the rendering changed; its first line names the revision."""
    rendered = render_envoy(load_config(ROOT / "intents"), "0.0.0.0:10000", ["127.0.0.1:50051"], None, None)
    sample = (ROOT / "envoy" / "sample.yaml").read_text()
    assert sample.splitlines()[1:] == rendered.splitlines()[1:]
