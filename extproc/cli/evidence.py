"""The bodies of the commands: read, run, print. Exit codes: 0; 1, a regression; 2, the user's input is at fault."""

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from extproc.config.load import Config, in_configmap, load_config
from extproc.config.schema import POLICY_FILE
from extproc.contract.words import Reason
from extproc.encoder.backends import load_encoder
from extproc.evidence.data.convert import convert
from extproc.evidence.data.tokens import Tokens
from extproc.evidence.data.traffic import BadRow, Traffic, read_traffic
from extproc.evidence.execution import Execution, Memory, execute
from extproc.evidence.fit import edits
from extproc.evidence.fit.adapted import adapted_encoder, back_of
from extproc.evidence.fit.calibration import calibrate
from extproc.evidence.fit.choice import changes, choose
from extproc.evidence.fit.labelled import CalibrationSplit, LabelledRows, labelled_rows
from extproc.evidence.fit.learning import FittedCentroids, learn, split_after, texts_for_encoder, too_few
from extproc.evidence.fit.plans import scored_table
from extproc.evidence.fit.suggestion import as_yaml, borderline_utterances, propose
from extproc.evidence.fit.target import Target
from extproc.evidence.fit.trial import EncoderCandidate
from extproc.evidence.measure import comparison
from extproc.evidence.measure.evaluation import evaluate
from extproc.evidence.measure.notes import unused
from extproc.evidence.perturb.robustness import perturb
from extproc.evidence.show.calibration import calibration_text, choice_text, learned_text
from extproc.evidence.show.comparison import comparison_text, gate_text
from extproc.evidence.show.evaluation import evaluation_text
from extproc.evidence.show.page import as_html
from extproc.routing.centroid_file import CENTROIDS_FILE
from extproc.routing.router import Routed

# Of the rows that cannot be used, so many are told one by one.
_TOLD = 10
_NOT_WRITTEN = "not written: give --write to apply this"


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


def requests_by_id(path: Path) -> dict[str, dict[str, Any]]:
    """The requests of an OpenAI log as rows, by their ids; what cannot be used is told on stderr."""
    rows, bad = [], []
    for row in convert("openai-log", path, {}):
        if isinstance(row, BadRow):
            bad.append(row)
        else:
            rows.append(msgspec.json.decode(row))
    tell_bad_rows(path, bad)
    return {str(row["id"]): row for row in rows if "id" in row}


def run_eval(
    intents: Path, data: Path, out: Path | None, as_json: Path | None, seed: int, perturbed: bool = False
) -> int:
    """`extproc eval`: the report to the terminal, and to files."""
    traffic, memory, tokens = usable(data), patient_encoder(intents), Tokens()
    run = execute(intents, memory, traffic, tokens)
    tell_bad_rows(data, run.bad)
    report = evaluate(run, seed)
    if perturbed:
        report = msgspec.structs.replace(report, robustness=perturb(run, memory, seed))
    print(evaluation_text(report))
    if as_json is not None:
        as_json.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n")
    if out is not None:
        out.write_text(as_html(report, title=f"{intents} on {data.name}"), encoding="utf-8")
    return 0


def run_calibrate(
    intents: Path, data: Path, risk: float, date: str, seed: int, write: bool, adapt: Path | None = None
) -> int:
    """`extproc calibrate`: what was fitted, and the change to the YAML; written only if asked."""
    traffic, memory = usable(data), patient_encoder(intents)
    run = execute(intents, memory, traffic, Tokens())
    _tell_unused(data, run)
    rows = labelled_rows(run, seed)
    learned = _learned(run, rows, memory, risk, date, seed, adapt)
    split = split_after(run, rows, learned)
    found = calibrate(run, rows, split, risk, date)
    centroids = learned.raw if split.config.fitted is not None and not _same_centroids(run, split) else b""
    written = {intent.intent: intent for intent in run.config.intents}
    values = {fit.name: fit.changes(written[fit.name]) for fit in found.fits}
    edited = [*_encoder_change(intents, run, split.config), *_edited(intents, run, values)]
    if write:  # all of it before a word is printed: a reader that goes away must not leave half of it
        for path, _, after in edited:  # an encoder first: a router that runs then waits for its restart
            edits.write_text(path, after)
        if centroids:
            edits.write(intents / CENTROIDS_FILE, centroids)
    print("\n".join(learned_text(learned, rows, split, seed)) + "\n")
    print("\n".join(calibration_text(found, risk, run.snapshot.policy.cohorts)) + "\n")
    if centroids and split.config.fitted is not None:
        told = in_configmap(intents, centroids)
        print(f"{intents / CENTROIDS_FILE}: {split.config.fitted.header}; {told}")
    _tell_edits(edited, bool(centroids), write)
    if write and split.config.policy.encoder != run.config.policy.encoder:
        print(f"then `extproc prepare --intents {intents}` on the machine that serves, and restart the router")
    return 0


