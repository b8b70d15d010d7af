"""`extproc explain`: one decision laid open, by the very functions that serve."""

import asyncio
from pathlib import Path
from typing import Any

import msgspec

from extproc.acceptance.rules import AcceptRule, Score, rule_name
from extproc.acceptance.verdict import needs_whole_answer
from extproc.api.request import path_of
from extproc.config.compile import compile_snapshot
from extproc.config.load import load_config
from extproc.encoder.backends import load_encoder
from extproc.encoder.batcher import Batcher
from extproc.routing.index import Match, similarities
from extproc.routing.policy import Cohort, routable_model
from extproc.routing.router import Routed, Router
from extproc.settings import Chosen

# A person is waiting, not a request.
_DEADLINE_S = 60.0


class _Patient:
    """The batcher without the request's deadline."""

    def __init__(self, batcher: Batcher) -> None:
        self._batcher = batcher

    async def embed(self, text: str, deadline_s: float) -> Any:
        del deadline_s
        return await self._batcher.embed(text, _DEADLINE_S)


def explain(
    folder: Path,
    prompt: str | None,
    body: bytes | None,
    path: str | None,
    headers: list[str],
    as_json: bool,
) -> str:
    """Say where a prompt or a request body would go, and why; as text or as JSON."""
    config = load_config(folder)
    encoder = load_encoder(config.policy.encoder.model)
    snapshot = compile_snapshot(config, encoder)
    if body is None:
        model = routable_model(config.policy.retarget)
        message = {"role": "user", "content": prompt}
        body = msgspec.json.encode({"model": model, "messages": [message]})
    path = path or path_of(body)
    given = {":path": path}
    for header in headers:
        name, _, value = header.partition(":")
        given[name.strip().lower()] = value.strip()
    router = Router(snapshot, _Patient(Batcher(encoder)))
    routed = asyncio.run(router.route(body, given))
    found = {}
    if routed.signals is not None and routed.signals.ask.text:
        found = similarities(snapshot.index, encoder.encode([routed.signals.ask.text])[0])
    return _as_json(routed, found) if as_json else _as_text(routed, found, path)


def _as_json(routed: Routed, found: dict[str, float]) -> str:
    record = routed.record.to_metadata() | {
        "similarities": {name: round(value, 4) for name, value in found.items()},
        "ask_text": routed.signals.ask.text if routed.signals is not None else "",
        "written": _written(routed),
    }
    return msgspec.json.format(msgspec.json.encode(record), indent=2).decode()


def _as_text(routed: Routed, found: dict[str, float], path: str) -> str:
    decision, signals = routed.decision, routed.signals
    cohorts = routed.snapshot.policy.cohorts
    lines = []
    if signals is not None:
        cut = ", cut to head and tail" if signals.ask.cut else ""
        lines += [
            f"request   {path}, about {signals.tokens} tokens, user turns: {signals.turns}"
            + (f", needs {', '.join(sorted(signals.needs))}" if signals.needs else ""),
            f"ask       {signals.ask.text!r} ({signals.ask.source}{cut})",
        ]
    if found:
        lines.append("\ncohort            similarity   floor")
        for name, value in found.items():
            mark = "" if cohorts[name].calibrated else f"  {uncalibrated(cohorts[name])}"
            lines.append(f"{name:<18}{value:>10.3f}{cohorts[name].floor:>8.3f}{mark}")
        lines.append("")
    if decision.match is not None:
        least = decision.cohort.margin if decision.cohort is not None else 0.0
        lines.append(f"margin    {decision.match.margin:.3f} (least {least:.3f})")
        lines += _likely(decision.cohort, decision.match)
    if decision.cohort is not None and decision.cohort.chosen is not None:
        lines.append(f"chosen    {_chosen(decision.cohort.chosen)}")
    rule = f", rule `{decision.rule}`" if decision.rule is not None else ""
    lines.append(f"decision  tier {decision.tier.name}, because {decision.reason.value}{rule}")
    if decision.proposed_tier is not None:
        lines.append(f"shadow    enforcing would choose tier {decision.proposed_tier}")
    lines.append(f"cluster   {routed.mutation.cluster}")
    lines.append(f"reasoning {routed.mutation.reasoning}")
    if decision.ladder:
        rungs = ", then ".join(rung.tier.name for rung in decision.ladder)
        rules = decision.cohort.accept if decision.judged and decision.cohort is not None else ()
        judged = f", or its answer is rejected by {', '.join(map(_rule, rules))}" if rules else ""
        up = decision.cohort.escalate if rules and decision.cohort is not None else None
        jumps = f"; past a rung by {', '.join(up.skip)}" if up is not None and up.skip else ""
        lines.append(f"ladder    {rungs}, if {decision.tier.name} fails{judged}{jumps}")
        if routed.request is not None and routed.request.stream and decision.cohort is not None:
            late = needs_whole_answer(rules) if decision.cohort.stream == "early" else []
            lines += [f"stream    only its first tokens are held: {name} needs the whole answer" for name in late]
    lines += [f"writes    {name} = {value}" for name, value in _written(routed).items()]
    if routed.mutation.body is None:
        lines.append("writes    nothing: the body goes on as it is")
    return "\n".join(lines)


def _rule(rule: AcceptRule) -> str:
    if not isinstance(rule, Score) or rule.scorer is None:
        return rule_name(rule)
    return f"score (below {rule.min:g}; fitted on {rule.scorer.rows} rows of {rule.scorer.stamp})"


def _chosen(chosen: Chosen) -> str:
    low, high = (100 * end for end in chosen.quality)
    rows = f"{chosen.rows} rows of {chosen.data}, {chosen.date}"
    return f"for {chosen.target}, by {rows}: quality {low:.1f} to {high:.1f} %"


def uncalibrated(cohort: Cohort) -> str:
    """The word for a floor without evidence, or with evidence about other centroids."""
    stale = "stale: utterances or centroids changed since it was calibrated"
    return "uncalibrated" if cohort.evidence is None else stale


def _likely(cohort: Cohort | None, match: Match) -> list[str]:
    """The chance that the match is right and what says so, if anything does."""
    probability = cohort.probability(match) if cohort is not None else None
    if cohort is None or cohort.evidence is None or probability is None:
        return []
    evidence = cohort.evidence
    return [
        f"right     {100 * probability:.1f} % likely, by {evidence.rows} rows of {evidence.data}, {evidence.date}"
    ]


def _written(routed: Routed) -> dict[str, str]:
    """The members of the body that the mutation changed or added, as JSON."""
    if routed.request is None or routed.mutation.body is None:
        return {}
    members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
    before, after = members(routed.request.body), members(routed.mutation.body)
    return {
        name: bytes(raw).decode()
        for name, raw in after.items()
        if name not in before or bytes(before[name]) != bytes(raw)
    }
