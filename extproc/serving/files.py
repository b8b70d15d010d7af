"""Which files a server process serves, and who learns of it: status, health, metrics."""

import asyncio
import logging
from pathlib import Path
from typing import Any

import grpc
import msgspec
from grpc_health.v1 import health, health_pb2

from extproc.config.changes import Rendered
from extproc.config.gate import Gate
from extproc.config.last_good import keep, kept_folder
from extproc.config.load import Config, ConfigError, load_config
from extproc.config.standing import Refusal, Standing, Status
from extproc.contract.names import FILES_HEALTH, STATUS_METHOD, STATUS_SERVICE
from extproc.serving.dialing import DialTls, dial
from extproc.serving.processor import ExternalProcessor
from extproc.serving.telemetry import Telemetry

log = logging.getLogger(__name__)

_TIMEOUT_S = 5.0
_REMEDY = "give the port of `extproc serve`, and --tls-cert, --tls-key and --tls-ca if that has --tls-cert"
_TLS_REMEDY = (
    "give the port of `extproc serve --tls-cert`, a client certificate that its --tls-client-ca signed, the CA of "
    "the router's certificate in --tls-ca, and the DNS name in that certificate in --tls-name"
)
_LOADING = "the router is still loading its encoder"


def read_config(folder: Path, gate: Gate | None = None) -> Config:
    """Load the YAML. With a gate, it is a copy of it, which the gate later compares with a reload."""
    return _loaded(folder, folder, gate)


def _loaded(folder: Path, copy_of: Path, gate: Gate | None) -> Config:
    if gate is None:
        return load_config(folder, copy_of=copy_of)
    copy = gate.copy(folder, copy_of)
    config = load_config(copy, copy_of=copy_of)
    gate.serves(copy)
    return config


def first_standing(folder: Path, gate: Gate | None = None, rendered: Rendered | None = None) -> Standing:
    """Load the YAML, or the last good configuration if the YAML has mistakes. Raises ConfigError without one."""
    try:
        return Standing(folder, read_config(folder, gate), rendered=rendered)
    except ConfigError as error:
        return Standing(folder, _last_good(folder, error, gate), _refusal(error), rendered)


def fall_back(standing: Standing, error: ConfigError, gate: Gate | None = None) -> None:
    """Serve the last good configuration after a mistake that the encoder showed. Raises ConfigError without one."""
    if standing.refusal is not None:  # it is the last good one that has the mistake
        raise error
    config = _last_good(standing.folder, error, gate)
    if config.revision == standing.config.revision:
        raise error
    standing.begin(config, _refusal(error))


def _refusal(error: ConfigError) -> Refusal:
    return Refusal.now("invalid", str(error))


def _last_good(folder: Path, error: ConfigError, gate: Gate | None) -> Config:
    kept = kept_folder(folder)
    if kept is None:
        raise error
    try:
        config = _loaded(kept, folder, gate)
    except ConfigError:  # of another release, perhaps
        raise error from None
    log.error(
        "the files in %s are refused, so the last good revision %s serves:\n%s", folder, config.revision, error
    )
    return config


class FilesState:
    """Publishes what serves, against the files on disk."""

    def __init__(
        self,
        standing: Standing,
        processor: ExternalProcessor,
        telemetry: Telemetry,
        health_service: health.aio.HealthServicer,
    ) -> None:
        self._standing, self._processor, self._telemetry = standing, processor, telemetry
        self._health = health_service
        self._tasks: set[asyncio.Task[None]] = set()
        telemetry.refused = lambda: standing.refusal is not None

    async def start(self) -> None:
        """Publish the health of the files, and keep them as the last good ones if they serve."""
        await self._publish()
        if self._standing.refusal is None:
            router = self._processor.router
            refused = router.snapshot.refused_apps if router is not None else ()
            await asyncio.to_thread(keep, self._standing.folder, self._standing.config, refused)

    def reloaded(self, outcome: str, revision: str) -> None:
        """Count a reload, and publish its outcome."""
        self._telemetry.reloaded(outcome, revision)
        task = asyncio.get_running_loop().create_task(self._publish())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _publish(self) -> None:
        health_of = health_pb2.HealthCheckResponse
        word = health_of.SERVING if self._standing.refusal is None else health_of.NOT_SERVING
        await self._health.set(FILES_HEALTH, word)

    async def status(self, _message: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        """Answer `extproc status`. The router has to have loaded its encoder."""
        if self._processor.router is None:
            await context.abort(grpc.StatusCode.UNAVAILABLE, _LOADING)
        router = self._processor.router
        caches = router.cache.checks_of(router.snapshot) if router.cache is not None else None
        return msgspec.json.encode(self._standing.status(router.snapshot, caches))


def ask_status(address: str, tls: DialTls | None = None, remedy: str = "") -> Status:
    """Ask the router at `address` ("host:port" or "unix:///path"). Raises OSError with a remedy.

    `remedy` takes the place of the one for `extproc status`, if the router does not answer.
    """
    with dial(address, tls) as channel:
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(f"/{STATUS_SERVICE}/{STATUS_METHOD}")
        try:
            return msgspec.json.decode(call(b"", timeout=_TIMEOUT_S), type=Status)
        except grpc.RpcError as error:
            code = error.code()
            if code is grpc.StatusCode.UNIMPLEMENTED:
                what = "is not a router of this release: give the port of `extproc serve`"
                raise OSError(f"{address} {what}") from None
            if error.details() == _LOADING:
                raise OSError(f"{address}: {_LOADING}, so ask again in a few seconds") from None
            what = f"{address} does not answer ({code.name})"
            raise OSError(f"{what}: {remedy or (_REMEDY if tls is None else _TLS_REMEDY)}") from None
        except msgspec.MsgspecError as error:
            what = f"{address} is a router of another release"
            raise OSError(f"{what}: ask it with `extproc status` of that release ({error})") from None
