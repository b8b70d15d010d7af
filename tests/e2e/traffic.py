"""Shared by the end-to-end tests: raw HTTP, prompts with a clear cohort, a second Envoy, and waiting."""

import contextlib
import copy
import http.client
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from extproc.demo.sample_upstream import Received, SampleUpstreams
from extproc.demo.stack import Stack

REPOSITORY = Path(__file__).parents[2]
INTENTS = REPOSITORY / "intents"

CHAT, COMPLETIONS, RESPONSES, MESSAGES = (
    "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages",
)  # fmt: skip
APIS = (CHAT, COMPLETIONS, RESPONSES, MESSAGES)

EXTRACT = "Extract the sender, amount and due date as JSON: Invoice from Nordwind, 420 EUR, due 3 May."
PROVE = "Prove that the sum of two odd numbers is even."
LEGAL = "Is this non-compete clause enforceable if the employee was made redundant?"

MODELS = {"small": "qwen3-8b", "large": "qwen3-32b", "frontier": "frontier-1"}

_DECISION = ("x-router-cohort", "x-router-tier", "x-router-reason")
# Their values for each prompt.
EXTRACTED = {"x-router-cohort": "extraction", "x-router-tier": "small", "x-router-reason": "matched"}
PROVED = {"x-router-cohort": "math_reasoning", "x-router-tier": "large", "x-router-reason": "matched"}
JUDGED = {"x-router-cohort": "compliance", "x-router-tier": "frontier", "x-router-reason": "matched"}
FAILED_OPEN = {"x-router-tier": "large", "x-router-reason": "fail_open"}
# All headers of the contract, if the router answers.
REFUSED = {
    "x-router-cohort": "bad_request", "x-router-reason": "bad_request", "x-router-attempts": "0",
    "x-router-escalations": "0",
}  # fmt: skip
# In addition, if the first attempt served.
AT_ONCE = {"x-router-attempts": "1", "x-router-escalations": "0"}

_SMALL_INTENTS = {
    "extraction": "tier: small\nreasoning: off\nmax_output_tokens: 512",
    "math_reasoning": "tier: large\nreasoning: on",
    "compliance": "tier: frontier\nreasoning: {budget_tokens: 4096}\nrisk: high",
}
_UTTERANCES = {
    "extraction": (
        "Extract the vendor, amount and due date as JSON from this invoice",
        "List every person and company named in this text",
        "Pull all dates out of the passage as a table",
        "Get the phone numbers and emails from this signature block",
    ),
    "math_reasoning": (
        "Prove that the product of two even numbers is even",
        "A train leaves at noon and covers 300 km at 75 km/h, when does it arrive?",
        "Solve x squared minus five x plus six equals zero",
        "Show that 17 is a prime number",
    ),
    "compliance": (
        "Is this non-compete clause enforceable in court?",
        "Does the GDPR allow us to keep applicants' CVs without consent?",
        "Can an employer lawfully dismiss someone who is on sick leave?",
        "What are our legal duties under the working time law?",
    ),
}

T = TypeVar("T")


class Answer(msgspec.Struct, frozen=True):
    """One HTTP answer. Header names are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def said(self) -> dict[str, str]:
        """The contract's headers about the decision."""
        return {name: self.headers[name] for name in _DECISION if name in self.headers}

    @property
    def contract(self) -> dict[str, str]:
        """All headers with a name of the contract."""
        return {name: value for name, value in self.headers.items() if name.startswith("x-router-")}


def write_small_intents(folder: Path) -> Path:
    """Write three intents of four utterances for the sample's tiers. A router starts and reloads them quickly.

    The encoder is the smaller one.
    """
    folder.mkdir(parents=True)
    policy = (INTENTS / "policy.yaml").read_text().replace("multilingual-e5-small", "all-MiniLM-L6-v2")
    (folder / "policy.yaml").write_text(policy.replace("deadline_ms: 200", "deadline_ms: 20000"))
    for name, settings in _SMALL_INTENTS.items():
        (folder / f"{name}.yaml").write_text(small_intent(name, settings))
    return folder


def write_samples_with_floors(folder: Path) -> Path:
    """Write the sample intents with floors, so that every setting of a matched intent applies."""
    shutil.copytree(INTENTS, folder)
    for path in folder.glob("*.yaml"):
        text = path.read_text()
        if "\nutterances:" in text:
            path.write_text(text.replace("\nutterances:", "\nfloor: 0\nutterances:"))
    return folder


def small_intent(name: str, settings: str) -> str:
    """Return the YAML of one of the small intents, with other settings."""
    utterances = "\n".join(f'  - "{words}"' for words in _UTTERANCES[name])
    return f"intent: {name}\n{settings}\nfloor: 0.05\nutterances:\n{utterances}\n"


def ledger_of(stack: Stack) -> Path:
    """The ledger of a stack that `with_ledger` starts."""
    return stack.folder / "ledger.sqlite"


