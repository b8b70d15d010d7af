"""Feedback and asks that come again, through the real Envoy into the ledger."""

import contextlib
import http.client
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from extproc.accounting.store import connect
from extproc.demo.sample_upstream import SampleUpstreams
from extproc.demo.stack import Stack
from tests.e2e.traffic import (
    CHAT,
    EXTRACT,
    MODELS,
    PROVE,
    Answer,
    body_of,
    eventually,
    ledger_of,
    send,
    with_ledger,
    write_small_intents,
)

MINE, THEIRS = {"authorization": "Bearer mine"}, {"authorization": "Bearer theirs"}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("feedback")
    written = write_small_intents(folder / "written")
    with SampleUpstreams(MODELS) as upstreams, with_ledger(Stack(written, folder, upstreams)) as running:
        yield running


def ask(stack: Stack, prompt: str = PROVE, headers: dict[str, str] = MINE) -> str:
    """The id of a request that was answered, and is in the ledger."""
    answer = send(stack.port, CHAT, msgspec.json.encode(body_of(CHAT, prompt)), headers)
    assert answer.status == 200
    name = answer.headers["x-request-id"]
    eventually(lambda: rows(stack, "outcomes", name), "the request is in the ledger")
    return name


def rows(stack: Stack, table: str, request: str) -> list[dict[str, Any]]:
    with contextlib.closing(connect(ledger_of(stack))) as ledger:
        return [dict(row) for row in ledger.select(f"SELECT * FROM {table} WHERE request = ?", (request,))]


def rate(stack: Stack, body: object, headers: dict[str, str] = MINE, path: str = "/feedback") -> Answer:
    raw = body if isinstance(body, bytes) else msgspec.json.encode(body)
    return send(stack.port, path, raw, headers)


def signals(stack: Stack, request: str) -> list[tuple[str, float | None, str | None]]:
    return [(row["kind"], row["score"], row["label"]) for row in rows(stack, "signals", request)]


def test_a_client_rates_its_answer_and_names_the_right_cohort(stack: Stack) -> None:
    """A later rating takes the place of the first, and each part that it leaves out stays."""
    name = ask(stack)
    for path, body in (
        ("/feedback", {"request_id": name, "thumbs": "up"}),
        ("/v1/feedback", {"request_id": name, "label": "extraction"}),
        ("/v1/feedback/", {"request_id": name, "score": 0.25}),
    ):
        answer = rate(stack, body, path=path)
        assert (answer.status, answer.body) == (202, b'{"status":"accepted"}')
        assert answer.headers["content-type"] == "application/json"
    eventually(lambda: signals(stack, name) == [("feedback", 0.25, "extraction")], "the feedback is in the ledger")


def test_only_the_sender_of_a_request_rates_its_answer(stack: Stack) -> None:
    """The same key counts as for every request. An id that is not in the ledger yet is kept until it is."""
    name = ask(stack)
    refused = rate(stack, {"request_id": name, "thumbs": "down"}, THEIRS)
    assert refused.status == 404 and b"you sent no request with this id" in refused.body
    early = "11111111-aaaa-4bbb-8ccc-222222222222"
    assert rate(stack, {"request_id": early, "thumbs": "down"}).status == 202
    eventually(lambda: signals(stack, early) == [("feedback", 0.0, None)], "the early feedback is kept")
    assert signals(stack, name) == []


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "JSON"),
        (b"\xff{}", "JSON"),
        (b"[]", "Expected `object`"),
        ({"thumbs": "up"}, "request_id"),
        ({"request_id": "a b", "thumbs": "up"}, "`request_id` is not an id"),
        ({"request_id": "a" * 65, "thumbs": "up"}, "`request_id` is not an id"),
        ({"request_id": "a"}, "found no rating and no label"),
        ({"request_id": "a", "thumbs": "sideways"}, "Invalid enum value"),
        ({"request_id": "a", "score": 1.5}, "<= 1.0"),
        ({"request_id": "a", "thumbs": "up", "score": 1}, "give only one of them"),
        ({"request_id": "a", "label": "poetry"}, "expected out_of_scope or one of compliance, extraction"),
        ({"request_id": "a", "thumbs": "up", "my secret": "x"}, "text is not kept"),
        ({"request_id": "a", "thumbs": "up", "comment": "x" * 5000}, "longer than 4096 bytes"),
    ],
)
def test_bad_feedback_is_answered_with_what_is_wrong(stack: Stack, body: object, message: str) -> None:
    answer = rate(stack, body)
    assert answer.status == 400, answer
    error = msgspec.json.decode(answer.body)["error"]
    assert message in error["message"] and error["type"] == "invalid_request_error"
    assert b"secret" not in answer.body


def test_other_methods_are_refused(stack: Stack) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", stack.port, timeout=10)
    connection.request("GET", "/feedback")
    response = connection.getresponse()
    assert (response.status, response.getheader("allow")) == (405, "POST")
    connection.close()


def turns_of(*texts: str) -> bytes:
    """A request with these turns: of the person, of the model, and so on."""
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]
    return msgspec.json.encode({"model": "auto", "messages": messages})


def sent(stack: Stack, *texts: str, **headers: str) -> str:
    answer = send(stack.port, CHAT, turns_of(*texts), MINE | headers)
    assert answer.status == 200
    return answer.headers["x-request-id"]


def test_an_ask_that_comes_again_is_a_signal_about_the_answer_before(stack: Stack) -> None:
    """Only the same conversation counts, and a new ask is not a signal."""
    first = sent(stack, EXTRACT)
    again = sent(stack, EXTRACT, "{}", "That is wrong. " + EXTRACT)
    edited = sent(stack, EXTRACT, "{}", "That is all wrong. " + EXTRACT)
    repeated = sent(stack, EXTRACT, "{}", "That is all wrong. " + EXTRACT)
    other = sent(stack, EXTRACT, "{}", EXTRACT, "{}", "Prove that 17 is a prime number.")
    expected = {first: "re_asked", again: "edited", edited: "repeated"}
    eventually(lambda: all(signals(stack, name) for name in expected), "the signals are in the ledger")
    assert {name: [kind for kind, *_ in signals(stack, name)] for name in expected} == {
        name: [kind] for name, kind in expected.items()
    }
    assert signals(stack, repeated) == signals(stack, other) == []


def test_without_the_router_a_client_learns_that_its_feedback_was_not_taken(stack: Stack) -> None:
    """The last test of the module: it stops the router."""
    assert stack.router is not None
    stack.router.terminate()
    stack.router.wait(30)
    answer = rate(stack, {"request_id": "a", "thumbs": "up"})
    assert answer.status == 503 and b"the feedback was not taken" in answer.body
    stack.router = None
