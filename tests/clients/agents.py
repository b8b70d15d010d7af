"""Coding agents as the tests run them: without a terminal, one turn at a time, each in a separate folder."""

import contextlib
import http.client
import json
import signal
import subprocess
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from extproc.demo.processes import end, free_ports, start
from tests.clients.recipes import recipe, settings
from tests.clients.served import ENVIRONMENT, NODE_PACKAGES
from tests.clients.terminal import in_terminal

_CLAUDE = NODE_PACKAGES / "@anthropic-ai/claude-code-linux-x64/claude"
_CODEX = NODE_PACKAGES / ".bin/codex"
_OPENCODE = NODE_PACKAGES / "opencode-linux-x64/bin/opencode"
_TURN_S = 120.0


class AgentError(Exception):
    """The agent ended a turn with an error. The message is what it prints."""


class Agent(Protocol):
    """One conversation with an agent. The first turn starts it, and the others continue it."""

    folder: Path

    def turn(self, prompt: str) -> str:
        """Return the text of the agent's last answer. Raises AgentError."""

    def pieces(self, prompt: str) -> Iterator[str]:
        """Yield the text of an answer piece by piece, as the agent shows it."""

    @contextlib.contextmanager
    def interrupted(self, prompt: str) -> Iterator[None]:
        """Start a turn, and interrupt it after the block."""


