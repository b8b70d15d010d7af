"""`make bench-cache`: the questions that the cache of accepted answers recognises, and the cost of a hit.

The asks are hand-written: `lookalikes.yaml` has pairs that need different answers, and `paraphrases.yaml` has pairs
that need the same one. The controls are those of other caches: the exact text, and the similarity of embeddings at
a fixed threshold. The second part sends requests through the real Envoy, to the cache and past it.
"""

import argparse
import gzip
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np
import yaml

from bench.cache import Cache, CachedEncoder
from extproc.demo.sample_upstream import SampleUpstreams
from extproc.demo.stack import Stack
from extproc.encoder.protocols import Vectors
from extproc.routing.answer_cache import LEAST_SIMILARITY
from extproc.routing.wording import wording_of
from tests.e2e.traffic import CHAT, MODELS, PROVE, body_of, eventually, send, small_intent, write_small_intents

CLINC = "clinc150.jsonl.gz"
_HERE = Path(__file__).parent
_THRESHOLDS = (0.8, 0.9, 0.95)
# The simulated traffic: how often a question is asked again falls with its rank, as in logs of search engines.
_REQUESTS, _RUNS, _ZIPF, _OTHER_WORDS = 300, 20, 1.0, 0.3
_KEY = {"authorization": "Bearer bench"}

Pair = tuple[str, str]
Method = Callable[[str, str], bool]


def pairs_of(name: str) -> dict[str, list[Pair]]:
    """The pairs of a file, by kind."""
    kinds: dict[str, str] = yaml.safe_load((_HERE / name).read_text())
    return {kind: [_pair(line) for line in text.splitlines()] for kind, text in kinds.items()}


def _pair(line: str) -> Pair:
    one, other = line.split(" | ")
    return one, other


class Asks:
    """The embeddings of all asks."""

    def __init__(self, texts: Sequence[str], encode: Callable[[Sequence[str]], Vectors]) -> None:
        self.texts = list(dict.fromkeys(texts))
        self.vectors = encode(self.texts)
        self._row = {text: row for row, text in enumerate(self.texts)}

    def similarity(self, one: str, other: str) -> float:
        """The inner product of the embeddings."""
        return float(self.vectors[self._row[one]] @ self.vectors[self._row[other]])


def is_exact(one: str, other: str) -> bool:
    """Whether two asks are the same text."""
    return " ".join(one.split()) == " ".join(other.split())


def has_one_wording(one: str, other: str) -> bool:
    """Whether two asks have the same wording, or are the same text."""
    wording = wording_of(one)
    return is_exact(one, other) or (wording is not None and wording == wording_of(other))


def methods(asks: Asks) -> dict[str, Method]:
    """The ways to recognise a question, the cache's own first."""

    def own(one: str, other: str) -> bool:
        return is_exact(one, other) or (
            has_one_wording(one, other) and asks.similarity(one, other) >= LEAST_SIMILARITY
        )

    def nearer_than(threshold: float) -> Method:
        return lambda one, other: asks.similarity(one, other) >= threshold

    cosine = {f"cosine of {threshold:.2f} or more": nearer_than(threshold) for threshold in _THRESHOLDS}
    return {"this cache": own, "wording alone": has_one_wording, "exact text": is_exact} | cosine


def share(method: Method, pairs: Sequence[Pair]) -> float:
    """The share of the pairs that count as one question."""
    return sum(method(*pair) for pair in pairs) / len(pairs)


def false_hits(asks: Sequence[str], same: Sequence[Pair]) -> Iterator[Pair]:
    """All pairs of different asks with one wording, without those that are known to mean the same."""
    known = {frozenset(pair) for pair in same}
    wordings: dict[str, list[str]] = {}
    for text in asks:
        wording = wording_of(text)
        if wording is not None:
            wordings.setdefault(wording, []).append(text)
    for group in wordings.values():
        for i, one in enumerate(group):
            yield from ((one, other) for other in group[i + 1 :] if frozenset((one, other)) not in known)


def simulated(paraphrases: Sequence[Pair], method: Method) -> float:
    """The share of hits in traffic where popular questions are asked again, a part of them in other words."""
    weights = [1 / (rank + 1) ** _ZIPF for rank in range(len(paraphrases))]
    hits = 0
    for run in range(_RUNS):
        draw, kept = random.Random(run), dict[int, list[str]]()
        order = draw.sample(paraphrases, len(paraphrases))
        for question in draw.choices(range(len(paraphrases)), weights, k=_REQUESTS):
            text = order[question][draw.random() < _OTHER_WORDS]
            known = kept.setdefault(question, [])
            if any(method(other, text) for other in known):
                hits += 1
            else:
                known.append(text)
    return hits / _REQUESTS / _RUNS


