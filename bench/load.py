"""The load that is put on a system: `wrk`, one thread, closed loop; and what it cost the system."""

import contextlib
import itertools
import os
import resource
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import msgspec

from bench.flat_upstream import CHUNKS
from bench.gateways import GatewayError
from extproc.config.load import load_config
from extproc.contract.names import HeaderName
from extproc.demo.processes import end, free_ports
from extproc.demo.sample_upstream import SampleUpstreams
from extproc.demo.stack import Stack

# In place of CASE stands a number: always the same, or never the same twice. About 16 tokens, and in a cohort whose
# answers nobody judges; the second lands in one whose answers are.
TEXT = "Translate this sentence into French: the order CASE came in on Monday"
JUDGED = "My parcel CASE from Monday has not arrived, when do I get my refund?"
_START_S = 60.0
# Where a turn brings no answer at all, it is made again and takes so long.
_LONGEST_TURN_S = 10
# More requests than a turn can have: no number comes twice in a run.
_CASES_A_TURN = 100_000
_TURNS = itertools.count(1)


class System(msgspec.Struct, frozen=True):
    """Something between the client and the upstream, or nothing."""

    name: str
    url: str
    model: str
    pids: tuple[int, ...]
    headers: dict[str, str] = {}
    text: str = TEXT
    fresh: bool = False  # a text that was never seen before in every request

    def body(self, stream: bool) -> str:
        """The request, with CASE in it."""
        asked = {"model": self.model, "messages": [{"role": "user", "content": self.text}]}
        return msgspec.json.encode({**asked, "stream": True} if stream else asked).decode()


class Cell(msgspec.Struct, frozen=True):
    """What one turn measured."""

    requests: int
    per_second: float
    p50_ms: float
    p99_ms: float
    cpu_each: tuple[float, ...]  # CPU milliseconds per request of each of the system's own processes
    client_cores: float  # that the load generator kept busy
    failed: int
    late: float = 0.0  # share of never-seen texts that went past the encoder's deadline, to the default tier

    @property
    def cpu_ms(self) -> float:
        """CPU milliseconds per request of all of them."""
        return sum(self.cpu_each)


# wrk's own script language: the request, made once or anew each time, and what the run found.
_SCRIPT = """
wrk.method = "POST"
wrk.headers["content-type"] = "application/json"
{headers}
local body, case = [==[{body}]==], {case}
wrk.body = body:gsub("CASE", "0")
if {fresh} then
  function request()
    case = case + 1
    return wrk.format(nil, nil, nil, (body:gsub("CASE", string.format("%d", case))))
  end
  function response(_, headers)
    if headers["x-router-reason"] == "deadline" then late = late + 1 end
  end
end
late = 0
local threads = {{}}
function setup(thread) table.insert(threads, thread) end
function done(summary, latency)
  local e = summary.errors
  local failed = e.connect + e.read + e.write + e.status + e.timeout
  local p50, p99 = latency:percentile(50), latency:percentile(99)
  local past = threads[1]:get("late")
  io.write(string.format("FOUND %d %d %d %d %d %d\\n", summary.requests, summary.duration, p50, p99, failed, past))
end
"""


@contextlib.contextmanager
def flat_upstream() -> Iterator[tuple[int, int]]:
    """Port and process id of bench.flat_upstream."""
    port = free_ports(1)[0]
    process = subprocess.Popen([sys.executable, "-m", "bench.flat_upstream", str(port)])
    try:
        yield port, process.pid
    finally:
        end(process)


@contextlib.contextmanager
def routing_stack(upstream: int, workers: int = 1) -> Iterator[Stack]:
    """The router on the sample intents behind Envoy, with what listens on `upstream` as every tier."""
    intents = Path("intents")
    upstreams = SampleUpstreams({tier.name: tier.model for tier in load_config(intents).policy.tiers})
    upstreams.ports = dict.fromkeys(upstreams.models, upstream)  # never started: the flat one is every tier
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        stack = Stack(intents, Path(folder), upstreams, workers)
        try:
            stack.start_router()
            stack.start_envoy()
            yield stack
        finally:
            stack.stop()


def measure(system: System, stream: bool, connections: int, seconds: int, folder: Path) -> Cell:
    """One turn; one without a single answer is a failure of its own, and the run goes on."""
    script = folder / "load.lua"
    headers = "\n".join(f'wrk.headers["{name}"] = "{value}"' for name, value in system.headers.items())
    script.write_text(
        _SCRIPT.format(
            headers=headers, body=system.body(stream), case=next(_TURNS) * _CASES_A_TURN,
            fresh=str(system.fresh).lower(),
        )
    )  # fmt: skip
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "10s", "-s", str(script), system.url]
    before, client = [cpu_s((pid,)) for pid in system.pids], resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 30, check=False)
    after, client_after = [cpu_s((pid,)) for pid in system.pids], resource.getrusage(resource.RUSAGE_CHILDREN)
    found = next((line.split()[1:] for line in done.stdout.splitlines() if line.startswith("FOUND")), None)
    requests, micros, p50, p99, failed, late = (int(n) for n in found or (0, 1, 0, 0, 0, 0))
    if requests <= failed and seconds < _LONGEST_TURN_S:  # slower than that, not broken
        return measure(system, stream, connections, _LONGEST_TURN_S, folder)
    if requests <= failed:
        never = float("inf")
        return Cell(0, 0.0, never, never, tuple(never for _ in system.pids), 0.0, failed + 1)
    busy = client_after.ru_utime + client_after.ru_stime - client.ru_utime - client.ru_stime
    each = tuple((late_s - early_s) * 1000 / requests for early_s, late_s in zip(before, after, strict=True))
    return Cell(
        requests,
        requests / micros * 1e6,
        p50 / 1000,
        p99 / 1000,
        each,
        busy / micros * 1e6,
        failed,
        late / requests,
    )


def cpu_s(pids: tuple[int, ...]) -> float:
    """CPU seconds spent so far by these processes and by those they started."""
    spent, family = 0.0, set(pids)
    tick = os.sysconf("SC_CLK_TCK")
    for path in sorted(Path("/proc").glob("[0-9]*/stat"), key=lambda p: int(p.parent.name)):
        with contextlib.suppress(OSError):  # it may end meanwhile
            fields = path.read_text().rpartition(") ")[2].split()
            if int(path.parent.name) in family or int(fields[1]) in family:
                family.add(int(path.parent.name))
                spent += (int(fields[11]) + int(fields[12])) / tick
    return spent


def check(system: System) -> None:
    """Ask once each way until it answers right. Raises GatewayError when it does not in time."""
    deadline = time.monotonic() + _START_S
    for stream in (False, True):
        headers = {"content-type": "application/json", **system.headers}
        body = system.body(stream).replace("CASE", "0").encode()
        while True:
            try:
                asked = urllib.request.Request(system.url, body, headers)
                with urllib.request.urlopen(asked, timeout=10) as answer:
                    said, judged = answer.read(), HeaderName.VERDICT in answer.headers
                if not stream and judged != (system.text == JUDGED):
                    raise OSError(f"the answer was {'' if judged else 'not '}judged")
                if stream and not (said.count(b"data: {") >= CHUNKS - 1 and b"word47 " in said):
                    raise GatewayError(f"its stream is not whole: {said[:200]!r}")
                if not stream and b"xxxxxxxx" not in said:
                    raise GatewayError(f"its answer is not the upstream's: {said[:200]!r}")
                break
            except OSError as error:
                if time.monotonic() > deadline:
                    raise GatewayError(f"no {'stream' if stream else 'answer'}: {error}") from error
                time.sleep(0.2)
