"""The cache of accepted answers as the rung below the first tier: it is asked before any tier is.

A name in the store is a hash of everything that an answer depends on. So a look takes one read by name. An answer
to other words is served only if the embeddings of both asks agree, too.
"""

import base64
import hashlib
import random
from collections.abc import Callable, Mapping

import msgspec
import numpy as np

from extproc.api.request import Request
from extproc.contract.records import CacheRecord
from extproc.contract.words import CacheWord
from extproc.encoder.features import WORD_COLUMNS
from extproc.encoder.protocols import Vectors
from extproc.routing.cache_form import CacheForm, directives, header_values, read_form
from extproc.routing.cache_store import AnswerStore, Checks, KeptAnswer
from extproc.routing.decision import Decision
from extproc.routing.limits import principal_header
from extproc.routing.policy import Cohort
from extproc.routing.signals import Signals
from extproc.routing.snapshot import Snapshot
from extproc.routing.wording import wording_of

# The least similarity of two asks that have the same wording. `make bench-cache` shows why it is not higher.
LEAST_SIMILARITY = 0.8
# The parts of the name of an answer, as `extproc explain` lists them.
KEY_PARTS = "principal, revision, app, cohort, tier, model, ladder, limits, headers and all members of the body"


class CacheLook(msgspec.Struct, frozen=True):
    """The result of asking the cache about one request."""

    word: CacheWord
    record: CacheRecord | None = None  # where to keep the answer of a tier; None: nowhere
    answer: KeptAnswer | None = None  # set if it is served
    age_s: int = 0  # of the answer
    stream_usage: bool = False  # a stream is to end with its token counts
    instead: "CacheLook | None" = None  # the hit that is served if no tier may check it


class AnswerCache:
    """Looks for kept answers."""

    def __init__(self, store: AnswerStore, draw: Callable[[], float] = random.random) -> None:
        self.store = store
        self._draw = draw

    async def look(
        self,
        snapshot: Snapshot,
        decision: Decision,
        request: Request,
        signals: Signals,
        vector: Vectors | None,
        headers: Mapping[str, str],
    ) -> CacheLook | None:
        """Look for an answer. None: the request belongs to no cohort with a cache."""
        cohort = cached_cohort(decision)
        if cohort is None or cohort.cache is None:
            return None
        control = directives(headers)
        if "no-store" in control:
            return CacheLook(CacheWord.CLIENT)
        place = _place(snapshot, decision, cohort, request, signals, vector, headers)
        if isinstance(place, CacheWord):
            return CacheLook(place)
        record, usage = place.record, place.form.stream_usage
        kept, checks = await self.store.look(record.key, snapshot.revision, snapshot.name_of(cohort.name))
        if checks.off:
            return CacheLook(CacheWord.OFF)
        if "no-cache" in control:
            return CacheLook(CacheWord.CLIENT, record)
        word = _found(kept, place, cohort)
        age_s = max(0, int(self.store.clock() - kept.made)) if kept is not None else 0
        if kept is None or word is None or age_s > min(_max_age(control), cohort.cache.ttl_s):
            return CacheLook(CacheWord.MISS, record)
        hit = CacheLook(word, None, kept, age_s, usage)
        if self._draw() < cohort.cache.verify:
            checked = msgspec.structs.replace(record, checked=True)
            return CacheLook(CacheWord.CHECKED, checked, None, age_s, usage, hit)
        return hit

    def checks_of(self, snapshot: Snapshot) -> dict[str, Checks]:
        """The checks of each cohort with a cache, as last seen by this process. A candidate's names are marked.

        Apps without own intents have those of the policy. They are left out until a hit was looked for.
        """
        seen, revision = self.store.checks, snapshot.revision
        caches = {name: seen.get((revision, name), Checks()) for name in _cache_names(snapshot)}
        for app in snapshot.apps:
            for name in _cache_names(app.snapshot):
                if app.folder or (revision, name) in seen:
                    caches[name] = seen.get((revision, name), Checks())
        candidate = snapshot.rollout.snapshot if snapshot.rollout is not None else None
        if candidate is not None:
            for name in _cache_names(candidate):
                caches[f"{name} (candidate)"] = seen.get((candidate.revision, name), Checks())
        return caches


