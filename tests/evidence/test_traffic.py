"""Labelled and recorded traffic: the members of a row, how mistakes are reported, and the formats of logs."""

import gzip
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
from msgspec import UNSET

from extproc.api.paths import APIS
from extproc.cli.evidence import usable
from extproc.cli.main import main
from extproc.evidence.data.convert import convert
from extproc.evidence.data.traffic import BadRow, RecordedOutcome, Revealed, read_traffic, reveal, reveal_all

REQUEST = {"model": "auto", "messages": [{"role": "user", "content": "hi"}]}


def written(tmp_path, *lines):
    path = tmp_path / "traffic.jsonl"
    path.write_text(
        "".join(line if isinstance(line, str) else msgspec.json.encode(line).decode() + "\n" for line in lines)
    )
    return path


def test_a_text_becomes_a_chat_request_for_a_model_that_may_be_replaced(tmp_path):
    """The router receives a body and a path, as from a client."""
    (row,) = read_traffic(written(tmp_path, {"text": "hi"})).rows
    body, headers = row.request("auto")
    assert msgspec.json.decode(body) == REQUEST
    assert headers == {":path": "/v1/chat/completions"}


def test_a_request_is_kept_byte_by_byte(tmp_path):
    """The client's spacing and order stay. Header names are in lower case, as Envoy sends them."""
    line = '{"request": {"input":  "hi", "model": "auto"}, "headers": {"X-User-Tier": "gold"}, "id": 7}\n'
    (row,) = read_traffic(written(tmp_path, line)).rows
    assert row.request("other") == (
        b'{"input":  "hi", "model": "auto"}',
        {"x-user-tier": "gold", ":path": "/v1/responses"},
    )


def test_labels_and_outcomes_stay_sealed_until_they_are_revealed(tmp_path):
    """The answers of a row are undecoded bytes while decisions are made. null and "oos" differ from no label."""
    outcome = {"success": True, "tokens_in": 3, "tokens_out": 4, "latency_s": 0.5, "answer": "yes"}
    rows = read_traffic(
        written(
            tmp_path,
            {"text": "a", "intent": "billing", "outcomes": {"small": outcome}, "time": "2026-11-01T10:00:00Z"},
            {"text": "b", "intent": None},
            {"text": "c", "intent": "oos", "outcomes": None},
            {"text": "d"},
        )
    ).rows
    assert rows[0].sealed == (b'"billing"', msgspec.json.encode({"small": outcome}))
    assert rows[0].time == datetime(2026, 11, 1, 10, tzinfo=UTC)
    assert [reveal(row) for row in rows] == [
        Revealed("billing", {"small": RecordedOutcome(True, None, 3, 4, 0.5, "yes")}),
        Revealed(None),
        Revealed(None),
        Revealed(UNSET),
    ]


def test_lines_that_cannot_be_used_are_reported_with_their_numbers(tmp_path):
    """Every other line is read. Blank lines count as lines, and nothing is skipped silently."""
    path = written(
        tmp_path,
        {"text": "fine"},
        "\n",
        "{\n",
        {"text": "a", "request": REQUEST},
        {},
        {"text": " "},
        {"text": "a", "intnet": "billing"},
        {"text": "a", "path": "/v1/messages"},
        {"request": REQUEST, "path": "/v1/embeddings"},
        {"request": "hi"},
        {"text": "a", "weight": 0},
        {"text": "fine, too", "weight": 2.5},
        {"text": "a", "weight": -1},
        {"text": "a", "weight": 1e308},
        '{"text": "a", "weight": NaN}\n',
        {"text": "a", "weight": "3"},
    )
    traffic = read_traffic(path)
    assert [(row.line, row.weight) for row in traffic.rows] == [(1, 1.0), (12, 2.5)]
    expected = [
        (3, "the JSON object has no end: write each row on one line"),
        (4, "found both of `text` and `request`: give one of them"),
        (5, "found neither of `text` and `request`: give one of them"),
        (6, "`text` is empty: give the words of the request"),
        (7, "unknown key `intnet`: did you mean `intent`?"),
        (8, "found `path` beside `text`: give `path` only with `request`"),
        (9, f"found `path` /v1/embeddings: expected one of {', '.join(APIS)}"),
        (10, "the request is not a JSON object"),
        (11, "`weight`: expected a number >= 1e-09"),
        (13, "`weight`: expected a number >= 1e-09"),
        (14, "`weight`: expected a number <= 1000000000000.0"),
        (15, "found NaN, which is not a number in JSON: leave the key out"),
        (16, "`weight`: expected a number, found text"),
    ]
    assert [bad.line for bad in traffic.bad] == [line for line, _ in expected]
    assert [bad.what[: len(what)] for bad, (_, what) in zip(traffic.bad, expected, strict=True)] == [
        what for _, what in expected
    ]


