"""One revision of the configuration, compiled for serving."""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Literal

import msgspec

from extproc.api.paths import APIS, SIDE_PATHS, Api, canonical
from extproc.routing.budget import BudgetSpec
from extproc.routing.index import Index
from extproc.routing.policy import Policy
from extproc.routing.prompt_gain import PromptGains
from extproc.settings import Candidate, EncoderConfig, Escalations, Human, Judge, Timeouts

AUTHORITY = ":authority"


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


class AppRoute(msgspec.Struct, frozen=True, eq=False):
    """One application: the requests that belong to it, and the snapshot that decides about them."""

    name: str
    snapshot: "Snapshot"
    hosts: tuple[str, ...] = ()
    headers: Mapping[str, str] = {}
    labels: Mapping[str, str] = {}
    of_apis: Mapping[Api, "Snapshot"] = {}  # where the default tier of an API differs
    folder: str = ""  # of the intents that it has itself
    signature: tuple[tuple[str, int, int, int], ...] = ()  # of these files, when they were read
    problems: tuple[str, ...] = ()  # the mistakes in these files

    def takes(self, host: str, headers: Mapping[str, str]) -> bool:
        """Return whether a request belongs to this app."""
        if self.hosts and not any(fnmatchcase(host, pattern) for pattern in self.hosts):
            return False
        return all(fnmatchcase(headers.get(name, ""), pattern) for name, pattern in self.headers.items())

    def of_path(self, path: str) -> "Snapshot":
        """Return the snapshot that decides about a request on this path."""
        path = canonical(path)
        api = APIS.get(SIDE_PATHS.get(path, path))
        return self.of_apis.get(api, self.snapshot) if api is not None else self.snapshot


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
    budgets: tuple[BudgetSpec, ...] = ()  # that hold for every request
    apps: tuple[AppRoute, ...] = ()  # the first one that takes a request decides about it
    app: str | None = None  # the one that this snapshot is for
    team: str | None = None
    # The app's files have mistakes. "open": its default tier serves. "closed": its requests are refused.
    off: Literal["open", "closed"] | None = None
    gains: PromptGains | None = None  # None: no prompt chooses a tier

    def arm(self, revision: str) -> "Snapshot":
        """Return the candidate if it has this revision. Otherwise return this snapshot."""
        candidate = self.rollout.snapshot if self.rollout is not None else None
        return candidate if candidate is not None and candidate.revision == revision else self

    @property
    def all_budgets(self) -> tuple[BudgetSpec, ...]:
        """Every budget of the policy and of its apps, once."""
        specs = [*self.budgets, *(spec for app in self.apps for spec in app.snapshot.budgets)]
        return tuple({spec.name: spec for spec in specs}.values())

    @property
    def refused_apps(self) -> tuple[str, ...]:
        """The apps whose own files have mistakes."""
        return tuple(app.name for app in self.apps if app.problems)

    @property
    def app_labels(self) -> dict[str, Mapping[str, str]]:
        """The labels of each app, by its name."""
        return {app.name: app.labels for app in self.apps}

    def name_of(self, cohort: str) -> str:
        """Return the name under which a cohort is counted. Two apps may have a cohort of the same name."""
        return cohort if self.app is None else f"{self.app}/{cohort}"

    def of_request(self, headers: Mapping[str, str]) -> "Snapshot":
        """Return the snapshot that decides about a request: this one, or that of its app."""
        if not self.apps:
            return self
        host = host_of(headers.get(AUTHORITY, ""))
        app = next((app for app in self.apps if app.takes(host, headers)), None)
        return app.of_path(headers.get(":path", "")) if app is not None else self

    def of_app(self, name: str | None) -> "Snapshot":
        """Return the snapshot of this app. An app that a reload has removed leaves none, so it is this one."""
        return next((app.snapshot for app in self.apps if app.name == name), self)


def host_of(authority: str) -> str:
    """The host of a request in lower case, without its port and the dot of a whole name."""
    host = authority.lower()
    name, colon, port = host.rpartition(":")
    return (name if colon and port.isdigit() else host).removesuffix(".")
