"""Observability with real tools: the stack under a mixed load, Prometheus and an OTLP receiver: `make observe`.

Prometheus loads the rules and scrapes the router. The receiver gets the spans of Envoy and of the router. The
output has the result of every query of the dashboard, and one whole trace of a request whose first answer was
rejected. With `--serve`, everything keeps running until Ctrl-C.
"""

import argparse
import contextlib
import http.client
import itertools
import json
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import yaml

from bench.collector import Collector, attributes
from bench.load import BY_TEXT
from extproc.config.load import load_config
from extproc.contract.names import PREFIX, HeaderName, Key
from extproc.contract.words import Reason, VerdictWord
from extproc.demo.processes import end, free_ports
from extproc.demo.sample_upstream import SampleUpstreams
from extproc.demo.stack import Stack

OBSERVE = Path("deploy/observe")
_INTENTS = Path("intents")
_SERVICES = ("envoy", "semantic-router")
_WITHIN_S = 60.0
OUT_OF_SCOPE = "Tell me a story about a dragon and the sea"
_ROUNDS = 6  # at least this many: a rate needs a counter that has changed
# A plain prompt, an accepted one, one whose small tier's answer is rejected, one out of scope, and an empty one.
_PROMPTS = (
    "Prove that the sum of two odd numbers is even.",
    "Where is my order? It should have arrived last Tuesday.",
    "I forgot my password and cannot get into my account, what can I do?",
    OUT_OF_SCOPE,
    "",
)


class Watched:
    """A running stack, with Prometheus and the OTLP receiver."""

    def __init__(self, stack: Stack, collector: Collector, url: str, ledger: Path) -> None:
        self.stack, self.collector, self.url, self.ledger = stack, collector, url, ledger

    def ask(self, query: str) -> list[dict[str, Any]]:
        """The samples that Prometheus returns for a query now, without NaN."""
        parameters = urllib.parse.urlencode({"query": query.replace("$__rate_interval", "1m")})
        with urllib.request.urlopen(f"{self.url}/api/v1/query?{parameters}", timeout=10) as answer:
            samples: list[dict[str, Any]] = json.load(answer)["data"]["result"]
        return [sample for sample in samples if sample["value"][1] != "NaN"]

    def unanswered(self) -> list[str]:
        """The queries of the dashboard that return nothing."""
        return [query for query in dashboard_queries() if not self.ask(query)]

    def traces(self) -> dict[bytes, list[tuple[str, Any]]]:
        """Spans with their service, by trace id."""
        traces: dict[bytes, list[tuple[str, Any]]] = {}
        for service in _SERVICES:
            for span in self.collector.spans(service):
                traces.setdefault(span.trace_id, []).append((service, span))
        return traces

    def escalation(self) -> list[tuple[str, Any]]:
        """A whole trace in which an answer was rejected. Empty until one has arrived."""
        for spans in self.traces().values():
            names = [span.name for _, span in spans]
            ids = {span.span_id for _, span in spans}
            rejected = any(
                attributes(span).get(f"{PREFIX}.{Key.VERDICT}") == VerdictWord.ESCALATE for _, span in spans
            )
            whole = all(span.parent_span_id in ids for _, span in spans if span.parent_span_id)
            if rejected and whole and f"{PREFIX}.decide" in names:
                return spans
        return []


def dashboard_queries() -> list[str]:
    """Every query of every panel of the dashboard."""
    panels = json.loads((OBSERVE / "dashboard.json").read_text())["panels"]
    return [target["expr"] for panel in panels for target in panel["targets"]]


def load(stack: Stack) -> Counter[str]:
    """One round: each prompt as JSON and as a stream, with and without usage, and one client that disconnects.

    Return the answers that the router did not decide about, by status and reason.
    """
    undecided: Counter[str] = Counter()
    for prompt, stream, counted in itertools.product(_PROMPTS, (False, True), (False, True)):
        more = {"stream": stream} | ({"stream_options": {"include_usage": True}} if stream and counted else {})
        body = {"model": "auto", "messages": [{"role": "user", "content": prompt}]} | more
        connection = http.client.HTTPConnection("127.0.0.1", stack.port, timeout=30)
        connection.request(
            "POST", "/v1/chat/completions", msgspec.json.encode(body), {"content-type": "application/json"}
        )
        answer = connection.getresponse()
        answer.read()
        reason = answer.headers.get(HeaderName.REASON)
        if answer.status != 200 or reason not in (*BY_TEXT, Reason.NO_TEXT):
            undecided[f"{answer.status} {reason}"] += 1
        connection.close()
    with contextlib.closing(socket.create_connection(("127.0.0.1", stack.port), 30)) as leaving:
        leaving.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
    return undecided


