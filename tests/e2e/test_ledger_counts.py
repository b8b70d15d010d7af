"""The report agrees with an independent count: the requests and tokens that the model servers counted."""

import asyncio
import contextlib
import json
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web

from extproc.accounting.export import export
from extproc.accounting.report import CostReport, read_report
from extproc.accounting.store import connect
from extproc.cli.main import main
from extproc.config.load import load_config
from extproc.demo.sample_answers import BilledAnswer
from extproc.demo.sample_upstream import TIER, Received, SampleUpstreams
from extproc.demo.stack import Stack
from extproc.evidence.data.traffic import read_traffic, reveal_all
from tests.e2e.traffic import (
    APIS,
    CHAT,
    COMPLETIONS,
    EXTRACT,
    MESSAGES,
    MODELS,
    PROVE,
    RESPONSES,
    ask,
    body_of,
    eventually,
    ledger_of,
    send,
    small_intent,
    with_ledger,
    write_small_intents,
)

# The pause between the words of a stream gives Envoy the time to cut it.
_CHUNK_S = 0.15
_JUDGED = "tier: small\naccept: [complete, non_empty, no_refusal]\nescalate: {to: large, share: 1}"
# The sample's small tier refuses a request that contains "password".
_CLIMBS = f"{EXTRACT} The password is in it."
_KEY, _MARK = "Bearer sk-hushhush-55aa", "Zanzibarquokka"
_COUNTED = {"stream_options": {"include_usage": True}}


class Upstreams(SampleUpstreams):
    """The sample upstreams, which do not answer, or answer with 201, if the request says so."""

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        if b"wait for ever" in body:
            self.received.append(Received(request.app[TIER], request.path, {}, body))
            await asyncio.sleep(60)
        answer = await super()._answer(request)
        if b"as a new file" in body:
            answer.set_status(201)
        return answer


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("ledger")
    intents = write_small_intents(folder / "written")
    (intents / "extraction.yaml").write_text(small_intent("extraction", _JUDGED))
    policy = (intents / "policy.yaml").read_text()
    policy = policy.replace("input: 0.40,", "input: 0.40, cached_input: 0.10,")
    (intents / "policy.yaml").write_text(f"{policy}\nescalations: {{burst: 1000}}\n")
    with Upstreams(MODELS, _CHUNK_S) as upstreams:
        running = Stack(intents, folder, upstreams)
        with with_ledger(running):
            yield running


@contextlib.contextmanager
def asking(port: int, body: dict[str, Any], path: str = CHAT) -> Iterator[socket.socket]:
    """Open a connection that has sent a request. The client hangs up at the end of the block."""
    raw = msgspec.json.encode(body)
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    with contextlib.closing(socket.create_connection(("127.0.0.1", port), 30)) as connection:
        connection.sendall(f"{head}content-length: {len(raw)}\r\n\r\n".encode() + raw)
        yield connection


class Mix:
    """The number of requests of each kind, and the report on them."""

    def __init__(self, stack: Stack) -> None:
        self.stack, self.asked = stack, Counter[str]()

    def send(self) -> None:
        """Send requests in every API, whole and streamed: plain, judged, escalated, and with clients that leave."""
        jobs = [
            (kind, path, prompt + cached, stream, more)
            for cached in ("", " Just as before.")
            for path in APIS
            for stream in (False, True)
            for kind, prompt in (("plain", PROVE), ("judged", EXTRACT), ("climbs", _CLIMBS))
            for more in ([{}, _COUNTED] if stream and path in (CHAT, COMPLETIONS) else [{}])
        ]
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(self._ask, jobs))
            list(pool.map(self._leave, [CHAT, COMPLETIONS, RESPONSES, MESSAGES]))
        arrived = len(self.stack.upstreams.received)
        with asking(self.stack.port, body_of(CHAT, f"{PROVE} And wait for ever.")):
            eventually(lambda: len(self.stack.upstreams.received) > arrived, "the request is upstream")
        self.asked["cancelled"] += 1
        assert ask(self.stack.port, f"{PROVE} Write it as a new file.").status == 201  # a success like any other
        self.asked["plain"] += 1
        assert ask(self.stack.port, PROVE, model="nobody's").status == 404
        self.asked["error"] += 1

    def _ask(self, job: tuple[str, str, str, bool, dict[str, Any]]) -> None:
        kind, path, prompt, stream, more = job
        answer = ask(self.stack.port, prompt, path, stream=stream, **more)
        assert answer.status == 200
        assert answer.headers["x-router-attempts"] == ("2" if kind == "climbs" else "1")
        self.asked[kind] += 1

    def _leave(self, path: str) -> None:
        with asking(self.stack.port, body_of(path, PROVE) | {"stream": True} | _COUNTED, path) as connection:
            got = b""
            while b"data:" not in got:
                got += connection.recv(65536)
        self.asked["cancelled"] += 1

    def report(self, by: Any = "cohort") -> CostReport:
        """Return the report as soon as it has all requests."""

        def look() -> CostReport | None:
            with contextlib.suppress(OSError):
                report = read_report(ledger_of(self.stack), 3600, by)
                return report if report.total.requests >= self.asked.total() else None
            return None

        found = eventually(look, "every request is in the ledger")
        assert found is not None
        return found


