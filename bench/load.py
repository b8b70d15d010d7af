"""A load on a system by `wrk`, with one thread in a closed loop, and its cost to the system.

A turn has failed if one request got no answer, or if Envoy let one pass without a decision. It has also failed if
an answer has an unexpected reason. These answers are cheaper, so the rate would be too good.
"""

import contextlib
import copy
import itertools
import os
import platform
import resource
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from bench.flat_upstream import CHUNKS
from bench.gateways import GatewayError
from extproc.config.load import load_config
from extproc.contract.names import HeaderName
from extproc.contract.words import Reason
from extproc.demo.processes import end, free_ports
from extproc.demo.sample_upstream import SampleUpstreams
from extproc.demo.stack import Stack, with_plain_listener

# CASE is replaced by a number of eight digits, which is always the same or never the same twice. Both texts have
# about 16 tokens. The first matches a cohort without acceptance rules, the second a cohort with them.
TEXT = "Write a Python function for case CASE that reads the rows of a table by date"
JUDGED = "My parcel CASE from Monday has not arrived, when do I get my refund?"
SEEN_CASE = "10000000"
# The reasons of decisions that looked at a vector. A text near its floor may have any of them.
BY_TEXT = (Reason.MATCHED, Reason.OUT_OF_SCOPE, Reason.AMBIGUOUS)
_START_S = 60.0
# A turn without any answer is repeated with this length.
_LONGEST_TURN_S = 10
# More requests than one turn can have, so that no number is used twice in a run.
_CASES_A_TURN = 100_000
_TURNS = itertools.count(1)
_FIRST_CASE = 20_000_000


class System(msgspec.Struct, frozen=True):
    """A system between the client and the upstream, or the upstream itself."""

    name: str
    url: str
    model: str
    pids: tuple[int, ...]
    headers: dict[str, str] = {}
    text: str = TEXT
    fresh: bool = False  # every request has a new text
    reasons: tuple[str, ...] = ()  # those that an answer may have; none: it has no reason, or none is looked for
    admin_url: str = ""  # of the Envoy whose fail-opens count
    before: tuple[dict[str, str], ...] = ()  # messages before the text

    def body(self, stream: bool) -> str:
        """The request, with CASE in it."""
        request = {"model": self.model, "messages": [*self.before, {"role": "user", "content": self.text}]}
        return msgspec.json.encode({**request, "stream": True} if stream else request).decode()


class Cell(msgspec.Struct, frozen=True):
    """The measurements of one turn."""

    requests: int
    per_second: float
    p50_ms: float
    p99_ms: float
    cpu_each: tuple[float, ...]  # CPU milliseconds per request, for each process of the system
    client_cores: float  # cores that the load generator used
    failed: int  # requests without an answer, and answers with an error status
    unexpected: dict[str, int] = {}  # reason -> answers that have it although it is not expected
    fail_opens: int = 0  # requests that Envoy let pass without a decision

    @property
    def valid(self) -> bool:
        """Whether every request of the turn was answered as expected. Otherwise its rate means nothing."""
        return not (self.failed or self.fail_opens or self.unexpected)

    @property
    def late(self) -> float:
        """Share of answers that missed the encoder's deadline and went to the default tier."""
        return self.unexpected.get(Reason.DEADLINE, 0) / max(self.requests, 1)

    @property
    def cpu_ms(self) -> float:
        """CPU milliseconds per request, over all processes."""
        return sum(self.cpu_each)


def faults(cells: list[Cell]) -> str:
    """The faults of these turns: "2 of 6 turns FAILED: 3 errors, 12 fail-opens, 5 deadline". Empty without any."""
    counts = Counter({"errors": sum(c.failed for c in cells), "fail-opens": sum(c.fail_opens for c in cells)})
    for cell in cells:
        counts.update(cell.unexpected)
    invalid = sum(not cell.valid for cell in cells)
    what = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    return f"{invalid} of {len(cells)} turns FAILED: {what}" if invalid else ""


