"""The ends of streams that the verifier has left to Envoy: the same verdicts as of a verifier that reads them."""

import contextlib
import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import pytest

from extproc.acceptance.rules import Complete
from extproc.acceptance.verdict import judge
from extproc.accounting.store import connect
from extproc.api.answer import AnswerReader
from extproc.api.observation import Usage
from extproc.api.paths import APIS
from extproc.demo.stack import Stack
from extproc.verifying.ruling import JudgedAttempt, rule_late
from tests.e2e.faulty_upstream import CHAT, MESSAGES, RESPONSES, FaultyUpstreams, ask, new_id, write_intents
from tests.e2e.traffic import COMPLETIONS, eventually, ledger_of, with_ledger

_COHORTS = {"early": "tier: small\naccept: [complete, non_empty, no_refusal]\nescalate: {to: large, share: 1}"}
_COHORTS["record"] = f"{_COHORTS['early']}\nstream: record"
# An early judgement sends the stream on after 200 characters. The rule about refusals does not count quotes. Each
# quote is one inside of JSON.
_NAMES = '{"finish_reason": "length", "type": "message_stop", "stop_reason": "max_tokens"}'
_TEXT = f"The settings are {_NAMES}. These are the settings of today:\n\n{_NAMES}.\n"


def _event(value: dict[str, Any], named: bool = False) -> str:
    name = f"event: {value['type']}\n" if named else ""
    return f"{name}data: {msgspec.json.encode(value).decode()}\n\n"


def _chat(finish: str | None, text: str = "", **more: Any) -> str:
    return _event({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish}], **more})


def _completion(finish: str | None, text: str = "") -> str:
    return _event({"choices": [{"index": 0, "text": text, "finish_reason": finish}]})


def _stopped(stop: str | None) -> str:
    return _event({"type": "message_delta", "delta": {"stop_reason": stop}}, named=True)


def _response(status: str, why: str | None = None, **more: Any) -> str:
    details = {"reason": why} if why is not None else None
    response = {"object": "response", "incomplete_details": details, "status": status, "output": [], **more}
    return _event({"type": f"response.{status}", "response": response}, named=True)


