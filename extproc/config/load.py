"""A folder of YAML, with the fitted files beside it, to a Config. All mistakes are reported together."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from extproc.config.background_checks import check_background, check_name
from extproc.config.checks import cross_check
from extproc.config.old_keys import translate
from extproc.config.rollout_checks import check_candidate
from extproc.config.schema import BACKGROUND_FILE, POLICY_FILE, BackgroundFile, Intent, PolicyFile
from extproc.config.strict_yaml import Lines, Problem, decode_yaml, line_of
from extproc.contract.names import CANDIDATE_PREFIX
from extproc.routing.centroid_file import CENTROIDS_FILE, CentroidFile, decode_centroids
from extproc.routing.gain_file import GAINS_FILE, GainFile, decode_gains
from extproc.settings import Candidate, Judge, Tier

T = TypeVar("T", Tier, Judge)
F = TypeVar("F")

# The new key of each old one.
_NEW_KEY = {"endpoint": "url", "tls": "url", "credential": "key"}
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


def load_config(folder: Path, copy_of: Path | None = None) -> Config:
    """Read and check every *.yaml and the fitted files in `folder`. Raises ConfigError.

    In a copy of another folder, a relative path of a model starts at that other folder.
    """
    original = copy_of or folder
    paths = yaml_files(folder)
    if folder / POLICY_FILE not in paths:
        raise ConfigError([Problem(POLICY_FILE, 1, f"not found in {original}: create it there")], original)
    reading = _Reading()
    for path in paths:
        reading.add(path)
    fitted = reading.add_fitted(folder / CENTROIDS_FILE, decode_centroids)
    gains = reading.add_fitted(folder / GAINS_FILE, decode_gains)
    policy = reading.policy
    if policy is not None:
        policy = _with_located_files(policy, original)
        findings = [
            *cross_check(policy, reading.intents, every_intent=not reading.unread),
            *check_candidate(policy),
        ]
        reading.problems += [Problem(file, line_of(reading.lines, file, at), what) for file, at, what in findings]
        reading.check_background()
    if reading.problems or policy is None:
        raise ConfigError(reading.problems, original)
    return Config(
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
    )


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
    reading = _Reading()
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
    return Path(_absolute(config.policy.candidate.dir, folder))


def beside(candidate: Candidate, problem: Problem) -> Problem:
    """A mistake in a file of the candidate, with the path of the file from the folder of the policy."""
    return msgspec.structs.replace(problem, file=f"{candidate.dir}/{problem.file}")


def _with_located_files(policy: PolicyFile, folder: Path) -> PolicyFile:
    """The policy with absolute paths where it names files. Relative ones start at `folder`."""
    encoder = msgspec.structs.replace(policy.encoder, model=located(policy.encoder.model, folder))
    tiers = tuple(_with_absolute_paths(tier, folder) for tier in policy.tiers)
    judges = {name: _with_absolute_key(judge, folder) for name, judge in policy.judges.items()}
    return msgspec.structs.replace(policy, encoder=encoder, tiers=tiers, judges=judges)


def _with_absolute_paths(tier: Tier, folder: Path) -> Tier:
    return msgspec.structs.replace(_with_absolute_key(tier, folder), ca=_absolute(tier.ca, folder))


def _with_absolute_key(user: T, folder: Path) -> T:
    """A tier or a judge, with the absolute path of its key."""
    key = user.key and msgspec.structs.replace(user.key, file=_absolute(user.key.file, folder))
    return msgspec.structs.replace(user, key=key)


class _Reading:
    """The files of a folder that are read so far."""

    def __init__(self) -> None:
        self.policy: PolicyFile | None = None
        self.intents: list[tuple[str, Intent]] = []  # with the names of their files
        self.unread = 0  # files of intents with mistakes
        self.background: tuple[str, ...] | None = None
        self.problems: list[Problem] = []
        self.old_keys: list[Problem] = []
        self.lines: Lines = {}
        self.digest = hashlib.sha256()
        self._others = hashlib.sha256()  # without the policy

    def add(self, path: Path) -> None:
        """Read the policy, an intent or the background."""
        try:
            raw = path.read_bytes()
        except OSError as error:
            self.problems.append(Problem(path.name, 1, f"cannot be read: {error.strerror}"))
            self.unread += 1
            return
        self._note(path.name.encode() + b"\0" + raw + b"\0", is_policy=path.name == POLICY_FILE)
        if path.name == POLICY_FILE:
            self.policy = decode_yaml(path.name, raw, PolicyFile, self.problems, self.lines, self._translate)
        elif path.name == BACKGROUND_FILE:
            file = decode_yaml(path.name, raw, BackgroundFile, self.problems, self.lines)
            self.background = file.background if file is not None else None
        elif (what := check_name(path.name)) is not None:
            self.problems.append(Problem(path.name, 1, what))
            self.unread += 1
        elif (intent := decode_yaml(path.name, raw, Intent, self.problems, self.lines)) is not None:
            self.intents.append((path.name, intent))
        else:
            self.unread += 1

    def check_background(self) -> None:
        """Add the mistakes in the background."""
        utterances = {text: name for name, intent in self.intents for text in intent.utterances}
        for at, what in check_background(self.background, utterances) if self.background is not None else ():
            self.problems.append(Problem(BACKGROUND_FILE, line_of(self.lines, BACKGROUND_FILE, at), what))

    def _translate(self, policy: Any) -> None:
        """Write old keys as the new ones. A mistake about a new key has the line of the old one."""
        for at, what, is_mistake in translate(policy):
            line = line_of(self.lines, POLICY_FILE, at)
            tier = at.rpartition(".")[0]
            self.lines.setdefault((POLICY_FILE, f"{tier}.{_NEW_KEY[at.rpartition('.')[2]]}"), line)
            (self.problems if is_mistake else self.old_keys).append(Problem(POLICY_FILE, line, what))

    def add_fitted(self, path: Path, decode: Callable[[bytes], F]) -> F | None:
        """Read a file of fitted values. None if there is no file, or if it is damaged."""
        try:
            raw = path.read_bytes()
            fitted = decode(raw)
        except FileNotFoundError:
            return None
        except OSError as error:
            self.problems.append(Problem(path.name, 1, f"cannot be read: {error.strerror}"))
            return None
        except ValueError as error:
            self.problems.append(Problem(path.name, 1, str(error)))
            return None
        self._note(raw)
        return fitted

    def _note(self, content: bytes, is_policy: bool = False) -> None:
        self.digest.update(content)
        if not is_policy:
            self._others.update(content)

    @property
    def basis(self) -> str:
        """The hash of everything except the key `candidate`. It does not depend on the place of the folder."""
        policy = msgspec.structs.replace(self.policy, candidate=None) if self.policy is not None else None
        return hashlib.sha256(self._others.digest() + msgspec.json.encode(policy, order="sorted")).hexdigest()


def yaml_files(folder: Path) -> list[Path]:
    """The policy, the intents and the background, sorted by name."""
    # Kubernetes mounts a ConfigMap with hidden folders beside the files.
    return sorted(path for path in folder.glob("*.y*ml") if not path.name.startswith("."))


def in_configmap(folder: Path, raw: bytes) -> str:
    """The size of the YAML together with `raw`, the file of centroids, and whether a ConfigMap holds both."""
    size = len(raw) + sum(path.stat().st_size for path in yaml_files(folder) if path.is_file())
    text = f"{size / 1024:,.0f} KiB with the YAML"
    return text if size <= _CONFIGMAP_BYTES else f"{text}: a ConfigMap holds 1,024 KiB, MOUNT A VOLUME INSTEAD"


def located(model: str, folder: Path) -> str:
    """The absolute path of a model. A relative path starts at the folder of the YAML. A name stays a name."""
    path = folder / Path(model).expanduser()
    if not path.exists() and not model.startswith((".", "/", "~")):
        return model
    # Symbolic links are not resolved: Kubernetes mounts a ConfigMap through links, and swaps them.
    return os.path.abspath(path)


def _absolute(file: str, folder: Path) -> str:
    """The absolute path of a file. A relative path starts at the folder of the YAML."""
    return os.path.abspath(folder / file) if file else ""
