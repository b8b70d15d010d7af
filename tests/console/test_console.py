"""The pages of `extproc console`, asked over HTTP."""

import contextlib
import http.client
import re
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import msgspec
import pytest

from extproc.acceptance.rules import NonEmpty
from extproc.accounting.outcome import Cost, Ending, Outcome, Rejection
from extproc.accounting.rollout_text import RolloutText
from extproc.accounting.signals import AnswerSignal
from extproc.accounting.store import Store
from extproc.api.observation import Usage
from extproc.cli import explain
from extproc.cli.console import _Decisions, _status_of
from extproc.config.load import ConfigError
from extproc.console.page import PAGES, Loading, RouterStatus, Sources
from extproc.console.server import ConsoleServer
from extproc.contract.words import Signal
from extproc.routing.budget import BudgetSpec, nano
from extproc.routing.snapshot import AppRoute
from extproc.settings import AnswerCache, Escalate
from extproc.style import html_table

GOOD = Path(__file__).parents[1] / "configs" / "good"
# As release 0.1.0 wrote it.
OLD_LEDGER = """
CREATE TABLE outcomes (
  id INTEGER PRIMARY KEY, time REAL, api TEXT, ending TEXT, status INTEGER, attempts INTEGER,
  failed_attempts INTEGER, reason TEXT, judged INTEGER, cohort TEXT, tier TEXT, principal TEXT, session TEXT,
  revision TEXT, mode TEXT, duration_s REAL, first_byte_s REAL, input INTEGER, output INTEGER, cached INTEGER,
  usage_from TEXT, cost REAL, default_cost REAL, request TEXT
);
CREATE TABLE rejections (
  outcome INTEGER, attempt INTEGER, tier TEXT, reason TEXT, input INTEGER, output INTEGER, cached INTEGER, cost REAL
);
INSERT INTO outcomes VALUES (
  1, 0, 'chat', 'accepted', 200, 1, 0, 'matched', 1, 'billing', 'small', 'p', 's', 'r', 'enforce', 1.0, 0.5, 10, 10,
  0, 'answer', 0.1, 0.2, 'x'
);
PRAGMA user_version = 2
"""
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
    hit = msgspec.structs.replace(
        first, cohort="billing", request="hit", rejections=(), attempts=0, cache="semantic", judged=False,
        app="support", team="care", principal="q",
    )  # fmt: skip
    store.add(
        [(first, Cost(0.02, (0.001,), 0.05)), (failed, Cost(None, (), None)), (hit, Cost(0.0, (), 0.01, 0.01))]
    )
    store.add_signal(AnswerSignal("1-2", Signal.RE_ASKED, "p", first.time + 9))
    store.add_signal(AnswerSignal("1-2", Signal.FEEDBACK, "p", first.time + 9, 0.0, "billing"))
    store.close()
    return place


