"""The pages as a browser lays them out, on a wide screen and on a phone: nothing is cut, tiny or covered."""

import html
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import pytest

from extproc.accounting.render import html_of
from extproc.accounting.report import read_report
from extproc.console.page import PAGES, Sources
from tests.console.test_console import ledger, serving, sources

__all__ = ["ledger", "sources"]  # fixtures
WIDTHS = (1280, 400)
LEAST_PX = 11
# Measures each frame, and writes the findings into the page, because `--dump-dom` prints it.
MEASURE = """
<script>
window.onload = () => {
  const findings = [];
  for (const frame of document.querySelectorAll("iframe")) {
    const page = frame.contentDocument, root = page.documentElement;
    const add = text => findings.push(frame.title + ": " + text);
    if (root.scrollWidth > frame.clientWidth) add("is " + root.scrollWidth + " px wide");
    const walker = page.createTreeWalker(page.body, NodeFilter.SHOW_TEXT);
    for (let node = walker.nextNode(); node; node = walker.nextNode()) {
      const parent = node.parentElement, svg = parent.closest("svg");
      if (!node.data.trim() || parent.closest("style, script, option") || !parent.getClientRects().length) continue;
      let px = parseFloat(frame.contentWindow.getComputedStyle(parent).fontSize);
      if (svg && svg.viewBox.baseVal) px *= svg.getBoundingClientRect().width / svg.viewBox.baseVal.width;
      if (px < LEAST) add(px.toFixed(1) + " px: " + node.data.trim().slice(0, 40));
    }
    for (const svg of page.querySelectorAll("svg")) {
      const labels = [...svg.querySelectorAll("text")].filter(text => text.textContent.trim());
      const boxes = labels.map(text => text.getBoundingClientRect());
      labels.forEach((label, i) => boxes.slice(i + 1).forEach((other, j) => {
        const box = boxes[i], across = Math.min(box.right, other.right) - Math.max(box.left, other.left);
        if (across > 2 && Math.min(box.bottom, other.bottom) - Math.max(box.top, other.top) > 4)
          add(label.textContent + " is on " + labels[i + 1 + j].textContent);
      }));
    }
  }
  document.getElementById("findings").textContent = JSON.stringify(findings);
};
</script><pre id="findings">not measured</pre>
"""


def way(name: str, quality: float, cost: float) -> dict[str, Any]:
    """A line of a report of `extproc eval`."""
    interval = {"low": quality - 0.03, "high": quality + 0.03}
    return {
        "name": name,
        "quality": {"value": quality, **interval},
        "per_1000": {"value": cost, "low": 0, "high": 1},
    }


@pytest.fixture(scope="module")
def pages(sources: Sources, ledger: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Every page of the console, a prompt that is tried, the story of a request, and the page of `report`."""
    place = tmp_path_factory.mktemp("screens") / "report.json"
    lines = [way("as configured", 0.81, 0.5), way("always small", 0.6, 0.1), way("always large", 0.8, 0.9)]
    report = {
        "verdicts": [{"word": "BETTER", "sentence": "by a lot"}],
        "lines": [*lines, way("mix", 0.805, 0.52)],
        "frontier": lines,
        "more": 1,
    }
    place.write_bytes(msgspec.json.encode(report))
    with serving(msgspec.structs.replace(sources, report=place)) as ask:
        found = {path: ask(path)[2] for path in PAGES}
        found["a prompt"] = ask(
            "/try", {"request": "Send my last invoice again, with all positions and the taxes"}
        )[2]
        found["a request"] = ask("/requests?id=1-2")[2]
    found["report"] = html_of(read_report(ledger, 3600))
    return found


def test_pages_fit_a_wide_screen_and_a_phone(pages: dict[str, str], tmp_path: Path) -> None:
    """No page is wider than the screen, no text is smaller than 11 px, and no label of a plot is on another."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("chromium is not installed")
    frames = "".join(
        f'<iframe title="{name} at {width}" width="{width}" height="900" srcdoc="{html.escape(page)}"></iframe>'
        for name, page in pages.items()
        for width in WIDTHS
    )
    (tmp_path / "all.html").write_text(frames + MEASURE.replace("LEAST", str(LEAST_PX)), encoding="utf-8")
    with tempfile.TemporaryDirectory() as profile:
        done = subprocess.run(
            [
                browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}", "--dump-dom",
                (tmp_path / "all.html").as_uri(),
            ],
            capture_output=True, text=True, timeout=240, check=False,
        )  # fmt: skip
    measured = done.stdout.partition('<pre id="findings">')[2].partition("</pre>")[0]
    assert measured not in ("", "not measured"), done.stderr[-2000:]
    assert msgspec.json.decode(html.unescape(measured)) == []
