"""The command `calibrate`: floors of labelled rows, or tiers of recorded outcomes, in the files of the intents."""

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from extproc.cli import evidence
from extproc.cli.evidence import report_unused, usable
from extproc.cli.report_files import NO_FILES, ReportFiles
from extproc.config.load import Config, in_configmap
from extproc.config.schema import POLICY_FILE
from extproc.evidence.app_rows import FitPart, fit_parts
from extproc.evidence.data.tokens import Tokens
from extproc.evidence.execution import Execution, Memory
from extproc.evidence.fit import edits
from extproc.evidence.fit.adapted import adapted_encoder, back_of
from extproc.evidence.fit.calibration import Calibration, calibrate
from extproc.evidence.fit.choice import TierChoice, changes, choose
from extproc.evidence.fit.labelled import LabelledRows, labelled_rows
from extproc.evidence.fit.learning import FittedCentroids, learn, texts_for_encoder
from extproc.evidence.fit.scored_table import scored_table
from extproc.evidence.fit.target import Target
from extproc.evidence.fit.trial import EncoderCandidate
from extproc.evidence.measure.headlines import Headline
from extproc.evidence.show.calibration import calibration_text, choice_text, learned_text
from extproc.evidence.show.calibration_page import calibration_html, choice_html, fits_page
from extproc.evidence.show.verdicts import calibration_verdicts, choice_verdicts, verdict_text
from extproc.routing.centroid_file import CENTROIDS_FILE
from extproc.routing.gain_file import GAINS_FILE, decode_gains

_NOT_WRITTEN = "not written: give --write to apply this"


class Fit(msgspec.Struct, frozen=True):
    """The result of a fit, in every form in which it is shown."""

    app: str  # with the intents that were fitted. Empty: those beside the policy
    verdicts: list[Headline]
    lines: list[str]  # text for a terminal
    page: str  # the same as HTML
    numbers: dict[str, Any]  # the same for JSON
    edited: list[tuple[Path, str, str]]  # (path, text before, text after) of each file that changes
    others: dict[Path, bytes]  # files that are not text, with their content


def run_calibrate(
    intents: Path,
    data: Path,
    risk: float,
    date: str,
    seed: int,
    write: bool,
    adapt: Path | None = None,
    memory: Memory | None = None,
    files: ReportFiles = NO_FILES,
) -> int:
    """`extproc calibrate`: print the fitted values and the change to the YAML, and write it if asked."""
    memory = memory or evidence.patient_encoder(intents)
    another_encoder = False

    def fitted(part: FitPart) -> Fit:
        nonlocal another_encoder
        rows = labelled_rows(part.run)
        # The encoder is that of the policy, so an app changes only its matching.
        learned = _learned(part.run, rows, memory, date, seed, adapt if not part.app else None)
        another_encoder |= learned.config.policy.encoder != part.run.config.policy.encoder
        return _floors(part, rows, learned, calibrate(part.run, learned, risk, date), risk)

    fits = _fit_all(_parts(intents, data, memory), data, fitted)
    if write:
        for fit in fits:
            _write(fit)
    _show(fits, write, files, f"calibrate {intents} on {data.name}")
    if write and another_encoder:
        print(f"next, run `extproc prepare --intents {intents}` on the serving machine and restart the router")
    return 0


def _parts(intents: Path, data: Path, memory: Memory) -> list[FitPart]:
    """The folder of intents and those of its apps, each with its rows."""
    parts = fit_parts(intents, memory, usable(data), Tokens())
    report_unused(data, *(part.run for part in parts))
    return parts


def _fit_all(parts: Sequence[FitPart], data: Path, fitted: Callable[[FitPart], Fit]) -> list[Fit]:
    """Fit every part that can be fitted, and report the others. Raises ValueError if no part can."""
    fits, errors = [], []
    for part in parts:
        try:
            fits.append(fitted(part))
        except ValueError as error:
            if len(parts) == 1:
                raise
            rows = f"rows of the app {part.app}" if part.app else "rows of no app with its own intents"
            errors.append(f"{data}: {rows}: nothing fitted: {error}")
    if not fits:
        raise ValueError("\n".join(errors))
    for line in errors:
        print(line, file=sys.stderr)
    return fits


