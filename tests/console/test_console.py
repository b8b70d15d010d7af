"""The pages of `extproc console`, asked over HTTP."""

import http.client
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import msgspec
import pytest

from extproc.accounting.outcome import Cost, Ending, Outcome, Rejection
from extproc.accounting.store import Store
from extproc.api.observation import Usage
from extproc.cli import explain
from extproc.cli.console import _Decisions, _status_of
from extproc.config.load import ConfigError
from extproc.console.pages import Sources
from extproc.console.server import ConsoleServer

GOOD = Path(__file__).parents[1] / "configs" / "good"
FORM = {"content-type": "application/x-www-form-urlencoded"}


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("ledger") / "ledger.sqlite"
    store = Store(place, 1e6)
    first = Outcome(
        time=time.time() - 60, api="chat", ending=Ending.ACCEPTED, status=200, attempts=2, reason="matched",
        cohort="<faq>", tier="large", request="1-2", usage=Usage(1200, 30), principal="p", duration_s=1.5,
        rejections=(Rejection(1, "small", "refusal", Usage(1200, 5)),), judged=True,
    )  # fmt: skip
    failed = msgspec.structs.replace(
        first, ending=Ending.FAILED, status=502, cohort="code", request="a/b", rejections=()
    )
    store.add([(first, Cost(0.02, (0.001,), 0.05)), (failed, Cost(None, (), None))])
    store.close()
    return place


@pytest.fixture(scope="module")
def sources(words: Any, ledger: Path) -> Iterator[Sources]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(explain, "load_encoder", lambda model: words)
        decisions = _Decisions(GOOD)
        yield Sources(
            policy=decisions.policy,
            explain=decisions.explain,
            rollout=lambda place: f"HOLD: nobody knows, by {place}\n\ntable",
            ledger=str(ledger),
        )


@pytest.fixture
def ask(sources: Sources) -> Iterator[Any]:
    with serving(sources) as page:
        yield page


class serving:
    """Serves the pages in a thread. Inside, a function asks for one: path -> status, headers, text."""

    def __init__(self, sources: Sources, host: str = "127.0.0.1") -> None:
        self.server = ConsoleServer(host, 0, sources)
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)

    def __enter__(self) -> Any:
        self.thread.start()
        return self.ask

    def __exit__(self, *error: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join(10)

    def ask(self, path: str, form: dict[str, str] | None = None, method: str = "", **headers: str) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.server_port, timeout=30)
        body = urlencode(form) if form is not None else None
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(
            method or ("GET" if form is None else "POST"), path, body, (FORM if form else {}) | named
        )
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        return answer.status, dict(answer.getheaders()), text


def plain(page: str) -> str:
    """The text of a page without its tags and its style."""
    return re.sub(r"\s+", " ", re.sub(r"<style>.*?</style>|<[^>]+>", " ", page))


def test_the_overview_has_traffic_costs_and_the_evidence_of_cohorts(ask: Any) -> None:
    status, headers, page = ask("/")
    assert status == 200 and headers["content-type"] == "text/html; charset=utf-8"
    text = plain(page)
    assert "2 requests" in text and "50.0 % accepted" in text and "1 escalated" in text
    assert "$0.02 cost" in text and "$0.03 saved against the default tier" in text
    assert text.index("SAVES: $0.0290") < text.index("2 requests")  # the verdict comes first
    assert "&lt;faq&gt;" in page and "<faq>" not in page
    assert "none: a match is a guess" in text
    assert ask("/?since=7d&by=tier")[2].count('aria-current="page"') == 3


def test_pages_hold_no_script_and_load_nothing(ask: Any) -> None:
    for path in ("/", "/try", "/requests", "/frontier", "/rollout", "/nowhere"):
        _, headers, page = ask(path)
        assert "default-src 'none'" in headers["content-security-policy"]
        assert not re.search(r"<script|\ssrc=|<link|@import|url\(|\son[a-z]+=", page), path


def test_a_prompt_is_decided_as_explain_does(ask: Any, sources: Sources) -> None:
    status, _, page = ask("/try", {"request": "Send my last invoice again <b>"})
    tried = sources.explain("Send my last invoice again <b>")
    assert status == 200 and tried.verdict.split(" ")[0] in ("small", "large")
    assert f"Decision {tried.verdict}" in plain(page).replace("  ", " ")
    assert "Send my last invoice again &lt;b&gt;" in page and "again <b>" not in page


def test_the_json_of_a_request_is_decided_too(ask: Any) -> None:
    body = msgspec.json.encode({"model": "auto", "input": "Send my last invoice again"}).decode()
    assert "/v1/responses, about" in ask("/try", {"request": body})[2]
    assert "passthrough" in plain(ask("/try", {"request": body.replace('"auto"', '"no-such-model"')})[2])


