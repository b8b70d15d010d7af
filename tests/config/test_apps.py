"""Applications: their files are read and compiled beside the policy. A mistake in one does not stop another."""

import logging
import shutil
from pathlib import Path

import msgspec
import pytest

from extproc.cli.main import main
from extproc.config import reload as reload_module
from extproc.config.app_checks import check_apps
from extproc.config.candidate import compile_all
from extproc.config.changes import changes_between, describe
from extproc.config.load import Config, load_config
from extproc.config.residency import describe_refusals, refused_headers
from extproc.envoy.bootstrap import sample_of
from extproc.routing.budget import nano
from extproc.routing.snapshot import AUTHORITY, Snapshot, host_of
from extproc.settings import App

CONFIGS = Path(__file__).parents[1] / "configs"
APPS = """
apps:
  support:
    hosts: ["*.support.example"]
    headers: {x-app: "sup*"}
    intents: support
    default_tier: {chat: small}
    budget: {usd_month: 5, over: small, per: team}
    labels: {team: care, env: prod}
  plain:
    hosts: [plain.example]
    tiers: [small]
    default_tier: small
"""
REFUNDS = """intent: refunds
tier: small
utterances:
  - money back for my order
  - return the shoes please
  - refund never arrived
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = shutil.copytree(CONFIGS / "good", tmp_path / "intents")
    with (folder / "policy.yaml").open("a") as policy:
        policy.write(APPS)
    (folder / "support").mkdir()
    (folder / "support" / "refunds.yaml").write_text(REFUNDS)
    return folder


def compiled(folder: Path, words: object, before: Snapshot | None = None) -> Snapshot:
    return compile_all(load_config(folder), folder, words, before)  # type: ignore[arg-type]


SUPPORT = {AUTHORITY: "EU.support.example:8443", "x-app": "support"}


def test_the_first_app_that_a_request_matches_decides(folder, words):
    snapshot = compiled(folder, words)
    chat, messages = ({**SUPPORT, ":path": f"/v1/{path}"} for path in ("chat/completions", "messages"))
    assert [*snapshot.of_request(chat).policy.cohorts] == ["refunds"]
    assert snapshot.of_request(chat).policy.default_tier == "small"
    assert snapshot.of_request(messages).policy.default_tier == snapshot.policy.default_tier
    plain = snapshot.of_request({AUTHORITY: "plain.example"})
    assert (plain.app, plain.policy.only, plain.policy.default_tier) == ("plain", ("small",), "small")
    assert plain.policy.cohorts == snapshot.policy.cohorts
    for headers in ({}, {AUTHORITY: "support.example"}, {**SUPPORT, "x-app": "other"}):
        assert snapshot.of_request(headers) is snapshot
    assert snapshot.of_app("plain").app == "plain" and snapshot.of_app("gone") is snapshot
    assert snapshot.app_labels["support"] == {"team": "care", "env": "prod"}
    assert [(spec.name, spec.limit) for spec in snapshot.all_budgets] == [("team/care", nano(5))]


@pytest.mark.parametrize(
    ("authority", "host"),
    [
        ("A.example", "a.example"),
        ("a.example:80", "a.example"),
        ("a.example.", "a.example"),
        ("a.example.:80", "a.example"),
        ("[::1]:80", "[::1]"),
        ("[::1]", "[::1]"),
        ("", ""),
    ],
)
def test_a_host_has_no_port(authority, host):
    assert host_of(authority) == host


def test_the_revision_depends_on_the_files_of_apps(folder):
    before = load_config(folder).revision
    (folder / "support" / "refunds.yaml").write_text(REFUNDS.replace("please", "now"))
    assert load_config(folder).revision != before


def test_an_app_with_a_mistake_keeps_what_it_had_and_the_others_go_on(folder, words, caplog):
    before = compiled(folder, words)
    (folder / "support" / "refunds.yaml").write_text(REFUNDS.replace("tier: small", "tier: smal"))
    with caplog.at_level(logging.ERROR, "extproc"):
        after = compiled(folder, words, before)
    assert "app support keeps its earlier intents" in caplog.text
    assert "support/refunds.yaml:2: no tier is called `smal`: did you mean `small`?" in caplog.text
    support = after.of_request(SUPPORT)
    assert support.off is None and [*support.policy.cohorts] == ["refunds"]
    assert [bool(app.problems) for app in after.apps] == [True, False]
    assert compiled(folder, words).of_request(SUPPORT).off == "open"


@pytest.mark.parametrize("key", ["only: [large]", "tier_floor: large", "risk: high"])
def test_an_app_whose_broken_files_may_confine_requests_is_closed(folder, words, key):
    (folder / "support" / "refunds.yaml").write_text(f"{REFUNDS}{key}\nunknown: 1\n")
    snapshot = compiled(folder, words)
    assert (snapshot.off, snapshot.of_request(SUPPORT).off) == (None, "closed")


def test_a_folder_that_is_missing_closes_the_app(folder, words):
    shutil.rmtree(folder / "support")
    assert compiled(folder, words).of_request(SUPPORT).off == "closed"


def test_check_reports_the_mistakes_of_every_app(folder, capsys, monkeypatch, words):
    monkeypatch.setattr("extproc.encoder.backends.load_encoder", lambda *_: words)
    assert main(["check", str(folder)]) == 0
    said = capsys.readouterr().out
    assert "app support: 1 cohort in support, team care" in said
    assert "app plain: 2 cohorts of the policy, tiers small" in said
    (folder / "support" / "refunds.yaml").write_text(REFUNDS.replace("tier: small", "tier: smal"))
    (folder / "support" / "policy.yaml").write_text("version: 1\n")
    assert main(["check", str(folder)]) == 2
    said = capsys.readouterr().err
    assert "support/refunds.yaml:2: no tier is called `smal`" in said
    assert ": app `support`: an app cannot have a policy" in said


def test_envoy_refuses_undecided_requests_of_apps_that_the_default_tier_may_not_get(folder):
    config = load_config(folder)
    assert refused_headers(config) == [{AUTHORITY: "plain.example"}]
    assert "app plain" in (describe_refusals(config) or "")
    (folder / "support" / "refunds.yaml").write_text(f"{REFUNDS}only: [small]\n")
    confined = load_config(folder)
    assert {AUTHORITY: "*.support.example", "x-app": "sup*"} in (refused_headers(confined) or [])
    shadow: Config = msgspec.structs.replace(
        confined, policy=msgspec.structs.replace(confined.policy, mode="shadow")
    )
    assert refused_headers(shadow) == []


def test_an_edit_of_an_apps_folder_is_seen_and_logged(folder, words):
    snapshot, before = compiled(folder, words), load_config(folder)
    assert reload_module._look_at_others(snapshot) == reload_module._other_signatures(snapshot)
    (folder / "support" / "refunds.yaml").write_text(f"{REFUNDS}only: [small]\n")
    assert reload_module._look_at_others(snapshot) != reload_module._other_signatures(snapshot)
    changes = changes_between(before, load_config(folder), sample_of)
    assert describe(changes) == "apps.support: its intents changed; needs Envoy: policy.yaml:25 intents"
    before = load_config(folder)
    (folder / "support" / "_background.yaml").write_text(f"background: [{', '.join('abcdefghijklmnopqrst')}]\n")
    changes = changes_between(before, load_config(folder), sample_of)
    assert describe(changes) == "apps.support: its background or its fitted files changed"


def test_a_tier_that_the_app_may_not_use_is_a_mistake_of_its_intent(folder):
    policy = (
        (folder / "policy.yaml")
        .read_text()
        .replace("    intents: support\n", "    intents: support\n    tiers: [large]\n")
    )
    (folder / "policy.yaml").write_text(policy.replace("{chat: small}", "large"))
    [problem] = load_config(folder).broken["support"].problems
    assert str(problem) == (
        "support/refunds.yaml:2: tier `small` is not in `tiers` of the app: add it there, or name one of them"
    )


@pytest.mark.parametrize(
    ("above", "below", "gets_all"),
    [
        ("team-*", "team-a", True),
        ("team-*", "team-?", True),
        ("team-?", "team-?", True),
        ("team-?", "team-*", False),  # team-abc is of the one below
        ("team-[*]", "team-*", False),
    ],
)
def test_an_app_above_gets_all_requests_only_if_its_pattern_is_wider(above: str, below: str, gets_all: bool):
    """A policy is not refused in doubt."""
    apps = {"first": App(headers={"x-team": above}), "second": App(headers={"x-team": below})}
    policy = msgspec.structs.replace(load_config(CONFIGS / "good").policy, apps=apps, budget=None)
    findings = [what for _, _, what in check_apps(policy)]
    assert findings == ["app `first` above gets all of its requests: write `second` first"] * gets_all