def _floors(
    part: FitPart,
    rows: LabelledRows,
    learned: FittedCentroids,
    calibration: Calibration,
    risk: float,
) -> Fit:
    """The ways of matching and the floors, and the files that change."""
    folder, run = part.folder, part.run
    centroids = learned.raw if not _same_centroids(run, learned.config) else b""
    written = {intent.intent: intent for intent in run.config.intents}
    values = {fit.name: fit.changes(written[fit.name]) for fit in calibration.fits}
    present, verdicts = run.snapshot.policy.cohorts, list(calibration_verdicts(calibration, risk))
    lines = [*learned_text(learned, rows), "", *calibration_text(calibration, risk, present), ""]
    if centroids and learned.config.fitted is not None:
        size = in_configmap(folder, centroids)
        lines.append(f"{folder / CENTROIDS_FILE}: {learned.config.fitted.header}; {size}")
    chosen = learned.chosen.kind if learned.chosen is not None else None
    matching = {"chosen": chosen, "why": learned.why, "trials": learned.trials, "astray": learned.astray}
    return Fit(
        part.app,
        verdicts,
        lines,
        calibration_html(learned, rows, calibration, risk, present),
        {"risk": risk, "matching": matching, "floors": calibration},
        [*_encoder_change(folder, run, learned.config), *_edited(folder, run, values)],
        {folder / CENTROIDS_FILE: centroids} if centroids else {},
    )


def _write(fit: Fit) -> None:
    """Change the files. The encoder comes first: a running router then refuses reloads until its restart."""
    for path, _, after in fit.edited:
        edits.write_text(path, after)
    for path, content in fit.others.items():
        edits.write(path, content)


def _show(fits: Sequence[Fit], written: bool, files: ReportFiles, title: str) -> None:
    """Print the result, and write it to files.

    The files of the intents are written before, because a reader that closes the pipe must not stop that.
    """
    edited = [change for fit in fits for change in fit.edited]
    changed = {str(change[0]): list(edits.diff(*change)) for change in edited}
    lines = [line for each in changed.values() for line in each]
    own = next((fit for fit in fits if not fit.app), None)
    numbers = {"verdicts": own.verdicts, **own.numbers} if own is not None else {}
    apps = {fit.app: {"verdicts": fit.verdicts, **fit.numbers} for fit in fits if fit.app}
    files.write(
        lambda: fits_page(title, [(fit.app, fit.verdicts, fit.page) for fit in fits], lines),
        lambda: {**numbers, "apps": apps, "changes": changed, "written": written},
    )
    for fit in fits:
        head = [f"app {fit.app}", "-" * (4 + len(fit.app))] if fit.app else []
        print("\n".join([*head, *verdict_text(fit.verdicts), "", *fit.lines]))
    _print_edits(edited, sum(len(fit.others) for fit in fits), written)


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
        own = msgspec.structs.replace(now, model=model)
        encoders.append(EncoderCandidate(own, evidence.patient(model), back_of(model)))
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


def run_choose(
    intents: Path,
    data: Path,
    target: Target,
    cut: float,
    date: str,
    seed: int,
    write: bool,
    files: ReportFiles = NO_FILES,
) -> int:
    """`extproc calibrate --target`: print the tier and settings of each cohort, and write them if asked."""
    memory = evidence.patient_encoder(intents)
    choices: list[tuple[FitPart, TierChoice]] = []

    def fitted(part: FitPart) -> Fit:
        choice = _chosen(part, memory, data, target, cut, date, seed)
        choices.append((part, choice))
        return _tiers(part, choice)

    fits = _fit_all(_parts(intents, data, memory), data, fitted)
    if write:
        for part, choice in choices:
            write_gains(part.folder, choice, part.run.config)  # before the YAML that names them
        for fit in fits:
            _write(fit)
    _show(fits, write, files, f"calibrate {intents} on {data.name}, {target}")
    return 0


def _chosen(
    part: FitPart, memory: Memory, data: Path, target: Target, cut: float, date: str, seed: int
) -> TierChoice:
    run = part.run
    scored = scored_table(run, seed, memory.sentences, memory.encode)
    if (count := len(scored.table.positions)) < scored.table.available:
        print(
            f"{data}: {count:,} of {scored.table.available:,} rows were drawn at random to fit on", file=sys.stderr
        )
    return choose(scored, target, cut, date)


def _tiers(part: FitPart, choice: TierChoice) -> Fit:
    """The tier and settings of each cohort, and the files that change."""
    folder, run = part.folder, part.run
    written = {intent.intent: intent for intent in run.config.intents}
    values = {setting.name: changes(setting, written[setting.name], choice.seal) for setting in choice.cohorts}
    lines = [*choice_text(choice), ""]
    if choice.raw:
        centroids = folder / CENTROIDS_FILE
        size = in_configmap(folder, choice.raw + (centroids.read_bytes() if centroids.exists() else b""))
        lines.append(f"{folder / GAINS_FILE}: {decode_gains(choice.raw).header}; {size}")
    return Fit(
        part.app,
        list(choice_verdicts(choice)),
        lines,
        choice_html(choice),
        {"target": str(choice.target), "rows": choice.rows, "cohorts": choice.cohorts, "lines": choice.lines},
        list(_edited(folder, run, values)),
        {folder / GAINS_FILE: choice.raw} if choice.raw else {},
    )


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
    print(f"\n{count} {'file' if count == 1 else 'files'} {done}" if count else "\nnothing to change")
