"""Decisions about real prompts of public sets, beside simple controls: `make bench-wild`.

The rows are labelled by their own sources, and their ids say part, source, language and number. The functions that
serve decide about every row. Prompts of one source are alike, so intervals are resampled by source. Prompts that we
wrote have separate lines: those in English, and those in other languages. The columns, in per cent:

- right: of rows in scope, the share whose nearest cohort has the label's name
- AUROC: the chance that a row in scope scores higher than one out of scope
- found @5 %: of rows out of scope, the share below the score that rejects 5 % of the rows in scope
- right tier: the tier is that of the label, and out of scope that is the default tier
- hard->small: of rows whose label has a costlier tier, the share that the cheapest tier gets
- oos->small: of rows out of scope, the share that the cheapest tier gets
- destructive: the row gets another task's output cap, or another task turns its reasoning off
- curve: the largest share of rows of the cheapest tier that it can get while it gets at most 5 % of all others
- wrong: of trusted matches, the share with another label
- accepted: the share of rows with a trusted match
"""

import argparse
import contextlib
import math
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import yaml

from bench.wild_measures import MEASURES, OUT_OF_SCOPE, Judged, estimates, measure
from extproc.cli.evidence import patient, report_bad_rows, usable
from extproc.config.load import load_config
from extproc.evidence.data.tokens import Tokens
from extproc.evidence.data.traffic import read_lines, read_traffic
from extproc.evidence.execution import Execution, Memory, cheap_score, execute, scope_score, trusted_cohort
from extproc.evidence.measure.metrics import Estimate
from extproc.routing.decision import Decision
from extproc.routing.policy import Policy

OWN, OWN_FOREIGN = "own held-out prompts", "own, other languages"
_BACKGROUND = "_background.yaml"
_BARE = "no background"
_UNKNOWN, _ENGLISH = "?", "en"
_WIDTH, _NAME = 12, 28


class _Named(msgspec.Struct):
    id: str | int | None = None


def names_of(path: Path) -> dict[int, tuple[str, str]]:
    """Line -> (source, language), read from an id of the form part/source/language/number.

    A source may contain a slash. Rows whose id has another form have no name.
    """
    names = {}
    for line, content in read_lines(path):
        with contextlib.suppress(msgspec.DecodeError):  # reading the traffic reports such lines
            parts = str(msgspec.json.decode(content, type=_Named).id).split("/")
            if len(parts) >= 4:
                names[line] = ("/".join(parts[1:-2]), parts[-2])
    return names


def judge(run: Execution, names: dict[int, tuple[str, str]]) -> Judged:
    """The labelled rows of an execution as arrays."""
    policy = run.snapshot.policy
    rows = [i for i, row in enumerate(run.revealed) if row.intent is not msgspec.UNSET]
    decisions = [run.routed[i].decision for i in rows]
    labels = [str(run.revealed[i].intent) for i in rows]
    labels = [label if label in policy.cohorts else OUT_OF_SCOPE for label in labels]
    named = [names.get(run.rows[i].line, (_UNKNOWN, _UNKNOWN)) for i in rows]
    nearest = [d.cohort.name if d.cohort is not None else None for d in decisions]
    return Judged(
        source=np.array([source for source, _ in named], dtype=object),
        language=np.array([language for _, language in named], dtype=object),
        label=np.array(labels, dtype=object),
        right=np.array([name == label for name, label in zip(nearest, labels, strict=True)], dtype=bool),
        accepted=np.array([trusted_cohort(run.routed[i]) is not None for i in rows], dtype=bool),
        scope=np.array([scope_score(d) for d in decisions], dtype=float),
        cheap=np.array([cheap_score(policy, d) for d in decisions], dtype=float),
        tier=np.array([policy.rank(d.tier.name) for d in decisions], dtype=int),
        wanted=np.array([wanted_rank(policy, label) for label in labels], dtype=int),
        destructive=np.array([destroys(d, label) for d, label in zip(decisions, labels, strict=True)], dtype=bool),
    )