@pytest.fixture(scope="module")
def sources(words: Any, ledger: Path) -> Iterator[Sources]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(explain, "load_encoder", lambda model: words)
        decisions = _Decisions(GOOD)
        yield Sources(
            snapshot=decisions.snapshot,
            explain=decisions.explain,
            rollout=lambda place: RolloutText(f"HOLD: nobody knows, by {place}", "title", [[{"cohort": "<a>"}]]),
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
    return re.sub(r"\s+", " ", re.sub(r"(?s)<style>.*?</style>|<[^>]+>", " ", page))


def test_the_overview_has_traffic_costs_and_the_evidence_of_cohorts(ask: Any) -> None:
    status, headers, page = ask("/")
    assert status == 200 and headers["content-type"] == "text/html; charset=utf-8"
    text = plain(page)
    assert "3 requests" in text and "66.7 % accepted" in text and "1 escalated" in text
    assert "$0.0210 cost" in text and "$0.0390 saved against the default tier" in text
    assert text.index("SAVES $0.0390") < text.index("3 requests")  # the verdict comes first
    assert "&lt;faq&gt;" in page and "<faq>" not in page
    assert ask("/?since=7d&by=tier")[2].count('aria-current="page"') == 3


def test_a_cohort_has_its_traffic_its_floor_and_its_evidence(ask: Any) -> None:
    text = plain(ask("/cohorts")[2])
    assert "No cohort has a floor by evidence or by a person, so each match is a guess." in text
    assert "billing small - 0 - - - -" in text and "none: a match is a guess" in text
    assert "support/billing 1 $0.00 100.0 % 0.0 % 0.0 %" in text  # the files have no such app
    assert "Requests of no cohort" in text and "<faq>".replace("<", "&lt;").replace(">", "&gt;") in text


def test_a_cohort_shows_the_tier_that_is_asked_after_a_rejection(sources: Sources) -> None:
    """Without `escalate`, rules lead to the next tier above. The highest tier has none."""
    snapshot = sources.snapshot()
    cohorts = {
        name: msgspec.structs.replace(cohort, accept=(NonEmpty(),))
        for name, cohort in snapshot.policy.cohorts.items()
    }
    person = msgspec.structs.replace(cohorts["billing"], name="person", escalate=Escalate(to="human"))
    policy = msgspec.structs.replace(snapshot.policy, cohorts=cohorts | {"person": person})
    judged = msgspec.structs.replace(snapshot, policy=policy)
    with serving(msgspec.structs.replace(sources, snapshot=lambda: judged)) as page:
        text = plain(page("/cohorts")[2])
    assert "billing small large 0" in text and "cooking large - 0" in text and "person small a person 0" in text


def test_the_cohort_of_an_app_has_the_requests_of_the_app(sources: Sources) -> None:
    snapshot = sources.snapshot()
    app = AppRoute("support", msgspec.structs.replace(snapshot, app="support"))
    with_app = msgspec.structs.replace(snapshot, apps=(app,))
    with serving(msgspec.structs.replace(sources, snapshot=lambda: with_app)) as page:
        text = plain(page("/cohorts")[2])
    assert "support/billing small - 1 $0.00 100.0 % 0.0 % 0.0 %" in text and " billing small - 0 - - - -" in text
    assert "support/code" not in text


def test_pages_hold_no_script_and_load_nothing(ask: Any) -> None:
    for path in (*PAGES, "/nowhere"):
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
    before = set(decisions.snapshot().policy.cohorts)
    intent = next(path for path in tmp_path.glob("*.yaml") if "\nutterances" in path.read_text())
    name = re.search(r"intent: (\S+)", intent.read_text())
    assert name is not None
    intent.write_text(intent.read_text().replace(f"intent: {name[1]}", "intent: renamed"))
    assert set(decisions.snapshot().policy.cohorts) == before - {name[1]} | {"renamed"}
    intent.write_text("intent: [")
    with pytest.raises(ConfigError):
        decisions.snapshot()


def test_a_request_is_found_by_its_id(ask: Any) -> None:
    page = ask("/requests?id=1-2")[2]
    assert "Attempt 1, tier small: rejected (refusal)" in page
    assert 'href="/requests?id=a%2Fb"' in page and "failed (502)" in page
    assert "has no request 9-9" in ask("/requests?id=9-9")[2]


def test_the_comparison_of_a_candidate_begins_with_its_verdict(ask: Any, sources: Sources) -> None:
    page = ask("/rollout")[2]
    assert '<p class="verdict"><b>HOLD</b> nobody knows, by ' in page and '<th scope="row">&lt;a&gt;</th>' in page
    with serving(msgspec.structs.replace(sources, rollout=lambda place: None)) as other:
        assert "The policy has no `candidate`" in plain(other("/rollout")[2])


def test_requests_are_filtered_by_their_end_and_their_cohort(ask: Any) -> None:
    assert plain(ask("/requests?shown=failed")[2]).count("(502)") == 1
    assert "1-2" in ask("/requests?shown=escalated")[2] and "(502)" not in ask("/requests?shown=escalated")[2]
    disliked = ask("/requests?shown=disliked&cohort=%3Cfaq%3E")[2]
    assert 'href="/requests?id=1-2"' in disliked and 'value="&lt;faq&gt;"' in disliked
    assert "The ledger has no such request." in plain(ask("/requests?shown=human&cohort=code")[2])
    assert "expected one of all, escalated, degraded" in plain(ask("/requests?shown=x")[2])


def test_budgets_say_what_is_spent_and_who_spends(ask: Any, sources: Sources) -> None:
    text = plain(ask("/budgets")[2])
    assert "The policy has no `budget`" in text
    assert "care" not in text and "support $0.00 0.0 % 1" in text
    assert "care $0.00 0.0 % 1" in plain(ask("/budgets?by=team")[2])
    snapshot = sources.snapshot()
    budgets = (
        BudgetSpec("all", nano(0.015), "small"),
        BudgetSpec("app/support", nano(1), None),
        BudgetSpec("all/principal", nano(0.01), None, per_principal=True),
    )
    with serving(msgspec.structs.replace(
        sources, snapshot=lambda: msgspec.structs.replace(snapshot, budgets=budgets)
    )) as page:  # fmt: skip
        text = plain(page("/budgets")[2])
    assert "USED UP all/principal p has spent $0.0210 of $0.0100, and 1 more." in text
    assert re.search(r"all 140\.0 % \$0\.0210 \$0\.0150 \S+ used up: tier small at most", text)
    assert re.search(r"all/principal p 210\.0 % \$0\.0210 \$0\.0100 \S+ used up: 429", text)
    assert "app/support 0.0 % $0.00 $1.00 $0.00 pays" in text and "all/principal q 0.0 %" in text


def test_a_month_begins_without_a_caller_who_has_spent(sources: Sources, tmp_path: Path) -> None:
    store = Store(tmp_path / "new.sqlite", 1e6)
    old = Outcome(
        time=time.time() - 40 * 86_400, api="chat", ending=Ending.ACCEPTED, status=200, attempts=1,
        reason="matched", cohort="billing", tier="small", request="old", usage=Usage(9, 9), principal="p",
    )  # fmt: skip
    store.add([(old, Cost(1.0, (), 1.0))])
    store.close()
    each = BudgetSpec("all/principal", nano(0.01), None, per_principal=True)
    snapshot = msgspec.structs.replace(sources.snapshot(), budgets=(each,))
    new = msgspec.structs.replace(sources, snapshot=lambda: snapshot, ledger=str(tmp_path / "new.sqlite"))
    with serving(new) as page:
        status, _, text = page("/budgets")
    assert status == 200 and "WITHIN no principal has spent anything this month." in plain(text)


def test_the_cache_shows_its_hits_and_whether_it_is_on(ask: Any, sources: Sources) -> None:
    text = plain(ask("/cache")[2])
    assert "No intent has the key `cache`" in text and "33.3 % of all requests" in text
    snapshot = sources.snapshot()
    billing = msgspec.structs.replace(snapshot.policy.cohorts["billing"], cache=AnswerCache(scope="shared"))
    policy = msgspec.structs.replace(snapshot.policy, cohorts={**snapshot.policy.cohorts, "billing": billing})
    snapshot = msgspec.structs.replace(snapshot, policy=policy)
    app = AppRoute("support", msgspec.structs.replace(snapshot, app="support"))
    cached = msgspec.structs.replace(
        sources,
        snapshot=lambda: msgspec.structs.replace(snapshot, apps=(app,)),
        router=lambda: RouterStatus([], {"support/billing": "OFF: 9 of 9 checked hits were wrong"}),
    )
    with serving(cached) as page:
        text = plain(page("/cache")[2])
    assert "OFF the cache of `support/billing` turned itself off: 9 of 9 checked hits were wrong" in text
    assert "support/billing 1 1 (100.0 %) 1 $0.0100 24h every client 1 % of the hits OFF: 9 of 9" in text
    assert "semantic 1 100.0 % An earlier answer to the same question in other words was served" in text


def test_signals_show_what_happened_after_the_answers(ask: Any) -> None:
    page = ask("/signals")[2]
    text = plain(page)
    assert "33.3 % asked again" in text and "1 answers rated" in text and "0.00 mean rating" in text
    assert "&lt;faq&gt; 1 1 (100.0 %) 0 0 0 1 0.00 1" in text
    assert "Cohorts that clients corrected counted as the client says answers &lt;faq&gt; billing 1" in text
    assert "The newest 1 bad ratings" in text and 'href="/requests?id=1-2"' in page
    assert "No request ended" in plain(ask("/signals?since=0.001m")[2])


def test_drift_needs_decisions(ask: Any) -> None:
    assert "NO TRAFFIC the ledger has no decision" in plain(ask("/drift")[2])


def test_drift_is_shown_by_cohort(sources: Sources, tmp_path: Path) -> None:
    store, now = Store(tmp_path / "drift.sqlite", 1e6), time.time()
    decision = '{"cohort":"billing","similarity":0.5,"margin":0.2}'
    rows = [
        Outcome(
            time=now - age, api="chat", ending=Ending.ACCEPTED, status=200, attempts=1, reason=reason,
            cohort="billing", tier="small", request=f"{age}", judged=True, revision="r1", decision=decision,
            usage=None, principal=None,
        )
        for age, reason in [
            *((90_000 + i, "matched") for i in range(120)), *((60 + i, "out_of_scope") for i in range(60))
        ]
    ]  # fmt: skip
    store.add([(row, Cost(None, (), None)) for row in rows])
    store.close()
    with serving(msgspec.structs.replace(sources, ledger=str(tmp_path / "drift.sqlite"))) as page:
        text = plain(page("/drift")[2])
    assert "DRIFT 100.0% of " in text and "fall back, after 0.0% in the week before" in text
    assert "billing fallbacks DRIFT 0.0 % 100.0 % 120 60" in text


def test_ten_thousand_callers_make_no_page_of_ten_thousand_lines(sources: Sources, tmp_path: Path) -> None:
    store, now = Store(tmp_path / "many.sqlite", 1e6), time.time()
    rows = [
        Outcome(
            time=now - 60, api="chat", ending=Ending.ACCEPTED, status=200, attempts=1, reason="matched",
            cohort="billing", tier="small", request=f"{i}", judged=True, usage=Usage(9, 9), principal=f"p{i}",
            rejections=(Rejection(1, "small", "refusal", Usage(1, 1)),),
        )
        for i in range(300)
    ]  # fmt: skip
    store.add([(row, Cost(1.0, (1.0,), 1.0)) for row in rows])
    store.close()
    with serving(msgspec.structs.replace(sources, ledger=str(tmp_path / "many.sqlite"))) as page:
        overview, budgets = (page(path)[2] for path in ("/?by=principal", "/budgets?by=principal"))
    assert overview.count('<th scope="row">p') == 200 and "The 100 with the most requests of 300" in overview
    losing = r"cost more than the default tier alone: (p\d+ \(\$1.0000\),? ){5}and 295 more"
    assert re.search(losing, plain(overview))
    assert budgets.count('<th scope="row">p') == 100 and "200 more have spent $400.00 together" in budgets


def test_a_page_that_needs_the_encoder_comes_by_itself(sources: Sources) -> None:
    def loading() -> Any:
        raise Loading("the encoder is loading")

    with serving(msgspec.structs.replace(sources, snapshot=loading)) as page:
        status, headers, text = page("/cohorts")
        assert (status, headers["refresh"]) == (503, "2") and "the encoder is loading" in text
        assert page("/")[0] == 200


def test_few_pages_are_made_at_one_time(sources: Sources, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading a large ledger takes a while, and a browser that loads a page again does not end it."""
    monkeypatch.setattr("extproc.console.server._WAIT_S", 0.01)
    slow, entered = threading.Event(), threading.Semaphore(0)

    def snapshot() -> Any:
        entered.release()
        assert slow.wait(10)
        return sources.snapshot()

    with serving(msgspec.structs.replace(sources, snapshot=snapshot)) as page:
        others = [threading.Thread(target=page, args=("/cohorts",)) for _ in range(4)]
        for other in others:
            other.start()
        assert all(entered.acquire(timeout=10) for _ in others)
        status, _, text = page("/signals")
        assert status == 503 and "4 pages are still being read" in plain(text)
        slow.set()
        for other in others:
            other.join(10)
        assert page("/signals")[0] == 200


def test_a_mistake_of_ours_is_an_answer_too(sources: Sources, capsys: pytest.CaptureFixture[str]) -> None:
    def broken() -> Any:
        raise KeyError("x")

    with serving(msgspec.structs.replace(sources, snapshot=broken)) as page:
        status, _, text = page("/cohorts")
    assert status == 500 and "The console failed (KeyError)" in text and "KeyError" in capsys.readouterr().err


def test_names_cannot_change_what_a_reader_sees(sources: Sources) -> None:
    """A name may have characters that turn the direction of the text, or that are invisible."""
    text = RolloutText("HOLD: \u202eevil", "", [[{"cohort": "a\u200bb<script>"}]])
    with serving(msgspec.structs.replace(sources, rollout=lambda place: text)) as page:
        html = page("/rollout")[2]
    assert "\\u202eevil" in html and "a\\u200bb&lt;script&gt;" in html
    assert "\u202e" not in html and "\u200b" not in html


def test_pages_can_be_used_without_a_mouse_and_without_eyes(ask: Any) -> None:
    for path in PAGES:
        page = ask(path)[2]
        assert '<html lang="en">' in page and f"<title>{PAGES[path]} - extproc</title>" in page
        assert page.count("<h1>") == 1 and 'href="#main"' in page and '<main id="main">' in page
        assert "<th>" not in page and page.count('class="scroll"') == page.count('tabindex="0" role="region"')
        controls = re.findall(r'<(?:input|select|textarea) id="(\w+)"', page)
        assert all(f'<label for="{control}">' in page for control in controls)


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
        for path in PAGES.keys() - {"/try", "/frontier"}:
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


def test_a_ledger_that_is_away_costs_only_its_part_of_a_page(sources: Sources) -> None:
    away = msgspec.structs.replace(sources, ledger="postgresql://router:secret@127.0.0.1:1/db")
    with serving(away) as page:
        for path in PAGES.keys() - {"/try", "/frontier", "/rollout"}:
            status, _, text = page(path)
            assert status == 200 and "not shown" in text and "secret" not in text, path
        assert "billing" in plain(page("/cohorts")[2])


def test_a_ledger_of_an_older_version_has_its_pages_too(sources: Sources, tmp_path: Path) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / "old.sqlite")) as old:
        for statement in OLD_LEDGER.strip().split(";"):
            old.execute(statement)
        old.execute(f"UPDATE outcomes SET time = {time.time() - 60}")
        old.commit()
    with serving(msgspec.structs.replace(sources, ledger=str(tmp_path / "old.sqlite"))) as page:
        for path in (*PAGES, "/requests?shown=disliked", "/requests?id=x", "/?by=app", "/budgets?by=team"):
            status, _, text = page(path)
            assert status == 200 and "not shown</b>" not in text, path
        assert "1 requests" in plain(page("/")[2])


def test_a_column_with_long_words_is_wide_on_a_phone() -> None:
    """Otherwise its words stack, and the row is as tall as the screen. Tags do not count as words."""
    rows = [["a", "1", "short", "a remark that is longer than others"], ["b", "2", "<b>" + "</b><b>" * 9, "-"]]
    table = html_table(["name", "rows", "kind", "remark"], rows, "words")
    assert '<th scope="col" class="w">remark</th>' in table and '<td class="n">1</td>' in table
    assert "<td>short</td>" in table
    assert 'class="w"' not in html_table(["name", "remark"], [["a", "a remark that is longer than others"]])
