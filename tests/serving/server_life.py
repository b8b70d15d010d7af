"""The life of a server process, step by step: build, load, announce, run, drain."""

import asyncio
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from unittest import mock

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from extproc.accounting.outcome import Priced
from extproc.config import reload as reload_module
from extproc.config.last_good import kept_folder
from extproc.config.load import ConfigError, load_config
from extproc.config.standing import Standing
from extproc.encoder.batcher import Batcher
from extproc.encoder.features import FeatureEncoder
from extproc.envoy.bootstrap import sample_of
from extproc.pb import ext_proc_pb2 as pb
from extproc.serving import server as serving_module
from extproc.serving import wire
from extproc.serving.event_loop import run
from extproc.serving.files import ask_status, read_config
from extproc.serving.health import refuses_files, serves
from extproc.serving.server import announce, build, drain, load, serve
from extproc.serving.server_parts import Server, Serving
from extproc.serving.state import SharedState, open_state
from extproc.serving.stopping import stop_event
from tests.conftest import WordEncoder

STATUS = health_pb2.HealthCheckResponse
SERVING, NOT_SERVING = STATUS.SERVING, STATUS.NOT_SERVING
POLICY = """
version: 1
default_tier: large
retarget: [auto]
encoder: {model: words, deadline_ms: 5000}
tiers:
  - {name: small, model: small-1, url: "http://127.0.0.1:1", context: 8000, price: {input: 1, output: 2}}
  - {name: large, model: large-1, url: "http://127.0.0.1:2", context: 8000, price: {input: 5, output: 9}}
"""
INTENT = """
intent: billing
tier: small
floor: 0.05
utterances:
  - why is my invoice higher this month
  - explain this charge on my bill
  - when is my payment due
"""


class Sink:
    """Keeps outcomes in a list."""

    def __init__(self) -> None:
        self.rows: list[Priced] = []
        self.place, self.keep_days = Path("/nowhere"), 90.0
        self.closed = False

    def open(self) -> None: ...

    def add(self, rows: Sequence[Priced]) -> None:
        self.rows += rows

    def close(self) -> None:
        self.closed = True


