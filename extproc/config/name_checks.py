"""Checks of the names of intents, and of headers that requests are recognised by."""

import re
from collections.abc import Iterator

from extproc.contract.names import HeaderPrefix
from extproc.contract.words import NOT_A_COHORT
from extproc.mismatch import shown

_LONGEST = 64


def check_intent_name(name: str) -> Iterator[tuple[str, str]]:
    """Yield the path and the text of the mistake, if there is one."""
    if len(name) > _LONGEST:
        yield (
            ".intent",
            f"`{shown(name)}` has {len(name)} characters and is sent in headers: use at most {_LONGEST}",
        )
    if name in NOT_A_COHORT:
        what = "reports and metrics use this word for requests that belong to no intent"
        yield ".intent", f"an intent cannot have the name `{name}`: {what}. Give it another name"


def check_header_name(path: str, header: str) -> Iterator[tuple[str, str]]:
    """Yield `path` and the text of the mistake, if there is one."""
    if re.fullmatch(r"[a-z0-9-]+", header) is None:
        yield path, f"header `{shown(header)}`: write its name in lower case, with only letters, digits and '-'"
    elif header.startswith((HeaderPrefix.ROUTER, HeaderPrefix.CASCADE)):
        yield path, f"header `{header}`: Envoy removes it from every request, so use a header with another name"
