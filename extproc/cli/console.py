"""The command `console`: pages for a browser about decisions, traffic and evidence."""

import argparse
import contextlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from extproc.cli.options import add_command, intents_option, parse_address, parse_server_address

# A browser without an answer looks broken.
_PATIENCE_S = 3.0

if TYPE_CHECKING:
    from extproc.accounting.rollout_text import RolloutText
    from extproc.cli.explain import Explained, Explainer
    from extproc.cli.options import Commands
    from extproc.console.page import RouterStatus, Tried
    from extproc.routing.snapshot import Snapshot


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
    from extproc.console.page import Sources
    from extproc.console.server import ConsoleServer, serve_console

    decisions = _Decisions(args.intents)
    sources = Sources(
        snapshot=decisions.snapshot,
        explain=decisions.explain,
        rollout=decisions.rollout,
        router=_status_of(args.router) if args.router is not None else None,
        ledger=args.ledger,
        report=args.report,
    )
    host, _, port = args.listen.rpartition(":")
    return serve_console(ConsoleServer(host.strip("[]"), int(port), sources))


def _status_of(address: str) -> Callable[[], "RouterStatus"]:
    from extproc.cli.health import status_lines
    from extproc.console.page import RouterStatus
    from extproc.serving.files import ask_status

    def read() -> RouterStatus:
        status = ask_status(address, remedy=_REMEDY)
        return RouterStatus(list(status_lines(address, status)), status.caches)

    return read


class _Decisions:
    """Explains requests by the files on disk. After an edit it loads them again."""

    def __init__(self, folder: Path) -> None:
        """Check the files. The encoder loads in a thread, because most pages need none. Raises ConfigError."""
        from extproc.config.load import load_config

        load_config(folder)
        self._folder, self._lock = folder, threading.Lock()
        self._explainer: Explainer | None = None
        threading.Thread(target=self._warm_up, daemon=True).start()

    def _warm_up(self) -> None:
        with self._lock, contextlib.suppress(Exception):  # the pages that need the encoder show the error
            self._current()

    def snapshot(self) -> "Snapshot":
        """The files on disk, compiled. Raises Loading if the encoder takes longer than a person waits."""
        from extproc.console.page import Loading

        if not self._lock.acquire(timeout=_PATIENCE_S):
            raise Loading("the encoder is loading: this page comes by itself when that is done")
        try:
            return self._current().snapshot
        finally:
            self._lock.release()

    def explain(self, request: str) -> "Tried":
        """Explain the decision for a prompt, or for a request as a JSON object."""
        with self._lock:
            explainer = self._current()
            return _tried(_explained(explainer, request), _of_candidate(explainer, request))

    def rollout(self, ledger: str) -> "RolloutText | None":
        """Compare the candidate of the files on disk. None: there is none."""
        from extproc.cli.rollout import rollout_status
        from extproc.config.load import load_config

        has_candidate = load_config(self._folder).policy.candidate is not None
        return rollout_status(self._folder, ledger) if has_candidate else None

    def _current(self) -> "Explainer":
        """Raises OSError with a remedy if the encoder cannot be loaded."""
        from extproc.cli.explain import Explainer
        from extproc.encoder.protocols import EncoderError

        if self._explainer is None or self._explainer.is_stale():
            try:
                self._explainer = Explainer(self._folder)
            except EncoderError as error:
                raise OSError(str(error)) from error
        return self._explainer


def _explained(explainer: "Explainer", request: str) -> "Explained":
    is_body = request.lstrip().startswith("{")
    return explainer.of_body(request.encode()) if is_body else explainer.of_prompt(request)


def _of_candidate(explainer: "Explainer", request: str) -> str:
    """The decision of the policy's candidate, in a sentence. Empty: there is none."""
    from extproc.config.load import ConfigError

    try:
        candidate = explainer.candidate()
    except ConfigError as error:
        return f"is off, because its files have mistakes: {error}"
    return _sentence(_explained(candidate, request)) if candidate is not None else ""


def _tried(explained: "Explained", candidate: str) -> "Tried":
    from extproc.cli.explain_match import BACKGROUND
    from extproc.console.page import Tried

    policy = explained.routed.snapshot.policy
    chances = [
        (name or BACKGROUND, policy.cohorts[name].needed_tier(policy) if name else policy.default_tier, chance)
        for name, chance in explained.by_chance.items()
    ]
    return Tried(_sentence(explained), chances, explained.text, candidate)


def _sentence(explained: "Explained") -> str:
    """The decision in words: the tier, the reason, and the tiers that come next."""
    decision = explained.routed.decision
    if explained.routed.refusal is not None:
        return f"{explained.routed.refusal.status}: {explained.routed.refusal.message} ({decision.reason.value})"
    ladder = ", then ".join(rung.tier.name for rung in decision.ladder)
    cohort = f" as `{decision.cohort.name}`" if decision.cohort is not None else ""
    next_tiers = f". If it fails or its answer is rejected: {ladder}." if ladder else "."
    return f"{decision.tier.name} serves{cohort} ({decision.reason.value}){next_tiers}"
