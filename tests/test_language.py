"""The language check: each rule finds its bad example and not its good one, and the texts stay below the bar."""

import subprocess
from pathlib import Path

import pytest

from tests.language import (
    BAR,
    CODE,
    KINDS,
    LONG,
    NAMES,
    RULES,
    SEMICOLONS,
    Passage,
    Report,
    comment_passages,
    examine,
    hits,
    line_comments,
    main,
    markdown,
    python,
)

EXAMPLES = [
    ("what-clause", "What is rejected is not retried.", "A rejected request is not retried."),
    ("what-clause", "It stays; what follows is passed on.", "What does the client get?"),
    ("what-object", "It differs from what was sent.", "The message says what to do."),
    ("who-clause", "who signs the clients that may connect", "CA certificate that verifies clients"),
    ("all-that", "This is all that we keep.", "This is everything that we keep."),
    ("is-none", "An answer with a verdict is none.", "If there is none, the default is used."),
    ("is-no", "This is no ledger.", "This is not a ledger. It is no longer open."),
    ("told", "An error is told once.", "Envoy is told to keep the header."),
    ("tell", "The log tells the reason.", "Tell Envoy to keep the header."),
    ("said", "The text that the upstream said.", "The text that the upstream sent."),
    ("dear", "It goes to the dearer tier.", "It goes to the more expensive tier."),
    ("whatever", "It is closed, whatever happens.", "It is closed in any case."),
    ("however-many", "It stays one, however many there are.", "However, it stays one."),
    ("nobody", "Nobody reads this member.", "No code reads this member."),
    ("so-many", "Keep rows for so many days.", "There are so many rows that the query is slow."),
    ("archaic", "The count starts at nought.", "The count starts at zero."),
    ("meanwhile", "Batches queue meanwhile.", "Meanwhile the batches queue."),
    ("at-once", "All are asked at once.", "All are asked at the same time."),
    ("but-for", "All is equal but for the model.", "All is equal except the model."),
    ("besides", "Other facts besides the cohort.", "Facts other than the cohort."),
    ("inversion", "Cannot listen: may it be written there?", "Cannot listen: check that it may be written."),
    ("inversion", "The connection is dropped, and so is its batch.", "It is written so that its batch is kept."),
    ("one-that", "One that cannot be read is logged.", "One row is logged."),
    ("of-first", "Of an outcome everything is optional.", "Of course everything is optional."),
    ("where-first", "Where the disk is full, rows are dropped.", "Where is the file?"),
    ("where-if", "NaN where there is nothing to measure.", "The folder where the file lies."),
    ("such-a", "It keeps such a stream open.", "It keeps this stream open."),
    ("of-its-own", "Each has a port of its own.", "Each has its own port."),
    ("nothing-but", "It writes nothing but the model.", "It writes only the model."),
    ("possessive", "One message of Envoy's.", "One message of Envoy's protocol."),
    ("possessive", "The order is the client's.", "It is the client's order."),
    ("become-of", "The ledger has what became of a request.", "The ledger has the outcome of a request."),
    ("serves-on", "The last revision serves on.", "The router serves on port 50051."),
    ("be-had", "Nothing better was to be had.", "Nothing better was available."),
    ("sight-of", "They were written without sight of the rows.", "They were written before the rows were seen."),
    ("speaks-of", "The tier that it speaks of is gone.", "The tier that it names is gone."),
    ("stands", "A member stands twice.", "A member appears twice."),
    ("as-it-came", "The body is passed on as it came.", "The body is passed on unchanged."),
    ("per-a", "It sends one message a request.", "It sends one message per request. This is one of a kind."),
    ("put-aside", "The answer is put aside for a person.", "The answer is queued for review."),
    ("else", "The file is used, else the default.", "The file is used, otherwise the default, or else it fails."),
    (LONG, "word " * 31 + "end.", "Word " * 29 + "end. " + "Word " * 29 + "end."),
    (
        SEMICOLONS,
        "One is read; one is kept; one is dropped.",
        "One is read; one is kept. One is sent; one is not.",
    ),
]


def rules_hit(text: str) -> set[str]:
    return {hit.rule for hit in hits(Passage("docs", "x.md", text, (0,), (1,)))}


@pytest.mark.parametrize(("rule", "bad", "good"), EXAMPLES)
def test_a_rule_finds_the_marked_construction_and_not_the_plain_one(rule: str, bad: str, good: str) -> None:
    assert rule in rules_hit(bad)
    assert rule not in rules_hit(good)


def test_every_rule_has_an_example() -> None:
    assert {rule for rule, _, _ in EXAMPLES} == set(NAMES)


