"""Rows -> decisions, and, once those are sealed, what the recorded answers make of them.

Every decision is `Router.route`'s, with an encoder that is patient.
"""

import asyncio
import hashlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from extproc.acceptance.grounding import Embed
from extproc.config.compile import compile_snapshot, utterances_digest
from extproc.config.load import Config, load_config
from extproc.contract.words import Reason
from extproc.encoder.protocols import Encoder, Vectors
from extproc.evidence.data.answers import Prices, ReplayedAnswer, Served, Upstreams
from extproc.evidence.data.tokens import Tokens
from extproc.evidence.data.traffic import BadRow, Revealed, Row, Traffic, reveal_all
from extproc.evidence.measure.metrics import Places
from extproc.routing.decision import trust
from extproc.routing.limits import Rates
from extproc.routing.policy import routable_model
from extproc.routing.router import Routed, Router
from extproc.routing.snapshot import Snapshot

# Rows in flight at once: their texts are encoded together.
_AT_ONCE = 512


class Memory:
    """Encodes each text once a run, in batches, whichever configuration asks; tells how far it is."""

    def __init__(self, encoder: Encoder, sentences: Embed | None = None, progress: bool = False) -> None:
        """`sentences`: what the rule `grounded` embeds with; without it, it cannot run."""
        self._encoder = encoder
        self.sentences = sentences
        self._known: dict[str, Vectors] = {}
        self._progress = progress
        self._waiting: list[tuple[str, asyncio.Future[Vectors]]] = []

    async def embed(self, text: str, deadline_s: float) -> Vectors:
        """Return float32[d]; the deadline is for requests, and nobody waits for these."""
        del deadline_s
        if text in self._known:
            return self._known[text]
        loop = asyncio.get_running_loop()
        if not self._waiting:  # what starts in this turn of the loop is encoded together
            loop.call_soon(self._encode)
        self._waiting.append((text, loop.create_future()))
        return await self._waiting[-1][1]

    def _encode(self) -> None:
        waiting, self._waiting = self._waiting, []
        for (_, vector), found in zip(waiting, self.encode([text for text, _ in waiting]), strict=True):
            if not vector.done():  # Ctrl-C cancels who waits, in the middle of this
                vector.set_result(found)

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Return float32[len(texts), d], each row of unit length."""
        fresh = [text for text in dict.fromkeys(texts) if text not in self._known]
        if fresh:
            self._known |= dict(zip(fresh, self._encoder.encode(fresh), strict=True))
        return np.stack([self._known[text] for text in texts])

    def fresh(self) -> "Memory":
        """The same encoder with nothing remembered: for texts that nobody asks for again."""
        return Memory(self._encoder, self.sentences, self._progress)

    def told(self, done: int, of: int, began: float, what: str = "rows") -> None:
        """Draw the progress line, if somebody watches."""
        if self._progress:
            left = (time.monotonic() - began) * (of - done) / max(done, 1)
            end = "\r\033[K" if done == of else ""
            print(
                f"\rencoding {done:,} of {of:,} {what}, {left:.0f} s left   {end}",
                end="",
                file=sys.stderr,
                flush=True,
            )


def route_all(
    snapshot: Snapshot, memory: Memory, rows: Sequence[Row], rates: Rates | None = None, what: str = "rows"
) -> list[Routed]:
    """What the router decides about every row; nobody recorded the principals, so `rates` bound nobody."""
    router = Router(snapshot, memory, rates)
    model = routable_model(snapshot.policy.retarget)

    async def run() -> list[Routed]:
        routed: list[Routed] = []
        began = time.monotonic()
        for at in range(0, len(rows), _AT_ONCE):
            memory.told(at, len(rows), began, what)
            some = [row.request(model) for row in rows[at : at + _AT_ONCE]]
            routed += await asyncio.gather(*(router.route(body, headers) for body, headers in some))
        memory.told(len(rows), len(rows), began, what)
        return routed

    return asyncio.run(run())


def landed(routed: Routed) -> str | None:
    """The cohort that a row is trusted to be in, or None."""
    decision = routed.decision
    trusted = trust(decision.cohort, decision.match) is Reason.MATCHED
    return decision.cohort.name if decision.cohort is not None and trusted else None


def landing(routed: Routed) -> str:
    """Where a row landed, in words: rows of which this differs are decided otherwise."""
    return f"{landed(routed) or routed.decision.reason.value}, {routed.decision.tier.name}"


def seal(snapshot: Snapshot, routed: Sequence[Routed]) -> str:
    """The hash of everything that decides (files, centroids, thresholds) and of every decision."""
    digest = hashlib.sha256(snapshot.revision.encode())
    faiss = snapshot.index.faiss
    digest.update(faiss.reconstruct_n(0, faiss.ntotal).tobytes())
    for row in (snapshot.index.means or {}).values():
        digest.update(row.tobytes())
    for cohort in snapshot.policy.cohorts.values():
        digest.update(repr((cohort.name, cohort.floor, cohort.margin)).encode())
    for one in routed:
        cohort_name = one.decision.cohort.name if one.decision.cohort is not None else None
        digest.update(repr((cohort_name, one.decision.reason.value, one.decision.tier.name)).encode())
    return digest.hexdigest()[:12]


# --- the whole run ------------------------------------------------------------------------------------------------


class Execution(msgspec.Struct, frozen=True):
    """One configuration on one file of traffic; the lists have an entry a row."""

    config: Config
    snapshot: Snapshot
    digest: str  # of the traffic
    sealed: str  # the hash of everything decided before a label or an outcome was read
    rows: list[Row]
    routed: list[Routed]
    known: list[Revealed]
    answers: list[dict[str, ReplayedAnswer]]
    served: list[Served | None]
    bad: list[BadRow]
    verbatim: int  # rows left out because they are an utterance, word by word
    token_counts: dict[str, int]  # answers by where their token counts come from

    def conversations(self) -> Places:
        """int64[rows]: a number for each `session`, whose rows are no evidence apart; a row of none has its own."""
        names: dict[str | int, int] = {}
        return np.array([names.setdefault(row.session or i, len(names)) for i, row in enumerate(self.rows)], int)


def execute(
    folder: Path, memory: Memory, traffic: Traffic, tokens: Tokens, copy_of: Path | None = None
) -> Execution:
    """Decide about every row, seal that, and only then read what is known. Raises ConfigError."""
    config = load_config(folder, copy_of)
    snapshot = compile_snapshot(config, memory)
    if snapshot.centroids == utterances_digest(config):  # a file of centroids that is stale is as good as none
        config = msgspec.structs.replace(config, fitted=None)
    spoken = {_plain(text) for intent in config.intents for text in intent.utterances}
    every = zip(traffic.rows, route_all(snapshot, memory, traffic.rows), strict=True)
    kept = [(row, one) for row, one in every if _plain(asked(row, one)) not in spoken]
    rows, routed = [row for row, _ in kept], [one for _, one in kept]
    sealed = seal(snapshot, routed)
    revealed, bad = reveal_all(rows)
    both = [(row, one, known) for row, one, known in zip(rows, routed, revealed, strict=True) if known is not None]
    prices = Prices(tokens)
    answers: list[dict[str, ReplayedAnswer]] = []
    for _, one, known in both:
        answers.append(prices.recorded_answers(snapshot.policy.tiers, one, known.outcomes))
    upstreams = Upstreams(memory.sentences)
    return Execution(
        config,
        snapshot,
        traffic.digest,
        sealed,
        rows=[row for row, _, _ in both],
        routed=[one for _, one, _ in both],
        known=[known for _, _, known in both],
        answers=answers,
        served=[upstreams.serve(one, found) for (_, one, _), found in zip(both, answers, strict=True)],
        bad=[*traffic.bad, *bad],
        verbatim=len(traffic.rows) - len(rows),
        token_counts={
            "recorded": prices.recorded,
            "estimated": prices.estimated,
            "input only": prices.input_only,
        },
    )


def asked(row: Row, routed: Routed) -> str:
    """A person's words: those of the row, or what the router read as the ask of a request."""
    return row.text if row.text is not None else routed.signals.ask.text if routed.signals is not None else ""


def _plain(text: str) -> str:
    return " ".join(text.lower().split())
