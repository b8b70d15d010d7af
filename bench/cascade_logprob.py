"""A cascade by log-probabilities and its controls, through a real Envoy: `make bench-cascade`, second table.

A level of the small model's mean log-probability is fitted for each data set on the authors' training part, as
`extproc calibrate --target` fits it, and tried on their test part. The rules are written as a folder of intents.
The product makes every decision of the run. The router asks the small tier for log-probabilities, the verifier
judges them and removes them from the answer, and Envoy escalates. Only the models are replaced: their recorded
answers, log-probabilities and times are replayed. The run fails if a client saw a log-probability.
"""

import argparse
import asyncio
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from bench import cascade
from bench.cascade import LARGE, SMALL, Outcomes, Served, accuracies, costs, interval, latencies, mixed_share
from bench.cascade import resamples as resampled_outcomes
from bench.chains import (
    ChainQuestion,
    ahead_of_mix,
    best_pair,
    by_data_set,
    escalated_by_score,
    fit_levels,
    outcomes_of,
    pair_lines,
    price_of,
    read_chains,
    rejected,
    traffic_row,
)
from bench.replay import ReplayUpstreams, replaying
from extproc.encoder.backends import load_encoder
from extproc.encoder.protocols import Encoder
from extproc.evidence.data.tokens import Tokens
from extproc.evidence.data.traffic import read_traffic
from extproc.evidence.execution import Memory, execute
from extproc.evidence.fit.choice import choose
from extproc.evidence.fit.scored_table import scored_table
from extproc.evidence.fit.target import Target
from extproc.evidence.measure.metrics import Floats
from extproc.evidence.show.calibration import plan_text

_LINES = {
    "always small": "always small (m)",
    "always large": "always large (m)",
    "random": "random, equal share",
    "mix": "static mix, equal cost",
    "oracle": "oracle, equal share",
    "cascade": "cascade, log-probabilities (m)",
}
# The least share of the requests in their own cohort that must escalate as computed.
_LEAST_SAME = 0.98


def table(
    questions: Sequence[ChainQuestion],
    served: Sequence[Mapping[str, Served]],
    others: Mapping[str, Floats],
    models: tuple[str, str],
    seed: int,
) -> Iterator[str]:
    """The lines of one data set. `others` are controls that were computed: name -> 1 for an escalated answer."""
    small, large = models
    o = outcomes_of(questions, small, large, np.array([s["auto"].escalations > 0 for s in served], dtype=float))
    late, share = latencies(o, served), float(o.escalated.mean())
    yield "line                             accuracy % [95 %]      to large %   $/1,000   p50 s   p95 s"
    measured, resampled, cost = accuracies(o), accuracies(resampled_outcomes(o, seed)), costs(o)
    shares = {"always small": 0.0, "always large": 1.0, "mix": float(mixed_share(o))}
    for line, name in _LINES.items():
        times = "".join(f"{seconds:>8.2f}" for seconds in late[line])
        yield _line(name, measured[line], resampled[line], shares.get(line, share), cost[line]) + times
    for name, escalated in others.items():
        other = msgspec.structs.replace(o, escalated=escalated)
        both = accuracies(other)["cascade"], accuracies(resampled_outcomes(other, seed))["cascade"]
        yield _line(name, *both, float(escalated.mean()), costs(other)["cascade"])
    yield f"cascade, log-probabilities, minus random of equal share: {_gap(o, 'random', seed)}"
    yield f"cascade, log-probabilities, minus static mix of equal cost: {_ahead(o, seed)}"
    for name, escalated in others.items():
        ahead = _ahead(msgspec.structs.replace(o, escalated=escalated), seed)
        yield f"{name}, minus static mix of equal cost: {ahead}"


def _line(name: str, value: Floats, resampled: Floats, share: float, cost: float) -> str:
    low, high = interval(resampled)
    accuracy = f"{100 * value:>5.1f} [{100 * low:.1f}, {100 * high:.1f}]"
    return f"{name:<32} {accuracy}{100 * share:>14.1f}{1000 * cost:>13.4f}"


def _gap(o: Outcomes, line: str, seed: int) -> str:
    measured, resampled = accuracies(o), accuracies(resampled_outcomes(o, seed))
    low, high = interval(resampled["cascade"] - resampled[line])
    return _points(100 * float(measured["cascade"] - measured[line]), 100 * low, 100 * high)


def _ahead(o: Outcomes, seed: int) -> str:
    return _points(*ahead_of_mix(o, seed))


def _points(value: float, low: float, high: float) -> str:
    verdict = "above" if low > 0 else "below" if high < 0 else "the interval includes 0"
    return f"{value:+.1f} points [{low:+.1f}, {high:+.1f}] ({verdict})"


def checked(
    questions: Sequence[ChainQuestion],
    served: Sequence[Mapping[str, Served]],
    levels: Mapping[str, float],
    upstreams: ReplayUpstreams,
) -> str:
    """Compare the run with the levels offline. Raises RuntimeError if it was not the run that it should be."""
    wrong = [q.id for q, s in zip(questions, served, strict=True) if not all(x.as_recorded for x in s.values())]
    if wrong:
        raise RuntimeError(f"answers differ from the recorded answers of their tier: questions {wrong[:10]}")
    pairs = [(q, s["auto"]) for q, s in zip(questions, served, strict=True)]
    own = cascade.routed_to_own_cohort(pairs)
    expected = rejected(questions, SMALL, levels)
    same = sum(
        (s.escalations > 0) == bool(e)
        for (q, s), e in zip(pairs, expected, strict=True)
        if s.cohort == cascade.cohort_of(q.category)
    )
    if same < _LEAST_SAME * own:
        raise RuntimeError(f"{own - same} of {own} answers escalated otherwise than by their log-probabilities")
    if any(s.shows_logprobs for by_way in served for s in by_way.values()):
        raise RuntimeError("a client that did not ask for log-probabilities got them")
    asked = upstreams.asked_logprobs
    if not asked[SMALL] or asked[LARGE]:
        raise RuntimeError(
            f"requests that asked for log-probabilities, by tier: {dict(asked)}; expected only small"
        )
    return (
        f"routed to the data set's own cohort: {own}/{len(pairs)}. Same escalation as the levels offline: "
        f"{same}/{own}.\nThe router asked the small tier for log-probabilities {asked[SMALL]} times, and the large "
        "one never. No client saw one."
    )


