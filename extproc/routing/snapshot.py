"""One revision of the configuration, compiled for serving."""

from collections.abc import Mapping

import msgspec

from extproc.routing.index import Index
from extproc.routing.policy import Policy
from extproc.settings import EncoderConfig, Escalations, Human, Judge, Timeouts


class Snapshot(msgspec.Struct, frozen=True):
    """Everything from the configuration that a request needs. A reload replaces it and never changes it."""

    revision: str
    policy: Policy
    index: Index
    encoder: EncoderConfig = EncoderConfig()
    escalations: Escalations = Escalations()
    judges: Mapping[str, Judge] = {}
    human: Human | None = None
    centroids: str = ""  # hash of everything that the index was made from
    timeouts: Timeouts = Timeouts()
    english_only: bool = False  # the encoder reads no other language
    key_headers: tuple[str, ...] = ()  # that may hold a key of a client or of a tier
