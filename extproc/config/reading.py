"""The files of one folder of YAML, as they are read. Mistakes are collected, and reading goes on."""

import contextlib
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from extproc.config.background_checks import check_background, check_name
from extproc.config.old_keys import translate
from extproc.config.schema import BACKGROUND_FILE, POLICY_FILE, BackgroundFile, Intent, PolicyFile
from extproc.config.strict_yaml import Lines, Problem, decode_yaml, line_of
from extproc.routing.centroid_file import CentroidFile
from extproc.routing.gain_file import GainFile, OtherVersionError

F = TypeVar("F")
# The new key of each old one.
_NEW_KEY = {"endpoint": "url", "tls": "url", "credential": "key"}


class Reading:
    """The files of a folder that are read so far."""

    def __init__(self) -> None:
        self.policy: PolicyFile | None = None
        self.intents: list[tuple[str, Intent]] = []  # with the names of their files
        self.unread = 0  # files of intents with mistakes
        self.background: tuple[str, ...] | None = None
        self.problems: list[Problem] = []
        self.old_keys: list[Problem] = []
        self.lines: Lines = {}
        self.fitted: CentroidFile | None = None
        self.gains: GainFile | None = None
        self.digest = hashlib.sha256()
        self._others = hashlib.sha256()  # without the policy

    def add(self, path: Path) -> None:
        """Read the policy, an intent or the background."""
        try:
            if path.is_fifo():  # nobody may ever write to it
                raise OSError(0, "it is a pipe, and a file is expected")
            raw = path.read_bytes()
        except OSError as error:
            what = f"cannot be read: {error.strerror}"
            if path.is_dir():
                what = "is a folder, and a file is expected: rename the folder, or move it elsewhere"
            self.problems.append(Problem(path.name, 1, what))
            self.unread += 1
            return
        self._note(path.name.encode() + b"\0" + raw + b"\0", is_policy=path.name == POLICY_FILE)
        if looks_like_policy(path):
            what = f"the policy is read from {POLICY_FILE} alone: rename this file, or remove it"
            self.problems.append(Problem(path.name, 1, what))
            self.unread += 1
            return
        if path.name == POLICY_FILE:
            self.policy = decode_yaml(path.name, raw, PolicyFile, self.problems, self.lines, self._translate)
        elif path.name == BACKGROUND_FILE:
            file = decode_yaml(path.name, raw, BackgroundFile, self.problems, self.lines)
            self.background = file.background if file is not None else None
        elif (mistake := check_name(path.name)) is not None:
            self.problems.append(Problem(path.name, 1, mistake))
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
        """Read a file of fitted values. None if it is absent, damaged or of another release."""
        fitted = None
        try:
            raw = path.read_bytes()
            with contextlib.suppress(OtherVersionError):  # a new release starts with it, and warns
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


def looks_like_policy(path: Path) -> bool:
    """Whether somebody may take the file for the policy, which has another name."""
    return path.name != POLICY_FILE and path.name.lower() in ("policy.yaml", "policy.yml")


def yaml_files(folder: Path) -> list[Path]:
    """The policy, the intents and the background, sorted by name."""
    # Kubernetes mounts a ConfigMap with hidden folders beside the files.
    return sorted(path for path in folder.glob("*.y*ml") if not path.name.startswith("."))
