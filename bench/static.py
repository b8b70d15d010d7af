"""The effect of a static stage before the transformer, which is not served: `make bench-static`.

The table compares routing with and without the stage of bench/static_stage.py, on the same vectors. It has the
share of requests that the stage decides, the share routed right, and the share of out-of-scope texts matched with a
cohort. In the row "same floors", the stage accepts with the floors of the transformer, as calibrated cohorts would
require.

One task is the sample intents with tests/heldout.yaml. Others are parts of these intents, with all other prompts
out of scope. The last is CLINC150 with ten utterances per intent, if the data exists. Everything is fitted on the
utterances alone. The last lines have the cost and the saving.
"""

import argparse
import itertools
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np
import yaml

from bench.static_stage import TokenTable, distil, fit_stage, load_tokenizer
from bench.views import few_shot
from extproc.config.load import load_config
from extproc.encoder.backends import load_encoder
from extproc.encoder.protocols import Encoder
from extproc.evidence.execution import Memory
from extproc.routing.centroids import fit_centroids
from extproc.routing.index import Index, Match, nearest

_MODEL = "all-MiniLM-L6-v2"
# The number of groups of each size among the sample intents.
_GROUPS = 3
_ROUNDS = 3


class Task(msgspec.Struct, frozen=True):
    """Utterances, and other texts with their true cohort. None is out of scope."""

    name: str
    utterances: Mapping[str, Sequence[str]]
    texts: Sequence[str]
    truth: Sequence[str | None]


class Shares(msgspec.Struct, frozen=True):
    """The results of one task, as shares of the texts in scope or out of scope."""

    decided: float  # in scope: decided by the static stage
    nearest_right: float  # in scope: the nearest cohort is right
    trusted_right: float  # in scope: the nearest cohort is right, and the match is above its floor
    taken: float  # out of scope: the match is above the floor of a cohort


def sample_tasks() -> list[list[Task]]:
    """The sample intents, then groups of them."""
    utterances = {intent.intent: intent.utterances for intent in load_config(Path("intents")).intents}
    held_out = yaml.safe_load(Path("tests/heldout.yaml").read_text())
    texts = [text for prompts in held_out.values() for text in prompts]
    labels = [name for name, prompts in held_out.items() for _ in prompts]
    rng = np.random.default_rng(0)
    tasks = []
    for size in (len(utterances), 5, 3, 2):
        groups = list(itertools.combinations(utterances, size))
        chosen = [groups[i] for i in rng.permutation(len(groups))[:_GROUPS]]
        name = "sample intents" if size == len(utterances) else f"{size} of them"
        tasks.append(
            [
                Task(name, {k: utterances[k] for k in group}, texts, [k if k in group else None for k in labels])
                for group in chosen
            ]
        )
    return tasks


def clinc_task(path: Path) -> Task:
    """CLINC150 with ten utterances per intent."""
    few, labels, texts, truth = few_shot(path)
    utterances: dict[str, list[str]] = {}
    for text, label in zip(few, labels, strict=True):
        utterances.setdefault(str(label), []).append(text)
    return Task("CLINC150, 10 each", utterances, texts, [str(t) if t >= 0 else None for t in truth])


class Transformer:
    """Routing as it is served, to uncalibrated cohorts."""

    def __init__(self, utterances: Mapping[str, Sequence[str]], encoder: Encoder) -> None:
        fitted = fit_centroids({name: encoder.encode(texts) for name, texts in utterances.items()})
        self.floors = {name: cohort.floor for name, cohort in fitted.items()}
        self.index = Index(
            {name: cohort.centroid[None, :] for name, cohort in fitted.items()},
            {name: cohort.mean for name, cohort in fitted.items()},
        )

    def trusts(self, match: Match) -> bool:
        """Whether the match is above its cohort's floor."""
        return match.similarity >= self.floors[match.cohort]


