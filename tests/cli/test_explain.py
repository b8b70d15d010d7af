"""What `extproc explain` says about a decision."""

import asyncio
import shutil
from pathlib import Path

import msgspec
import pytest

from extproc.cli.explain import Explainer, _request_lines
from extproc.config.compile import compile_snapshot
from extproc.config.load import load_config
from extproc.encoder.batcher import Batcher
from extproc.routing.router import Router

GOOD = Path(__file__).parents[1] / "configs" / "good"
CHAT = {":path": "/v1/chat/completions"}


NO_TASK = "task      none: the ask only greets, thanks or agrees, so it is out of scope"
UNREAD = "language  not English, and the encoder reads nothing else: it is out of scope"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Send my last invoice again", []),
        ("请再次发送发票", [UNREAD]),
        ("Hello there", [NO_TASK]),
        ("你好", [NO_TASK]),
    ],
)
def test_a_text_that_is_not_matched_is_named(words, text, expected):
    """Otherwise a person would look for the reason in the similarities."""
    snapshot = msgspec.structs.replace(compile_snapshot(load_config(GOOD), words), english_only=True)
    body = msgspec.json.encode({"model": "auto", "messages": [{"role": "user", "content": text}]})
    routed = asyncio.run(Router(snapshot, Batcher(words)).route(body, CHAT))
    lines = list(_request_lines(routed, CHAT[":path"]))
    assert lines[1] == f"ask       {text!r} (last_user)"
    assert lines[2:] == expected


def test_the_default_tier_of_an_app_is_that_of_the_api(tmp_path, words, monkeypatch):
    """As for its requests, the path decides. A prompt is a request to Chat Completions."""
    folder = shutil.copytree(GOOD, tmp_path / "intents")
    with (folder / "policy.yaml").open("a") as policy:
        policy.write("apps:\n  support: {hosts: [support.example], default_tier: {messages: small}}\n")
    monkeypatch.setattr("extproc.cli.explain.load_encoder", lambda *_: words)
    explainer = Explainer(folder, "support")
    default_tiers = {
        path: explainer.of_prompt("Hello there", path).routed.decision.tier.name
        for path in ("/v1/chat/completions", "/v1/messages")
    }
    assert default_tiers == {"/v1/chat/completions": "large", "/v1/messages": "small"}
    assert "app       support" in explainer.of_prompt("Hello there").text
    with pytest.raises(ValueError, match=r"--app sales: no app of policy\.yaml has this name"):
        Explainer(folder, "sales")


def test_utterances_have_stored_vectors_and_asks_do_not(tmp_path, words, monkeypatch):
    """The encoder itself compiles, because it stores vectors. The one that remembers asks stores nothing."""
    shutil.copytree(GOOD, tmp_path / "next")
    for path in GOOD.glob("*.yaml"):
        shutil.copy(path, tmp_path / path.name)
    (tmp_path / "next" / "policy.yaml").unlink()
    with (tmp_path / "policy.yaml").open("a") as policy:
        policy.write("candidate: {dir: next}\n")
    compiling = []

    def compile_with(config, encoder):
        compiling.append(encoder)
        return compile_snapshot(config, encoder)

    monkeypatch.setattr("extproc.cli.explain.load_encoder", lambda model: words)
    for module in ("extproc.cli.explain", "extproc.config.candidate"):
        monkeypatch.setattr(f"{module}.compile_snapshot", compile_with)
    explainer = Explainer(tmp_path)
    assert explainer.candidate() is explainer.candidate() is not None
    assert compiling == [words, words]
    assert not explainer.is_stale()
    (tmp_path / "next" / "billing.yaml").unlink()
    assert explainer.is_stale()
