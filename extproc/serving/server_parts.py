"""The task of a server process, and the parts that it is made of."""

from collections.abc import Callable, Sequence
from pathlib import Path

import grpc
import msgspec
from grpc_health.v1 import health

from extproc.accounting.ledger import Ledger, LogStreams
from extproc.accounting.store import Store
from extproc.config.changes import Rendered
from extproc.config.gate import Gate
from extproc.encoder.batcher import Batcher, RememberingEncoder
from extproc.routing.router import Router
from extproc.serving.files import FilesState
from extproc.serving.golden import GoldenRow
from extproc.serving.listening import TlsFiles
from extproc.serving.processor import ExternalProcessor
from extproc.serving.telemetry import Telemetry


class Serving(msgspec.Struct, frozen=True):
    """The task of one server process."""

    intents: Path
    listen: str  # "host:port" or "unix:///path"
    tls: TlsFiles | None = None
    ledger: Store | None = None  # where outcomes are kept
    workers: int = 1  # processes that share the machine, including this one
    explore: float = 0.0  # share of the requests that a second tier answers, too
    explore_url: str = ""  # Envoy's, for these second requests
    golden: Callable[[], Sequence[GoldenRow]] | None = None  # reads rows whose decisions must not flip
    gate: Gate | None = None  # every reload has to pass it
    rendered: Rendered | None = None  # Envoy's part of a configuration. Without it no change is known to need Envoy
    # The supervisor's pipe. The process writes a byte when it serves, and stops when the supervisor closes its end.
    ready_fd: int | None = None


class Server(msgspec.Struct, frozen=True):
    """A server process whose port is open."""

    rpc: grpc.aio.Server
    health_service: health.aio.HealthServicer
    processor: ExternalProcessor
    telemetry: Telemetry
    ledger: Ledger
    logs: LogStreams
    address: str  # for the log
    grace_s: float  # how long a stop waits for open streams
    files: FilesState | None = None  # what serves, against the files on disk


class Loaded(msgspec.Struct, frozen=True):
    """The parts that need the encoder, which takes seconds to load."""

    router: Router
    batcher: Batcher
    utterances: RememberingEncoder  # encodes only new utterances at a reload
