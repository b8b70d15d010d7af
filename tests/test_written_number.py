"""Numbers in the forms in which people write them."""

import pytest

from extproc.written_number import plain_number


@pytest.mark.parametrize(
    ("written", "number"),
    [
        ("2,000", "2000"), ("1,000,000", "1000000"), ("2,000.50", "2000.5"), ("0,5", "0.5"), ("0,500", "0.5"),
        ("2,5", "2.5"), ("2.000,50", "2000.5"), ("2 000", "2000"), ("2\u202f000", "2000"), ("2'000", "2000"),
        ("1e3", "1000"), ("1.5E3", "1500"), ("1e-3", "0.001"), ("$2000", "2000"), ("$ 2,000", "2000"),
        ("2000 USD", "2000"), ("US$5", "5"), ("80%", "0.8"), ("2k", "2000"), ("2.5K", "2500"), ("-0,2", "-0.2"),
        ("1.234.567,8", "1234567.8"), ("1e-5", "0.00001"), ("0,0000000000001", "0.0000000000001"),
    ],
)  # fmt: skip
def test_a_number_is_written_in_digits(written: str, number: str) -> None:
    assert plain_number(written, whole=False) == number


@pytest.mark.parametrize(
    "written",
    [
        "",
        "two",
        "€2000",
        "2000/month",
        "1,2,3",
        "12,34,567",
        "2M",
        "1e999",
        "1e20",
        "--2",
        "5s",
        "2,",
        "9" * 65_000 + "x",
    ],
)
def test_another_text_is_not_guessed(written: str) -> None:
    assert plain_number(written, whole=False) is None


@pytest.mark.parametrize(
    ("written", "number"), [("32k", None), ("0,5", None), ("32,768", "32768"), ("1e3", "1000")]
)
def test_a_whole_number_has_no_fraction_and_k_is_not_certain(written: str, number: str | None) -> None:
    """32k tokens may be 32,000 or 32,768."""
    assert plain_number(written, whole=True) == number
