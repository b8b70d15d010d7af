"""The decision log: what Envoy writes of every request, held to the published schema."""

import json
from pathlib import Path

import jsonschema
from traffic import CHAT, EXTRACT, LEGAL, PROVE, REPOSITORY, ask, body_of, envoy_beside, send

from extproc.policy import Reason
from extproc.stack import Stack

SCHEMA = json.loads((REPOSITORY / "docs" / "decision-log.schema.json").read_text())
# The sample's small tier refuses whatever mentions a password: judged, and climbing.
_CLIMBS = "I forgot my password, how do I get a new one?"
_KEY = "Bearer sk-hushhush-55aa"


def test_every_line_is_as_the_schema_says_and_holds_no_words(stack: Stack, tmp_path: Path) -> None:
    """Decided, judged, climbing, passed through, unreadable, and none of our APIs; in the order they were asked."""
    with envoy_beside(stack, tmp_path, lambda bootstrap: None) as beside:
        for prompt in (PROVE, LEGAL, EXTRACT, _CLIMBS):
            body = json.dumps(body_of(CHAT, prompt)).encode()
            assert send(beside.port, CHAT, body, {"authorization": _KEY}).status == 200
        ask(beside.port, PROVE, model="nobody's")
        send(beside.port, CHAT, b"not JSON at all")
        send(beside.port, "/v1/models", method="GET")
    log = beside.log("envoy.log")  # it is all there when Envoy has ended
    lines = [json.loads(line) for line in log.splitlines()]
    for line in lines:
        jsonschema.validate(line, SCHEMA)
    decisions = [line["decision"] and (line["decision"]["reason"], line["decision"]["tier"]) for line in lines]
    assert decisions == [
        ("matched", "large"), ("matched", "frontier"), ("matched", "small"), ("matched", "small"),
        ("passthrough", "large"), ("unreadable", "large"), None,
    ]  # fmt: skip
    climbed = lines[3]
    assert (climbed["tier"], climbed["attempts"], climbed["decision"]["verdict_reason"]) == ("large", 2, "refusal")
    assert len({line["principal"] for line in lines[:4]}) == 1 and "hushhush" not in log
    assert not any(words in log for words in (PROVE, LEGAL, EXTRACT, _CLIMBS, "not JSON"))


def test_the_schema_knows_every_reason() -> None:
    """A new reason is a change of the schema."""
    assert set(SCHEMA["$defs"]["decision"]["properties"]["reason"]["enum"]) == {reason.value for reason in Reason}
