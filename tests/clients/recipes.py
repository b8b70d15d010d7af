"""The recipes of the page `Clients`, as the tests run them."""

from tests.docs.fences import ROOT, read_fences

PAGE = ROOT / "docs" / "guides" / "clients.md"
_ENVOY = "http://envoy:10000"  # Envoy's address on the page


def recipe(title: str, url: str = _ENVOY) -> str:
    """Return the block with this title under the heading "Recipes". Its Envoy is at `url`."""
    lines = PAGE.read_text().splitlines()
    first = lines.index("## Recipes")
    last = next(number for number in range(first + 1, len(lines)) if lines[number].startswith("## "))
    [fence] = [f for f in read_fences(PAGE) if f.title == title and first < f.line <= last]
    return fence.text.replace(_ENVOY, url)


def settings(title: str, url: str) -> dict[str, str]:
    """Return the environment variables that a block exports."""
    lines = [line.removeprefix("export ") for line in recipe(title, url).splitlines()]
    return dict(line.split("=", 1) for line in lines)
