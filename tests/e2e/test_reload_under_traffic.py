"""The intents are edited while requests flow. New settings serve, bad ones do not, and no client notices."""

import os
import re
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from extproc.config.compile import utterances_digest
from extproc.config.load import load_config
from extproc.demo.sample_upstream import SampleUpstreams
from extproc.demo.stack import Stack
from extproc.encoder.protocols import Encoder
from extproc.routing.centroid_file import CENTROIDS_FILE, Header, Matcher, encode_centroids
from tests.e2e.traffic import (
    EXTRACT,
    LEGAL,
    MODELS,
    PROVE,
    Flow,
    arrived,
    ask,
    eventually,
    small_intent,
    write_small_intents,
)


@pytest.fixture(scope="module")
def mounted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack whose intents are mounted like a ConfigMap in Kubernetes: links to ..data/, which is also a link."""
    root = tmp_path_factory.mktemp("mounted")
    with SampleUpstreams(MODELS) as upstreams:
        stack = Stack(write_small_intents(root / "source"), root, upstreams)
        dated = stack.intents / "..2026_11_22_04_00_00.1"
        dated.mkdir()
        (stack.intents / "..data").symlink_to(dated.name)
        for path in list(stack.intents.glob("*.yaml")):
            path.rename(dated / path.name)
            path.symlink_to(f"..data/{path.name}")
        try:
            stack.start_router()
            stack.start_envoy()
            yield stack
        finally:
            stack.stop()


def _write(stack: Stack, name: str, text: str) -> None:
    """Edit like an editor that writes in place."""
    (stack.intents / name).write_text(text)


def _rename(stack: Stack, name: str, text: str) -> None:
    """Edit like an editor that writes a new file and renames it."""
    beside = stack.folder / f"{name}.new"
    beside.write_text(text)
    os.replace(beside, stack.intents / name)


def _swap(stack: Stack, name: str, text: str) -> None:
    """Edit like the kubelet: a new dated folder, and one atomic change of the link to it."""
    old = (stack.intents / "..data").resolve()
    new = stack.intents / f"{old.name}x"
    new.mkdir()
    for path in old.iterdir():
        (new / path.name).write_text(text if path.name == name else path.read_text())
    link = stack.intents / "..data_tmp"
    link.symlink_to(new.name)
    os.replace(link, stack.intents / "..data")
    for path in old.iterdir():
        path.unlink()
    old.rmdir()


_Edit = Callable[[Stack, str, str], None]


@pytest.mark.parametrize(
    ("edit", "intent", "prompt", "tier"),
    [(_swap, "compliance", LEGAL, "large"), (_write, "math_reasoning", PROVE, "small"),
     (_rename, "extraction", EXTRACT, "frontier")],
    ids=["ConfigMap swap", "plain write", "atomic rename"],
)  # fmt: skip
def test_an_edit_retargets_the_cohort_under_traffic(
    mounted: Stack, edit: _Edit, intent: str, prompt: str, tier: str
) -> None:
    """For every way to edit the file, the cohort moves to its new tier, and all requests get 200."""
    assert ask(mounted.port, prompt).said["x-router-tier"] != tier
    with Flow(mounted.port, prompt) as flow:
        flow.flows_on()
        edit(mounted, f"{intent}.yaml", small_intent(intent, f"tier: {tier}\nreasoning: off\nrisk: low"))
        eventually(lambda: flow.answers[-1].said.get("x-router-tier") == tier, f"{intent} moves to {tier}")
        flow.flows_on()
    assert flow.failures() == []
    answer = ask(mounted.port, prompt)
    assert answer.said == {"x-router-cohort": intent, "x-router-tier": tier, "x-router-reason": "matched"}
    assert arrived(mounted).tier == tier
    assert "Traceback" not in mounted.log("router.log")


def test_a_bad_edit_is_reported_and_the_last_good_revision_serves_on(mounted: Stack) -> None:
    """The log names file, line and remedy. Routing continues as before, and the repaired file is taken."""
    was = ask(mounted.port, PROVE).said
    before = len(mounted.log("router.log"))
    bad = small_intent("math_reasoning", "tier: large\nreasonning: on")
    with Flow(mounted.port, PROVE) as flow:
        _rename(mounted, "math_reasoning.yaml", bad)
        logged = eventually(
            lambda: (
                (log := mounted.log("router.log")[before:]).endswith("\n") and "math_reasoning.yaml:" in log and log
            ),
            "the refusal is logged",
        )
        flow.flows_on()
        assert re.search(r"reload refused, revision [0-9a-f]{12} keeps serving", str(logged))
        assert "math_reasoning.yaml:3: unknown key `reasonning`: did you mean `reasoning`?" in str(logged)
        assert ask(mounted.port, PROVE).said == was
        _rename(mounted, "math_reasoning.yaml", small_intent("math_reasoning", "tier: frontier\nreasoning: on"))
        eventually(lambda: flow.answers[-1].said.get("x-router-tier") == "frontier", "the mended file is taken")
    assert flow.failures() == []


@pytest.mark.parametrize(
    "broken",
    [b"", b"\xff\xfe\x00", b"intent: [", b"- a\n- b\n", b"{{{{", b"a: &a [*a]\n"],
    ids=["empty", "binary", "unclosed", "a list", "braces", "alias"],
)
def test_no_broken_file_stops_the_router(mounted: Stack, broken: bytes) -> None:
    """A broken file is refused by name, and routing continues. Without the file, the log has no error."""
    path = mounted.intents / "broken.yaml"
    before = len(mounted.log("router.log"))
    try:
        path.write_bytes(broken)
        logged = eventually(
            lambda: "broken.yaml:" in (log := mounted.log("router.log")[before:]) and log, "the refusal is logged"
        )
        assert "reload refused" in str(logged) and "Traceback" not in str(logged)
        assert ask(mounted.port, EXTRACT).said["x-router-cohort"] == "extraction"
    finally:
        path.unlink()


def test_fitted_centroids_are_taken_up_and_a_damaged_file_is_not(mounted: Stack, encoder: Encoder) -> None:
    """They serve while their file exists. A damaged file leaves the last good revision. No request fails."""
    config = load_config(mounted.intents)
    rows = {intent.intent: encoder.encode(intent.utterances) for intent in config.intents}
    names = list(rows)
    header = Header(
        "fitted", "2026-11-22", config.policy.encoder.name, utterances_digest(config), "f1f958a82ea0", 12, 0, 0.3,
        {name: len(some) for name, some in rows.items()},
    )  # fmt: skip
    # Each cohort has the centroids of the next one, so every decision changes.
    turned = dict(zip(names, [rows[name] for name in names[1:] + names[:1]], strict=True))
    raw = encode_centroids(header, Matcher(turned), dict.fromkeys(names, 0.05), np.concatenate(list(rows.values())))
    was = ask(mounted.port, EXTRACT).said["x-router-cohort"]
    before = len(mounted.log("router.log"))
    with Flow(mounted.port, EXTRACT) as flow:
        flow.flows_on()
        (mounted.folder / "new").write_bytes(raw)
        os.replace(mounted.folder / "new", mounted.intents / CENTROIDS_FILE)
        now = names[names.index(was) - 1]
        eventually(lambda: flow.answers[-1].said.get("x-router-cohort") == now, "they serve")
        (mounted.folder / "new").write_bytes(raw[:-1])
        os.replace(mounted.folder / "new", mounted.intents / CENTROIDS_FILE)
        eventually(
            lambda: "centroids.safetensors:1: is not a centroid file" in mounted.log("router.log")[before:],
            "it is refused",
        )
        flow.flows_on()
        assert flow.answers[-1].said["x-router-cohort"] == now
        (mounted.intents / CENTROIDS_FILE).unlink()
        eventually(lambda: flow.answers[-1].said.get("x-router-cohort") == was, "the utterances serve again")
    assert flow.failures() == []
    assert "Traceback" not in mounted.log("router.log")


def test_a_removed_policy_is_refused(mounted: Stack) -> None:
    """Without policy.yaml the last good revision stays active. When the file is back, everything is as before."""
    path = mounted.intents / "policy.yaml"
    before = len(mounted.log("router.log"))
    away = mounted.folder / "policy.away"
    was = ask(mounted.port, EXTRACT).said
    os.replace(path, away)
    try:
        eventually(lambda: "policy.yaml:1: not found" in mounted.log("router.log")[before:], "it is missed")
        assert ask(mounted.port, EXTRACT).said == was
    finally:
        os.replace(away, path)
