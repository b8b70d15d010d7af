"""`serve --explore`: a second tier is asked on a random share, and no client sees a difference."""

import contextlib
import math
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import pytest

from extproc.accounting.export import export
from extproc.accounting.report import read_report
from extproc.demo.sample_upstream import SampleUpstreams
from extproc.demo.stack import Stack
from tests.e2e.traffic import (
    CHAT,
    EXTRACT,
    MESSAGES,
    MODELS,
    RESPONSES,
    Answer,
    ask,
    body_of,
    eventually,
    ledger_of,
    send,
    small_intent,
    with_ledger,
    write_small_intents,
)

_SHARE = 0.4
_JUDGED = "tier: small\naccept: [complete, non_empty, no_refusal]\nescalate: {to: large, share: 1}"
_RULE = "rules:\n  - {name: best, when: {headers: {x-team: research}}, tier: frontier}"
_KEY = "Bearer sk-hushhush-77bb"
_SEARCH = {"tools": [{"type": "web_search_preview"}]}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("explore")
    intents = write_small_intents(folder / "written")
    (intents / "extraction.yaml").write_text(small_intent("extraction", _JUDGED))
    policy = (intents / "policy.yaml").read_text().replace("rules:", _RULE)
    (intents / "policy.yaml").write_text(policy)
    with SampleUpstreams(MODELS) as upstreams:
        running = Stack(intents, folder, upstreams)
        url = f"http://127.0.0.1:{running.port}"
        with with_ledger(running, "--explore", str(_SHARE), "--explore-url", url):
            assert url == f"http://127.0.0.1:{running.port}", "the port was taken meanwhile"
            yield running


def rows_of(stack: Stack) -> list[dict[str, Any]]:
    with contextlib.suppress(OSError):
        return [msgspec.json.decode(line) for line in export(ledger_of(stack), 3600)]
    return []


def rows_about(stack: Stack, mark: str, count: int) -> list[dict[str, Any]]:
    """Return the exported rows of the requests that contain `mark`, when all of them are there.

    The second request of a row that was drawn may end later than the row.
    """
    ids = {r.headers["x-request-id"] for r in stack.upstreams.received if mark.encode() in r.body}

    def look() -> list[dict[str, Any]] | None:
        rows = [row for row in rows_of(stack) if row["request"] in ids]
        return rows if len(rows) >= count and seconds_of(stack, mark) == explored_of(rows) else None

    return eventually(look, "every request and every second request is in the ledger")


def seconds_of(stack: Stack, mark: str) -> Counter[str]:
    """Return how many second requests with this mark reached each tier."""
    received = [r for r in stack.upstreams.received if mark.encode() in r.body]
    return Counter(r.tier for r in received if r.headers["x-request-id"].startswith("explore-"))


def explored_of(rows: list[dict[str, Any]]) -> Counter[str]:
    return Counter(row["explored"]["tier"] for row in rows if row["explored"] is not None)


def ask_all(stack: Stack, prompt: str, mark: str, count: int, path: str = CHAT, **more: Any) -> list[Answer]:
    """Ask the same, so that it is encoded once. The mark is in a member that nobody reads."""
    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(lambda _: ask(stack.port, prompt, path, user=mark, **more), range(count)))


def test_a_share_is_explored_and_no_client_sees_it(stack: Stack) -> None:
    """The chances say how many second requests to expect. Each has its outcome, and answers are all alike."""
    mark, asked = "Azurite", 150
    answers = ask_all(stack, EXTRACT, mark, asked)
    rows = rows_about(stack, mark, asked)
    assert {(a.status, a.headers["x-router-tier"], a.headers["x-router-reason"]) for a in answers} == {
        (200, "small", "matched")
    }
    assert len({a.body for a in answers}) == 1

    with_chance = [row for row in rows if row["chances"] is not None]
    assert {msgspec.json.encode(row["chances"]) for row in with_chance} == {b'{"large":0.2,"frontier":0.2}'}
    expected, spread = _SHARE * len(with_chance), math.sqrt(len(with_chance) * _SHARE * (1 - _SHARE))
    drawn = explored_of(rows)
    assert abs(drawn.total() - expected) <= 5 * spread  # 1 in 1.7 million by chance
    assert drawn["large"] and drawn["frontier"]
    for row in rows:
        second = row["explored"]
        if second is not None:
            assert (second["propensity"], second["status"], second["accepted"]) == (_SHARE / 2, 200, True)
            assert second["tokens"]["output"] > 0 and second["cost"] > 0 and second["duration_s"] > 0


