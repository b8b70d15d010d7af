"""Relative paths in the files of a folder: they start at that folder."""

import os
from pathlib import Path
from typing import TypeVar

import msgspec

from extproc.config.schema import PolicyFile
from extproc.settings import Judge, Tier

T = TypeVar("T", Tier, Judge)


def with_located_files(policy: PolicyFile, folder: Path) -> PolicyFile:
    """The policy with absolute paths where it names files. Relative ones start at `folder`."""
    encoder = msgspec.structs.replace(policy.encoder, model=located(policy.encoder.model, folder))
    tiers = tuple(_with_absolute_paths(tier, folder) for tier in policy.tiers)
    judges = {name: _with_absolute_key(judge, folder) for name, judge in policy.judges.items()}
    return msgspec.structs.replace(policy, encoder=encoder, tiers=tiers, judges=judges)


def _with_absolute_paths(tier: Tier, folder: Path) -> Tier:
    return msgspec.structs.replace(_with_absolute_key(tier, folder), ca=absolute(tier.ca, folder))


def _with_absolute_key(user: T, folder: Path) -> T:
    """A tier or a judge, with the absolute path of its key."""
    key = user.key and msgspec.structs.replace(user.key, file=absolute(user.key.file, folder))
    return msgspec.structs.replace(user, key=key)


def located(model: str, folder: Path) -> str:
    """The absolute path of a model. A relative path starts at the folder of the YAML. A name stays a name."""
    path = folder / Path(model).expanduser()
    if not path.exists() and not model.startswith((".", "/", "~")):
        return model
    # Symbolic links are not resolved: Kubernetes mounts a ConfigMap through links, and swaps them.
    return os.path.abspath(path)


def absolute(file: str, folder: Path) -> str:
    """The absolute path of a file. A relative path starts at the folder of the YAML."""
    return os.path.abspath(folder / file) if file else ""
