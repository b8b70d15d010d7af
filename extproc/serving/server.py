"""The life of one server process: build it, load the encoder, run, drain."""

import asyncio
import contextlib
import logging
import os
from pathlib import Path

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from extproc.accounting import accesslog
from extproc.accounting.keeper import Keeper
from extproc.accounting.ledger import Ledger, LogStreams
from extproc.accounting.outcome import Cost, Outcome, cost_of
from extproc.config.candidate import compile_all
from extproc.config.last_good import kept_folder
from extproc.config.load import Config, ConfigError
from extproc.config.reload import watch
from extproc.config.schema import PolicyFile
from extproc.config.signature import Signature, signature
from extproc.config.standing import Standing
from extproc.contract.names import ANSWERED_METHOD, ANSWERED_SERVICE, STATUS_METHOD, STATUS_SERVICE
from extproc.encoder.backends import load_encoder, read_choice
from extproc.encoder.batcher import Batcher, RememberingEncoder
from extproc.encoder.vector_file import storing
from extproc.routing.answer_cache import AnswerCache
from extproc.routing.asks import Asks
from extproc.routing.conversations import Conversations
from extproc.routing.exploration import Lottery
from extproc.routing.paying import Budgets
from extproc.routing.policy import Policy
from extproc.routing.router import Router
from extproc.routing.snapshot import Snapshot
from extproc.serving import wire
from extproc.serving.explorer import Explorer
from extproc.serving.exporters import set_up_exporters
from extproc.serving.files import FilesState, fall_back, first_standing
from extproc.serving.golden import follow_golden
from extproc.serving.listening import bind
from extproc.serving.memory import give_back
from extproc.serving.processor import ExternalProcessor
from extproc.serving.rollout import follow_rollout
from extproc.serving.server_parts import Loaded, Server, Serving
from extproc.serving.spending import follow_spent, settle
from extproc.serving.state import SharedState, open_state
from extproc.serving.stopping import stop_event
from extproc.serving.telemetry import Telemetry
from extproc.serving.watchdog import watch_lag
from extproc.serving.watching import watch_router
from extproc.verifying.callouts import call_out
from extproc.verifying.exchange import Verifier
from extproc.verifying.review import enqueue

log = logging.getLogger(__name__)

# Longer than two of Envoy's health checks, which are a second apart. After them Envoy opens no more streams here.
_NOTICE_S = 3.0
# Cancelled tasks end within milliseconds.
_LAST_S = 1.0


async def serve(serving: Serving) -> None:
    """Serve until SIGTERM or SIGINT. Raises ConfigError or EncoderError before it serves anything.

    The port is open from the start. The health service says NOT_SERVING until the encoder and the index are loaded.
    """
    stop = stop_event(serving.ready_fd)
    seen = signature(serving.intents)  # before the load, so that a later edit counts as an edit
    standing = first_standing(serving.intents, serving.gate, serving.rendered)
    config = standing.config
    set_up_exporters()
    server = await build(serving, config, standing)
    try:
        loaded = await _loaded(server, config, serving)
    except ConfigError as error:  # a mistake that only the encoder shows, such as an utterance of another intent
        fall_back(standing, error, serving.gate)
        loaded = await _loaded(server, standing.config, serving)
    if serving.explore:
        explore(server, loaded.router, serving)
    await announce(server, loaded.router.snapshot, serving.ready_fd if not stop.is_set() else None)
    await run(server, loaded, serving, seen, stop, standing)


