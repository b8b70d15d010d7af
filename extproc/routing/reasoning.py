"""Writes a choice of reasoning into a request, as the tier's model takes it. `dialects.py` has the data.

A choice that the model can read stays as the client wrote it. Any other is translated, and its members go.
"""

from collections.abc import Mapping

import msgspec

from extproc.api.paths import Api
from extproc.api.reasoning import LEVELS, ReasoningChoice, is_off
from extproc.api.request import Request
from extproc.api.splice import REMOVED
from extproc.routing.dialects import Fields, Form
from extproc.routing.tier_form import Edits, TierForm, put
from extproc.settings import Budget, Reasoning

# Each effort: the largest budget in tokens that is this effort, and the budget that it stands for. A larger budget
# is the highest effort.
_BUDGETS = {
    "low": (2_048, 2_048),
    "medium": (8_192, 4_096),
    "high": (32_768, 16_384),
    "xhigh": (65_536, 49_152),
    "max": (131_072, 98_304),
}
_LEAST_BUDGET = 1_024  # of Anthropic


class Written(msgspec.Struct, frozen=True):
    """The result of writing a choice."""

    word: str  # for the record
    reasons: bool | None  # None: as the model does without a choice


def wanted_by(policy: Reasoning | None) -> ReasoningChoice | None:
    """The choice of the policy, in the shape of a client's choice."""
    if isinstance(policy, Budget):
        return ReasoningChoice(True, budget_tokens=policy.budget_tokens)
    return None if policy is None else ReasoningChoice(policy)


def write_choice(
    edits: Edits,
    tier: TierForm,
    request: Request,
    wanted: ReasoningChoice | None,
    by_client: bool,
    room: int | None,
) -> Written:
    """Write `wanted` into `edits`. None leaves reasoning to the model. `room` is the cap on output tokens."""
    fields, client = tier.fields, request.reasoning
    if fields is None:
        return Written("model" if wanted is None else "none", None)
    if by_client and client is not None and _can_read(tier, request.api, client):
        kept = Written("client", client.on)
        return _beside_tools(edits, tier, request, wanted) or kept
    written = _beside_tools(edits, tier, request, wanted)
    if written is None:
        for name in fields.also if wanted is not None else ():
            put(edits, name, REMOVED)
        if wanted is None or wanted.on is None:
            _fit_effort(edits, tier, client)
            written = Written("model", None)
        elif wanted.on:
            written = _turn_on(edits, tier, request, wanted, room)
        else:
            written = _turn_off(edits, tier, wanted, client)
    return written


def _can_read(tier: TierForm, api: Api, client: ReasoningChoice) -> bool:
    """Whether the model reads the client's choice as the client wrote it."""
    fields = tier.fields or Fields()
    own = {name: value for name, value in client.members.items() if name in fields.own}
    # An effort of the Messages API and a bare budget turn nothing on.
    deciding = [v for name, v in own.items() if name not in _undecided(api)]
    if not deciding or any(map(is_off, deciding)) != (not client.on):
        return False
    if fields.switch and fields.switch not in own:
        return False
    if fields.kinds and own.get("thinking") not in fields.kinds:
        return False
    if own.get("thinking") == "enabled" and client.budget_tokens is not None and not fields.budget:
        return False
    if client.on is False and not fields.off and tier.words.keys().isdisjoint(("off", "minimal")):
        return False
    effort = own.get(fields.effort)
    if effort is None:
        return True
    if client.on is False and fields.switch and not _may_stay(tier, str(effort)):
        return False
    return effort in tier.words.values() or effort not in LEVELS


def _undecided(api: Api) -> tuple[str, ...]:
    return ("thinking_budget", "output_config.effort") if api == "messages" else ("thinking_budget",)


def _may_stay(tier: TierForm, effort: str) -> bool:
    """Whether an effort may stay beside a switch that is off."""
    limit = tier.form.effort_beside_off
    return bool(limit) and (effort not in LEVELS or LEVELS.index(effort) <= LEVELS.index(limit))


def _beside_tools(edits: Edits, tier: TierForm, request: Request, wanted: ReasoningChoice | None) -> Written | None:
    """The effort beside tools in Chat Completions, where the model refuses some. None: it refuses none."""
    form, fields = tier.form, tier.fields
    if form.beside_tools == "any" or request.api != "chat" or "tools" not in request.needs or fields is None:
        return None
    if form.beside_tools == "absent":
        put(edits, fields.effort, REMOVED)
        return Written("model", None)
    if wanted is None and form.default_off:
        return None
    if wanted is not None and wanted.on is False and request.reasoning is wanted:
        return None
    put(edits, fields.effort, _json(tier.words["off"]))
    return Written(tier.words["off"], False)