@contextlib.contextmanager
def with_ledger(stack: Stack, *options: str) -> Iterator[Stack]:
    """Start a router that keeps a ledger, and Envoy, and stop them at the end."""
    try:
        stack.start_router(options=["--ledger", str(ledger_of(stack)), *options])
        stack.start_envoy()
        yield stack
    finally:
        stack.stop()


def send(
    port: int,
    path: str,
    body: bytes | Iterable[bytes] | None = None,
    headers: dict[str, str] | None = None,
    method: str = "POST",
) -> Answer:
    """Send exactly these bytes. Several byte strings are sent as chunks."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    given = {"content-type": "application/json"} if body is not None else {}
    chunked = body is not None and not isinstance(body, bytes)
    given |= {"transfer-encoding": "chunked"} if chunked else {}
    try:
        # A server may refuse a body early and close the connection. Its answer can still be read.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.request(method, path, body, given | (headers or {}), encode_chunked=chunked)
        answer = connection.getresponse()
        return Answer(answer.status, {n.lower(): v for n, v in answer.headers.items()}, answer.read())
    finally:
        connection.close()


def ask(port: int, prompt: str, path: str = CHAT, model: str = "auto", **more: Any) -> Answer:
    """Send one prompt in the shape of the API at `path`."""
    return send(port, path, msgspec.json.encode(body_of(path, prompt, model) | more))


def body_of(path: str, prompt: str, model: str = "auto") -> dict[str, Any]:
    """Return the smallest body with `prompt`."""
    message = {"role": "user", "content": prompt}
    bodies: dict[str, dict[str, Any]] = {
        CHAT: {"model": model, "messages": [message]},
        COMPLETIONS: {"model": model, "prompt": prompt},
        RESPONSES: {"model": model, "input": prompt},
        MESSAGES: {"model": model, "max_tokens": 2000, "messages": [message]},
    }
    return bodies[path]


def twice_error(path: str) -> dict[str, Any]:
    """Return the error for a body in which a member appears twice, in the shape of the API at `path`."""
    error = {"type": "invalid_request_error", "message": "a member of the body appears more than once"}
    return (
        {"type": "error", "error": error} if path == MESSAGES else {"error": error | {"param": None, "code": None}}
    )


def arrived(stack: Stack) -> Received:
    """Return the request that reached an upstream last."""
    return stack.upstreams.received[-1]


def contract_headers(received: Received) -> dict[str, str]:
    """Return the headers that an upstream received under names that clients cannot set."""
    prefixes = ("x-router-", "x-cascade-", "x-envoy-max-", "x-envoy-retry-")
    return {name: value for name, value in received.headers.items() if name.startswith(prefixes)}


def eventually(look: Callable[[], T | None], what: str, within_s: float = 40.0) -> T:
    """Call `look` until its result is true, and return the result."""
    deadline = time.monotonic() + within_s
    while not (seen := look()):
        assert time.monotonic() < deadline, f"not within {within_s:.0f} s: {what}; last seen: {seen!r}"
        time.sleep(0.05)
    return seen


class Flow:
    """Requests one after the other, in two threads, while the `with` block runs."""

    def __init__(self, port: int, prompt: str) -> None:
        self.answers: list[Answer] = []
        self.errors: list[Exception] = []
        self._port, self._prompt = port, prompt
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(2)]

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self.answers.append(ask(self._port, self._prompt))
            except Exception as error:
                self.errors.append(error)
            self._stop.wait(0.01)

    def __enter__(self) -> "Flow":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(40)

    def flows_on(self, count: int = 5) -> None:
        """Wait until `count` more answers have come."""
        so_far = len(self.answers)
        eventually(lambda: len(self.answers) >= so_far + count, "requests flow")

    def failures(self) -> list[object]:
        """Return everything that a client would call an error."""
        return [*self.errors, *(answer for answer in self.answers if answer.status != 200)]


@contextlib.contextmanager
def envoy_beside(
    stack: Stack,
    folder: Path,
    edit: Callable[[dict[str, Any]], None],
    upstreams: SampleUpstreams | None = None,
) -> Iterator[Stack]:
    """Start a second Envoy on the router of `stack`, with another bootstrap."""
    beside = Stack(stack.intents, folder, upstreams or stack.upstreams)
    beside.router_port, beside.router = stack.router_port, stack.router
    bootstrap = copy.deepcopy(beside.bootstrap())
    edit(bootstrap)
    try:
        beside.start_envoy(bootstrap)
        yield beside
    finally:
        beside.router = None  # the other stack ends it
        beside.stop()


def manager_of(bootstrap: dict[str, Any]) -> dict[str, Any]:
    """Return the HTTP connection manager of the rendered listener."""
    manager: dict[str, Any] = bootstrap["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0][
        "typed_config"
    ]
    return manager


def numberless(body: bytes) -> bytes:
    """Return an answer without the number that makes the id of each response a new one."""
    return re.sub(rb"(resp_[a-z]+)_[0-9]+", rb"\1", body)
