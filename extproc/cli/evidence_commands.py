"""The arguments of the commands that test and fit on traffic. `cli.evidence` carries them out."""

import argparse
import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from extproc.cli.learn_command import add_learn
from extproc.cli.options import (
    add_command,
    data_argument,
    intents_option,
    limits_options,
    parse_count,
    parse_day,
    parse_open_share,
    seed_option,
)
from extproc.cli.report_files import add_report_files, report_files
from extproc.config.load import load_config

if TYPE_CHECKING:
    from extproc.cli.options import Commands


def add_commands(commands: "Commands") -> None:
    """Add the commands of this group, in the order in which a newcomer needs them."""
    _add_convert(commands)
    _add_sample(commands)
    _add_map(commands)
    _add_eval(commands)
    _add_calibrate(commands)
    _add_diff(commands)
    _add_gate(commands)
    _add_suggest(commands)
    add_learn(commands)


def _add_convert(commands: "Commands") -> None:
    convert = add_command(
        commands, "convert", _convert,
        "Convert a log of OpenAI requests into rows of traffic. docs/reference/traffic.md has their format.",
    )  # fmt: skip
    convert.add_argument(
        "kind",
        choices=("openai-log",),
        help="format of FILE: logged requests and responses of the OpenAI API",
    )
    data_argument(convert, "JSON lines to convert", name="file")
    convert.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="MEMBER=VALUE",
        help="convert only lines whose JSON member has this value; repeat it for more conditions",
    )


def _add_sample(commands: "Commands") -> None:
    sample = add_command(
        commands, "sample", _sample,
        "Print the rows of a log that a person should label. They are drawn at random from every cohort and from "
        "sure and unsure matches, one for each conversation and text. Each gets a `weight`: how many rows of the "
        "log it stands for.",
    )  # fmt: skip
    intents_option(sample)
    data_argument(
        sample,
        "traffic as JSON lines (docs/reference/traffic.md), with or without labels, or the folder that "
        "`extproc map` wrote",
    )
    sample.add_argument(
        "--rows", type=parse_count, default=200, metavar="N", help="number of rows to print (default: %(default)s)"
    )
    seed_option(sample, "the draw")


def _add_map(commands: "Commands") -> None:
    mapping = add_command(
        commands, "map", _map,
        "Decide about every row of Parquet files, on all cores or on a Ray cluster. Each file gets a copy with the "
        "columns cohort, reason, tier, trusted, similarity, margin, text_hash and vector (half precision). Files "
        "that are there already are left out, so a stopped run goes on. `extproc sample` draws from the copies.",
    )  # fmt: skip
    intents_option(mapping)
    mapping.add_argument(
        "--rows",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder of Parquet files whose columns are the keys of docs/reference/traffic.md; `request`, "
        "`headers`, `outcomes`, `intent` and `variants` hold JSON",
    )
    mapping.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder for the copies; it is created if necessary"
    )


def _add_eval(commands: "Commands") -> None:
    evaluate = add_command(
        commands, "eval", _eval,
        "Report how these intents serve labelled or recorded traffic. Every row is routed and judged as when "
        "serving, and shown beside baselines on the same rows.",
    )  # fmt: skip
    intents_option(evaluate)
    data_argument(evaluate)
    add_report_files(evaluate, "an HTML page with plots")
    evaluate.add_argument(
        "--perturb",
        action="store_true",
        help="also report which decisions change under typos and paraphrases",
    )
    seed_option(evaluate, "resampling and for changing prompts")


def _add_calibrate(commands: "Commands") -> None:
    calibrate = add_command(
        commands, "calibrate", _calibrate,
        "Fit floors on labelled traffic, or choose tiers on recorded outcomes. Without --target it fits centroids, "
        "and floors for a stated risk. With --target it chooses the tier and settings of each cohort. It prints "
        "the change to the YAML, and makes it only with --write.",
    )  # fmt: skip
    intents_option(calibrate)
    data_argument(calibrate)
    calibrate.add_argument(
        "--risk",
        type=parse_open_share,
        default=0.05,
        metavar="SHARE",
        help="largest share of accepted matches that may be wrong, on average (default: %(default)s)",
    )
    calibrate.add_argument(
        "--target",
        metavar="quality=SHARE|cost=DOLLARS|loss=SHARE",
        help="choose tier and settings of each cohort by recorded outcomes. quality: at least this share of good "
        "answers. cost: at most this many US dollars per 1,000 requests. loss: a quality at most this far below "
        "that of the costliest tier for everything",
    )
    calibrate.add_argument(
        "--cut",
        type=parse_open_share,
        default=0.01,
        metavar="SHARE",
        help="with --target: largest share of good answers that the chosen output cap may cut off "
        "(default: %(default)s)",
    )
    calibrate.add_argument("--write", action="store_true", help="change the files (default: only print the change)")
    calibrate.add_argument(
        "--adapt",
        type=Path,
        metavar="DIR",
        help="also train an encoder on these utterances and rows, which takes minutes, and store it in DIR if it "
        "is better",
    )
    calibrate.add_argument(
        "--date",
        type=parse_day,
        metavar="YYYY-MM-DD",
        help="date that is written into the evidence (default: today)",
    )
    add_report_files(calibrate)
    seed_option(calibrate, "the split into rows to fit on and rows to report on")


