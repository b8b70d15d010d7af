"""The stack as the clients see it, what reached its upstreams, and the processes of clients."""

import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from extproc.demo.sample_upstream import Received
from extproc.demo.stack import Stack
from tests.clients.upstream import Refusal, StrictUpstreams
from tests.e2e.traffic import EXTRACT, LEGAL, PROVE

# `make test` installs the clients under test.
PYTHON_PACKAGES, NODE_PACKAGES = (Path(sys.prefix) / "clients" / part for part in ("python", "node_modules"))
_DRIVERS = Path(__file__).parent / "drivers"
# No client gets more of this process's environment than this.
ENVIRONMENT = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", "NO_COLOR": "1"}
_ANSWER_S = 120.0

INVOICE = "Invoice from Nordwind, 420 EUR, due 3 May."
# Six turns in three cohorts, and the tier of each turn's cohort.
TURNS = {
    EXTRACT: "small",
    PROVE: "large",
    LEGAL: "frontier",
    "List every person and company named in this text: Ada Lovelace wrote to Nordwind.": "small",
    "Solve x squared minus five x plus six equals zero.": "large",
    "Does the GDPR allow us to keep applicants' CVs without consent?": "frontier",
}


def turns_of(client: str) -> list[str]:
    """Return the prompts of the six turns. Without an id, two conversations that open alike look the same."""
    return [f"{prompt} ({client})" if number == 0 else prompt for number, prompt in enumerate(TURNS)]


class Driver:
    """A process that runs a scenario with one client for each command."""

    def __init__(self, command: Sequence[str], env: dict[str, str], folder: Path) -> None:
        self._log = (folder / "stderr").open("wb")
        self._process = subprocess.Popen(
            command, bufsize=0, env=env, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log
        )

    def __call__(self, scenario: str, on_text: Callable[[], None] | None = None, **options: Any) -> Any:
        """Return what the scenario returned, or raise Raised. Call `on_text` when a piece of text has arrived."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps({"do": scenario, **options}).encode() + b"\n")
        self._process.stdin.flush()
        while "shown" in (answer := self._next_line()):
            if answer["shown"] and on_text is not None:
                on_text()
        if "raised" in answer:
            raise Raised(answer["raised"], answer["status"], answer["text"])
        return answer["result"]

    def _next_line(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        assert select.select([self._process.stdout], [], [], _ANSWER_S)[0], f"no answer in {_ANSWER_S:.0f} s"
        line = self._process.stdout.readline()
        assert line, Path(self._log.name).read_text()
        decoded: dict[str, Any] = json.loads(line)
        return decoded

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()
        self._log.close()


class Raised(Exception):
    """The exception of a client: its class and the classes above it, the HTTP status, and the text."""

    def __init__(self, classes: list[str], status: int | None, text: str) -> None:
        super().__init__(f"{classes[0]} {status}: {text}")
        self.classes, self.status, self.text = classes, status, text


class Served:
    """The stack, and what its upstreams received."""

    def __init__(self, stack: Stack, upstreams: StrictUpstreams, home: Path) -> None:
        self.stack, self.upstreams, self.home = stack, upstreams, home
        self.url = stack.url
        self.invoice = home / "invoice.txt"
        self.invoice.write_text(INVOICE + "\n")

    @property
    def read_invoice(self) -> str:
        """A prompt for the small tier, for which a model has to read a file."""
        return f"Extract the sender, amount and due date as JSON from {self.invoice}"

    def recorded(self) -> "Recorded":
        """Return a record of the requests that reach upstreams from now on."""
        return Recorded(self.upstreams)

    @contextlib.contextmanager
    def driver(self, name: str, recipe_text: str) -> Iterator[Driver]:
        """Start a driver with its recipe."""
        folder = self.home / name
        folder.mkdir()
        env = ENVIRONMENT | {"HOME": str(folder)}
        shutil.copytree(_DRIVERS, folder, dirs_exist_ok=True)
        if name.endswith(".mjs"):
            (folder / "node_modules").symlink_to(NODE_PACKAGES)
            names = [line.split()[1] for line in recipe_text.splitlines() if line.startswith("const ")]
            (folder / "recipe.mjs").write_text(f"{recipe_text}\nexport {{ {', '.join(names)} }};\n")
            command = ["node", name]
        else:
            (folder / "recipe.py").write_text(recipe_text)
            env |= {"PYTHONPATH": str(PYTHON_PACKAGES)}
            command = [sys.executable, name]
        driver = Driver(command, env, folder)
        try:
            yield driver
        finally:
            driver.close()


class Recorded:
    """The requests that reached upstreams since its creation, and how their streams ended."""

    def __init__(self, upstreams: StrictUpstreams) -> None:
        self._upstreams = upstreams
        self._received, self._refused = len(upstreams.received), len(upstreams.refused)
        self._endless, self._cancelled = len(upstreams.endless), len(upstreams.cancelled)

    @property
    def requests(self) -> list[Received]:
        return self._upstreams.received[self._received :]

    @property
    def refused(self) -> list[Refusal]:
        return self._upstreams.refused[self._refused :]

    @property
    def endless(self) -> list[str]:
        """The tiers that send a stream without an end."""
        return self._upstreams.endless[self._endless :]

    @property
    def cancelled(self) -> list[str]:
        """The tiers whose client left during a stream."""
        return self._upstreams.cancelled[self._cancelled :]

    @property
    def tiers(self) -> list[str]:
        return [received.tier for received in self.requests]

    def bodies(self) -> list[dict[str, Any]]:
        return [msgspec.json.decode(received.body) for received in self.requests if received.body]
