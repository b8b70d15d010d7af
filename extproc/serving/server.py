"""The gRPC server: its life from start to drain, and the loop that answers one ext_proc stream."""

import asyncio
import logging
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import msgspec
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from extproc.accounting import accesslog
from extproc.accounting.ledger import Ledger, LogStreams
from extproc.accounting.outcome import cost_of
from extproc.accounting.store import Store
from extproc.config.compile import compile_snapshot
from extproc.config.gate import Gate
from extproc.config.load import PolicyFile, load_config
from extproc.config.reload import signature, watch
from extproc.contract.names import MAX_BODY_BYTES, HeaderName
from extproc.contract.words import Role
from extproc.encoder.backends import load_encoder, read_choice
from extproc.encoder.batcher import Batcher, RememberingEncoder
from extproc.pb import ext_proc_pb2 as pb
from extproc.routing.exchange import Routed, Router, RouterExchange
from extproc.routing.limits import Rates
from extproc.routing.policy import Policy, Snapshot
from extproc.serving import wire
from extproc.serving.exporters import set_up_exporters
from extproc.serving.listening import TlsFiles, bind
from extproc.serving.telemetry import Telemetry
from extproc.serving.watchdog import watch_lag
from extproc.verifying.callouts import call_out
from extproc.verifying.exchange import Ruling, Verifier, VerifierExchange
from extproc.verifying.rescue import RescueExchange
from extproc.verifying.review import enqueue

log = logging.getLogger(__name__)

# Envoy sends whole buffered bodies, with attributes around them.
_MAX_MESSAGE_BYTES = 2 * MAX_BODY_BYTES
# Two of Envoy's health checks, a second apart, and some: then it opens no stream to us any more.
_NOTICE_S = 3.0
# What is cancelled takes milliseconds to end.
_LAST_S = 1.0


