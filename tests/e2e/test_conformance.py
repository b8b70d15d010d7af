"""Failover conformance: the outcome for a strict client, for each fault of the first tier.

The next tier is healthy. There are four outcomes:

- recovered: the client gets the complete answer of the healthy tier;
- served: the client gets the first tier's answer, which has no fault;
- honest: the client gets an error or a visibly incomplete answer, with bytes of the upstream only;
- silently wrong: the answer looks complete and correct, and is not.
"""

import asyncio
import contextlib
import gzip
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest

from extproc.demo.stack import Stack
from tests.conftest import SUMMARY
from tests.e2e.faulty_upstream import (
    CHAT,
    LONG,
    MESSAGES,
    RESPONSES,
    SHORT,
    FaultyUpstreams,
    Wire,
    body_of,
    new_id,
    post,
    read,
    running_faulty,
    text_of,
)  # fmt: skip

_JUDGED = "tier: small\naccept: [complete, non_empty, no_refusal]\nescalate: {to: large, share: 1}"
COHORTS = {
    "early": _JUDGED,
    "buffer": f"{_JUDGED}\nstream: buffer",
    "certain": _JUDGED.replace("complete, ", ""),
    "unjudged": "tier: small",
    # Log-probabilities are asked for, and taken out of the answer. These upstreams send none, and all others pass.
    "logprob": _JUDGED.replace("[complete", "[{logprob: {min: -9, on_unavailable: accept}}, complete"),
    "dead_certain": _JUDGED.replace("complete, ", "").replace("small", "dead"),
    "dead_early": _JUDGED.replace("small", "dead"),
    "dead_buffer": _JUDGED.replace("small", "dead") + "\nstream: buffer",
    "dead_unjudged": "tier: dead\nescalate: {to: large}",
}
# Short enough to wait for every stall, and long enough for healthy answers on a slow machine.
TIMEOUTS = "timeouts: {attempt_s: 6, request_s: 14}\nescalations: {per_minute: 100000, burst: 100000}\n"

# These are unusual but not wrong, so they are served.
FINE = (
    "fine", "slow_headers", "slow_first_token", "trickled", "hints_first", "with_trailers", "until_close",
    "gzipped",
)  # fmt: skip
# In chat completions, a finish reason and the end of the stream are an ending. The other APIs have an event for it.
FINE_STREAMS = ("without_ending",)
# These are possible in JSON and in streams.
FAULTS = (
    "refused", "reset_before_headers", "closed_before_headers", "reset_after_headers",
    "status_429", "status_500", "status_503", "no_headers_in_time", "no_body_in_time", "stalled_midway",
    "empty_content", "null_content", "no_body", "no_content", "html", "html_as_asked", "error_in_200",
    "length_too_long", "length_too_short", "cut_midway", "reset_midway", "other_framing", "wrong_type",
    "brotlied", "no_json",
)  # fmt: skip
JSON_FAULTS = ("truncated_json", "truncated_json_chunked")
SSE_FAULTS = (
    "cut_before_first_token", "no_event_at_all", "only_done", "ended_midway", "ended_in_a_frame",
    "ending_without_finish", "error_event_first", "error_event_midway", "error_event_then_done",
)  # fmt: skip
# Faults after the first tokens were sent. The answer has 160 words, and an early judgement ends at 200 characters.
LATE_FAULTS = (
    "stalled_midway", "cut_midway", "reset_midway", "ended_midway", "ended_in_a_frame",
    "ending_without_finish", "error_event_midway", "error_event_then_done", "length_too_long", "length_too_short",
)  # fmt: skip
# Faults that end when Envoy's time limit does.
WAITING = {"no_headers_in_time", "no_body_in_time", "stalled_midway"}

COLUMNS = (
    ("judged json", "early", False), ("judged sse, early", "early", True), ("judged sse, buffer", "buffer", True),
    # After its first tokens, this stream does not pass the router any more.
    ("early, certain", "certain", True),
    ("unjudged json", "unjudged", False), ("unjudged sse", "unjudged", True),
)  # fmt: skip


class Cell(msgspec.Struct):
    """One fault in one column."""

    fault: str
    column: str
    words: int
    outcome: str
    detail: str
    reason: str


