"""`extproc learn`: from the ledger to a candidate, by the functions of the other commands. A cron job runs it.

Nothing that serves is changed before the last step. That step writes the files of the candidate and then the key
`candidate` of policy.yaml. A second run on the same rows changes nothing.
"""

import contextlib
import errno
import fcntl
import io
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from extproc.accounting.export import JoinCounts, as_traffic, export
from extproc.accounting.store import name_of
from extproc.cli.evidence import requests_by_id
from extproc.cli.evidence_calibrate import run_calibrate, run_choose
from extproc.cli.evidence_compare import run_diff, run_gate
from extproc.cli.evidence_sample import rows_to_label
from extproc.cli.process import in_words
from extproc.config.load import ConfigError, load_config
from extproc.config.reading import yaml_files
from extproc.config.rollout_files import CandidateRunning, propose_candidate, with_model, without_candidate
from extproc.config.schema import POLICY_FILE
from extproc.encoder.protocols import EncoderError
from extproc.evidence.data.label_queue import LabelQueue
from extproc.evidence.fit.target import Target
from extproc.evidence.measure.gate import Passage
from extproc.routing.gain_file import FITTED_FILES

_LOG, _FIT, _HELD_OUT, _NEXT, _REPORT = "log.jsonl", "fit.jsonl", "held_out.jsonl", "next", "report.txt"

# A mounted ConfigMap, or the folder of another user.
_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)
_DAY = re.compile(rb"date: *['\"]?[0-9-]+['\"]?")


class LearnTask(msgspec.Struct, frozen=True):
    """The task of one run."""

    intents: Path
    ledger: str
    requests: Path
    out: Path
    since_s: float
    risk: float
    target: Target | None
    limits: tuple[float, float]  # of the gate: the largest drop in quality and rise in cost
    percent: float
    queued: int  # rows that wait for a label
    date: str
    seed: int


class StepError(ValueError):
    """A step failed. The serving files are as before."""


def run_learn(task: LearnTask) -> int:
    """Run all steps, print one line for each, and write the report. The exit code is 0, or that of the gate."""
    task.out.mkdir(parents=True, exist_ok=True)
    with _locked(task.out), Report(task.out / _REPORT) as report:
        return _run(task, report)


class Report:
    """One line on stdout for each step, and the whole output of all steps in a file."""

    def __init__(self, path: Path) -> None:
        self._path, self._parts = path, list[str]()

    def __enter__(self) -> "Report":
        return self

    def __exit__(self, *_error: object) -> None:
        text = "\n".join(self._parts)
        beside = self._path.with_name(f".{self._path.name}.new")
        beside.write_text(text, encoding="utf-8")
        os.replace(beside, self._path)

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[Callable[[str], None]]:
        """Run a step, whose output goes to the file. It gets a function for its line. Raises StepError."""
        output, lines = io.StringIO(), list[str]()
        try:
            with contextlib.redirect_stdout(output):
                yield lines.append
        except ConfigError as error:
            places = "; ".join(f"{problem.file}:{problem.line}: {problem.what}" for problem in error.problems)
            raise self._failed(name, places) from error
        except OSError as error:
            raise self._failed(name, in_words(error)) from error
        except (ValueError, EncoderError) as error:
            raise self._failed(name, str(error)) from error
        finally:
            self._parts += [f"== {name} ==", *lines, output.getvalue()]
            for line in lines:
                print(f"{name + ':':<11}{line}", flush=True)

    def _failed(self, name: str, why: str) -> StepError:
        text = f"the step `{name}` of learn failed, and what serves is unchanged: {why}"
        self._parts.append(text)
        return StepError(text)


