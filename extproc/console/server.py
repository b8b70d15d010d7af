"""The web server of the console: a few pages for the person who started it."""

import contextlib
import http.server
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from http import HTTPStatus
from urllib.parse import parse_qs, urlsplit

from extproc.accounting.queries import By
from extproc.config.load import ConfigError
from extproc.console.comparing import frontier_page, rollout_page
from extproc.console.decisions import SHOWN, requests_page, try_page
from extproc.console.overview import cohorts_page, overview
from extproc.console.page import GROUPINGS, SPANS, Loading, Sources, error_page
from extproc.console.readings import Shown
from extproc.console.spending import budgets_page, cache_page
from extproc.console.watching import drift_page, signals_page

_BODY_BYTES = 1_000_000
_TIMEOUT_S = 10.0
# Pages that are made at one time, and how long another one waits. A page may read a week of a large ledger.
_AT_ONCE, _WAIT_S = 4, 10.0
# The pages hold no script, and load nothing.
_HEADERS = {
    "content-type": "text/html; charset=utf-8",
    "content-security-policy": (
        "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cache-control": "no-store",
}
# The browser asks again after two seconds.
_AGAIN = {**_HEADERS, "refresh": "2"}
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}


class _Refused(Exception):
    """A request that gets a status and a sentence in place of a page."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


class ConsoleServer(http.server.ThreadingHTTPServer):
    """Serves the pages of `sources` until it is shut down."""

    daemon_threads = True

    def __init__(self, host: str, port: int, sources: Sources) -> None:
        """Listen. Port 0 takes a free one. Raises OSError."""
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.is_local = host in _LOOPBACK
        self.sources = sources
        self.free = threading.BoundedSemaphore(_AT_ONCE)
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        """Bind without the name of the host, which a slow name service would have to find."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self.socket.bind(self.server_address)
        except OSError as error:
            place = "{}:{}".format(*self.server_address[:2])
            raise OSError(error.errno, f"{error.strerror}: give another address with --listen", place) from error
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])


class _Handler(http.server.BaseHTTPRequestHandler):
    server: ConsoleServer
    timeout = _TIMEOUT_S
    server_version, sys_version = "extproc", ""

    def do_GET(self) -> None:
        self._answer(self._page)

    do_HEAD = do_GET

    def do_POST(self) -> None:
        self._answer(self._tried)

    def log_message(self, *args: object) -> None:
        """Log nothing: a line would have the id of a request."""

    def _answer(self, make: Callable[[], str]) -> None:
        status, path, headers = HTTPStatus.OK, self.path.partition("?")[0], _HEADERS
        try:
            self._check_host()
            text = self._made(make)
        except _Refused as refusal:
            status, text = refusal.status, error_page(path, str(refusal))
        except Loading as error:
            status, text, headers = HTTPStatus.SERVICE_UNAVAILABLE, error_page(path, str(error)), _AGAIN
        except (OSError, ConfigError) as error:
            status, text = HTTPStatus.SERVICE_UNAVAILABLE, error_page(path, str(error))
        except ValueError as error:
            status, text = HTTPStatus.BAD_REQUEST, error_page(path, str(error))
        except Exception as error:
            status = HTTPStatus.INTERNAL_SERVER_ERROR
            text = error_page(path, f"The console failed ({type(error).__name__}): its terminal has the details.")
            traceback.print_exc()
        with contextlib.suppress(ConnectionError):  # the browser left
            self._send(status, headers, text.encode(errors="replace"))

    def _made(self, make: Callable[[], str]) -> str:
        """The page, when few others are made. A browser that left does not end the work on its page."""
        if not self.server.free.acquire(timeout=_WAIT_S):
            message = f"{_AT_ONCE} pages are still being read from the ledger: load this one again later."
            raise _Refused(HTTPStatus.SERVICE_UNAVAILABLE, message)
        try:
            return make()
        finally:
            self.server.free.release()

    def _send(self, status: HTTPStatus, headers: Mapping[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _check_host(self) -> None:
        """Refuse a page of another site whose name was made to lead here."""
        name = urlsplit(f"//{self.headers.get('host', '')}").hostname
        if self.server.is_local and name not in _LOOPBACK:
            raise _Refused(HTTPStatus.FORBIDDEN, "The console listens on this machine only: open it as localhost.")
        if self.headers.get("sec-fetch-site", "none") not in ("none", "same-origin") and self.command == "POST":
            raise _Refused(HTTPStatus.FORBIDDEN, "Another site sent this form.")

    def _page(self) -> str:
        parts, sources = urlsplit(self.path), self.server.sources
        query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        since, by = query.get("since", SPANS[1]), _grouping(query.get("by", GROUPINGS[0]))
        match parts.path:
            case "/":
                return overview(sources, since, by)
            case "/cohorts":
                return cohorts_page(sources, since)
            case "/try":
                return try_page(sources, None)
            case "/requests":
                shown = _shown(query.get("shown", SHOWN[0]))
                return requests_page(sources, query.get("id"), shown, query.get("cohort", "").strip())
            case "/budgets":
                return budgets_page(sources, _grouping(query.get("by", "app")))
            case "/cache":
                return cache_page(sources, since)
            case "/signals":
                return signals_page(sources, since, by)
            case "/drift":
                return drift_page(sources)
            case "/frontier":
                return frontier_page(sources)
            case "/rollout":
                return rollout_page(sources)
        raise _Refused(HTTPStatus.NOT_FOUND, "There is no such page.")

    def _tried(self) -> str:
        length = self.headers.get("content-length", "")
        if urlsplit(self.path).path != "/try":
            raise _Refused(HTTPStatus.METHOD_NOT_ALLOWED, "The console only reads.")
        if not length.isdecimal() or int(length) > _BODY_BYTES:
            raise _Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"Send at most {_BODY_BYTES:,} bytes.")
        form = parse_qs(self.rfile.read(int(length)).decode(errors="replace"))
        request = form.get("request", [""])[0].strip()
        return try_page(self.server.sources, request or None)


def _grouping(by: str) -> By:
    for grouping in GROUPINGS:
        if grouping == by:
            return grouping
    raise ValueError(f"found by={by}, expected one of {', '.join(GROUPINGS)}")


def _shown(word: str) -> Shown:
    for shown in SHOWN:
        if shown == word:
            return shown
    raise ValueError(f"found shown={word}, expected one of {', '.join(SHOWN)}")


def serve_console(server: ConsoleServer) -> int:
    """Serve until Ctrl-C."""
    host = f"[{server.server_name}]" if ":" in server.server_name else server.server_name
    print(f"The console is at http://{host}:{server.server_port}/ . Ctrl-C ends it.", flush=True)
    if not server.is_local:
        print("Everyone who reaches this address sees costs and callers, and may ask the encoder.", file=sys.stderr)
    with server:
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return 0
    return 0
