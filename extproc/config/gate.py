"""The gate of reloads: a separate process compares a new configuration with the one that serves.

The process runs at the lowest priority, so that requests come first.
"""

import asyncio
import contextlib
import fcntl
import os
import shutil
import sys
import tempfile
from pathlib import Path

import msgspec

from extproc.config.copies import copy_files

# The operator waits for the gate after an edit. Traffic that takes longer than this is too much for it.
_PATIENCE_S = 900.0
# Every gate loads the encoder, so one runs at a time on a machine. The others look this often whether it is done.
_TURN_S = 0.5
_LOWEST_PRIORITY = 19
# The module that compares. It is named, not imported, because the command line lies above this package.
_PROGRAM = "extproc.cli.reload_gate"
# Exit code of the comparison -> (kind of the refusal, what the new configuration does).
_REFUSALS = {
    1: ("regression", "regresses"),
    3: ("unseen", "lowers a tier without recorded answers"),
    4: ("unclear", "may regress"),
}


class GateTask(msgspec.Struct, frozen=True):
    """The task of the process: compare two copies of the folder `copies_of` on the rows in `data`."""

    old: str
    new: str
    data: str
    max_quality_drop: float
    max_cost_rise: float
    copies_of: str


def check_data(data: Path) -> None:
    """Raise OSError when there is no such file of traffic."""
    if not data.is_file():
        raise OSError(f"--gate {data}: no such file; docs/reference/traffic.md has the format")


class Gate:
    """Compares a new configuration with the one that serves, on a file of traffic.

    Both are copies of the folder. So the configuration that was compared is the one that serves, even if the folder
    is edited during the comparison.
    """

    def __init__(self, data: Path, max_quality_drop: float, max_cost_rise: float) -> None:
        """The limits are those of `extproc gate`. Raises OSError when there is no such file."""
        check_data(data)
        self._data, self._limits = data, (max_quality_drop, max_cost_rise)
        self._copies = tempfile.TemporaryDirectory(prefix="extproc-gate-")
        self._count = 0
        self._original: Path | None = None
        self._serving: Path | None = None

    def copy(self, folder: Path, copy_of: Path | None = None) -> Path:
        """Copy the YAML and the fitted files as they are now, and return the copy's folder.

        `folder` may itself be a copy of another folder.
        """
        self._count += 1
        self._original = copy_of or folder
        copy = Path(self._copies.name) / str(self._count)
        copy_files(folder, copy, copy_of)
        return copy

    def serves(self, copy: Path) -> None:
        """Compare later reloads with this copy. The copy that served before is deleted."""
        before, self._serving = self._serving, copy
        if before is not None:
            self.forget(before)

    def forget(self, copy: Path) -> None:
        """Delete a copy that is not needed any more."""
        shutil.rmtree(copy, ignore_errors=True)

    async def refusal(self, new: Path) -> tuple[str, str] | None:
        """Compare the copy `new` with the copy that serves. None: it may serve. Else (kind, message).

        The kind is "regression" when a cohort is worse, "unseen" when a tier was lowered whose answers were not
        recorded, "unclear" when a cohort may be worse, and "gate" when the comparison was not possible. This takes
        as long as the traffic takes, at most 15 minutes.
        """
        try:
            with self._data.open("rb") as file:
                while not _locked(file.fileno()):
                    await asyncio.sleep(_TURN_S)
                code, out, err = await self._run(new)
        except TimeoutError:
            return "gate", f"the gate could not compare within {_PATIENCE_S:.0f} s: give it less traffic"
        except OSError as error:
            return "gate", f"the gate could not compare: {error}"
        if code == 0:
            return None
        if code in _REFUSALS:
            kind, what = _REFUSALS[code]
            return kind, f"it {what} on {self._data}: {out.partition(chr(10) * 2)[0]}"
        reason = err.strip().splitlines()[-1:] or [f"its process ended with {code}"]
        return "gate", f"the gate could not compare: {reason[0]}"

    async def _run(self, new: Path) -> tuple[int, str, str]:
        drop, rise = self._limits
        task = GateTask(str(self._serving), str(new), str(self._data), drop, rise, str(self._original))
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", _PROGRAM, msgspec.json.encode(task).decode(),
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        try:
            with contextlib.suppress(ProcessLookupError):  # it has ended already
                os.setpriority(os.PRIO_PROCESS, process.pid, _LOWEST_PRIORITY)
            out, err = await asyncio.wait_for(process.communicate(), _PATIENCE_S)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        return process.returncode or 0, out.decode(errors="replace"), err.decode(errors="replace")


def _locked(file: int) -> bool:
    """Whether we hold the lock of the traffic file now. Closing the file releases it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
