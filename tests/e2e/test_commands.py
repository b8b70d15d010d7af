"""The commands as a person runs them. The tests check stdout, stderr and the exit code."""

import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from extproc.cli.main import main
from extproc.demo.processes import free_port_range
from extproc.demo.stack import Stack
from extproc.encoder.protocols import Encoder
from tests.e2e.traffic import CHAT, EXTRACT, INTENTS, PROVE, RESPONSES, body_of, small_intent, write_small_intents


def _extproc(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "extproc", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)


def test_explain_prints_the_reason_as_text(small_intents: Path) -> None:
    """The text has every similarity, the margin, the decision, and the changes to the body."""
    done = _extproc("explain", "--intents", small_intents, PROVE)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert {"extraction", "math_reasoning", "compliance"} <= {line.split()[0] for line in lines if line.split()}
    assert any(line.startswith("margin ") for line in lines)
    assert "decision  tier large, because matched" in lines
    assert 'writes    model = "qwen3-32b"' in lines
    assert 'writes    chat_template_kwargs = {"enable_thinking":true}' in lines


@pytest.fixture
def in_process(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run a command in this process, with the encoder that is already loaded."""
    for module in ("extproc.encoder.backends", "extproc.cli.explain"):
        monkeypatch.setattr(f"{module}.load_encoder", lambda _: encoder)

    def run(*arguments: object) -> tuple[int, str, str]:
        code = main(list(map(str, arguments)))
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


def test_explain_prints_the_reason_as_json(
    small_intents: Path, in_process: Callable[..., tuple[int, str, str]]
) -> None:
    """The same as one JSON object on stdout."""
    code, out, err = in_process("explain", "--intents", small_intents, "--json", EXTRACT)
    assert (code, err) == (0, "")
    decision = json.loads(out)
    wanted = {"cohort": "extraction", "tier": "small", "cluster": "small", "reason": "matched", "reasoning": "off"}
    assert {key: decision[key] for key in wanted} == wanted
    assert list(decision["similarities"]) == sorted(
        decision["similarities"], key=decision["similarities"].get, reverse=True
    )
    assert set(decision["similarities"]) == {"extraction", "math_reasoning", "compliance"}
    assert decision["written"] == {
        "model": '"qwen3-8b"', "max_tokens": "512", "chat_template_kwargs": '{"enable_thinking":false}',
    }  # fmt: skip
    assert decision["ask_text"] == EXTRACT


def test_explain_reads_a_request_file(
    small_intents: Path, tmp_path: Path, in_process: Callable[..., tuple[int, str, str]]
) -> None:
    """A recorded body is explained like a served one, including the headers that rules name."""
    body = tmp_path / "body.json"
    body.write_bytes(msgspec.json.encode(body_of(RESPONSES, EXTRACT)))
    _, out, _ = in_process(
        "explain", "--intents", small_intents, "--json", "--request", body, "--header", "X-User-Tier: gold"
    )
    decision = json.loads(out)
    assert (decision["tier"], decision["reason"], decision["rule"]) == ("large", "tier_floor", "paying-users")
    assert decision["written"]["max_output_tokens"] == "512"


def test_check_accepts_the_sample() -> None:
    """The sample intents are valid, and their size is printed."""
    done = _extproc("check", INTENTS)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{INTENTS}: 9 cohorts, 3 tiers, revision ")


def test_check_names_every_mistake(tmp_path: Path) -> None:
    """Each mistake has its file, line and remedy, on stderr. The exit code is 2."""
    folder = write_small_intents(tmp_path / "intents")
    (folder / "extraction.yaml").write_text(small_intent("extraction", "tier: smal\nreasoning: off"))
    (folder / "compliance.yaml").write_text(small_intent("compliance", "tier: frontier\nrisc: high"))
    done = _extproc("check", folder)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"{folder}/compliance.yaml:3: unknown key `risc`: did you mean `risk`?\n"
        f"{folder}/extraction.yaml:2: no tier is called `smal`: did you mean `small`?\n"
        f"2 problems in {folder}\n"
    )


def test_check_names_an_utterance_that_would_not_arrive(
    tmp_path: Path, in_process: Callable[..., tuple[int, str, str]]
) -> None:
    """An intent is refused if one of its utterances matches another intent. The error names the line."""
    folder = write_small_intents(tmp_path / "intents")
    with (folder / "compliance.yaml").open("a") as file:
        file.write('  - "Show that 17 is a prime number"\n')
    code, out, err = in_process("check", folder)
    last = len((folder / "compliance.yaml").read_text().splitlines())
    assert (code, out) == (2, "")
    assert f"{folder}/compliance.yaml:{last}: this utterance of `compliance` is nearer to `math_reasoning`" in err


_FITTED = """\
tier: small
accept: [complete, {score: {min: 0.6}}]
escalate: {to: large}
scorer: {date: "2026-11-22", data: "0123456789ab", rows: 240, tier: small, model: qwen3-8b, auroc: [0.6, 0.7],
  offset: 1.5, weights: {length: -0.5}}
chosen: {date: "2026-11-22", data: "0123456789ab", rows: 400, target: "cost=2",
  models: {small: qwen3-8b, large: old}, quality: [0.7, 0.8], per_1000: [1.5, 1.9]}"""


def test_a_rule_without_its_log_probabilities_is_named(
    tmp_path: Path, in_process: Callable[..., tuple[int, str, str]]
) -> None:
    """`check` names a tier whose model refuses them. `explain` shows the level, and on what it was fitted."""
    folder = write_small_intents(tmp_path / "intents")
    rule = "accept: [{logprob: {min: -0.4, first: 16, tier: small, model: qwen3-8b}}]"
    (folder / "extraction.yaml").write_text(
        small_intent("extraction", f"tier: small\n{rule}\nescalate: {{to: large}}")
    )
    note = "a rule needs log-probabilities, which the tier's model does not give: extraction (small)"
    assert note not in in_process("check", folder)[1]
    lines = in_process("explain", "--intents", folder, EXTRACT)[1].splitlines()
    condition = "logprob (mean of the first 16 tokens below -0.4 at small)"
    assert f"ladder    large, if small fails, or if {condition} rejects its answer" in lines
    policy = folder / "policy.yaml"
    policy.write_text(policy.read_text().replace("qwen3-8b", "gemini-2.5-flash").replace("qwen3", "gemini", 1))
    (folder / "extraction.yaml").write_text(
        (folder / "extraction.yaml").read_text().replace(", model: qwen3-8b", "")
    )
    assert note in in_process("check", folder)[1]


def test_settings_fitted_on_outcomes_are_shown(
    tmp_path: Path, in_process: Callable[..., tuple[int, str, str]]
) -> None:
    """`check` shows what a stream skips and which choice became stale. `explain` shows the evidence."""
    folder = write_small_intents(tmp_path / "intents")
    (folder / "extraction.yaml").write_text(small_intent("extraction", _FITTED))
    code, out, _ = in_process("check", folder)
    assert (code, out.splitlines()[-2:]) == (
        0,
        [
            "stale (models changed since tier and settings were chosen): extraction",
            "long streams skip rules that need the whole answer (`stream: buffer` applies them): "
            "extraction (score)",
        ],
    )
    body = tmp_path / "body.json"
    body.write_bytes(msgspec.json.encode(body_of(CHAT, EXTRACT) | {"stream": True}))
    lines = in_process("explain", "--intents", folder, "--request", body)[1].splitlines()
    assert (
        "chosen    for the target cost=2, on 400 rows of 0123456789ab, 2026-11-22: quality 70.0 to 80.0 %" in lines
    )
    assert (
        "ladder    large, if small fails, or if complete, "
        "score (below 0.6; fitted on 240 rows of 0123456789ab 2026-11-22) rejects its answer"
    ) in lines
    assert "stream    its first tokens are buffered: score needs the whole answer and passes a longer one" in lines


@pytest.mark.parametrize(
    "command", [["check"], ["envoy", "--intents"], ["serve", "--intents"], ["explain", "x", "--intents"]],
    ids=["check", "envoy", "serve", "explain"],
)  # fmt: skip
def test_a_missing_folder_is_named(tmp_path: Path, command: list[str]) -> None:
    """The error has no traceback. It names the folder and a remedy."""
    missing = tmp_path / "nowhere"
    done = _extproc(*command, missing)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"{missing}/policy.yaml:1: {missing} does not exist: give the folder that holds policy.yaml and the "
        f"intents\n1 problem in {missing}\n"
    )


@pytest.mark.parametrize("workers", [1, 2])
def test_serve_names_a_taken_port(small_intents: Path, workers: int) -> None:
    """The error comes before any model is loaded, and is the only line, also for the port of the last worker."""
    port = free_port_range(3)[-1]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        first = f"127.0.0.1:{port - workers + 1}"
        done = _extproc("serve", "--intents", small_intents, "--listen", first, "--workers", str(workers))
    assert (done.returncode, done.stdout) == (2, "")
    what = f"another program uses the port: stop it (`ss -ltnp 'sport = :{port}'` names it), or give another port"
    needs = f". --workers 2 needs {first} to 127.0.0.1:{port}, and 127.0.0.1:{port - 2} for --health"
    expected = f"extproc: cannot listen on 127.0.0.1:{port}: {what}{needs * (workers - 1)}\n"
    assert done.stderr == expected


def test_serve_refuses_a_broken_folder(tmp_path: Path) -> None:
    """A server that cannot route does not start."""
    folder = tmp_path / "intents"
    shutil.copytree(INTENTS, folder)
    (folder / "code.yaml").write_text("intent: [\n")
    done = _extproc("serve", "--intents", folder, "--listen", "127.0.0.1:0")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"{folder}/code.yaml:2: is not valid YAML: ")


@pytest.mark.parametrize("arguments", [[], ["explain", "--intents", "x"], ["nonsense"]], ids=str)
def test_a_wrong_command_line_exits_with_2(arguments: list[str]) -> None:
    """A usage error is reported in one or two lines."""
    done = _extproc(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr and "Traceback" not in done.stderr


def test_health_says_whether_a_router_serves(stack: Stack) -> None:
    """In words and as exit code: 0 if a router serves there, 1 if not."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        silent = f"127.0.0.1:{taken.getsockname()[1]}"
        serving = f"127.0.0.1:{stack.router_port}"
        done = [_extproc("health", address) for address in (serving, silent)]
    assert [(d.returncode, d.stdout) for d in done] == [
        (0, f"{serving}: serving\n"),
        (1, f"{silent}: not serving\n"),
    ]
    assert done[0].stderr == ""
    assert done[1].stderr.startswith("extproc: no answer: start `extproc serve`, or give the address")


def test_the_probe_listener_needs_the_admin_interface(small_intents: Path) -> None:
    """The probe shows pages of the admin interface, so --probe without --admin is an error with a remedy."""
    done = _extproc("envoy", "--intents", small_intents, "--probe", "0.0.0.0:9902")
    assert (done.returncode, done.stdout) == (2, "")
    assert "give --admin too" in done.stderr
