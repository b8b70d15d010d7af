"""A load on a system by `wrk`, with one thread in a closed loop, and its cost to the system."""

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

# CASE is replaced by a number, which is always the same or never the same twice. Both texts have about 16 tokens.
# The first matches a cohort without acceptance rules, the second a cohort with them.
TEXT = "Translate this sentence into French: the order CASE came in on Monday"
JUDGED = "My parcel CASE from Monday has not arrived, when do I get my refund?"
_START_S = 60.0
# A turn without any answer is repeated with this length.
_LONGEST_TURN_S = 10
# More requests than one turn can have, so that no number is used twice in a run.
_CASES_A_TURN = 100_000
_TURNS = itertools.count(1)


class System(msgspec.Struct, frozen=True):
    """A system between the client and the upstream, or the upstream itself."""

    name: str
    url: str
    model: str
    pids: tuple[int, ...]
    headers: dict[str, str] = {}
    text: str = TEXT
    fresh: bool = False  # every request has a new text

    def body(self, stream: bool) -> str:
        """The request, with CASE in it."""
        request = {"model": self.model, "messages": [{"role": "user", "content": self.text}]}
        return msgspec.json.encode({**request, "stream": True} if stream else request).decode()


class Cell(msgspec.Struct, frozen=True):
    """The measurements of one turn."""

    requests: int
    per_second: float
    p50_ms: float
    p99_ms: float
    cpu_each: tuple[float, ...]  # CPU milliseconds per request, for each process of the system
    client_cores: float  # cores that the load generator used
    failed: int
    late: float = 0.0  # share of new texts that missed the encoder's deadline and went to the default tier

    @property
    def cpu_ms(self) -> float:
        """CPU milliseconds per request, over all processes."""
        return sum(self.cpu_each)


# The script of wrk, in Lua. It makes the request once or for each request, and prints the results.
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
  io.write(string.format("RESULT %d %d %d %d %d %d\\n", summary.requests, summary.duration, p50, p99, failed, past))
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
    """The router on the sample intents behind Envoy. The server on port `upstream` is every tier."""
    intents = Path("intents")
    upstreams = SampleUpstreams({tier.name: tier.model for tier in load_config(intents).policy.tiers})
    upstreams.ports = dict.fromkeys(upstreams.models, upstream)  # never started
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        stack = Stack(intents, Path(folder), upstreams, workers)
        try:
            stack.start_router()
            stack.start_envoy()
            yield stack
        finally:
            stack.stop()


def measure(system: System, stream: bool, connections: int, seconds: int, folder: Path) -> Cell:
    """Measure one turn. A turn without any answer counts as one more failure, and the run continues."""
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
    result = next((line.split()[1:] for line in done.stdout.splitlines() if line.startswith("RESULT")), None)
    requests, micros, p50, p99, failed, late = (int(n) for n in result or (0, 1, 0, 0, 0, 0))
    if requests <= failed and seconds < _LONGEST_TURN_S:  # the system may be slow, not broken
        return measure(system, stream, connections, _LONGEST_TURN_S, folder)
    if requests <= failed:
        inf = float("inf")
        return Cell(0, 0.0, inf, inf, tuple(inf for _ in system.pids), 0.0, failed + 1)
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
    """CPU seconds that these processes and their children have used."""
    used_s, family = 0.0, set(pids)
    tick = os.sysconf("SC_CLK_TCK")
    for path in sorted(Path("/proc").glob("[0-9]*/stat"), key=lambda p: int(p.parent.name)):
        with contextlib.suppress(OSError):  # the process may have ended
            fields = path.read_text().rpartition(") ")[2].split()
            if int(path.parent.name) in family or int(fields[1]) in family:
                family.add(int(path.parent.name))
                used_s += (int(fields[11]) + int(fields[12])) / tick
    return used_s


def check(system: System) -> None:
    """Send one request of each kind until the answer is right. Raises GatewayError after a minute."""
    deadline = time.monotonic() + _START_S
    for stream in (False, True):
        headers = {"content-type": "application/json", **system.headers}
        body = system.body(stream).replace("CASE", "0").encode()
        while True:
            try:
                request = urllib.request.Request(system.url, body, headers)
                with urllib.request.urlopen(request, timeout=10) as answer:
                    received, judged = answer.read(), HeaderName.VERDICT in answer.headers
                if not stream and judged != (system.text == JUDGED):
                    raise OSError(f"the answer was {'' if judged else 'not '}judged")
                if stream and not (received.count(b"data: {") >= CHUNKS - 1 and b"word47 " in received):
                    raise GatewayError(f"the stream is incomplete: {received[:200]!r}")
                if not stream and b"xxxxxxxx" not in received:
                    raise GatewayError(f"the answer differs from that of the upstream: {received[:200]!r}")
                break
            except OSError as error:
                if time.monotonic() > deadline:
                    raise GatewayError(f"no {'stream' if stream else 'answer'}: {error}") from error
                time.sleep(0.2)
