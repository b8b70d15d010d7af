"""Decisions about recorded traffic, and the outcome that the recorded answers give them.

`Router.route` makes every decision, as it does when it serves. The encoder has no deadline. The decisions are
sealed before any label or outcome is read.
"""

import asyncio
import hashlib
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from extproc.acceptance.grounding import Embed
from extproc.config.compile import compile_snapshot, texts_of, utterances_digest
from extproc.config.load import Config, load_config
from extproc.contract.words import Reason
from extproc.encoder.protocols import Encoder, Vectors
from extproc.encoder.vector_file import storing
from extproc.evidence.data.answers import Prices, ReplayedAnswer, Served, Upstreams
from extproc.evidence.data.groups import group_rows
from extproc.evidence.data.tokens import Tokens
from extproc.evidence.data.traffic import BadRow, Revealed, Row, Traffic, reveal_all
from extproc.evidence.measure.metrics import Floats, GroupIds
from extproc.routing.decision import Decision
from extproc.routing.limits import Rates
from extproc.routing.policy import Policy, routable_model
from extproc.routing.routed import Routed
from extproc.routing.router import Router
from extproc.routing.snapshot import Snapshot
from extproc.routing.trust import chance_above, trust

# Rows routed concurrently. Their texts are encoded together.
_CONCURRENT_ROWS = 512


class Memory:
    """Encodes texts in batches and remembers the vectors. Several configurations can share one. Shows progress."""

    def __init__(self, encoder: Encoder, sentences: Embed | None = None, progress: bool = False) -> None:
        """`sentences` embeds for the rule `grounded`, which cannot run without it."""
        self._encoder = encoder
        self.sentences = sentences
        self._vectors: dict[str, Vectors] = {}
        self._progress = progress
        self._waiting: list[tuple[str, asyncio.Future[Vectors]]] = []

    async def embed(self, text: str, deadline_s: float, principal: str = "") -> Vectors:
        """Return float32[d]. The deadline is ignored: no client waits."""
        del deadline_s
        if text in self._vectors:
            return self._vectors[text]
        loop = asyncio.get_running_loop()
        if not self._waiting:  # texts that arrive in this turn of the loop are encoded together
            loop.call_soon(self._encode_waiting)
        self._waiting.append((text, loop.create_future()))
        return await self._waiting[-1][1]

    def _encode_waiting(self) -> None:
        waiting, self._waiting = self._waiting, []
        for (_, future), vector in zip(waiting, self.encode([text for text, _ in waiting]), strict=True):
            if not future.done():  # Ctrl-C cancels the tasks that wait
                future.set_result(vector)

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Return float32[len(texts), d], each row of unit length."""
        new = [text for text in dict.fromkeys(texts) if text not in self._vectors]
        if new:
            self._vectors |= dict(zip(new, self._encoder.encode(new), strict=True))
        return np.stack([self._vectors[text] for text in texts])

    def encode_utterances(self, texts: Sequence[str]) -> None:
        """Remember the vectors of texts that the configuration has: from the file of vectors, if there is one."""
        self._vectors |= dict(zip(texts, storing(self._encoder).encode(texts), strict=True))

    def fresh(self) -> "Memory":
        """The same encoder with an empty memory, for texts that are not needed again."""
        return Memory(self._encoder, self.sentences, self._progress)

    def show_progress(self, done: int, total: int, began: float, what: str = "rows") -> None:
        """Draw the progress line on stderr, if asked to. `began` is a time of the monotonic clock."""
        if self._progress:
            left_s = (time.monotonic() - began) * (total - done) / max(done, 1)
            end = "\r\033[K" if done == total else ""
            print(
                f"\rencoding {done:,} of {total:,} {what}, {left_s:.0f} s left   {end}",
                end="",
                file=sys.stderr,
                flush=True,
            )


def route_all(
    snapshot: Snapshot, memory: Memory, rows: Sequence[Row], rates: Rates | None = None, what: str = "rows"
) -> list[Routed]:
    """The router's decision about every row. Principals were not recorded: by default no rate limits them."""
    router = Router(snapshot, memory, rates)
    model = routable_model(snapshot.policy.retarget)

    async def run() -> list[Routed]:
        routed: list[Routed] = []
        began = time.monotonic()
        for start in range(0, len(rows), _CONCURRENT_ROWS):
            memory.show_progress(start, len(rows), began, what)
            requests = [row.request(model) for row in rows[start : start + _CONCURRENT_ROWS]]
            routed += await asyncio.gather(*(router.route(body, headers) for body, headers in requests))
        memory.show_progress(len(rows), len(rows), began, what)
        return routed

    return asyncio.run(run())


def trusted_cohort(routed: Routed) -> str | None:
    """The cohort whose floors the match exceeds, or None."""
    decision = routed.decision
    trusted = trust(routed.snapshot.policy, decision.match) is Reason.MATCHED
    return decision.cohort.name if decision.cohort is not None and trusted else None