async def build(serving: Serving, config: Config, standing: Standing | None = None) -> Server:
    """Open the port, with every service there and the health service at NOT_SERVING."""
    # Envoy sends whole buffered bodies, with attributes around them. The limit takes effect at the start only.
    message_bytes = 2 * config.policy.max_body_bytes
    rpc = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", message_bytes),
            ("grpc.max_send_message_length", message_bytes),
            # Envoy's keepalive pings come more often than gRPC allows by default.
            ("grpc.http2.min_ping_interval_without_data_ms", 500),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.so_reuseport", 0),
        ]
    )
    health_service = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health_service, rpc)
    await health_service.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
    telemetry = Telemetry(config.revision)
    processor = ExternalProcessor(telemetry)
    ledger = _ledger(serving, config, processor, telemetry)
    logs = LogStreams(ledger)
    processor.take_feedback(ledger.offer_signal, serving.ledger, serving.workers)
    files = FilesState(standing, processor, telemetry, health_service) if standing is not None else None
    rpc.add_generic_rpc_handlers(_handlers(processor, logs, files))
    address = bind(rpc, serving.listen, serving.tls)
    await rpc.start()
    return Server(
        rpc, health_service, processor, telemetry, ledger, logs, address, config.policy.timeouts.request_s, files
    )


def _ledger(serving: Serving, config: Config, processor: ExternalProcessor, telemetry: Telemetry) -> Ledger:
    loop = asyncio.get_running_loop()

    def tariff() -> Policy | PolicyFile:
        """The policy in force, for its prices."""
        return processor.router.snapshot.policy if processor.router is not None else config.policy

    def ended(outcome: Outcome, cost: Cost) -> None:
        """Called in the ledger's thread."""
        telemetry.ended(outcome, cost)
        if outcome.charge is not None and processor.router is not None:
            with contextlib.suppress(RuntimeError):  # the event loop has ended
                loop.call_soon_threadsafe(settle, processor.router.budgets, outcome, cost)

    return Ledger(
        accesslog.read_outcomes,
        lambda outcome: cost_of(outcome, tariff()),
        ended,
        telemetry.lost,
        serving.ledger,
    )


def _handlers(
    processor: ExternalProcessor, logs: LogStreams, files: FilesState | None
) -> tuple[grpc.GenericRpcHandler, ...]:
    process = grpc.stream_stream_rpc_method_handler(
        processor.process,
        request_deserializer=wire.decode_request,
        response_serializer=wire.encode_response,
    )
    # No deserializer: the ledger's thread decodes the bytes.
    take: grpc.RpcMethodHandler[bytes, bytes] = grpc.stream_unary_rpc_method_handler(logs.take)
    answered: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(processor.answered)
    status: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {}
    if files is not None:
        status[STATUS_METHOD] = grpc.unary_unary_rpc_method_handler(files.status)
    return (
        grpc.method_handlers_generic_handler(STATUS_SERVICE, status),
        grpc.method_handlers_generic_handler(ANSWERED_SERVICE, {ANSWERED_METHOD: answered}),
        grpc.method_handlers_generic_handler(wire.SERVICE, {wire.METHOD: process}),
        grpc.method_handlers_generic_handler(accesslog.SERVICE, {accesslog.METHOD: take}),
    )


async def _loaded(server: Server, config: Config, serving: Serving) -> Loaded:
    state = open_state(config.policy.state, server.telemetry.state_failed, serving.workers)
    server.telemetry.state_away = state.is_away
    loaded = await load(server.processor, config, serving.intents, serving.workers, state)
    assert server.processor.verifier is not None and server.processor.verifier.keeper is not None
    server.processor.verifier.keeper.checked = server.telemetry.cache_checked
    return loaded


async def load(
    processor: ExternalProcessor, config: Config, folder: Path, workers: int, state: SharedState | None = None
) -> Loaded:
    """Load the encoder, compile the index and give `processor` its router and verifier. Raises EncoderError."""
    model = config.policy.encoder.model
    log.info("encoder %s", read_choice(model) or model)
    encoder = await asyncio.to_thread(load_encoder, model, workers)
    utterances = RememberingEncoder(storing(encoder))
    snapshot = await asyncio.to_thread(compile_all, config, folder, utterances, None, kept_folder(folder))
    batcher = Batcher(encoder)
    state = state or open_state("", lambda: None, workers)
    conversations, budgets = Conversations(state.conversations), Budgets(state.spending)
    cache = AnswerCache(state.answers)
    router = processor.router = Router(snapshot, batcher, state.upgrades, conversations, budgets, cache)
    processor.asks = Asks(state.conversations) if processor.keep is not None else None
    processor.verifier = Verifier(
        lambda: router.snapshot, encoder.sentences.encode, call_out, enqueue, workers,
        rates=state.escalations, answers=state.answers,
    )  # fmt: skip
    give_back()
    return Loaded(router, batcher, utterances)


