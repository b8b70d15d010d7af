"""Decisions about recorded traffic, and the outcome that the recorded answers give them.

`Router.route` makes every decision, as it does when it serves. The encoder has no deadline. The decisions are
sealed before any label or outcome is read.
"""

import hashlib
import math
import time
from array import array
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import msgspec
import numpy as np

from extproc.config.compile import compile_snapshot, texts_of, utterances_digest
from extproc.config.load import Config, load_config
from extproc.contract.words import Reason
from extproc.evidence.data.answers import Prices, Upstreams
from extproc.evidence.data.decided import Decided, DecidedRows
from extproc.evidence.data.groups import AskGroups
from extproc.evidence.data.replayed import AnsweredRows, RevealedRows, ServedRows
from extproc.evidence.data.row_file import RowFile, joined
from extproc.evidence.data.tokens import Tokens
from extproc.evidence.data.traffic import BadRow, Revealed, Row, Traffic, reveal_or_report
from extproc.evidence.measure.metrics import Bools, Floats, GroupIds
from extproc.evidence.routed_rows import Memory as Memory
from extproc.evidence.routed_rows import route_all as route_all
from extproc.evidence.routed_rows import route_each
from extproc.routing.decision import Decision
from extproc.routing.limits import Rates
from extproc.routing.policy import Policy
from extproc.routing.routed import Routed
from extproc.routing.snapshot import Snapshot
from extproc.routing.trust import chance_above, trust

# Progress is shown each time after this number of rows.
_PROGRESS_ROWS = 1024


def trusted_cohort(routed: Decided) -> str | None:
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


def destination(routed: Decided) -> str:
    """The cohort (or the reason that there is none) and the tier, as text. A row flips when this text changes."""
    return f"{trusted_cohort(routed) or routed.decision.reason.value}, {routed.decision.tier.name}"


def seal(snapshot: Snapshot, routed: Sequence[Decided]) -> str:
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


class Arm(msgspec.Struct, frozen=True, eq=False, dict=True):
    """The part of a configuration that decides about some rows: that of the policy, or of an app."""

    config: Config
    snapshot: Snapshot
    rows: RowFile[Row]
    app: str = ""  # empty: the rows belong to no app

    @cached_property
    def named(self) -> Snapshot:
        """The snapshot with the name of the app in front of its cohorts. Rows that were decided have it."""
        if not self.app:
            return self.snapshot
        policy = self.snapshot.policy
        cohorts = {
            name: msgspec.structs.replace(cohort, name=name)
            for name, cohort in ((self._name(name), cohort) for name, cohort in policy.cohorts.items())
        }
        return msgspec.structs.replace(self.snapshot, policy=msgspec.structs.replace(policy, cohorts=cohorts))

    def route(
        self, memory: Memory, rows: Sequence[Row], rates: Rates | None = None, what: str = "rows routed"
    ) -> Iterator[tuple[Row, Routed]]:
        """Yield every row with the router's decision about it, by the names of `named`."""
        for row, routed in route_each(self.snapshot, memory, rows, rates, what):
            yield row, self._renamed(routed) if self.app else routed

    def _renamed(self, routed: Routed) -> Routed:
        decision = routed.decision
        cohort, match = decision.cohort, decision.match
        if cohort is not None:
            cohort = self.named.policy.cohorts[self._name(cohort.name)]
        if match is not None:
            runner_up = None if match.runner_up is None else self._name(match.runner_up)
            match = msgspec.structs.replace(match, cohort=self._name(match.cohort), runner_up=runner_up)
        decision = msgspec.structs.replace(decision, cohort=cohort, match=match)
        return msgspec.structs.replace(routed, decision=decision, snapshot=self.named)

    def _name(self, cohort: str) -> str:
        return f"{self.app}/{cohort}" if self.app else cohort


class Execution(msgspec.Struct, frozen=True):
    """One configuration on one file of traffic. `rows` to `served` have one entry per row."""

    config: Config
    snapshot: Snapshot
    digest: str  # hash of the traffic
    sealed: str  # hash of everything that was decided before a label or an outcome was read
    rows: RowFile[Row]
    routed: DecidedRows
    revealed: RevealedRows
    answers: AnsweredRows
    served: ServedRows
    bad: list[BadRow]
    verbatim: int  # rows left out because they repeat an utterance word for word
    token_counts: dict[str, int]  # answers by the source of their token counts
    groups: GroupIds  # rows with the same number are one piece of evidence (data/groups.py)
    row_weights: Floats  # see `weights`
    arms: tuple[Arm, ...] = ()  # that decided, if the policy has apps

    def weights(self) -> Floats:
        """float64[rows]: how many rows of the traffic each row stands for."""
        return self.row_weights


def execute(
    folder: Path, memory: Memory, traffic: Traffic, tokens: Tokens, copy_of: Path | None = None
) -> Execution:
    """Decide about every row, seal the decisions, and only then read labels and outcomes. Raises ConfigError."""
    config = load_config(folder, copy_of)
    memory.encode_utterances(texts_of(config))
    return execute_compiled(config, compile_snapshot(config, memory), memory, traffic, tokens)


def execute_compiled(
    config: Config, snapshot: Snapshot, memory: Memory, traffic: Traffic, tokens: Tokens
) -> Execution:
    """The same, with a configuration that is compiled already, such as that of an app."""
    return execute_arms(config, snapshot, [Arm(config, snapshot, traffic.rows)], memory, traffic, tokens)


