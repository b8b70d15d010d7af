"""The files in deploy/observe/ and the page for the person on call work with the real Prometheus and ledger."""

import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator

import pytest
import yaml

from bench.collector import attributes
from bench.observe import OBSERVE, Watched, dashboard_queries, settle, watched
from extproc.accounting.report import read_report
from extproc.cli.main import main
from extproc.contract.words import NOT_A_COHORT
from tests.e2e.traffic import EXTRACT, REPOSITORY, ask, eventually

pytestmark = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="Prometheus is not installed: apt-get install prometheus"
)
ON_CALL = REPOSITORY / "docs/guides/on-call.md"
RULES_TESTS = ("rules_test.yml", "rules_days_test.yml")


@pytest.mark.parametrize(
    "command", [["check", "rules", "rules.yml"], *(["test", "rules", name] for name in RULES_TESTS)], ids=str
)
def test_promtool_accepts_the_rules(command: list[str]) -> None:
    """The rules are valid, and each alert fires in its situation."""
    done = subprocess.run(
        ["promtool", *command], cwd=REPOSITORY / OBSERVE, capture_output=True, text=True, timeout=400, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_tested() -> None:
    alerts = re.findall(r"alert: (\w+)", (REPOSITORY / OBSERVE / "rules.yml").read_text())
    tests = "".join((REPOSITORY / OBSERVE / name).read_text() for name in RULES_TESTS)
    tested = re.findall(r"alertname: (\w+)", tests)
    assert set(alerts) == set(tested)


def test_every_alert_has_a_runbook() -> None:
    """The annotation names a heading of the page."""
    headings = re.findall(r"^### (\w+)$", ON_CALL.read_text(), re.MULTILINE)
    rules = [rule for group in yaml.safe_load((REPOSITORY / OBSERVE / "rules.yml").read_text())["groups"]
             for rule in group["rules"] if "alert" in rule]  # fmt: skip
    assert [rule["alert"] for rule in rules] == headings
    for rule in rules:
        assert rule["annotations"]["runbook"] == f"docs/guides/on-call.md#{rule['alert'].lower()}"


def test_the_guide_lists_every_alert() -> None:
    alerts = re.findall(r"alert: (\w+)", (REPOSITORY / OBSERVE / "rules.yml").read_text())
    table = re.findall(r"`(SemanticRouter\w+)`", (REPOSITORY / "docs/guides/observe.md").read_text())
    assert sorted(table) == sorted(alerts)


def test_a_silent_cohort_is_an_intent() -> None:
    """The words for requests of no cohort may fall silent without an alert."""
    words = re.search(r'outcomes_total\{cohort!~"([^"]+)"', (REPOSITORY / OBSERVE / "rules.yml").read_text())
    assert words is not None and set(words[1].split("|")) == NOT_A_COHORT


@pytest.fixture(scope="module")
def running() -> Iterator[Watched]:
    """The stack with Prometheus, after a mixed load."""
    with watched() as watching:
        assert settle(watching) == []
        yield watching


def test_every_query_of_the_dashboard_returns_data_and_a_trace_is_whole(running: Watched) -> None:
    """Under a mixed load no panel is empty, and the spans of Envoy and the router are one tree."""
    assert len(dashboard_queries()) > 15  # `settle` has asked them
    assert {service for service, _ in running.escalation()} == {"envoy", "semantic-router"}


def test_requests_out_of_scope_are_not_booked_under_the_nearest_cohort(running: Watched) -> None:
    """The nearest cohort of the prompt that is out of scope is `summary`."""
    for query in ("cohort:semantic_router_cost_usd:rate5m", "cohort:semantic_router_requests:rate5m"):
        cohorts = {sample["metric"]["cohort"] for sample in running.ask(query)}
        assert {"out_of_scope", "no_text"} <= cohorts and "summary" not in cohorts, query
    report = read_report(running.ledger, 3600)
    assert {"out_of_scope", "no_text"} <= {line.name for line in report.groups}


def test_every_exchange_is_a_span_of_the_genai_conventions(running: Watched) -> None:
    """It has the model that answered and the tokens, below Envoy's span for the upstream."""
    ended = [span for span in running.collector.spans("semantic-router") if span.name == "chat qwen3-8b"]
    [counted, *_] = [span for span in ended if "gen_ai.usage.input_tokens" in attributes(span)]
    assert attributes(counted)["gen_ai.response.model"] == "qwen3-8b"
    envoys = {span.span_id for span in running.collector.spans("envoy")}
    assert counted.parent_span_id in envoys


QUESTIONS = re.findall(
    r"^### ([^\n]+\?)$|^```(promql|bash)\n(.+?)\n```$", ON_CALL.read_text(), re.MULTILINE | re.DOTALL
)


def questions() -> list[tuple[str, str, str]]:
    """Each question of the page, with the kind and the text of a query or command that answers it."""
    asked, question = [], ""
    for heading, kind, text in QUESTIONS:
        question = heading or question
        asked += [(question, kind, text)] if kind else []
    return asked


def test_the_page_has_an_answer_to_each_of_twenty_questions() -> None:
    headings = {heading for heading, _, _ in QUESTIONS if heading}
    assert len(headings) >= 20 and {question for question, _, _ in questions()} == headings


@pytest.mark.parametrize(("question", "kind", "text"), questions())
def test_a_question_of_the_person_on_call_has_an_answer(
    running: Watched, capsys: pytest.CaptureFixture[str], question: str, kind: str, text: str
) -> None:
    """A query returns data, and a command prints its answer."""
    if kind == "promql":
        eventually(lambda: running.ask(text), question)
        return
    answer = ask(running.stack.port, EXTRACT)
    request = answer.headers["x-request-id"]
    eventually(lambda: main(["why", request, "--ledger", str(running.ledger)]) == 0, "the row is in the ledger")
    capsys.readouterr()
    replaced = {
        "REQUEST_ID": request, "ledger.sqlite": str(running.ledger), "intents": str(REPOSITORY / "intents"),
        "127.0.0.1:50051": f"127.0.0.1:{running.stack.router_port}",
    }  # fmt: skip
    program, *words = shlex.split(text)
    command = [replaced.get(word, word) for word in words]
    assert program == "extproc"
    eventually(lambda: main(command) == 0, question)  # a busy router may miss the time limit of `health`
    wanted = ANSWERS[question].format_map({"reason": answer.said["x-router-reason"]})
    assert wanted in capsys.readouterr().out


# Parts of the answer of each command.
ANSWERS = {
    "Why did this request go there?": " ({reason})\n",
    "Where would this prompt go now?": "decision  tier ",
    "What did we save in the last day?": "against the default tier alone",
    "Who spends?": "\nanonymous ",
    "Which app spends?": "\n- ",
    "Which tier costs most?": "\nlarge ",
    "How much was not judged, and why?": "out_of_scope was not judged: no_cohort ",
    "Is the file on disk what serves?": "has the revision that serves",
    "Is a router up?": ": serving\n",
}
