"""`extproc demo`: its tables, its exit code, and the cause of a failure as the last line."""

import re
import shutil
import socket
from pathlib import Path

import pytest

from extproc.cli.main import main
from extproc.demo import demo
from extproc.demo.client import Client
from extproc.demo.processes import PortTaken, end
from extproc.demo.sample_upstream import SampleUpstreams
from extproc.demo.stack import PLAIN_CLUSTER, Stack, localize
from extproc.routing.gain_file import FITTED_FILES
from tests.e2e.traffic import INTENTS, MODELS, PROVE, ask, write_small_intents


@pytest.fixture(scope="module")
def small_intents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_intents(tmp_path_factory.mktemp("demo") / "intents")


@pytest.fixture
def without_router(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stack starts Envoy only, which takes a second."""
    monkeypatch.setattr(Stack, "start_router", lambda *_: None)


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.splitlines()[-1]


def named_log(line: str) -> Path:
    match = re.search(r"\. Its log: (.*)$", line)
    assert match is not None, line
    return Path(match[1])


def test_the_whole_demo(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Every prompt goes to the expected tier, no line is wider than 110 columns, and the end names next steps.

    A command contains the paths of program and intents, so both are short here, as in `make demo`.
    """
    monkeypatch.chdir(INTENTS.parent)
    monkeypatch.setattr("sys.argv", [".venv/bin/extproc"])
    assert demo.run_demo(Path(INTENTS.name), keep_serving=False) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert max(map(len, lines)) <= 110
    assert "20 of 20 prompts were served by the tier of their cohort." in lines
    assert "5 of 5 requests were served by the large tier, after one failed attempt." in lines
    assert lines[-1] == "  Use your own Envoy and your own model servers: read README.md."
    assert printed.err == ""


def test_a_prompt_on_another_tier_than_expected_fails_the_demo(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert demo._status([]) == 0
    assert demo._status(["yes", "no"]) == 1
    assert last_line(capsys) == 'the demo failed: another tier than the expected one served "yes", "no"'


def test_a_port_that_is_taken_after_it_was_chosen_is_replaced(
    small_intents: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """While Envoy runs the router keeps its port, because Envoy knows no other."""
    with SampleUpstreams(MODELS) as upstreams:
        stack = Stack(small_intents, tmp_path, upstreams)
        lost = stack.router_port, stack.port
        servers = [socket.create_server(("127.0.0.1", port)) for port in lost]
        try:
            stack.start_router()
            stack.start_envoy()
            assert not {stack.router_port, stack.port} & set(lost)
            assert ask(stack.port, PROVE).status == 200
            assert capsys.readouterr().err.splitlines() == [
                f"the router did not start: another process has taken port {lost[0]}: trying again on other ports",
                f"Envoy did not start: another process has taken port {lost[1]}: trying again on other ports",
            ]
            assert stack.router is not None
            end(stack.router)
            servers.append(socket.create_server(("127.0.0.1", stack.router_port)))
            with pytest.raises(PortTaken):
                stack.start_router()
        finally:
            stack.stop()
            for server in servers:
                server.close()


@pytest.mark.usefixtures("without_router")
def test_the_cause_is_the_last_line_if_envoy_does_not_start(
    small_intents: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One sentence, without Envoy's warnings. The log that it names is still there."""
    bootstrap = {"static_resources": {"listeners": [{"name": "nowhere"}]}}
    monkeypatch.setattr(Stack, "_own_bootstrap", lambda *_: bootstrap)
    assert main(["demo", "--intents", str(small_intents)]) == 2
    line = last_line(capsys)
    log = named_log(line)
    cause = "error adding listener named 'nowhere': address is necessary"
    assert line == f"extproc: Envoy did not start: {cause}. Its log: {log}"
    assert cause in log.read_text()
    shutil.rmtree(log.parent)


@pytest.mark.usefixtures("without_router")
def test_the_cause_is_the_last_line_if_envoy_ends_during_the_demo(
    small_intents: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def end_envoy_and_ask(stack: Stack, _: Path) -> None:
        assert stack.envoy is not None
        end(stack.envoy)
        with Client(stack.url) as client:
            client.ask("auto", PROVE, False)

    monkeypatch.setattr(demo, "show_routing", end_envoy_and_ask)
    assert main(["demo", "--intents", str(small_intents)]) == 2
    line = last_line(capsys)
    log = named_log(line)
    assert line == f"extproc: Envoy ended with status 0 during the demo. Its log: {log}"
    shutil.rmtree(log.parent)


@pytest.mark.usefixtures("without_router")
def test_a_request_that_fails_is_the_last_line_if_all_processes_run(
    small_intents: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def ask_for_an_unknown_model(stack: Stack, _: Path) -> None:
        with Client(stack.plain_url, {PLAIN_CLUSTER: "small"}) as client:
            client.ask("nobody", PROVE, False)

    monkeypatch.setattr(demo, "show_routing", ask_for_an_unknown_model)
    assert main(["demo", "--intents", str(small_intents)]) == 2
    sentence, _, folder = last_line(capsys).partition(". The logs are in ")
    assert sentence.startswith("extproc: a request failed: ") and "this server has no model 'nobody'" in sentence
    assert (Path(folder) / "envoy.err").exists()
    shutil.rmtree(folder)


def test_the_copy_of_the_intents_has_their_fitted_files(tmp_path: Path) -> None:
    source = Path(shutil.copytree(Path(__file__).parents[1] / "configs" / "good", tmp_path / "intents"))
    for name in FITTED_FILES:
        (source / name).write_bytes(name.encode())
    localize(source, tmp_path / "copy", {"small": 1, "large": 2})
    assert all((tmp_path / "copy" / name).read_bytes() == name.encode() for name in FITTED_FILES)
