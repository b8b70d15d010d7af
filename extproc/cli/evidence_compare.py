"""The commands that compare two folders of intents: `diff` and `gate`. Each returns an exit code."""

from pathlib import Path

from extproc.cli.evidence import patient, report_unused, usable
from extproc.config.load import load_config
from extproc.evidence.data.decided import Decided
from extproc.evidence.data.tokens import Tokens
from extproc.evidence.execution import Execution, execute
from extproc.evidence.measure.comparison import Comparison, compare
from extproc.evidence.measure.gate import gate_report
from extproc.evidence.show.comparison import comparison_text, gate_text


def run_diff(old: Path, new: Path, data: Path, seed: int, show_text: bool) -> int:
    """`extproc diff`: print the rows that flip between two folders, and the effect."""
    compared, run, about = _compared(old, new, data, seed)
    print("\n".join(about))
    texts = None
    if show_text:
        flipped = {flip.line for flip in compared.flips}
        at = {line: i for i, line in enumerate(run.rows.lines.tolist()) if line in flipped}
        texts = {line: _ask(run.routed[i]) for line, i in at.items()}
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
) -> int:
    """`extproc gate`: print the verdict and the comparison. The exit code is that of the verdict (`Passage`)."""
    compared, _, about = _compared(old, new, data, seed, copies_of)
    report = gate_report(compared, max_quality_drop, max_cost_rise)
    print("\n".join([*gate_text(report), "", *about, *comparison_text(compared, None)]))
    return int(report.passage)


def _compared(
    old: Path, new: Path, data: Path, seed: int, copies_of: Path | None = None
) -> tuple[Comparison, Execution, list[str]]:
    """The comparison, the execution of `old`, and lines about the two configurations."""
    traffic, tokens = usable(data), Tokens()
    models = [load_config(folder, copies_of).policy.encoder.model for folder in (old, new)]
    memory = patient(models[0])
    before = execute(old, memory, traffic, tokens, copies_of)
    after = execute(new, memory if models[0] == models[1] else patient(models[1]), traffic, tokens, copies_of)
    report_unused(data, before, after)
    about = []
    for name, run, other in (("old", before, after), ("new", after, before)):
        about.append(f"{name}       revision {run.snapshot.revision}, sealed {run.sealed}")
        labels = {intent for intent in run.revealed.intents.values if isinstance(intent, str)}
        if lacks := labels & {*other.snapshot.policy.cohorts} - {*run.snapshot.policy.cohorts}:
            names = ", ".join(sorted(lacks))
            about.append(f"          has no intent {names}: rows with this label count as routed wrong")
    return compare(before, after, seed), before, about


def _ask(routed: Decided) -> str:
    return routed.signals.ask.text if routed.signals is not None else ""
