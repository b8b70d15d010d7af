"""The commands that read the ledger: `report`, `export` and `why`."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from extproc.cli.drift import add_drift
from extproc.cli.options import add_command, ledger_option, parse_share

if TYPE_CHECKING:
    from extproc.cli.options import Commands


def add_commands(commands: "Commands") -> None:
    """Add the commands of this group."""
    report = add_command(
        commands, "report", _report,
        "Show cost, savings and escalations by cohort, tier, caller, app or team. docs/guides/ledger.md explains "
        "the numbers.",
    )  # fmt: skip
    _ledger_options(report)
    report.add_argument(
        "--by",
        choices=("cohort", "tier", "principal", "app", "team"),
        default="cohort",
        help="group the requests by this: one line of the report for each (default: %(default)s)",
    )
    report.add_argument("--html", type=Path, metavar="FILE", help="write an HTML page to FILE and print nothing")
    report.add_argument("--json", action="store_true", help="print the report as JSON")

    export = add_command(
        commands, "export", _export,
        "Print the outcome of each request, as JSON lines. Without --requests the lines hold no text and no "
        "callers. docs/guides/ledger.md explains the fields.",
    )  # fmt: skip
    _ledger_options(export)
    export.add_argument(
        "--share",
        type=parse_share,
        default=1.0,
        metavar="0..1",
        help="share of the conversations to print, each of them whole (default: %(default)s, which is all)",
    )
    export.add_argument(
        "--requests",
        type=Path,
        metavar="FILE",
        help="print traffic for `extproc eval` and `calibrate` instead: the requests in FILE, joined with their "
        "outcomes by the `id` of each line; FILE has the format that `extproc convert openai-log` reads",
    )

    export.add_argument(
        "--parquet",
        type=Path,
        metavar="DIR",
        help="write Parquet files instead, one for each day (UTC) in DIR/day=YYYY-MM-DD; every day is whole, also "
        "the one in which --since begins",
    )

    why = add_command(
        commands, "why", _why,
        "Show the decision about one request, its attempts, verdicts and cost. docs/guides/on-call.md says "
        "when to use it.",
    )  # fmt: skip
    why.add_argument(
        "request", metavar="REQUEST_ID", help="id of the request, from the answer's header x-request-id"
    )
    ledger_option(why)
    add_drift(commands)


def _ledger_options(parser: argparse.ArgumentParser) -> None:
    ledger_option(parser)
    parser.add_argument(
        "--since",
        default="24h",
        metavar="SPAN",
        help="read only requests of the last SPAN, such as 30m, 24h or 7d (default: %(default)s)",
    )


def _report(args: argparse.Namespace) -> int:
    import msgspec

    from extproc.accounting.render import html_of, text_of
    from extproc.accounting.report import read_report, seconds_of

    report = read_report(args.ledger, seconds_of(args.since), args.by)
    if args.html is not None:
        args.html.write_text(html_of(report), encoding="utf-8")
    elif args.json:
        print(msgspec.json.encode(report).decode())
    else:
        print(text_of(report), end="")
    return 0


def _why(args: argparse.Namespace) -> int:
    from extproc.accounting.why import why

    print(why(args.ledger, args.request))
    return 0


def _export(args: argparse.Namespace) -> int:
    from extproc.accounting.export import JoinCounts, as_traffic, export
    from extproc.accounting.report import seconds_of

    if args.parquet is not None:
        return _export_parquet(args)
    lines, count = export(args.ledger, seconds_of(args.since), args.share), JoinCounts()
    if args.requests is not None:
        from extproc.cli.evidence import requests_by_id

        lines = as_traffic(lines, requests_by_id(args.requests), count)
    for line in lines:
        sys.stdout.buffer.write(line)
    if args.requests is not None:
        without = f"{count.without} outcomes whose id is on no line of this file"
        print(f"{args.requests}: {count.rows} rows joined, {without}", file=sys.stderr)
    return 0


def _export_parquet(args: argparse.Namespace) -> int:
    from extproc.accounting.parquet_export import export_days
    from extproc.accounting.report import seconds_of

    if args.requests is not None:
        raise ValueError(
            "--parquet and --requests: give one of them, as traffic to evaluate is written as JSON lines"
        )
    for file, rows in export_days(args.ledger, seconds_of(args.since), args.parquet, args.share):
        print(f"{file}: {rows:,} rows", file=sys.stderr)
    return 0
