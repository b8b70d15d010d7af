"""`extproc explain`: one decision in full, made by the functions that serve."""

import asyncio
import copy
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from extproc.api.request import path_of
from extproc.cli.explain_changes import change_lines, written_members
from extproc.cli.explain_ladder import ladder_lines
from extproc.cli.explain_match import BACKGROUND, cohort_table, match_lines, prompt_lines
from extproc.config.apps import compile_app, with_apps
from extproc.config.candidate import compile_candidate
from extproc.config.compile import compile_snapshot
from extproc.config.load import Config, candidate_folder, load_config
from extproc.config.signature import signature
from extproc.encoder.backends import load_encoder
from extproc.encoder.batcher import Batcher, RememberingEncoder
from extproc.encoder.language import is_english
from extproc.mismatch import suggestion
from extproc.routing.answer_cache import KEY_PARTS, AnswerCache
from extproc.routing.budget import NANO
from extproc.routing.cache_store import AnswerStore
from extproc.routing.conversations import Conversations
from extproc.routing.decision import Decision
from extproc.routing.index import chances, similarities
from extproc.routing.policy import routable_model
from extproc.routing.routed import Routed
from extproc.routing.router import Router
from extproc.routing.snapshot import AUTHORITY
from extproc.routing.store import MemoryStore
from extproc.routing.wording import wording_of
from extproc.settings import Chosen

# Here a person waits for the encoder, not a request, so the deadline is generous.
_DEADLINE_S = 60.0
# The meaning of the words that stand for no setting of the router.
_NOT_WRITTEN = {
    "model": " (nothing is written, so the model decides)",
    "client": " (the client's own choice stays)",
    "none": " (nothing is written, because the tier names no dialect)",
}


class _PatientBatcher:
    """The batcher of the router without its deadline."""

    def __init__(self, batcher: Batcher) -> None:
        self._batcher = batcher

    async def embed(self, text: str, deadline_s: float, principal: str = "") -> Any:
        del deadline_s
        return await self._batcher.embed(text, _DEADLINE_S)


class Explained(msgspec.Struct, frozen=True):
    """A decision with all similarities and chances of its ask."""

    routed: Routed
    path: str
    by_cohort: dict[str, float]
    by_chance: dict[str | None, float]  # None: the background

    @property
    def text(self) -> str:
        """The decision in full, as lines."""
        return _as_text(self.routed, self.by_cohort, self.by_chance, self.path)

    @property
    def json(self) -> str:
        """The record of the decision as JSON, with what no record holds."""
        return _as_json(self.routed, self.by_cohort, self.by_chance)