class Table:
    """All outcomes."""

    def __init__(self, cells: list[Cell]) -> None:
        self.cells = cells

    def outcomes(self, column: str, late: bool = False) -> dict[str, str]:
        words = LONG if late else SHORT
        return {c.fault: c.outcome for c in self.cells if c.column == column and c.words == words}

    def __str__(self) -> str:
        names = [name for name, _, _ in COLUMNS]
        rows = [f"{'fault of the first tier':<40}" + "".join(f"{name:<20}" for name in names)]
        keys = list(dict.fromkeys((c.fault, c.words) for c in self.cells))
        found = {(c.fault, c.words, c.column): c.outcome for c in self.cells}
        for fault, words in keys:
            label = f"{fault} (after 200 chars)" if words == LONG else fault
            rows.append(f"{label:<40}" + "".join(f"{found.get((fault, words, n), '-'):<20}" for n in names))
        rows.append("")
        for kind in ("recovered", "served", "honest", "silently wrong"):
            counts = Counter(c.column for c in self.cells if c.outcome == kind)
            rows.append(f"{'total ' + kind:<40}" + "".join(f"{counts[n]:<20}" for n in names))
        wrong = [c for c in self.cells if c.outcome == "silently wrong"]
        rows += [f"silently wrong: {c.fault} ({c.column}): {c.detail}" for c in wrong]
        return "\n".join(row.rstrip() for row in rows)


def _applicable(stream: bool) -> list[tuple[str, int]]:
    names = (*FINE, *FAULTS, *((*FINE_STREAMS, *SSE_FAULTS) if stream else JSON_FAULTS))
    return [(name, SHORT) for name in names] + [(name, LONG) for name in LATE_FAULTS if stream]


async def one_cell(
    stack: Stack, prompts: dict[str, str], column: tuple[str, str, bool], fault: str, words: int, path: str,
    headers: dict[str, str] | None = None,
) -> Cell:  # fmt: skip
    """Send one request, and return what the client got."""
    name, cohort, stream = column
    request_id = new_id()
    refused = fault == "refused"
    script: dict[str, Any] = {"id": request_id, "small": "fine" if refused else fault, "words": words}
    prompt = prompts[f"dead_{cohort}" if refused else cohort]
    wire = await post(stack.port, path, body_of(path, prompt, stream, script), headers, within_s=60)
    upstreams: FaultyUpstreams = stack.upstreams  # type: ignore[assignment]
    fine = fault in FINE or (path == CHAT and fault in FINE_STREAMS)
    outcome, detail = classify(upstreams, wire, request_id, path, stream, words, fine)
    reason = wire.headers.get("x-cascade-reason", "")
    return Cell(fault, name, words, outcome, detail, reason)


def classify(
    upstreams: FaultyUpstreams, wire: Wire, request_id: str, path: str, stream: bool, words: int, fine: bool
) -> tuple[str, str]:
    """Return which of the four outcomes this is, and what the client saw."""
    reading = read(wire, path, stream)
    if not reading.problems and reading.text == text_of("large", request_id, words):
        return "recovered", ""
    if not reading.problems and fine and reading.text == text_of("small", request_id, words):
        return "served", ""
    if not reading.problems:
        return "silently wrong", f"looks fine: {reading.text[:60]!r}"
    if wire.status != 200 or wire.fault in ("refused", "hang"):
        return "honest", "; ".join(reading.problems)
    sent = [body for tier in ("small", "large") for body in upstreams.sent.get((request_id, tier), [])]
    if not any(bytes(body).startswith(wire.body) for body in sent):
        return "silently wrong", f"bytes that no upstream sent: {wire.body[-80:]!r}"
    return "honest", "; ".join(reading.problems)


async def whole_table(stack: Stack, prompts: dict[str, str], path: str) -> Table:
    """Return the outcomes of all faults in all columns. Requests that wait for a time limit wait together."""
    enough = asyncio.Semaphore(12)

    async def one(column: tuple[str, str, bool], fault: str, words: int) -> Cell:
        async with contextlib.nullcontext() if fault in WAITING else enough:
            return await one_cell(stack, prompts, column, fault, words, path)

    jobs = [one(column, *which) for column in COLUMNS for which in _applicable(column[2])]
    cells = await asyncio.gather(*jobs)
    return Table(list(cells))


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Stack, dict[str, str]]]:
    with running_faulty(tmp_path_factory.mktemp("conformance"), COHORTS, TIMEOUTS) as running:
        yield running


@pytest.fixture(scope="module")
def table(faulty: tuple[Stack, dict[str, str]]) -> Table:
    return asyncio.run(whole_table(*faulty, CHAT))


JUDGED = ("judged json", "judged sse, early", "judged sse, buffer", "early, certain")


def test_the_table(table: Table, record_property: Callable[[str, object], None]) -> None:
    """Print the table. It has at least sixteen faults."""
    record_property(SUMMARY, f"Failover conformance, chat completions, strict raw client\n\n{table}")
    assert len({c.fault for c in table.cells} - set(FINE)) >= 16


def test_no_judged_answer_is_silently_wrong(table: Table) -> None:
    """Every judged answer that looks complete and correct is so."""
    wrong = [c for c in table.cells if c.column in JUDGED and c.outcome == "silently wrong"]
    assert wrong == []