def test_an_edit_of_the_files_counts_at_once(words: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explain, "load_encoder", lambda model: words)
    for path in GOOD.glob("*.yaml"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    decisions = _Decisions(tmp_path)
    before = set(decisions.policy().cohorts)
    intent = next(path for path in tmp_path.glob("*.yaml") if "\nutterances" in path.read_text())
    name = re.search(r"intent: (\S+)", intent.read_text())
    assert name is not None
    intent.write_text(intent.read_text().replace(f"intent: {name[1]}", "intent: renamed"))
    assert set(decisions.policy().cohorts) == before - {name[1]} | {"renamed"}
    intent.write_text("intent: [")
    with pytest.raises(ConfigError):
        decisions.policy()


def test_a_request_is_found_by_its_id(ask: Any) -> None:
    page = ask("/requests?id=1-2")[2]
    assert "Attempt 1, tier small: rejected (refusal)" in page
    assert 'href="/requests?id=a%2Fb"' in page and "failed (502)" in page
    assert "has no request 9-9" in ask("/requests?id=9-9")[2]


def test_the_comparison_of_a_candidate_begins_with_its_verdict(ask: Any) -> None:
    assert '<p class="verdict">HOLD: nobody knows, by ' in ask("/rollout")[2]


def test_traffic_is_shown_while_the_router_is_away(sources: Sources) -> None:
    """The remedy names the options of this command, which has none for certificates."""
    with serving(msgspec.structs.replace(sources, router=_status_of("127.0.0.1:1"))) as ask:
        page = ask("/?by=app")[2]
    what = (
        "127.0.0.1:1 does not answer (UNAVAILABLE): give the port of `extproc serve` in --router; of a router with"
    )
    assert what in page and 'class="tiles"' in page


def test_a_port_that_is_taken_is_named(sources: Sources) -> None:
    with ConsoleServer("127.0.0.1", 0, sources) as server, pytest.raises(OSError, match="--listen") as error:
        ConsoleServer("127.0.0.1", server.server_port, sources)
    assert error.value.filename == f"127.0.0.1:{server.server_port}"


def test_mistakes_are_told_with_a_remedy(ask: Any, sources: Sources, tmp_path: Path) -> None:
    assert "expected one of cohort, tier, principal, app, team" in plain(ask("/?by=colour")[2])
    assert "expected a number followed by m, h or d" in plain(ask("/?since=day")[2])
    assert ask("/nowhere")[0] == 404
    assert "extproc eval --json FILE" in plain(ask("/frontier")[2])
    missing = msgspec.structs.replace(sources, ledger=str(tmp_path / "none.sqlite"), report=tmp_path / "r.json")
    (tmp_path / "r.json").write_text("{}")
    with serving(missing) as page:
        assert "no ledger at" in plain(page("/")[2])
        assert "is not a report of `extproc eval`" in plain(page("/frontier")[2])
    with serving(msgspec.structs.replace(sources, ledger=None)) as page:
        for path in ("/", "/requests", "/rollout"):
            assert "start the console with --ledger" in plain(page(path)[2])


def test_cost_and_quality_are_those_of_the_report(sources: Sources, tmp_path: Path) -> None:
    """A number that could not be measured is null in the report, and is left out."""

    def way(name: str, quality: float | None, cost: float | None) -> dict[str, Any]:
        ends = {"low": quality and quality - 0.1, "high": quality and quality + 0.1}
        return {
            "name": name,
            "quality": {"value": quality, **ends},
            "per_1000": {"value": cost, "low": 0, "high": 1},
        }

    lines = [way("as configured", 0.8, 0.5), way("always small", 0.6, 0.1), way("always large", None, None)]
    report = {"verdicts": [{"word": "GOOD", "sentence": "a < b"}], "lines": lines, "frontier": [], "more": 1}
    (tmp_path / "report.json").write_bytes(msgspec.json.encode(report))
    with serving(msgspec.structs.replace(sources, report=tmp_path / "report.json")) as page:
        text = page("/frontier")[2]
    assert "<b>GOOD</b> a &lt; b" in text and ">configured</text>" in text
    assert "80.0" in text and "70.0 to 90.0" in text and "always large" not in text


def test_the_pages_only_read(ask: Any) -> None:
    assert ask("/", {"request": "x"})[0] == 405
    assert ask("/", method="PUT")[0] == 501
    assert ask("/", method="HEAD")[2] == ""


def test_another_site_cannot_read_or_ask(ask: Any, sources: Sources) -> None:
    """A name of another site may lead to this machine, and its page may send a form."""
    assert ask("/", host="attacker.example")[0] == 403
    assert ask("/try", {"request": "x"}, sec_fetch_site="cross-site")[0] == 403
    assert ask("/", host="localhost:8686")[0] == 200
    with serving(sources, "0.0.0.0") as page:  # the operator chose to be reached by any name
        assert page("/", host="console.example")[0] == 200


def test_a_request_that_is_too_large_is_refused(ask: Any) -> None:
    assert ask("/try", {"request": ""}, content_length="1000001")[0] == 413
    assert ask("/try", {"request": ""}, content_length="x")[0] == 413