def wanted_rank(policy: Policy, label: str) -> int:
    """The rank of the label's tier."""
    cohort = policy.cohorts.get(label)
    return policy.rank(cohort.tier if cohort is not None else policy.default_tier)


def destroys(decision: Decision, label: str) -> bool:
    """Whether the request gets another task's output cap, or another task turns its reasoning off."""
    name = decision.cohort.name if decision.cohort is not None else None
    return name != label and (decision.max_output_tokens is not None or decision.reasoning is False)


# --- controls ---------------------------------------------------------------------------------------------------


def always(judged: Judged, policy: Policy, label: str) -> Judged:
    """The same rows, all sent where `label` goes: to one cohort with its settings, or to the default tier."""
    rows, cohort = len(judged.label), policy.cohorts.get(label)
    capped = cohort is not None and (cohort.max_output_tokens is not None or cohort.reasoning is False)
    rank = wanted_rank(policy, label)
    return msgspec.structs.replace(
        judged,
        right=(judged.label == label) & (cohort is not None),
        accepted=np.full(rows, cohort is not None),
        scope=np.zeros(rows),
        cheap=np.full(rows, 0.0 if rank == 0 else -math.inf),
        tier=np.full(rows, rank),
        destructive=(judged.label != label) & capped,
    )


def most_common(judged: Judged) -> str | None:
    """The label in scope that most rows have. None if all rows are out of scope."""
    common = Counter(judged.label[~judged.outside].tolist()).most_common(1)
    return str(common[0][0]) if common else None


def without_background(folder: Path, copy: Path) -> Path:
    """A copy of the folder of intents without its background."""
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns(_BACKGROUND))
    return copy


# --- the table --------------------------------------------------------------------------------------------------


class Rows(msgspec.Struct, frozen=True):
    """Labelled rows as one folder decides about them: those of the data, and the project's own."""

    data: Judged
    own: Judged


def table(run: Execution, rows: Rows, bare: Rows | None) -> Iterator[str]:
    """The whole table: all rows, the controls, our own prompts, and each cohort, source and language.

    `bare` has the same rows as the folder without its background decides about them.
    """
    judged = rows.data
    policy = run.snapshot.policy
    yield f"{'':<{_NAME}}{'rows':>5}" + "".join(f"{title:>{_WIDTH}}" for title in MEASURES)
    yield from _line("all rows", judged, intervals=True)
    yield "controls on the same rows"
    if bare is not None:
        yield from _line(f"  {_BARE}", bare.data, intervals=True)
    yield from _line("  always the default tier", always(judged, policy, OUT_OF_SCOPE))
    if (common := most_common(judged)) is not None:
        yield from _line(f"  always {common} (most rows)", always(judged, policy, common))
    yield from _own_lines(rows.own, bare.own if bare is not None else None)
    for title in ("label", "source", "language"):
        yield f"by {title}"
        column = getattr(judged, title)
        for name in sorted(set(column.tolist()), key=lambda name: (name == OUT_OF_SCOPE, name)):
            yield from _line(f"  {name}", judged.at(column == name), intervals=title != "source")
    foreign = judged.language != _ENGLISH
    if foreign.any() and not foreign.all():
        yield from _line("  other languages", judged.at(foreign), intervals=True)


def _own_lines(own: Judged, bare: Judged | None) -> Iterator[str]:
    """Our own prompts: those in English, then those in other languages together, beside a control, and each."""
    foreign = own.language != _ENGLISH
    if not foreign.all():
        yield from _line(OWN, own.at(~foreign))
    if not foreign.any():
        return
    yield from _line(OWN_FOREIGN, own.at(foreign))
    if bare is not None:
        yield from _line(f"  {_BARE}", bare.at(foreign))
    for language in dict.fromkeys(own.language[foreign].tolist()):
        yield from _line(f"  {language}", own.at(own.language == language))