class ExternalProcessor:
    """Answers Envoy's ext_proc streams."""

    def __init__(self, telemetry: Telemetry) -> None:
        # Both until the encoder and the index are loaded:
        self.router: Router | None = None
        self.verifier: Verifier | None = None
        self.stopping = False
        self._telemetry = telemetry

    async def process(
        self, messages: AsyncIterator[pb.ProcessingRequest], context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[pb.ProcessingResponse]:
        """One stream is one exchange: answer its messages in order until Envoy ends it."""
        if self.router is None or self.verifier is None:
            return  # a clean close: Envoy goes on without us, to the default tier
        metadata = {str(k): str(v) for k, v in context.invocation_metadata() or ()}
        exchange: RouterExchange | VerifierExchange | RescueExchange | None = None
        reported: object = None
        try:
            async for message in messages:
                if exchange is None:
                    opening = wire.read_opening(message)
                    match metadata.get(HeaderName.ROLE):
                        case Role.VERIFIER:
                            exchange = VerifierExchange(self.verifier, opening)
                        case Role.RESCUE:
                            exchange = RescueExchange(opening)
                        case _:
                            exchange = RouterExchange(self.router, opening)
                event = wire.read_event(message)
                if event is None:
                    continue  # a kind newer than we are; Envoy takes silence as "go on" at its time-out
                for reply in await exchange.answer(event):
                    yield wire.write_reply(reply)
                found = exchange.routed if isinstance(exchange, RouterExchange) else exchange.ruling
                if found is not None and found is not reported:
                    reported = found
                    self._report(found, metadata)
        except Exception as error:
            if self.stopping and isinstance(error, grpc.aio.BaseError):
                return  # gRPC's own: the stream was open, with nothing left to answer, when the server stopped
            # Whatever went wrong, Envoy fails open and traffic goes on.
            log.exception("an exchange failed; Envoy sends it to the default tier")
            self._telemetry.failed(metadata, error)
            await context.abort(grpc.StatusCode.INTERNAL, type(error).__name__)

    def _report(self, found: Routed | Ruling, metadata: dict[str, str]) -> None:
        if isinstance(found, Ruling):
            self._telemetry.ruled(
                metadata, found.cohort, found.attempt, found.word, found.verdict.reason, found.bound,
                found.verdict.unavailable,
            )  # fmt: skip
            return
        self._telemetry.decided(metadata, found.record, found.stages, found.request)


class Serving(msgspec.Struct, frozen=True):
    """What one server process is to do."""

    intents: Path
    listen: str  # "host:port" or "unix:///path"
    tls: TlsFiles | None = None
    ledger: Store | None = None  # where outcomes are kept
    workers: int = 1  # that share the machine, this one included
    gate: Gate | None = None  # what a reload has to pass
    # A byte there tells the supervisor that we serve; and the other end of it closes with the supervisor.
    ready_fd: int | None = None


async def serve(ours: Serving) -> None:
    """Serve until SIGTERM or SIGINT. Raises ConfigError or EncoderError before anything is served.

    The port is open from the start, and the health service says NOT_SERVING until encoder and index are there.
    """
    stop = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, stop.set)
    if ours.ready_fd is not None:
        _stop_without(ours.ready_fd, stop)
    seen = signature(ours.intents)  # before the load: an edit meanwhile is then seen as one
    copy = ours.gate.copy(ours.intents) if ours.gate is not None else None
    config = load_config(copy or ours.intents, copy_of=ours.intents)
    if ours.gate is not None and copy is not None:
        ours.gate.serves(copy)
    set_up_exporters()
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
            # Envoy's keepalive pings come more often than gRPC's default forgives.
            ("grpc.http2.min_ping_interval_without_data_ms", 500),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.so_reuseport", 0),
        ]
    )
    health_service = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health_service, server)
    await health_service.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
    telemetry = Telemetry(config.revision)
    processor = ExternalProcessor(telemetry)

    def tariff() -> Policy | PolicyFile:
        return processor.router.snapshot.policy if processor.router is not None else config.policy

    ledger = Ledger(
        accesslog.read_outcomes, lambda o: cost_of(o, tariff()), telemetry.ended, telemetry.lost, ours.ledger
    )
    logs = LogStreams(ledger)
    server.add_generic_rpc_handlers(_handlers(processor, logs))
    where = bind(server, ours.listen, ours.tls)
    await server.start()
    model = config.policy.encoder.model
    log.info("encoder %s", read_choice(model) or model)
    encoder = await asyncio.to_thread(load_encoder, model, ours.workers)
    utterances = RememberingEncoder(encoder)
    snapshot: Snapshot = await asyncio.to_thread(compile_snapshot, config, utterances)
    batcher = Batcher(encoder)
    router = processor.router = Router(snapshot, batcher, Rates(ours.workers))
    processor.verifier = Verifier(
        lambda: router.snapshot, encoder.sentences.encode, call_out, enqueue, ours.workers
    )
    await health_service.set("", health_pb2.HealthCheckResponse.SERVING)
    if ours.ready_fd is not None and not stop.is_set():
        os.write(ours.ready_fd, b"1")
    telemetry.shares = lambda: router.snapshot.policy.escalation_shares
    uncalibrated = sum(not cohort.calibrated for cohort in snapshot.policy.cohorts.values())
    log.info(
        "serving on %s: revision %s, %d cohorts (%d uncalibrated)",
        where,
        snapshot.revision,
        len(snapshot.policy.cohorts),
        uncalibrated,
    )
    reloading = asyncio.create_task(
        watch(ours.intents, seen, lambda: router.snapshot, utterances, router.swap, telemetry.reloaded, ours.gate)
    )
    watching = asyncio.create_task(watch_lag(telemetry.lagged))
    await stop.wait()
    log.info("draining")
    processor.stopping = True
    reloading.cancel()
    await health_service.enter_graceful_shutdown()
    if logs.connected:  # it may open a stream until it has heard: one that we refused then would be an answer lost
        await asyncio.sleep(_NOTICE_S)
    # The verifier stays in a judged stream's path to its end: those in flight get as long as a request may take.
    stopping = asyncio.create_task(server.stop(config.policy.timeouts.request_s))
    await logs.drain()
    await stopping
    ledger.close()
    watching.cancel()
    batcher.close()
    # gRPC has cancelled the streams that outlived their time; those that have not ended when the loop does, it logs
    # as errors.
    await asyncio.wait(asyncio.all_tasks() - {asyncio.current_task()} or {watching}, timeout=_LAST_S)
    log.info("stopped")


def _stop_without(supervisor: int, stop: asyncio.Event) -> None:
    """Stop as on SIGTERM when nobody reads the pipe any more: a supervisor that was killed could not tell us."""
    loop = asyncio.get_running_loop()

    def gone() -> None:
        loop.remove_reader(supervisor)
        log.error("the supervisor is gone, and nobody would restart or stop this worker: it ends")
        stop.set()

    loop.add_reader(supervisor, gone)  # nothing is ever read there: it is the error that wakes us


def _handlers(processor: ExternalProcessor, logs: LogStreams) -> tuple[grpc.GenericRpcHandler, ...]:
    process = grpc.stream_stream_rpc_method_handler(
        processor.process,
        request_deserializer=wire.decode_request,
        response_serializer=wire.encode_response,
    )
    # Bytes: the ledger's thread decodes them.
    take: grpc.RpcMethodHandler[bytes, bytes] = grpc.stream_unary_rpc_method_handler(logs.take)
    return (
        grpc.method_handlers_generic_handler(wire.SERVICE, {wire.METHOD: process}),
        grpc.method_handlers_generic_handler(accesslog.SERVICE, {accesslog.METHOD: take}),
    )
