"""The bodies of the commands: read, run, print. Exit codes: 0; 1, a regression; 2, the user's input is at fault."""

import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from extproc.config import load_config
from extproc.embedding import load_encoder
from extproc.offline import edits
from extproc.offline.calibration import as_text as describe
from extproc.offline.calibration import calibrate
from extproc.offline.convert import convert
from extproc.offline.evaluation import evaluate
from extproc.offline.execution import Memory, execute
from extproc.offline.page import as_html
from extproc.offline.report import as_text
from extproc.offline.tokens import Tokens
from extproc.offline.traffic import BadRow, Traffic, read_traffic

# Of the rows that cannot be used, so many are told one by one.
_TOLD = 10


def run_convert(kind: str, path: Path, where: dict[str, str]) -> int:
    """`extproc convert`: rows to stdout, what could not be converted to stderr."""
    count, bad = 0, []
    for row in convert(kind, path, where):
        if isinstance(row, BadRow):
            bad.append(row)
        else:
            count += 1
            sys.stdout.buffer.write(row + b"\n")
    tell_bad_rows(path, bad)
    print(f"{path}: {count} rows converted, {len(bad)} skipped", file=sys.stderr)
    return 0


def run_eval(intents: Path, data: Path, out: Path | None, as_json: Path | None, seed: int) -> int:
    """`extproc eval`: the report to the terminal, and to files."""
    traffic = usable(data)
    run = execute(intents, patient_encoder(intents), traffic, Tokens())
    tell_bad_rows(data, run.bad)
    report = evaluate(run, seed)
    print(as_text(report))
    if as_json is not None:
        as_json.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n")
    if out is not None:
        out.write_text(as_html(report, title=f"{intents} on {data.name}"))
    return 0


def run_calibrate(intents: Path, data: Path, risk: float, date: str, seed: int, write: bool) -> int:
    """`extproc calibrate`: what was fitted, and the change to the YAML; written only if asked."""
    traffic = usable(data)
    run = execute(intents, patient_encoder(intents), traffic, Tokens())
    tell_bad_rows(data, run.bad)
    found = calibrate(run, risk, date, seed)
    print("\n".join(describe(found, risk, run.snapshot.policy.cohorts)) + "\n")
    changed = 0
    for fit in found.fits:
        if fit.evidence is None:
            continue
        path = intents / run.config.files[fit.name]
        before = path.read_text()
        try:
            after = edits.with_evidence(before, fit.floor, fit.margin, fit.evidence)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        changed += before != after
        print("\n".join(edits.diff(path, before, after)))
        if write:
            edits.write(path, after)
    done = "written" if write else "not written: give --write to apply this"
    print(f"\n{changed} files {'changed and ' if write else ''}{done}" if changed else "\nnothing to change")
    return 0


def usable(path: Path) -> Traffic:
    """The traffic in a file. Raises ValueError when no row of it can be used."""
    traffic = read_traffic(path)
    if not traffic.rows:
        tell_bad_rows(path, traffic.bad)
        raise ValueError(f"{path}: no row can be used; docs/evidence.md has the format")
    return traffic


def patient_encoder(intents: Path) -> Memory:
    """The encoder that these intents are served with; it remembers what it encoded."""
    encoder = load_encoder(load_config(intents).policy.encoder.model)
    return Memory(encoder, encoder.sentences.encode, progress=sys.stderr.isatty())


def tell_bad_rows(path: Path, bad: Sequence[BadRow]) -> None:
    """Say on stderr which lines are skipped, and why."""
    for row in bad[:_TOLD]:
        print(f"{path}:{row.line}: skipped: {row.what}", file=sys.stderr)
    if len(bad) > _TOLD:
        print(f"{path}: and {len(bad) - _TOLD} more lines skipped", file=sys.stderr)