def _add_diff(commands: "Commands") -> None:
    diff = add_command(
        commands, "diff", _diff,
        "Show which requests change between two folders of intents. Both route the same traffic, and quality and "
        "cost are compared cohort by cohort.",
    )  # fmt: skip
    diff.add_argument("old", type=Path, metavar="OLD", help="folder of intents to compare with")
    diff.add_argument("intents", type=Path, metavar="NEW", help="folder of intents with the change")
    data_argument(diff)
    diff.add_argument(
        "--show-text",
        action="store_true",
        help="print the text of requests that change (default: only their line numbers)",
    )
    seed_option(diff, "resampling")


def _add_gate(commands: "Commands") -> None:
    gate = add_command(
        commands, "gate", _gate,
        "Compare a folder of intents with a baseline, and fail if any cohort is worse. The exit code is 0 if it "
        "passes, 1 if a cohort is worse than the limits allow, and 2 if the input is at fault. It is 3 if a cohort "
        "goes to a cheaper tier without recorded answers, and 4 if the rows are too few to decide.",
    )  # fmt: skip
    gate.add_argument(
        "--baseline", type=Path, metavar="OLD", required=True, help="folder of intents to compare with"
    )
    gate.add_argument("intents", type=Path, metavar="NEW", help="folder of intents with the change")
    data_argument(gate)
    limits_options(gate)
    add_report_files(gate)
    seed_option(gate, "resampling")


def _add_suggest(commands: "Commands") -> None:
    suggest = add_command(
        commands, "suggest", _suggest,
        "Propose new intents for requests that match none. The proposals show the text of those requests.",
    )  # fmt: skip
    intents_option(suggest)
    data_argument(suggest, "traffic as JSON lines (docs/reference/traffic.md), with or without labels")
    suggest.add_argument(
        "--out", type=Path, metavar="DIR", help="also write the proposals into DIR, one file for each"
    )


def _convert(args: argparse.Namespace) -> int:
    from extproc.cli.evidence import run_convert

    where = dict(condition.partition("=")[::2] for condition in args.where)
    return run_convert(args.kind, args.file, where)


def _sample(args: argparse.Namespace) -> int:
    from extproc.cli.evidence_sample import run_sample

    return run_sample(args.intents, args.data, args.rows, args.seed)


def _map(args: argparse.Namespace) -> int:
    from extproc.evidence.mapping import map_folder

    map_folder(args.intents, args.rows, args.out)
    return 0


def _eval(args: argparse.Namespace) -> int:
    from extproc.cli.evidence import run_eval

    return run_eval(args.intents, args.data, report_files(args), args.seed, args.perturb)


def _calibrate(args: argparse.Namespace) -> int:
    from extproc.cli.evidence_calibrate import run_calibrate, run_choose
    from extproc.evidence.fit.target import parse_target

    date, files = args.date or datetime.date.today().isoformat(), report_files(args)
    fixed = date, args.seed, args.write
    if args.target is None:
        return run_calibrate(args.intents, args.data, args.risk, *fixed, args.adapt, files=files)
    if args.adapt is not None:
        raise ValueError("--adapt needs labelled rows and --target needs outcomes: calibrate once with each")
    return run_choose(args.intents, args.data, parse_target(args.target), args.cut, *fixed, files)


def _diff(args: argparse.Namespace) -> int:
    from extproc.cli.evidence_compare import run_diff

    load_config(args.old)  # a mistake in it shows before minutes of work
    return run_diff(args.old, args.intents, args.data, args.seed, args.show_text)


def _gate(args: argparse.Namespace) -> int:
    from extproc.cli.evidence_compare import run_gate

    files = report_files(args)
    load_config(args.baseline)  # a mistake in it shows before minutes of work
    limits = args.max_quality_drop, args.max_cost_rise
    return run_gate(args.baseline, args.intents, args.data, *limits, args.seed, files=files)


def _suggest(args: argparse.Namespace) -> int:
    from extproc.cli.evidence import run_suggest

    return run_suggest(args.intents, args.data, args.out)
