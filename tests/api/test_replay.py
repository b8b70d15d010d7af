"""A text as an answer of each API: our own reader reads it back, and no id or time is old."""

import msgspec
import pytest

from extproc.api.answer import AnswerReader
from extproc.api.observation import Observation, Usage
from extproc.api.paths import APIS, Api
from extproc.api.replay import Replay, write_answer, write_stream

TEXT = "A heat pump moves heat — from outside to inside.\n\n" + "It needs power. " * 40
REPLAY = Replay(TEXT, "qwen3-32b", Usage(30, 12, 10), 1_800_000_000)


def read(api: Api, content_type: str, body: bytes) -> Observation:
    reader = AnswerReader(api, content_type)
    reader.feed(body)
    reader.finish()
    return reader.observation()


@pytest.mark.parametrize("api", APIS.values())
def test_the_answer_is_whole_in_json_and_as_a_stream(api: Api) -> None:
    whole = read(api, "application/json", write_answer(api, REPLAY))
    stream = read(api, "text/event-stream", write_stream(api, REPLAY, True))
    for observation in (whole, stream):
        assert observation.complete and observation.malformed is None and not observation.mislabelled
        assert (observation.text, observation.finish, observation.n_choices) == (TEXT, "stop", 1)
        assert (observation.model, observation.usage) == ("qwen3-32b", Usage(30, 12, 10))
    assert stream.frames > 5


@pytest.mark.parametrize("api", APIS.values())
def test_every_replay_has_its_own_id_and_time(api: Api) -> None:
    one, other = (msgspec.json.decode(write_answer(api, REPLAY)) for _ in range(2))
    assert one["id"] != other["id"]
    assert api == "messages" or 1_800_000_000 in (one.get("created"), one.get("created_at"))


def test_a_stream_has_token_counts_only_if_the_client_wants_them() -> None:
    for api in ("chat", "completions"):
        assert b"usage" not in write_stream(api, REPLAY, False)
    unknown = Replay("Yes.", "m", Usage(), 1)
    for each in APIS.values():
        assert read(each, "application/json", write_answer(each, unknown)).complete
