"""The conversation that a request belongs to, and what earlier requests of it left behind.

A conversation is known by the client's id for it, in a header or in the body, and by its opening. The opening
counts too, because agents send side requests under the same id. Without an id, the opening alone is the identity.

Every key is a hash that is keyed by the principal's header. So no client reaches a conversation of another
principal, and texts cannot be tested against a key without that header.
"""

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence

import msgspec

from extproc.api.request import Request
from extproc.routing.ask import find_opening, is_in_tool_loop
from extproc.routing.limits import principal_of
from extproc.routing.sticky import History, advance, seal_of
from extproc.routing.store import StateStore
from extproc.settings import Tier

# Request headers in which clients send the id of the conversation. The first one that a request has counts.
SESSION_HEADERS = (
    "x-claude-code-session-id", "session-id", "session_id", "thread-id", "thread_id", "conversation-id",
    "conversation_id", "x-session-id", "x-conversation-id", "x-session-affinity", "x-opencode-session",
    "x-task-id", "x-litellm-session-id",
)  # fmt: skip
# How long a conversation is remembered after its last request.
_KEPT_S = 7 * 86_400.0
# Newest sealed items whose makers are looked up: those of the last answer, and some before them.
_LOOKED_UP = 8

_encode, _decode = msgspec.msgpack.Encoder().encode, msgspec.msgpack.Decoder(History).decode


class Identity(msgspec.Struct, frozen=True):
    """The keys of one request: hashes without any text."""

    session: str  # of the conversation, by the client's id and the opening
    key: str  # the same, and apart from other conversations that open alike, as soon as there is an answer
    others: tuple[str, ...] = ()  # where the conversation may also be found
    ids: tuple[str, ...] = ()  # of responses, conversations and items at an upstream, the newest first
    sealed: tuple[str, ...] = ()  # of the newest sealed items, the newest first
    compacted: str = ""  # where the conversation may be found after it was compacted; empty: the client gave no id
    thread: str = ""  # of the conversation, by the client's id alone; empty: the client gave no id
    kept: str = ""  # of the conversation that an upstream keeps; one of `ids`. Empty: there is none

    @property
    def lookups(self) -> tuple[str, ...]:
        """The keys in the order in which they are believed.

        The maker of the newest item answered last. If it is new to us, the last answer of the conversation made it.
        """
        return (*self.ids, *self.sealed[:1], self.key, *self.others, *self.sealed[1:_LOOKED_UP])


class Continuation(msgspec.Struct, frozen=True):
    """How a request continues a conversation."""

    history: History | None = None  # None: no earlier request is known
    bound: bool = False  # the request has state that only the upstream which made it can read
    fixed: bool = False  # that state cannot be removed
    in_loop: bool = False  # the model continues its own turn after a tool result, or sums its conversation up
    background: bool = False  # the answer is a job: it must not be asked for twice
    requested: str | None = None  # the model that the client named
    foreign: int = 0  # how many of the sealed items the tier that answered last cannot read
    now_s: float = 0.0

    def tier_of(self, tiers: Sequence[Tier], allows: Callable[[str], bool] = lambda _: True) -> int | None:
        """The rank of the tier that answered last, or of one that can read its state. None: not known, or out.

        Only tiers whose names `allows` accepts count.
        """
        history = self.history
        if history is None:
            return None
        taking = [rank for rank, tier in enumerate(tiers) if tier.takes_any and allows(tier.name)]
        ranks = [rank for rank in taking if hashed_seal(tiers[rank]) == history.seal]
        return next((rank for rank in ranks if tiers[rank].name == history.tier), ranks[0] if ranks else None)


NEW = Continuation()


class Answered(msgspec.Struct, frozen=True):
    """Envoy's report of an answer: the keys of principal and conversation, the tier, and the id of the response."""

    principal: str
    conversation: str
    tier: str
    id: str = ""

    @classmethod
    def read(cls, message: bytes) -> "Answered | None":
        """Read four lines of text. None: the message is damaged."""
        lines = message.decode(errors="replace").split("\n")
        return cls(*lines) if len(lines) == len(cls.__struct_fields__) else None


