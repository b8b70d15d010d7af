"""A folder of YAML, with the fitted files beside it, to a Config. All mistakes are reported together."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import msgspec

from extproc.config.app_checks import check_app_intents, check_apps
from extproc.config.checks import cross_check
from extproc.config.copies import app_folder, app_source
from extproc.config.located import absolute, with_located_files
from extproc.config.reading import Reading, looks_like_policy, yaml_files
from extproc.config.rollout_checks import check_candidate
from extproc.config.schema import POLICY_FILE, Intent, PolicyFile
from extproc.config.signature import Signature, signature
from extproc.config.strict_yaml import Lines, Problem, line_of
from extproc.contract.names import CANDIDATE_PREFIX
from extproc.routing.centroid_file import CENTROIDS_FILE, CentroidFile, decode_centroids
from extproc.routing.gain_file import GAINS_FILE, GainFile, decode_gains
from extproc.settings import App, Candidate

F = TypeVar("F")

# Kubernetes allows a ConfigMap this many bytes in all its values together.
_CONFIGMAP_BYTES = 1 << 20


class ConfigError(ValueError):
    """The operator's configuration cannot be used: `problems` lists every mistake.

    `folder` has the files. It is None if the code that found the mistakes does not know the folder.
    """

    def __init__(self, problems: list[Problem], folder: Path | None = None) -> None:
        self.problems = sorted(problems)
        self.folder = folder
        super().__init__("\n".join(map(str, self.problems)))


class Config(msgspec.Struct, frozen=True):
    """A valid configuration."""

    policy: PolicyFile
    intents: tuple[Intent, ...]
    revision: str  # hash of all the files
    files: dict[str, str]  # intent -> file name
    lines: Lines  # where each value stands
    background: tuple[str, ...] = ()  # texts that belong to no intent
    fitted: CentroidFile | None = None  # centroids.safetensors, if there is one
    gains: GainFile | None = None  # gains.safetensors, if there is one
    old_keys: tuple[Problem, ...] = ()  # keys of earlier releases, and what to write instead
    basis: str = ""  # hash of all the files, without the key `candidate`
    apps: Mapping[str, "Config"] = {}  # name -> its policy and intents. An app with mistakes in its files is absent
    broken: Mapping[str, "BrokenApp"] = {}  # the apps with mistakes in their files
    # Of the folder of each app with own intents, from before its files were read.
    signatures: Mapping[str, Signature] = {}

    @property
    def every_intent(self) -> tuple[Intent, ...]:
        """The intents beside the policy, and those of all apps."""
        own = (i for name, app in self.apps.items() if self.policy.apps[name].intents for i in app.intents)
        return (*self.intents, *own)

    @property
    def every_file(self) -> dict[str, str]:
        """The file of each of these intents, by its name."""
        files = {
            intent: f"{self.policy.apps[name].intents}/{file}"
            for name, app in self.apps.items()
            for intent, file in app.files.items()
        }
        return files | self.files

    @property
    def has_cache(self) -> bool:
        """Whether accepted answers of an intent are kept. Envoy's part depends on it."""
        return any(intent.cache is not None for intent in self.every_intent)


class BrokenApp(msgspec.Struct, frozen=True):
    """An app whose own files have mistakes."""

    problems: tuple[Problem, ...]
    confines: bool  # the files may confine requests to some tiers


