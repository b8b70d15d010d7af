"""One router process. `extproc serve` runs it, or starts it N times: `python -m extproc.cli.worker JOB [FD]`."""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import msgspec

from extproc.accounting.store import Store
from extproc.cli.process import run_process
from extproc.config.gate import Gate
from extproc.envoy.bootstrap import sample_of
from extproc.serving.event_loop import run
from extproc.serving.golden import GoldenRow
from extproc.serving.listening import TlsFiles
from extproc.serving.server import serve
from extproc.serving.server_parts import Serving


class Job(msgspec.Struct, frozen=True):
    """The task of a router process: the options of `extproc serve` as plain values, so that JSON can carry them."""

    intents: str
    listen: str
    tls: tuple[str, ...]  # certificate, key and client CA; empty without TLS
    ledger: str | None
    ledger_days: float
    gate: str | None
    max_quality_drop: float
    max_cost_rise: float
    workers: int  # router processes that share the machine, this one included
    explore: float
    explore_url: str
    golden: str | None = None

    def at(self, listen: str) -> "Job":
        """The same job at another address."""
        return msgspec.structs.replace(self, listen=listen)

    def as_argument(self) -> str:
        """The job as a command-line argument of this module."""
        return msgspec.json.encode(self).decode()


def run_job(job: Job, ready_fd: int | None = None) -> int:
    """Serve until SIGTERM or SIGINT. `ready_fd` is the supervisor's pipe: see `Serving.ready_fd`."""
    serving = Serving(
        intents=Path(job.intents),
        listen=job.listen,
        tls=TlsFiles(*map(Path, job.tls)) if job.tls else None,
        ledger=Store(job.ledger, job.ledger_days) if job.ledger is not None else None,
        workers=job.workers,
        gate=Gate(Path(job.gate), job.max_quality_drop, job.max_cost_rise) if job.gate is not None else None,
        rendered=sample_of,
        ready_fd=ready_fd,
        explore=job.explore,
        explore_url=job.explore_url,
        golden=_golden(job.golden),
    )
    run(serve(serving))
    return 0


def _golden(path: str | None) -> Callable[[], Sequence[GoldenRow]] | None:
    """Return a function that reads the golden rows. Their traffic format is only loaded if it is needed."""
    if path is None:
        return None
    from extproc.cli.golden import read_golden

    return partial(read_golden, Path(path))


def run_worker(arguments: list[str]) -> int:
    """Run the job in the first argument. A second argument is the file descriptor of the supervisor's pipe."""
    job = msgspec.json.decode(arguments[0], type=Job)
    return run_process(lambda: run_job(job, *map(int, arguments[1:])), Path(job.intents))


if __name__ == "__main__":
    sys.exit(run_worker(sys.argv[1:]))
