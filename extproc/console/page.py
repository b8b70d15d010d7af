"""The frame of the console's pages, and what they read. They hold no script, load nothing, and no text of users."""

import time
from collections.abc import Callable, Iterable, Mapping
from html import escape
from pathlib import Path
from typing import get_args
from urllib.parse import urlencode

import msgspec

from extproc.accounting.queries import By
from extproc.accounting.rollout_text import RolloutText
from extproc.routing.snapshot import Snapshot
from extproc.style import html_page, html_text, verdict_line

SPANS = ("1h", "24h", "7d", "30d")
GROUPINGS: tuple[By, ...] = get_args(By)
PAGES = {
    "/": "Overview",
    "/cohorts": "Cohorts",
    "/try": "Try a prompt",
    "/requests": "Requests",
    "/budgets": "Budgets",
    "/cache": "Cache",
    "/signals": "Signals",
    "/drift": "Drift",
    "/frontier": "Cost and quality",
    "/rollout": "Rollout",
}
# The most lines of a table. There may be thousands of callers.
MOST_LINES = 100
NO_LEDGER = "There is no ledger to read: start the console with --ledger, as for `extproc serve`."


class Tried(msgspec.Struct, frozen=True):
    """The decision about a request that is not sent."""

    verdict: str  # in a sentence
    chances: list[tuple[str, str, float]]  # name of the class, its tier, its chance (0 to 1). The likeliest first
    text: str  # as `extproc explain` prints it
    candidate: str = ""  # the decision of the policy's candidate, in a sentence. Empty: there is none


class RouterStatus(msgspec.Struct, frozen=True):
    """The answer of a router to `extproc status`."""

    lines: list[str]  # as `extproc status` prints it
    caches: Mapping[str, str]  # cohort -> whether its cache is on, and how many of its hits were wrong


class Loading(OSError):
    """The encoder is still loading, so the browser asks again by itself."""


class Sources(msgspec.Struct, frozen=True):
    """The things that the console reads. All are read again for each page, except the encoder."""

    snapshot: Callable[[], Snapshot]  # the files on disk. Raises ConfigError, and Loading
    explain: Callable[[str], Tried]  # of a prompt, or of a request as JSON
    rollout: Callable[
        [str], RolloutText | None
    ]  # the comparison of the candidate, by a ledger. None: there is none
    router: Callable[[], RouterStatus] | None = None  # what a router serves
    ledger: str | None = None
    report: Path | None = None  # the JSON of `extproc eval`


def page(path: str, parts: Iterable[str]) -> str:
    """Return a whole page. `parts` are HTML."""
    links = "".join(link(at, name, at == path) for at, name in PAGES.items())
    title = PAGES.get(path, "Console")
    skip = '<a class="skip" href="#main">Skip to the content</a>'
    nav = f'{skip}<nav aria-label="Pages">{links}</nav>'
    return html_page(f"{title} - extproc", f'{nav}<main id="main"><h1>{title}</h1>{"".join(parts)}</main>')


def error_page(path: str, message: str) -> str:
    """A mistake in the input, in the files or in the ledger, with its remedy."""
    return page(path, [verdict_line(message, "Not shown")])


def section(read: Callable[[], Iterable[str]], what: str) -> list[str]:
    """A part of a page. If it cannot be read, the other parts are shown all the same."""
    try:
        return list(read())
    except (OSError, ValueError) as error:
        return [verdict_line(str(error), f"{what} not shown")]


def link(to: str, name: str, is_here: bool = False) -> str:
    """A link. `name` is plain text."""
    here = ' aria-current="page"' if is_here else ""
    return f'<a href="{escape(to)}"{here}>{html_text(name)}</a>'


def choices(path: str, since: str | None = None, by: str | None = None) -> str:
    """Links to the other times and groupings of a page. None: it has no such choice."""
    chosen = {name: value for name, value in (("since", since), ("by", by)) if value is not None}
    lines = [
        "".join(
            link(f"{path}?{urlencode(chosen | {name: value})}", f"{word}{value}", value == chosen[name])
            for value in values
        )
        for name, word, values in (("since", "", SPANS), ("by", "by ", GROUPINGS))
        if name in chosen
    ]
    return f'<nav aria-label="Time and grouping">{"<br>".join(lines)}</nav>'


def tiles(values: Iterable[tuple[str, str]]) -> str:
    """Large numbers with their names, both plain text."""
    each = (f'<div class="tile"><b>{html_text(value)}</b><span>{name}</span></div>' for value, name in values)
    return f'<div class="tiles">{"".join(each)}</div>'


def notes(lines: Iterable[str]) -> str:
    """Remarks below a table, as plain text."""
    return f"<ul>{''.join(f'<li>{html_text(line)}</li>' for line in lines)}</ul>"


def when(seconds: float) -> str:
    """Day and time (UTC) as HTML that stays in one line."""
    return time.strftime("%m&#8209;%d&nbsp;%H:%M:%S", time.gmtime(seconds))


def percent(count: float, of: float) -> str:
    """A share in per cent."""
    return f"{100 * count / of:.1f} %" if of else "-"


def dollars(amount: float) -> str:
    """An amount with the digits that count."""
    digits = 2 if abs(amount) >= 1 or amount == 0 else 4
    return f"-${-amount:,.{digits}f}" if amount < 0 else f"${amount:,.{digits}f}"
