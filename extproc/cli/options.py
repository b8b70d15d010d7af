"""Parts that several commands share: adding a command, argument types, common options."""

import argparse
import datetime
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

_UNIX = "unix:"
_LAST_PORT = 65_535


def add_command(
    commands: "Commands", name: str, run: Callable[[argparse.Namespace], int], description: str
) -> argparse.ArgumentParser:
    """Add a command that `run` carries out. `extproc --help` shows the first sentence of its description."""
    parser = commands.add_parser(name, description=description)
    parser.set_defaults(run=run)
    return parser


def _refusal(found: str, expected: str) -> argparse.ArgumentTypeError:
    """The error for a wrong argument. `argparse` puts the name of the option in front."""
    return argparse.ArgumentTypeError(f"found `{found}`, expected {expected}")


def _number(expected: str, fits: Callable[[float], bool]) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not fits(value):  # every comparison with "nan" is false, so "nan" is refused as well
            raise _refusal(text, expected)
        return value

    return parse


parse_share = _number("a share from 0 to 1, as in 0.1", lambda value: 0 <= value <= 1)
parse_open_share = _number("a share above 0 and below 1, as in 0.05", lambda value: 0 < value < 1)
parse_quality_drop = _number(
    "a share from 0 up and below 1, as in 0.02 for two percentage points", lambda value: 0 <= value < 1
)
parse_cost_rise = _number("a share from 0 up, as in 0.1 for 10 % more", lambda value: 0 <= value < math.inf)
parse_percent = _number("a percentage from 0 to 100, as in 5", lambda value: 0 <= value <= 100)
parse_days = _number("a number of days from 0 up, as in 90", lambda value: 0 <= value < math.inf)


def parse_seed(text: str) -> int:
    """A seed of random numbers: a whole number from 0 up."""
    if not (text.isascii() and text.isdecimal()):
        raise _refusal(text, "a whole number from 0 up, as in 7")
    return int(text)


def parse_count(text: str) -> int:
    """A number of things, from 1 up."""
    if not (text.isascii() and text.isdecimal()) or int(text) < 1:
        raise _refusal(text, "a whole number from 1 up, as in 200")
    return int(text)


def parse_workers(text: str) -> int:
    """A number of processes; `auto` is one for each core."""
    from extproc.serving.workers import cores

    if text == "auto":
        return cores()
    if not (text.isascii() and text.isdecimal()) or int(text) < 1:
        raise _refusal(text, "a number of processes from 1 up, or `auto` for one per core")
    return int(text)


def parse_header(text: str) -> str:
    """NAME: VALUE, as it was given."""
    if not text.partition(":")[1]:
        raise _refusal(text, "NAME: VALUE, as in 'host: llm.example.com'")
    return text


def parse_address(text: str) -> str:
    """HOST:PORT, as it was given."""
    if not _is_address(text):
        raise _refusal(text, "HOST:PORT, as in 127.0.0.1:50051")
    return text


def _is_address(text: str) -> bool:
    host, _, port = text.rpartition(":")
    return bool(host) and "/" not in host and port.isascii() and port.isdecimal() and int(port) <= _LAST_PORT


def parse_server_address(text: str) -> str:
    """HOST:PORT or the path of a unix socket, as it was given."""
    if text.startswith("unix://") and not text.startswith("unix:///"):
        raise _refusal(text, "a path that starts at the root: give a whole path, as in unix:///run/extproc.sock")
    if text.startswith(_UNIX):
        return text
    if not _is_address(text):
        raise _refusal(text, "HOST:PORT, as in 127.0.0.1:50051, or unix:///PATH, as in unix:///run/extproc.sock")
    return text


def parse_url(text: str) -> str:
    """http://HOST[:PORT] or https://..., as it was given."""
    try:
        url = urlsplit(text)
        is_address = url.scheme in ("http", "https") and url.hostname is not None and url.port != 0
    except ValueError:  # the port
        is_address = False
    if not is_address or url.query or url.fragment:
        raise _refusal(text, "an address, as in http://127.0.0.1:10000")
    return text


def parse_host(text: str) -> str:
    """The name of a host, as Kubernetes takes it."""
    label = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
    if not re.fullmatch(rf"{label}([.]{label})*", text):
        raise _refusal(text, "a host in lower case, without scheme, port and wildcard, as in llm.example.com")
    return text