# The script of wrk, in Lua. It makes the request once or for each request, and prints the results. It looks at the
# reason of every answer, also of systems without one, so that the client does the same work for all of them.
_SCRIPT = """
wrk.method = "POST"
wrk.headers["content-type"] = "application/json"
{headers}
local body, case, expected = [==[{body}]==], {case}, {{{expected}}}
wrk.body = body:gsub("CASE", "{seen}")
if {fresh} then
  function request()
    case = case + 1
    return wrk.format(nil, nil, nil, (body:gsub("CASE", string.format("%08d", case))))
  end
end
unexpected = {{}}
function response(_, headers)
  local reason = headers["{reason}"] or "{no_reason}"
  if not expected[reason] then unexpected[reason] = (unexpected[reason] or 0) + 1 end
end
local threads = {{}}
function setup(thread) table.insert(threads, thread) end
function done(summary, latency)
  local e = summary.errors
  local failed = e.connect + e.read + e.write + e.status + e.timeout
  local p50, p99 = latency:percentile(50), latency:percentile(99)
  io.write(string.format("RESULT %d %d %d %d %d\\n", summary.requests, summary.duration, p50, p99, failed))
  for reason, count in pairs(threads[1]:get("unexpected")) do
    io.write(string.format("UNEXPECTED %s %d\\n", reason, count))
  end
end
"""
# Stands for the reason of an answer that has none.
NO_REASON = "no_reason"


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
def routing_stack(
    upstream: int, workers: int = 1, more: Callable[[Stack, dict[str, Any]], dict[str, Any]] | None = None
) -> Iterator[tuple[Stack, str]]:
    """The router on the sample intents behind Envoy, and the URL of the same Envoy without router and access logs.

    The server on port `upstream` is every tier. `more` adds to Envoy's bootstrap when the router runs.
    """
    intents = Path("intents")
    upstreams = SampleUpstreams({tier.name: tier.model for tier in load_config(intents).policy.tiers})
    upstreams.ports = dict.fromkeys(upstreams.models, upstream)  # never started
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        stack = Stack(intents, Path(folder), upstreams, workers)
        try:
            stack.start_router()
            plain = with_plain_listener(stack.bootstrap(), stack.plain_port)
            (bare_port,) = free_ports(1)
            bare = with_bare_listener(plain, bare_port)
            stack.start_envoy(bare if more is None else more(stack, bare))
            yield stack, f"http://127.0.0.1:{bare_port}"
        finally:
            stack.stop()


def with_bare_listener(bootstrap: dict[str, Any], port: int) -> dict[str, Any]:
    """Return a copy with one more listener: the last one without its access logs."""
    bootstrap = copy.deepcopy(bootstrap)
    listener = copy.deepcopy(bootstrap["static_resources"]["listeners"][-1])
    listener["name"] = "bare"
    listener["address"]["socket_address"]["port_value"] = port
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    manager["stat_prefix"] = "bare"
    manager.pop("access_log", None)
    bootstrap["static_resources"]["listeners"].append(listener)
    return bootstrap


def interpreter() -> str:
    """The Python that runs the router here. A build with profile-guided optimisation (PGO) is a fifth faster."""
    flags = f"{sysconfig.get_config_var('CONFIG_ARGS')} {sysconfig.get_config_var('PY_CORE_CFLAGS')}"
    name, version = platform.python_implementation(), platform.python_version()
    return f"{name} {version}, {built(flags, platform.python_compiler(), Path('/proc/self/maps').read_text())}"


def built(flags: str, compiler: str, mapped: str) -> str:
    """How an interpreter was built: from its recorded flags, and the files that its process has mapped.

    Debian builds the interpreter with PGO and a shared library without, and records the flags of the library.
    """
    if "--enable-optimizations" in flags or "-fprofile-use" in flags:
        return f"built with PGO by {compiler}"
    if "--enable-shared" in flags and "libpython" not in mapped:
        return f"built by {compiler}, PGO not recorded"
    return f"built without PGO by {compiler}"