def execute_arms(
    config: Config, snapshot: Snapshot, arms: Sequence[Arm], memory: Memory, traffic: Traffic, tokens: Tokens
) -> Execution:
    """The same, with a part of the configuration for some of the rows. `snapshot` has the cohorts of all parts."""
    if snapshot.centroids == utterances_digest(config):  # a stale file of centroids is ignored
        config = msgspec.structs.replace(config, fitted=None)
    everything = joined([arm.rows for arm in arms])
    rows, routed, asks, sealed = _decided(snapshot, arms, memory, everything)
    outcomes = _Outcomes(snapshot, tokens, memory, any(arm.app for arm in arms))
    usable = outcomes.read(rows, routed)
    kept = np.flatnonzero(usable)
    rows = rows.at(kept)
    routed = routed.of(rows, kept)
    outcomes.revealed.end(rows)
    outcomes.answers.end(routed, outcomes.revealed)
    return Execution(
        config,
        snapshot,
        traffic.digest,
        sealed,
        rows,
        routed,
        outcomes.revealed,
        outcomes.answers,
        outcomes.served,
        bad=[*traffic.bad, *outcomes.bad],
        verbatim=len(everything) - len(usable),
        token_counts=outcomes.token_counts,
        groups=asks.groups(usable),
        row_weights=np.array(outcomes.weights, dtype=np.float64),
        arms=tuple(arm for arm in arms if len(arms) > 1 or arm.app),
    )


def _decided(
    snapshot: Snapshot, arms: Sequence[Arm], memory: Memory, rows: RowFile[Row]
) -> tuple[RowFile[Row], DecidedRows, AskGroups, str]:
    """The rows that repeat no utterance, the decisions about them, their groups, and the seal of the decisions."""
    routed, asks, kept = DecidedRows(snapshot, rows), AskGroups(), array("q")
    places, at = [0], -1
    for arm in arms:
        utterances = {_normalised(text) for intent in arm.config.intents for text in intent.utterances}
        for row, each in arm.route(memory, arm.rows):
            at += 1
            ask = ask_of(row, each)
            if _normalised(ask) not in utterances:
                kept.append(at)
                routed.add(each.decision, each.snapshot)
                asks.add(ask, row.user or row.session)
        places.append(len(kept))
    rows = rows.at(np.array(kept, dtype=np.int64))
    routed = routed.of(rows, np.arange(len(rows)))
    seals = [
        seal(arm.snapshot, routed if len(arms) == 1 else routed[start:end])
        for arm, start, end in zip(arms, places[:-1], places[1:], strict=True)
    ]
    sealed = seals[0] if len(seals) == 1 else hashlib.sha256("".join(seals).encode()).hexdigest()[:12]
    return rows, routed, asks, sealed


class _Outcomes:
    """Reads the labels and the outcomes of rows, in their order. Rows that cannot be read are left out."""

    def __init__(self, snapshot: Snapshot, tokens: Tokens, memory: Memory, named: bool) -> None:
        """`named`: cohorts have the name of their app in front."""
        self._tiers, self._memory, self._named = snapshot.policy.tiers, memory, named
        self._prices, self._upstreams = Prices(tokens), Upstreams(memory.sentences)
        self.revealed, self.answers, self.served = RevealedRows(), AnsweredRows(self._tiers), ServedRows()
        self.bad: list[BadRow] = []
        self.weights = array("d")

    def read(self, rows: RowFile[Row], routed: DecidedRows) -> Bools:
        """Return bool[rows]: which rows could be read."""
        usable, began = np.zeros(len(rows), dtype=np.bool_), time.monotonic()
        for i, (row, each) in enumerate(zip(rows, routed, strict=True)):
            if i % _PROGRESS_ROWS == 0:
                self._memory.show_progress(i, len(rows), began, "rows with their outcomes")
            revealed = reveal_or_report(row)
            if isinstance(revealed, BadRow):
                self.bad.append(revealed)
                continue
            usable[i] = True
            answers = self._prices.recorded_answers(self._tiers, each, revealed.outcomes)
            self.revealed.add(_of_app(revealed, each.snapshot) if self._named else revealed)
            self.answers.add(answers)
            self.served.add(self._upstreams.serve(each, answers))
            self.weights.append(row.weight)
        self._memory.show_progress(len(rows), len(rows), began, "rows with their outcomes")
        return usable

    @property
    def token_counts(self) -> dict[str, int]:
        """Answers by the source of their token counts."""
        prices = self._prices
        return {"recorded": prices.recorded, "estimated": prices.estimated, "input only": prices.input_only}


def _of_app(revealed: Revealed, snapshot: Snapshot) -> Revealed:
    """The label with the name of the app in front, as the cohorts of the app have it."""
    if snapshot.app is None or not isinstance(revealed.intent, str) or revealed.intent in snapshot.policy.cohorts:
        return revealed
    return msgspec.structs.replace(revealed, intent=f"{snapshot.app}/{revealed.intent}")


def ask_of(row: Row, routed: Decided) -> str:
    """A person's text: the row's text, or the ask that the router read from a request."""
    return row.text if row.text is not None else routed.signals.ask.text if routed.signals is not None else ""


def _normalised(text: str) -> str:
    return " ".join(text.lower().split())
