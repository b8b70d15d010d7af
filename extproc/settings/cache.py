"""The settings of the cache of accepted answers."""

import re
from typing import Annotated, Literal

import msgspec

from extproc.settings.about import about

_TTL = re.compile(r"(\d{1,6})([smhd])")
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
# An answer is not served again after a longer time.
LONGEST_TTL_S = 30 * 86_400


class AnswerCache(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Accepted answers are served again to the same question."""

    ttl: Annotated[str, about("How long an answer may be served again, as in 30m, 24h or 7d.")] = "24h"
    scope: Annotated[
        Literal["principal", "shared"],
        about(
            "principal: an answer is served again only to the principal that got it. shared: to every client. A "
            "request without a principal is never cached with `principal`."
        ),
    ] = "principal"
    verify: Annotated[
        float,
        about(
            "Share of the hits that a tier answers, too, to count wrong ones. The client gets the new answer. With "
            "too many wrong ones the cache of this intent turns itself off."
        ),
    ] = 0.01

    @property
    def ttl_s(self) -> float:
        """The time to live in seconds. Raises ValueError."""
        return ttl_seconds(self.ttl)


def ttl_seconds(text: str) -> float:
    """Read "30m", "24h" or "7d". Raises ValueError."""
    match = _TTL.fullmatch(text)
    if match is None:
        raise ValueError("expected a number followed by s, m, h or d, as in 24h")
    return float(match[1]) * _UNITS_S[match[2]]
