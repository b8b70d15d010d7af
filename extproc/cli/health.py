"""The commands that ask a running router: `health` and `status`."""

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from extproc.cli.options import add_command, all_or_none, parse_server_address
from extproc.mismatch import counted

if TYPE_CHECKING:
    from extproc.cli.options import Commands
    from extproc.config.standing import Status
    from extproc.serving.dialing import DialTls


def add_health_commands(commands: "Commands") -> None:
    """Add both commands."""
    health = add_command(
        commands, "health", _health, "Ask a router whether it serves. The exit code is 0 if it does, and 1 if not."
    )
    health.add_argument(
        "address",
        type=parse_server_address,
        nargs="?",
        default="127.0.0.1:50051",
        metavar="HOST:PORT|unix:///PATH",
        help="address of the router, or of the health service of several workers (default: %(default)s)",
    )
    _tls_options(health)
    status = add_command(
        commands, "status", _status,
        "Show the revision that a router serves, against its files and Envoy. It says why the files are refused, "
        "and what Envoy lacks. The exit code is 0 if the files serve and Envoy needs no update, and 1 if not.",
    )  # fmt: skip
    status.add_argument(
        "address",
        type=parse_server_address,
        nargs="?",
        default="127.0.0.1:50051",
        metavar="HOST:PORT|unix:///PATH",
        help="address of the router; of several workers, each has its own port (default: %(default)s)",
    )
    _tls_options(status)


def _tls_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--tls-cert",
        type=Path,
        metavar="FILE",
        help="certificate chain that this command shows to a router with mutual TLS (PEM); needs --tls-key and "
        "--tls-ca",
    )
    command.add_argument(
        "--tls-key", type=Path, metavar="FILE", help="private key of the certificate in --tls-cert (PEM)"
    )
    command.add_argument(
        "--tls-ca", type=Path, metavar="FILE", help="CA certificate used to verify the router's certificate (PEM)"
    )
    command.add_argument(
        "--tls-name",
        metavar="NAME",
        help="DNS name in the router's certificate (default: the host of the address, or `extproc` for an IP "
        "address or a socket)",
    )


def _tls(args: argparse.Namespace) -> "DialTls | None":
    from extproc.serving.dialing import DialTls

    files = all_or_none(args, "tls_cert", "tls_key", "tls_ca")
    if not files and args.tls_name is not None:
        raise ValueError("--tls-name works only with --tls-cert, --tls-key and --tls-ca: give them, too")
    return DialTls(args.tls_cert, args.tls_key, args.tls_ca, args.tls_name) if files else None


def _health(args: argparse.Namespace) -> int:
    from extproc.serving.health import health_of, refuses_files

    tls = _tls(args)
    answer = health_of(args.address, tls=tls)
    serving = answer is True
    older = serving and refuses_files(args.address, tls=tls)
    note = f" an older revision, as its files are refused: see `extproc status {args.address}`" if older else ""
    print(f"{args.address}: {'serving' if serving else 'not serving'}{note}")
    if answer is None:
        print(
            "extproc: no answer: start `extproc serve`, or give the address in its --listen, with --tls-cert, "
            "--tls-key and --tls-ca if it has --tls-cert",
            file=sys.stderr,
        )
    return 0 if serving else 1


def _status(args: argparse.Namespace) -> int:
    from extproc.serving.files import ask_status

    status = ask_status(args.address, _tls(args))
    print("\n".join(status_lines(args.address, status)))
    return 1 if status.refusal is not None or status.lacks else 0


def status_lines(address: str, status: "Status") -> Iterator[str]:
    """Yield what the router at `address` serves, against the files on disk and Envoy."""
    cohorts = counted(status.cohorts, "cohort")
    yield f"{address} serves revision {status.revision} with {cohorts}, since {_when(status.since)}"
    yield f"files     {_files(status)}"
    if status.refusal is not None:
        yield from (f"          {line}" for line in status.refusal.message.splitlines())
    if status.lacks:
        since = f"since revision {status.rendered_from}"
        yield f"Envoy     lacks these changes {since}: run `extproc envoy` again and update Envoy"
        yield from (f"          {change}" for change in status.lacks)
    else:
        yield f"Envoy     needs no update if it was rendered from revision {status.rendered_from}"
    for cohort, line in status.caches.items():
        yield f"cache     {cohort} {line}"
    for line in status.apps:
        yield f"app       {line}"
    for line in status.stale:
        yield f"stale     {line}"


def _files(status: "Status") -> str:
    if status.refusal is None:
        return f"{status.folder} has the revision that serves"
    kept = ", so the last good files serve, which were kept on disk" if status.last_good else ""
    return f"{status.folder} is refused ({status.refusal.kind}) since {_when(status.refusal.time)}{kept}:"


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))
