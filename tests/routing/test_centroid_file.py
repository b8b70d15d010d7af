"""The file of fitted centroids: used if it is valid, rejected if it is damaged, and ignored if it is stale."""

import asyncio
import logging
import os
import pickle
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest
from safetensors.numpy import load, save

from extproc.config import reload
from extproc.config.compile import centroids_digest, compile_snapshot, utterances_digest
from extproc.config.load import ConfigError, in_configmap, load_config
from extproc.config.signature import signature
from extproc.routing.centroid_file import (
    CENTROIDS_FILE,
    Header,
    Matcher,
    decode_centroids,
    encode_centroids,
    fingerprints,
    probe_of,
)
from extproc.routing.head import Head
from extproc.routing.index import nearest
from extproc.routing.snapshot import Snapshot

CONFIGS = Path(__file__).parents[1] / "configs"
HEADER = Header("fitted", "2026-11-22", "m", "1234567e8901", "f1f958a82ea0", 24, 7, 0.3, {"one": 2, "two": 1})


def unit(rows: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((rows, 16)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def encoded(header: Header = HEADER) -> bytes:
    matcher = Matcher({"one": unit(2), "two": unit(1, 1)}, background=unit(2, 3))
    return encode_centroids(header, matcher, {"one": 0.25, "two": 0.5}, unit(6, 2), ["a row", "A  row", "another"])


# The file


def test_a_written_file_is_read_back():
    """Vectors have half precision, and the same content gives the same bytes."""
    file = decode_centroids(encoded())
    assert msgspec.structs.replace(file.header, seal="") == HEADER
    assert file.floors == {"one": 0.25, "two": 0.5}
    assert list(file.matcher.centroids) == ["one", "two"]
    assert file.matcher.centroids["one"] == pytest.approx(unit(2), abs=5e-4)
    assert file.matcher.centroids["two"] == pytest.approx(unit(1, 1), abs=5e-4)
    assert file.matcher.background == pytest.approx(unit(2, 3), abs=5e-4)
    assert file.matcher.head is None
    assert np.isin(fingerprints(["a ROW", "other"]), file.seen).tolist() == [True, False]
    assert file.probe == pytest.approx(probe_of(unit(6, 2)))
    assert encoded() == encoded() != encoded(msgspec.structs.replace(HEADER, seed=8))


def test_a_head_is_read_back():
    """The header says its kind. A head without a class for each cohort is refused."""
    head, header = Head(unit(3, 4), unit(1, 5)[0][:3]), msgspec.structs.replace(HEADER, kind="head")
    centroids = {"one": unit(2), "two": unit(1, 1)}
    raw = encode_centroids(header, Matcher(centroids, head=head), {"one": 0.25, "two": 0.5}, unit(6, 2))
    read = decode_centroids(raw).matcher.head
    assert read is not None and decode_centroids(raw).header.kind == "head"
    assert read.weights == pytest.approx(head.weights, abs=5e-4)
    assert read.bias == pytest.approx(head.bias)
    with pytest.raises(ValueError, match="its arrays do not have the shapes"):
        decode_centroids(rewritten(raw, weights=np.zeros((5, 16), np.float16), bias=np.zeros(5, np.float32)))


def flipped(raw: bytes) -> bytes:
    return raw[:-9] + bytes([raw[-9] ^ 1]) + raw[-8:]


def rewritten(raw: bytes, **arrays: np.ndarray) -> bytes:
    """The file with other arrays, and the header unchanged."""
    header = decode_centroids(raw).header
    return bytes(save(load(raw) | arrays, metadata={"header": msgspec.json.encode(header).decode()}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda raw: b"", "is not a centroid file"),
        (lambda raw: raw[:-1], "is not a centroid file"),
        (lambda raw: raw + b"\0", "is not a centroid file"),
        (lambda raw: pickle.dumps({"centroids": 1}), "is not a centroid file"),
        (lambda raw: bytes(save(load(raw))), "is not a centroid file"),
        (flipped, "its content changed after `extproc calibrate` wrote it"),
        (lambda raw: raw.replace(b"fitted", b"means "), "its content changed after `extproc calibrate` wrote it"),
        (lambda raw: raw.replace(b"one", b"uno"), "its content changed after `extproc calibrate` wrote it"),
        (lambda raw: rewritten(raw, floors=np.zeros(3, np.float32)), "its arrays do not have the shapes"),
        (lambda raw: rewritten(raw, centroids=np.zeros((2, 16), np.float16)), "its arrays do not have the shapes"),
        (lambda raw: rewritten(raw, centroids=np.zeros((3, 8), np.float16)), "its content changed after"),
        (lambda raw: rewritten(raw, probe=np.zeros((), np.float16)), "its arrays do not have the shapes"),
    ],
    ids=[
        "empty",
        "cut",
        "longer",
        "pickle",
        "no header",
        "one bit",
        "kind",
        "cohort",
        "floors",
        "fewer",
        "shorter",
        "probe",
    ],
)
def test_a_damaged_file_is_rejected_with_a_remedy(damage, message):
    """The result is never a wrong centroid, and never a traceback."""
    with pytest.raises(ValueError) as error:
        decode_centroids(damage(encoded()))
    assert str(error.value).startswith(message)
    assert str(error.value).endswith(": delete the file, and run `extproc calibrate --write` again")


def test_it_is_valid_for_one_encoder_and_the_same_utterances():
    """Otherwise the warning names the file and says what to do."""
    file = decode_centroids(encoded())
    rows = unit(6, 2)
    assert file.stale("m", HEADER.utterances, rows) is None
    assert file.stale("m", HEADER.utterances, rows + np.float32(0.001) * unit(6, 3)) is None
    stale = "centroids.safetensors is stale, centroids come from the utterances alone: "
    remedy = "; run `extproc calibrate --write` again, or delete the file"
    reasons = {
        "it was fitted with the encoder m, not n": file.stale("n", HEADER.utterances, rows),
        "utterances or encoder.max_chars changed since it was fitted": file.stale("m", "another", rows),
        "it was fitted with other weights of the encoder": file.stale("m", HEADER.utterances, unit(6)),
    }
    assert reasons == {why: stale + why + remedy for why in reasons}
    assert "weights" in str(file.stale("m", HEADER.utterances, rows[:, :8]))


def test_its_size_is_reported_and_checked(tmp_path):
    """A ConfigMap holds one MiB of values, and the YAML counts, too."""
    (tmp_path / "policy.yaml").write_bytes(b"#" * 1024)
    assert in_configmap(tmp_path, b"\0" * 2048) == "3 KiB with the YAML"
    assert in_configmap(tmp_path, b"\0" * (1 << 20)).endswith("a ConfigMap holds 1,024 KiB, MOUNT A VOLUME INSTEAD")


# Beside the YAML


def put(folder: Path, words, swapped: bool = True) -> bytes:
    """Write a file that swaps the centroids of both cohorts, so that its use changes every match."""
    config = load_config(folder)
    rows = {intent.intent: words.encode(intent.utterances) for intent in config.intents}
    header = Header(
        "fitted", "2026-11-22", config.policy.encoder.name, utterances_digest(config), "f1f958a82ea0", 24, 0, 0.3,
        {"billing": 1, "cooking": 3},
    )  # fmt: skip
    two, three = ("cooking", "billing") if swapped else ("billing", "cooking")
    centroids = {"billing": rows[two][:1], "cooking": rows[three]}
    raw = encode_centroids(
        header, Matcher(centroids), {"billing": 0.3, "cooking": 0.2}, np.concatenate(list(rows.values()))
    )
    (folder / CENTROIDS_FILE).write_bytes(raw)
    return raw


@pytest.fixture
def folder(tmp_path) -> Path:
    return Path(shutil.copytree(CONFIGS / "good", tmp_path / "intents"))


def lands(snapshot: Snapshot, words, folder: Path) -> str:
    """The cohort that the first utterance of billing is matched to."""
    return nearest(snapshot.index, words.encode([load_config(folder).intents[0].utterances[0]])[0]).cohort


def test_fitted_centroids_and_floors_are_used(folder, words, caplog):
    """A cohort may have several. An utterance that they match to another cohort causes a warning, not an error."""
    before = load_config(folder)
    put(folder, words)
    config = load_config(folder)
    snapshot = compile_snapshot(config, words)
    assert snapshot.index.cohorts == ["billing", "cooking", "cooking", "cooking"]
    assert [cohort.floor for cohort in snapshot.policy.cohorts.values()] == pytest.approx([0.3, 0.2])
    assert lands(snapshot, words, folder) == "cooking"
    assert "do not reach their intent with the centroids in centroids.safetensors; the first: " in caplog.text
    assert config.revision != before.revision
    assert centroids_digest(config) != centroids_digest(before) == utterances_digest(config)


def test_after_an_edit_of_an_utterance_centroids_come_from_the_utterances(folder, words, caplog):
    """A warning says so, and evidence about the fitted centroids is no longer valid."""
    put(folder, words)
    fitted = centroids_digest(load_config(folder))
    with (folder / "cooking.yaml").open("a") as file:
        file.write("  - How much salt in a soup recipe\n")
    config = load_config(folder)
    with caplog.at_level(logging.WARNING):
        snapshot = compile_snapshot(config, words)
    assert snapshot.index.cohorts == ["billing", "cooking"]
    assert lands(snapshot, words, folder) == "billing"
    assert [record.message for record in caplog.records] == [
        "centroids.safetensors is stale, centroids come from the utterances alone: utterances or "
        "encoder.max_chars changed since it was fitted; run `extproc calibrate --write` again, or delete the file"
    ]
    assert fitted != centroids_digest(config) == utterances_digest(config)


def test_a_damaged_file_is_reported_with_other_mistakes_of_the_folder(folder, words):
    """A folder with a mistake is not served."""
    raw = put(folder, words)
    (folder / CENTROIDS_FILE).write_bytes(flipped(raw))
    with (folder / "cooking.yaml").open("a") as file:
        file.write("flor: 1\n")
    with pytest.raises(ConfigError) as error:
        load_config(folder)
    assert [problem.file for problem in error.value.problems] == [CENTROIDS_FILE, "cooking.yaml"]
    assert str(error.value.problems[0]) == (
        "centroids.safetensors:1: its content changed after `extproc calibrate` wrote it: "
        "delete the file, and run `extproc calibrate --write` again"
    )


def test_an_encoders_path_is_relative_to_the_folder(folder, monkeypatch, tmp_path):
    """For any working directory, and for a relative path of the folder. A name does not change."""
    policy = folder / "policy.yaml"
    assert load_config(folder).policy.encoder.model == "all-MiniLM-L6-v2"
    (tmp_path / "encoders/mine").mkdir(parents=True)
    policy.write_text(policy.read_text() + "encoder: {model: ../encoders/mine}\n")
    encoder = load_config(folder).policy.encoder
    assert (encoder.model, encoder.name) == (str(tmp_path / "encoders/mine"), "mine")
    monkeypatch.chdir(folder)
    assert load_config(Path(".")).policy.encoder == encoder
    digest = utterances_digest(load_config(folder))
    moved = shutil.copytree(tmp_path / "intents", tmp_path / "elsewhere/intents")
    assert utterances_digest(load_config(moved)) == digest


# Mounted, and swapped


async def until(condition) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)