@pytest.fixture(scope="module")
def mix(stack: Stack) -> Mix:
    found = Mix(stack)
    found.send()
    return found


def tokens(answers: list[BilledAnswer], tier: str | None = None) -> tuple[int, int, int]:
    """Return the tokens that the servers counted: input, the cached part of it, and output."""
    counts = [(a.input_tokens, a.cached_tokens, a.output_tokens) for a in answers if tier in (None, a.tier)]
    read, cached, written = (sum(column) for column in zip(*counts, strict=True))
    return read, cached, written


def test_requests_and_attempts_are_those_that_were_sent_and_arrived(stack: Stack, mix: Mix) -> None:
    """One row for each request, one attempt for each request at a server, and every ending counted once."""
    total = mix.report().total
    assert total.requests == mix.asked.total()
    assert (total.attempts, total.failed_attempts) == (len(stack.upstreams.received), 0)
    assert total.accepted == mix.asked["plain"] + mix.asked["judged"] + mix.asked["climbs"]
    assert (total.cancelled, total.failed) == (mix.asked["cancelled"], mix.asked["error"])
    assert (total.degraded, total.human) == (0, 0)
    assert total.judged == mix.asked["judged"]  # a rejected answer escalates to the last rung, which is not judged
    assert (total.escalated, total.escalations) == (mix.asked["climbs"], {"refusal": mix.asked["climbs"]})


def test_tokens_are_those_that_the_servers_told(stack: Stack, mix: Mix) -> None:
    """Input and output agree to the token. An answer that reports no tokens is unknown, and not zero."""
    upstreams = stack.upstreams
    total = mix.report().total
    assert (total.input, total.cached, total.output) == tokens(upstreams.reported)
    assert total.cached > 0
    assert total.unknown == len(upstreams.received) - mix.asked["error"] - len(upstreams.reported)
    assert total.unknown > mix.asked["cancelled"]  # streams without usage, or cut when rejected


def test_each_tier_is_paid_its_own(stack: Stack, mix: Mix) -> None:
    """The small tier's cost of a rejected answer is counted for the small tier, although large served."""
    lines = {line.name: line for line in mix.report("tier").groups}
    assert set(lines) == {"small", "large"}
    for name, line in lines.items():
        assert (line.input, line.cached, line.output) == tokens(stack.upstreams.reported, name)
    assert lines["small"].escalated == mix.asked["climbs"]


def test_costs_are_the_servers_tokens_at_the_tiers_prices(stack: Stack, mix: Mix) -> None:
    """The cost of the cascade is separate. The saving is against the default tier for the same tokens."""
    prices = {tier.name: tier.price for tier in load_config(stack.intents).policy.tiers}

    def paid(answers: list[BilledAnswer], tier: str | None = None) -> float:
        dollars = 0.0
        for a in answers:
            price = prices[tier or a.tier]
            cached_price = price.input if price.cached_input is None else price.cached_input
            dollars += (a.input_tokens - a.cached_tokens) * price.input + a.cached_tokens * cached_price
            dollars += a.output_tokens * price.output
        return dollars / 1e6

    refused = [a for a in stack.upstreams.reported if a.tier == "small" and a.output_tokens == 11]
    served = [a for a in stack.upstreams.reported if a not in refused]
    total = mix.report().total
    assert total.cost == pytest.approx(paid(stack.upstreams.reported))
    assert refused and total.cascade_cost == pytest.approx(paid(refused))
    assert total.cost_per_accepted == pytest.approx(total.cost / total.accepted)
    assert total.saving == pytest.approx(paid(served, "large") - total.cost)


def test_cohorts_and_principals_have_lines_of_their_own(stack: Stack, mix: Mix) -> None:
    cohorts = {line.name: line for line in mix.report().groups}
    assert cohorts["extraction"].requests == mix.asked["judged"] + mix.asked["climbs"]
    assert cohorts["passthrough"].requests == mix.asked["error"]
    assert [line.name for line in mix.report("principal").groups] == ["anonymous"]
    sums = Counter[str]()
    for line in cohorts.values():
        sums.update({name: getattr(line, name) for name in ("requests", "attempts", "input", "output", "unknown")})
    total = mix.report().total
    assert sums == {name: getattr(total, name) for name in sums}


