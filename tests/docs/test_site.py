"""The site builds without a warning, and loads nothing from another host."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.fences import ROOT

# The files that a page loads by itself, without the links that a reader clicks.
_LOADED = re.compile(
    r"<(?:script|img|iframe|source)[^>]* src=\"?(?P<src>[^\" >]+)|<link[^>]* href=\"?(?P<href>[^\" >]+)"
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site. A broken link or anchor, or a page that is not in the navigation, fails here."""
    if importlib.util.find_spec("mkdocs") is None:
        pytest.skip("mkdocs is not installed: pip install -e '.[docs]'")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


def test_pages_load_nothing_from_another_host(site: Path) -> None:
    """No script, style, font or picture of another host."""
    pages = list(site.rglob("*.html"))
    assert len(pages) > 40
    for page in pages:
        loaded = [found["src"] or found["href"] for found in _LOADED.finditer(page.read_text())]
        assert [url for url in loaded if url.startswith(("http", "//"))] == [], page
    styles = "".join(path.read_text() for path in site.rglob("*.css"))
    assert "url(http" not in styles and "@import" not in styles


def test_what_is_no_page_is_not_published(site: Path) -> None:
    """The generator stays at home; the schema of the decision log is published."""
    assert list(site.rglob("*.py")) == []
    assert (site / "decision-log.schema.json").exists()
