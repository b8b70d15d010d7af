"""The file of a fit: the same utterances are fitted once, and a lost or damaged file costs only time."""

import inspect
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

from extproc.config import fit_file
from extproc.config.compile import compile_snapshot
from extproc.config.fit_file import fit_once
from extproc.config.load import load_config
from extproc.encoder.batcher import RememberingEncoder
from extproc.encoder.prepared_sentences import PreparedSentences
from extproc.encoder.protocols import Vectors, unit
from extproc.encoder.vector_file import folder_of, storing
from extproc.routing import head
from extproc.routing.centroids import Fitted, fit_centroids
from extproc.routing.head import Head, fit_head

GOOD = Path(__file__).parents[1] / "configs/good"


def rows(seed: int) -> Vectors:
    return unit(np.random.default_rng(seed).standard_normal((9, 6), dtype=np.float32))


TWO, OUTSIDE = {"code": rows(1), "faq": rows(2)}, rows(3)


def plain(result: tuple[dict[str, Fitted], Head]) -> object:
    """A result as values that can be compared."""
    cohorts, chances = result
    values = {name: tuple(map(np.ndarray.tolist, (c.centroid, c.mean))) for name, c in cohorts.items()}
    floors = {name: (c.floor, c.back) for name, c in cohorts.items()}
    return values, floors, chances.weights.tolist(), chances.bias.tolist(), [type(f) for f, _ in floors.values()]


FITTED = plain((fit_centroids(TWO), fit_head(TWO, OUTSIDE)))


def forbid(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on, fitting is an error."""
    monkeypatch.setattr(fit_file, "fit_centroids", None)
    monkeypatch.setattr(fit_file, "fit_head", None)


def test_a_later_process_reads_the_same_values(tmp_path, monkeypatch):
    assert plain(fit_once(TWO, OUTSIDE, tmp_path)) == FITTED
    forbid(monkeypatch)
    assert plain(fit_once(TWO, OUTSIDE, tmp_path)) == FITTED
    [file] = tmp_path.iterdir()
    assert file.stat().st_mode & 0o777 == 0o644, "another user may serve"


def changed_row() -> dict[str, Vectors]:
    row = TWO["faq"].copy()
    row[4, 2] += np.float32(1e-6)
    return TWO | {"faq": row}


@pytest.mark.parametrize(
    ("utterances", "background"),
    [
        (changed_row(), OUTSIDE),
        (TWO, OUTSIDE[1:]),
        (TWO, None),
        ({"faq": TWO["faq"], "code": TWO["code"]}, OUTSIDE),
        ({"code": TWO["faq"], "faq": TWO["code"]}, OUTSIDE),
        ({"code": np.vstack([TWO["code"], TWO["faq"][:1]]), "faq": TWO["faq"][1:]}, OUTSIDE),
    ],
)
def test_any_other_input_is_fitted(tmp_path, monkeypatch, utterances, background):
    """One number, the order of the cohorts, their names, or a text that moves to its neighbour."""
    fit_once(TWO, OUTSIDE, tmp_path)
    expected = plain((fit_centroids(utterances), fit_head(utterances, background)))
    assert plain(fit_once(utterances, background, tmp_path)) == expected
    forbid(monkeypatch)
    assert plain(fit_once(utterances, background, tmp_path)) == expected


def test_other_code_fits_again(tmp_path, monkeypatch):
    """An upgrade, or a change during development, does not use what the old code has fitted."""
    fit_once(TWO, OUTSIDE, tmp_path)
    source = inspect.getsource
    monkeypatch.setattr(inspect, "getsource", lambda module: source(module) + "#" * (module is head))
    fit_once(TWO, OUTSIDE, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "other arrays", "folder"])
def test_a_damaged_file_is_not_used(tmp_path, damage):
    fit_once(TWO, OUTSIDE, tmp_path)
    [file] = tmp_path.iterdir()
    raw = file.read_bytes()
    match damage:
        case "cut":
            file.write_bytes(raw[: len(raw) // 2])
        case "flipped":  # in the last array
            at = raw.rindex(b"PK\x03\x04") + 200
            file.write_bytes(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])
        case "empty":
            file.write_bytes(b"")
        case "other arrays":
            with file.open("wb") as new:
                np.savez(new, centroids=TWO["code"])
        case "folder":
            file.unlink()
            file.mkdir()
    for _ in range(2):
        assert plain(fit_once(TWO, OUTSIDE, tmp_path)) == FITTED


def test_a_folder_that_cannot_be_written_costs_only_time(tmp_path, caplog):
    with caplog.at_level("INFO"):
        assert plain(fit_once(TWO, OUTSIDE, tmp_path / "missing")) == FITTED
    assert "each start repeats it" in caplog.text
    assert plain(fit_once(TWO, OUTSIDE, None)) == FITTED


def test_the_newest_files_are_kept(tmp_path, monkeypatch):
    """An edit leaves one file more, and a folder of many edits stays small."""
    monkeypatch.setattr(fit_file, "_MOST_FILES", 2)
    kinds = [OUTSIDE, OUTSIDE[1:], OUTSIDE[2:]]
    for second, background in enumerate(kinds):
        fit_once(TWO, background, tmp_path)
        for file in tmp_path.iterdir():
            if file.stat().st_mtime > 1e6:
                os.utime(file, (second, second))
    forbid(monkeypatch)
    for background in kinds[1:]:
        fit_once(TWO, background, tmp_path)
    with pytest.raises(TypeError):
        fit_once(TWO, kinds[0], tmp_path)


def test_only_a_prepared_encoder_has_a_folder(words, encoder, tmp_path, monkeypatch):
    """The folder is found through the wrappers that serving uses, and a snapshot is fitted there once."""
    assert folder_of(words) is None and folder_of(RememberingEncoder(words)) is None
    if not isinstance(encoder.sentences, PreparedSentences):
        pytest.skip("another back end was chosen here, or `extproc prepare` was not run")
    monkeypatch.setattr(encoder.sentences, "vectors", tmp_path / "utterances.npz")
    assert folder_of(encoder) == folder_of(storing(encoder)) == tmp_path
    assert folder_of(RememberingEncoder(storing(encoder))) == tmp_path
    config = load_config(GOOD)
    first = compile_snapshot(config, RememberingEncoder(storing(encoder)))
    forbid(monkeypatch)
    again = compile_snapshot(config, RememberingEncoder(storing(encoder)))
    assert first.index.head is not None and again.index.head is not None
    assert np.array_equal(first.index.head.weights, again.index.head.weights)
    assert msgspec.to_builtins(first.policy) == msgspec.to_builtins(again.policy)


def test_serving_without_a_fit_imports_no_optimiser():
    """It is half of the memory of all imports, and a third of their time."""
    code = "import sys, extproc.serving.server, extproc.cli.worker; sys.exit('scipy.optimize' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