def _line(name: str, judged: Judged, intervals: bool = False) -> Iterator[str]:
    """The figures of a group of rows, in per cent. With `intervals`, a second line has the 95 % intervals."""
    measured = (
        estimates(judged) if intervals else {t: Estimate(v, math.nan, math.nan) for t, v in measure(judged).items()}
    )
    yield f"{name:<{_NAME}}{len(judged.label):>5}" + "".join(
        _cell(_percent(measured[title].value)) for title in MEASURES
    )
    if any(not math.isnan(estimate.low) for estimate in measured.values()):
        yield " " * (_NAME + 5) + "".join(_cell(_interval(measured[title])) for title in MEASURES)


def _cell(text: str) -> str:
    return f"{text:>{_WIDTH}}"


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.1f}"


def _interval(estimate: Estimate) -> str:
    return "" if math.isnan(estimate.low) else f"[{100 * estimate.low:.0f}, {100 * estimate.high:.0f}]"


# --- the run ----------------------------------------------------------------------------------------------------


def run_table(intents: Path, data: Path, memory: Memory, prompts: Path = Path("tests")) -> Iterator[str]:
    """The lines of the table. `prompts` is the folder of our prompts. Raises ValueError if no row was matched."""
    traffic, names, tokens = usable(data), names_of(data), Tokens()
    with tempfile.TemporaryDirectory() as folder:
        own_path = written_own(prompts, Path(folder) / "own.jsonl")
        own, own_names = read_traffic(own_path), names_of(own_path)
        run = execute(intents, memory, traffic, tokens)
        report_bad_rows(data, run.bad)
        judged = judge(run, names)
        if not np.isfinite(judged.scope).any():
            reasons = Counter(routed.decision.reason.value for routed in run.routed)
            raise ValueError(f"{data}: no row was matched with a cohort; the reasons are {dict(reasons)}")
        bare = None
        if (intents / _BACKGROUND).exists():
            copy = without_background(intents, Path(folder) / "intents")
            bare = Rows(
                judge(execute(copy, memory, traffic, tokens, copy_of=intents), names),
                judge(execute(copy, memory, own, tokens, copy_of=intents), own_names),
            )
        rows = Rows(judged, judge(execute(intents, memory, own, tokens), own_names))
        yield f"{data}, revision {run.snapshot.revision}, encoder {run.config.policy.encoder.model}"
        yield f"{int((~np.isfinite(judged.scope)).sum())} of {len(judged.label)} rows have no match"
        yield from table(run, rows, bare)


def written_own(prompts: Path, path: Path) -> Path:
    """Write our own held-out prompts as traffic: heldout.yaml and languages.yaml in `prompts`, if they exist."""
    english, others = prompts / "heldout.yaml", prompts / "languages.yaml"
    labelled = {_ENGLISH: yaml.safe_load(english.read_text())} if english.exists() else {}
    labelled |= yaml.safe_load(others.read_text()) if others.exists() else {}
    rows = [
        {"id": f"own/own/{code}/{i}", "text": text, "intent": None if name == "out_of_scope" else name}
        for code, by_intent in labelled.items()
        for name, texts in by_intent.items()
        for i, text in enumerate(texts)
    ]
    path.write_bytes(b"\n".join(map(msgspec.json.encode, rows)))
    return path


def main() -> None:
    """Print the table. The exit code is 1 if no row was matched with a cohort."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?", default=Path("../shared/data/wild_dev.jsonl.gz"))
    parser.add_argument("--intents", type=Path, default=Path("intents"))
    args = parser.parse_args()
    try:
        memory = patient(load_config(args.intents).policy.encoder.model)
        for text in run_table(args.intents, args.data, memory):
            print(text, flush=True)
    except (OSError, ValueError) as error:  # ConfigError is a ValueError
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
