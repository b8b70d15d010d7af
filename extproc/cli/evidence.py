"""The commands that work on evidence. Each returns an exit code. Wrong input raises an error."""

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from extproc.config.load import Config, in_configmap, load_config
from extproc.config.schema import POLICY_FILE
from extproc.contract.words import Reason
from extproc.encoder.backends import load_encoder, vectors_name
from extproc.evidence.data.convert import convert
from extproc.evidence.data.tokens import Tokens
from extproc.evidence.data.traffic import BadRow, Traffic, read_traffic
from extproc.evidence.data.vector_store import store_for
from extproc.evidence.execution import Execution, Memory, execute
from extproc.evidence.fit import edits
from extproc.evidence.fit.adapted import adapted_encoder, back_of
from extproc.evidence.fit.calibration import calibrate
from extproc.evidence.fit.choice import TierChoice, changes, choose
from extproc.evidence.fit.labelled import LabelledRows, labelled_rows
from extproc.evidence.fit.learning import FittedCentroids, learn, texts_for_encoder
from extproc.evidence.fit.scored_table import scored_table
from extproc.evidence.fit.suggestion import as_yaml, borderline_utterances, propose
from extproc.evidence.fit.target import Target
from extproc.evidence.fit.trial import EncoderCandidate
from extproc.evidence.measure.evaluation import evaluate
from extproc.evidence.measure.notes import unused
from extproc.evidence.perturb.robustness import perturb
from extproc.evidence.show.calibration import calibration_text, choice_text, learned_text
from extproc.evidence.show.evaluation import evaluation_text
from extproc.evidence.show.page import as_html
from extproc.evidence.show.verdicts import calibration_verdicts, choice_verdicts, verdict_text
from extproc.routing.centroid_file import CENTROIDS_FILE
from extproc.routing.gain_file import GAINS_FILE, decode_gains

# At most this many unusable rows are reported one by one.
_MOST_REPORTED = 10
_NOT_WRITTEN = "not written: give --write to apply this"


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


def run_eval(
    intents: Path, data: Path, out: Path | None, as_json: Path | None, seed: int, perturbed: bool = False
) -> int:
    """`extproc eval`: print the evaluation, and write it to files."""
    traffic, memory, tokens = usable(data), patient_encoder(intents), Tokens()
    run = execute(intents, memory, traffic, tokens)
    report_bad_rows(data, run.bad)
    evaluation = evaluate(run, seed)
    if perturbed:
        evaluation = msgspec.structs.replace(evaluation, robustness=perturb(run, memory, seed))
    print(evaluation_text(evaluation))
    if as_json is not None:
        as_json.write_bytes(msgspec.json.format(msgspec.json.encode(evaluation), indent=1) + b"\n")
    if out is not None:
        out.write_text(as_html(evaluation, title=f"{intents} on {data.name}"), encoding="utf-8")
    return 0


def run_calibrate(
    intents: Path,
    data: Path,
    risk: float,
    date: str,
    seed: int,
    write: bool,
    adapt: Path | None = None,
    memory: Memory | None = None,
) -> int:
    """`extproc calibrate`: print the fitted values and the change to the YAML, and write it if asked."""
    traffic, memory = usable(data), memory or patient_encoder(intents)
    run = execute(intents, memory, traffic, Tokens())
    report_unused(data, run)
    rows = labelled_rows(run)
    learned = _learned(run, rows, memory, date, seed, adapt)
    calibration = calibrate(run, learned, risk, date)
    centroids = learned.raw if not _same_centroids(run, learned.config) else b""
    written = {intent.intent: intent for intent in run.config.intents}
    values = {fit.name: fit.changes(written[fit.name]) for fit in calibration.fits}
    edited = [*_encoder_change(intents, run, learned.config), *_edited(intents, run, values)]
    if write:  # before anything is printed, because a reader that closes the pipe must not stop the writing
        for path, _, after in edited:  # the encoder first: a running router then refuses reloads until its restart
            edits.write_text(path, after)
        if centroids:
            edits.write(intents / CENTROIDS_FILE, centroids)
    print("\n".join(verdict_text(calibration_verdicts(calibration, risk))) + "\n")
    print("\n".join(learned_text(learned, rows)) + "\n")
    print("\n".join(calibration_text(calibration, risk, run.snapshot.policy.cohorts)) + "\n")
    if centroids and learned.config.fitted is not None:
        size = in_configmap(intents, centroids)
        print(f"{intents / CENTROIDS_FILE}: {learned.config.fitted.header}; {size}")
    _print_edits(edited, bool(centroids), write)
    if write and learned.config.policy.encoder != run.config.policy.encoder:
        print(f"next, run `extproc prepare --intents {intents}` on the serving machine and restart the router")
    return 0


