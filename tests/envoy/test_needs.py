"""A chain has the filters that the settings need, in every form."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from extproc.config.changes import changes_between, describe
from extproc.config.load import Config, load_config
from extproc.envoy.bootstrap import sample_of, static_resources
from extproc.envoy.unsupported import Cascade

GOOD = Path(__file__).parents[1] / "configs" / "good"
# The filters that only judged answers need.
JUDGING = {"rescue", "verifier_body", "verifier_stream"}
ACCEPT = "accept: [{min_chars: 10}]\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One intent, without rules for its answers."""
    copied = Path(shutil.copytree(GOOD, tmp_path / "intents"))
    for path in copied.glob("*.yaml"):
        kept = [line for line in path.read_text().splitlines() if not line.startswith("accept:")]
        path.write_text("\n".join(kept) + "\n")
    return copied


def filters_of(config: Config, cascade: Cascade = "priority-group") -> set[str]:
    """The names of all HTTP filters, of the listener and of the clusters."""
    names: set[str] = set()

    def collect(part: Any) -> None:
        if isinstance(part, list):
            for item in part:
                collect(item)
        elif isinstance(part, dict):
            names.update(entry["name"] for entry in part.get("http_filters", ()))
            for item in part.values():
                collect(item)

    collect(static_resources(config, "0.0.0.0:10000", ["127.0.0.1:50051"], None, None, cascade))
    return names


@pytest.mark.parametrize("cascade", ["priority-group", "composite", "priorities"])
def test_without_rules_for_answers_no_chain_has_a_filter_for_them(folder: Path, cascade: Cascade) -> None:
    without = filters_of(load_config(folder), cascade)
    assert not JUDGING & without
    with (folder / "billing.yaml").open("a") as file:
        file.write(ACCEPT)
    judged = filters_of(load_config(folder), cascade)
    assert judged - without == JUDGING and without < judged


def test_a_candidate_may_judge(folder: Path) -> None:
    """Its intents are edited and promoted without an update of Envoy."""
    shutil.copytree(folder, folder.parent / "candidate")
    with (folder / "policy.yaml").open("a") as file:
        file.write("candidate: {dir: ../candidate, percent: 10}\n")
    assert filters_of(load_config(folder)) >= JUDGING


def test_the_first_rules_for_answers_need_an_update_of_envoy(folder: Path) -> None:
    """Until then, answers pass unjudged. Further rules, and changed ones, need none."""
    first = load_config(folder)
    with (folder / "billing.yaml").open("a") as file:
        file.write(ACCEPT)
    second = load_config(folder)
    line = len((folder / "billing.yaml").read_text().splitlines())
    said = describe(changes_between(first, second, sample_of))
    assert said.endswith(f"; needs Envoy: billing.yaml:{line} accept")
    (folder / "billing.yaml").write_text((folder / "billing.yaml").read_text().replace("10", "20"))
    assert "needs Envoy" not in describe(changes_between(second, load_config(folder), sample_of))