def calibrated(folder: Path, encoder: Encoder, fit: Sequence[ChainQuestion], target: Target) -> Iterator[str]:
    """The choice of `extproc calibrate --target` from the part fitted on."""
    traffic = folder / "fit.jsonl"
    traffic.write_bytes(b"".join(msgspec.json.encode(traffic_row(question)) + b"\n" for question in fit))
    scored = scored_table(execute(folder / "intents", Memory(encoder), read_traffic(traffic), Tokens()), 0)
    choice = choose(scored, target, 0.01, "2026-01-01")
    for cohort in choice.cohorts:
        plan = plan_text(cohort.plan) if cohort.plan is not None else f"unchanged, {cohort.why}"
        yield f"  {cohort.name}: {plan}"


def main() -> None:
    """Fit, run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    help_data = "a file of recorded chains, or a folder with chains_*.jsonl.gz"
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help=help_data)
    parser.add_argument("--questions", type=int, default=0, help="test questions to ask (default 0: all)")
    parser.add_argument("--share", type=float, default=0.3, help="share of the fit part to escalate (default 0.3)")
    parser.add_argument(
        "--models", nargs=2, metavar="MODEL", help="small and large (default: chosen on the fit part)"
    )
    parser.add_argument("--offline", action="store_true", help="print only the table of all pairs, without Envoy")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    paths = sorted(args.data.glob("chains_*.jsonl.gz")) if args.data.is_dir() else [args.data]
    for path in paths:
        _print_file(path, args)


def _print_file(path: Path, args: Any) -> None:
    began = time.monotonic()
    every = read_chains([path])
    if not args.offline:
        _print_run(path, every, args)
    print(
        f"\n{path.name}: every pair of models, computed offline, levels fitted at {100 * args.share:g} % escalated:"
    )
    for line in pair_lines(every, args.share, args.seed):
        print(line)
    print(f"python -m bench.cascade_logprob, seed {args.seed}: {time.monotonic() - began:.0f} s")


def _print_run(path: Path, every: Sequence[ChainQuestion], args: Any) -> None:
    small, large = args.models or best_pair([q for q in every if q.fit], args.share)
    chain = [question.as_tiers(small, large) for question in every]
    fit, test = ([q for q in chain if q.fit is part] for part in (True, False))
    asked: list[Any] = cascade.sample(test, args.questions or len(test), args.seed)  # type: ignore[arg-type]
    levels = fit_levels(fit, SMALL, args.share)
    # A level of this model. `check` refuses it at a tier with another one.
    accept = {name: [{"logprob": {"min": level, "tier": SMALL, "model": SMALL}}] for name, level in levels.items()}
    encoder, prices = load_encoder("all-MiniLM-L6-v2"), {SMALL: price_of(small), LARGE: price_of(large)}
    answers = {tier: {q.prompt: q.answers[tier] for q in asked} for tier in (SMALL, LARGE)}
    with tempfile.TemporaryDirectory(prefix="chains-") as name:
        folder = Path(name) / "intents"
        by_name = cascade.utterances(fit, encoder)  # type: ignore[arg-type]
        cascade.write_intents(folder, accept, by_name, prices)
        upstreams = ReplayUpstreams(answers, dict.fromkeys(answers, 0.0), Tokens())
        with replaying(folder, upstreams) as stack:
            served = asyncio.run(cascade.run(stack.url, asked))
        print(
            f"{path.name}: {small} (small) and {large} (large), {len(asked)} test questions, "
            f"levels fitted on {len(fit)} others"
        )
        print("; ".join(f"{name}: mean log-probability at least {level:g}" for name, level in levels.items()))
        print(checked(asked, served, levels, upstreams))
        budget = costs(outcomes_of(fit, SMALL, LARGE, rejected(fit, SMALL, levels)))["cascade"]
        target = Target("cost", round(1000 * budget, 4))
        print(f"`extproc calibrate --target {target}` chooses from the same {len(fit)} rows:")
        print("\n".join(calibrated(Path(name), encoder, fit, target)))
    scores = {
        "score, without log-probabilities": escalated_by_score(fit, asked, SMALL, args.share, False),
        "score, with log-probabilities": escalated_by_score(fit, asked, SMALL, args.share, True),
    }
    for data_set in by_data_set(asked):
        rows = np.array([i for i, q in enumerate(asked) if q.category == data_set])
        print(f"\n{data_set}, {len(rows)} questions")
        part, others = [asked[i] for i in rows], {name: values[rows] for name, values in scores.items()}
        for line in table(part, [served[i] for i in rows], others, (SMALL, LARGE), args.seed):
            print(line)
    print(
        "\n(m) was measured through Envoy. The others follow from these and from the recorded outcomes. Without\n"
        "log-probabilities the score reads only the form of the answer and the question. Tokens and times are as\n"
        f"recorded. Dollars per million tokens, in/out: small {prices[SMALL]}, large {prices[LARGE]}. Rejected\n"
        "answers are paid."
    )


if __name__ == "__main__":
    main()
