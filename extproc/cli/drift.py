"""The command `drift`: whether the traffic of the last day differs from its week and from the evidence."""

import argparse
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

from extproc.cli.options import add_command, ledger_option, parse_lines_file

if TYPE_CHECKING:
    from extproc.cli.options import Commands
    from extproc.evidence.measure.drift import Drift


def add_drift(commands: "Commands") -> None:
    """Add the command."""
    drift = add_command(
        commands, "drift", _drift,
        "Show whether the requests of the last day differ from the week before. The exit code is 1 if they do. "
        "docs/guides/drift.md explains the numbers.",
    )  # fmt: skip
    ledger_option(drift)
    drift.add_argument(
        "--intents",
        type=Path,
        metavar="DIR",
        help="with --evidence: the folder that serves, with policy.yaml and one YAML file for each intent",
    )
    drift.add_argument(
        "--evidence",
        type=parse_lines_file,
        metavar="DATA",
        help="the rows that `extproc calibrate` or `learn` fitted on: also compare how near the requests are to "
        "their cohorts",
    )
    drift.add_argument("--json", action="store_true", help="print the result as JSON")


def _drift(args: argparse.Namespace) -> int:
    import msgspec

    from extproc.evidence.measure.drift import read_drift

    if (args.evidence is None) != (args.intents is None):
        raise ValueError("--evidence and --intents work only together: give both, or none")
    drift = read_drift(args.ledger, _similarities(args.intents, args.evidence) if args.evidence is not None else {})
    print(msgspec.json.encode(drift).decode() if args.json else _text(drift))
    return int(drift.drifted)


def _similarities(intents: Path, data: Path) -> dict[str, list[float]]:
    """The similarity of each row with its nearest cohort. The cohort of an app is APP/COHORT, as in the ledger."""
    from extproc.cli.evidence import patient_encoder, usable
    from extproc.evidence.app_rows import execute_apps
    from extproc.evidence.data.tokens import Tokens

    similarities = defaultdict[str, list[float]](list)
    for routed in execute_apps(intents, patient_encoder(intents), usable(data), Tokens()).routed:
        match = routed.decision.match
        if match is not None:
            similarities[match.cohort].append(match.similarity)
    return similarities


def _text(drift: "Drift") -> str:
    from extproc.evidence.measure.drift import FALSE_ALARM, sentence

    lines = [drift.verdict, ""]
    for finding in drift.findings:
        mark = "DRIFT" if finding.drifted else "     "
        lines.append(f"{mark}  {sentence(finding)} ({finding.rows[1]:,} rows, p {finding.p:.2g})")
    if drift.findings:
        share = f"{FALSE_ALARM * 100:g} %"
        lines += ["", f"Without drift, a run gives an alarm with a probability of at most {share}."]
    return "\n".join(lines)
