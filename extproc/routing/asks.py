"""Whether a request asks again what its conversation has just asked. That says something about the answer before.

Nothing here is on the path of a request. Only the last ask of each conversation is kept, for ten minutes: hashes
that are keyed by the principal's header, and a sketch of the vector. No text is kept. A first turn without an id of
its conversation is compared with the last first turns of its principal.
"""

import hashlib
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import islice

import msgspec
import numpy as np

from extproc.api.request import Turn
from extproc.contract.names import REQUEST_ID
from extproc.contract.words import Signal
from extproc.encoder.protocols import Vectors
from extproc.routing.ask import is_in_tool_loop
from extproc.routing.limits import principal_header
from extproc.routing.routed import Routed
from extproc.routing.store import MemoryStore, StateStore

# A later ask says little about the answer.
WITHIN_S = 600.0
# Least similarity of an ask that comes again in other words. Asks of one intent have 0.20 in the median, and 0.43
# at their 99th percentile (both encoders, 2,700 pairs of sample utterances).
NEAR = 0.65
# The similarity is estimated from a sketch of this many numbers, with a standard error of about 0.06.
_SKETCH = 256
_MOST_WORDS, _MOST_CHARS = 64, 4000
# A word, and what says before it that it opens a sentence.
_WORD = re.compile(r"(\A\W*|[.!?:\n]\W*)?([^\W_]+)")
_FIRST_IDEOGRAPH = "\u2e80"  # scripts from here on do not put spaces between words

_PREFIX = "asked:"
# First turns of a principal below a system prompt in an app, and how many of these are kept: 4 KB each.
_FIRST_TURNS, _PRINCIPALS = 6, 2000
# A person reads an answer before asking again. A principal with more first turns in a minute is a program, or many
# people.
_READS_S, _MINUTE_S, _MOST_A_MINUTE = 10.0, 60.0, 3
# In a first turn, shorter words count, too: "translate cat" and "translate dog" are a template.
_SHORT_WORD = 3


class LastAsk(msgspec.Struct, frozen=True, array_like=True):
    """The last ask of a conversation."""

    at_s: float  # seconds since 1970
    request: str  # its x-request-id
    cohort: str
    tier: str
    turns: int  # turns of a person so far
    before: bytes  # hash of all turns before the ask
    ask: bytes  # hash of the ask
    words: bytes  # four bytes of the hash of each word that matters
    sketch: bytes  # of the vector; empty: the ask was not encoded, or it is a follow-up


class AskedAgain(msgspec.Struct, frozen=True):
    """A signal about the answer to an earlier request."""

    kind: Signal
    request: str  # the earlier one
    cohort: str
    tier: str
    at_s: float  # of the later one, seconds since 1970