def test_the_served_tier_is_drawn_too_if_no_rule_judges_its_answer(stack: Stack) -> None:
    mark, asked = "Beryl", 30
    body = msgspec.json.encode(body_of(CHAT, EXTRACT) | {"user": mark})
    for _ in range(asked):
        assert send(stack.port, CHAT, body, {"x-team": "research"}).headers["x-router-tier"] == "frontier"
    rows = rows_about(stack, mark, asked)
    assert {(row["answers"][-1]["tier"], row["answers"][-1]["accepted"]) for row in rows} == {("frontier", None)}
    chances = next(row["chances"] for row in rows if row["chances"] is not None)
    assert chances == pytest.approx(dict.fromkeys(("small", "large", "frontier"), _SHARE / 3))
    received = [r for r in stack.upstreams.received if mark.encode() in r.body]
    assert {row["explored"]["reason"] for row in rows if row["explored"] is not None} == {None}
    assert {r.headers["x-team"] for r in received} == {"research"}, "a rule reads this header"


def test_streams_are_explored_with_their_tokens(stack: Stack) -> None:
    mark, asked = "Citrine", 40
    ask_all(stack, EXTRACT, mark, asked, stream=True)
    rows = rows_about(stack, mark, asked)
    drawn = [row["explored"] for row in rows if row["explored"] is not None]
    assert drawn, "1 in 700 million by chance"
    assert {second["accepted"] for second in drawn} == {True}
    assert all(second["tokens"]["output"] > 0 for second in drawn)


def test_what_has_effects_is_never_asked_twice(stack: Stack) -> None:
    """Hosted tools, background jobs, responses that an upstream keeps, and models that the client chose."""
    mark = "Dolomite"
    requests: list[tuple[str, dict[str, Any]]] = [
        (CHAT, _SEARCH),
        (RESPONSES, {}),  # kept unless the client says otherwise
        (RESPONSES, {"background": True}),
        (RESPONSES, {"store": False, "previous_response_id": "resp_1"}),
        (CHAT, {"model": MODELS["large"]}),  # pinned
    ]
    for path, more in requests:
        ask_all(stack, EXTRACT, mark, 12, path, **more)
    rows = rows_about(stack, mark, 12 * len(requests))
    assert [row["chances"] for row in rows] == [None] * len(rows)
    assert not seconds_of(stack, mark)


def test_no_key_and_no_conversation_of_a_client_is_in_a_second_request(stack: Stack) -> None:
    """A second request does not change where the conversation goes on."""
    mark, asked = "Epidote", 40
    headers = {"authorization": _KEY, "session-id": "hushhush"}
    first = {"role": "user", "content": EXTRACT}
    turns = [first, {"role": "assistant", "content": "Here it is."}, {"role": "user", "content": EXTRACT}]
    for messages in ([first], turns) * (asked // 2):
        body = msgspec.json.encode({"model": "auto", "messages": messages, "user": mark})
        assert send(stack.port, CHAT, body, headers).headers["x-router-tier"] == "small"
    rows_about(stack, mark, asked)
    received = [r for r in stack.upstreams.received if mark.encode() in r.body]
    seconds = [r for r in received if r.headers["x-request-id"].startswith("explore-")]
    assert seconds and len(received) - len(seconds) == asked
    assert not any("hushhush" in value for r in seconds for value in r.headers.values())


def test_the_report_counts_clients_and_shows_second_requests_apart(stack: Stack) -> None:
    mark = "Fluorite"
    before = len(rows_of(stack))
    ask_all(stack, EXTRACT, mark, 20, MESSAGES)
    rows_about(stack, mark, 20)
    report = read_report(ledger_of(stack), 3600)
    assert report.total.requests == len(rows_of(stack)) == before + 20
    assert report.explored.requests >= explored_of(rows_of(stack)).total() > 0
    assert report.explored.cost > 0
    assert [line.name for line in report.groups if line.requests and line.name == "-"] in ([], ["-"])


def test_a_reload_goes_on_exploring(stack: Stack) -> None:
    path = stack.intents / "extraction.yaml"
    path.write_text(small_intent("extraction", _JUDGED.replace("no_refusal", "no_refusal, {max_chars: 5}")))
    mark = "Garnet"

    def applied() -> bool:
        answer = ask(stack.port, EXTRACT)
        return answer.headers["x-router-escalations"] == "1"

    eventually(applied, "the new rule is in force")
    ask_all(stack, EXTRACT, mark, 40)
    rows = rows_about(stack, mark, 40)
    reasons = {row["explored"]["reason"] for row in rows if row["explored"] is not None}
    assert reasons == {"too_long"}
