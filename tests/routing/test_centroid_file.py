"""The file of fitted centroids: bound to what it was fitted with, refused when damaged, left aside when stale."""

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
from extproc.routing.centroid_file import (
    CENTROIDS_FILE,
    Header,
    decode_centroids,
    encode_centroids,
    neighbours,
)
from extproc.routing.index import nearest
from extproc.routing.policy import Snapshot

CONFIGS = Path(__file__).parents[1] / "configs"
HEADER = Header("fitted", "2026-11-22", "m", "1234567e8901", "f1f958a82ea0", 24, 7, 0.3, {"one": 2, "two": 1})


def unit(rows: int, seed: int = 0) -> np.ndarray:
    found = np.random.default_rng(seed).standard_normal((rows, 16)).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def encoded(header: Header = HEADER) -> bytes:
    return encode_centroids(header, {"one": unit(2), "two": unit(1, 1)}, {"one": 0.25, "two": 0.5}, unit(6, 2))


# The file


def test_what_is_written_is_read():
    """Half precision is kept of vectors, and the same content gives the same bytes."""
    found = decode_centroids(encoded())
    assert msgspec.structs.replace(found.header, seal="") == HEADER
    assert found.floors == {"one": 0.25, "two": 0.5}
    assert list(found.centroids) == ["one", "two"]
    assert found.centroids["one"] == pytest.approx(unit(2), abs=5e-4)
    assert found.centroids["two"] == pytest.approx(unit(1, 1), abs=5e-4)
    assert found.probe == pytest.approx(neighbours(unit(6, 2)))
    assert encoded() == encoded() != encoded(msgspec.structs.replace(HEADER, seed=8))


def flipped(raw: bytes) -> bytes:
    return raw[:-9] + bytes([raw[-9] ^ 1]) + raw[-8:]


def rewritten(raw: bytes, **arrays: np.ndarray) -> bytes:
    """With other arrays under the header that was there."""
    header = decode_centroids(raw).header
    return bytes(save(load(raw) | arrays, metadata={"header": msgspec.json.encode(header).decode()}))


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (lambda raw: b"", "is no file of centroids"),
        (lambda raw: raw[:-1], "is no file of centroids"),
        (lambda raw: raw + b"\0", "is no file of centroids"),
        (lambda raw: pickle.dumps({"centroids": 1}), "is no file of centroids"),
        (lambda raw: bytes(save(load(raw))), "is no file of centroids"),
        (flipped, "its content is not what `extproc calibrate` wrote"),
        (lambda raw: raw.replace(b"fitted", b"means "), "its content is not what `extproc calibrate` wrote"),
        (lambda raw: raw.replace(b"one", b"uno"), "its content is not what `extproc calibrate` wrote"),
        (lambda raw: rewritten(raw, floors=np.zeros(3, np.float32)), "its arrays are not those"),
        (lambda raw: rewritten(raw, centroids=np.zeros((2, 16), np.float16)), "its arrays are not those"),
        (lambda raw: rewritten(raw, centroids=np.zeros((3, 8), np.float16)), "its content is not what"),
        (lambda raw: rewritten(raw, probe=np.zeros((), np.float16)), "its arrays are not those"),
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
def test_a_damaged_file_is_refused_with_a_remedy(damage, what):
    """Never a wrong centroid, never a traceback."""
    with pytest.raises(ValueError) as refused:
        decode_centroids(damage(encoded()))
    assert str(refused.value).startswith(what)
    assert str(refused.value).endswith("run `extproc calibrate --write` again, or delete the file")


def test_it_holds_for_one_encoder_and_the_same_utterances():
    """What it does not hold for is told with the file's name and what to do."""
    file = decode_centroids(encoded())
    rows = unit(6, 2)
    assert file.stale("m", HEADER.utterances, rows) is None
    assert file.stale("m", HEADER.utterances, rows + np.float32(0.001) * unit(6, 3)) is None
    stale = "centroids.safetensors is stale, centroids come from the utterances alone: "
    remedy = "; run `extproc calibrate --write` again, or delete the file"
    reasons = {
        "it was fitted with the encoder m, not n": file.stale("n", HEADER.utterances, rows),
        "utterances or encoder.max_chars changed since it was fitted": file.stale("m", "another", rows),
        "the encoder's weights are not those it was fitted with": file.stale("m", HEADER.utterances, unit(6)),
    }
    assert reasons == {why: stale + why + remedy for why in reasons}
    assert "weights" in str(file.stale("m", HEADER.utterances, rows[:, :8]))


def test_its_size_is_told_and_warned_of(tmp_path):
    """A ConfigMap holds one MiB of values, the YAML among them."""
    (tmp_path / "policy.yaml").write_bytes(b"#" * 1024)
    assert in_configmap(tmp_path, b"\0" * 2048) == "3 KiB with the YAML"
    assert in_configmap(tmp_path, b"\0" * (1 << 20)).endswith("a ConfigMap holds 1,024 KiB, MOUNT A VOLUME INSTEAD")


# Beside the YAML