def _turn_off(edits: Edits, tier: TierForm, wanted: ReasoningChoice, client: ReasoningChoice | None) -> Written:
    """Off means off. A model that always reasons gets its lowest effort, and the record shows it."""
    fields, words = tier.fields or Fields(), tier.words
    if fields.off:
        put(edits, fields.switch, fields.off)
        _fit_effort(edits, tier, client, off=True)
        return Written("off", False)
    if fields.switch:
        put(edits, fields.switch, REMOVED)
    if "off" in words and not (wanted.level == "minimal" and "minimal" in words):
        put(edits, fields.effort, _json(words["off"]))
        return Written(words["off"], False)
    lowest = next((words[level] for level in LEVELS if level in words), None)
    if lowest is None:
        return Written("none", None)
    put(edits, fields.effort, _json(lowest))
    return Written(lowest, True)


def _turn_on(edits: Edits, tier: TierForm, request: Request, wanted: ReasoningChoice, room: int | None) -> Written:
    """Reasoning is on, with the effort or the budget that is wanted, in the field of the model."""
    fields, client = tier.fields or Fields(), request.reasoning
    needed = fields.budget == "needed"
    budget = _budget(wanted, room) if needed else None
    if tier.form.bars & request.thinking_bars or (needed and budget is None):
        return _turn_off(edits, tier, wanted, client)
    if needed:
        put(edits, fields.switch, {**fields.on, "budget_tokens": str(budget).encode()})  # type: ignore[dict-item]
        _fit_effort(edits, tier, client)
        return Written("on", True)
    if fields.switch:
        put(edits, fields.switch, fields.on)
    word = _effort(tier, wanted)
    if not fields.effort or word is None:
        return Written("on" if fields.switch else "none", True)
    put(edits, fields.effort, _json(word))
    return Written(word, True)


def _effort(tier: TierForm, wanted: ReasoningChoice) -> str | None:
    """The effort to write, or None if there is a switch that does without."""
    level = _level(wanted)
    if level is not None:
        return _nearest(tier.words, level)
    if "on" in tier.words:
        return tier.words["on"]
    return None if tier.fields is not None and tier.fields.switch else _nearest(tier.words, "medium")


def _level(wanted: ReasoningChoice) -> str | None:
    if wanted.level is not None and not is_off(wanted.level):
        return wanted.level
    tokens = wanted.budget_tokens
    if tokens is None:
        return None
    return next((level for level, (most, _) in _BUDGETS.items() if tokens <= most), "max")


def _nearest(words: Mapping[str, str], level: str) -> str | None:
    """The model's effort for this level, otherwise for the next level below, otherwise for the lowest."""
    known = [name for name in LEVELS if name in words]
    below = [name for name in known if LEVELS.index(name) <= LEVELS.index(level)]
    return words[below[-1]] if below else words[known[0]] if known else None


def _fit_effort(edits: Edits, tier: TierForm, client: ReasoningChoice | None, off: bool = False) -> None:
    """Keep the client's effort, which also shapes an answer without reasoning, where the model knows it."""
    name = tier.fields.effort if tier.fields is not None else ""
    effort = client.members.get(name) if client is not None and name else None
    if effort is None:
        return
    limit = tier.form.effort_beside_off
    if off and not limit:
        put(edits, name, REMOVED)
    elif off and not _may_stay(tier, str(effort)):
        put(edits, name, _json(_nearest(tier.words, limit)))
    elif effort in LEVELS and effort not in tier.words.values():
        put(edits, name, _json(_nearest(tier.words, str(effort))))


def _budget(wanted: ReasoningChoice, room: int | None) -> int | None:
    """The budget in tokens, below `room` as Anthropic requires. None: no budget fits."""
    if wanted.budget_tokens is not None:
        budget = max(wanted.budget_tokens, _LEAST_BUDGET)
    else:
        budget = _BUDGETS[_level(wanted) or "medium"][1]
    if room is not None:
        budget = min(budget, room - 1)
    return budget if budget >= _LEAST_BUDGET else None


def drops_sampling(tier: TierForm, written: Written) -> bool:
    """Whether the model refuses the members that set how tokens are sampled."""
    form = tier.form
    return form.sampling == "dropped" or (form.sampling == "off" and not _does_not_reason(form, written))


def gives_logprobs(tier: TierForm, written: Written) -> bool:
    """Whether the model may be asked for log-probabilities. Some refuse a request for them with status 400."""
    form = tier.form
    return form.logprobs == "given" or (form.logprobs == "off" and _does_not_reason(form, written))


def _does_not_reason(form: Form, written: Written) -> bool:
    return form.default_off if written.reasons is None else written.reasons is False


def _json(value: object) -> bytes:
    return msgspec.json.encode(value)