def parse_gateway(text: str) -> list[str]:
    """The namespace of a gateway, its name and its listener."""
    parts = text.split("/")
    if len(parts) != 3 or not all(re.fullmatch(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?", part) for part in parts):
        raise _refusal(text, "NAMESPACE/NAME/LISTENER, as in semantic-router/llm/http")
    return parts


def parse_day(text: str) -> str:
    """A day as YYYY-MM-DD."""
    try:
        return datetime.date.fromisoformat(text).isoformat()
    except ValueError as error:
        raise _refusal(text, f"a day as YYYY-MM-DD, as in 2026-11-22 ({error})") from error


def parse_lines_file(text: str) -> Path:
    """A file of JSON lines; `-` is standard input."""
    return Path("/dev/stdin" if text == "-" else text)


def intents_option(parser: argparse.ArgumentParser, default: Path | None = None) -> None:
    """Add `--intents`, which is required unless it has a default."""
    default_text = f" (default: {default})" if default is not None else ""
    parser.add_argument(
        "--intents",
        type=Path,
        metavar="DIR",
        default=default,
        required=default is None,
        help=f"folder that holds policy.yaml and one YAML file for each intent{default_text}",
    )


def ledger_option(parser: argparse.ArgumentParser) -> None:
    """Add `--ledger`, which is required, for a command that reads it."""
    parser.add_argument(
        "--ledger",
        metavar="FILE|postgresql://...",
        required=True,
        help="the ledger to read: the SQLite file or the Postgres URL that `extproc serve --ledger` writes",
    )


def data_argument(
    parser: argparse.ArgumentParser,
    what: str = "labelled or recorded traffic as JSON lines (docs/reference/traffic.md)",
    name: str = "data",
) -> None:
    """Add the file of JSON lines that a command reads."""
    parser.add_argument(
        name,
        type=parse_lines_file,
        metavar=name.upper(),
        help=f"{what}; gzip is recognised by the ending .gz, and - reads standard input",
    )


def limits_options(parser: argparse.ArgumentParser, condition: str = "") -> None:
    """Add what `extproc gate` allows a new configuration to lose. Each help text begins with the condition."""
    parser.add_argument(
        "--max-quality-drop",
        type=parse_quality_drop,
        default=0.02,
        metavar="SHARE",
        help=f"{condition}largest drop in quality that passes, as a share (0.02 is two percentage points; "
        "default: %(default)s)",
    )
    parser.add_argument(
        "--max-cost-rise",
        type=parse_cost_rise,
        default=0.10,
        metavar="SHARE",
        help=f"{condition}largest rise in cost that passes, as a share of the old cost (0.1 is 10 %%; "
        "default: %(default)s)",
    )


def explore_options(parser: argparse.ArgumentParser) -> None:
    """Add `--explore` and the address that it needs."""
    parser.add_argument(
        "--explore",
        type=parse_share,
        default=0.0,
        metavar="SHARE",
        help="share of the requests that a second tier answers, too, after the client's request was sent on; its "
        "answer is judged, recorded in the ledger and thrown away. These requests cost at most about one dollar an "
        "hour (0.02 is 2 %%; default: none)",
    )
    parser.add_argument(
        "--explore-url",
        type=parse_url,
        default="http://127.0.0.1:10000",
        metavar="URL",
        help="address of Envoy, to which the requests of --explore are sent (default: %(default)s)",
    )


def seed_option(parser: argparse.ArgumentParser, what: str) -> None:
    """Add `--seed`, the start of the random numbers for `what`."""
    parser.add_argument(
        "--seed",
        type=parse_seed,
        default=0,
        metavar="N",
        help=f"seed of the random numbers for {what} (default: 0)",
    )


def all_or_none(args: argparse.Namespace, *names: str) -> list[Any]:
    """The values of options that only work together, or [] if none is given. Raises ValueError."""
    values = [getattr(args, name) for name in names if getattr(args, name) is not None]
    if values and len(values) < len(names):
        raise ValueError(f"give all of {', '.join('--' + name.replace('_', '-') for name in names)}, or none")
    return values