def load_config(folder: Path, copy_of: Path | None = None) -> Config:
    """Read and check every *.yaml and the fitted files in `folder`. Raises ConfigError.

    In a copy of another folder, a relative path of a model starts at that other folder. The copy has the files of
    apps, too.
    """
    original = copy_of or folder
    paths = yaml_files(folder)
    if folder / POLICY_FILE not in paths:
        raise ConfigError([_no_policy(folder, original)], original)
    reading = Reading()
    for path in paths:
        reading.add(path)
    fitted = reading.add_fitted(folder / CENTROIDS_FILE, decode_centroids)
    gains = reading.add_fitted(folder / GAINS_FILE, decode_gains)
    policy = reading.policy
    if policy is not None:
        policy = with_located_files(policy, original)
        findings = [
            *cross_check(policy, reading.intents, every_intent=not reading.unread),
            *check_candidate(policy),
            *check_apps(policy),
        ]
        reading.problems += [Problem(file, line_of(reading.lines, file, at), what) for file, at, what in findings]
        reading.check_background()
    if reading.problems or policy is None:
        raise ConfigError(reading.problems, original)
    own = {name: app for name, app in policy.apps.items() if app.intents}
    signatures = {name: signature(app_folder(app, original)) for name, app in own.items()}
    places = {name: app_source(name, app, folder, copy_of) for name, app in own.items()}
    apps = {name: _read_app(place, reading) for name, place in places.items()}
    config = Config(
        policy=policy,
        intents=tuple(intent for _, intent in reading.intents),
        revision=reading.digest.hexdigest()[:12],
        files={intent.intent: name for name, intent in reading.intents},
        lines=reading.lines,
        background=reading.background or (),
        fitted=fitted,
        gains=gains,
        old_keys=tuple(reading.old_keys),
        basis=reading.basis,
        signatures=signatures,
    )
    return _with_apps(config, apps, places)


def _no_policy(folder: Path, original: Path) -> Problem:
    like = next(filter(looks_like_policy, sorted(folder.glob("*"))), None)
    if like is not None:
        return Problem(like.name, 1, f"the policy is read from {POLICY_FILE} alone: rename this file")
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        return Problem(POLICY_FILE, 1, f"{original} {what}: give the folder that holds policy.yaml and the intents")
    return Problem(POLICY_FILE, 1, f"not found in {original}: create it there")


def _read_app(place: Path, policy_files: Reading) -> Reading:
    """The files of an app. The revision of the whole depends on them."""
    reading = Reading()
    if not place.is_dir():
        reading.problems.append(Problem("", 1, f"{place} is not a folder: create it, or remove `intents`"))
        reading.unread += 1
        return reading
    for path in yaml_files(place):
        if path.name == POLICY_FILE:
            what = (
                f"an app cannot have a policy, because the one beside the apps holds for it: remove {path}, or "
                "name another folder"
            )
            reading.problems.append(Problem(path.name, 1, what))
        else:
            reading.add(path)
    reading.fitted = reading.add_fitted(place / CENTROIDS_FILE, decode_centroids)
    reading.gains = reading.add_fitted(place / GAINS_FILE, decode_gains)
    policy_files.digest.update(reading.digest.digest())
    return reading


def _with_apps(config: Config, readings: Mapping[str, Reading], places: Mapping[str, Path]) -> Config:
    """The configuration, with that of each app. A mistake in the files of one app concerns no other."""
    apps, broken = {}, {}
    for name, app in config.policy.apps.items():
        policy = policy_of(app, config.policy)
        reading = readings.get(name)
        if reading is None:
            apps[name] = msgspec.structs.replace(config, policy=policy)
            continue
        findings = [
            *cross_check(policy, reading.intents, every_intent=not reading.unread),
            *check_app_intents(policy, app, reading.intents),
        ]
        reading.problems += [
            Problem(file, line_of(reading.lines, file, at), what)
            for file, at, what in findings
            if file != POLICY_FILE
        ]
        if not reading.intents and not reading.problems:
            what = f"{places[name]} has no intents: write at least one <intent>.yaml there, or remove `intents`"
            reading.problems.append(Problem("", 1, what))
        reading.check_background()
        if reading.problems:
            problems = [of_app(app, name, problem, config) for problem in reading.problems]
            broken[name] = BrokenApp(tuple(sorted(problems)), _may_confine(places[name]))
            continue
        apps[name] = Config(
            policy=policy,
            intents=tuple(intent for _, intent in reading.intents),
            revision=config.revision,
            files={intent.intent: file for file, intent in reading.intents},
            lines=reading.lines,
            background=reading.background or (),
            fitted=reading.fitted,
            gains=reading.gains,
            basis=reading.basis,
        )
    return msgspec.structs.replace(config, apps=apps, broken=broken)


def policy_of(app: App, policy: PolicyFile) -> PolicyFile:
    """The policy of an app: that of the whole, with the app's own values."""
    default = app.default_tier if isinstance(app.default_tier, str) else policy.default_tier
    return msgspec.structs.replace(policy, default_tier=default, apps={}, candidate=None)


