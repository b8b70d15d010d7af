"""`extproc eval --perturb`: how many decisions change when the same request is written differently."""

import random
from collections.abc import Iterator, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from extproc.evidence.data.decided import Decided
from extproc.evidence.data.traffic import Row
from extproc.evidence.execution import Execution, Memory, ask_of, destination, route_all, trusted_cohort
from extproc.evidence.measure.metrics import NOTHING, Estimate, Floats, mean, share
from extproc.evidence.perturb.rewrites import REWRITES, rewritten
from extproc.routing.limits import Rates
from extproc.routing.routed import Routed

Ints = NDArray[np.int_]

# Each row is encoded about twenty times. From a longer file, this many rows are drawn with the seed.
_ROWS = 1000


class Effect(msgspec.Struct, frozen=True):
    """The effect of one kind of change on the rows that it was tried on."""

    kind: str
    rows: int
    flipped: Estimate  # of all rows: moved to another cohort, trusted or not, or to another tier
    upgraded: Estimate  # of rows below the most expensive tier: moved to a more expensive one
    downgraded: Estimate  # of rows above the cheapest tier: moved to a cheaper one
    above: Estimate  # of rows at or below the default tier: moved above it
    above_capped: Estimate  # the same after the principal has used its upgrades, if the policy has `upgrades`
    right: Estimate  # of labelled rows: routed right after the change
    change: Estimate  # `right` minus the share routed right before the change, on the same rows


class Robustness(msgspec.Struct, frozen=True):
    """Everything that `extproc eval --perturb` adds to a report."""

    rows: int
    left_out: int  # rows in which no text was matched
    effects: list[Effect]
    notes: list[str]


class _Spent(Rates):
    """Rates of principals that have no upgrade left."""

    async def take(self, principal: str, per_minute: float, burst: int, now_s: float) -> bool:
        return False


def perturb(run: Execution, memory: Memory, seed: int = 0) -> Robustness:
    """Rewrite the rows of `run` in every way and route them again. `seed` decides the rewrites."""
    rows, matched = drawn_rows(run, seed), len(_matched_rows(run))
    trial = RewriteTrial(run, memory, seed)
    effects = [trial.effect(kind, rows, [trial.rewritten(i, kind) for i in rows]) for kind in REWRITES]
    for name in sorted({name for i in rows for name in run.rows[i].variants}):
        subset = [i for i in rows if name in run.rows[i].variants]
        effects.append(trial.effect(f"variant: {name}", subset, [run.rows[i].variants[name] for i in subset]))
    left_out = len(run.rows) - matched
    return Robustness(len(rows), left_out, effects, list(_notes(run, len(rows), matched)))


def drawn_rows(run: Execution, seed: int) -> list[int]:
    """Indices of the rows to change: those in which a text was matched, or 1,000 of them drawn with the seed."""
    matched = _matched_rows(run)
    return sorted(random.Random(seed).sample(matched, _ROWS)) if len(matched) > _ROWS else matched


def _matched_rows(run: Execution) -> list[int]:
    return [
        i for i, routed in enumerate(run.routed) if routed.decision.match is not None and routed.signals is not None
    ]