def _learned(
    run: Execution, rows: LabelledRows, memory: Memory, risk: float, date: str, seed: int, adapt: Path | None
) -> FittedCentroids:
    """Better centroids, and with `adapt` a better encoder, if these rows show any."""
    if (why := too_few(run, rows, risk)) is not None:
        return FittedCentroids(0, (), f"centroids {'and encoder ' * (adapt is not None)}are unchanged: {why}")
    now = run.config.policy.encoder
    encoders = [EncoderCandidate(now, memory, back_of(now.model))]
    if adapt is not None:
        texts = texts_for_encoder(run, rows)
        count = sum(map(len, texts.values()))
        print(f"adapting the encoder on {count:,} texts: minutes, unless it is there already", file=sys.stderr)
        folder = adapted_encoder(now.model, texts, adapt, date)
        model = os.path.abspath(folder)
        encoders.append(EncoderCandidate(msgspec.structs.replace(now, model=model), patient(model), back_of(model)))
    return learn(run, rows, encoders, date, seed)


def _same_centroids(run: Execution, split: CalibrationSplit) -> bool:
    old, new = run.config.fitted, split.config.fitted
    return old is not None and new is not None and old.header.seal == new.header.seal


def _encoder_change(intents: Path, run: Execution, config: Config) -> Iterator[tuple[Path, str, str]]:
    """(path, text before, text after) of policy.yaml, if it is to name another encoder. Raises ValueError."""
    model = config.policy.encoder.model
    if model != run.config.policy.encoder.model:
        path = intents / POLICY_FILE
        before = path.read_text(encoding="utf-8")
        line = run.config.lines.get((POLICY_FILE, ".encoder.model"))
        # What lies beside the YAML's folder may move with it.
        near = Path(model).is_relative_to(os.path.abspath(intents.parent))
        yield path, before, edits.with_encoder(before, line, os.path.relpath(model, intents) if near else model)


def run_choose(intents: Path, data: Path, target: Target, cut: float, date: str, seed: int, write: bool) -> int:
    """`extproc calibrate --target`: each cohort's tier and settings, and the change to the YAML likewise."""
    traffic, memory = usable(data), patient_encoder(intents)
    run = execute(intents, memory, traffic, Tokens())
    _tell_unused(data, run)
    found = choose(scored_table(run, seed, memory.sentences), target, cut, date)
    written = {intent.intent: intent for intent in run.config.intents}
    edited = list(_edited(intents, run, {one.name: changes(one, written[one.name]) for one in found.cohorts}))
    if write:
        for path, _, after in edited:
            edits.write_text(path, after)
    print("\n".join(choice_text(found)) + "\n")
    _tell_edits(edited, 0, write)
    return 0


def _edited(
    intents: Path, run: Execution, values: Mapping[str, Mapping[str, Any]]
) -> Iterator[tuple[Path, str, str]]:
    """(path, text before, text after) of every file that values, by intent and key, change. Raises ValueError."""
    for name, some in values.items():
        path = intents / run.config.files[name]
        before = path.read_text(encoding="utf-8")
        try:
            after = edits.with_settings(before, some)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        if before != after:
            yield path, before, after


def _tell_edits(edited: Sequence[tuple[Path, str, str]], others: int, write: bool) -> None:
    """Every change to the YAML, and how many files changed, with `others` that are no text."""
    for change in edited:
        print("\n".join(edits.diff(*change)))
    count, done = len(edited) + others, "changed and written" if write else _NOT_WRITTEN
    print(f"\n{count} files {done}" if count else "\nnothing to change")