def mount(folder: Path, source: Path, name: str) -> None:
    """Mount like the kubelet: a new folder, and one atomic change of the link to it."""
    shutil.copytree(source, folder / name)
    (folder / "..data_tmp").symlink_to(name)
    os.replace(folder / "..data_tmp", folder / "..data")
    for path in (folder / name).iterdir():
        if not (folder / path.name).is_symlink():
            (folder / path.name).symlink_to(f"..data/{path.name}")


def test_a_mounted_file_is_reloaded_when_it_changes(folder, words, tmp_path, monkeypatch):
    """A new file in the binaryData of a ConfigMap is used. A damaged one keeps the last good revision."""
    monkeypatch.setattr(reload, "_INTERVAL_S", 0.01)
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    mount(mounted, folder, "..1")
    serving = [compile_snapshot(load_config(mounted), words)]
    reports: list[tuple[str, str]] = []

    async def run() -> None:
        seen = signature(mounted)
        watching = asyncio.create_task(
            reload.watch(
                mounted, seen, lambda: serving[-1], words, serving.append, lambda *report: reports.append(report)
            )
        )
        raw = put(folder, words, swapped=False)
        mount(mounted, folder, "..2")
        await until(lambda: len(serving) == 2)
        (folder / CENTROIDS_FILE).write_bytes(flipped(raw))
        mount(mounted, folder, "..3")
        await until(lambda: len(reports) == 2)
        watching.cancel()

    asyncio.run(run())
    assert [snapshot.index.cohorts for snapshot in serving] == [
        ["billing", "cooking"],
        ["billing", "cooking", "cooking", "cooking"],
    ]
    assert reports == [("applied", serving[1].revision), ("invalid", serving[1].revision)]


def test_another_encoder_needs_a_restart(folder, words, monkeypatch, caplog):
    """The loaded encoder's vectors do not fit the floors and centroids of another one."""
    monkeypatch.setattr(reload, "_INTERVAL_S", 0.01)
    serving = [compile_snapshot(load_config(folder), words)]
    reports: list[tuple[str, str]] = []

    async def run() -> None:
        seen = signature(folder)
        watching = asyncio.create_task(
            reload.watch(
                folder, seen, lambda: serving[-1], words, serving.append, lambda *report: reports.append(report)
            )
        )
        with (folder / "policy.yaml").open("a") as file:
            file.write("encoder: {model: another}\n")
        await until(lambda: reports)
        watching.cancel()

    asyncio.run(run())
    assert (len(serving), reports) == (1, [("invalid", serving[0].revision)])
    assert "`encoder.model` changed, and the encoder is only loaded at the start: restart the router" in caplog.text
