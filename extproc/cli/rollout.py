"""The command `rollout`: show the comparison of a candidate, and end it."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from extproc.cli.options import add_command, intents_option, parse_percent

if TYPE_CHECKING:
    from extproc.accounting.rollout_text import RolloutText
    from extproc.cli.options import Commands


def add_rollout(commands: "Commands") -> None:
    """Add the command."""
    rollout = add_command(
        commands, "rollout", _rollout,
        "Show how the candidate of a policy compares, and end the comparison. docs/guides/rollout.md is the guide.",
    )  # fmt: skip
    rollout.add_argument(
        "action",
        choices=("status", "start", "promote", "stop"),
        help="status: show the verdict. start: give the candidate a share of the conversations. promote: let its "
        "files serve, and keep the old ones in a folder beside them. stop: remove the candidate from policy.yaml",
    )
    intents_option(rollout)
    rollout.add_argument(
        "--ledger",
        metavar="FILE|postgresql://...",
        help="with status: the ledger that `extproc serve --ledger` writes",
    )
    rollout.add_argument(
        "--percent",
        type=parse_percent,
        default=5.0,
        metavar="0..100",
        help="with start: share of the conversations that the candidate decides about, in percent "
        "(default: %(default)g)",
    )


def _rollout(args: argparse.Namespace) -> int:
    from extproc.config.rollout_files import promote, start, stop

    match args.action:
        case "status":
            if args.ledger is None:
                raise ValueError("`rollout status` reads the ledger: give --ledger, as for `extproc serve`")
            print(rollout_status(args.intents, args.ledger).text, end="")
        case "start":
            print(start(args.intents, args.percent))
        case "promote":
            for line in promote(args.intents):
                print(line)
        case _:
            print(stop(args.intents))
    return 0


def rollout_status(intents: Path, ledger: str) -> "RolloutText":
    """Return the comparison of the policy's candidate. Raises ValueError if the policy has none."""
    from extproc.accounting.rollout import Comparison, RolloutReader, add_signals, read_beside
    from extproc.accounting.rollout_text import beside_text, comparison_text
    from extproc.config.candidate import alike_cohorts
    from extproc.config.load import load_candidate
    from extproc.config.rollout_files import config_with_candidate

    config = config_with_candidate(intents)
    candidate, spec = load_candidate(config, intents), config.policy.candidate
    assert spec is not None
    if spec.shadow:
        return beside_text(read_beside(ledger, config.revision))
    comparison = Comparison(candidate.revision, spec.loss, alike_cohorts(config, candidate))
    RolloutReader(ledger, comparison).read()
    add_signals(ledger, comparison)
    return comparison_text(comparison, spec.percent / 100)
