"""The commands for people who write intents: `check`, `explain` and `schema`."""

import argparse
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from extproc.cli.options import add_command, intents_option, parse_header
from extproc.mismatch import counted

if TYPE_CHECKING:
    from extproc.cli.options import Commands
    from extproc.config.load import Config
    from extproc.routing.policy import Cohort
    from extproc.routing.snapshot import Snapshot


def add_commands(commands: "Commands") -> None:
    """Add the commands of this group."""
    check = add_command(
        commands, "check", _check,
        "Check a folder of intents and report every mistake with file, line and remedy. The exit code is 0 without "
        "mistakes, and 2 with mistakes.",
    )  # fmt: skip
    check.add_argument(
        "intents", type=Path, metavar="DIR", help="folder that holds policy.yaml and one YAML file for each intent"
    )
    check.add_argument(
        "--strict",
        action="store_true",
        help="also report valid settings that are probably not meant, such as tiers out of order or files that are "
        "not read, as mistakes",
    )

    explain = add_command(
        commands, "explain", _explain,
        "Show the tier that a prompt would go to, and why. Give a prompt, or a request body with --request.",
    )  # fmt: skip
    intents_option(explain)
    explain.add_argument("prompt", nargs="?", help="text of the prompt")
    explain.add_argument("--request", type=Path, metavar="FILE", help="file with a request body as JSON")
    explain.add_argument(
        "--path",
        metavar="PATH",
        help="HTTP path of the request, as in /v1/chat/completions (default: derived from the shape of the body)",
    )
    explain.add_argument(
        "--header",
        type=parse_header,
        action="append",
        default=[],
        metavar="NAME: VALUE",
        help="header of the request that rules of the policy may read; repeat it for several headers",
    )
    explain.add_argument(
        "--app",
        metavar="NAME",
        help="app of policy.yaml that the request belongs to (default: the one that its headers match, such as "
        "--header 'host: llm.example.com')",
    )
    explain.add_argument("--json", action="store_true", help="print the decision as JSON")

    schema = add_command(
        commands, "schema", _schema,
        "Print the JSON Schema of the YAML files, for editors. An editor with a YAML language server completes, "
        "explains and checks a file that names the schema in its first line: "
        "`# yaml-language-server: $schema=FILE`.",
    )  # fmt: skip
    schema.add_argument(
        "file",
        choices=("policy", "intent", "background"),
        help="kind of YAML file: policy.yaml, the file of an intent, or _background.yaml",
    )


def _check(args: argparse.Namespace) -> int:
    from extproc.config.compile import compile_snapshot
    from extproc.config.load import ConfigError, in_configmap, load_config
    from extproc.config.strict_checks import strict_problems
    from extproc.config.upstream_files import check_upstream_files
    from extproc.encoder.backends import load_encoder
    from extproc.routing.centroid_file import CENTROIDS_FILE
    from extproc.routing.gain_file import GAINS_FILE

    config = load_config(args.intents)
    if args.strict and (problems := strict_problems(config, args.intents)):
        raise ConfigError(problems, args.intents)
    notes = [*config.old_keys, *check_upstream_files(config)]
    snapshot = compile_snapshot(config, load_encoder(config.policy.encoder.model))
    cohorts = snapshot.policy.cohorts.values()
    parts = f"{counted(len(cohorts), 'cohort')}, {counted(len(config.policy.tiers), 'tier')}"
    print(f"{args.intents}: {parts}, revision {snapshot.revision}")
    raw = b""
    if config.fitted is not None:
        raw = (args.intents / CENTROIDS_FILE).read_bytes()
        print(f"{CENTROIDS_FILE}: {config.fitted.header}; {in_configmap(args.intents, raw)}")
    if config.gains is not None:
        raw += (args.intents / GAINS_FILE).read_bytes()
        print(f"{GAINS_FILE}: {config.gains.header}; {in_configmap(args.intents, raw)}")
    for note in (*notes, *_notes(config, cohorts)):
        print(note)
    for line in _check_apps(config, snapshot, args.intents):
        print(line)
    if config.policy.candidate is not None:
        print(_check_candidate(config, args.intents))
    return 0


