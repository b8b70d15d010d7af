"""Golden rows: which decisions flip, when they are replayed, and what is reported."""

import asyncio
import logging
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest

from extproc.cli.golden import read_golden
from extproc.config.compile import compile_snapshot
from extproc.config.load import load_config
from extproc.encoder.batcher import Batcher
from extproc.routing.router import Router
from extproc.serving import golden
from extproc.serving.golden import Flip, follow_golden, replay

CONFIGS = Path(__file__).parents[1] / "configs"


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in rows))
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write(
        tmp_path / "golden.jsonl",
        {"text": "Is my invoice wrong this month?", "intent": "billing"},
        {"text": "zebras graze", "intent": None},
        {"text": "How long do I boil an egg?", "intent": "billing"},
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(CONFIGS / "good", tmp_path / "intents"))
    for intent in ("billing", "cooking"):
        with (folder / f"{intent}.yaml").open("a") as file:
            file.write("floor: 0.2\n")
    return folder


def test_a_row_flips_when_its_cohort_is_not_its_label(data: Path, folder: Path, words: Any) -> None:
    """A row out of scope may have any reason for which no cohort decides."""

    async def run() -> list[Flip]:
        batcher = Batcher(words)
        try:
            return await replay(compile_snapshot(load_config(folder), words), batcher, read_golden(data))
        finally:
            batcher.close()

    [flip] = asyncio.run(run())
    assert (flip.line, flip.expected) == (3, "billing") and flip.found != "billing"


def test_it_is_replayed_at_the_start_and_after_a_reload(
    data: Path, folder: Path, words: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The log has each result once. A file that cannot be read leaves the last one."""
    monkeypatch.setattr(golden, "_LOOK_S", 0.001)
    reports: list[tuple[int, int]] = []

    async def run() -> None:
        snapshot, batcher = compile_snapshot(load_config(folder), words), Batcher(words)
        router = Router(snapshot, batcher)
        task = asyncio.create_task(
            follow_golden(router, batcher, lambda: read_golden(data), lambda *counts: reports.append(counts))
        )
        try:
            for expected in (1, 2, 3):
                async with asyncio.timeout(30):
                    while len(reports) < expected:
                        await asyncio.sleep(0.001)
                if expected == 2:
                    write(data, {"text": "zebras graze", "intent": None})
                router.swap(msgspec.structs.replace(snapshot))
            write(data, {"text": "zebras graze"})
            router.swap(msgspec.structs.replace(snapshot))
            async with asyncio.timeout(30):
                while "cannot be read" not in caplog.text:
                    await asyncio.sleep(0.001)
        finally:
            task.cancel()
            batcher.close()

    with caplog.at_level(logging.INFO):
        asyncio.run(run())
    assert reports[:3] == [(1, 3), (1, 3), (0, 1)]
    assert caplog.text.count("golden: 1 of 3 decisions are not the recorded ones: line 3: expected billing") == 1
    assert caplog.text.count("golden: all 1 decisions are the recorded ones again") == 1
    assert "golden.jsonl:1: has no `intent`: give the cohort, or null for out of scope" in caplog.text


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (b'{"text": "a"}', "has no `intent`"),
        (b'{"intent": "billing"}', "neither of `text` and `request`"),
        (b"{", "golden.jsonl:1: "),
        (b"", "has no row"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_with_its_line(tmp_path: Path, row: bytes, message: str) -> None:
    path = tmp_path / "golden.jsonl"
    path.write_bytes(row)
    with pytest.raises(ValueError, match=message):
        read_golden(path)