class CommandAgent:
    """An agent whose every turn is a process."""

    def __init__(self, folder: Path, env: dict[str, str]) -> None:
        self.folder = folder
        self.env = ENVIRONMENT | {"HOME": str(folder)} | env
        self._turns = 0

    def turn(self, prompt: str) -> str:
        done = subprocess.run(
            self._next(prompt), cwd=self.folder, env=self.env, stdin=subprocess.DEVNULL, capture_output=True,
            text=True, timeout=_TURN_S, check=False,
        )  # fmt: skip
        events = [json.loads(line) for line in done.stdout.splitlines()]
        if done.returncode != 0:
            raise AgentError(f"exit status {done.returncode}: {done.stdout}{done.stderr}")
        return self.last_text(events)

    @contextlib.contextmanager
    def interrupted(self, prompt: str) -> Iterator[None]:
        process = subprocess.Popen(
            self._next(prompt), cwd=self.folder, env=self.env, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            yield
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(_TURN_S)

    def _next(self, prompt: str) -> list[str]:
        self._turns += 1
        return self.command(prompt, resumed=self._turns > 1)

    def command(self, prompt: str, resumed: bool) -> list[str]:
        raise NotImplementedError

    def last_text(self, events: list[dict[str, Any]]) -> str:
        raise NotImplementedError


class ClaudeCode(CommandAgent):
    """`claude -p`. Its events include the pieces of its streams."""

    def __init__(self, folder: Path, url: str) -> None:
        super().__init__(folder, settings("Claude Code", url))

    def command(self, prompt: str, resumed: bool) -> list[str]:
        printed = ["--output-format", "stream-json", "--verbose", "--include-partial-messages"]
        return [str(_CLAUDE), "-p", *printed, *(["--continue"] if resumed else []), prompt]

    @contextlib.contextmanager
    def in_terminal(self, prompt: str) -> Iterator[None]:
        """Run the agent with its screen during the block, as if the person had seen its welcome."""
        project = {"hasTrustDialogAccepted": True, "hasCompletedProjectOnboarding": True}
        seen = {"hasCompletedOnboarding": True, "theme": "dark", "projects": {str(self.folder): project}}
        (self.folder / ".claude.json").write_text(json.dumps(seen))
        with in_terminal([str(_CLAUDE), prompt], self.folder, self.env):
            yield

    def pieces(self, prompt: str) -> Iterator[str]:
        with _lines_of(self._next(prompt), self.folder, self.env) as (events, _):
            for event in events:
                delta = event["event"].get("delta", {}) if event["type"] == "stream_event" else {}
                if "text" in delta:
                    yield delta["text"]

    def last_text(self, events: list[dict[str, Any]]) -> str:
        return str(events[-1]["result"])


class Codex(CommandAgent):
    """`codex exec`."""

    def __init__(self, folder: Path, url: str) -> None:
        super().__init__(folder, {"ENVOY_KEY": "key"})
        (folder / ".codex").mkdir()
        self.config = folder / ".codex/config.toml"
        self.config.write_text(recipe("~/.codex/config.toml", url))

    def command(self, prompt: str, resumed: bool) -> list[str]:
        return [
            str(_CODEX),
            "exec",
            "--json",
            "--skip-git-repo-check",
            *(["resume", "--last"] if resumed else []),
            prompt,
        ]

    def pieces(self, prompt: str) -> Iterator[str]:
        """`codex exec` prints whole answers, so its server for editors is asked."""
        with _lines_of([str(_CODEX), "app-server"], self.folder, self.env) as (messages, send):
            send({"id": 0, "method": "initialize", "params": {"clientInfo": {"name": "test", "version": "1"}}})
            send({"method": "initialized"})
            send({"id": 1, "method": "thread/start", "params": {"cwd": str(self.folder)}})
            for message in messages:
                if message.get("id") == 1:
                    turn = {"threadId": message["result"]["thread"]["id"], "input": [_text(prompt)]}
                    send({"id": 2, "method": "turn/start", "params": turn})
                elif message.get("method") == "item/agentMessage/delta":
                    yield message["params"]["delta"]
                elif message.get("method") == "turn/completed":
                    return

    def last_text(self, events: list[dict[str, Any]]) -> str:
        items = [event["item"] for event in events if event["type"] == "item.completed"]
        return str([item["text"] for item in items if item["type"] == "agent_message"][-1])


class OpenCodeServer:
    """`opencode serve`. A start of opencode takes seconds, so one server runs every conversation."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        (folder / "opencode.json").write_text(recipe("opencode.json", url))
        (self._port,) = free_ports(1)
        command = [str(_OPENCODE), "serve", "--hostname", "127.0.0.1", "--port", str(self._port)]
        with contextlib.chdir(folder):  # opencode works in the folder in which it starts
            env = {"HOME": str(folder)} | settings("opencode", url)
            self._process = start("opencode", command, [self._port], self._ready, folder / "log", env=env)

    def call(self, path: str, body: dict[str, Any]) -> Any:
        """Return the answer of the server's own API."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=_TURN_S)
        with contextlib.closing(connection):
            connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
            answer = connection.getresponse().read()
        return json.loads(answer) if answer else None

    def close(self) -> None:
        end(self._process)

    @contextlib.contextmanager
    def events(self) -> Iterator[Iterator[dict[str, Any]]]:
        """The events of the server from now on."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=_TURN_S)
        with contextlib.closing(connection):
            connection.request("GET", "/event")
            lines = connection.getresponse()
            yield (json.loads(line.removeprefix(b"data: ")) for line in lines if line.startswith(b"data: "))

    def _ready(self) -> bool:
        try:
            return urllib.request.urlopen(f"http://127.0.0.1:{self._port}/path", timeout=2).status == 200
        except OSError:
            return False


class OpenCode:
    """One session of a server."""

    def __init__(self, server: OpenCodeServer) -> None:
        self.folder = server.folder
        self._server = server
        self._session = server.call("/session", {})["id"]

    def turn(self, prompt: str) -> str:
        answer = self._server.call(f"/session/{self._session}/message", _said(prompt))
        if "error" in answer["info"]:
            raise AgentError(answer["info"]["error"]["data"]["message"])
        return str([part["text"] for part in answer["parts"] if part["type"] == "text"][-1])

    def pieces(self, prompt: str) -> Iterator[str]:
        with self._server.events() as events:
            next(events)  # the server sends every event from its first one on
            self._server.call(f"/session/{self._session}/prompt_async", _said(prompt))
            for event in events:
                of_session = event["properties"].get("sessionID") == self._session
                if of_session and event["type"] == "message.part.delta" and event["properties"]["field"] == "text":
                    yield event["properties"]["delta"]
                elif of_session and event["type"] == "session.idle":
                    return

    @contextlib.contextmanager
    def interrupted(self, prompt: str) -> Iterator[None]:
        self._server.call(f"/session/{self._session}/prompt_async", _said(prompt))
        try:
            yield
        finally:
            self._server.call(f"/session/{self._session}/abort", {})


def _said(prompt: str) -> dict[str, Any]:
    return {"parts": [_text(prompt)]}


def _text(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


@contextlib.contextmanager
def _lines_of(
    command: list[str], folder: Path, env: dict[str, str]
) -> Iterator[tuple[Iterator[dict[str, Any]], Callable[[dict[str, Any]], None]]]:
    """Run a program that prints a JSON object a line. Yield these objects, and the function that sends it one."""
    process = subprocess.Popen(
        command, bufsize=0, cwd=folder, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert process.stdin is not None and process.stdout is not None
    given, printed = process.stdin, process.stdout

    def send(message: dict[str, Any]) -> None:
        given.write(json.dumps(message).encode() + b"\n")

    stop = threading.Timer(_TURN_S, process.kill)
    stop.start()
    try:
        yield (json.loads(line) for line in printed), send
    finally:
        stop.cancel()
        process.kill()
        process.communicate()
