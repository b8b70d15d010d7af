"""The vector of a request's ask, if the request is matched at all."""

from extproc.contract.words import Reason
from extproc.encoder.language import is_english
from extproc.encoder.protocols import DeadlineError, Embedder, EncoderError, Vectors
from extproc.routing.ask import Ask
from extproc.routing.decision import untouched
from extproc.routing.guard import needs_match
from extproc.routing.policy import is_named
from extproc.routing.routed import Stopwatch
from extproc.routing.signals import Signals
from extproc.routing.snapshot import Snapshot


async def vector_of(
    embedder: Embedder, snapshot: Snapshot, signals: Signals, principal: str, clock: Stopwatch
) -> tuple[Vectors | None, Reason]:
    """Return the vector of the ask, or None and the reason why it is not matched."""
    policy = snapshot.policy
    if is_named(policy, signals.model):
        if not needs_match(policy, policy.rank(untouched(policy, Reason.PASSTHROUGH, signals.model).tier.name)):
            return None, Reason.NO_TEXT
    elif signals.background is not None:
        return None, Reason.BACKGROUND
    if snapshot.off is not None:
        return None, Reason.APP_OFF
    if signals.no_task:
        return None, Reason.OUT_OF_SCOPE
    return await _embed(embedder, snapshot, signals.ask, principal, clock)


async def _embed(
    embedder: Embedder, snapshot: Snapshot, ask: Ask, principal: str, clock: Stopwatch
) -> tuple[Vectors | None, Reason]:
    """The vector of the ask, or None and the reason why there is none."""
    if not ask.text:
        return None, Reason.NO_TEXT
    if snapshot.english_only and not is_english(ask.text):
        return None, Reason.OUT_OF_SCOPE
    try:
        return await embedder.embed(ask.text, snapshot.encoder.deadline_ms / 1000, principal), Reason.MATCHED
    except DeadlineError:
        return None, Reason.DEADLINE
    except EncoderError:
        return None, Reason.ENCODER
    finally:
        clock.lap("embed")
