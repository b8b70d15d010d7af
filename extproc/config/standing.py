"""The configuration that serves, against the files on disk and Envoy: the content of `extproc status`."""

import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from extproc.config.changes import Change, Rendered, changes_between
from extproc.config.load import Config
from extproc.routing.cache_store import Checks
from extproc.routing.gain_file import GAINS_FILE
from extproc.routing.snapshot import Snapshot

# What serves the requests of an app whose files have mistakes.
_SERVES = {
    None: "its earlier intents serve",
    "open": "off, its default tier serves",
    "closed": "off, its requests are refused",
}


class Refusal(msgspec.Struct, frozen=True):
    """Files that may not serve."""

    time: float  # seconds since 1970
    kind: str  # why, as in the metric of reloads
    message: str

    @staticmethod
    def now(kind: str, message: str) -> "Refusal":
        """Return a refusal at this moment."""
        return Refusal(time.time(), kind, message)


class Status(msgspec.Struct, frozen=True):
    """The answer of a router to `extproc status`."""

    folder: str
    revision: str  # that serves
    since: float  # seconds since 1970
    cohorts: int
    last_good: bool  # the files were refused at the start, and a kept copy of older ones serves
    refusal: Refusal | None  # of the files that are in the folder now
    rendered_from: str  # the revision at the start, from which Envoy should have been rendered
    lacks: list[str]  # changes since then that Envoy does not have yet
    stale: list[str]  # fitted values that do not belong to the current files
    caches: dict[str, str] = {}  # cohort -> whether its cache is on, and how many of its hits were wrong
    apps: list[str] = []  # mistakes in the files of apps, which keep their earlier files or are off


class Standing:
    """The configuration that serves. The reload and the start write it, and `extproc status` reads it."""

    def __init__(
        self, folder: Path, config: Config, refusal: Refusal | None = None, rendered: Rendered | None = None
    ) -> None:
        """`refusal` is that of the files in `folder`, if a kept copy of older ones serves instead."""
        self.folder, self._rendered = folder, rendered
        self.begin(config, refusal)

    def begin(self, config: Config, refusal: Refusal | None = None) -> None:
        """Start to serve `config`, from which Envoy was rendered as far as is known."""
        self.config, self._first, self.refusal = config, config, refusal
        self._since = time.time()
        self._last_good = refusal is not None
        self._lacks: list[Change] = []

    def changes(self, new: Config) -> list[Change]:
        """Return what `new` changes in the configuration that serves."""
        return changes_between(self.config, new, self._rendered)

    def refuse(self, kind: str, message: str) -> None:
        """Note that the files in the folder may not serve."""
        self.refusal = Refusal.now(kind, message)

    def serve(self, config: Config) -> None:
        """Note that the files in the folder serve."""
        self.refusal, self._last_good = None, False
        if config.revision != self.config.revision:
            self._since = time.time()
            self._lacks = [c for c in changes_between(self._first, config, self._rendered) if c.needs_envoy]
        self.config = config

    def status(self, snapshot: Snapshot, caches: Mapping[str, Checks] | None = None) -> Status:
        """Describe the configuration. `snapshot` is the one that serves, and `caches` are those of its cohorts."""
        return Status(
            folder=str(self.folder),
            revision=snapshot.revision,
            since=self._since,
            cohorts=len(snapshot.policy.cohorts),
            last_good=self._last_good,
            refusal=self.refusal,
            rendered_from=self._first.revision,
            lacks=[f"{change.place}: {change.text}" for change in self._lacks],
            stale=[*stale_values(self.config, snapshot), *_stale_in_apps(self.config, snapshot)],
            caches={name: f"{'OFF' if checks.off else 'on'}: {checks}" for name, checks in (caches or {}).items()},
            apps=[
                f"{app.name} ({_SERVES[app.snapshot.off]}): {problem}"
                for app in snapshot.apps
                for problem in app.problems
            ],
        )


def _stale_in_apps(config: Config, snapshot: Snapshot) -> Iterator[str]:
    """One line for each app with its own intents, and for each kind of fitted value."""
    for app in snapshot.apps:
        if app.folder:
            yield from (f"app {app.name}: {line}" for line in stale_values(config, app.snapshot))


def stale_values(config: Config, snapshot: Snapshot) -> list[str]:
    """Return one line for each kind of fitted value that was fitted on other files."""
    cohorts = snapshot.policy.cohorts.values()
    floors = [
        cohort.name
        for cohort in cohorts
        if cohort.evidence is not None and not (cohort.calibrated or cohort.evidence.abstains)
    ]
    choices = [
        cohort.name
        for cohort in cohorts
        if cohort.chosen is not None and not cohort.chosen.holds(config.policy.tiers)
    ]
    prompts = [cohort.name for cohort in cohorts if cohort.prompt_stale]
    lines = {
        "floors (utterances or centroids changed since `extproc calibrate`)": floors,
        "tiers and settings (models changed since they were chosen)": choices,
        f"choices by the prompt ({GAINS_FILE} is missing, stale or of another fit)": prompts,
    }
    return [f"{what}: {', '.join(names)}" for what, names in lines.items() if names]
