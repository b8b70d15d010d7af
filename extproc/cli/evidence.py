"""The commands that work on evidence. Each returns an exit code. Wrong input raises an error."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from extproc.cli.report_files import ReportFiles
from extproc.config.load import load_config
from extproc.contract.words import Reason
from extproc.encoder.backends import load_encoder, vectors_name
from extproc.evidence.app_rows import execute_apps
from extproc.evidence.data.convert import convert
from extproc.evidence.data.tokens import Tokens
from extproc.evidence.data.traffic import BadRow, Traffic, other_file, read_traffic
from extproc.evidence.data.vector_store import store_for
from extproc.evidence.execution import Execution, Memory, execute
from extproc.evidence.fit.suggestion import LEAST_ROWS, as_yaml, borderline_utterances, propose
from extproc.evidence.measure.evaluation import evaluate
from extproc.evidence.measure.notes import unused
from extproc.evidence.perturb.robustness import perturb
from extproc.evidence.show.evaluation import evaluation_text
from extproc.evidence.show.page import as_html
from extproc.mismatch import counted

# At most this many unusable rows are reported one by one.
_MOST_REPORTED = 10


def run_convert(kind: str, path: Path, where: dict[str, str]) -> int:
    """`extproc convert`: write rows to stdout, and report unusable lines on stderr."""
    count, bad = 0, []
    for row in convert(kind, path, where):
        if isinstance(row, BadRow):
            bad.append(row)
        else:
            count += 1
            sys.stdout.buffer.write(row + b"\n")
    report_bad_rows(path, bad)
    print(f"{path}: {count} rows converted, {len(bad)} skipped", file=sys.stderr)
    return 0


def requests_by_id(path: Path) -> dict[str, dict[str, Any]]:
    """The requests of an OpenAI log as rows, by their ids. Unusable lines are reported on stderr."""
    rows, bad = [], []
    for row in convert("openai-log", path, {}):
        if isinstance(row, BadRow):
            bad.append(row)
        else:
            rows.append(msgspec.json.decode(row))
    report_bad_rows(path, bad)
    return {str(row["id"]): row for row in rows if "id" in row}


def run_eval(intents: Path, data: Path, files: ReportFiles, seed: int, perturbed: bool = False) -> int:
    """`extproc eval`: print the evaluation, and write it to files."""
    traffic, memory, tokens = usable(data), patient_encoder(intents), Tokens()
    run = execute_apps(intents, memory, traffic, tokens)
    report_bad_rows(data, run.bad)
    evaluation = evaluate(run, seed)
    if perturbed:
        evaluation = msgspec.structs.replace(evaluation, robustness=perturb(run, memory, seed))
    print(evaluation_text(evaluation))
    files.write(lambda: as_html(evaluation, title=f"{intents} on {data.name}"), lambda: evaluation)
    return 0


def run_suggest(intents: Path, data: Path, out: Path | None) -> int:
    """`extproc suggest`: print proposed intents as YAML or write them into a folder, and list weak utterances."""
    if out is not None and (existing := sorted(out.glob("proposed-*.yaml"))):
        raise ValueError(f"{existing[0]} exists: move it into {intents}, delete it, or name another folder")
    memory = patient_encoder(intents)
    run = execute(intents, memory, usable(data), Tokens())
    report_unused(data, run)
    proposals = propose(run, memory)
    tier = run.snapshot.policy.default_tier
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        for i, proposal in enumerate(proposals, start=1):
            (out / f"proposed-{i:02}.yaml").write_text(as_yaml(proposal, tier), encoding="utf-8")
    outside = sum(run.routed.column(lambda decision: decision.reason is Reason.OUT_OF_SCOPE))
    none = "" if proposals else f", because fewer than {LEAST_ROWS} of them are alike"
    count = counted(len(proposals), "proposed intent")
    print(f"{outside:,} of {len(run.rows):,} rows fall out of scope; {count}{none}")
    for proposal in proposals:
        print("\n" + as_yaml(proposal, tier), end="")
    print("\nutterances closest to another intent (named in brackets); reword them or move them there:")
    for near in borderline_utterances(run, memory):
        print(f"  {near.file}: {near.utterance[:60]!r} ({near.other}, margin {near.margin:.3f})")
    return 0


def usable(path: Path, name: Path | None = None) -> Traffic:
    """The traffic in a file, which messages call `name`. Raises ValueError if no row can be used."""
    traffic, path = read_traffic(path), name or path
    if not traffic.rows:
        report_bad_rows(path, traffic.bad)
        kind = other_file(path) if traffic.bad else None
        found = "no row can be used" if traffic.bad else "the file has no rows"
        remedy = f"{kind}. The format is in" if kind else "give JSON lines in the format of"
        raise ValueError(f"{path}: {found}: {remedy} docs/reference/traffic.md")
    return traffic


def patient_encoder(intents: Path) -> Memory:
    """The encoder that serves these intents, with a memory."""
    return patient(load_config(intents).policy.encoder.model)


def patient(model: str) -> Memory:
    """The encoder that serves `model`, with a memory and the vectors that earlier commands have stored."""
    encoder = load_encoder(model)
    return Memory(encoder, encoder.sentences.encode, progress=True, store=store_for(vectors_name(model)))


def report_unused(path: Path, *runs: Execution) -> None:
    """Report on stderr the rows that are skipped, and the names that no configuration has. Each note once."""
    bad = {row: None for run in runs for row in run.bad}
    report_bad_rows(path, [*bad])
    intents = {name for run in runs for name in run.snapshot.policy.cohorts}
    for note in dict.fromkeys(note for run in runs for note in unused(run, intents)):
        print(f"{path}: {note}", file=sys.stderr)


def report_bad_rows(path: Path, bad: Sequence[BadRow]) -> None:
    """Report on stderr which lines are skipped, and why."""
    for row in sorted(bad, key=lambda row: row.line)[:_MOST_REPORTED]:
        print(f"{path}:{row.line}: skipped: {row.what}", file=sys.stderr)
    if len(bad) > _MOST_REPORTED:
        print(f"{path}: and {len(bad) - _MOST_REPORTED} more lines skipped", file=sys.stderr)
