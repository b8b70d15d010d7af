"""The commands that compare two folders of intents: `diff` and `gate`. Each returns an exit code."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from extproc.cli.evidence import patient, report_unused, usable
from extproc.cli.report_files import NO_FILES, ReportFiles
from extproc.config.load import load_config
from extproc.evidence.app_rows import read_side
from extproc.evidence.data.decided import Decided
from extproc.evidence.data.tokens import Tokens
from extproc.evidence.execution import Execution
from extproc.evidence.measure.by_app import Part, compare_apps
from extproc.evidence.measure.comparison import Comparison
from extproc.evidence.measure.gate import gate_report
from extproc.evidence.show.comparison import comparison_text, gate_text
from extproc.evidence.show.gate_page import gate_html


def run_diff(old: Path, new: Path, data: Path, seed: int, show_text: bool, copies_of: Path | None = None) -> int:
    """`extproc diff`: print the rows that flip between two folders, and the effect."""
    compared, parts, about = _compared(old, new, data, seed, copies_of)
    print("\n".join(about))
    texts = None
    if show_text:
        flipped = {flip.line for flip in compared.flips}
        texts = {
            line: _ask(part.old.routed[i])
            for part in parts
            for i, line in enumerate(part.old.rows.lines.tolist())
            if line in flipped
        }
    print("\n".join(comparison_text(compared, texts)))
    return 0


def run_gate(
    old: Path,
    new: Path,
    data: Path,
    max_quality_drop: float,
    max_cost_rise: float,
    seed: int,
    copies_of: Path | None = None,
    files: ReportFiles = NO_FILES,
) -> int:
    """`extproc gate`: print the verdict and the comparison. The exit code is that of the verdict (`Passage`)."""
    compared, _, about = _compared(old, new, data, seed, copies_of)
    report = gate_report(compared, max_quality_drop, max_cost_rise)
    files.write(
        lambda: gate_html(report, compared, about, f"gate {new} against {old} on {data.name}"),
        lambda: {
            "verdicts": [report.headline],
            "exit_code": int(report.passage),
            "limits": {"max_quality_drop": max_quality_drop, "max_cost_rise": max_cost_rise},
            "worse": report.verdicts,
            "unseen": report.unseen,
            "power": report.power,
            "comparison": compared,
        },
    )
    print("\n".join([*gate_text(report), "", *about, *comparison_text(compared, None)]))
    return int(report.passage)


def _compared(
    old: Path, new: Path, data: Path, seed: int, copies_of: Path | None = None
) -> tuple[Comparison, list[Part], list[str]]:
    """The comparison, its parts, and lines about the two configurations."""
    traffic, tokens = usable(data), Tokens()
    models = [load_config(folder, copies_of).policy.encoder.model for folder in (old, new)]
    memory = patient(models[0])
    before = read_side(old, memory, copies_of)
    other = memory if models[0] == models[1] else patient(models[1])
    after = read_side(new, other, copies_of, before)
    compared, parts = compare_apps(before, after, traffic, tokens, seed)
    if not parts:
        raise ValueError(f"{data}: every row belongs to an app that is off: correct the files of the app")
    report_unused(data, *(run for part in parts for run in (part.old, part.new)))
    about = [
        *_about("old", before.snapshot.revision, [(part.app, part.old, part.new) for part in parts]),
        *_about("new", after.snapshot.revision, [(part.app, part.new, part.old) for part in parts]),
    ]
    return compared, parts, about


def _about(name: str, revision: str, runs: Sequence[tuple[str, Execution, Execution]]) -> Iterator[str]:
    """Lines about one configuration. `runs` are those of its apps, each with that of the other configuration."""
    seals = [f"app {app} {run.sealed}" if app else run.sealed for app, run, _ in runs]
    yield f"{name}       revision {revision}, hash of its decisions {', '.join(seals)}"
    for app, run, other in runs:
        labels = {intent for intent in run.revealed.intents.values if isinstance(intent, str)}
        if lacks := labels & {*other.snapshot.policy.cohorts} - {*run.snapshot.policy.cohorts}:
            names = ", ".join(sorted(f"{app}/{each}" if app else each for each in lacks))
            yield f"          has no intent {names}: rows with this label count as routed wrong"


def _ask(routed: Decided) -> str:
    return routed.signals.ask.text if routed.signals is not None else ""
