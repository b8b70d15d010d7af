"""The pages on money: budgets and who spends them, and the cache."""

import time
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from extproc.accounting.queries import By
from extproc.accounting.render import html_of_rows
from extproc.accounting.report import read_report, seconds_of
from extproc.accounting.spent import read_spent
from extproc.accounting.why import CACHE_WORDS
from extproc.console.overview import cohorts_of
from extproc.console.page import MOST_LINES, NO_LEDGER, Sources, choices, dollars, page, percent, section, tiles
from extproc.console.readings import NEWEST_WORDS, CacheReading, read_cache
from extproc.contract.words import CacheWord
from extproc.routing.budget import NANO, BudgetSpec, month_of, month_start, seconds_left
from extproc.routing.policy import Cohort
from extproc.settings import HARD_FACTOR
from extproc.style import soft_line, verdict_line

_NO_BUDGET = "The policy has no `budget`. docs/guides/budgets.md says how to write one."
_BY_LEDGER = (
    "Sums of this calendar month (UTC), by the ledger. A router also counts what it has reserved for requests that "
    "are not over. Its metrics show these sums."
)
# The most budgets of a table: there may be one for each of thousands of principals.
_BUDGETS = 30


class _Spent(msgspec.Struct, frozen=True):
    """One budget, or the one of a single principal."""

    name: str
    spec: BudgetSpec
    usd: float

    @property
    def share(self) -> float:
        limit = self.spec.limit / NANO
        return self.usd / limit if limit else 1.0

    @property
    def state(self) -> str:
        """The effect of the budget on the next request."""
        over = self.spec.over
        if self.share < 1:
            return "pays"
        return f"used up: tier {over} at most" if over and self.share < HARD_FACTOR else "used up: 429"


def budgets_page(sources: Sources, by: By) -> str:
    """The spent share of each budget, and who spends the money of this month."""
    if sources.ledger is None:
        return page("/budgets", [soft_line(NO_LEDGER)])
    ledger, specs = sources.ledger, sources.snapshot().all_budgets
    return page("/budgets", [
        *section(lambda: _budgets(ledger, specs), "Budgets are"),
        "<h2>Who spends</h2>", choices("/budgets", by=by),
        *section(lambda: _who(ledger, by), "Costs are"),
    ])  # fmt: skip


def _budgets(ledger: str, specs: Sequence[BudgetSpec]) -> Iterable[str]:
    if not specs:
        yield soft_line(_NO_BUDGET)
        return
    now_s = time.time()
    spent = _spent(specs, read_spent(ledger, specs, now_s), month_of(now_s))
    yield _verdict(spent)
    passed = now_s - month_start(now_s)
    whole = (passed + seconds_left(now_s)) / max(passed, 1)
    rows = [
        {
            "budget": one.name,
            "spent": percent(one.share, 1),
            "$": dollars(one.usd),
            "limit": dollars(one.spec.limit / NANO),
            "whole month at this rate": dollars(one.usd * whole),
            "next request": one.state,
        }
        for one in spent[:_BUDGETS]
    ]
    if rows:
        yield html_of_rows(rows, "words", "Budgets")
    if len(spent) > _BUDGETS:
        yield soft_line(f"The {_BUDGETS} with the largest spent share of {len(spent):,} are shown.")
    yield soft_line(_BY_LEDGER)


def _spent(specs: Sequence[BudgetSpec], sums: Mapping[str, int], month: str) -> list[_Spent]:
    """Each budget, and each principal of a budget per principal. The largest share comes first."""
    spent = []
    for spec in specs:
        if not spec.per_principal:
            spent.append(_Spent(spec.name, spec, sums.get(spec.key("", month), 0) / NANO))
            continue
        prefix = spec.key("", month)
        principals = [(key.removeprefix(prefix), usd) for key, usd in sums.items() if key.startswith(prefix)]
        spent += [_Spent(f"{spec.name} {name or '(none)'}", spec, usd / NANO) for name, usd in principals]
    return sorted(spent, key=lambda one: (-one.share, one.name))


def _verdict(spent: Sequence[_Spent]) -> str:
    full = [one for one in spent if one.share >= 1]
    if full:
        more = f", and {len(full) - 1:,} more" if len(full) > 1 else ""
        first = full[0]
        return verdict_line(
            f"{first.name} has spent {dollars(first.usd)} of {dollars(first.spec.limit / NANO)}{more}.", "USED UP"
        )
    if not spent:
        return verdict_line("no principal has spent anything this month.", "WITHIN")
    return verdict_line(f"the fullest budget is {spent[0].name}, with {percent(spent[0].share, 1)}.", "WITHIN")


