"""The last configuration that served, kept on disk. A start with a mistake in the files serves it instead.

It is kept in `$XDG_STATE_HOME/envoy-semantic-router`, by default `~/.local/state/envoy-semantic-router`. Each
folder of intents has its own place there. The files of apps are part of it: those that served last.
"""

import contextlib
import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Collection
from pathlib import Path

from extproc.config.copies import app_copy, app_folder, copy_files, copy_folder
from extproc.config.load import Config, ConfigError, load_config

log = logging.getLogger(__name__)

# Names the copy that is the last good one. Workers may write it at the same time, with the same content.
_CURRENT = "current"


def kept_folder(folder: Path) -> Path | None:
    """Return the folder with the last good configuration of `folder`, or None if none is kept."""
    try:
        place = _place(folder)
        kept = place / (place / _CURRENT).read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return None
    return kept if kept.is_dir() else None


def keep(folder: Path, config: Config, refused: Collection[str] = ()) -> None:
    """Keep the files of `config`, which serves from `folder`. A failure is logged and has no other effect.

    `refused` are the apps whose files have mistakes. Their earlier files stay.
    """
    try:
        _keep(folder, config, refused)
    except OSError as error:
        log.info("the last good configuration is not kept, so a start with a mistake in the files fails: %s", error)


def _keep(folder: Path, config: Config, refused: Collection[str]) -> None:
    place, kept = _place(folder), kept_folder(folder)
    if kept is not None and kept.name == config.revision:
        _add_apps(kept, folder, config, refused)
        return
    place.mkdir(parents=True, exist_ok=True, mode=0o700)
    copy = Path(tempfile.mkdtemp(dir=place))
    try:
        copy_files(folder, copy)
        if not _is(copy, folder, config.revision):
            return  # the folder was edited in the meantime, and the reload comes back here
        for name in refused:
            shutil.rmtree(app_copy(copy, name), ignore_errors=True)
            if kept is not None and app_copy(kept, name).is_dir():
                copy_folder(app_copy(kept, name), app_copy(copy, name))
        with contextlib.suppress(OSError):  # another worker was faster
            copy.rename(place / config.revision)
        with tempfile.NamedTemporaryFile("w", dir=place, encoding="ascii", delete=False) as pointer:
            pointer.write(config.revision)
        os.replace(pointer.name, place / _CURRENT)
    finally:
        shutil.rmtree(copy, ignore_errors=True)
    if kept is not None:
        shutil.rmtree(kept, ignore_errors=True)


def _add_apps(kept: Path, folder: Path, config: Config, refused: Collection[str]) -> None:
    """Add the files of apps to a copy of an earlier release, which has none."""
    added = []
    for name, app in config.policy.apps.items():
        place = app_copy(kept, name)
        if app.intents and name not in refused and not place.is_dir():
            copy = Path(tempfile.mkdtemp(dir=kept))
            copy_folder(app_folder(app, folder), copy)
            with contextlib.suppress(OSError):  # another worker was faster
                added.append(copy.rename(place))
            shutil.rmtree(copy, ignore_errors=True)
    if added and not _is(kept, folder, config.revision):  # an edit during that time
        for place in added:
            shutil.rmtree(place, ignore_errors=True)


def _is(copy: Path, folder: Path, revision: str) -> bool:
    try:
        return load_config(copy, folder).revision == revision
    except ConfigError:
        return False


def _place(folder: Path) -> Path:
    state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    if state.startswith("~"):  # the user of a container may have none
        raise OSError("there is no home directory: set XDG_STATE_HOME")
    name = hashlib.sha256(os.path.abspath(folder).encode()).hexdigest()[:16]
    return Path(state) / "envoy-semantic-router" / name
