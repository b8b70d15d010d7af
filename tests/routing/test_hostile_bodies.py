"""The CPU time of a hostile body, compared with that of an ordinary body of the same size."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from extproc.config.compile import compile_snapshot
from extproc.config.load import load_config
from extproc.contract.names import Namespace
from extproc.messages import Event, Opening
from extproc.routing.exchange import RouterExchange
from extproc.routing.router import Router
from tests.routing.test_exchange import WordEmbedder

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
MEGABYTE = 1 << 20
# The slowest shapes take 1.6 times as long as code, of which every ninth byte is escaped. Other load adds noise.
MOST = 4.0
ASK = b'"messages":[{"role":"user","content":"Send my last invoice again"}],'


def filled(size: int, start: bytes, unit: bytes, end: bytes) -> bytes:
    """Return `start`, then `unit` as often as fits, then `end`."""
    return start + unit * ((size - len(start) - len(end)) // len(unit)) + end


def members(size: int, start: bytes, end: bytes) -> bytes:
    """Return an object with as many different members as fit."""
    width = len(str(size))
    count = (size - len(start) - len(end)) // (width + 5)
    return start + b"".join(b'"%0*d":1,' % (width, i) for i in range(count)) + end


def of_items(item: bytes, member: bytes = b"messages") -> Callable[[int], bytes]:
    return lambda size: filled(size, b'{"model":"auto",%s"%s":[' % (ASK * (member != b"messages"), member),
                               item + b",", item + b"]}")  # fmt: skip


def of_text(unit: bytes, first: bytes = b"") -> Callable[[int], bytes]:
    start = b'{"model":"auto",%s"messages":[{"role":"user","content":"' % first
    return lambda size: filled(size, start, unit, b'"}]}')


CODE = of_text(rb"for i in range(10):\n    print(\"x\", i)  # fine\n")
SHAPES: dict[str, tuple[str, Callable[[int], bytes]]] = {
    "prompts that are objects": (COMPLETIONS, of_items(b'{"a":[]}', b"prompt")),
    "prompts that are lists": (COMPLETIONS, of_items(b"[]", b"prompt")),
    "prompts that are empty": (COMPLETIONS, of_items(b'""', b"prompt")),
    "empty messages": (CHAT, of_items(b"{}")),
    "messages that are numbers": (CHAT, of_items(b"0")),
    "messages with odd roles": (CHAT, of_items(b'{"role":5}')),
    "tools that are numbers": (CHAT, of_items(b"0", b"tools")),
    "empty tools": (CHAT, of_items(b"{}", b"tools")),
    "a list that nobody reads": (CHAT, of_items(b"[]", b"x")),
    "a tools object": (CHAT, lambda size: members(size, b'{"model":"auto",%s"tools":{' % ASK, b'"x":1}}')),
    "different members": (CHAT, lambda size: members(size, b'{"model":"auto",' + ASK, b'"x":1}')),
    "different members and NaN": (CHAT, lambda size: members(size, b'{"model":"auto","y":NaN,' + ASK, b'"x":1}')),
    "the same member": (CHAT, lambda size: filled(size, b'{"model":"auto",', b'"a":1,', b'"b":1}')),
    "variables": (CHAT, lambda size: members(size, b'{"model":"auto","prompt":{"variables":{', b'"x":1}}}')),
    "a name of escapes": (CHAT, lambda size: filled(size, b'{"model":"auto",%s"' % ASK, rb"\n", b'":1}')),
    "escapes": (CHAT, of_text(rb"\u0041")),
    "backslashes and NaN": (CHAT, of_text(rb"\\", b'"y":NaN,')),
    "halves of surrogate pairs": (CHAT, of_text(rb"\ud83d")),
    "surrogate pairs and NaN": (CHAT, of_text(rb"\ud83d\ude00", b'"y":NaN,')),
    "NaN in a list": (CHAT, of_items(b"NaN", b"x")),
    "bytes that are not UTF-8": (CHAT, of_text(b"\xff")),
    "tags": (CHAT, of_text(b"<system-reminder>")),
    "lists in lists": (CHAT, lambda size: filled(size, b'{"model":"auto","x":', b"[", b"")),
    "objects in objects": (CHAT, lambda size: filled(size, b'{"model":"auto","messages":', b'{"content":', b"")),
    "ten thousand spaces each": (CHAT, of_items(b'{"role":"user","content":" "' + b" " * 10_000 + b"}")),
}


@pytest.fixture(scope="module")
def router(words) -> Router:
    return Router(
        compile_snapshot(load_config(Path(__file__).parents[1] / "configs/good"), words), WordEmbedder(words)
    )


async def replied(router: Router, path: str, raw: bytes) -> None:
    """Route a body as a stream does, and check that no upstream would get the name that only we know."""
    exchange = RouterExchange(router, Opening({":path": path}, "BUFFERED", "NONE"))
    [reply] = await exchange.answer(Event("request_body", True, raw))
    assert reply.metadata is not None and Namespace.DECISION in reply.metadata
    assert reply.status == 400 or b'"auto"' not in (reply.body or raw)[:100]


def cpu_s(router: Router, path: str, raw: bytes, runs: int = 3) -> float:
    """CPU seconds of this process for one body: the least of several runs."""
    used = []
    for _ in range(runs):
        began = time.process_time()
        asyncio.run(replied(router, path, raw))
        used.append(time.process_time() - began)
    return min(used)


# The slowest of each kind. All shapes at 32 MiB take a minute.
SLOWEST = (
    "a tools object",
    "a name of escapes",
    "backslashes and NaN",
    "bytes that are not UTF-8",
    "empty messages",
)


@pytest.mark.parametrize(("megabytes", "names"), [(8, tuple(SHAPES)), (32, SLOWEST)], ids=["8 MiB", "32 MiB"])
def test_no_shape_costs_far_more_than_code_of_the_same_size(router, megabytes, names):
    """A body of any content costs a small multiple of an ordinary conversation."""
    size = megabytes * MEGABYTE
    ordinary = cpu_s(router, CHAT, CODE(size))
    for runs in (1, 3):  # what looks slow is measured again, because other load adds to the CPU time
        ratios = {name: cpu_s(router, SHAPES[name][0], SHAPES[name][1](size), runs) / ordinary for name in names}
        slow = {name: round(ratio, 1) for name, ratio in ratios.items() if ratio > MOST}
        names = tuple(slow)
    assert slow == {}


def test_a_large_body_is_read_beside_the_event_loop(router, monkeypatch):
    """The same function reads it, in a thread of a small pool."""
    raw = CODE(MEGABYTE)
    routed = asyncio.run(router.route(raw, {":path": CHAT}))
    monkeypatch.setattr("extproc.routing.router.LARGE_BYTES", 2 * MEGABYTE)
    on_the_loop = asyncio.run(router.route(raw, {":path": CHAT}))
    assert msgspec.structs.replace(routed, stages={}) == msgspec.structs.replace(on_the_loop, stages={})
