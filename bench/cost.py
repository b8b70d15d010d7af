"""The cost of a month with one tier, with routed tiers and with a cascade, at the reader's own prices.

Run: `python -m bench.cost`. docs/guides/cost.md explains the table and how to measure its inputs.
"""

import argparse
from collections.abc import Sequence
from typing import NamedTuple


class Tier(NamedTuple):
    """A tier: its prices in dollars per million tokens, and the share of its answers that are right."""

    name: str
    input: float
    output: float
    right: float


class Load(NamedTuple):
    """The traffic of a month."""

    requests: int
    tokens_in: int
    tokens_out: int


class Way(NamedTuple):
    """One way to serve the month."""

    name: str
    dollars: float
    rejected: float  # the part of `dollars` for answers that no client received
    right: float  # share of requests with a right answer

    def per_1000_right(self, load: Load) -> float:
        """Dollars for 1,000 right answers."""
        return 1000 * self.dollars / (self.right * load.requests)


def price(tier: Tier, load: Load) -> float:
    """Dollars for one answer of the tier."""
    return (load.tokens_in * tier.input + load.tokens_out * tier.output) / 1e6


def routed(tiers: Sequence[tuple[Tier, float]], load: Load) -> Way:
    """Each tier serves its share of the requests."""
    name = ", ".join(f"{100 * share:g} % {tier.name}" for tier, share in tiers)
    dollars = load.requests * sum(share * price(tier, load) for tier, share in tiers)
    return Way(name, dollars, 0.0, sum(share * tier.right for tier, share in tiers))


def cascade(first: Tier, then: Tier, escalated: float, right: tuple[float, float], load: Load) -> Way:
    """`first` answers everything. The share `escalated` is rejected and answered by `then`, and both are paid for.

    `right`: the share of right answers among the accepted ones of `first`, and among the ones of `then`.
    """
    dollars = load.requests * (price(first, load) + escalated * price(then, load))
    name = f"{first.name}, {100 * escalated:g} % rejected and sent to {then.name}"
    rejected = load.requests * escalated * price(first, load)
    return Way(name, dollars, rejected, (1 - escalated) * right[0] + escalated * right[1])


def table(ways: Sequence[Way], load: Load) -> list[str]:
    """One line for each way."""
    tokens = f"{load.tokens_in:,} input and {load.tokens_out:,} output tokens"
    lines = [f"{load.requests:,} requests a month with {tokens} each", ""]
    lines.append(f"{'':<44}{'$ a month':>11}{'of it rejected':>16}{'right %':>9}{'$ per 1,000 right':>19}")
    for way in ways:
        figures = f"{way.dollars:>11,.0f}{way.rejected:>16,.0f}{100 * way.right:>9.1f}"
        lines.append(f"{way.name:<44}{figures}{way.per_1000_right(load):>19.3f}")
    return lines


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)

    def add(name: str, default: Sequence[float], metavar: tuple[str, ...], about: str) -> None:
        shown = " ".join(f"{value:g}" for value in default)
        parser.add_argument(
            f"--{name}", type=float, nargs=len(metavar), default=default, metavar=metavar, help=f"{about} ({shown})"
        )

    parser.add_argument("--requests", type=int, default=10_000_000, help="requests a month (%(default)s)")
    add("tokens", (750, 250), ("IN", "OUT"), "input and output tokens of a request")
    prices = "dollars per million input and output tokens, and the share of right answers,"
    add("small", (0.28, 0.42, 0.86), ("IN", "OUT", "RIGHT"), f"{prices} of the small tier")
    add("medium", (1, 5, 0.88), ("IN", "OUT", "RIGHT"), f"{prices} of the medium tier")
    add("large", (3, 15, 0.9), ("IN", "OUT", "RIGHT"), f"{prices} of the large tier")
    add("two", (0.7,), ("SHARE",), "with two tiers, the share of the medium one")
    add("three", (0.5, 0.4), ("SMALL", "MEDIUM"), "with three tiers, the shares of the small and the medium one")
    add("escalated", (0.3,), ("SHARE",), "share of rejected answers in the cascade")
    add("cascade-right", (0.93, 0.8), ("ACCEPTED", "ESCALATED"), "share of right answers in the cascade")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    args = _parser().parse_args(argv)
    load = Load(args.requests, *map(int, args.tokens))
    small, medium, large = (Tier(name, *getattr(args, name)) for name in ("small", "medium", "large"))
    [two], [escalated] = args.two, args.escalated
    three = [(small, args.three[0]), (medium, args.three[1]), (large, round(1 - sum(args.three), 9))]
    ways = [
        routed([(large, 1.0)], load),
        routed([(medium, two), (large, round(1 - two, 9))], load),
        routed(three, load),
        cascade(medium, large, escalated, tuple(args.cascade_right), load),
    ]
    print("\n".join(table(ways, load)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
