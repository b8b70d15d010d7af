"""`extproc eval --perturb`: how many decisions flip when the same ask is put otherwise, or worded to flip them."""

import random
from collections.abc import Iterator, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from extproc.evidence.data.traffic import Row
from extproc.evidence.execution import Execution, Memory, asked, landed, landing, route_all
from extproc.evidence.measure.metrics import NOTHING, Estimate, Floats, mean, share
from extproc.evidence.perturb.attack import Search
from extproc.evidence.perturb.rewrites import REWRITES, rewritten
from extproc.routing.limits import Rates
from extproc.routing.router import Routed

Ints = NDArray[np.int_]

# Each row is encoded some twenty times: more rows than these are drawn from, with the seed.
_ROWS = 1000
# Prompts that a gadget is fitted on; it is tried on all others.
_FITTED_ON = 12


class Effect(msgspec.Struct, frozen=True):
    """What one kind of change does to the rows it was tried on."""

    kind: str
    rows: int
    flipped: Estimate  # another cohort, trusted or not, or another tier
    upgraded: Estimate  # of rows below the dearest tier: to a dearer one
    downgraded: Estimate  # of rows above the cheapest tier: to a cheaper one
    above: Estimate  # of rows up to the default tier: above it
    held: Estimate  # likewise, once the principal has had its upgrades; nothing where no policy bounds them
    right: Estimate  # of labelled rows: routed right, as changed
    change: Estimate  # that, less as it was written; paired
    gadget: str = ""


class Robustness(msgspec.Struct, frozen=True):
    """Everything that `extproc eval --perturb` adds to a report."""

    rows: int
    left_out: int  # without words that were matched
    effects: list[Effect]
    notes: list[str]


class _Spent(Rates):
    """Nobody has an upgrade left."""

    def take(self, principal: str, per_minute: float, burst: int, now_s: float) -> bool:
        return False


def perturb(run: Execution, memory: Memory, words: Sequence[str], seed: int = 0) -> Robustness:
    """Rewrite the rows of `run` in every way and route them again; `words`: a vocabulary for gadgets.

    Deterministic: the same seed, the same changes.
    """
    usable = [i for i, one in enumerate(run.routed) if one.decision.match is not None and one.signals is not None]
    left_out = len(run.rows) - len(usable)
    if len(usable) > _ROWS:
        usable = sorted(random.Random(seed).sample(usable, _ROWS))
    trial = _Trial(run, memory, seed)
    effects = [trial.effect(kind, usable, [trial.words(i, kind) for i in usable]) for kind in REWRITES]
    for name in sorted({name for i in usable for name in run.rows[i].variants}):
        some = [i for i in usable if name in run.rows[i].variants]
        effects.append(trial.effect(f"variant: {name}", some, [run.rows[i].variants[name] for i in some]))
    utterances = {intent.intent: intent.utterances for intent in run.config.intents}
    search = Search(run.snapshot, memory, utterances, words, seed)
    if search.possible:
        effects += _attacks(trial, search, usable)
    return Robustness(len(usable), left_out, effects, list(_notes(run, len(usable), left_out, search.possible)))