def rows(task: Task, encoder: Encoder, table: TokenTable) -> dict[str, Shares]:
    """The three rows of one task."""
    alone, stage = Transformer(task.utterances, encoder), fit_stage(task.utterances, table)
    matches = [nearest(alone.index, vector) for vector in encoder.encode(task.texts)]
    trusted = [alone.trusts(match) for match in matches]
    firsts: dict[str, list[Match | None]] = {
        "transformer alone": [None] * len(task.texts),
        "static stage first": [stage.match(text) for text in task.texts],
        "static, same floors": [match if alone.trusts(match) else None for match in stage.nearest(task.texts)],
    }
    return {name: shares(task.truth, first, matches, trusted) for name, first in firsts.items()}


def shares(
    truth: Sequence[str | None], first: Sequence[Match | None], then: Sequence[Match], trusted: Sequence[bool]
) -> Shares:
    """The results if `first` decides, and otherwise `then`, whose matches are not all trusted."""
    cohorts = [(a if a is not None else b).cohort for a, b in zip(first, then, strict=True)]
    accepted = [a is not None or above for a, above in zip(first, trusted, strict=True)]
    inside = [i for i, name in enumerate(truth) if name is not None]
    outside = [i for i, name in enumerate(truth) if name is None]
    return Shares(
        float(np.mean([first[i] is not None for i in inside])),
        float(np.mean([cohorts[i] == truth[i] for i in inside])),
        float(np.mean([cohorts[i] == truth[i] and accepted[i] for i in inside])),
        float(np.mean([accepted[i] for i in outside])),
    )


def lines(tasks: Sequence[Task], encoder: Encoder, table: TokenTable) -> list[str]:
    """The lines of one kind of task, with means over the tasks."""
    results = [rows(task, encoder, table) for task in tasks]
    lines = []
    for name in results[0]:
        columns = zip(*(msgspec.structs.astuple(result[name]) for result in results), strict=True)
        lines.append(f"{tasks[0].name:<20}{name:<20}" + "".join(f"{np.mean(c):>14.1%}" for c in columns))
    return lines


def costs(task: Task, encoder: Encoder, table: TokenTable) -> list[str]:
    """Lines with the time of single texts by the stage and by the transformer, and the cost at every start."""
    memory = Memory(encoder)
    memory.encode([text for texts in task.utterances.values() for text in texts])
    began = time.process_time()
    alone = Transformer(task.utterances, memory)
    between = time.process_time()
    stage = fit_stage(task.utterances, table)
    fits = between - began, time.process_time() - between
    seconds = np.empty((_ROUNDS, len(task.texts), 2))
    for turn in seconds:
        for times, text in zip(turn, task.texts, strict=True):
            began = time.perf_counter()
            stage.match(text)
            between = time.perf_counter()
            nearest(alone.index, encoder.encode([text])[0])
            times[:] = between - began, time.perf_counter() - between
    stage_ms, model_ms = np.median(seconds, axis=0).T * 1e3
    undecided = np.array([stage.match(text) is None for text in task.texts])
    before, after = model_ms.mean(), (stage_ms + model_ms * undecided).mean()
    return [
        f"ms per text, {task.name}: static stage {stage_ms.mean():.2f}, transformer {before:.2f}",
        f"stage first, transformer for undecided texts: {after:.2f}, {1 - after / before:.0%} less",
        f"CPU seconds at start: {fits[0]:.1f} to fit the served centroids, {fits[1]:.1f} more to fit the stage; "
        f"size of its table in MB: {table.rows.nbytes / 1e6:.0f}",
    ]


def main() -> None:
    """Print the table that docs/decisions/0005 quotes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    data = parser.parse_args().data / "clinc150.jsonl.gz"
    encoder = load_encoder(_MODEL)
    table, memory = distil(encoder.sentences, load_tokenizer(_MODEL)), Memory(encoder)
    kinds = sample_tasks()
    if data.exists():
        kinds.append([clinc_task(data)])
    for heads in (
        ("decided", "nearest", "above floor", "out of scope"),
        ("by static", "is right", "and right", "taken"),
    ):
        print(" " * 40 + "".join(f"{head:>14}" for head in heads))
    for tasks in kinds:
        print("\n".join(lines(tasks, memory, table)), flush=True)
    print("\n".join(costs(kinds[0][0], encoder, table)))


if __name__ == "__main__":
    main()
