"""Several workers: Envoy uses each of them, a dead one is replaced, and the supervisor reports their health."""

import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from extproc.demo.processes import free_port_range
from extproc.demo.sample_upstream import SampleUpstreams
from extproc.demo.stack import Stack, running
from tests.e2e.traffic import EXTRACT, MODELS, Flow, ask, eventually


@pytest.fixture(scope="module")
def pair(small_intents: Path):
    with running(small_intents, workers=2) as stack:
        yield stack


def children(stack: Stack) -> list[int]:
    """Return the process ids of the workers."""
    assert stack.router is not None
    command = ["ps", "-ww", "-o", "pid=,args=", "--ppid", str(stack.router.pid)]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [int(line.split()[0]) for line in listed.splitlines() if "extproc.cli.worker" in line]


def serving(port: int) -> bool:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        try:
            reply = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=2)
        except grpc.RpcError:
            return False
        return reply.status == health_pb2.HealthCheckResponse.SERVING


def healthy(stack: Stack) -> int:
    return stack.stats(r"cluster.extproc.membership_healthy$")["cluster.extproc.membership_healthy"]


def requests_to_each(stack: Stack) -> list[int]:
    """Return the number of exchanges of each worker, as Envoy counts them."""
    with urllib.request.urlopen(f"{stack.admin_url}/clusters", timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    parts = [line.split("::") for line in lines if line.startswith("extproc::127.0.0.1")]
    return [int(part[3]) for part in parts if part[2] == "rq_total"]


def test_envoy_balances_over_all_workers(pair):
    """Each worker is an endpoint, and each decides some of the requests."""
    eventually(lambda: healthy(pair) == 2, "both workers serve")
    for number in range(20):
        assert ask(pair.port, f"{EXTRACT} Copy {number}.").headers["x-router-reason"] != "fail_open"
    counts = requests_to_each(pair)
    assert len(counts) == 2 and min(counts) > 0, counts


def test_a_worker_that_is_killed_is_started_again_while_the_other_serves(pair):
    """No request is lost during that time, and the health of all stays SERVING."""
    eventually(lambda: healthy(pair) == 2, "both workers serve")
    first, second = children(pair)
    with Flow(pair.port, EXTRACT) as flow:
        flow.flows_on()
        os.kill(first, signal.SIGKILL)
        flow.flows_on(20)
        assert serving(pair.router_port - 1)
        eventually(lambda: len(children(pair)) == 2 and healthy(pair) == 2, "a new worker serves")
        flow.flows_on()
    assert flow.failures() == []
    assert second in children(pair) and first not in children(pair)
    assert "exited with status -9: restarting it" in pair.log("router.log")


def test_a_mistake_in_the_intents_ends_all_with_its_message(tmp_path):
    """A restart would not help, so the supervisor exits with 2, like a single worker."""
    (tmp_path / "policy.yaml").write_text("version: 1\n")
    done = subprocess.run(
        [sys.executable, "-m", "extproc", "serve", "--intents", str(tmp_path), "--workers", "2",
         "--listen", f"127.0.0.1:{free_port_range(3)[1]}"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2 and "policy.yaml:" in done.stderr


def test_a_stopped_supervisor_leaves_no_worker(small_intents):
    with running(small_intents, workers=2) as stack:
        pids = children(stack)
        assert len(pids) == 2
        stack.stop()
        logged = stack.log("router.log")
        assert "restarting it" not in logged and "ERROR" not in logged
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_a_killed_supervisor_leaves_no_worker(small_intents, tmp_path):
    """The workers notice the end of the supervisor, log it, and end as on SIGTERM."""

    def alive(pid: int) -> bool:
        state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout
        return state.strip() != "" and not state.startswith("Z")  # ended, even if its parent has not waited for it

    with SampleUpstreams(MODELS) as upstreams:
        stack = Stack(small_intents, tmp_path, upstreams, workers=2)
        pids: list[int] = []
        try:
            stack.start_router()
            pids = children(stack)
            assert len(pids) == 2
            assert stack.router is not None
            stack.router.kill()
            eventually(lambda: not any(alive(pid) for pid in pids), "the workers have ended", 60)
        finally:
            stack.stop()
            for pid in filter(alive, pids):
                os.kill(pid, signal.SIGKILL)
    assert stack.log("router.log").count("the supervisor process has ended") == 2