def test_outcomes_that_cannot_be_read_are_reported_when_they_are_revealed(tmp_path):
    """Two measures of one answer, a quality above 1, a misspelt key and a propensity of 0 are mistakes."""
    rows = read_traffic(
        written(
            tmp_path,
            {"text": "a", "outcomes": {"small": {"success": True, "quality": 0.5}}},
            {"text": "b", "outcomes": {"small": {"quality": 1.5}}},
            {"text": "c", "outcomes": {"small": {"sucess": True}}},
            {"text": "d", "outcomes": {"small": {"success": True, "propensity": 0}}},
            {"text": "e", "outcomes": {"small": {"quality": 0.5, "propensity": 0.02}}},
        )
    ).rows
    revealed, bad = reveal_all(rows)
    assert [row is not None for row in revealed] == [False, False, False, False, True]
    assert [(b.line, b.what) for b in bad] == [
        (1, "`outcomes.*`: found `success` and `quality`: give only one of them"),
        (2, "`outcomes.*.quality`: expected a number <= 1.0"),
        (3, "`outcomes.*`: unknown key `sucess`: did you mean `success`?"),
        (4, "`outcomes.*.propensity`: expected a number > 0.0"),
    ]


def test_a_gzipped_file_reads_like_a_plain_one_and_a_broken_one_is_an_error(tmp_path):
    """The hash depends only on the lines, not on how they are stored."""
    plain = written(tmp_path, {"text": "a"}, {"text": "b"})
    packed = tmp_path / "traffic.jsonl.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert read_traffic(packed) == read_traffic(plain)
    packed.write_bytes(gzip.compress(plain.read_bytes())[:-12])
    with pytest.raises(OSError, match="compressed data"):
        read_traffic(packed)


@pytest.mark.parametrize("content", [b'{"text": "a"}\n', gzip.compress(b"", mtime=0)[:10] + b"\xff" * 20])
def test_a_file_that_is_gzipped_only_by_its_name_is_an_error(content, tmp_path):
    """The file was never compressed, or its compressed data is damaged."""
    path = tmp_path / "traffic.jsonl.gz"
    path.write_bytes(content)
    message = r"traffic\.jsonl\.gz: is not a valid gzip file, although its name ends in \.gz"
    with pytest.raises(OSError, match=message):
        read_traffic(path)


def test_a_byte_order_mark_costs_no_row(tmp_path):
    """Editors and spreadsheets write it before the first line."""
    plain = written(tmp_path, {"text": "a"}, {"text": "b"})
    marked = tmp_path / "marked.jsonl"
    marked.write_bytes(b"\xef\xbb\xbf" + plain.read_bytes())
    assert read_traffic(marked) == read_traffic(plain)


