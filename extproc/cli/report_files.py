"""The report of `eval`, `calibrate` and `gate` as files: an HTML page, and JSON."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec


class ReportFiles(msgspec.Struct, frozen=True):
    """The files of a report. None: it is not written."""

    page: Path | None = None
    json: Path | None = None

    def write(self, as_html: Callable[[], str], as_json: Callable[[], Any]) -> None:
        """Write the files. In JSON, a number that is not known is null. Raises OSError."""
        if self.page is not None:
            self.page.write_text(as_html(), encoding="utf-8")
        if self.json is not None:
            self.json.write_bytes(msgspec.json.format(msgspec.json.encode(as_json()), indent=1) + b"\n")


NO_FILES = ReportFiles()


def add_report_files(parser: argparse.ArgumentParser, page: str = "an HTML page") -> None:
    """Add `--out` and `--json`. `page` describes the page."""
    parser.add_argument("--out", type=Path, metavar="REPORT.html", help=f"also write the report as {page}")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="also write the report as JSON, with every number"
    )


def report_files(args: argparse.Namespace) -> ReportFiles:
    """The files that were asked for. Raises ValueError if they cannot be written, before minutes of work."""
    for path in (args.out, args.json):
        if path is not None and not path.absolute().parent.is_dir():
            raise ValueError(f"{path}: its folder does not exist: create it, or give another path")
        if path is not None and path.is_dir():
            raise ValueError(f"{path}: is a folder: give the name of a file")
    if args.out is not None and args.out.suffix == ".json":
        raise ValueError(f"--out {args.out}: --out writes an HTML page: for JSON give --json {args.out}")
    if args.out is not None and args.out == args.json:
        raise ValueError(f"--out and --json name the same file {args.out}: give two names")
    return ReportFiles(args.out, args.json)
