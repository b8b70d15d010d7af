"""A hook of mkdocs: pages that show a file of the repository's root, with its links made relative to the site."""

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
# Page of the site -> file of the root that it shows.
SHOWN = {"contributing.md": "CONTRIBUTING.md", "security.md": "SECURITY.md", "changelog.md": "CHANGELOG.md"}
_LINK = re.compile(r"\[(?P<text>[^\]]+)\]\((?P<target>[^)#:\s]+)\)")


def on_page_markdown(markdown: str, page: Any, **_: object) -> str:
    """Called by mkdocs for each page. Return the text to show."""
    name = SHOWN.get(page.file.src_uri)
    return markdown if name is None else _LINK.sub(_site_link, (ROOT / name).read_text(encoding="utf-8"))


def _site_link(link: re.Match[str]) -> str:
    """A link that leads to a page of the site. If there is no page, only its text stays."""
    pages = {file: page for page, file in SHOWN.items()}
    target = pages.get(link["target"], link["target"].removeprefix("docs/"))
    in_site = target != link["target"]
    return f"[{link['text']}]({target})" if in_site else link["text"]
