"""Simulated rollouts of a candidate, judged by the sequential test of the router: `make bench-rollout`.

How often is a candidate stopped although it is as good as the policy that serves? How often is it promoted
although it loses as much as is tolerated, and how many conversations does a right verdict take? The control is what
people do by hand: a z-test for a fixed number of conversations, which is looked at after every conversation.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from extproc.accounting.sequential import ERROR, Counts, RolloutVerdict, group_errors, is_tested_at, rulings

_LOSS = 0.02
# The share of the traffic of each cohort, and the share of its answers that are accepted.
_TRAFFIC = np.array([0.4, 0.3, 0.2, 0.1])
_ACCEPTED = np.array([0.95, 0.92, 0.88, 0.82])
_CANDIDATE_SHARE = 0.2
_CONVERSATIONS = 60_000
_RUNS = 200
# A two-sided z-test with the same error. It begins when each arm has so many trials, as the rule of thumb says.
_Z, _LEAST_TRIALS = 1.96, 30
# The change of the accepted share by the candidate, in all cohorts or in one.
_CHANGES = {
    "no effect": np.zeros(4),
    "a loss of 2 points, as tolerated": np.full(4, -0.02),
    "a loss of 5 points": np.full(4, -0.05),
    "a loss of 30 points in the smallest cohort": np.array([0, 0, 0, -0.30]),
    "a gain of 2 points": np.full(4, 0.02),
}
_TESTED = np.array([n for n in range(1, _CONVERSATIONS + 1) if is_tested_at(n)])


class Traffic(msgspec.Struct, frozen=True):
    """The conversations of one simulated rollout, as arrays."""

    cohort: npt.NDArray[np.int64]
    candidate: npt.NDArray[np.bool_]
    accepted: npt.NDArray[np.bool_]


class Verdict(msgspec.Struct, frozen=True):
    """The first verdict of a rollout, and the number of conversations before it."""

    word: RolloutVerdict
    after: int


def simulate(change: npt.NDArray[np.float64], conversations: int, rng: np.random.Generator) -> Traffic:
    """Draw conversations, of which the candidate gets a share."""
    cohort = rng.choice(len(_TRAFFIC), conversations, p=_TRAFFIC)
    candidate = rng.random(conversations) < _CANDIDATE_SHARE
    share = _ACCEPTED[cohort] + np.where(candidate, change[cohort], 0)
    return Traffic(cohort, candidate, rng.random(conversations) < share)


def sequential_verdict(traffic: Traffic, loss: float) -> Verdict:
    """The verdict of the router: any group stops the candidate, and only all of them together promote it."""
    whole, each = group_errors(len(_TRAFFIC))
    groups = [np.arange(len(traffic.cohort)), *(np.flatnonzero(traffic.cohort == c) for c in range(len(_TRAFFIC)))]
    events = list(_events(traffic, groups[:1], loss, whole)) + [
        event for event in _events(traffic, groups[1:], loss, each) if event.word is RolloutVerdict.STOP
    ]
    return min(events, key=lambda event: event.after, default=Verdict(RolloutVerdict.HOLD, len(traffic.cohort)))


def _events(
    traffic: Traffic, groups: Sequence[npt.NDArray[np.int64]], loss: float, error: float
) -> Iterator[Verdict]:
    """The first promotion and the first stop in each group of conversations."""
    for group in groups:
        candidate = np.cumsum(traffic.candidate[group])
        tested = _TESTED[: np.searchsorted(_TESTED, candidate.max(initial=0), side="right")]
        at = np.searchsorted(candidate, tested)
        counts = _counts(traffic, group)
        counts = Counts(*(np.asarray(getattr(counts, name))[at] for name in Counts.__struct_fields__))
        words = (RolloutVerdict.PROMOTE, RolloutVerdict.STOP)
        for word, holds in zip(words, rulings(counts, loss, error), strict=True):
            if holds.any():
                yield Verdict(word, int(group[at[np.argmax(holds)]]) + 1)


def _counts(traffic: Traffic, group: npt.NDArray[np.int64]) -> Counts:
    candidate, accepted = traffic.candidate[group], traffic.accepted[group]
    arms = (candidate, candidate & accepted, ~candidate, ~candidate & accepted)
    return Counts(*(np.cumsum(arm) for arm in arms))


def z_verdict(traffic: Traffic, loss: float) -> Verdict:
    """The verdict of the control: the first significant z-test of all requests."""
    counts = _counts(traffic, np.arange(len(traffic.cohort)))
    n, m = (np.maximum(arm, 1) for arm in (counts.candidate, counts.serving))
    share, other = counts.candidate_successes / n, counts.serving_successes / m
    spread = _Z * np.sqrt(share * (1 - share) / n + other * (1 - other) / m)
    ready = (counts.candidate >= _LEAST_TRIALS) & (counts.serving >= _LEAST_TRIALS)
    promoted, stopped = ready & (share - other - spread > -loss), ready & (share - other + spread < 0)
    decided = np.flatnonzero(promoted | stopped)
    if not len(decided):
        return Verdict(RolloutVerdict.HOLD, len(traffic.cohort))
    first = int(decided[0])
    return Verdict(RolloutVerdict.PROMOTE if promoted[first] else RolloutVerdict.STOP, first + 1)


def line(name: str, verdicts: Sequence[Verdict], runs: int) -> str:
    """A row of the table: the share of each verdict, and the median number of conversations before a verdict."""
    shares = [sum(v.word is word for v in verdicts) / runs for word in RolloutVerdict]
    after = [v.after for v in verdicts if v.word is not RolloutVerdict.HOLD]
    median = f"{int(np.median(after)):,}" if after else "-"
    return f"| {name} | {shares[0]:.1%} | {shares[1]:.1%} | {shares[2]:.1%} | {median} |"


def tables(runs: int, conversations: int, seed: int) -> str:
    """Both tables as Markdown."""
    rows: dict[str, list[str]] = {"the router's test": [], "a z-test, looked at after every conversation": []}
    for name, change in _CHANGES.items():
        rng = np.random.default_rng(seed)
        traffic = [simulate(change, conversations, rng) for _ in range(runs)]
        for judge, table in zip((sequential_verdict, z_verdict), rows.values(), strict=True):
            table.append(line(name, [judge(one, _LOSS) for one in traffic], runs))
    head = "| candidate | promoted | stopped | no verdict | median conversations |\n|---|---|---|---|---|"
    return "\n\n".join(f"{title}:\n\n{head}\n" + "\n".join(table) for title, table in rows.items())


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=_RUNS, help="simulated rollouts of each kind")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random numbers")
    parser.add_argument("--out", type=Path, help="also write the tables to this file")
    args = parser.parse_args()
    began = time.process_time()
    text = (
        f"{args.runs} rollouts of each kind, at most {_CONVERSATIONS:,} conversations, a candidate share of "
        f"{_CANDIDATE_SHARE:.0%}, a tolerated loss of {_LOSS:.0%} and a stated error of {ERROR:.0%}."
        f"\n\n{tables(args.runs, _CONVERSATIONS, args.seed)}"
    )
    print(f"{text}\n\n{time.process_time() - began:.0f} s of CPU")
    if args.out is not None:
        args.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