def of_app(app: App, name: str, problem: Problem, config: Config) -> Problem:
    """A mistake in a file of an app, with the path of the file. A mistake of no file is one of the policy."""
    if problem.file in ("", POLICY_FILE) and problem.line == 1:
        line = line_of(config.lines, POLICY_FILE, f".apps.{name}.intents")
        return Problem(POLICY_FILE, line, f"app `{name}`: {problem.what}")
    return msgspec.structs.replace(problem, file=f"{app.intents}/{problem.file}")


# Keys by which an intent keeps requests from some tiers.
_CONFINING = re.compile(rb"^\s*(only|tier_floor|risk)\s*:", re.MULTILINE)


def _may_confine(folder: Path) -> bool:
    """Whether a file of the folder seems to have one of these keys. A file that cannot be read may have one."""
    try:
        return not folder.is_dir() or any(_CONFINING.search(path.read_bytes()) for path in yaml_files(folder))
    except OSError:
        return True


def load_candidate(config: Config, folder: Path) -> Config:
    """Read and check the files of the candidate in `config`, which was loaded for `folder`. Raises ConfigError.

    The result has the policy of `config`. Its revision depends on that policy and on the intents that serve, too,
    because another serving policy is another comparison.
    """
    candidate = config.policy.candidate
    assert candidate is not None, "only a configuration with a candidate has its files"
    place = candidate_folder(config, folder)
    if not place.is_dir():
        what = f"`candidate.dir` is {candidate.dir}, but {place} is not a folder: create it, or remove `candidate`"
        line = line_of(config.lines, POLICY_FILE, ".candidate.dir")
        raise ConfigError([Problem(POLICY_FILE, line, what)], folder)
    reading = Reading()
    for path in yaml_files(place):
        if path.name == POLICY_FILE:
            what = f"a candidate cannot have a policy, because that of {folder} holds for it: remove this file"
            reading.problems.append(Problem(path.name, 1, what))
        else:
            reading.add(path)
    fitted = reading.add_fitted(place / CENTROIDS_FILE, decode_centroids)
    gains = reading.add_fitted(place / GAINS_FILE, decode_gains)
    findings = cross_check(config.policy, reading.intents, every_intent=not reading.unread)
    # A mistake in the policy is one only because of the intents of the candidate.
    problems = [
        Problem(file, line_of(config.lines, file, at), f"with the intents in {candidate.dir}: {what}")
        if file == POLICY_FILE
        else Problem(f"{candidate.dir}/{file}", line_of(reading.lines, file, at), what)
        for file, at, what in findings
    ]
    reading.check_background()
    problems += [beside(candidate, problem) for problem in reading.problems]
    if problems:
        raise ConfigError(problems, folder)
    reading.digest.update(config.basis.encode())
    return Config(
        policy=config.policy,
        intents=tuple(intent for _, intent in reading.intents),
        revision=CANDIDATE_PREFIX + reading.digest.hexdigest()[:12],
        files={intent.intent: name for name, intent in reading.intents},
        lines=reading.lines,
        background=reading.background or (),
        fitted=fitted,
        gains=gains,
    )


def candidate_folder(config: Config, folder: Path) -> Path:
    """The folder of the candidate. A relative path starts at `folder`, which has the policy."""
    assert config.policy.candidate is not None
    return Path(absolute(config.policy.candidate.dir, folder))


def beside(candidate: Candidate, problem: Problem) -> Problem:
    """A mistake in a file of the candidate, with the path of the file from the folder of the policy."""
    return msgspec.structs.replace(problem, file=f"{candidate.dir}/{problem.file}")


def in_configmap(folder: Path, raw: bytes) -> str:
    """The size of the YAML together with `raw`, the file of centroids, and whether a ConfigMap holds both."""
    size = len(raw) + sum(path.stat().st_size for path in yaml_files(folder) if path.is_file())
    text = f"{size / 1024:,.0f} KiB with the YAML"
    return text if size <= _CONFIGMAP_BYTES else f"{text}: a ConfigMap holds 1,024 KiB, MOUNT A VOLUME INSTEAD"
