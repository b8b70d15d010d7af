"""Rules that ask another model, people as the last rung, and log-probabilities, through the real Envoy."""

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
import yaml

from extproc.demo.stack import Stack, running

INTENTS = Path(__file__).parents[2] / "intents"
JUDGED = "Summarize in one sentence: The council met on Monday, agreed the budget and postponed the bridge."
AGREED = "Fix the grammar: Me and him goes to the office yesterday."
REFUSED = "I forgot my password and cannot get into my account, what can I do?"
UNSURE = "Is this review positive, negative or neutral? 'I am unsure about this lamp, it looks nice.'"
SURE = "Is this review positive, negative or neutral? 'The battery lasts two days, love it.'"


class Critic(BaseHTTPRequestHandler):
    """A judge whose answer the test chooses."""

    says = "yes"
    asked: ClassVar[list[dict]] = []
    reached: ClassVar[tuple[str, str | None]] = ("", None)  # path and key of the last call

    def do_POST(self) -> None:
        Critic.reached = self.path, self.headers["x-api-key"]
        Critic.asked.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
        body = json.dumps({"choices": [{"message": {"content": Critic.says}}]}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Suppress the request log."""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("callouts")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Critic)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for path in INTENTS.glob("*.yaml"):
        spec = yaml.safe_load(path.read_text())
        if path.name == "policy.yaml":
            url = f"http://127.0.0.1:{server.server_port}/base"
            key = {"file": str(folder / "critic.key"), "header": "x-api-key"}
            spec["judges"] = {"critic": {"url": url, "model": "critic-1", "timeout_ms": 3000, "key": key}}
            (folder / "critic.key").write_text("sk-critic\n")
            spec["human"] = {"queue": str(folder / "review.jsonl"), "message": "A person will answer."}
            spec["encoder"]["deadline_ms"] = 5000
        elif path.name != "_background.yaml":
            spec["floor"] = 0  # the settings of a matched intent apply
        climbing = {"to": "large", "max": 1, "share": 1.0}
        if path.stem == "summary":
            spec |= {"accept": ["complete", {"judge": "critic"}], "escalate": climbing}
        if path.stem == "rewriting":
            spec |= {"accept": [{"agree": {"by": "critic", "level": 0.8}}], "escalate": climbing}
        if path.stem == "support_faq":
            spec |= {"accept": ["no_refusal"], "escalate": {"to": "human"}}
        if path.stem == "classification":
            level = {"min": -0.5, "first": 4, "tier": "small", "model": "qwen3-8b"}  # as `calibrate` writes it
            spec |= {"accept": [{"logprob": level}], "escalate": climbing}
        (folder / path.name).write_text(yaml.safe_dump(spec, sort_keys=False))
    with running(folder) as running_stack:
        running_stack.review = folder / "review.jsonl"  # type: ignore[attr-defined]
        yield running_stack
    server.shutdown()


def ask(stack: Stack, prompt: str, **more: object) -> SimpleNamespace:
    body = {"model": "auto", "messages": [{"role": "user", "content": prompt}], **more}
    request = urllib.request.Request(
        f"{stack.url}/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as reply:
            status, headers, text = reply.status, reply.headers, reply.read().decode()
    except urllib.error.HTTPError as error:
        status, headers, text = error.code, error.headers, error.read().decode()
    named = {name: headers.get(f"x-{name}") for name in ("router-tier", "cascade-reason", "cascade-verdict")}
    return SimpleNamespace(
        status=status,
        type=headers["content-type"],
        text=text,
        tier=named["router-tier"],
        reason=named["cascade-reason"],
        verdict=named["cascade-verdict"],
    )


def test_a_judge_that_says_no_sends_the_answer_up(stack):
    """The judge gets the request and the answer. Its "no" is the reason of the escalation."""
    Critic.says, Critic.asked = "No.", []
    answer = ask(stack, JUDGED)
    assert (answer.status, answer.tier, answer.reason) == (200, "large", "judge")
    (asked,) = Critic.asked
    assert asked["model"] == "critic-1"
    assert Critic.reached == ("/base/chat/completions", "sk-critic")
    assert JUDGED in asked["messages"][0]["content"] and "qwen3-8b here" in asked["messages"][0]["content"]


@pytest.mark.parametrize(
    ("says", "verdict", "reason"), [("yes", "accept", None), ("I cannot tell", "degraded", "unavailable")]
)
def test_a_judge_that_says_yes_or_nothing_clear_lets_it_pass(stack, says, verdict, reason):
    """If the rule could not run, the client gets the answer by default, and the verdict says so."""
    Critic.says = says
    answer = ask(stack, JUDGED)
    assert (answer.status, answer.tier, answer.verdict, answer.reason) == (200, "small", verdict, reason)


def test_a_second_model_that_says_something_else_sends_the_answer_up(stack):
    """`agree` compares the two answers by their embeddings."""
    Critic.says = "The capital of Peru is Lima."
    assert (ask(stack, AGREED).tier, ask(stack, AGREED).reason) == ("large", "agree")


@pytest.mark.parametrize("stream", [False, True])
def test_what_no_model_may_answer_goes_to_a_person(stack, stream):
    """The client gets the configured message and status. The queue gets a case without the text."""
    before = len(stack.review.read_text().splitlines()) if stack.review.exists() else 0
    answer = ask(stack, REFUSED, stream=stream)
    assert (answer.status, answer.type, answer.verdict) == (422, "application/json", "human")
    error = json.loads(answer.text)["error"]
    assert error["message"] == "A person will answer." and error["type"] == "human_review"
    case = json.loads(stack.review.read_text().splitlines()[before])
    assert (case["case"], case["cohort"], case["reason"]) == (error["case"], "support_faq", "refusal")
    assert "password" not in stack.review.read_text()


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities_are_asked_for_and_taken_out_again(stack, stream):
    """A client that did not ask for log-probabilities does not get them."""
    answer = ask(stack, SURE, stream=stream)
    assert (answer.status, answer.tier, answer.verdict) == (200, "small", "accept")
    assert b'"logprobs":true' in stack.upstreams.received[-1].body
    assert '"logprob"' not in answer.text and "qwen3-8b" in answer.text


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("prompt", "tier"), [(SURE, "small"), (UNSURE, "large")])
def test_log_probabilities_that_the_client_asked_for_stay(stack, stream, prompt, tier):
    """A client that asked for log-probabilities gets those of the answer that it gets."""
    answer = ask(stack, prompt, logprobs=True, stream=stream)
    assert (answer.status, answer.tier) == (200, tier)
    assert '"logprob":-0.05' in answer.text.replace(" ", "") and "-2.0" not in answer.text


@pytest.mark.parametrize("stream", [False, True])
def test_an_unsure_answer_goes_up_and_the_last_rung_is_not_asked_for_log_probabilities(stack, stream):
    """The answer of the last rung is not judged. The client sees only that answer, without log-probabilities."""
    answer = ask(stack, UNSURE, stream=stream)
    assert (answer.status, answer.tier, answer.reason) == (200, "large", "low_logprob")
    small, large = stack.upstreams.received[-2:]
    assert b'"logprobs":true' in small.body and b"logprobs" not in large.body
    assert '"logprob"' not in answer.text and "qwen3-32b" in answer.text and "qwen3-8b" not in answer.text