class Asks:
    """Compares each request with the last ask of its conversation."""

    def __init__(self, store: StateStore, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._clock = clock
        self._first_turns = MemoryStore(_PRINCIPALS)

    async def follow(self, routed: Routed, headers: Mapping[str, str]) -> AskedAgain | None:
        """Return the signal about the answer before, if there is one, and keep this ask in its place.

        A call that an agent makes by itself is not an ask, and neither is a turn that the model continues.
        """
        request, signals, identity = routed.request, routed.signals, routed.identity
        name = headers.get(REQUEST_ID, "")
        if request is None or signals is None or identity is None or not name or routed.refusal is not None:
            return None
        if signals.background is not None or not signals.ask.text or is_in_tool_loop(request.turns):
            return None
        key = _PREFIX + (identity.thread or identity.session)
        [value] = await self._store.get((key,))
        before = _read(value)
        # Without the header, a text cannot be tested against a hash.
        secret = (principal_header(headers, routed.snapshot.escalations.principal) or "").encode(errors="replace")
        decision = routed.decision
        tier = routed.kept.tier if routed.kept is not None else decision.tier.name
        # A joined text, like its vector, has all of the ask before it. Its last ask counts, if that names a task.
        # If one of several tasks decides, the vector is that of the task, and the whole text counts.
        joined = signals.ask.source == "joined" or signals.ask.whole is not None
        ask = signals.ask.whole or signals.ask.alone or signals.ask
        asked = last_ask(
            request.turns, ask.text, b"" if joined else routed.vector, name, decision.counted_as, tier,
            self._clock(), secret, identity.thread != "",
        )  # fmt: skip
        self._store.set({key: msgspec.msgpack.encode(asked)}, WITHIN_S)
        kind = signal_of(before, asked) if before is not None else None
        if not asked.before and secret:
            whole = msgspec.structs.replace(asked, words=_hashes(secret, words_that_matter(ask.text, _SHORT_WORD)))
            before, kind = await self._asked_first(
                routed.snapshot.app or "", secret, _opening(request.turns), whole
            )
        return AskedAgain(kind, before.request, before.cohort, before.tier, asked.at_s) if before and kind else None

    async def _asked_first(
        self, app: str, secret: bytes, opening: str, now: LastAsk
    ) -> tuple[LastAsk | None, Signal | None]:
        """Compare a first turn with those that its principal has sent to this app, and keep it with them."""
        key = _hash(hashlib.blake2b(secret).digest(), f"{app}\0{opening}", 16).hex()
        [value] = await self._first_turns.get((key,))
        earlier = _first_turns(value)
        others = [ask for ask in earlier if ask.request != now.request]
        kept = [*others, now][-_FIRST_TURNS:]
        self._first_turns.set({key: msgspec.msgpack.encode(kept)}, WITHIN_S)
        before = asked_before(others, now)
        return before, Signal.RE_ASKED if before is not None else None


def signal_of(before: LastAsk, now: LastAsk) -> Signal | None:
    """Return what `now` says about the answer to `before`. None: nothing."""
    if now.at_s - before.at_s > WITHIN_S or now.request == before.request:
        return None
    if now.before == before.before:
        if not now.before:  # the first turn, without an id: a script may send it again and again
            return None
        return Signal.REPEATED if now.ask == before.ask else Signal.EDITED
    again = now.ask == before.ask or is_near(before, now)
    return Signal.RE_ASKED if now.turns > before.turns and again else None


def asked_before(earlier: Sequence[LastAsk], now: LastAsk) -> LastAsk | None:
    """Return the earlier first turn that asks almost the same, or None if there is none, or if a program asks.

    A program sends several first turns in a minute, or the same one for the third time.
    """
    if sum(now.at_s - ask.at_s < _MINUTE_S for ask in earlier) >= _MOST_A_MINUTE:
        return None
    near = [ask for ask in earlier if ask.ask == now.ask or _is_near_first(ask, now)]
    if len(near) != 1 or not _READS_S <= now.at_s - near[0].at_s <= WITHIN_S:
        return None
    return near[0]


def _is_near_first(before: LastAsk, now: LastAsk) -> bool:
    return bool(before.words) and is_near(before, now)


def is_near(before: LastAsk, now: LastAsk) -> bool:
    """Whether both ask almost the same. An ask that drops a long word, a name or a number asks something else."""
    if not before.sketch or len(before.sketch) != len(now.sketch):
        return False
    words = [{row.words[i : i + 4] for i in range(0, len(row.words), 4)} for row in (before, now)]
    if words[0] - words[1]:
        return False
    return _cosine(before.sketch, now.sketch) >= NEAR


def last_ask(
    turns: Sequence[Turn],
    text: str,
    vector: bytes,
    request: str,
    cohort: str,
    tier: str,
    now_s: float,
    secret: bytes,
    named: bool,
) -> LastAsk:
    """Describe an ask. `secret` keys the hashes. `named`: the client gave an id of the conversation."""
    key = hashlib.blake2b(secret).digest()
    persons = [i for i, turn in enumerate(turns) if turn.role == "user" and not turn.tool_result]
    last = persons[-1] if persons else len(turns)
    earlier = "\0".join(f"{turn.role}\1" + "\1".join(turn.texts) for turn in turns[:last])
    is_first = len(persons) < 2
    return LastAsk(
        at_s=now_s,
        request=request,
        cohort=cohort,
        tier=tier,
        turns=len(persons),
        before=b"" if is_first and not named else _hash(key, earlier, 8),
        ask=_hash(key, text, 8),
        words=_hashes(secret, words_that_matter(text)),
        sketch=_sketch(np.frombuffer(vector, np.float32)) if vector else b"",
    )


def _hashes(secret: bytes, words: Iterable[str]) -> bytes:
    keyed = hashlib.blake2b(digest_size=4, key=hashlib.blake2b(secret).digest())
    hashes = []
    for word in words:
        hashed = keyed.copy()  # a new one would read the key again
        hashed.update(word.encode(errors="replace"))
        hashes.append(hashed.digest())
    return b"".join(sorted(hashes))


def _opening(turns: Sequence[Turn]) -> str:
    """All turns before the first one of a person: the system prompt."""
    first = next((i for i, turn in enumerate(turns) if turn.role == "user"), len(turns))
    return "\0".join(f"{turn.role}\1" + "\1".join(turn.texts) for turn in turns[:first])


def words_that_matter(text: str, least: int = 5) -> set[str]:
    """Return the words of `least` letters or more, those with a digit, and capitalised ones within a sentence."""
    words: set[str] = set()
    for match in islice(_WORD.finditer(text[:_MOST_CHARS]), _MOST_WORDS):
        opening, word = match.groups()
        if not word.isascii() and max(word) >= _FIRST_IDEOGRAPH:
            continue
        is_name = opening is None and word[0].isupper()
        if len(word) >= least or is_name or (not word.isalpha() and any(map(str.isdigit, word))):
            words.add(word.lower())
    return words


@lru_cache(maxsize=2)
def _flips(dimensions: int) -> Vectors:
    """Random signs, the same in every process."""
    return np.random.default_rng(_SKETCH).choice(np.array([-1, 1], np.float32), dimensions)


def _sketch(vector: Vectors) -> bytes:
    """A count sketch of the vector (Charikar, Chen and Farach-Colton 2002), as int8[_SKETCH]."""
    padded = np.zeros(-(-len(vector) // _SKETCH) * _SKETCH, np.float32)
    padded[: len(vector)] = vector * _flips(len(vector))
    sums = padded.reshape(-1, _SKETCH).sum(axis=0)
    raw: bytes = (sums * (127 / max(float(np.abs(sums).max()), 1e-9))).astype(np.int8).tobytes()
    return raw


def _cosine(one: bytes, other: bytes) -> float:
    first, second = (np.frombuffer(sketch, np.int8).astype(np.float32) for sketch in (one, other))
    return float(first @ second / max(float(np.linalg.norm(first) * np.linalg.norm(second)), 1e-9))


def _hash(key: bytes, text: str, size: int) -> bytes:
    return hashlib.blake2b(text.encode(errors="replace"), digest_size=size, key=key).digest()


def _read(value: bytes | None) -> LastAsk | None:
    """An entry of another release, or a damaged one, counts as absent."""
    try:
        return msgspec.msgpack.decode(value, type=LastAsk) if value is not None else None
    except msgspec.DecodeError:
        return None


def _first_turns(value: bytes | None) -> list[LastAsk]:
    return msgspec.msgpack.decode(value, type=list[LastAsk]) if value is not None else []