def run_diff(old: Path, new: Path, data: Path, seed: int, show_text: bool) -> int:
    """`extproc diff`: what flips between two folders, and what that does."""
    found, run = _compared(old, new, data, seed)
    texts = {row.line: _words(one) for row, one in zip(run.rows, run.routed, strict=True)} if show_text else None
    print("\n".join(comparison_text(found, texts)))
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
    """`extproc gate`: 1 if a cohort regresses from `old` to `new` beyond what is allowed, else 0."""
    found, _ = _compared(old, new, data, seed, copies_of)
    verdicts = comparison.gate(found, max_quality_drop, max_cost_rise)
    print("\n".join(comparison_text(found, None)) + "\n")
    print("\n".join(gate_text(verdicts, max_quality_drop, max_cost_rise)))
    return int(any(verdict.regressed for verdict in verdicts))


def _compared(
    old: Path, new: Path, data: Path, seed: int, copies_of: Path | None = None
) -> tuple[comparison.Comparison, Execution]:
    traffic, tokens = usable(data), Tokens()
    models = [load_config(folder, copies_of).policy.encoder.model for folder in (old, new)]
    memory = patient(models[0])
    before = execute(old, memory, traffic, tokens, copies_of)
    after = execute(new, memory if models[0] == models[1] else patient(models[1]), traffic, tokens, copies_of)
    _tell_unused(data, before, after)
    for name, run, other in (("old", before, after), ("new", after, before)):
        print(f"{name}       revision {run.snapshot.revision}, sealed {run.sealed}")
        labels = {known.intent for known in run.known if isinstance(known.intent, str)}
        if lacks := labels & {*other.snapshot.policy.cohorts} - {*run.snapshot.policy.cohorts}:
            told = ", ".join(sorted(lacks))
            print(f"          has no intent {told}: rows with this label count as routed wrong")
    return comparison.compare(before, after, seed), before


def run_suggest(intents: Path, data: Path, out: Path | None) -> int:
    """`extproc suggest`: proposed intents as YAML, to the terminal or into a folder, and utterances to look at."""
    if out is not None and (there := sorted(out.glob("proposed-*.yaml"))):
        raise ValueError(f"{there[0]} is there already: move it into {intents}, delete it, or name another folder")
    memory = patient_encoder(intents)
    run = execute(intents, memory, usable(data), Tokens())
    _tell_unused(data, run)
    proposals = propose(run, memory)
    tier = run.snapshot.policy.default_tier
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        for i, proposal in enumerate(proposals, start=1):
            (out / f"proposed-{i:02}.yaml").write_text(as_yaml(proposal, tier), encoding="utf-8")
    outside = sum(one.decision.reason is Reason.OUT_OF_SCOPE for one in run.routed)
    print(f"{outside:,} of {len(run.rows):,} rows fall out of scope; {len(proposals)} proposed intents")
    for proposal in proposals:
        print("\n" + as_yaml(proposal, tier), end="")
    print("\nutterances that the others of their intent support least; reword them, or move them:")
    for near in borderline_utterances(run, memory):
        print(f"  {near.file}: {near.utterance[:60]!r} ({near.other}, margin {near.margin:.3f})")
    return 0


def _words(routed: Routed) -> str:
    return routed.signals.ask.text if routed.signals is not None else ""


def usable(path: Path) -> Traffic:
    """The traffic in a file. Raises ValueError when no row of it can be used."""
    traffic = read_traffic(path)
    if not traffic.rows:
        tell_bad_rows(path, traffic.bad)
        raise ValueError(f"{path}: no row can be used; docs/evidence.md has the format")
    return traffic


def patient_encoder(intents: Path) -> Memory:
    """The encoder that these intents are served with; it remembers what it encoded."""
    return patient(load_config(intents).policy.encoder.model)


def patient(model: str) -> Memory:
    """The encoder that serves as `model`; it remembers what it encoded."""
    encoder = load_encoder(model)
    return Memory(encoder, encoder.sentences.encode, progress=sys.stderr.isatty())


def _tell_unused(path: Path, *runs: Execution) -> None:
    """Say on stderr what of the rows is skipped, or counts otherwise than it reads; each thing once."""
    tell_bad_rows(path, runs[0].bad)
    intents = {name for run in runs for name in run.snapshot.policy.cohorts}
    for note in dict.fromkeys(note for run in runs for note in unused(run, intents)):
        print(f"{path}: {note}", file=sys.stderr)


def tell_bad_rows(path: Path, bad: Sequence[BadRow]) -> None:
    """Say on stderr which lines are skipped, and why."""
    for row in bad[:_TOLD]:
        print(f"{path}:{row.line}: skipped: {row.what}", file=sys.stderr)
    if len(bad) > _TOLD:
        print(f"{path}: and {len(bad) - _TOLD} more lines skipped", file=sys.stderr)