def _who(ledger: str, by: By) -> Iterable[str]:
    now_s = time.time()
    report = read_report(ledger, now_s - month_start(now_s), by)
    total = report.total.cost
    lines = sorted(report.groups, key=lambda line: (-line.cost, line.name))
    if not lines:
        yield soft_line("No request ended this month.")
        return
    yield html_of_rows([
        {
            by: line.name,
            "$ this month": dollars(line.cost),
            "share": percent(line.cost, total),
            "requests": f"{line.requests:,}",
            "$ per 1,000 requests": dollars(1000 * line.cost / line.requests) if line.requests else "-",
        }
        for line in lines[:MOST_LINES]
    ], label="Cost this month")  # fmt: skip
    if len(lines) > MOST_LINES:
        rest = sum(line.cost for line in lines[MOST_LINES:])
        yield soft_line(f"{len(lines) - MOST_LINES:,} more have spent {dollars(rest)} together.")


def cache_page(sources: Sources, since: str) -> str:
    """The cache of each cohort: its hits, what they saved, and whether it is on."""
    parts: list[str] = []
    states: Mapping[str, str] = {}
    if sources.router is not None:
        try:
            states = sources.router().caches
        except (OSError, ValueError) as error:
            parts.append(verdict_line(str(error), "The router is not shown"))
    off = {name: state.removeprefix("OFF: ") for name, state in states.items() if state.startswith("OFF")}
    parts += [verdict_line(f"the cache of `{name}` turned itself off: {why}", "OFF") for name, why in off.items()]
    reading = CacheReading()
    if sources.ledger is None:
        parts.append(soft_line(NO_LEDGER))
    else:
        parts.append(choices("/cache", since))
        try:
            reading = read_cache(sources.ledger, seconds_of(since))
            parts.append(_hits(reading))
        except OSError as error:
            parts.append(verdict_line(str(error), "Hits are not shown"))
    cohorts = cohorts_of(sources.snapshot(), reading.requests)
    caches = {name: cohort for name, cohort in cohorts.items() if cohort.cache is not None}
    return page("/cache", [*parts, *_caches(caches, reading, states), *_words(reading)])


def _hits(reading: CacheReading) -> str:
    hits = sum(sums.hits for sums in reading.by_cohort.values())
    saved = sum(sums.saved for sums in reading.by_cohort.values())
    requests = sum(reading.requests.values())
    return tiles([
        (f"{hits:,}", "requests that the cache answered"),
        (percent(hits, requests), "of all requests"),
        (dollars(saved), "saved, at the prices of the tiers that gave the answers"),
    ])  # fmt: skip


def _caches(caches: Mapping[str, Cohort], reading: CacheReading, states: Mapping[str, str]) -> Iterable[str]:
    if not caches:
        yield soft_line("No intent has the key `cache`. docs/guides/cache.md says how to write one.")
        return
    rows = []
    for name, cohort in caches.items():
        cache, sums, requests = cohort.cache, reading.of(name), reading.requests.get(name, 0)
        assert cache is not None
        rows.append({
            "cohort": name,
            "requests": f"{requests:,}",
            "hits": f"{sums.hits:,} ({percent(sums.hits, requests)})",
            "of other words": f"{sums.semantic:,}",
            "saved": dollars(sums.saved),
            "kept for": cache.ttl,
            "for": "every client" if cache.scope == "shared" else "its principal",
            "checked": f"{100 * cache.verify:g} % of the hits",
            "now": _state(name, states),
        })  # fmt: skip
    yield html_of_rows(rows, "words", "Caches")
    if not states:
        yield soft_line("Whether a cache is on is not known: start the console with --router.")


def _state(name: str, states: Mapping[str, str]) -> str:
    """Whether the cache of a cohort is on. An app without its own intents has it by itself."""
    if not states:
        return "-"
    of_apps = [f"{other}: {state}" for other, state in states.items() if other.endswith(f"/{name}")]
    return "; ".join([states.get(name, "this router does not serve it"), *of_apps])


def _words(reading: CacheReading) -> Iterable[str]:
    if not reading.words:
        return
    yield f"<h2>The newest {reading.looks:,} requests of cohorts with a cache</h2>"
    rows = [
        {"word": word, "requests": f"{count:,}", "share": percent(count, reading.looks), "meaning": _meaning(word)}
        for word, count in reading.words.most_common()
    ]
    yield html_of_rows(rows, "words", "Words of the cache")
    yield soft_line(f"Among the newest {NEWEST_WORDS:,} requests of the ledger.")


def _meaning(word: str) -> str:
    return CACHE_WORDS.get(CacheWord(word), "") if word in set(CacheWord) else ""