def show_recognition(cache: Path) -> None:
    """Print the table of hits and false hits."""
    lookalikes, same = pairs_of("lookalikes.yaml"), pairs_of("paraphrases.yaml")["paraphrases"]
    different = [pair for pairs in lookalikes.values() for pair in pairs]
    asks = Asks([text for pair in (*different, *same) for text in pair], CachedEncoder(Cache(cache)).encode)
    print(f"{len(different)} look-alikes, {len(same)} paraphrases")
    traffic = f"Zipf {_ZIPF:g}, {100 * _OTHER_WORDS:.0f} % in other words"
    print(f"{_RUNS} runs of {_REQUESTS} simulated requests ({traffic}, no look-alikes); hits cost nothing")
    print(f"{'':24}{'false hits':>12}{'paraphrases':>13}{'cost saved':>12}")
    for name, method in methods(asks).items():
        wrong, right = share(method, different), share(method, same)
        print(f"{name:24}{100 * wrong:>10.1f} %{100 * right:>11.1f} %{100 * simulated(same, method):>10.1f} %")
    print("false hits by kind, cosine of 0.90 or more against this cache:")
    by_name = methods(asks)
    for kind, pairs in lookalikes.items():
        counts = (100 * share(by_name[name], pairs) for name in ("cosine of 0.90 or more", "this cache"))
        print("  {:16}{:3} pairs{:>8.0f} %{:>6.0f} %".format(kind, len(pairs), *counts))
    others = list(false_hits(asks.texts, same))
    n = len(asks.texts)
    print(f"of all {n * (n - 1) // 2:,} pairs of {n} asks, {len(others)} more have one wording: {others}")
    near = sorted(asks.similarity(*pair) for pair in same if has_one_wording(*pair))
    cuts = np.percentile(near, [0, 5, 50])
    print("similarity of paraphrases with one wording: least {:.2f}, 5 % {:.2f}, median {:.2f}".format(*cuts))


def show_foreign(data: Path) -> None:
    """Print how many pairs of CLINC150's asks have one wording, and how many of them have two labels.

    The wording was written before these asks were looked at.
    """
    if not (data / CLINC).exists():
        print(f"CLINC150: {data / CLINC} is not there")
        return
    with gzip.open(data / CLINC) as lines:
        rows = [msgspec.json.decode(line) for line in lines]
    labels = {row["text"]: row["intent"] for row in rows}
    pairs = list(false_hits(list(labels), []))
    differ = [pair for pair in pairs if labels[pair[0]] != labels[pair[1]]]
    print(
        f"CLINC150: {len(pairs):,} pairs of {len(labels):,} asks have one wording, {len(differ)} with two labels:"
    )
    for one, other in differ:
        print(f"  {one!r} ({labels[one]}), {other!r} ({labels[other]})")


def show_cost(requests: int) -> None:
    """Print latency and CPU of a hit, and of a request that a tier answers without delay."""
    rules = "accept: [complete, non_empty, no_refusal]\nescalate: {to: frontier}"
    with tempfile.TemporaryDirectory() as name, SampleUpstreams(MODELS) as upstreams:
        written = write_small_intents(Path(name) / "written")
        settings = f"tier: large\n{rules}\ncache: {{verify: 0}}"
        (written / "math_reasoning.yaml").write_text(small_intent("math_reasoning", settings))
        stack = Stack(written, Path(name), upstreams)
        try:
            stack.start_router()
            stack.start_envoy()
            _measure(stack, requests)
        finally:
            stack.stop()


def _measure(stack: Stack, requests: int) -> None:
    body = msgspec.json.encode(body_of(CHAT, PROVE))

    def word(headers: dict[str, str]) -> str:
        return send(stack.port, CHAT, body, headers).headers["x-router-cache"]

    eventually(lambda: word(_KEY) == "hit" or None, "the cache answers")
    rows: dict[str, tuple[list[float], list[float]]] = {"hit": ([], []), "client": ([], [])}
    for _ in range(4):  # alternately, because the load of this machine changes
        for kind, headers in (("hit", _KEY), ("client", _KEY | {"cache-control": "no-store"})):
            before = _cpu_s(stack)
            for _ in range(requests // 4):
                began = time.perf_counter()
                assert word(headers) == kind
                rows[kind][0].append(time.perf_counter() - began)
            rows[kind][1].append((_cpu_s(stack) - before) / (requests // 4))
    print(f"{requests} requests each, one after the other, on new connections; the tier answers without delay")
    for kind, what in (("hit", "from the cache"), ("client", "from a tier, judged")):
        times, cpu = rows[kind]
        middle, high = statistics.median(times), statistics.quantiles(times, n=20)[18]
        print(f"  {what:22} p50 {1e3 * middle:5.2f} ms, p95 {1e3 * high:5.2f} ms, "
              f"CPU of router and Envoy {1e3 * min(cpu):5.2f} ms per request")  # fmt: skip


def _cpu_s(stack: Stack) -> float:
    """CPU time of the router and of Envoy, in seconds."""
    ticks = 0
    for process in (stack.router, stack.envoy):
        assert process is not None
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, default=Path("build/bench-cache"))
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--requests", type=int, default=1000)
    args = parser.parse_args()
    show_recognition(args.cache)
    show_foreign(args.data)
    if args.requests:
        show_cost(args.requests)


if __name__ == "__main__":
    main()
