"""Numbers as people write them, such as 2,000 or 1e3, in the form that YAML reads."""

import math
import re
from collections.abc import Callable
from decimal import Decimal

# US dollars are the only currency of the YAML.
_DOLLARS = re.compile(r"(?:US)?\$\s?|\s?(?:USD|US\$)", re.IGNORECASE)
_MOST_CHARS = 40  # the forms take the square of the length
_MOST = 1e15  # a float has all digits of the whole numbers below


def _without(characters: str) -> Callable[[str], float]:
    return lambda text: float(re.sub(f"[{characters}]", "", text))


def _decimal_comma(text: str) -> float:
    return float(text.replace(".", "").replace(",", "."))


# A form, and how it is read. Three digits behind a comma are thousands.
_FORMS: tuple[tuple[str, Callable[[str], float]], ...] = (
    (r"[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d{1,3})?", float),
    (r"[-+]?[1-9]\d{0,2}(?:,\d{3})+(?:\.\d+)?", _without(",")),
    (r"[-+]?(?:\d+|\d{1,3}(?:\.\d{3})+),\d+", _decimal_comma),
    (r"[-+]?[1-9]\d{0,2}(?:[ '’\u00a0\u202f]\d{3})+(?:\.\d+)?", _without(" '’\u00a0\u202f")),
    (r"[-+]?\d+(?:\.\d+)?\s?%", lambda text: float(text.rstrip("% ")) / 100),
)
# In a count of tokens, k may also stand for 1,024.
_KILO = (r"\d+(?:\.\d+)?k", lambda text: float(text[:-1]) * 1000)


def plain_number(text: str, whole: bool) -> str | None:
    """Return the number that a person means by `text`, in digits. None: it is not a number, or not certain.

    `whole` says that a whole number is expected.
    """
    if len(text) > _MOST_CHARS:
        return None
    bare = _DOLLARS.sub("", text.strip()).lower()
    forms = _FORMS if whole else (*_FORMS, _KILO)
    value = next((read(bare) for form, read in forms if re.fullmatch(form, bare)), None)
    if value is None or not math.isfinite(value) or abs(value) > _MOST:
        return None
    if value.is_integer():
        return str(int(value))
    return None if whole else f"{Decimal(repr(value)):f}"