@pytest.fixture(autouse=True)
def word_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server loads an encoder that needs no model."""
    monkeypatch.setattr(serving_module, "load_encoder", lambda _model, _workers: FeatureEncoder(WordEncoder()))


@pytest.fixture
def serving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Serving:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    intents = tmp_path / "intents"
    intents.mkdir()
    (intents / "policy.yaml").write_text(POLICY)
    (intents / "billing.yaml").write_text(INTENT)
    return Serving(intents, f"unix://{tmp_path}/router.sock")


async def health_of(address: str) -> int:
    async with grpc.aio.insecure_channel(address) as channel:
        reply = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=30)
        return int(reply.status)


async def replies_to(address: str, *messages: pb.ProcessingRequest) -> list[pb.ProcessingResponse]:
    """Return the replies to one ext_proc stream with these messages.

    Without a message the client keeps the stream open. Raises grpc.RpcError if the stream ends with an error.
    """

    async def sent() -> AsyncIterator[pb.ProcessingRequest]:
        for message in messages:
            yield message
        if not messages:
            await asyncio.Event().wait()

    async with grpc.aio.insecure_channel(address) as channel:
        process = channel.stream_stream(
            f"/{wire.SERVICE}/{wire.METHOD}",
            request_serializer=pb.ProcessingRequest.SerializeToString,
            response_deserializer=pb.ProcessingResponse.FromString,
        )
        return [reply async for reply in process(sent(), timeout=30)]


def with_server(serving: Serving, steps: Callable[[Server], Awaitable[None]]) -> None:
    """Build the server, take `steps`, and stop it."""

    async def play() -> None:
        config = load_config(serving.intents)
        server = await build(serving, config, Standing(serving.intents, config))
        try:
            await steps(server)
        finally:
            await server.rpc.stop(0)
            server.ledger.close()

    run(play())


def test_a_built_server_is_open_but_not_serving(serving: Serving) -> None:
    """Streams end without an answer and without an error, so that Envoy uses the default tier."""

    async def steps(server: Server) -> None:
        assert server.address == serving.listen
        assert await health_of(serving.listen) == NOT_SERVING
        assert await replies_to(serving.listen) == []
        with pytest.raises(OSError, match="the router is still loading its encoder, so ask again in a few seconds"):
            await asyncio.to_thread(ask_status, serving.listen)

    with_server(serving, steps)


def test_a_loaded_server_answers_before_it_is_announced(serving: Serving) -> None:
    """The health service says SERVING, and the supervisor gets its byte, only when streams get answers."""
    read, write = os.pipe()
    chat = b'{"model": "auto", "messages": [{"role": "user", "content": "explain this charge on my bill"}]}'
    body = pb.ProcessingRequest(request_body=pb.HttpBody(body=chat, end_of_stream=True))
    body.attributes["envoy.filters.http.ext_proc"].update({"request.path": "/v1/chat/completions"})

    async def steps(server: Server) -> None:
        loaded = await load(server.processor, load_config(serving.intents), serving.intents, 1)
        assert await health_of(serving.listen) == NOT_SERVING
        (reply,) = await replies_to(serving.listen, body)
        decision = reply.dynamic_metadata.fields["semantic_router"].struct_value
        assert (decision["cohort"], decision["tier"]) == ("billing", "small")
        await announce(server, loaded.router.snapshot, write)
        assert await health_of(serving.listen) == SERVING
        assert os.read(read, 2) == b"1"
        loaded.batcher.close()

    try:
        with_server(serving, steps)
    finally:
        os.close(read)
        os.close(write)


def test_it_serves_until_sigterm(serving: Serving, caplog: pytest.LogCaptureFixture) -> None:
    """The log shows the steps of its life, and the last outcomes are in the ledger when it ends."""
    sink = Sink()
    read, write = os.pipe()
    with_pipe = Serving(serving.intents, serving.listen, ledger=sink, ready_fd=write)  # type: ignore[arg-type]

    async def play() -> None:
        running = asyncio.create_task(serve(with_pipe))
        assert await asyncio.to_thread(os.read, read, 1) == b"1"
        assert await health_of(serving.listen) == SERVING
        assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL  # otherwise the next line would end pytest
        os.kill(os.getpid(), signal.SIGTERM)
        await running

    with caplog.at_level(logging.INFO, "extproc.serving.server"):
        run(play())
    os.close(read)
    os.close(write)
    assert sink.closed
    lines = [r.getMessage() for r in caplog.records if r.name == "extproc.serving.server"]
    assert [line.split()[0] for line in lines] == ["encoder", "serving", "draining", "stopped"]
    revision = load_config(serving.intents).revision
    assert lines[1] == f"serving on {serving.listen}: revision {revision}, 1 cohorts (1 uncalibrated)"


def test_a_worker_stops_when_its_supervisor_is_gone(caplog: pytest.LogCaptureFixture) -> None:
    """A supervisor that was killed closes its end of the pipe."""
    read, write = os.pipe()

    async def play() -> None:
        stop = stop_event(write)
        await asyncio.sleep(0)
        assert not stop.is_set()
        os.close(read)
        await asyncio.wait_for(stop.wait(), 30)

    with caplog.at_level(logging.ERROR, "extproc"):
        run(play())
    os.close(write)
    assert [record.getMessage() for record in caplog.records] == [
        "stopping, because the supervisor process has ended and no longer restarts or stops this worker"
    ]


def test_a_mistake_in_the_yaml_is_raised_before_the_port_opens(serving: Serving) -> None:
    (serving.intents / "billing.yaml").write_text(INTENT.replace("small", "smal"))
    with pytest.raises(ConfigError, match="smal"):
        run(serve(serving))
    assert not Path(serving.listen.removeprefix("unix://")).exists()


# A mistake in the text, and one that only the encoder shows.
MISTAKES = {"smal": ("tier: small", "tier: smal"), "floor": ("floor: 0.05", "floor: 0.99")}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_at_the_start_serves_the_last_good_files(
    serving: Serving, mistake: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Log, health and status say so, until the files are mended. Then status says what Envoy lacks."""
    monkeypatch.setattr(reload_module, "_INTERVAL_S", 0.01)
    with_envoy = Serving(serving.intents, serving.listen, rendered=sample_of)
    billing, policy = serving.intents / "billing.yaml", serving.intents / "policy.yaml"
    revision = load_config(serving.intents).revision

    async def lived(steps: Callable[[], None]) -> None:
        running = asyncio.create_task(serve(with_envoy))
        await until(lambda: serves(serving.listen), running)
        await asyncio.to_thread(steps)
        os.kill(os.getpid(), signal.SIGTERM)
        await running

    def first() -> None:
        eventually(lambda: kept_folder(serving.intents) is not None)
        assert not refuses_files(serving.listen)
        status = ask_status(serving.listen)
        assert (status.revision, status.refusal, status.lacks) == (revision, None, [])

    def second() -> None:
        assert refuses_files(serving.listen)
        status = ask_status(serving.listen)
        assert (status.revision, status.last_good) == (revision, True)
        assert status.refusal is not None and "billing.yaml:" in status.refusal.message
        assert opened[-1] == "", "the store of the last good files"
        policy.write_text(POLICY)
        billing.write_text(INTENT)
        eventually(lambda: not refuses_files(serving.listen))
        policy.write_text(POLICY.replace(":1", ":9"))
        eventually(lambda: ask_status(serving.listen).revision != revision)
        eventually(lambda: ask_status(serving.listen).lacks != [])
        status = ask_status(serving.listen)
        assert (status.last_good, status.refusal, status.rendered_from) == (False, None, revision)
        assert status.lacks == ["policy.yaml:7 url: small.url http://127.0.0.1:1 -> http://127.0.0.1:9"]

    run(lived(first))
    billing.write_text(INTENT.replace(*MISTAKES[mistake]))
    policy.write_text(POLICY + "state: redis://127.0.0.1:1\n")
    opened: list[str] = []

    def opening(url: str, *_: object) -> SharedState:
        opened.append(url)
        return open_state("", lambda: None)

    monkeypatch.setattr(serving_module, "open_state", opening)
    with caplog.at_level(logging.INFO, "extproc"):
        run(lived(second))
    assert f"are refused, so the last good revision {revision} serves:\nbilling.yaml:" in caplog.text
    assert (
        "changes: small.url http://127.0.0.1:1 -> http://127.0.0.1:9; needs Envoy: policy.yaml:7 url" in caplog.text
    )