@pytest.mark.parametrize("column", JUDGED)
def test_every_fault_before_the_first_byte_is_recovered(table: Table, column: str) -> None:
    """No byte was sent, so the client gets the whole answer of the next tier."""
    outcomes = table.outcomes(column)
    if "early" in column:  # the fault comes after the answer's ending, which was already sent
        assert outcomes.pop("length_too_long") == "honest"
    faults = {fault: outcome for fault, outcome in outcomes.items() if fault not in FINE + FINE_STREAMS}
    kept = {fault: outcome for fault, outcome in faults.items() if outcome != "recovered"}
    assert kept == {}
    assert len(faults) >= 16


def test_a_buffered_stream_is_recovered_wherever_it_broke(table: Table) -> None:
    """All of it was buffered, so all of it can be replaced."""
    assert set(table.outcomes("judged sse, buffer", late=True).values()) == {"recovered"}


@pytest.mark.parametrize("column", ["judged sse, early", "early, certain"])
def test_what_breaks_after_the_first_tokens_left_is_seen_to_break(table: Table, column: str) -> None:
    """The client has the first tokens, so it must see that the rest is missing.

    If Envoy notices the fault before they were sent, the answer is recovered.
    """
    outcomes = Counter(table.outcomes(column, late=True).values())
    assert set(outcomes) <= {"honest", "recovered"}
    assert outcomes["honest"] >= 1


@pytest.mark.parametrize("column", [name for name, _, _ in COLUMNS])
def test_what_is_fine_is_served_by_the_first_tier(table: Table, column: str) -> None:
    """Slow, in single bytes, compressed, with hints or trailers: unusual answers are not wrong."""
    outcomes = table.outcomes(column)
    fine = FINE + FINE_STREAMS if "sse" in column else FINE
    assert {fault: outcomes[fault] for fault in fine} == dict.fromkeys(fine, "served")


@pytest.mark.parametrize("column", ["unjudged json", "unjudged sse"])
def test_failover_needs_no_judge(table: Table, column: str) -> None:
    """Faults that Envoy itself notices are recovered for every cohort."""
    outcomes = table.outcomes(column)
    for fault in (
        "refused", "reset_before_headers", "closed_before_headers", "status_429", "status_500", "status_503",
        "no_headers_in_time",
    ):  # fmt: skip
        assert outcomes[fault] == "recovered", fault


def test_nothing_is_made_up_for_an_unjudged_answer(table: Table) -> None:
    """It passes unchanged. If it looks correct and is not, the upstream sent it so."""
    wrong = [c for c in table.cells if c.outcome == "silently wrong" and c.column not in JUDGED]
    assert {c.fault for c in wrong} <= {"empty_content", "null_content"}
    assert not [c for c in wrong if c.detail.startswith("bytes that no upstream sent")]


@pytest.mark.parametrize("stream", [False, True], ids=["json", "sse"])
@pytest.mark.parametrize("path", [MESSAGES, RESPONSES])
def test_the_other_apis_are_held_to_their_own_endings(
    faulty: tuple[Stack, dict[str, str]], path: str, stream: bool
) -> None:
    """message_stop and response.completed are required: these APIs have no other ending."""
    faults = ["fine", "empty_content", "reset_before_headers", "error_in_200", "cut_midway"]
    faults += ["ended_midway", "without_ending", "error_event_midway", "ended_in_a_frame"] if stream else []
    faults += [] if stream else ["truncated_json"]
    columns = [column for column in COLUMNS if column[0] in JUDGED and column[2] == stream]

    async def ask_all() -> list[Cell]:
        jobs = [one_cell(*faulty, column, fault, SHORT, path) for column in columns for fault in faults]
        return await asyncio.gather(*jobs)

    cells = asyncio.run(ask_all())
    expected = [(fault, "served" if fault == "fine" else "recovered") for _ in columns for fault in faults]
    assert [(c.fault, c.outcome) for c in cells] == expected


@pytest.mark.parametrize("stream", [False, True], ids=["json", "sse"])
def test_an_answer_that_is_changed_keeps_its_encoding(faulty: tuple[Stack, dict[str, str]], stream: bool) -> None:
    """Log-probabilities that only the rule needs are taken out of it, and it is compressed again."""
    stack, prompts = faulty
    for fault, encoding in (("gzipped", "gzip"), ("fine", None)):
        request_id = new_id()
        script = {"id": request_id, "small": fault, "logprobs": True}
        wire = asyncio.run(post(stack.port, CHAT, body_of(CHAT, prompts["logprob"], stream, script)))
        assert (wire.headers.get("content-encoding"), wire.headers["x-router-tier"]) == (encoding, "small")
        reading = read(wire, CHAT, stream)
        assert (reading.problems, reading.text) == ([], text_of("small", request_id, SHORT))
        upstreams: FaultyUpstreams = stack.upstreams  # type: ignore[assignment]
        [sent] = upstreams.sent[request_id, "small"]
        assert b"-0.5" in plain(bytes(sent), encoding) and b"-0.5" not in plain(wire.body, encoding)


def plain(body: bytes, encoding: str | None) -> bytes:
    return gzip.decompress(body) if encoding == "gzip" else body
