"""What a static stage ahead of the transformer would keep and save; it is not served: `make bench-static`.

With and without the stage of bench/static_stage.py, on the same vectors: how many requests it decides, how many
land right, how many texts out of scope are taken for a cohort's. In the third row of each task, "same floors", the
stage accepts by the transformer's floors, as it would have to for cohorts whose floors have evidence. The sample
intents with tests/heldout.yaml; only some of them, all other prompts being out of scope; CLINC150 with ten
utterances an intent, if the data is there. All is fitted on the utterances alone. Last, what it costs and saves.
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
# Of the sample intents, so many groups of each size.
_GROUPS = 3
_ROUNDS = 3


class Task(msgspec.Struct, frozen=True):
    """Utterances, and texts that are none of them; a truth of None is out of scope."""

    name: str
    utterances: Mapping[str, Sequence[str]]
    texts: Sequence[str]
    truth: Sequence[str | None]


class Shares(msgspec.Struct, frozen=True):
    """What became of one task's texts, as shares of those in or out of scope."""

    decided: float  # in scope, by the static stage
    nearest_right: float  # in scope, whatever the floors
    landed_right: float  # in scope, and above the floor
    taken: float  # out of scope, for a cohort's


def sample_tasks() -> list[list[Task]]:
    """The sample intents, then groups of some of them."""
    spoken = {intent.intent: intent.utterances for intent in load_config(Path("intents")).intents}
    held_out = yaml.safe_load(Path("tests/heldout.yaml").read_text())
    texts = [text for some in held_out.values() for text in some]
    labels = [name for name, some in held_out.items() for _ in some]
    rng = np.random.default_rng(0)
    tasks = []
    for size in (len(spoken), 5, 3, 2):
        groups = list(itertools.combinations(spoken, size))
        chosen = [groups[i] for i in rng.permutation(len(groups))[:_GROUPS]]
        name = "sample intents" if size == len(spoken) else f"{size} of them"
        tasks.append(
            [
                Task(name, {k: spoken[k] for k in kept}, texts, [k if k in kept else None for k in labels])
                for kept in chosen
            ]
        )
    return tasks


def clinc_task(path: Path) -> Task:
    """CLINC150, ten utterances an intent."""
    few, labels, texts, truth = few_shot(path)
    spoken: dict[str, list[str]] = {}
    for text, label in zip(few, labels, strict=True):
        spoken.setdefault(str(label), []).append(text)
    return Task("CLINC150, 10 each", spoken, texts, [str(t) if t >= 0 else None for t in truth])


class Transformer:
    """Routing as it is served, to cohorts without evidence."""

    def __init__(self, utterances: Mapping[str, Sequence[str]], encoder: Encoder) -> None:
        fitted = fit_centroids({name: encoder.encode(texts) for name, texts in utterances.items()})
        self.floors = {name: found.floor for name, found in fitted.items()}
        self.index = Index(
            {name: found.centroid[None, :] for name, found in fitted.items()},
            {name: found.mean for name, found in fitted.items()},
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
        "static, same floors": [found if alone.trusts(found) else None for found in stage.nearest(task.texts)],
    }
    return {name: shares(task.truth, first, matches, trusted) for name, first in firsts.items()}


def shares(
    truth: Sequence[str | None], first: Sequence[Match | None], then: Sequence[Match], trusted: Sequence[bool]
) -> Shares:
    """What becomes of the texts where `first` decides, else `then`, which is not trusted everywhere."""
    lands = [(a if a is not None else b).cohort for a, b in zip(first, then, strict=True)]
    sure = [a is not None or above for a, above in zip(first, trusted, strict=True)]
    inside = [i for i, name in enumerate(truth) if name is not None]
    outside = [i for i, name in enumerate(truth) if name is None]
    return Shares(
        float(np.mean([first[i] is not None for i in inside])),
        float(np.mean([lands[i] == truth[i] for i in inside])),
        float(np.mean([lands[i] == truth[i] and sure[i] for i in inside])),
        float(np.mean([sure[i] for i in outside])),
    )


def lines(tasks: Sequence[Task], encoder: Encoder, table: TokenTable) -> list[str]:
    """The lines of one kind of task, means over them."""
    found = [rows(task, encoder, table) for task in tasks]
    lines = []
    for name in found[0]:
        columns = zip(*(msgspec.structs.astuple(one[name]) for one in found), strict=True)
        lines.append(f"{tasks[0].name:<20}{name:<20}" + "".join(f"{np.mean(c):>14.1%}" for c in columns))
    return lines


def costs(task: Task, encoder: Encoder, table: TokenTable) -> list[str]:
    """Lines: the time of single texts, by stage and transformer in turns, and what every start would pay."""
    spoken = Memory(encoder)
    spoken.encode([text for texts in task.utterances.values() for text in texts])
    began = time.process_time()
    alone = Transformer(task.utterances, spoken)
    between = time.process_time()
    stage = fit_stage(task.utterances, table)
    fits = between - began, time.process_time() - between
    seconds = np.empty((_ROUNDS, len(task.texts), 2))
    for turn in seconds:
        for at, text in zip(turn, task.texts, strict=True):
            began = time.perf_counter()
            stage.match(text)
            between = time.perf_counter()
            nearest(alone.index, encoder.encode([text])[0])
            at[:] = between - began, time.perf_counter() - between
    static, model = np.median(seconds, axis=0).T * 1e3
    left = np.array([stage.match(text) is None for text in task.texts])
    before, after = model.mean(), (static + model * left).mean()
    return [
        f"ms per text, {task.name}: static stage {static.mean():.2f}, transformer {before:.2f}",
        f"stage first, and the transformer for what it leaves: {after:.2f}, {1 - after / before:.0%} less",
        f"CPU s at start: {fits[0]:.1f} to fit what serves, {fits[1]:.1f} more for the stage; "
        f"MB of its table: {table.rows.nbytes / 1e6:.0f}",
    ]


def main() -> None:
    """Print the table that docs/decisions/0005 quotes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    data = parser.parse_args().data / "clinc150.jsonl.gz"
    encoder = load_encoder(_MODEL)
    table, once = distil(encoder.sentences, load_tokenizer(_MODEL)), Memory(encoder)
    kinds = sample_tasks()
    if data.exists():
        kinds.append([clinc_task(data)])
    for heads in (
        ("decided", "nearest", "above floor", "out of scope"),
        ("by static", "is right", "and right", "taken"),
    ):
        print(" " * 40 + "".join(f"{head:>14}" for head in heads))
    for tasks in kinds:
        print("\n".join(lines(tasks, once, table)), flush=True)
    print("\n".join(costs(kinds[0][0], encoder, table)))


if __name__ == "__main__":
    main()
