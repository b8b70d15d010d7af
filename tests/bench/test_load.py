"""The load of the benchmarks: a turn with requests that were not routed has failed, and texts have known views."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import ClassVar

import numpy as np
import pytest

from bench import client, growth, latency
from bench.load import (
    BY_TEXT,
    JUDGED,
    SEEN_CASE,
    TEXT,
    Cell,
    System,
    built,
    cell_of,
    fail_opens,
    faults,
    interpreter,
    measure,
    with_bare_listener,
)
from extproc.encoder.features import FeatureEncoder
from extproc.encoder.protocols import Vectors

RESULT = "Running 2s test\nRESULT 1000 2000000 1500 4000 {failed}\n"
MATCHED_CELL = Cell(1000, 500.0, 1.5, 4.0, (0.5, 0.25), 0.1, 0)


class _Router(BaseHTTPRequestHandler):
    """Answers as Envoy does: the reason of a decision in a header, and its counters under /stats."""

    protocol_version = "HTTP/1.1"
    reasons: Sequence[str] = ("matched",)
    opened = 0
    bodies: ClassVar[list[bytes]] = []

    def do_POST(self) -> None:
        type(self).bodies.append(self.rfile.read(int(self.headers["content-length"])))
        reason = self.reasons[len(self.bodies) % len(self.reasons)]
        type(self).opened += reason == "fail_open"
        self._answer(b"{}", {"x-router-reason": reason} if reason else {})

    def do_GET(self) -> None:
        self._answer(b"a.failure_mode_allowed: %d\nb.failure_mode_allowed: 5\n" % self.opened, {})

    def _answer(self, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(200)
        for name, value in (headers | {"content-length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def router() -> Iterator[str]:
    """The URL of a server that answers with the reasons in `_Router.reasons`, in turn."""
    _Router.reasons, _Router.opened, _Router.bodies = ("matched",), 0, []
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Router)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def system_at(url: str, **more: object) -> System:
    return System("router", url, "auto", (), reasons=BY_TEXT, admin_url=url, **more)  # type: ignore[arg-type]


def test_the_result_of_a_turn_is_per_request():
    """Rates per second, times in milliseconds, and CPU milliseconds of each process for one request."""
    cell = cell_of(RESULT.format(failed=0), [0.5, 0.25], 0.2, 0)
    assert cell == MATCHED_CELL and cell.valid and cell.cpu_ms == 0.75 and faults([cell, cell]) == ""


@pytest.mark.parametrize(
    ("printed", "opened", "what"),
    [
        (RESULT.format(failed=2), 0, "2 errors"),
        (RESULT.format(failed=0), 1, "1 fail-opens"),
        (RESULT.format(failed=0) + "UNEXPECTED fail_open 1000\n", 1000, "1000 fail-opens, 1000 fail_open"),
        (RESULT.format(failed=0) + "UNEXPECTED deadline 3\n", 0, "3 deadline"),
        ("wrk: cannot connect\n", 0, "1 errors"),
    ],
    ids=["error", "fail-open", "router killed", "deadline", "no answer"],
)
def test_a_turn_with_one_request_that_was_not_routed_has_failed(printed: str, opened: int, what: str):
    """Its rate does not count."""
    cell = cell_of(printed, [0.5], 0.2, opened)
    assert not cell.valid
    assert faults([MATCHED_CELL, cell]) == f"1 of 2 turns FAILED: {what}"


def test_late_answers_are_a_share_of_all():
    assert cell_of(RESULT.format(failed=0) + "UNEXPECTED deadline 250\n", [0.5], 0.2, 0).late == 0.25


def test_the_table_of_costs_names_failed_turns_and_compares_with_plain_envoy():
    """Rates are compared as a ratio, and times as a difference. CPU is microseconds of Envoy and of the router."""
    plain = Cell(2000, 1000.0, 1.0, 2.0, (0.1, 0.0), 0.2, 0)
    late = Cell(1000, 300.0, 1.5, 4.0, (0.5, 0.25), 0.1, 0, {"deadline": 7})
    cells = {("plain Envoy", 1, False): [plain, plain], ("router, new, one view", 1, False): [MATCHED_CELL, late]}
    rows = [re.split(r"\s{2,}", line.strip()) for line in list(latency.table(cells))[1:]]
    assert rows == [
        ["1", "plain Envoy", "1000", "1.00", "1.00", "0.00", "2.00", "0.00", "100", "0", "0.20", "0"],
        ["1", "router, new, one view", "400", "0.40", "1.50", "0.50", "4.00", "2.00", "500", "250", "0.10", "0",
         "1 of 2 turns FAILED: 7 deadline"],
    ]  # fmt: skip


@pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not on the PATH: apt-get install wrk")
def test_wrk_counts_every_answer_without_the_expected_reason(router: str, tmp_path: Path):
    """A third of the answers are fail-opens. Every new text has another number, with the same count of digits."""
    _Router.reasons = ("matched", "out_of_scope", "fail_open")
    cell = measure(system_at(router, fresh=True), False, 2, 1, tmp_path)
    assert not cell.valid and cell.failed == 0 and set(cell.unexpected) == {"fail_open"}
    assert cell.requests / 3 - 3 <= cell.unexpected["fail_open"] <= cell.fail_opens <= cell.requests / 3 + 3
    numbers = [re.findall(rb"case (\d+) that", body) for body in _Router.bodies]
    assert all(len(number) == 1 and len(number[0]) == len(SEEN_CASE) for number in numbers)
    assert len({number[0] for number in numbers}) == len(numbers) > 10


@pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not on the PATH: apt-get install wrk")
@pytest.mark.parametrize(("reason", "expected", "valid"), [
    ("matched", BY_TEXT, True), ("matched", (), False), ("", (), True), ("", BY_TEXT, False),
])  # fmt: skip
def test_an_answer_without_a_router_has_no_reason(
    router: str, tmp_path: Path, reason: str, expected: tuple[str, ...], valid: bool
):
    """The controls must not be routed, and the router's answers must be."""
    _Router.reasons = (reason,)
    system = System("a system", router, "m", (), reasons=expected)
    assert measure(system, False, 1, 1, tmp_path).valid == valid