def test_the_commands_tell_the_same(stack: Stack, mix: Mix, tmp_path: Path) -> None:
    """`extproc report` prints it as text, JSON and HTML. `extproc export` has every row."""
    report = mix.report()

    def run(*command: str) -> str:
        told = [sys.executable, "-m", "extproc", *command, "--ledger", str(ledger_of(stack)), "--since", "1h"]
        done = subprocess.run(told, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    assert msgspec.json.decode(run("report", "--json"), type=CostReport).total == report.total
    text = run("report")
    assert text.splitlines()[2].startswith("SAVES: ")
    heads = [line for line in text.splitlines() if line.startswith("cohort ")]
    assert heads[0].split()[:3] == ["cohort", "requests", "attempts"]
    assert f"extraction escalated: refusal {mix.asked['climbs']}" in text
    assert run("report", "--html", str(tmp_path / "page.html")) == ""
    page = (tmp_path / "page.html").read_text()
    assert '<th scope="row">extraction</th>' in page and "http" not in page
    rows = [json.loads(line) for line in run("export").splitlines()]
    assert len(rows) == mix.asked.total()
    answers = [answer for row in rows for answer in row["answers"]]
    assert sum(a["tokens"]["input"] or 0 for a in answers) == report.total.input
    accepted = Counter(
        (a["tier"], a["accepted"]) for row in rows if row["intent"] == "extraction" for a in row["answers"]
    )
    climbs = mix.asked["climbs"]
    assert accepted == {("small", True): mix.asked["judged"], ("small", False): climbs, ("large", None): climbs}


def test_a_part_of_the_sessions_is_exported_whole(stack: Stack, mix: Mix) -> None:
    rows = [msgspec.json.decode(line) for line in export(ledger_of(stack), 3600)]
    sessions = Counter(row["session"] for row in rows)
    assert len(sessions) > 3
    part = Counter(msgspec.json.decode(line)["session"] for line in export(ledger_of(stack), 3600, 0.5))
    assert 0 < len(part) < len(sessions)
    assert all(sessions[session] == count for session, count in part.items())


def test_with_the_requests_beside_it_the_ledger_is_traffic_to_learn_from(
    stack: Stack, mix: Mix, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Recorded requests are joined by Envoy's request id. Every row has the worth of each tier's answer."""
    kept = {
        received.headers["x-request-id"]: json.loads(received.body) | {"model": "auto"}
        for received in stack.upstreams.received
        if received.path == CHAT and "x-request-id" in received.headers
    }
    log, traffic = tmp_path / "requests.jsonl", tmp_path / "traffic.jsonl"
    log.write_bytes(b"".join(msgspec.json.encode({"id": i, "request": r}) + b"\n" for i, r in kept.items()))
    code = main(["export", "--ledger", str(ledger_of(stack)), "--since", "1h", "--requests", str(log)])
    printed = capsys.readouterr()
    assert (code, printed.err.split(": ")[1].split(",")[0]) == (0, f"{len(kept)} rows joined")
    traffic.write_text(printed.out)
    read = read_traffic(traffic)
    known, bad = reveal_all(read.rows)
    assert (read.bad, bad, len(read.rows)) == ([], [], len(kept))
    worth = Counter(one.outcomes["small"].worth for one in known if one is not None and "small" in one.outcomes)
    assert worth[1.0] and worth == {1.0: worth[1.0], 0.0: worth[1.0]}  # each rejected answer has an accepted one
    told = [one.outcomes for one in known if one is not None and len(one.outcomes) == 2]
    assert told and all(o["small"].worth == 0.0 and o["large"].worth is None for o in told)
    assert all(o["large"].tokens_out for o in told)


def test_no_word_and_no_key_is_kept(stack: Stack, mix: Mix) -> None:
    """The bytes of the file have hashes of the clients, and no text of requests or answers."""
    body = msgspec.json.encode(body_of(CHAT, f"{EXTRACT} {_MARK}"))
    assert send(stack.port, CHAT, body, {"authorization": _KEY}).status == 200
    mix.asked["judged"] += 1

    def principals() -> set[str]:
        with contextlib.closing(connect(ledger_of(stack))) as ledger:
            return {row["principal"] for row in ledger.select("SELECT principal FROM outcomes")} - {"anonymous"}

    (principal,) = eventually(principals, "the request is in the ledger")
    assert len(principal) == 16
    kept = b"".join(path.read_bytes() for path in stack.folder.glob("ledger.sqlite*"))
    for secret in (_MARK, _KEY, "hushhush", "Nordwind", "odd numbers", "sorry"):
        assert secret.encode() not in kept
