"""Whether a new configuration may serve: `extproc gate` is asked, in a process that gives way to ours."""

import asyncio
import contextlib
import fcntl
import os
import shutil
import sys
import tempfile
from pathlib import Path

from extproc.config.load import yaml_files
from extproc.routing.centroid_file import CENTROIDS_FILE

# A file of traffic that takes longer is too long for a gate that somebody waits for.
_PATIENCE_S = 900.0
# How often to look whether another worker's gate is done: one at a time on a machine, as each loads the encoder.
_TURN_S = 0.5
_LOWEST_PRIORITY = 19


class Gate:
    """Copies of what serves and of what wants to, compared on a file of traffic.

    Both are copies: what was compared is what serves, whoever edits the folder meanwhile.
    """

    def __init__(self, data: Path, max_quality_drop: float, max_cost_rise: float) -> None:
        """Limits as of `extproc gate`. Raises OSError when there is no such file."""
        if not data.is_file():
            raise OSError(f"--gate {data}: no such file; docs/evidence.md has the format")
        self._data, self._limits = data, (max_quality_drop, max_cost_rise)
        self._copies = tempfile.TemporaryDirectory(prefix="extproc-gate-")
        self._count = 0
        self._original: Path | None = None
        self._serving: Path | None = None

    def copy(self, folder: Path) -> Path:
        """A copy of the YAML files, and centroids beside them, as they are now."""
        self._count += 1
        self._original = folder
        copy = Path(self._copies.name) / str(self._count)
        copy.mkdir()
        for path in (*yaml_files(folder), folder / CENTROIDS_FILE):
            with contextlib.suppress(FileNotFoundError):  # or removed meanwhile: the next look sees that
                shutil.copyfile(path, copy / path.name)
        return copy

    def serves(self, copy: Path) -> None:
        """From now on this is what others are held against."""
        before, self._serving = self._serving, copy
        if before is not None:
            self.forget(before)

    def forget(self, copy: Path) -> None:
        """This copy is not needed any more."""
        shutil.rmtree(copy, ignore_errors=True)

    async def refusal(self, new: Path) -> tuple[str, str] | None:
        """Hold the copy `new` against what serves: None, or why it may not, "regression" or "gate", and in words.

        "gate": it could not tell. Takes as long as the traffic takes.
        """
        try:
            with self._data.open("rb") as file:
                while not _locked(file.fileno()):
                    await asyncio.sleep(_TURN_S)
                code, out, err = await self._run(new)
        except TimeoutError:
            return "gate", f"the gate could not tell within {_PATIENCE_S:.0f} s"
        except OSError as error:
            return "gate", f"the gate could not tell: {error}"
        if code == 1:
            return "regression", f"it regresses on {self._data}: {out[out.rfind('FAILED') :].strip()}"
        what = err.strip().splitlines()[-1:] or [f"it ended with {code}"]
        return ("gate", f"the gate could not tell: {what[0]}") if code else None

    async def _run(self, new: Path) -> tuple[int, str, str]:
        drop, rise = self._limits
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "extproc", "gate", "--baseline", str(self._serving), str(new), str(self._data),
            "--max-quality-drop", str(drop), "--max-cost-rise", str(rise), "--copies-of", str(self._original),
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        try:
            with contextlib.suppress(ProcessLookupError):  # over already
                os.setpriority(os.PRIO_PROCESS, process.pid, _LOWEST_PRIORITY)
            out, err = await asyncio.wait_for(process.communicate(), _PATIENCE_S)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        return process.returncode or 0, out.decode(errors="replace"), err.decode(errors="replace")


def _locked(file: int) -> bool:
    """Whether it is our turn; the lock goes with the file's closing."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
