"""Copies of a folder of YAML, with the files of its apps inside."""

import contextlib
import hashlib
import shutil
from pathlib import Path

from extproc.config.located import absolute
from extproc.config.reading import Reading, yaml_files
from extproc.config.schema import POLICY_FILE
from extproc.routing.gain_file import FITTED_FILES
from extproc.settings import App


def app_folder(app: App, folder: Path) -> Path:
    """The folder of an app's intents. A relative path starts at `folder`, which has the policy."""
    return Path(absolute(app.intents, folder))


def app_source(name: str, app: App, folder: Path, copy_of: Path | None = None) -> Path:
    """The folder from which the files of an app are read. If `folder` is a copy, it has those of its apps, too."""
    copied = app_copy(folder, name)
    return copied if copy_of is not None and copied.is_dir() else app_folder(app, copy_of or folder)


def app_copy(copy: Path, name: str) -> Path:
    """The folder of an app in a copy. A name with a mistake may have any characters."""
    return copy / f"app-{hashlib.sha256(name.encode()).hexdigest()[:16]}"


def copy_files(folder: Path, copy: Path, copy_of: Path | None = None) -> None:
    """Copy the YAML and the fitted files as they are now. `folder` may itself be a copy of another folder."""
    copy_folder(folder, copy)
    reading = Reading()
    if (copy / POLICY_FILE).is_file():
        reading.add(copy / POLICY_FILE)
    for name, app in (reading.policy.apps if reading.policy is not None else {}).items():
        source = app_source(name, app, folder, copy_of)
        if app.intents and source.is_dir():
            copy_folder(source, app_copy(copy, name))


def copy_folder(folder: Path, copy: Path) -> None:
    """Copy the YAML and the fitted files of one folder."""
    copy.mkdir(exist_ok=True)
    for path in (*yaml_files(folder), *(folder / name for name in FITTED_FILES)):
        # Removing a file at this moment is a new edit, and the next look at the folder sees it.
        with contextlib.suppress(FileNotFoundError):
            shutil.copyfile(path, copy / path.name)