@pytest.mark.parametrize(
    ("source", "row"),
    [
        (REQUEST, {"request": REQUEST}),
        (
            {"request": REQUEST, "response": {"model": "gpt-x", "choices": []}},
            {"request": REQUEST, "outcomes": {"gpt-x": {"response": {"model": "gpt-x", "choices": []}}}},
        ),
        (
            {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": REQUEST},
            {"request": REQUEST, "id": "1", "path": "/v1/chat/completions"},
        ),
    ],
)
def test_an_openai_log_has_request_bodies_pairs_or_lines_of_a_batch_file(source, row, tmp_path):
    """The request is found in every shape of line, and the row that comes out can be read."""
    (converted,) = convert("openai-log", written(tmp_path, source), {})
    assert isinstance(converted, bytes) and msgspec.json.decode(converted) == row
    traffic = read_traffic(written(tmp_path, row))
    assert (traffic.bad, reveal_all(traffic.rows)[1]) == ([], [])


STREAM = 'data: {"choices":[{"index":0,"delta":{"content":"Hello"},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'


@pytest.mark.parametrize(
    ("response", "outcomes"),
    [
        ({"choices": []}, {"auto": {"response": {"choices": []}}}),
        ('{"model": "gpt-x", "choices": []}', {"gpt-x": {"response": {"model": "gpt-x", "choices": []}}}),
        (STREAM, {"auto": {"response": STREAM}}),
        ({"status_code": 200, "body": STREAM}, {"auto": {"response": STREAM}}),
        ({"status_code": 500, "body": {"choices": []}}, None),
        ({"error": {"message": "overloaded"}}, None),
        ("upstream connect error", None),
    ],
)
def test_a_logged_response_is_kept_in_every_form_and_a_failed_one_is_reported(response, outcomes, tmp_path):
    """The forms are JSON, JSON as text, and a stream as text. If a response failed, only its request is kept."""
    path = written(tmp_path, {"request": REQUEST, "response": response})
    row, *bad = convert("openai-log", path, {})
    assert isinstance(row, bytes)
    assert msgspec.json.decode(row) == {"request": REQUEST} | ({"outcomes": outcomes} if outcomes else {})
    what = "its response failed or is not an answer; its request is kept"
    assert bad == ([] if outcomes else [BadRow(1, what)])


def test_the_command_prints_rows_and_counts_what_it_skipped(tmp_path, capfdbinary):
    """Rows go to stdout, so that they can be piped. Skipped lines and counts go to stderr."""
    lines = ({"split": split, "request": REQUEST} for split in ("test", "train"))
    path = written(tmp_path, *lines, "nonsense\n", {"split": "test"})
    assert main(["convert", "openai-log", str(path), "--where", "split=test"]) == 0
    out, err = capfdbinary.readouterr()
    assert out == msgspec.json.encode({"request": REQUEST}) + b"\n"
    skipped, malformed, count = err.decode().splitlines()
    assert skipped.startswith(f"{path}:3: skipped: cannot be read as openai-log: JSON is malformed")
    assert malformed == (
        f"{path}:4: skipped: cannot be read as openai-log: "
        "found no request: expected `request`, `body`, or a request body itself"
    )
    assert count == f"{path}: 1 rows converted, 2 skipped"


def test_a_dash_is_standard_input():
    """The rows of one command can be piped into another."""
    command = [sys.executable, "-m", "extproc", "convert", "openai-log", "-"]
    done = subprocess.run(command, input=msgspec.json.encode(REQUEST), capture_output=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, msgspec.json.encode({"request": REQUEST}) + b"\n")


@pytest.mark.parametrize(("content", "what"), [
    (b"PAR1\x15\x04\x15\x00PAR1", "it is a Parquet file, for `extproc map --rows FOLDER`: write its rows as"),
    (b"\x1f\x8b\x08\x00abc", "it is packed with gzip, and its name does not end in .gz: rename it. The format"),
    (b"\xef\xbb\xbftext,intent\nhello,code\n", "it looks like CSV: write each row as a JSON object on one"),
    ('{"text": "a"}'.encode("utf-16"), "it is in UTF-16: save it in UTF-8. The format is in docs/reference"),
    (b'[\n{"text": "a"},\n', "it begins with a JSON list: write one object on each line, without commas"),
    (b"hello\n", "no row can be used: give JSON lines in the format of docs/reference/traffic.md"),
])  # fmt: skip
def test_a_file_of_another_kind_is_named(content: bytes, what: str, tmp_path: Path) -> None:
    """The error says what the file is, and what to do."""
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content.removesuffix(b'{"text": "a"},\n'))
    with pytest.raises(ValueError, match=re.escape(what)):
        usable(path)


def test_the_kind_of_a_file_is_that_of_its_content(tmp_path: Path) -> None:
    """A name that ends in .gz says that the file is packed."""
    path = tmp_path / "rows.csv.gz"
    path.write_bytes(gzip.compress(b"text,intent\nhello,code\n"))
    with pytest.raises(ValueError, match="it looks like CSV"):
        usable(path)


def test_a_number_that_json_does_not_have_is_named(tmp_path: Path) -> None:
    """Libraries write it for a cost or a quality that is not known. Words of a person may have it."""
    path = tmp_path / "rows.jsonl"
    path.write_text(
        '{"text": "a", "weight": NaN}\n{"text": "is, NaN a number"}\n{"text": "b", "weight": -Infinity}\n'
    )
    traffic = read_traffic(path)
    assert [(bad.line, bad.what) for bad in traffic.bad] == [
        (1, "found NaN, which is not a number in JSON: leave the key out"),
        (3, "found -Infinity, which is not a number in JSON: leave the key out"),
    ]
    assert len(traffic.rows) == 1