def measure(system: System, stream: bool, connections: int, seconds: int, folder: Path) -> Cell:
    """Measure one turn. A turn without any answer counts as one more failure, and the run continues."""
    script = folder / "load.lua"
    script.write_text(_script(system, stream))
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "10s", "-s", str(script), system.url]
    opened = fail_opens(system.admin_url)
    before, client = [cpu_s((pid,)) for pid in system.pids], resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 30, check=False)
    after, client_after = [cpu_s((pid,)) for pid in system.pids], resource.getrusage(resource.RUSAGE_CHILDREN)
    busy_s = client_after.ru_utime + client_after.ru_stime - client.ru_utime - client.ru_stime
    used_s = [late_s - early_s for early_s, late_s in zip(before, after, strict=True)]
    cell = cell_of(done.stdout, used_s, busy_s, fail_opens(system.admin_url) - opened)
    if not cell.requests and seconds < _LONGEST_TURN_S:  # the system may be slow, not broken
        return measure(system, stream, connections, _LONGEST_TURN_S, folder)
    return cell


def _script(system: System, stream: bool) -> str:
    expected = system.reasons or (NO_REASON,)
    return _SCRIPT.format(
        headers="\n".join(f'wrk.headers["{name}"] = "{value}"' for name, value in system.headers.items()),
        body=system.body(stream), case=_FIRST_CASE + next(_TURNS) * _CASES_A_TURN, seen=SEEN_CASE,
        fresh=str(system.fresh).lower(), expected=", ".join(f'["{reason}"] = true' for reason in expected),
        reason=HeaderName.REASON.value, no_reason=NO_REASON,
    )  # fmt: skip


def cell_of(printed: str, used_s: list[float], client_s: float, opened: int) -> Cell:
    """The measurements of a turn, from the output of wrk and the CPU seconds of each process and of wrk itself."""
    lines = [line.split() for line in printed.splitlines()]
    result = next((words[1:] for words in lines if words[:1] == ["RESULT"]), None)
    requests, micros, p50, p99, failed = (int(n) for n in result or (0, 1, 0, 0, 0))
    unexpected = {words[1]: int(words[2]) for words in lines if words[:1] == ["UNEXPECTED"]}
    if requests <= failed:
        inf = float("inf")
        return Cell(0, 0.0, inf, inf, tuple(inf for _ in used_s), 0.0, failed + 1, unexpected, opened)
    each = tuple(seconds * 1000 / requests for seconds in used_s)
    return Cell(
        requests,
        requests / micros * 1e6,
        p50 / 1000,
        p99 / 1000,
        each,
        client_s / micros * 1e6,
        failed,
        unexpected,
        opened,
    )


def fail_opens(admin_url: str) -> int:
    """How many requests this Envoy has let pass without a decision, in all of its ext_proc filters."""
    return counted(admin_url, "failure_mode_allowed")


def counted(admin_url: str, name: str) -> int:
    """The sum of Envoy's counters whose name ends so. 0 without the URL of an Envoy."""
    if not admin_url:
        return 0
    with urllib.request.urlopen(f"{admin_url}/stats?filter={name}$", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return sum(int(line.rpartition(": ")[2]) for line in lines)


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
        body = system.body(stream).replace("CASE", SEEN_CASE).encode()
        while True:
            try:
                request = urllib.request.Request(system.url, body, headers)
                with urllib.request.urlopen(request, timeout=10) as answer:
                    received, judged = answer.read(), HeaderName.VERDICT in answer.headers
                    reason = answer.headers.get(HeaderName.REASON)
                if system.reasons and reason not in system.reasons:
                    raise OSError(f"the reason of the decision was {reason}, expected {', '.join(system.reasons)}")
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
