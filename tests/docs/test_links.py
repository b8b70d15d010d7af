"""Links and names in the documentation lead somewhere."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.fences import ROOT

_LINK = re.compile(r"\]\((?!https?:)(?P<path>[^)#\s]+)")
# Read outside the site, where mkdocs does not check the links.
OUTSIDE = ("README.md", "envoy/README.md", "deploy/k8s/README.md")
_NAMED = re.compile(r"\bdocs/[a-z0-9/._-]+\.(?:md|json)\b")
_MODULE = re.compile(r"`(?:extproc/)?((?:[a-z_]+/)+[a-z_]+\.py)`")
_TEST = re.compile(r"`(test_\w+)`")


@pytest.mark.parametrize("name", OUTSIDE)
def test_relative_links_lead_to_files(name: str) -> None:
    """From the folder of the file."""
    text = (ROOT / name).read_text()
    missing = [path for path in _LINK.findall(text) if not (ROOT / name).parent.joinpath(path).exists()]
    assert missing == []


def sources() -> Iterator[Path]:
    """The files that may name a page of the documentation."""
    for folder in ("extproc", "bench", "deploy", "docs"):
        yield from (path for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".md", ".json", ".yaml"))
    yield ROOT / "README.md"


def test_files_of_the_documentation_that_the_code_names_are_there() -> None:
    """An error that says `docs/...` has the format leads to a page."""
    missing = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in sources()
        for name in _NAMED.findall(path.read_text(encoding="utf-8"))
        if not (ROOT / name).exists()
    }
    assert missing == set()


def test_modules_that_the_pages_name_are_there() -> None:
    """A page that leads to `routing/ask.py` is changed when that module moves."""
    pages = [*(ROOT / "docs").glob("*.md"), *(ROOT / "docs" / "concepts").glob("*.md"), ROOT / "CONTRIBUTING.md"]
    missing = {
        f"{page.name}: {module}"
        for page in pages
        for module in _MODULE.findall(page.read_text(encoding="utf-8"))
        if not any((folder / module).exists() for folder in (ROOT, ROOT / "extproc"))
    }
    assert missing == set()


def test_tests_that_the_threat_model_names_are_there() -> None:
    """Each threat names the tests that show what stops it."""
    named = set(_TEST.findall((ROOT / "docs" / "threat-model.md").read_text()))
    there = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"def (test_\w+)", path.read_text())
    }
    assert named and named <= there
