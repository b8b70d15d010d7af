"""The Makefile's set-up: one line for each step, and the end of its log if a step fails."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_a_failed_step_prints_the_end_of_the_log_and_names_the_log(tmp_path: Path) -> None:
    """A Python that cannot make an environment stands for any command that fails."""
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nfor i in $(seq 40); do echo line $i; done\necho no ensurepip >&2\nexit 1\n")
    python.chmod(0o755)
    venv = tmp_path / "venv"
    done = subprocess.run(
        ["make", "--no-print-directory", f"VENV={venv}", f"PYTHON={python}", "demo"],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    step, log = f"creating the Python environment in {venv}", venv / "setup.log"
    assert (done.returncode, done.stdout) == (2, f"{step} ...\n")
    lines = done.stderr.splitlines()
    assert lines[:30] == [*(f"line {i}" for i in range(12, 41)), "no ensurepip"]
    assert lines[30] == f"failed: {step}. The whole log is {log}."
    assert log.read_text().startswith("line 1\n")
    assert not (venv / "ready").exists()