def _learned(
    run: Execution, rows: LabelledRows, memory: Memory, date: str, seed: int, adapt: Path | None
) -> FittedCentroids:
    """A better way of matching, and with `adapt` a better encoder, if these rows show any."""
    now = run.config.policy.encoder
    encoders = [EncoderCandidate(now, memory, back_of(now.model))]
    if adapt is not None:
        texts = texts_for_encoder(run, rows, seed)
        count = sum(map(len, texts.values()))
        print(f"adapting the encoder on {count:,} texts, which takes minutes the first time", file=sys.stderr)
        folder = adapted_encoder(now.model, texts, adapt, date)
        model = os.path.abspath(folder)
        encoders.append(EncoderCandidate(msgspec.structs.replace(now, model=model), patient(model), back_of(model)))
    return learn(run, rows, encoders, date, seed)


def _same_centroids(run: Execution, config: Config) -> bool:
    old, new = run.config.fitted, config.fitted
    return old is not None and new is not None and old.header.seal == new.header.seal


def _encoder_change(intents: Path, run: Execution, config: Config) -> Iterator[tuple[Path, str, str]]:
    """(path, text before, text after) of policy.yaml, if the encoder changes. Raises ValueError."""
    model = config.policy.encoder.model
    if model != run.config.policy.encoder.model:
        path = intents / POLICY_FILE
        before = path.read_text(encoding="utf-8")
        line = run.config.lines.get((POLICY_FILE, ".encoder.model"))
        # A relative path also works after both folders have moved.
        near = Path(model).is_relative_to(os.path.abspath(intents.parent))
        yield path, before, edits.with_encoder(before, line, os.path.relpath(model, intents) if near else model)


def run_choose(intents: Path, data: Path, target: Target, cut: float, date: str, seed: int, write: bool) -> int:
    """`extproc calibrate --target`: print the tier and settings of each cohort, and write them if asked."""
    traffic, memory = usable(data), patient_encoder(intents)
    run = execute(intents, memory, traffic, Tokens())
    report_unused(data, run)
    scored = scored_table(run, seed, memory.sentences, memory.encode)
    if (count := len(scored.table.positions)) < scored.table.available:
        print(
            f"{data}: {count:,} of {scored.table.available:,} rows were drawn at random to fit on", file=sys.stderr
        )
    choice = choose(scored, target, cut, date)
    written = {intent.intent: intent for intent in run.config.intents}
    values = {setting.name: changes(setting, written[setting.name], choice.seal) for setting in choice.cohorts}
    edited = list(_edited(intents, run, values))
    if write:
        write_gains(intents, choice, run.config)
        for path, _, after in edited:
            edits.write_text(path, after)
    print("\n".join([*verdict_text(choice_verdicts(choice)), "", *choice_text(choice)]) + "\n")
    if choice.raw:
        centroids = intents / CENTROIDS_FILE
        size = in_configmap(intents, choice.raw + (centroids.read_bytes() if centroids.exists() else b""))
        print(f"{intents / GAINS_FILE}: {decode_gains(choice.raw).header}; {size}")
    _print_edits(edited, bool(choice.raw), write)
    return 0


def write_gains(intents: Path, choice: TierChoice, config: Config) -> None:
    """Write the predicted gains, or delete the file if no intent uses it any more."""
    kept = {c.name for c in choice.cohorts if c.plan is None}
    if choice.raw:
        edits.write(intents / GAINS_FILE, choice.raw)
    elif not any(intent.by_prompt is not None for intent in config.intents if intent.intent in kept):
        (intents / GAINS_FILE).unlink(missing_ok=True)


def _edited(
    intents: Path, run: Execution, values: Mapping[str, Mapping[str, Any]]
) -> Iterator[tuple[Path, str, str]]:
    """(path, text before, text after) of each file that `values` (by intent and key) change. Raises ValueError."""
    for name, settings in values.items():
        path = intents / run.config.files[name]
        before = path.read_text(encoding="utf-8")
        try:
            after = edits.with_settings(before, settings)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        if before != after:
            yield path, before, after


def _print_edits(edited: Sequence[tuple[Path, str, str]], others: int, write: bool) -> None:
    """Print every change to the YAML and the number of changed files. `others`: files that are not text."""
    for change in edited:
        print("\n".join(edits.diff(*change)))
    count, done = len(edited) + others, "changed and written" if write else _NOT_WRITTEN
    print(f"\n{count} files {done}" if count else "\nnothing to change")


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
    print(f"{outside:,} of {len(run.rows):,} rows fall out of scope; {len(proposals)} proposed intents")
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
        found = "no row can be used" if traffic.bad else "the file has no rows"
        raise ValueError(f"{path}: {found}: give JSON lines in the format of docs/reference/traffic.md")
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
    report_bad_rows(path, runs[0].bad)
    intents = {name for run in runs for name in run.snapshot.policy.cohorts}
    for note in dict.fromkeys(note for run in runs for note in unused(run, intents)):
        print(f"{path}: {note}", file=sys.stderr)


def report_bad_rows(path: Path, bad: Sequence[BadRow]) -> None:
    """Report on stderr which lines are skipped, and why."""
    for row in bad[:_MOST_REPORTED]:
        print(f"{path}:{row.line}: skipped: {row.what}", file=sys.stderr)
    if len(bad) > _MOST_REPORTED:
        print(f"{path}: and {len(bad) - _MOST_REPORTED} more lines skipped", file=sys.stderr)
