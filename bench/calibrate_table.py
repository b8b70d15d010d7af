"""The quality and cost of the choices of `extproc calibrate --target` on recorded answers to MMLU-Pro.

The start is a configuration with every cohort on the small tier. Its utterances come from one part of the
questions, as in bench/cascade.py. Calibration chooses tiers and acceptance scores on that part and edits the YAML.
Evaluation routes the other part. The embedding of a request finds the right cohort two times in three.
"""

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from bench.cache import Cache, CachedEncoder
from bench.cascade import _FIT_SHARE, LARGE, SMALL, split, utterances, write_intents
from bench.replay import Question, read_questions
from extproc.cli.evidence_calibrate import write_gains
from extproc.contract.words import Reason
from extproc.encoder.features import FeatureEncoder
from extproc.evidence.data.tokens import Tokens
from extproc.evidence.data.traffic import read_traffic
from extproc.evidence.execution import Execution, Memory, execute
from extproc.evidence.fit import edits
from extproc.evidence.fit.choice import changes, choose
from extproc.evidence.fit.scored_table import scored_table
from extproc.evidence.fit.target import parse_target
from extproc.evidence.measure.controls import MIX, ORACLE, RANDOM, ROUTED, ControlLine
from extproc.evidence.measure.evaluation import evaluate
from extproc.evidence.show.estimate import percent

# Dollars per 1,000 requests, from nearly the cost of the small tier to nearly that of the large one, and a quality.
TARGETS = ("cost=0.15", "cost=0.25", "cost=0.35", "cost=0.5", "quality=0.6", "loss=0.03", "loss=0.05", "loss=0.1")


def table(cache: Cache, path: Path, seed: int) -> Iterator[str]:
    """The lines of the table, each as soon as it is ready."""
    memory, tokens = Memory(FeatureEncoder(CachedEncoder(cache))), Tokens()
    parts = split(read_questions(path), _FIT_SHARE)
    with tempfile.TemporaryDirectory(prefix="calibrate-") as name:
        folder, fit, rest = Path(name) / "intents", Path(name) / "fit.jsonl", Path(name) / "rest.jsonl"
        chosen = utterances(parts[0], memory)
        write_intents(folder, {category: [] for category in chosen}, chosen)
        for traffic, questions in zip((fit, rest), parts, strict=True):
            traffic.write_bytes(b"".join(msgspec.json.encode(_row(question)) + b"\n" for question in questions))
        run = execute(folder, memory, read_traffic(fit), tokens)
        scored = scored_table(run, seed, None, memory.encode)
        originals = {file: (folder / file).read_text() for file in run.config.files.values()}
        gains = "minus static mix of equal cost  minus always large"
        head = f"{'':<22}{'accuracy % [95 %]':<22}{'to large %':>10}{'by prompt %':>12}{'$/1,000':>9}"
        yield f"{head}{'random':>8}{'oracle':>8}   {gains}"
        for target in TARGETS:
            choice = choose(scored, parse_target(target), 0.01, "2026-01-01")
            write_gains(folder, choice, run.config)
            for setting, intent in zip(choice.cohorts, run.config.intents, strict=True):
                file = run.config.files[intent.intent]
                edits.write(
                    folder / file,
                    edits.with_settings(originals[file], changes(setting, intent, choice.seal)).encode(),
                )
            served = execute(folder, memory, read_traffic(rest), tokens)
            lines = {line.name: line for line in evaluate(served, seed).lines}
            if target == TARGETS[0]:
                yield from (_line(name, lines[f"always {name}"], share, 0.0) for name, share in _ALWAYS)
            line = _line(target, lines[ROUTED], _to_large(served), _by_prompt(served))
            yield f"{line}{_beside(lines)}"


_ALWAYS = ((SMALL, 0.0), (LARGE, 1.0))


def _row(question: Question) -> dict[str, object]:
    outcomes = {
        tier: {"success": question.right(tier), "answer": answer.text, "finish": answer.finish}
        for tier, answer in question.answers.items()
        if tier in (SMALL, LARGE)
    }
    return {"text": question.prompt, "outcomes": outcomes}


def _to_large(run: Execution) -> float:
    return sum(served is not None and served.path[-1] == LARGE for served in run.served) / len(run.served)


def _by_prompt(run: Execution) -> float:
    return sum(routed.decision.reason is Reason.BY_PROMPT for routed in run.routed) / len(run.routed)


def _line(name: str, line: ControlLine, to_large: float, by_prompt: float) -> str:
    shares = f"{100 * to_large:>10.1f}{100 * by_prompt:>12.1f}{line.per_1000.value:>9.3f}"
    return f"{name:<22}{percent(line.quality):<22}{shares}"


def _beside(lines: Mapping[str, ControlLine]) -> str:
    """Random routing with the same shares, the oracle, and the lead over the mix and over the large tier."""
    random, oracle = (100 * lines[name].quality.value for name in (RANDOM, ORACLE))
    leads = [lines[name].behind for name in (MIX, f"always {LARGE}")]
    mix, large = (percent(lead, "+") if lead is not None else "" for lead in leads)
    return f"{random:>8.1f}{oracle:>8.1f}   {mix:<32}{large}".rstrip()