def _attacks(trial: "_Trial", search: Search, usable: Sequence[int]) -> Iterator[Effect]:
    for before in (False, True):
        place = "before" if before else "after"
        control = search.random(before)
        changed = [control.around(trial.ask(i)) for i in usable]
        yield trial.effect(f"random words {place} (control)", usable, changed, control.words)
        for up in (True, False):
            movable = [i for i in usable if trial.movable(i, up)]
            fitted = set(random.Random(f"{trial.seed} {up}").sample(movable, min(_FITTED_ON, len(movable) // 2)))
            others = [i for i in movable if i not in fitted]
            if not fitted or not others:
                continue
            gadget = search.best([trial.ask(i) for i in sorted(fitted)], before, up)
            changed = [gadget.around(trial.ask(i)) for i in others]
            yield trial.effect(
                f"{'upgrading' if up else 'downgrading'} gadget {place}", others, changed, gadget.words
            )


class _Trial:
    """One execution, and its rows with other words."""

    def __init__(self, run: Execution, memory: Memory, seed: int) -> None:
        self._run, self._memory, self.seed = run, memory, seed
        self._written: dict[int, Routed] = {}
        policy = run.snapshot.policy
        self._top, self._default = len(policy.tiers) - 1, policy.rank(policy.default_tier)

    def ask(self, i: int) -> str:
        """The person's words."""
        return asked(self._run.rows[i], self._run.routed[i])

    def words(self, i: int, kind: str) -> str:
        """The words rewritten."""
        return rewritten(kind, self.ask(i), self.seed, self._run.rows[i].line)

    def movable(self, i: int, up: bool) -> bool:
        """Whether there is a dearer (or a cheaper) tier than the row's."""
        rank = self._rank(self._run.routed[i])
        return rank < self._top if up else rank > 0

    def effect(self, kind: str, some: Sequence[int], changed: Sequence[str], gadget: str = "") -> Effect:
        """Route the rows `some` with `changed` words, and compare."""
        run, seed, memory = self._run, self.seed, self._memory.fresh()
        together = run.conversations()[list(some)]
        rows: list[Row] = [run.rows[i].asking(text) for i, text in zip(some, changed, strict=True)]
        now = route_all(run.snapshot, memory, rows, what=f"rows, {kind}")
        was = self._as_written(some)
        before, after = self._ranks(was), self._ranks(now)
        held = NOTHING
        if run.snapshot.policy.upgrades is not None:
            spent = self._ranks(route_all(run.snapshot, memory, rows, _Spent()))
            held = share(spent > self._default, before <= self._default).estimate(seed, together)
        right = [self._right(was, some), self._right(now, some)]
        flips = _floats([landing(a) != landing(b) for a, b in zip(was, now, strict=True)])
        return Effect(
            kind,
            len(some),
            flipped=mean(flips).estimate(seed, together),
            upgraded=share(after > before, before < self._top).estimate(seed, together),
            downgraded=share(after < before, before > 0).estimate(seed, together),
            above=share(after > self._default, before <= self._default).estimate(seed, together),
            held=held,
            right=mean(right[1]).estimate(seed, together),
            change=mean(right[1] - right[0], least=-1.0).estimate(seed, together),
            gadget=gadget,
        )

    def _as_written(self, some: Sequence[int]) -> list[Routed]:
        """The decisions that changed words are held against, made once a row.

        A request's ask is put in its last message, without what an agent wraps around it, as the changed one is.
        """
        fresh = [i for i in some if i not in self._written]
        plain = [self._run.rows[i].asking(self.ask(i)) for i in fresh]
        self._written |= zip(fresh, route_all(self._run.snapshot, self._memory, plain), strict=True)
        return [self._written[i] for i in some]

    def _rank(self, routed: Routed) -> int:
        """The tier's rung; in shadow mode, of the tier that enforcing would have chosen."""
        decision = routed.decision
        return self._run.snapshot.policy.rank(decision.proposed_tier or decision.tier.name)

    def _ranks(self, routed: Sequence[Routed]) -> Ints:
        return np.array([self._rank(one) for one in routed], dtype=int)

    def _right(self, routed: Sequence[Routed], some: Sequence[int]) -> Floats:
        """1 where a row landed in its label's cohort, or in none as it should; NaN where nobody labelled it."""
        cohorts = self._run.snapshot.policy.cohorts
        labels = [self._run.known[i].intent for i in some]
        return _floats(
            [
                None if label is msgspec.UNSET else landed(one) == (label if label in cohorts else None)
                for one, label in zip(routed, labels, strict=True)
            ]
        )


def _floats(values: Sequence[bool | None]) -> Floats:
    return np.array([np.nan if value is None else float(value) for value in values], dtype=np.float64)


def _notes(run: Execution, usable: int, left_out: int, attacked: bool) -> Iterator[str]:
    """What a reader has to know to read the numbers rightly."""
    policy = run.snapshot.policy
    if len(run.rows) - left_out > usable:
        yield f"{usable:,} rows were drawn of the {len(run.rows) - left_out:,} that were matched."
    if left_out:
        yield f"{left_out:,} rows were left out: nothing in them is matched."
    yield (
        "Rewrites are made without a model: a sentence in another language around the ask is no translation of it; "
        "rows may bring their own as `variants`."
    )
    if attacked:
        yield (
            f"Gadgets were searched greedily on {_FITTED_ON} prompts at most, with sight of the utterances and the "
            "centroids; who searches longer may find better ones. They are tried on the other rows that have "
            "somewhere to go, the random control on all."
        )
    else:
        yield "No gadget was searched: every cohort leads to the same tier."
    default, limits = policy.default_tier, policy.upgrades
    if policy.rank(default) == len(policy.tiers) - 1:
        yield f"No tier is above the default tier, `{default}`: there is nothing to bound."
    elif limits is None:
        yield (
            f"Above: above the default tier, `{default}`. Nothing bounds how often one caller goes there: "
            "`upgrades` in policy.yaml would."
        )
    else:
        yield (
            f"Above: above the default tier, `{default}`. A principal goes there {limits.per_minute:g} times a "
            f"minute, {limits.burst} at once. Held: what gets there all the same past that"
            + ("." if limits.lower_floors else ", by a tier_floor or for what the default tier cannot serve.")
        )