def _check_apps(config: "Config", snapshot: "Snapshot", folder: Path) -> Iterator[str]:
    """Check the files of each app, and describe it in one line. Raises ConfigError with the mistakes of all."""
    from extproc.config.apps import compile_app
    from extproc.config.load import ConfigError
    from extproc.encoder.backends import load_encoder

    problems = []
    for name, app in config.policy.apps.items():
        try:
            own = compile_app(name, snapshot, config, folder, load_encoder(config.policy.encoder.model))
        except ConfigError as error:
            problems += error.problems
            continue
        where = f"in {app.intents}" if app.intents else "of the policy"
        tiers = f", tiers {', '.join(app.tiers)}" if app.tiers is not None else ""
        team = f", team {app.team}" if app.team is not None else ""
        yield f"app {name}: {counted(len(own.policy.cohorts), 'cohort')} {where}{tiers}{team}"
    if problems:
        raise ConfigError(problems, folder)


def _check_candidate(config: "Config", folder: Path) -> str:
    """Check the files of the candidate, and describe it in one line. Raises ConfigError."""
    from extproc.config.candidate import alike_cohorts, compile_candidate
    from extproc.encoder.backends import load_encoder
    from extproc.envoy.bootstrap import sample_of

    spec = config.policy.candidate
    assert spec is not None
    candidate, snapshot = compile_candidate(config, folder, load_encoder(config.policy.encoder.model))
    part = "decides beside them" if spec.shadow else f"decides about {spec.percent:g} % of the conversations"
    alike = len(alike_cohorts(config, candidate))
    size = f"{len(candidate.intents)} cohorts, {alike} matched alike"
    text = f"candidate in {spec.dir}: {size}, revision {snapshot.revision}; {part}"
    if config.policy.apps:
        text += ", and about no request of an app"
    if sample_of(candidate) != sample_of(config):
        text += "; Envoy carries out a part of it only after the promotion and `extproc envoy`"
    return text


def _notes(config: "Config", cohorts: Iterable["Cohort"]) -> Iterator[str]:
    """Findings that are not mistakes: one line for each kind, with the names of the cohorts."""
    from extproc.acceptance.verdict import needs_whole_answer
    from extproc.config.logprob_checks import without_logprobs
    from extproc.config.residency import describe_refusals

    rules = {cohort.name: needs_whole_answer(cohort.accept) for cohort in cohorts if cohort.stream == "early"}
    notes = {
        "abstain (no floor keeps the risk, so their settings do not apply)": [
            f"{cohort.name} ({cohort.figure})" for cohort in cohorts if cohort.abstains
        ],
        "accepted by `abstain: off` (no floor keeps the risk)": [
            f"{cohort.name} ({cohort.figure})" for cohort in cohorts if cohort.unproven
        ],
        "uncalibrated (no evidence for their floors)": [
            cohort.name for cohort in cohorts if cohort.evidence is None
        ],
        "stale (utterances or centroids changed since `extproc calibrate`)": [
            cohort.name
            for cohort in cohorts
            if cohort.evidence is not None and not (cohort.calibrated or cohort.evidence.abstains)
        ],
        "stale (models changed since tier and settings were chosen)": [
            cohort.name
            for cohort in cohorts
            if cohort.chosen is not None and not cohort.chosen.holds(config.policy.tiers)
        ],
        "stale (gains.safetensors is missing, stale or of another fit, so `by_prompt` is not used)": [
            cohort.name for cohort in cohorts if cohort.prompt_stale
        ],
        "uncalibrated, so `by_prompt` is not used (run `extproc calibrate`)": [
            cohort.name for cohort in cohorts if cohort.by_prompt is not None and not cohort.has_floor
        ],
        "long streams skip rules that need the whole answer (`stream: buffer` applies them)": [
            f"{name} ({', '.join(names)})" for name, names in rules.items() if names
        ],
        "a rule needs log-probabilities, which the tier's model does not give": without_logprobs(
            cohorts, config.policy.tiers
        ),
    }
    yield from (f"{note}: {', '.join(names)}" for note, names in notes.items() if names)
    refusals = describe_refusals(config)
    if refusals is not None:
        yield refusals


def _explain(args: argparse.Namespace) -> int:
    from extproc.cli.explain import explain

    if (args.prompt is None) == (args.request is None):
        raise ValueError('give either a prompt or --request FILE: extproc explain --intents DIR "..."')
    body = args.request.read_bytes() if args.request is not None else None
    print(explain(args.intents, args.prompt, body, args.path, args.header, args.json, args.app))
    return 0


def _schema(args: argparse.Namespace) -> int:
    import msgspec

    from extproc.config.json_schema import json_schema

    print(msgspec.json.format(msgspec.json.encode(json_schema(args.file)), indent=2).decode())
    return 0
