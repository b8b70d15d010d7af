"""One revision of the configuration, compiled for serving."""

from collections.abc import Mapping

import msgspec

from extproc.routing.index import Index
from extproc.routing.policy import Policy
from extproc.routing.prompt_gain import PromptGains
from extproc.settings import Candidate, EncoderConfig, Escalations, Human, Judge, Timeouts


class Rollout(msgspec.Struct, frozen=True, eq=False):
    """A candidate that is compared with the policy that serves."""

    spec: Candidate
    folder: str  # of its files
    signature: tuple[tuple[str, int, int, int], ...] = ()  # of these files, when they were read
    snapshot: "Snapshot | None" = None  # None: its files have mistakes, so it is off
    alike: tuple[str, ...] = ()  # cohorts to which both arms assign the same requests

    @property
    def revision(self) -> str | None:
        """The revision of the candidate, or None if it is off."""
        return self.snapshot.revision if self.snapshot is not None else None


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
    rollout: Rollout | None = None  # None: there is no candidate
    gains: PromptGains | None = None  # None: no prompt chooses a tier

    def arm(self, revision: str) -> "Snapshot":
        """Return the candidate if it has this revision. Otherwise return this snapshot."""
        candidate = self.rollout.snapshot if self.rollout is not None else None
        return candidate if candidate is not None and candidate.revision == revision else self