def explore(server: Server, router: Router, serving: Serving) -> None:
    """Ask a second tier on a share of the requests from now on."""
    assert server.processor.verifier is not None, "it is set with the router"
    rules, keep = server.processor.verifier.rules, server.ledger.offer_explored
    explorer = Explorer(serving.explore_url, rules, keep, server.telemetry.explored, serving.workers)
    router.lottery = Lottery(serving.explore, explorer.has_room)
    server.processor.explorer = explorer


async def announce(server: Server, snapshot: Snapshot, ready_fd: int | None) -> None:
    """Report to Envoy, the supervisor and the log that the server serves."""
    await server.health_service.set("", health_pb2.HealthCheckResponse.SERVING)
    if ready_fd is not None:
        os.write(ready_fd, b"1")
    cohorts = snapshot.policy.cohorts.values()
    log.info(
        "serving on %s: revision %s, %d cohorts (%d uncalibrated)",
        server.address,
        snapshot.revision,
        len(cohorts),
        sum(not cohort.calibrated for cohort in cohorts),
    )


async def run(
    server: Server, loaded: Loaded, serving: Serving, seen: Signature, stop: asyncio.Event, standing: Standing
) -> None:
    """Reload edits of the YAML and watch the event loop until `stop`, then drain.

    `seen` is the signature of the folder before its first load. `standing` is kept up to date.
    """
    router, telemetry = loaded.router, server.telemetry
    watch_router(telemetry, router, loaded.batcher)
    assert server.files is not None
    await server.files.start()
    reloading = asyncio.create_task(
        watch(
            serving.intents, seen, lambda: router.snapshot, loaded.utterances, router.swap, server.files.reloaded,
            serving.gate, standing,
        )
    )  # fmt: skip
    watching = asyncio.create_task(watch_lag(telemetry.lagged))
    following, keeper = [], None
    if serving.ledger is not None:
        following.append(asyncio.create_task(follow_rollout(router, serving.ledger.place)))
        following.append(asyncio.create_task(follow_spent(router, serving.ledger.place)))
        keeper = Keeper(serving.ledger.place, serving.ledger.keep_days)
        keeper.start()
    if serving.golden is not None:
        replaying = follow_golden(router, loaded.batcher, serving.golden, telemetry.replayed)
        following.append(asyncio.create_task(replaying))
    await stop.wait()
    if keeper is not None:
        await asyncio.to_thread(keeper.close)
    for task in following:
        task.cancel()
    await drain(server, loaded.batcher, reloading, watching)


async def drain(
    server: Server, batcher: Batcher, reloading: asyncio.Task[None], watching: asyncio.Task[None]
) -> None:
    """Finish open streams, take the last outcomes, and stop. The order of these steps matters."""
    log.info("draining")
    server.processor.stopping = True
    reloading.cancel()
    if server.processor.explorer is not None:
        server.processor.explorer.close()
    await server.health_service.enter_graceful_shutdown()
    if server.logs.connected:
        # Envoy may open streams until a health check fails. A refused stream would cost a client its answer.
        await asyncio.sleep(_NOTICE_S)
    # The verifier stays in the path of a judged stream until its end. So open streams get the time of a request.
    stopping = asyncio.create_task(server.rpc.stop(server.grace_s))
    await server.logs.drain()
    await stopping
    server.ledger.close()
    watching.cancel()
    batcher.close()
    # gRPC has cancelled the streams that outlived the grace time. It logs an error for each that has not ended when
    # the event loop ends.
    await asyncio.wait(asyncio.all_tasks() - {asyncio.current_task()} or {watching}, timeout=_LAST_S)
    log.info("stopped")