APP = """
apps:
  support: {hosts: [support.example], intents: support, default_tier: small}
"""
REFUNDS = INTENT.replace("billing", "refunds").replace("bill", "order").replace("tier: small", "tier: large")


@pytest.mark.parametrize("policy_too", [False, True], ids=["in the app", "in the policy, too"])
def test_a_mistake_in_an_app_at_the_start_serves_its_last_good_files(
    serving: Serving, policy_too: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """A restart with a broken edit of an app's intents is like a reload of it. Later restarts, too."""
    support, policy = serving.intents / "support", serving.intents / "policy.yaml"
    support.mkdir()
    (support / "refunds.yaml").write_text(REFUNDS)
    policy.write_text(POLICY + APP)
    tiers: list[str] = []

    async def lived() -> None:
        running = asyncio.create_task(serve(serving))
        await until(lambda: serves(serving.listen), running)
        ask = b'{"model":"auto","messages":[{"role":"user","content":"explain this charge on my order"}]}'
        request = pb.ProcessingRequest(request_headers=pb.HttpHeaders(end_of_stream=False))
        for key, value in ((":path", "/v1/chat/completions"), (":authority", "support.example")):
            request.request_headers.headers.headers.add(key=key, raw_value=value.encode())
        body = pb.ProcessingRequest(request_body=pb.HttpBody(body=ask, end_of_stream=True))
        replies = await replies_to(serving.listen, request, body)
        tiers.append(next(tier for tier in ("large-1", "small-1") if tier in str(replies)))
        status = await asyncio.to_thread(ask_status, serving.listen)
        assert bool(status.apps) is (len(tiers) > 1 and not policy_too)
        expected = "support (its earlier intents serve): support/refunds.yaml:"
        assert all(line.startswith(expected) for line in status.apps)
        await until(lambda: kept_folder(serving.intents) is not None, running)
        os.kill(os.getpid(), signal.SIGTERM)
        await running

    run(lived())
    (support / "refunds.yaml").write_text(REFUNDS.replace("utterances", "uterances"))
    if policy_too:
        policy.write_text(policy.read_text().replace("default_tier: large", "default_tier: larg"))
    for _ in range(2):
        caplog.clear()
        with caplog.at_level(logging.INFO, "extproc"):
            run(lived())
        assert ("app support keeps its earlier intents" in caplog.text) is not policy_too
        assert ("so the last good revision" in caplog.text) is policy_too
        assert "app support is off" not in caplog.text
    assert tiers == ["large-1"] * 3


async def until(true: Callable[[], bool], running: "asyncio.Task[None]") -> None:
    """Wait in a thread until `true`. Raises the error of the server if it ends before."""
    for _ in range(600):
        if running.done():
            running.result()
        if await asyncio.to_thread(true):
            return
        await asyncio.sleep(0.05)
    raise AssertionError("it did not become true")


def eventually(true: Callable[[], bool]) -> None:
    for _ in range(600):
        if true():
            return
        time.sleep(0.05)
    raise AssertionError("it did not become true")


def test_with_a_gate_the_first_configuration_is_a_copy(serving: Serving, tmp_path: Path) -> None:
    """The gate compares a reload with the copy. An edit in between does not change it."""
    copy = tmp_path / "copy"
    gate = mock.Mock()

    def copied(folder: Path, copy_of: Path) -> Path:
        folder.rename(copy)
        return copy

    gate.copy.side_effect = copied
    config = read_config(serving.intents, gate)
    assert [intent.intent for intent in config.intents] == ["billing"]
    assert gate.mock_calls == [mock.call.copy(serving.intents, serving.intents), mock.call.serves(copy)]


@pytest.mark.parametrize("connected", [True, False], ids=["an Envoy is connected", "no Envoy"])
def test_a_drain_takes_its_steps_in_order(monkeypatch: pytest.MonkeyPatch, connected: bool) -> None:
    """Second requests are given up. Then health, open streams together with the last batch, ledger and encoder.

    Only a connected Envoy is given the time to notice.
    """
    steps = mock.Mock()
    steps.health.enter_graceful_shutdown = mock.AsyncMock()
    steps.rpc.stop, steps.logs.drain = mock.AsyncMock(), mock.AsyncMock()
    steps.logs.connected = connected
    steps.sleep = mock.AsyncMock()
    monkeypatch.setattr(asyncio, "sleep", steps.sleep)
    server = Server(steps.rpc, steps.health, steps.processor, steps.telemetry, steps.ledger, steps.logs, "", 30.0)

    async def play() -> None:
        tasks = [asyncio.create_task(asyncio.Event().wait()) for _ in range(2)]
        await drain(server, steps.batcher, *tasks)  # type: ignore[arg-type]
        assert all(task.cancelled() for task in tasks)

    run(play())
    assert steps.processor.stopping is True
    first, *called = [name for name, *_ in steps.mock_calls]
    assert first == "processor.explorer.close"
    notice = ["sleep"] if connected else []
    assert called[: 1 + len(notice)] == ["health.enter_graceful_shutdown", *notice]
    assert set(called[1 + len(notice) : 3 + len(notice)]) == {"rpc.stop", "logs.drain"}
    assert called[3 + len(notice) :] == ["ledger.close", "batcher.close"]
    steps.rpc.stop.assert_called_once_with(30.0)


def test_the_batcher_is_free_again_after_a_stop(serving: Serving) -> None:
    """Its thread would keep the process from ending."""

    async def steps(server: Server) -> None:
        loaded = await load(server.processor, load_config(serving.intents), serving.intents, 1)
        assert isinstance(loaded.batcher, Batcher)
        never = asyncio.Event()
        tasks = [asyncio.create_task(never.wait()) for _ in range(2)]
        await drain(server, loaded.batcher, *tasks)  # type: ignore[arg-type]
        with pytest.raises(RuntimeError):
            loaded.batcher._pool.submit(print)

    with_server(serving, steps)