class RewriteTrial:
    """One execution, and its rows with changed texts. Everything random is drawn from `seed`."""

    def __init__(self, run: Execution, memory: Memory, seed: int) -> None:
        self._run, self._memory, self._seed = run, memory, seed
        self._unchanged: dict[int, Routed] = {}
        policy = run.snapshot.policy
        self._top, self._default = len(policy.tiers) - 1, policy.rank(policy.default_tier)

    def ask(self, i: int) -> str:
        """The person's text in row `i`."""
        return ask_of(self._run.rows[i], self._run.routed[i])

    def rewritten(self, i: int, kind: str) -> str:
        """The person's text in row `i`, rewritten."""
        return rewritten(kind, self.ask(i), self._seed, self._run.rows[i].line)

    def movable(self, i: int, up: bool) -> bool:
        """Whether there is a more expensive (or a cheaper) tier than the one of row `i`."""
        rank = self._rank(self._run.routed[i])
        return rank < self._top if up else rank > 0

    def effect(self, kind: str, indices: Sequence[int], texts: Sequence[str]) -> Effect:
        """Route the rows at `indices` with these `texts`, and compare with the unchanged texts."""
        run, seed, memory = self._run, self._seed, self._memory.fresh()
        together, weight = run.groups[list(indices)], run.weights()[list(indices)]
        rows: list[Row] = [run.rows[i].asking(text) for i, text in zip(indices, texts, strict=True)]
        now = self._route(indices, rows, memory, what=f"rows routed, {kind}")
        was = self._route_unchanged(indices)
        before, after = self._ranks(was), self._ranks(now)
        above_capped = NOTHING
        if run.snapshot.policy.upgrades is not None:
            capped = self._ranks(self._route(indices, rows, memory, _Spent()))
            lifted = share(capped > self._default, before <= self._default, weight)
            above_capped = lifted.estimate(seed, together)
        right = [self._right(was, indices), self._right(now, indices)]
        flips = _floats([destination(a) != destination(b) for a, b in zip(was, now, strict=True)])
        return Effect(
            kind,
            len(indices),
            flipped=mean(flips, weights=weight).estimate(seed, together),
            upgraded=share(after > before, before < self._top, weight).estimate(seed, together),
            downgraded=share(after < before, before > 0, weight).estimate(seed, together),
            above=share(after > self._default, before <= self._default, weight).estimate(seed, together),
            above_capped=above_capped,
            right=mean(right[1], weights=weight).estimate(seed, together),
            change=mean(right[1] - right[0], least=-1.0, weights=weight).estimate(seed, together),
        )

    def _route_unchanged(self, indices: Sequence[int]) -> list[Routed]:
        """The decisions that changed texts are compared with. Each row is routed once.

        The unchanged text of a request is also put in its last message, without the text that an agent adds
        around it, because a changed text is.
        """
        new = [i for i in indices if i not in self._unchanged]
        plain = [self._run.rows[i].asking(self.ask(i)) for i in new]
        self._unchanged |= zip(new, self._route(new, plain, self._memory), strict=True)
        return [self._unchanged[i] for i in indices]

    def _route(
        self,
        indices: Sequence[int],
        rows: Sequence[Row],
        memory: Memory,
        rates: Rates | None = None,
        what: str = "rows routed",
    ) -> list[Routed]:
        """Route changed rows, each by the part of the configuration that decides about the row at its index."""
        if not self._run.arms:
            return route_all(self._run.snapshot, memory, rows, rates, what)
        routed: dict[int, Routed] = {}
        for arm in self._run.arms:
            own = [k for k, i in enumerate(indices) if self._run.routed[i].snapshot is arm.named]
            part = arm.route(memory, [rows[k] for k in own], rates, what)
            routed |= {k: each for k, (_, each) in zip(own, part, strict=True)}
        return [routed[k] for k in range(len(indices))]

    def _rank(self, routed: Decided) -> int:
        """The rank of the tier. In shadow mode, of the tier that an enforcing policy would have chosen."""
        decision = routed.decision
        return self._run.snapshot.policy.rank(decision.proposed_tier or decision.tier.name)

    def _ranks(self, decisions: Sequence[Routed]) -> Ints:
        return np.array([self._rank(routed) for routed in decisions], dtype=int)

    def _right(self, decisions: Sequence[Routed], indices: Sequence[int]) -> Floats:
        """1 for a row in its label's cohort, or rightly in no cohort. 0 for another row. NaN without a label."""
        cohorts = self._run.snapshot.policy.cohorts
        labels = [self._run.revealed.intents[i] for i in indices]
        return _floats(
            [
                None if label is msgspec.UNSET else trusted_cohort(routed) == (label if label in cohorts else None)
                for routed, label in zip(decisions, labels, strict=True)
            ]
        )


def _floats(values: Sequence[bool | None]) -> Floats:
    return np.array([np.nan if value is None else float(value) for value in values], dtype=np.float64)


def _notes(run: Execution, drawn: int, matched: int) -> Iterator[str]:
    """Facts that a reader needs to read the numbers correctly."""
    policy = run.snapshot.policy
    if matched > drawn:
        yield f"{drawn:,} rows were drawn from the {matched:,} in which a text was matched."
    if len(run.rows) > matched:
        yield f"{len(run.rows) - matched:,} rows were left out: no text in them was matched."
    yield (
        "Rewrites are made without a model. A sentence in another language around the request is not a "
        "translation. Rows can bring translations as `variants`."
    )
    default, limits = policy.default_tier, policy.upgrades
    if policy.rank(default) == len(policy.tiers) - 1:
        yield f"No tier is above the default tier `{default}`, so there is nothing to limit."
    elif limits is None:
        yield (
            f"The default tier is `{default}`. Nothing limits how often one principal goes above it. "
            "`upgrades` in policy.yaml sets a limit."
        )
    else:
        yield (
            f"The default tier is `{default}`. A principal can go above it {limits.per_minute:g} times a minute, "
            f"with bursts of {limits.burst}."
        )
        if not limits.lower_floors:
            yield (
                "Past that limit, requests still go above it because of a `tier_floor`, or because the default "
                "tier cannot serve them."
            )
