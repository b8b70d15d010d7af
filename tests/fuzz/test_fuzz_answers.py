"""Answers of upstreams that lie, break off or ramble: the same reading for all cuts, and never an exception."""

import time

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.acceptance.requirements import Requirements
from extproc.acceptance.rules import compile_rules
from extproc.acceptance.verdict import judge, judge_early
from extproc.api.answer import AnswerReader
from extproc.api.observation import Observation
from extproc.api.strip import StreamStripper, without_logprobs
from tests.fuzz.shapes import ANSWERS, Writer, corpus, written

_APIS = st.sampled_from(("chat", "completions", "responses", "messages"))
_TYPES = st.sampled_from((None, "application/json", "text/event-stream; charset=utf-8", "text/html", "\xff"))
_RULES = compile_rules([
    "complete", "non_empty", {"min_chars": 2}, {"max_chars": 100}, "json", "json_schema", "tool_calls",
    {"regex": "a|i"},
    "no_refusal", {"logprob": -1}, {"grounded": 0.5},
])  # fmt: skip
_RULES_ALONE = [(rule,) for rule in _RULES]


def _cut(writer: Writer) -> tuple[bytes, list[bytes]]:
    answer = writer.damaged(writer.answer()) if writer.rarely(3) else writer.answer()
    return answer, writer.pieces(answer)


_CUT = written(_cut)


def read(api: str, kind: str | None, pieces: list[bytes]) -> Observation:
    reader = AnswerReader(api, kind)  # type: ignore[arg-type]
    for piece in pieces:
        reader.feed(piece)
        reader.observation()
    reader.finish()
    return reader.observation()


def stripped(api: str, pieces: list[bytes]) -> bytes:
    stripper = StreamStripper(api)  # type: ignore[arg-type]
    return b"".join([*(stripper.feed(piece, end=False) for piece in pieces), stripper.feed(b"", end=True)])


@given(_APIS, _TYPES, _CUT)
def test_an_answer_reads_the_same_however_it_is_cut(
    api: str, kind: str | None, cut: tuple[bytes, list[bytes]]
) -> None:
    """The observation depends only on the bytes."""
    answer, pieces = cut
    assert read(api, kind, pieces) == read(api, kind, [answer])


@given(_APIS, _TYPES, ANSWERS, written(lambda w: w.shape("schema")))
def test_every_answer_gets_a_verdict(api: str, kind: str | None, answer: bytes, schema: bytes) -> None:
    """Each rule accepts or rejects any observation, with any schema that a client may send."""
    try:
        decoded = msgspec.json.decode(schema)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        decoded = None
    request = Requirements(
        json_schema=decoded, tools={"": decoded, "text": decoded}, context="Prove it.", stream=None
    )
    reader = AnswerReader(api, kind)  # type: ignore[arg-type]
    reader.feed(answer)
    for rules in _RULES_ALONE:
        judge_early(rules, reader.observation(), request=request)
    reader.finish()
    for rules in _RULES_ALONE:
        assert judge(rules, reader.observation(), request=request).decided


@given(_APIS, _CUT)
def test_a_stripped_stream_is_the_same_however_it_is_cut(api: str, cut: tuple[bytes, list[bytes]]) -> None:
    """Without log-probabilities, no byte changes."""
    answer, pieces = cut
    out = stripped(api, pieces)
    assert out == stripped(api, [answer])
    assert b"logprobs" in answer or out == answer


@given(_APIS, ANSWERS)
def test_a_whole_answer_loses_its_log_probabilities_only(api: str, answer: bytes) -> None:
    """JSON keeps its members, and other bytes do not change."""
    out = without_logprobs(api, answer)  # type: ignore[arg-type]
    try:
        before, after = (msgspec.json.decode(raw, type=dict[str, msgspec.Raw]) for raw in (answer, out))
    except (msgspec.DecodeError, UnicodeDecodeError):
        assert out == answer
        return
    assert list(after) == list(before)


@pytest.mark.parametrize("name", corpus("answers"))
@pytest.mark.parametrize("api", ["chat", "completions", "responses", "messages"])
def test_the_corpus_of_answers(api: str, name: str) -> None:
    """Each answer gives the same observation whole, in halves and byte by byte, and quickly."""
    answer, began = corpus("answers")[name], time.process_time()
    whole = read(api, None, [answer])
    half = len(answer) // 2
    assert read(api, None, [answer[:half], answer[half:]]) == whole
    single = [answer[i : i + 1] for i in range(len(answer))] if len(answer) < 2000 else [answer]
    assert read(api, None, single) == whole
    assert stripped(api, single) == stripped(api, [answer])
    judge(_RULES, whole, request=Requirements(json_schema={"type": "object"}))
    assert time.process_time() - began < 2