def scope_score(decision: Decision) -> float:
    """How surely the request belongs to an intent. Minus infinity without a match."""
    return decision.match.in_scope if decision.match is not None else -math.inf


def cheap_score(policy: Policy, decision: Decision) -> float:
    """How surely the cheapest tier is enough: the probability of it, if the match has chances.

    Otherwise it is the similarity with a cohort of that tier. Minus infinity without one.
    """
    match = decision.match
    if match is None:
        return -math.inf
    if match.chance is not None:
        return 1 - chance_above(policy, match, 0)
    return match.similarity if policy.rank(policy.cohorts[match.cohort].tier) == 0 else -math.inf


def destination(routed: Routed) -> str:
    """The cohort (or the reason that there is none) and the tier, as text. A row flips when this text changes."""
    return f"{trusted_cohort(routed) or routed.decision.reason.value}, {routed.decision.tier.name}"


def seal(snapshot: Snapshot, routed: Sequence[Routed]) -> str:
    """The hash of the files, centroids, thresholds and decisions."""
    digest = hashlib.sha256(snapshot.revision.encode())
    digest.update(snapshot.index.stacked().tobytes())
    if snapshot.index.head is not None:
        digest.update(snapshot.index.head.bias.tobytes())
    for rows in snapshot.index.centroids.values():
        digest.update(rows.tobytes())
    for mean in (snapshot.index.means or {}).values():
        digest.update(mean.tobytes())
    for cohort in snapshot.policy.cohorts.values():
        digest.update(repr((cohort.name, cohort.floor, cohort.margin)).encode())
    for decision in (row.decision for row in routed):
        cohort_name = decision.cohort.name if decision.cohort is not None else None
        digest.update(repr((cohort_name, decision.reason.value, decision.tier.name)).encode())
    return digest.hexdigest()[:12]


# --- the whole run ------------------------------------------------------------------------------------------------


class Execution(msgspec.Struct, frozen=True):
    """One configuration on one file of traffic. `rows` to `served` have one entry per row."""

    config: Config
    snapshot: Snapshot
    digest: str  # hash of the traffic
    sealed: str  # hash of everything that was decided before a label or an outcome was read
    rows: list[Row]
    routed: list[Routed]
    revealed: list[Revealed]
    answers: list[dict[str, ReplayedAnswer]]
    served: list[Served | None]
    bad: list[BadRow]
    verbatim: int  # rows left out because they repeat an utterance word for word
    token_counts: dict[str, int]  # answers by the source of their token counts
    groups: GroupIds  # rows with the same number are one piece of evidence (data/groups.py)

    def weights(self) -> Floats:
        """float64[rows]: how many rows of the traffic each row stands for."""
        return np.array([row.weight for row in self.rows], dtype=np.float64)


def execute(
    folder: Path, memory: Memory, traffic: Traffic, tokens: Tokens, copy_of: Path | None = None
) -> Execution:
    """Decide about every row, seal the decisions, and only then read labels and outcomes. Raises ConfigError."""
    config = load_config(folder, copy_of)
    memory.encode_utterances(texts_of(config))
    snapshot = compile_snapshot(config, memory)
    if snapshot.centroids == utterances_digest(config):  # a stale file of centroids is ignored
        config = msgspec.structs.replace(config, fitted=None)
    utterances = {_normalised(text) for intent in config.intents for text in intent.utterances}
    decided = zip(traffic.rows, route_all(snapshot, memory, traffic.rows), strict=True)
    kept = [(row, routed) for row, routed in decided if _normalised(ask_of(row, routed)) not in utterances]
    sealed = seal(snapshot, [routed for _, routed in kept])
    all_revealed, bad = reveal_all([row for row, _ in kept])
    usable = [(*pair, revealed) for pair, revealed in zip(kept, all_revealed, strict=True) if revealed is not None]
    rows, routed, revealed = [row for row, _, _ in usable], [r for _, r, _ in usable], [k for _, _, k in usable]
    prices, upstreams = Prices(tokens), Upstreams(memory.sentences)
    answers = [prices.recorded_answers(snapshot.policy.tiers, r, k.outcomes) for _, r, k in usable]
    return Execution(
        config,
        snapshot,
        traffic.digest,
        sealed,
        rows,
        routed,
        revealed,
        answers,
        served=[upstreams.serve(r, by_setting) for r, by_setting in zip(routed, answers, strict=True)],
        bad=[*traffic.bad, *bad],
        verbatim=len(traffic.rows) - len(kept),
        token_counts={
            "recorded": prices.recorded,
            "estimated": prices.estimated,
            "input only": prices.input_only,
        },
        groups=group_rows(list(map(ask_of, rows, routed)), [row.user or row.session for row in rows]),
    )


def ask_of(row: Row, routed: Routed) -> str:
    """A person's text: the row's text, or the ask that the router read from a request."""
    return row.text if row.text is not None else routed.signals.ask.text if routed.signals is not None else ""


def _normalised(text: str) -> str:
    return " ".join(text.lower().split())