class Explainer:
    """Explains decisions with the files of a folder as they were when it was made. For one thread at a time."""

    def __init__(self, folder: Path, app: str | None = None) -> None:
        """Load the files and the encoder. Raises ConfigError, EncoderError, and ValueError for an unknown app.

        `app` is the app whose requests they are. Without it, their headers say that.
        """
        config = load_config(folder)
        if app is not None and app not in config.policy.apps:
            raise ValueError(
                f"--app {app}: no app of policy.yaml has this name: {suggestion(app, [*config.policy.apps])}"
            )
        self._config, self._folder = config, folder
        self._candidate: Explainer | None = None
        # The stored vectors of utterances are used. Asks are remembered for one explanation, and never stored.
        encoder = self._utterances = load_encoder(config.policy.encoder.model)
        self._encoder = RememberingEncoder(encoder)
        snapshot = compile_snapshot(config, encoder)
        if app is not None:
            compile_app(app, snapshot, config, folder, encoder)  # raises ConfigError for mistakes in its files
        self.snapshot = with_apps(snapshot, config, folder, encoder)
        self._app = next((route for route in self.snapshot.apps if route.name == app), None)
        self._candidate_files = _candidate_files(config, folder)

    def is_stale(self) -> bool:
        """Whether the files on disk have changed. Raises ConfigError for mistakes in them."""
        config = load_config(self._folder)
        return (config.revision, _candidate_files(config, self._folder)) != (
            self._config.revision,
            self._candidate_files,
        )

    def candidate(self) -> "Explainer | None":
        """Return what explains the decisions of the policy's candidate, or None. Raises ConfigError."""
        if self._config.policy.candidate is None:
            return None
        if self._candidate is None:
            self._candidate = copy.copy(self)
            self._candidate.snapshot = compile_candidate(self._config, self._folder, self._utterances)[1]
        return self._candidate

    def of_prompt(self, prompt: str, path: str | None = None, headers: Sequence[str] = ()) -> Explained:
        """Explain the decision for a request whose only message is `prompt`."""
        message = {"role": "user", "content": prompt}
        model = routable_model(self.snapshot.policy.retarget)
        return self.of_body(msgspec.json.encode({"model": model, "messages": [message]}), path, headers)

    def of_body(self, body: bytes, path: str | None = None, headers: Sequence[str] = ()) -> Explained:
        """Explain the decision for a request. Without a path, its members tell the API."""
        path = path or path_of(body)
        batcher = _PatientBatcher(Batcher(self._encoder))
        cache = AnswerCache(AnswerStore(MemoryStore()))
        snapshot = self._app.of_path(path) if self._app is not None else self.snapshot
        router = Router(snapshot, batcher, conversations=Conversations(MemoryStore()), cache=cache)
        routed = asyncio.run(router.route(body, {":path": path, **_by_name(headers)}))
        if routed.signals is None or not routed.signals.ask.text:
            return Explained(routed, path, {}, {})
        vector = self._encoder.encode([routed.signals.ask.text])[0]
        index = routed.snapshot.index
        return Explained(routed, path, similarities(index, vector), chances(index, vector))


def _candidate_files(config: Config, folder: Path) -> tuple[tuple[str, int, int, int], ...]:
    """The signature of the candidate's files. Empty: there is none."""
    return signature(candidate_folder(config, folder)) if config.policy.candidate is not None else ()


def explain(
    folder: Path,
    prompt: str | None,
    body: bytes | None,
    path: str | None,
    headers: Sequence[str],
    as_json: bool,
    app: str | None = None,
) -> str:
    """Explain the decision for a prompt or for a request body, as text or as JSON.

    `app` is the app whose request it is. Without it, the headers say that.
    """
    explainer = Explainer(folder, app)
    explained = (
        explainer.of_prompt(prompt or "", path, headers) if body is None else explainer.of_body(body, path, headers)
    )
    return explained.json if as_json else explained.text


def _by_name(headers: Sequence[str]) -> dict[str, str]:
    """Headers given as "NAME: VALUE", by their names in lower case. HTTP/2 has another name for the host."""
    pairs = (header.partition(":") for header in headers)
    by_name = {name.strip().lower(): value.strip() for name, _, value in pairs}
    return by_name | ({AUTHORITY: by_name["host"]} if "host" in by_name else {})


def _as_json(routed: Routed, by_cohort: Mapping[str, float], by_chance: Mapping[str | None, float]) -> str:
    record = routed.record.to_metadata() | {
        "similarities": {name: round(similarity, 4) for name, similarity in by_cohort.items()},
        "chances": {name or BACKGROUND: round(chance, 4) for name, chance in by_chance.items()},
        "ask_text": routed.signals.ask.text if routed.signals is not None else "",
        "written": written_members(routed),
    }
    return msgspec.json.format(msgspec.json.encode(record), indent=2).decode()


def _as_text(
    routed: Routed, by_cohort: Mapping[str, float], by_chance: Mapping[str | None, float], path: str
) -> str:
    policy = routed.snapshot.policy
    lines = (
        *_request_lines(routed, path),
        *_app_lines(routed),
        *cohort_table(policy, by_cohort, by_chance),
        *match_lines(policy, routed.decision),
        *prompt_lines(routed.decision),
        *_evidence_lines(routed.decision),
        *_decision_lines(routed),
        *_cache_lines(routed),
        *ladder_lines(routed),
        *change_lines(routed),
    )
    return "\n".join(lines)