def _run(task: LearnTask, report: Report) -> int:
    queue = LabelQueue(task.out)
    log, fit, held_out = (task.out / name for name in (_LOG, _FIT, _HELD_OUT))
    with report.step("export") as say:
        counts = _export(task, log)
        say(f"{counts.rows:,} requests with their text, {counts.without:,} without it, in {log}")
    with report.step("labels") as say:
        added = queue.collect(log)
        waiting = queue.fill(
            log, lambda rows: rows_to_label(task.intents, rows, task.queued, task.seed)[1], task.queued
        )
        sizes = queue.split(fit, held_out)
        say(
            f"{sum(sizes):,} labelled rows, {added:,} of them new: {sizes[0]:,} to fit on and {sizes[1]:,} held "
            f"out for the gate; {waiting:,} wait for a label in {queue.waiting}"
        )
    if not min(sizes):
        with report.step("result") as say:
            say(f"nothing to learn from: label rows of {queue.waiting}, or let clients send labels as feedback")
        return 0
    new = task.out / _NEXT
    with report.step("calibrate") as say:
        _copy(task.intents, new)
        run_calibrate(new, fit, task.risk, task.date, task.seed, write=True)
        if task.target is not None:
            run_choose(new, log, task.target, 0.01, task.date, task.seed, write=True)
        changed = _changed(task.intents, new)
        say(f"{len(changed)} files change: {', '.join(changed)}" if changed else "no file changes")
    if not changed:
        return 0
    with report.step("diff") as say:
        run_diff(task.intents, new, held_out, task.seed, show_text=False, copies_of=task.intents)
        say(f"the requests that change are in {task.out / _REPORT}")
    with report.step("gate") as say:
        code = run_gate(task.intents, new, held_out, *task.limits, task.seed, task.intents)
        say(f"{_GATE_WORDS[Passage(code)]}")
    if code == Passage.FAILED:
        return code
    with report.step("candidate") as say:
        say(_propose(task, new, task.percent if code == Passage.PASSED else None))
    return 0


_GATE_WORDS = {
    Passage.PASSED: "PASSED",
    Passage.FAILED: "FAILED: a cohort is worse than the limits allow, so there is no candidate",
    Passage.UNSEEN: "UNSEEN: a cohort goes to a cheaper tier without recorded answers, so the candidate changes no "
    "traffic",
    Passage.UNCLEAR: "UNCLEAR: the held-out rows are too few to decide, so the candidate changes no traffic",
}


def _export(task: LearnTask, log: Path) -> JoinCounts:
    counts = JoinCounts()
    lines = as_traffic(_of_these_intents(task), requests_by_id(task.requests), counts)
    content = b"".join(lines)
    if not counts.rows:
        raise ValueError(
            f"no request of {name_of(task.ledger)} is in {task.requests}: it needs lines with the `id` of each "
            "request, from the answer's header x-request-id"
        )
    log.write_bytes(content)
    return counts


def _of_these_intents(task: LearnTask) -> Iterator[bytes]:
    """The exported lines without those of apps with their own intents, whose labels are other cohorts."""
    others = {name for name, app in load_config(task.intents).policy.apps.items() if app.intents}
    for line in export(task.ledger, task.since_s):
        if not others or msgspec.json.decode(line)["app"] not in others:
            yield line


def _copy(intents: Path, new: Path) -> None:
    """Copy what serves, without a candidate."""
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    for path in _files(intents):
        shutil.copy2(path, new / path.name)
    config, policy = load_config(intents), new / POLICY_FILE
    if config.policy.candidate is not None:
        policy.write_bytes(without_candidate(policy.read_bytes()))
    # A relative path of an encoder starts at `intents`.
    policy.write_bytes(with_model(policy.read_bytes(), config.policy.encoder.model))


def _changed(old: Path, new: Path) -> list[str]:
    """The files that differ, without policy.yaml: a candidate has none."""
    return [path.name for path in _files(new) if path.name != POLICY_FILE and not _same(path, old / path.name)]


def _files(folder: Path) -> list[Path]:
    """The files of a folder that a fit reads or writes."""
    return [*yaml_files(folder), *(path for name in FITTED_FILES for path in folder.glob(name))]


def _same(path: Path, other: Path) -> bool:
    """Whether both have the same content. A change of the day of the evidence does not count."""
    return other.is_file() and _DAY.sub(b"", path.read_bytes()) == _DAY.sub(b"", other.read_bytes())


def _propose(task: LearnTask, new: Path, percent: float | None) -> str:
    try:
        return propose_candidate(task.intents, new, percent)
    except CandidateRunning as error:
        return str(error)
    except OSError as error:
        if error.errno not in _READ_ONLY:
            raise
        key = "shadow: true" if percent is None else f"percent: {percent:g}"
        return (
            f"{task.intents} is read-only, so the candidate stays in {new}: copy its files without {POLICY_FILE} "
            f"to a folder beside your {POLICY_FILE}, and add `candidate: {{dir: FOLDER, {key}}}` there"
        )


@contextlib.contextmanager
def _locked(out: Path) -> Iterator[None]:
    with (out / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another `extproc learn` works in {out}: wait for its end") from None
        yield
