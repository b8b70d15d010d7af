"""How a command ends: an error of the system in words, and a reader of a pipe that leaves early."""

import subprocess
import sys
from pathlib import Path

import pytest

from extproc.cli.process import BROKEN_PIPE, USER_ERROR, run_process


def test_an_error_of_the_system_names_the_file_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def missing() -> int:
        return len((tmp_path / "rows.jsonl").read_bytes())

    assert run_process(missing) == USER_ERROR
    assert capsys.readouterr().err == f"extproc: {tmp_path}/rows.jsonl: no such file or directory\n"


def test_a_broken_connection_is_an_error_although_the_output_is_read(capfd: pytest.CaptureFixture[str]) -> None:
    def broken() -> int:
        raise BrokenPipeError(32, "Broken pipe")

    assert run_process(broken) == USER_ERROR
    assert "Broken pipe" in capfd.readouterr().err


@pytest.mark.parametrize("lines", [1, 100_000])
def test_a_reader_may_leave_early(lines: int) -> None:
    """As in `extproc export | head -1`: no message, and the exit code that a shell gives to SIGPIPE."""
    program = (
        "import sys; from extproc.cli.process import run_process; sys.stdin.read()\n"
        f"sys.exit(run_process(lambda: print('x\\n' * {lines}) or 0))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None and process.stdin is not None and process.stderr is not None
    process.stdout.close()
    process.stdin.close()
    assert (process.stderr.read(), process.wait(30)) == (b"", BROKEN_PIPE)
    process.stderr.close()
