"""The arguments of the command `learn`. `cli.learn` carries it out."""

import argparse
import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from extproc.cli.options import (
    add_command,
    intents_option,
    ledger_option,
    limits_options,
    parse_count,
    parse_percent,
    seed_option,
)
from extproc.config.load import load_config

if TYPE_CHECKING:
    from extproc.cli.options import Commands


def add_learn(commands: "Commands") -> None:
    """Add the command."""
    learn = add_command(
        commands, "learn", _learn,
        "Make a candidate of the requests in a ledger. Its steps are export, labels, calibrate, diff, gate and "
        "candidate. A cron job can run it. The serving policy changes only by the key `candidate`. If a cohort is "
        "worse, it does not change, and the exit code is 1. docs/guides/learn.md is the guide.",
    )  # fmt: skip
    intents_option(learn)
    ledger_option(learn)
    learn.add_argument(
        "--requests", type=Path, metavar="FILE", required=True,
        help="the requests that you kept, with their `id`, in the format that `extproc convert openai-log` reads",
    )  # fmt: skip
    learn.add_argument(
        "--out", type=Path, metavar="DIR", required=True,
        help="folder of the rows that wait for a label, of the labels so far, and of the report",
    )  # fmt: skip
    learn.add_argument(
        "--since", default="30d", metavar="SPAN",
        help="read only requests of the last SPAN, such as 24h or 30d (default: %(default)s)",
    )  # fmt: skip
    learn.add_argument(
        "--target", metavar="quality=SHARE|cost=DOLLARS|loss=SHARE",
        help="also choose tier and settings of each cohort by the recorded outcomes, as `calibrate --target` does",
    )  # fmt: skip
    learn.add_argument(
        "--rows", type=parse_count, default=100, metavar="N",
        help="number of rows that wait for a person's label (default: %(default)s)",
    )  # fmt: skip
    learn.add_argument(
        "--percent", type=parse_percent, default=5.0, metavar="0..100",
        help="share of the conversations that the candidate decides about, in percent (default: %(default)g)",
    )  # fmt: skip
    limits_options(learn)
    seed_option(learn, "the draws and the resampling")


def _learn(args: argparse.Namespace) -> int:
    from extproc.accounting.report import seconds_of
    from extproc.cli.learn import LearnTask, run_learn
    from extproc.evidence.fit.target import parse_target

    load_config(args.intents)  # a mistake in it shows before minutes of work
    return run_learn(
        LearnTask(
            intents=args.intents,
            ledger=args.ledger,
            requests=args.requests,
            out=args.out,
            since_s=seconds_of(args.since),
            risk=0.05,
            target=parse_target(args.target) if args.target is not None else None,
            limits=(args.max_quality_drop, args.max_cost_rise),
            percent=args.percent,
            queued=args.rows,
            date=datetime.date.today().isoformat(),
            seed=args.seed,
        )
    )
