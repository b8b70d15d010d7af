"""The reference pages say what the code says, and everything in the code has a description."""

import pytest

from docs.generate import words
from docs.generate.markdown import MissingWordsError, described, no_leftovers
from docs.generate.pages import PAGES
from docs.generate.yaml_keys import Structs
from tests.docs.fences import ROOT


@pytest.mark.parametrize("name", PAGES)
def test_a_generated_page_is_fresh(name: str) -> None:
    """`make reference` would change nothing. Keys, options, metrics and headers need a description."""
    assert (ROOT / "docs" / name).read_text() == PAGES[name](), f"docs/{name} is out of date: run `make reference`"


def test_what_has_no_description_is_refused() -> None:
    """The error names it and where to write a description."""
    with pytest.raises(MissingWordsError, match=r"header `x-new` has no description: write one in .*words\.py"):
        described(words.HEADERS, "x-new", "header")
    with pytest.raises(MissingWordsError, match=r"no metric called semantic_router\.gone"):
        no_leftovers({"semantic_router.gone": ""}, [], "metric")


def test_a_new_key_needs_a_description() -> None:
    """A field without a description in the code or in the words is refused by name."""
    import msgspec

    class Tier(msgspec.Struct):
        colour: str

    with pytest.raises(MissingWordsError, match=r"`colour` of Tier has no description: .*`Tier\.colour`"):
        Structs([Tier]).section("Tier")
