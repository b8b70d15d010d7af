"""Runs `server_life.py` in a process of its own.

Those tests start gRPC's asyncio server in several event loops. In one process with the end-to-end tests, which use
gRPC in threads, the interpreter crashed there.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_life_of_a_server() -> None:
    """All tests of `server_life.py` pass."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "tests/serving/server_life.py"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stdout + run.stderr
    assert re.search(r"^13 passed", run.stdout, re.MULTILINE), run.stdout