def test_fail_opens_are_summed_over_the_filters_of_envoy(router: str):
    assert fail_opens(router) == 5 and fail_opens("") == 0


class _Counted:
    """An encoder of sentences that counts the texts that it gets."""

    def __init__(self) -> None:
        self.views = 0

    def encode(self, texts: Sequence[str]) -> Vectors:
        self.views += len(texts)
        return np.ones((len(texts), 4), dtype=np.float32)


@pytest.mark.parametrize("number", [SEEN_CASE, "99999999", "20100001"])
@pytest.mark.parametrize("tokens", growth.TOKENS)
@pytest.mark.parametrize(("head", "views"), [(latency._ONE_VIEW, 1), (latency._TWO_VIEWS, 2)])
def test_a_text_has_as_many_views_as_its_row_says(head: str, views: int, tokens: int, number: str):
    """For every number. "Case 1000000:" was long enough to be an opening, from the tenth turn on."""
    sentences = _Counted()
    FeatureEncoder(sentences).encode([latency.text_of(head, tokens).replace("CASE", number)[:512]])
    assert sentences.views == views


def test_other_new_texts_have_the_same_views_for_every_number():
    for text in (TEXT, JUDGED):
        counts = []
        for number in (SEEN_CASE, "99999999"):
            sentences = _Counted()
            FeatureEncoder(sentences).encode([text.replace("CASE", number)])
            counts.append(sentences.views)
        assert counts[0] == counts[1]
    sentences = _Counted()
    FeatureEncoder(sentences).encode([next(client.texts(48, fresh=True)) for _ in range(3)])
    assert sentences.views == 3


def test_the_bare_listener_has_no_access_log():
    """It stands beside the listener that it is a copy of."""
    manager = {"stat_prefix": "plain", "access_log": [{"name": "stdout"}], "http_filters": []}
    address = {"socket_address": {"address": "127.0.0.1", "port_value": 1}}
    listener = {"name": "plain", "address": address, "filter_chains": [{"filters": [{"typed_config": manager}]}]}
    bootstrap = {"static_resources": {"listeners": [{"name": "llm"}, listener]}}
    listeners = with_bare_listener(bootstrap, 7)["static_resources"]["listeners"]
    assert listeners[:2] == bootstrap["static_resources"]["listeners"] and len(listeners) == 3
    assert listeners[2] == {
        "name": "bare", "address": {"socket_address": {"address": "127.0.0.1", "port_value": 7}},
        "filter_chains": [{"filters": [{"typed_config": {"stat_prefix": "bare", "http_filters": []}}]}],
    }  # fmt: skip


def test_the_interpreter_is_named_with_its_version_and_build():
    version = subprocess.run([sys.executable, "--version"], capture_output=True, text=True).stdout.split()[1]
    assert re.fullmatch(rf"\w+ {re.escape(version)}, built (with(out)? PGO )?by .+", interpreter())


@pytest.mark.parametrize(
    ("flags", "mapped", "expected"),
    [
        ("'--enable-optimizations'", "", "built with PGO by GCC 14"),
        ("-O3 -fprofile-use", "libpython3.13.so.1.0", "built with PGO by GCC 14"),
        ("'--enable-ipv6' -O2", "", "built without PGO by GCC 14"),
        ("'--enable-shared' -O2", "/usr/lib/libpython3.13.so.1.0", "built without PGO by GCC 14"),
        ("'--enable-shared' -O2", "/usr/bin/python3.13", "built by GCC 14, PGO not recorded"),
    ],
)
def test_the_flags_of_another_build_say_nothing_about_pgo(flags: str, mapped: str, expected: str):
    """Debian records the flags of the shared library, which its interpreter does not use."""
    assert built(flags, "GCC 14", mapped) == expected


def test_a_connection_counts_answers_that_no_decision_led_to():
    connections = [client.Connection(None, None) for _ in range(2)]  # type: ignore[arg-type]
    assert client.unexpected(connections) == ""
    connections[0].unexpected.update({"fail_open": 2})
    connections[1].unexpected.update({"fail_open": 1, "no reason": 1})
    assert client.unexpected(connections) == "FAILED: 3 fail_open, 1 no reason"
