"""The README is a page to read in one go."""

from pathlib import Path

README = Path(__file__).parents[2] / "README.md"


def test_the_readme_is_short():
    """Details belong in docs/, so that a newcomer reads the README to its end."""
    assert len(README.read_text().splitlines()) <= 160