def _request_lines(routed: Routed, path: str) -> Iterator[str]:
    """The request, and the ask that was read from it."""
    if routed.signals is None:
        return
    signals, ask = routed.signals, routed.signals.ask
    needs = f", needs {', '.join(sorted(signals.needs))}" if signals.needs else ""
    cut = ", cut to head and tail" if ask.cut else ""
    yield f"request   {path}, about {signals.tokens} tokens, user turns: {signals.turns}{needs}"
    yield f"ask       {ask.text!r} ({ask.source}{cut})"
    if signals.no_task:
        yield "task      none: the ask only greets, thanks or agrees, so it is out of scope"
    elif routed.snapshot.english_only and not is_english(ask.text):
        yield "language  not English, and the encoder reads nothing else: it is out of scope"


def _app_lines(routed: Routed) -> Iterator[str]:
    """The app of the request, and the budgets that hold for it."""
    snapshot = routed.snapshot
    if snapshot.app is not None:
        yield f"app       {snapshot.app}" + (f", team {snapshot.team}" if snapshot.team is not None else "")
    for spec in snapshot.budgets:
        over = f"then tier {spec.over} at most, and 429 at twice that" if spec.over is not None else "then 429"
        yield f"budget    {spec.name}: ${spec.limit / NANO:,.2f} a month, {over}"


def _evidence_lines(decision: Decision) -> Iterator[str]:
    """The evidence for the match and for the choice of tier."""
    cohort, match = decision.cohort, decision.match
    if cohort is None:
        return
    probability = cohort.probability(match) if match is not None else None
    if probability is not None and cohort.evidence is not None:
        evidence = cohort.evidence
        source = f"{evidence.rows} rows of {evidence.data}, {evidence.date}"
        yield f"right     with probability {100 * probability:.1f} %, fitted on {source}"
    if cohort.chosen is not None:
        yield f"chosen    {_choice(cohort.chosen)}"


def _decision_lines(routed: Routed) -> Iterator[str]:
    decision = routed.decision
    rule = f", rule `{decision.rule}`" if decision.rule is not None else ""
    yield f"decision  tier {decision.tier.name}, because {decision.reason.value}{rule}"
    if routed.refusal is not None:
        yield f"answer    {routed.refusal.status}: {routed.refusal.message}"
    if decision.course is not None:
        yield f"conversation {decision.course.value}"
    if decision.proposed_tier is not None:
        yield f"shadow    `mode: enforce` would choose tier {decision.proposed_tier}"
    yield f"cluster   {routed.mutation.cluster}"
    word = routed.mutation.reasoning
    yield f"reasoning {word}{_NOT_WRITTEN.get(word, '')}"


def _cache_lines(routed: Routed) -> Iterator[str]:
    """Whether an earlier answer could be served again, and to which wording of the ask."""
    cohort, look = routed.decision.cohort, routed.cached
    if cohort is None or cohort.cache is None:
        return
    if look is None:
        yield f"cache     not asked: {cohort.name} has one, but the match or the answer does not count for it"
        return
    if look.record is None:
        yield f"cache     not asked ({look.word}): see docs/guides/cache.md"
        return
    scope = "to every client" if cohort.cache.scope == "shared" else "to the same principal"
    yield f"cache     an accepted answer is served again {scope} for {cohort.cache.ttl}"
    wording = wording_of(routed.signals.ask.text) if routed.signals is not None else None
    if look.record.vector is None or not cohort.has_floor or wording is None:
        yield "          only for the same words"
    else:
        yield f"          also for other words with the same wording: {wording!r}"
    yield f"          key {look.record.key[:12]}... of {KEY_PARTS}"


def _choice(chosen: Chosen) -> str:
    low, high = (100 * end for end in chosen.quality)
    rows = f"{chosen.rows} rows of {chosen.data}, {chosen.date}"
    return f"for the target {chosen.target}, on {rows}: quality {low:.1f} to {high:.1f} %"