class _Place(msgspec.Struct, frozen=True):
    record: CacheRecord
    form: CacheForm
    other_words: bool  # the name is that of a wording, so the answer may be to other words


def _cache_names(snapshot: Snapshot) -> list[str]:
    cohorts = snapshot.policy.cohorts.values()
    return [snapshot.name_of(cohort.name) for cohort in cohorts if cohort.cache is not None]


def cached_cohort(decision: Decision) -> Cohort | None:
    """The cohort whose cache holds for this decision, or None."""
    cohort = decision.cohort
    if cohort is None or cohort.cache is None or not decision.judged:
        return None
    return cohort if decision.unmatched is None and decision.rewrite and not decision.refused else None


def _place(
    snapshot: Snapshot,
    decision: Decision,
    cohort: Cohort,
    request: Request,
    signals: Signals,
    vector: Vectors | None,
    headers: Mapping[str, str],
) -> _Place | CacheWord:
    """The place of the answer to this request, or the word for why it has none."""
    assert cohort.cache is not None
    form = read_form(request)
    if isinstance(form, CacheWord):
        return form
    principal = "shared"
    if cohort.cache.scope == "principal":
        header = principal_header(headers, snapshot.escalations.principal)
        if header is None:
            return CacheWord.ANONYMOUS
        principal = f"principal {header}"
    secret = hashlib.blake2b(principal.encode(errors="replace"), digest_size=32).digest()
    scope = _scope(snapshot, decision, cohort, headers)
    written = form.ask.strip()  # spaces within it count: code and tables depend on them
    is_whole = signals.ask.text == " ".join(form.ask.split())
    wording = wording_of(form.ask) if is_whole and vector is not None else None
    name = ["exact", written] if wording is None else ["wording", wording]
    record = CacheRecord(
        key=_hash(secret, [*scope, *name], form.rest),
        exact=_hash(secret, [*scope, written], form.rest),
        vector=_small(vector) if wording is not None and vector is not None else None,
    )
    return _Place(record, form, wording is not None)


def _scope(snapshot: Snapshot, decision: Decision, cohort: Cohort, headers: Mapping[str, str]) -> list[str]:
    """Everything outside the body that an answer depends on."""
    return [
        snapshot.revision,
        snapshot.app or "",
        cohort.name,
        decision.tier.name,
        decision.tier.model,
        *(f"{rung.tier.name} {rung.reasoning}" for rung in decision.ladder),
        repr(decision.reasoning),
        repr(decision.max_output_tokens),
        *header_values(headers),
    ]


def _hash(secret: bytes, parts: list[str], rest: bytes) -> str:
    text = msgspec.json.encode([part.encode(errors="surrogatepass").hex() for part in parts])
    return hashlib.blake2b(text + b"\0" + rest, key=secret, digest_size=24).hexdigest()


def _small(vector: Vectors) -> str:
    """The embedding of the ask, without the hashed words, as base64 of int8."""
    sentence = vector[:-WORD_COLUMNS]
    length = float(np.linalg.norm(sentence)) or 1.0
    return base64.b64encode(np.rint(sentence / length * 127).astype(np.int8).tobytes()).decode()


def _found(kept: KeptAnswer | None, place: _Place, cohort: Cohort) -> CacheWord | None:
    """The word for a hit, or None. Other words count only where a floor says that the match counts."""
    if kept is None:
        return None
    if kept.exact == place.record.exact:
        return CacheWord.HIT
    if not place.other_words or not cohort.has_floor or place.record.vector is None:
        return None
    alike = _similarity(kept.vector, base64.b64decode(place.record.vector))
    return CacheWord.SEMANTIC if alike >= LEAST_SIMILARITY else None


def _similarity(one: bytes, other: bytes) -> float:
    """The similarity of two vectors of int8. 0 if they are of two encoders."""
    if not one or len(one) != len(other):
        return 0.0
    first, second = (np.frombuffer(vector, np.int8).astype(np.float32) for vector in (one, other))
    return float(first @ second / (np.linalg.norm(first) * np.linalg.norm(second) or 1.0))


def _max_age(control: frozenset[str]) -> float:
    """The largest age in seconds that the client accepts."""
    ages = (word.removeprefix("max-age=") for word in control if word.startswith("max-age="))
    return min((float(age) for age in ages if age.isdigit()), default=float("inf"))
