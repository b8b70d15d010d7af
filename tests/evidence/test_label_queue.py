"""The queue of labels: labels of people and clients, rows that wait, and rows that are held out."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from extproc.evidence.data.label_queue import LabelQueue


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in rows))
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [msgspec.json.decode(line) for line in path.read_bytes().splitlines()]


def everything(path: Path) -> list[bytes]:
    """A draw of all rows."""
    return path.read_bytes().splitlines()


def row(i: int, **more: Any) -> dict[str, Any]:
    return {"id": f"r-{i}", "text": f"question {i}"} | more


@pytest.fixture
def queue(tmp_path: Path) -> LabelQueue:
    return LabelQueue(tmp_path)


def test_labels_of_people_count_before_those_of_clients(queue: LabelQueue, tmp_path: Path) -> None:
    """A label in the log comes from a client. It stays when the log no longer has it."""
    log = write(tmp_path / "log.jsonl", row(1, intent="faq"), row(2), row(3))
    assert queue.collect(log) == 1
    assert queue.fill(log, everything, 10) == 2
    assert read(queue.waiting) == [{"intent": "?"} | row(2), {"intent": "?"} | row(3)]
    assert read(tmp_path / "unlabelled.jsonl") == [row(2), row(3)]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    write(queue.waiting, row(1, intent="billing"), row(2, intent=None), row(3, intent="?"))
    assert queue.collect(write(tmp_path / "log.jsonl", row(3))) == 1
    assert queue.fill(log, everything, 10) == 1 and [each["id"] for each in read(queue.waiting)] == ["r-3"]
    sizes = queue.split(tmp_path / "fit", tmp_path / "held_out")
    labelled = {each["id"]: each["intent"] for each in [*read(tmp_path / "fit"), *read(tmp_path / "held_out")]}
    assert labelled == {"r-1": "billing", "r-2": None} and sum(sizes) == 2


def test_a_second_run_changes_no_file(queue: LabelQueue, tmp_path: Path) -> None:
    """The editor of a person sees no change."""
    log = write(tmp_path / "log.jsonl", *(row(i) for i in range(9)))
    queue.collect(log)
    queue.fill(log, everything, 5)
    before = queue.waiting.stat().st_mtime_ns
    queue.collect(log)
    assert queue.fill(log, everything, 5) == 5
    assert queue.waiting.stat().st_mtime_ns == before


def test_a_row_stays_in_its_part_and_a_text_is_only_in_one(queue: LabelQueue, tmp_path: Path) -> None:
    """About one row in three is held out."""
    texts = [row(i, intent="faq") for i in range(300)] + [row(i, id=f"again-{i}", intent="faq") for i in range(300)]
    queue.collect(write(tmp_path / "log.jsonl", *texts))
    fit, held_out = tmp_path / "fit", tmp_path / "held_out"
    sizes = queue.split(fit, held_out)
    assert sum(sizes) == 600 and 140 < sizes[1] < 260
    parts = [{each["text"] for each in read(path)} for path in (fit, held_out)]
    assert not parts[0] & parts[1]
    queue.collect(write(tmp_path / "log.jsonl", row(999, intent="faq")))
    queue.split(fit, held_out)
    assert parts[1] <= {each["text"] for each in read(held_out)}


def test_a_damaged_line_of_the_queue_is_named(queue: LabelQueue, tmp_path: Path) -> None:
    queue.waiting.write_text('{"id": "r-1", "text": "a", "intent": faq}\n')
    with pytest.raises(ValueError, match=r"queue.jsonl:1: expected one JSON object in a line"):
        queue.collect(write(tmp_path / "log.jsonl"))