def put(folder: Path, words, swapped: bool = True) -> bytes:
    """Write a file that puts each cohort's centroid where the other's utterances are: nobody could overlook it."""
    config = load_config(folder)
    rows = {intent.intent: words.encode(intent.utterances) for intent in config.intents}
    header = Header(
        "fitted", "2026-11-22", config.policy.encoder.name, utterances_digest(config), "f1f958a82ea0", 24, 0, 0.3,
        {"billing": 1, "cooking": 3},
    )  # fmt: skip
    two, three = ("cooking", "billing") if swapped else ("billing", "cooking")
    centroids = {"billing": rows[two][:1], "cooking": rows[three]}
    raw = encode_centroids(header, centroids, {"billing": 0.3, "cooking": 0.2}, np.concatenate(list(rows.values())))
    (folder / CENTROIDS_FILE).write_bytes(raw)
    return raw


@pytest.fixture
def folder(tmp_path) -> Path:
    return Path(shutil.copytree(CONFIGS / "good", tmp_path / "intents"))


def lands(snapshot: Snapshot, words, folder: Path) -> str:
    """Where the first utterance of billing lands."""
    return nearest(snapshot.index, words.encode([load_config(folder).intents[0].utterances[0]])[0]).cohort


def test_fitted_centroids_and_floors_serve(folder, words, caplog):
    """As many as a cohort has; an utterance that they put elsewhere is warned of, not refused."""
    before = load_config(folder)
    put(folder, words)
    config = load_config(folder)
    snapshot = compile_snapshot(config, words)
    assert snapshot.index.cohorts == ["billing", "cooking", "cooking", "cooking"]
    assert [cohort.floor for cohort in snapshot.policy.cohorts.values()] == pytest.approx([0.3, 0.2])
    assert lands(snapshot, words, folder) == "cooking"
    assert "utterances do not reach their cohort by centroids.safetensors: billing.yaml:" in caplog.text
    assert config.revision != before.revision
    assert centroids_digest(config) != centroids_digest(before) == utterances_digest(config)


def test_an_edit_of_an_utterance_goes_back_to_the_utterances_visibly(folder, words, caplog):
    """And evidence that was about the fitted centroids is not about these."""
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


def test_a_damaged_file_is_a_mistake_of_the_folder(folder, words):
    """It is told with every other one, and nothing is served that was not checked."""
    raw = put(folder, words)
    (folder / CENTROIDS_FILE).write_bytes(flipped(raw))
    with (folder / "cooking.yaml").open("a") as file:
        file.write("flor: 1\n")
    with pytest.raises(ConfigError) as found:
        load_config(folder)
    assert [problem.file for problem in found.value.problems] == [CENTROIDS_FILE, "cooking.yaml"]
    assert str(found.value.problems[0]) == (
        "centroids.safetensors:1: its content is not what `extproc calibrate` wrote: "
        "run `extproc calibrate --write` again, or delete the file"
    )


def test_an_encoders_path_begins_at_the_folder(folder, monkeypatch, tmp_path):
    """Wherever the command runs, and whether the folder is given whole or not; a name stays a name."""
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
    """As the kubelet does it: a dated folder, and one atomic change of the link to it."""
    shutil.copytree(source, folder / name)
    (folder / "..data_tmp").symlink_to(name)
    os.replace(folder / "..data_tmp", folder / "..data")
    for path in (folder / name).iterdir():
        if not (folder / path.name).is_symlink():
            (folder / path.name).symlink_to(f"..data/{path.name}")


def test_a_file_that_is_mounted_swapped_and_damaged_is_noticed(folder, words, tmp_path, monkeypatch):
    """A ConfigMap's binaryData: it serves when it comes, and what is damaged leaves the last good revision."""
    monkeypatch.setattr(reload, "_INTERVAL_S", 0.01)
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    mount(mounted, folder, "..1")
    serving = [compile_snapshot(load_config(mounted), words)]
    reports: list[tuple[str, str]] = []

    async def run() -> None:
        seen = reload.signature(mounted)
        watching = asyncio.create_task(
            reload.watch(
                mounted, seen, lambda: serving[-1], words, serving.append, lambda *told: reports.append(told)
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


def test_another_encoder_waits_for_a_restart(folder, words, monkeypatch, caplog):
    """Its floors and centroids would meet the vectors of the encoder that is loaded."""
    monkeypatch.setattr(reload, "_INTERVAL_S", 0.01)
    serving = [compile_snapshot(load_config(folder), words)]
    reports: list[tuple[str, str]] = []

    async def run() -> None:
        seen = reload.signature(folder)
        watching = asyncio.create_task(
            reload.watch(
                folder, seen, lambda: serving[-1], words, serving.append, lambda *told: reports.append(told)
            )
        )
        with (folder / "policy.yaml").open("a") as file:
            file.write("encoder: {model: another}\n")
        await until(lambda: reports)
        watching.cancel()

    asyncio.run(run())
    assert (len(serving), reports) == (1, [("invalid", serving[0].revision)])
    assert "`encoder.model` changed: it is loaded when the router starts, restart it" in caplog.text
