"""Recorded conversations, replayed with the switch budget of the policy, without it, and without any switch.

`choose` and `advance` decide and count, as they do when the router serves. Only the prices of prompts depend on the
prompt cache. A tool loop stays at its tier in every replay.
"""

from collections.abc import Callable, Sequence
from datetime import datetime

import msgspec

from extproc.evidence.data.decided import Decided
from extproc.evidence.data.setting import setting_name
from extproc.evidence.execution import Execution
from extproc.routing.ask import is_in_tool_loop
from extproc.routing.sticky import History, advance, choose

# Time between two rows without times: less than providers keep a prompt cache.
_STEP_S = 60.0


class SwitchLine(msgspec.Struct, frozen=True):
    """One way to treat the conversations."""

    name: str
    rows: int  # of conversations with more than one row
    switches: int  # between tiers, from one row to the next of a conversation
    prompts: float  # US dollars for all prompts, with the prompt cache
    outputs: float  # US dollars for the recorded output tokens
    quality: float | None  # mean of the rows whose quality is recorded in every way


class _Replay(msgspec.Struct):
    """The sums of one way so far."""

    name: str
    pick: "_Pick"
    switches: int = 0
    prompts: float = 0.0
    outputs: float = 0.0
    quality: list[float | None] = []


# The rank of a row's tier: (history, proposed rank, row, time) -> rank.
_Pick = Callable[[History, int, Decided, float], int]


def switching(run: Execution) -> list[SwitchLine]:
    """Replay the conversations. Empty if the policy has no budget, or if no conversation has two rows."""
    policy, budget = run.snapshot.policy, run.snapshot.policy.sticky.switch_budget
    if budget is None:
        return []

    def sticky(history: History, proposed: int, routed: Decided, now_s: float) -> int:
        tokens, needs = _tokens(routed), routed.signals.needs if routed.signals is not None else frozenset()
        able = [i for i, tier in enumerate(policy.tiers) if not tier.lacks(needs) and tokens <= tier.context]
        return choose(history, policy.tiers, proposed, able, tokens, now_s, budget)

    ways: tuple[tuple[str, _Pick], ...] = (
        ("never switching down", lambda history, proposed, _, __: max(proposed, policy.rank(history.anchor))),
        ("switching freely", lambda _, proposed, __, ___: proposed),
        (f"switch_budget {budget:g}", sticky),
    )
    replays = [_Replay(name, pick) for name, pick in ways]
    conversations = _conversations(run)
    for rows in conversations:
        for replay in replays:
            _replay(run, rows, replay)
    return _lines(replays, sum(map(len, conversations))) if conversations else []


def _conversations(run: Execution) -> list[list[int]]:
    """The rows of each conversation that has several, in their order in time."""
    groups: dict[str, list[int]] = {}
    for i, row in enumerate(run.rows):
        if row.session is not None:
            groups.setdefault(row.session, []).append(i)
    return [sorted(rows, key=lambda i: (_seconds(run, i) or 0.0, i)) for rows in groups.values() if len(rows) > 1]


def _replay(run: Execution, rows: Sequence[int], replay: _Replay) -> None:
    policy, history = run.snapshot.policy, None
    for step, i in enumerate(rows):
        routed, now_s = run.routed[i], _seconds(run, i) or step * _STEP_S
        rank = policy.rank(routed.decision.tier.name)
        if history is not None:
            last = policy.rank(history.tier)
            in_loop = routed.request is not None and is_in_tool_loop(routed.request.turns)
            rank = last if in_loop else replay.pick(history, rank, routed, now_s)
            replay.switches += rank != last
        history = advance(history, policy.tiers, rank, _tokens(routed), now_s)
        tier = policy.tiers[rank]
        answer = run.answers[i].get(
            setting_name(tier.name, routed.decision.reasoning), run.answers[i].get(tier.name)
        )
        replay.quality.append(answer.quality if answer is not None else None)
        replay.outputs += (answer.tokens_out or 0) * tier.price.output / 1e6 if answer is not None else 0.0
    replay.prompts += history.spent if history is not None else 0.0


def _lines(replays: Sequence[_Replay], rows: int) -> list[SwitchLine]:
    known = [i for i in range(rows) if all(replay.quality[i] is not None for replay in replays)]
    return [
        SwitchLine(
            replay.name,
            rows,
            replay.switches,
            replay.prompts,
            replay.outputs,
            sum(replay.quality[i] or 0.0 for i in known) / len(known) if known else None,
        )
        for replay in replays
    ]


def _tokens(routed: Decided) -> int:
    return routed.signals.tokens if routed.signals is not None else 0


def _seconds(run: Execution, row: int) -> float | None:
    time = run.rows[row].time
    return time.timestamp() if isinstance(time, datetime) else time