@contextlib.contextmanager
def watched() -> Iterator[Watched]:
    """Everything, running. All of it is stopped at the end."""
    binary = shutil.which("prometheus")
    if binary is None:
        raise OSError("`prometheus` is not on the PATH: run `apt-get install prometheus`")
    tiers = load_config(_INTENTS).policy.tiers
    with (
        tempfile.TemporaryDirectory(prefix="observe-") as folder,
        Collector() as collector,
        SampleUpstreams({tier.name: tier.model for tier in tiers}) as upstreams,
    ):
        stack, ledger = Stack(_INTENTS, Path(folder), upstreams), Path(folder) / "ledger.sqlite"
        metrics_port, port = free_ports(2)
        prometheus = None
        try:
            stack.start_router({
                "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{collector.address}",
                "OTEL_BSP_SCHEDULE_DELAY": "200",
                "OTEL_METRICS_EXPORTER": "prometheus",
                "OTEL_EXPORTER_PROMETHEUS_PORT": str(metrics_port),
            }, ["--ledger", str(ledger)])  # fmt: skip
            stack.start_envoy(otlp=collector.address)
            prometheus = _start_prometheus(binary, Path(folder), metrics_port, port)
            yield Watched(stack, collector, f"http://127.0.0.1:{port}", ledger)
        finally:
            if prometheus is not None:
                end(prometheus)
            stack.stop()


def _start_prometheus(binary: str, folder: Path, metrics_port: int, port: int) -> subprocess.Popen[bytes]:
    """Start Prometheus with the configuration of deploy/observe, at short intervals and on these ports."""
    config = yaml.safe_load((OBSERVE / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str((OBSERVE / "rules.yml").resolve())]
    config["scrape_configs"][0]["static_configs"][0]["targets"] = [f"localhost:{metrics_port}"]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    command = [
        binary, f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/prometheus",
        f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn",
    ]  # fmt: skip
    with (folder / "prometheus.log").open("wb") as out:
        return subprocess.Popen(command, stdout=out, stderr=out, stdin=subprocess.DEVNULL, start_new_session=True)


def settle(running: Watched) -> list[str]:
    """Send load until every query returns something and a trace is whole. Return what is still missing."""
    deadline = time.monotonic() + _WITHIN_S
    missing, undecided = ["everything"], Counter[str]()
    for rounds in itertools.count(1):
        undecided += load(running.stack)
        time.sleep(2)
        if time.monotonic() > deadline or (rounds > _ROUNDS and not missing):
            break
        try:
            missing = running.unanswered() + ([] if running.escalation() else ["a whole trace of an escalation"])
        except (urllib.error.URLError, ConnectionError):
            continue  # Prometheus is still starting
    return missing + [f"decisions about {count} requests: {what}" for what, count in undecided.items()]


def main() -> int:
    """Print the metrics and a trace. Return 0 if nothing is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--serve", action="store_true", help="keep everything running until Ctrl-C")
    serve = parser.parse_args().serve
    print("starting sample upstreams, router, Envoy, Prometheus and an OTLP receiver ...", flush=True)
    with watched() as running:
        missing = settle(running)
        panels = json.loads((OBSERVE / "dashboard.json").read_text())["panels"]
        for panel in panels:
            print(f"\n{panel['title']}")
            for target in panel["targets"]:
                for sample in running.ask(target["expr"]):
                    labels = ", ".join(f"{name} {value or '-'}" for name, value in _labels(sample).items())
                    print(f"  {float(sample['value'][1]):>12.5g}  {labels}")
        print("\none trace: spans, service, milliseconds")
        _print_trace(running.escalation())
        if missing:
            print("\nmissing: " + "; ".join(missing))
        if serve:
            print(
                f"\nPrometheus: {running.url}   Envoy: {running.stack.url}   Ctrl-C stops everything.", flush=True
            )
            with contextlib.suppress(KeyboardInterrupt):
                while True:
                    load(running.stack)
                    time.sleep(1)
    return 1 if missing else 0


def _labels(sample: dict[str, Any]) -> dict[str, str]:
    return {name: value for name, value in sample["metric"].items() if name != "__name__"}


def _print_trace(spans: list[tuple[str, Any]]) -> None:
    children: dict[bytes, list[tuple[str, Any]]] = {}
    for service, span in sorted(spans, key=lambda each: each[1].start_time_unix_nano):
        children.setdefault(span.parent_span_id, []).append((service, span))
    _walk(children, b"", 0, lambda line: print(line))


def _walk(
    children: dict[bytes, list[tuple[str, Any]]], parent: bytes, depth: int, write: Callable[[str], None]
) -> None:
    for service, span in children.get(parent, []):
        values = attributes(span)
        decision = [
            str(values[f"{PREFIX}.{key}"]) for key in ("cohort", "tier", "verdict") if f"{PREFIX}.{key}" in values
        ]
        ms = (span.end_time_unix_nano - span.start_time_unix_nano) / 1e6
        write(f"  {'  ' * depth}{span.name} [{service}] {ms:.1f}{'  ' if decision else ''}{' '.join(decision)}")
        _walk(children, span.span_id, depth + 1, write)


if __name__ == "__main__":
    raise SystemExit(main())
