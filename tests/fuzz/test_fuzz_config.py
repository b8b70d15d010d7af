"""YAML that no operator would write: it is refused with the places of its mistakes, or read, and quickly."""

import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given

from extproc.config.load import Config, ConfigError, load_config
from extproc.envoy.bootstrap import render_envoy
from tests.fuzz.shapes import Writer, corpus, written

_GOOD = Path(__file__).parents[1] / "configs/good"
_TREES = {name: yaml.safe_load((_GOOD / name).read_text()) for name in ("policy.yaml", "billing.yaml")}
_ODD: tuple[Any, ...] = (
    None, True, 0, -1, 10**30, 1.5, float("nan"), float("inf"), "", "small", "large", "\x00", "a\nb", "tier[0].x",
        "`", "x" * 300,
    "h:1", "h:99999", "ünï:80", [], [[]], {}, {"": 1}, {"a": {"b": []}}, "complete", ["complete",
    {"min_chars": -1}],
    {"regex": "("}, {"json_schema": {"$ref": "#"}}, {"to": "human"}, {"to": ["large", {"tier": "x"}], "max": 0},
    {"budget_tokens": -5}, {"intents": ["cooking"], "headers": {"\r\n": "x"}}, b"\xff", 3 + 0j,
)  # fmt: skip


def _mutated(writer: Writer, value: Any) -> Any:
    """The same tree with some of its values, keys and items replaced, dropped, doubled or added."""
    if writer.rarely(12):
        return writer.one(_ODD)
    if isinstance(value, dict):
        kept = {key: _mutated(writer, item) for key, item in value.items() if not writer.rarely(25)}
        return kept | {writer.one(("floor", "accept", "escalate", "human", "judges", "timeouts", "stream",
            "encoder", "x")):
                       writer.one(_ODD)} if writer.rarely(4) else kept  # fmt: skip
    if isinstance(value, list):
        items = [_mutated(writer, item) for item in value]
        return items + items[-1:] if writer.rarely(8) else items
    return value


def _file(writer: Writer, name: str) -> bytes:
    tree = _mutated(writer, _TREES[name])
    raw = yaml.dump(tree, sort_keys=False, allow_unicode=writer.rarely(2)).encode("utf-8", "surrogatepass")
    if writer.rarely(3):
        raw = writer.damaged(raw)
    if writer.rarely(8):
        raw = raw.replace(b": ", writer.one((b": &a ", b": *a ", b": !!binary ", b": |\n  ", b":\t", b": {")), 1)
    return raw


def load(folder: Path) -> Config | None:
    """The configuration, if Envoy's can be rendered from it. None if it is refused with ConfigError."""
    try:
        config = load_config(folder)
    except ConfigError as error:
        assert error.problems and all(problem.line >= 1 and problem.what for problem in error.problems)
        str(error).encode("utf-8", "backslashreplace")
        return None
    yaml.load(render_envoy(config, "127.0.0.1:1", ["127.0.0.1:2"], None, None), yaml.CSafeLoader)
    return config


@given(policy=written(lambda w: _file(w, "policy.yaml")), intent=written(lambda w: _file(w, "billing.yaml")))
def test_any_file_is_read_or_refused_with_its_mistakes(
    tmp_path_factory: pytest.TempPathFactory, policy: bytes, intent: bytes
) -> None:
    """Values of every kind in every place, damaged text, anchors and tags."""
    folder = tmp_path_factory.getbasetemp() / "fuzzed"
    shutil.copytree(_GOOD, folder, dirs_exist_ok=True)
    good_policy = (_GOOD / "policy.yaml").read_bytes()
    for written_policy in (policy, good_policy):
        (folder / "policy.yaml").write_bytes(written_policy)
        (folder / "billing.yaml").write_bytes(intent)
        load(folder)


@pytest.mark.parametrize("name", corpus("config"))
@pytest.mark.parametrize("file", ["policy.yaml", "billing.yaml"])
def test_the_corpus_of_configurations(file: str, name: str, tmp_path: Path) -> None:
    """Each is refused, and quickly."""
    folder = Path(shutil.copytree(_GOOD, tmp_path / "intents"))
    (folder / file).write_bytes(corpus("config")[name])
    began = time.process_time()
    assert load(folder) is None
    assert time.process_time() - began < 5
