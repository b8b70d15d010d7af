"""Published data sets as traffic."""

import sys
from typing import Any

import msgspec
import pytest

from bench.convert import DATA_SETS, main
from extproc.evidence.data.convert import convert
from extproc.evidence.data.traffic import BadRow, read_traffic, reveal_all

SOURCES: dict[str, tuple[dict[str, Any], Any]] = {
    "clinc150": ({"split": "test", "intent": "oos", "text": "hi"}, {"text": "hi", "intent": "oos"}),
    "routellm": (
        {"subject": "anatomy", "prompt": "hi", "strong": True, "weak": False, "contaminated": False},
        {
            "text": "hi",
            "intent": "anatomy",
            "outcomes": {"weak": {"success": False}, "strong": {"success": True}},
        },
    ),
    "mmlupro": (
        {
            "id": 7,
            "category": "computer science",
            "question": " Which? ",
            "options": ["one", "two"],
            "answer": "B",
            "answers": {"small": {"model": "m", "text": "The answer is (B)", "choice": "B"}},
        },
        {
            "id": 7,
            "text": "Which?\n\nA. one\nB. two",
            "intent": "computer-science",
            "outcomes": {"small": {"success": True, "answer": "The answer is (B)", "finish": "stop"}},
        },
    ),
}


def written(tmp_path, *rows):
    path = tmp_path / "source.jsonl"
    path.write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in rows))
    return path


@pytest.mark.parametrize("kind", DATA_SETS)
def test_a_row_of_a_data_set_is_converted_whole(kind, tmp_path):
    """The row that comes out can be read."""
    source, row = SOURCES[kind]
    (converted,) = convert(kind, written(tmp_path, source), {}, DATA_SETS)
    assert isinstance(converted, bytes) and msgspec.json.decode(converted) == row
    traffic = read_traffic(written(tmp_path, row))
    assert (traffic.bad, reveal_all(traffic.rows)[1]) == ([], [])


def test_contaminated_and_unwanted_rows_are_left_out_and_other_lines_reported(tmp_path):
    """RouteLLM's protocol leaves contaminated prompts out. `where` chooses rows."""
    good, _ = SOURCES["routellm"]
    path = written(tmp_path, good | {"contaminated": True}, good | {"subject": "law"}, {"text": "hi"}, good)
    law = list(convert("routellm", path, {"subject": "law"}, DATA_SETS))
    assert [msgspec.json.decode(row)["intent"] for row in law if isinstance(row, bytes)] == ["law"]
    assert [row for row in convert("routellm", path, {}, DATA_SETS) if isinstance(row, BadRow)] == [
        BadRow(3, "cannot be read as routellm: member 'contaminated' is missing")
    ]


def test_the_command_prints_rows_and_reports_lines_that_it_skipped(tmp_path, monkeypatch, capfdbinary):
    """Rows go to stdout, so that they can be piped. Skipped lines go to stderr."""
    source, _ = SOURCES["clinc150"]
    path = written(tmp_path, source, source | {"split": "train"}, {"split": "test"})
    monkeypatch.setattr(sys, "argv", ["bench.convert", "clinc150", str(path), "--where", "split=test"])
    main()
    assert capfdbinary.readouterr() == (
        b'{"text":"hi","intent":"oos"}\n',
        f"{path}:3: skipped: cannot be read as clinc150: member 'text' is missing\n".encode(),
    )