def test_every_rule_says_what_to_write() -> None:
    assert all(rule.write for rule in RULES)
    assert len(set(NAMES)) == len(NAMES)


def kinds_and_texts(passages: list[Passage]) -> list[tuple[str, int, str]]:
    return [(passage.kind, passage.lines[0], passage.text) for passage in passages]


PYTHON = '''"""First line
of the module.

Second `paragraph` here.
"""

# A comment that goes on
# in the next line.
LIMIT = 3  # of rows
"""Rows at most."""


def read(path):
    """Read a file."""
    log.warning(f"cannot read {path}: {error!r}", "# no comment")
    raise ValueError("the file %s is not valid" % path)
    parser.add_argument("--x", help="read from this file")
    return "two words", "SELECT a FROM the table", "<b>not for people</b>"
'''


def test_python_gives_docstrings_comments_and_messages() -> None:
    assert sorted(kinds_and_texts(python(PYTHON, "extproc/x.py"))) == [
        ("comments", 7, "A comment that goes on in the next line."),
        ("comments", 9, "of rows"),
        ("docstrings", 1, "First line of the module."),
        ("docstrings", 4, f"Second {CODE} here."),
        ("docstrings", 10, "Rows at most."),
        ("docstrings", 14, "Read a file."),
        ("messages", 15, f"cannot read {CODE}: {CODE}"),
        ("messages", 16, f"the file {CODE} is not valid"),
        ("messages", 17, "read from this file"),
    ]


def test_tests_give_docstrings_and_comments_under_kinds_of_their_name() -> None:
    kinds = {passage.kind for passage in python(PYTHON, "tests/test_x.py")}
    assert kinds == {"tests: docstrings", "tests: comments"}


def test_sample_prompts_are_not_messages() -> None:
    assert python('_PROMPTS = ("Where is my order now?",)\n', "extproc/x.py") == []


MARKDOWN = """# A title

Text with `code` and a [link](https://example.com/what)
over two lines, https://example.com.

```
What is fenced is not read.
```

- first item
  continued
- second item

| name | `key` |
|---|---|
| **one** | a cell with `a|b` |
"""


def test_markdown_gives_prose_without_code() -> None:
    assert kinds_and_texts(markdown(MARKDOWN, "x.md")) == [
        ("docs", 1, "A title"),
        ("docs", 3, f"Text with {CODE} and a link over two lines, {CODE}"),
        ("docs", 10, "first item continued"),
        ("docs", 12, "second item"),
        ("docs", 14, "name"),
        ("docs", 16, "one"),
        ("docs", 16, f"a cell with {CODE}"),
    ]


def test_a_hit_has_the_line_on_which_it_begins() -> None:
    source = "Plain words, and `code that\nspans lines` here,\nand all of it is closed, whatever happens.\n"
    (hit,) = [hit for passage in markdown(source, "x.md") for hit in hits(passage)]
    assert (hit.path, hit.line, hit.rule) == ("x.md", 3, "whatever")


def test_other_files_give_their_comments() -> None:
    source = "# One comment\n# over two lines.\n\nkey: value#1  # a unit\nurl: http://x/#part\n"
    assert kinds_and_texts(list(comment_passages(line_comments(source, "#"), "comments", "x.yaml"))) == [
        ("comments", 1, "One comment over two lines."),
        ("comments", 4, "a unit"),
    ]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    (tmp_path / "plain.md").write_text("A rejected request is not retried.\n")
    (tmp_path / "marked.md").write_text("A title\n\nIt is closed, whatever happens.\n")
    return tmp_path


def test_the_command_fails_above_the_bar(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([], repository) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("marked.md:3: whatever: It is closed, whatever happens. (write: ")
    assert [line.split() for line in lines[1:3]] == [
        ["kind", "words", "hits", "per", "10,000"],
        ["docs", "13", "1", "769.2"],
    ]


def test_the_command_can_read_one_file_and_print_only_the_table(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--counts", str(repository / "plain.md")], repository) == 0
    assert capsys.readouterr().out.splitlines()[1].split() == ["docs", "6", "0", "0.0"]


def test_a_path_that_does_not_exist_is_an_error(repository: Path) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([str(repository / "missing.md")], repository)


@pytest.fixture(scope="module")
def report() -> Report:
    return examine()


@pytest.mark.parametrize("kind", KINDS)
def test_the_texts_are_plain(report: Report, kind: str) -> None:
    """`python -m tests.language` lists the hits."""
    assert report.words[kind] > 0
    assert report.rate(kind) <= BAR
