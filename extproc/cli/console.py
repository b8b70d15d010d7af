"""The command `console`: pages for a browser about decisions, traffic and evidence."""

import argparse
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from extproc.cli.options import add_command, intents_option, parse_address, parse_server_address

if TYPE_CHECKING:
    from extproc.cli.explain import Explained, Explainer
    from extproc.cli.options import Commands
    from extproc.console.pages import Tried
    from extproc.routing.policy import Policy


# The console has no options for certificates.
_REMEDY = (
    "give the port of `extproc serve` in --router; of a router with --tls-cert, only `extproc status --tls-cert` "
    "shows the status"
)


def add_console(commands: "Commands") -> None:
    """Add the command."""
    console = add_command(
        commands, "console", _console,
        "Show decisions, traffic, costs and rollouts in a browser. The pages change nothing and show no text of "
        "users. docs/guides/console.md is the guide.",
    )  # fmt: skip
    intents_option(console)
    console.add_argument(
        "--listen",
        type=parse_address,
        default="127.0.0.1:8686",
        metavar="HOST:PORT",
        help="address of the pages; they have no login, so leave it on this machine (default: %(default)s)",
    )
    console.add_argument(
        "--ledger",
        metavar="FILE|postgresql://...",
        help="the ledger that `extproc serve --ledger` writes (default: no traffic is shown)",
    )
    console.add_argument(
        "--router",
        type=parse_server_address,
        metavar="HOST:PORT|unix:///PATH",
        help="a router whose status the overview shows (default: none)",
    )
    console.add_argument(
        "--report",
        type=Path,
        metavar="FILE",
        help="the report that `extproc eval --json FILE` wrote, for the page on cost and quality (default: none)",
    )


def _console(args: argparse.Namespace) -> int:
    from extproc.cli.rollout import rollout_status
    from extproc.console.pages import Sources
    from extproc.console.server import ConsoleServer, serve_console

    decisions = _Decisions(args.intents)
    sources = Sources(
        policy=decisions.policy,
        explain=decisions.explain,
        rollout=lambda ledger: rollout_status(args.intents, ledger),
        router=_status_of(args.router) if args.router is not None else None,
        ledger=args.ledger,
        report=args.report,
    )
    host, _, port = args.listen.rpartition(":")
    return serve_console(ConsoleServer(host.strip("[]"), int(port), sources))


def _status_of(address: str) -> Callable[[], Iterator[str]]:
    from extproc.cli.health import status_lines
    from extproc.serving.files import ask_status

    return lambda: status_lines(address, ask_status(address, remedy=_REMEDY))


class _Decisions:
    """Explains requests by the files on disk. After an edit it loads them again."""

    def __init__(self, folder: Path) -> None:
        """Load the files and the encoder. Raises ConfigError and EncoderError."""
        from extproc.cli.explain import Explainer

        self._folder, self._lock = folder, threading.Lock()
        self._explainer: Explainer = Explainer(folder)

    def policy(self) -> "Policy":
        """The policy of the files on disk."""
        with self._lock:
            return self._current().snapshot.policy

    def explain(self, request: str) -> "Tried":
        """Explain the decision for a prompt, or for a request as a JSON object."""
        with self._lock:
            explainer = self._current()
            is_body = request.lstrip().startswith("{")
            return _tried(explainer.of_body(request.encode()) if is_body else explainer.of_prompt(request))

    def _current(self) -> "Explainer":
        from extproc.cli.explain import Explainer
        from extproc.config.load import load_config

        if load_config(self._folder).revision != self._explainer.snapshot.revision:
            self._explainer = Explainer(self._folder)
        return self._explainer


def _tried(explained: "Explained") -> "Tried":
    from extproc.cli.explain_match import BACKGROUND
    from extproc.console.pages import Tried

    decision, policy = explained.routed.decision, explained.routed.snapshot.policy
    ladder = ", then ".join(rung.tier.name for rung in decision.ladder)
    chances = [
        (name or BACKGROUND, policy.cohorts[name].needed_tier(policy) if name else policy.default_tier, chance)
        for name, chance in explained.by_chance.items()
    ]
    return Tried(
        verdict=f"{decision.tier.name} serves ({decision.reason.value})"
        + (f". If it fails or its answer is rejected: {ladder}." if ladder else "."),
        chances=chances,
        text=explained.text,
    )
