"""Agreement of two answers: by the value that both state, otherwise by meaning."""

import numpy as np
import pytest

from extproc.acceptance.agreement import final_value, same_answer


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"reasoning": "9 * 2 = 18", "answer": "18"}', "18"),
        ('```json\n{"reasoning": "She earns $18.", "answer": 18.0}\n```', "18"),
        ('{"answer": "$1,250 dollars"}', "1250"),
        ('{"reasoning": "broken, "answer": "7', "7"),
        ('{"final_answer": "Paris"}', "paris"),
        ("So we get \\boxed{-3.50}.", "-3.5"),
        ("9 + 9 = 18\n#### 18", "18"),
        ("We subtract. The answer is **(B)**.", "b"),
        ("The answer is: C", "c"),
        ("Final answer: 12 apples", "12"),
        ("Mallorca", None),
        (" 1,200 euros ", "1200"),
        (" B. ", "b"),
        ("The answer is from 3 to 5.", "from 3 to 5"),
        ("The answer is A cat", "a cat"),
        ("First this.\nThen that.", None),
        ("It is long, and it states no value, so that only its meaning can be compared.", None),
        ("", None),
        ("...", None),
    ],
)
def test_the_value_of_an_answer(text: str, value: str | None) -> None:
    """Case, marks, units and the form of a number do not count."""
    stated = final_value(text)
    assert (None if stated is None else stated.text) == value


def test_values_decide_and_meaning_only_without_them() -> None:
    """Two solutions that read alike and end differently disagree. Without values, similarity decides."""
    solution = "We divide the eggs by the days, which leaves the same for each. The answer is {}."
    asked: list[list[str]] = []

    def embed(texts: list[str]) -> np.ndarray:
        asked.append(texts)
        return np.array([[1.0, 0.0], [0.8, 0.6]])

    assert same_answer(solution.format(18), solution.format("$18.00"), 0.9, embed) is True
    assert same_answer(solution.format(18), solution.format(19), 0.0, embed) is False
    assert asked == []
    texts = ("A long text about the council.\nIt met.", "A text about a council.\nIt sat.")
    assert [same_answer(*texts, level, embed) for level in (0.7, 0.9)] == [True, False]
    assert same_answer(*texts, 0.7, None) is None and asked == [list(texts)] * 2
    assert same_answer("The answer is Paris.", '{"answer": "paris, France"}', 0.7, embed) is True
    assert asked[-1] == ["paris", "paris, france"]


def test_a_hostile_answer_takes_no_time() -> None:
    """Every pattern is bounded, so a megabyte of near matches is searched at once."""
    for text in ("answer is " * 100_000, '"answer": "' * 100_000, "\\boxed{" * 150_000, "#### " * 200_000):
        final_value(text)