_ERROR = {"message": "overloaded", "type": "server_error", "code": "overloaded"}
_DONE, _STOPPED = "data: [DONE]\n\n", _event({"type": "message_stop"}, named=True)
# The first part of a stream of each API, and its last parts.
_STREAMS: dict[str, tuple[str, list[str]]] = {
    CHAT: (
        _chat(None, _TEXT),
        [
            *(_chat(word) + _DONE for word in ("stop", "length", "content_filter", "tool_calls", "eos", "weird")),
            *(_chat(word) + _DONE for word in ("STOP", " stop", "FINISH_REASON_MAX_TOKENS", "", "in_progress")),
            _chat(None, _TEXT) * 3 + _chat("stop") + _event({"choices": [], "usage": {"prompt_tokens": 1}}) + _DONE,
            _chat("length").replace(":", ": ") + _DONE,
            _chat("stop"),
            _chat(None) + _DONE,
            _event({"error": _ERROR}),
            _event({"error": "overloaded"}) + _DONE,
            _chat("error", error=_ERROR) + _DONE,
            ": comment\n\n",
            _chat("stop" + 150_000 * " " + "x") + _DONE,  # a word that is slow to read holds up no other request
        ],
    ),
    COMPLETIONS: (
        _completion(None, _TEXT),
        [_completion("stop") + _DONE, _completion("length") + _DONE, _completion(None) + _DONE],
    ),
    MESSAGES: (
        _event({"type": "message_start", "message": {"content": [], "stop_reason": None}}, named=True)
        + _event({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}, True)
        + _event({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": _TEXT}}, True),
        [
            *(_stopped(word) + _STOPPED for word in ("end_turn", "max_tokens", "tool_use", "pause_turn")),
            _stopped("refusal") + _STOPPED,
            _stopped("end_turn") + 'event: message_stop\ndata: {}\n\n',
            _stopped("end_turn"),
            _stopped(None) + _STOPPED,
            _event({"type": "error", "error": _ERROR}, named=True),
        ],
    ),
    RESPONSES: (
        _event({"type": "response.created", "response": {"status": "in_progress"}}, named=True)
        + _event({"type": "response.output_text.delta", "delta": _TEXT}, named=True),
        [
            _response("completed"),
            _response("incomplete", "max_output_tokens"),
            _response("incomplete", "content_filter"),
            _response("incomplete"),
            _response("failed", error=_ERROR),
            _event({"type": "response.output_text.done", "text": _TEXT}, named=True),
            _event({"type": "error", "message": "overloaded"}, named=True),
        ],
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Stack, dict[str, str]]]:
    folder = tmp_path_factory.mktemp("endings")
    prompts = write_intents(folder / "written", _COHORTS)
    with FaultyUpstreams() as upstreams:
        stack = Stack(folder / "written", folder, upstreams)  # type: ignore[arg-type]  # has what a stack asks for
        with with_ledger(stack) as running:
            yield running, prompts


def _as_if_read(path: str, body: bytes) -> tuple[str, str | None]:
    """The verdict of a verifier that has read the whole stream, and its reason."""
    reader = AnswerReader(APIS[path], "text/event-stream")
    reader.feed(body)
    reader.finish()
    ruling = rule_late(judge((Complete(),), reader.observation()), JudgedAttempt("early"), Usage())
    return ruling.decision.verdict or "", ruling.decision.verdict_reason


def _rows(stack: Stack) -> dict[str, dict[str, Any]]:
    with contextlib.suppress(OSError), contextlib.closing(connect(ledger_of(stack))) as ledger:
        return {str(row["request"]): dict(row) for row in ledger.select("SELECT * FROM outcomes")}
    return {}


def test_envoy_reads_how_a_stream_ends_as_the_verifier_does(stack: tuple[Stack, dict[str, str]]) -> None:
    """No chunk travels to the router after the verdict on the first ones. The late verdict is not lost by it."""
    running, prompts = stack
    cases = [(path, first, last) for path, (first, ends) in _STREAMS.items() for last in ends]
    jobs = []
    for (path, first, last), whole, cohort in itertools.product(cases, (True, False), _COHORTS):
        if whole or (cohort == "early" and len(last) < 10_000):
            jobs.append((path, [first, *([last] if whole else last)], cohort, new_id()))

    def half_closed() -> int:
        return running.stats("cluster.small.ext_proc.verifier.server_half_closed").popitem()[1]

    def send(job: tuple[str, list[str], str, str]) -> Any:
        path, written, cohort, request_id = job
        script = {"id": request_id, "small": "as_written", "written": written}
        return ask(running, prompts[cohort], script, True, path)[0]

    upstreams: FaultyUpstreams = running.upstreams  # type: ignore[assignment]
    with ThreadPoolExecutor(len(jobs)) as pool:
        asked = [pool.submit(send, job) for job in jobs]
        early = sum(cohort == "early" for _, _, cohort, _ in jobs)
        eventually(lambda: half_closed() == early, "the verifier has left the streams")
        for *_, request_id in jobs:
            upstreams.release(request_id)
        wires = [future.result() for future in asked]
    assert [wire.body for wire in wires] == ["".join(written).encode() for _, written, _, _ in jobs]
    names = [wire.headers["x-request-id"] for wire in wires]
    eventually(lambda: len(_rows(running)) == len(jobs), "the ledger has every request")
    rows = _rows(running)
    for (path, written, cohort, _), name in zip(jobs, names, strict=True):
        row = rows[name]
        decision = msgspec.json.decode(row["decision"])
        verdict, reason = _as_if_read(path, "".join(written).encode())
        case = (path, cohort, written)
        assert (decision.get("verdict"), decision.get("verdict_reason")) == (verdict, reason), case
        assert row["judged"] and row["ending"] == ("accepted" if verdict == "accept" else "degraded"), case
