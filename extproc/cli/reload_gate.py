"""The comparison that `extproc serve --gate` starts before a reload: `python -m extproc.cli.reload_gate TASK`."""

import sys
from pathlib import Path

import msgspec

from extproc.cli.evidence_compare import run_gate
from extproc.cli.process import run_process
from extproc.config.gate import GateTask


def run_reload_gate(argument: str) -> int:
    """Compare as `extproc gate` does, and exit as it does: 0 passed, 2 could not compare, others refuse."""
    task = msgspec.json.decode(argument, type=GateTask)
    old, new, data, folder = map(Path, (task.old, task.new, task.data, task.copies_of))
    limits = (task.max_quality_drop, task.max_cost_rise)
    return run_process(lambda: run_gate(old, new, data, *limits, seed=0, copies_of=folder), folder)


if __name__ == "__main__":
    sys.exit(run_reload_gate(sys.argv[1]))
