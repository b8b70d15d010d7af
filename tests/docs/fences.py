"""Fenced code blocks of the documentation: where they are, in which language, with which title."""

import re
from pathlib import Path

import msgspec

ROOT = Path(__file__).parents[2]
# A block after this comment is also run, and not only parsed.
RUN_MARK = "<!-- test: run -->"
_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w*)(?: title=\"(?P<title>[^\"]*)\")? *$")


class Fence(msgspec.Struct, frozen=True):
    """One fenced code block."""

    file: str
    line: int
    language: str
    title: str
    text: str
    is_run: bool

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


def read_fences(path: Path) -> list[Fence]:
    """Every fenced block of a Markdown file. Raises ValueError if a fence is not closed or cannot be read."""
    fences: list[Fence] = []
    lines = path.read_text(encoding="utf-8").splitlines()
    name, number, marked = str(path.relative_to(ROOT)), 0, False
    while number < len(lines):
        line = lines[number]
        number += 1
        if not line.lstrip().startswith("```"):
            marked = line.strip() == RUN_MARK or (marked and not line.strip())
            continue
        opened = _FENCE.match(line)
        if opened is None:
            raise ValueError(f'{name}:{number}: this fence is not ```language or ```language title="..."')
        first, close = number, opened["indent"] + "```"
        number = lines.index(close, first) + 1
        body = [text.removeprefix(opened["indent"]) for text in lines[first : number - 1]]
        text = "\n".join(body) + "\n"
        fences.append(Fence(name, first, opened["language"], opened["title"] or "", text, marked))
        marked = False
    return fences


def all_fences() -> list[Fence]:
    """The blocks of README.md and of every page."""
    pages = sorted(path for path in (ROOT / "docs").rglob("*.md"))
    return [fence for path in (ROOT / "README.md", *pages) for fence in read_fences(path)]
