"""Patterns of prefixes, compared with all short texts."""

from itertools import product

import pytest
import re2

from extproc.acceptance.prefixes import pattern_of_prefixes

# All texts of up to this many characters.
_TEXTS = ["".join(letters) for length in range(7) for letters in product("ab ", repeat=length)]


@pytest.mark.parametrize(
    "pattern",
    [
        "", "ab", "a|ba", "a?b", "(?:ab)?a", "a*b", "a*?b", "a+b", "(?:ab )+b", "(?:a|bb)*a?", "[ab]b", "[^a]+?a",
        "a(?:b(?: |a)|)b", r"\w ", "a(?: |$)", "(?:a|b|)(?:(?:ab)* )?b", "a{0,2}b",
    ],
)  # fmt: skip
def test_a_text_matches_if_it_can_become_a_match(pattern: str) -> None:
    whole, prefixes = re2.compile(pattern), re2.compile(pattern_of_prefixes(pattern))
    matches = [text for text in _TEXTS if whole.fullmatch(text)]
    expected = {match[:end] for match in matches for end in range(len(match) + 1)}
    short = [text for text in _TEXTS if len(text) <= 3]  # a longer one may need more characters than there are
    assert [text for text in short if prefixes.fullmatch(text)] == [text for text in short if text in expected]


def test_a_repetition_with_limits_matches_all_prefixes_and_others() -> None:
    prefixes = re2.compile(pattern_of_prefixes("(?:ab){2,3}b"))
    assert all(prefixes.fullmatch("abababb"[:end]) for end in range(8))
    assert prefixes.fullmatch("abb") and not prefixes.fullmatch("aa")


@pytest.mark.parametrize("pattern", ["(a)", "(?=a)", "a)", "(?:a", "a{2}", "*", "["])
def test_other_syntax_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError):
        pattern_of_prefixes(pattern)