class Conversations:
    """Looks conversations up in the store, and notes every decision there."""

    def __init__(self, store: StateStore, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._clock = clock

    async def recall(self, request: Request, identity: Identity) -> Continuation:
        """Return how the request continues its conversation."""
        state = request.state
        continues = state.bound or any(turn.role == "assistant" or turn.tool_result for turn in request.turns)
        history = await self._history(identity) if continues else None
        return Continuation(
            history=history,
            bound=state.bound,
            fixed=state.fixed,
            in_loop=continues and (state.compacts or is_in_tool_loop(request.turns)),
            background=state.background,
            requested=request.model,
            foreign=_foreign(history, identity, len(state.sealed)),
            now_s=self._clock(),
        )

    async def _history(self, identity: Identity) -> History | None:
        keys = identity.lookups
        read = zip(keys, await self._store.get(keys), strict=True)
        known = {key: history for key, value in read if (history := _read(value)) is not None}
        first = next(iter(known.values()), None)
        whole = next((known[key] for key in (identity.key, *identity.others) if key in known), None)
        if first is None or whole is None or whole.foreign:
            return whole or first
        return whole if whole.seal == first.seal else first

    def note(self, identity: Identity, continuation: Continuation, tiers: Sequence[Tier], rank: int,
             tokens: int, stripped: bool = False) -> None:  # fmt: skip
        """Note that the tier of this rank answers the request."""
        history = continuation.history
        after = advance(history, tiers, rank, tokens, self._clock())
        newest = next(iter(identity.sealed), "")
        foreign = newest if stripped else after.foreign
        seal = hashed_seal(tiers[rank])
        after = msgspec.structs.replace(after, seal=seal, foreign=foreign, newest=newest)
        values = {identity.key: _encode(after)}
        if history is not None and not after.foreign:
            maker = _encode(History(history.tier, history.seal))
            values |= dict.fromkeys((*identity.ids, *identity.sealed[:1]), maker)
        elif history is None and identity.kept:  # the tier that gets its first request has it from now on
            values[identity.kept] = _encode(History(after.tier, seal))
        self._store.set(values, _KEPT_S)

    def compact(self, identity: Identity, tier: Tier) -> None:
        """Note that this tier compacts the conversation. Its sealed item then takes the place of earlier turns."""
        keys = {identity.key, *identity.others, identity.compacted} - {""}
        self._store.set(dict.fromkeys(keys, _encode(History(tier.name, hashed_seal(tier)))), _KEPT_S)

    async def maker_of(self, key: str, tiers: Sequence[Tier]) -> int | None:
        """Return the rank of the tier that made the response with this key. None: not known."""
        [value] = await self._store.get((key,))
        return Continuation(history=_read(value)).tier_of(tiers)

    async def answered(self, answer: Answered, tiers: Sequence[Tier]) -> None:
        """Note the tier that answered, if it is not the one of the decision, and the response that it made."""
        rank = next((rank for rank, tier in enumerate(tiers) if tier.name == answer.tier), None)
        if rank is None:
            return
        tier, seal = tiers[rank].name, hashed_seal(tiers[rank])
        values = {id_key(answer.principal, answer.id): History(tier, seal)} if answer.id else {}
        [value] = await self._store.get((answer.conversation,))
        history = _read(value)
        if history is not None and history.tier != tier:
            # The tier that answered could not read the items that the client sent, so they were removed.
            foreign = history.newest if seal != history.seal else history.foreign
            values[answer.conversation] = msgspec.structs.replace(history, tier=tier, seal=seal, foreign=foreign)
        self._store.set({key: _encode(history) for key, history in values.items()}, _KEPT_S)


def identify(
    request: Request, headers: Mapping[str, str], principal: str | None, every_item: bool = False
) -> Identity:
    """Return the keys of a request. `principal` is the value of the header that identifies its sender.

    `every_item` asks for the keys of all sealed items. Otherwise only the newest ones have keys.
    """
    state = request.state
    name = next((headers[header] for header in SESSION_HEADERS if headers.get(header)), None)
    name = name or state.session or state.conversation or None
    opening, tools = find_opening(request.turns), "tools" in request.needs
    if name is None and not opening:
        name = "\n".join((*state.ids, *state.sealed[:1])) or None
    compacted = _hash(principal, "compacted", name) if name is not None else ""
    start = ("conversation", name or "", opening)
    # Agents ask another model for a title, with the same words and id but without tools.
    first, side = (_hash(principal, *start, str(flag)) for flag in (tools, not tools))
    answered = _hash(principal, *start, state.first_answer, "answered") if state.first_answer else None
    others = (first, side) if answered else (side,)
    newest = reversed(state.sealed if every_item else state.sealed[-_LOOKED_UP:])
    return Identity(
        session=_hash(principal, *start),
        key=answered or first,
        others=(compacted, *others) if compacted and state.compacted else others,
        ids=tuple(id_key(principal_of(principal), kept) for kept in reversed(state.ids)),
        sealed=tuple(_hash(principal, "sealed", seal) for seal in newest),
        compacted=compacted,
        thread=_hash(principal, "thread", name, str(tools)) if name is not None else "",
        kept=id_key(principal_of(principal), state.conversation) if state.conversation else "",
    )


def id_key(principal: str, kept: str) -> str:
    """Return the key of a response, conversation or item with the id `kept`. `principal` is a hash."""
    return _hash(principal, "id", kept)


def hashed_seal(tier: Tier) -> str:
    """Return the hash of a tier's seal. Tiers with the same one read each other's state."""
    return hashlib.blake2b(seal_of(tier).encode(), digest_size=8).hexdigest()


def _hash(principal: str | None, *parts: str) -> str:
    key = hashlib.blake2b((principal or "").encode(errors="replace")).digest()
    text = "\0".join(parts).encode(errors="replace")
    return hashlib.blake2b(text, digest_size=8, key=key).hexdigest()


def _read(value: bytes | None) -> History | None:
    """An entry of another release, or a damaged one, counts as absent."""
    try:
        return _decode(value) if value is not None else None
    except msgspec.DecodeError:
        return None


def _foreign(history: History | None, identity: Identity, count: int) -> int:
    """How many sealed items, from the first on, the tier that answered last cannot read."""
    if history is None or not history.foreign or history.foreign not in identity.sealed:
        return 0
    return count - identity.sealed.index(history.foreign)
