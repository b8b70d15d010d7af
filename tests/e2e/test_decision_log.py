"""The decision log: Envoy's line for every request matches the published schema."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jsonschema

from extproc.contract.names import CONTRACT
from extproc.contract.words import Reason
from extproc.demo.stack import Stack
from tests.e2e.traffic import CHAT, EXTRACT, LEGAL, PROVE, REPOSITORY, ask, body_of, envoy_beside, eventually, send

SCHEMA = json.loads((REPOSITORY / "docs" / "decision-log.schema.json").read_text())
# The sample's small tier refuses a request that contains "password". So it is judged and escalated.
_CLIMBS = "I forgot my password, how do I get a new one?"
_KEY = "Bearer sk-hushhush-55aa"


def test_every_line_is_as_the_schema_says_and_holds_no_words(stack: Stack, tmp_path: Path) -> None:
    """Decided, judged, escalated, passed, refused, and not an LLM API, in the order of the requests."""
    with envoy_beside(stack, tmp_path, lambda bootstrap: None) as beside:
        for prompt in (PROVE, LEGAL, EXTRACT, _CLIMBS):
            body = json.dumps(body_of(CHAT, prompt)).encode()
            assert send(beside.port, CHAT, body, {"authorization": _KEY}).status == 200
        ask(beside.port, PROVE, model="nobody's")
        send(beside.port, CHAT, b"not JSON at all")
        send(beside.port, "/v1/models", method="GET")
    log = beside.log("envoy.log")  # complete after Envoy has ended
    lines = [json.loads(line) for line in log.splitlines()]
    for line in lines:
        jsonschema.validate(line, SCHEMA)
    decisions = [line["decision"] and (line["decision"]["reason"], line["decision"]["tier"]) for line in lines]
    assert decisions == [
        ("matched", "large"), ("matched", "frontier"), ("matched", "small"), ("matched", "small"),
        ("passthrough", "large"), ("bad_request", "large"), None,
    ]  # fmt: skip
    assert {line["decision"]["contract"] for line in lines if line["decision"] is not None} == {CONTRACT}
    climbed = lines[3]
    assert (climbed["tier"], climbed["attempts"], climbed["decision"]["verdict_reason"]) == ("large", 2, "refusal")
    assert len({line["principal"] for line in lines[:4]}) == 1 and "hushhush" not in log
    assert not any(words in log for words in (PROVE, LEGAL, EXTRACT, _CLIMBS, "not JSON"))


def test_the_schema_knows_every_reason() -> None:
    """A new reason needs a change of the schema."""
    assert set(SCHEMA["$defs"]["decision"]["properties"]["reason"]["enum"]) == {reason.value for reason in Reason}


def test_a_full_disk_costs_lines_and_no_request(stack: Stack, small_disk: Path) -> None:
    """A separate thread of Envoy writes the log, so no request waits for it."""
    with envoy_beside(stack, small_disk, lambda bootstrap: None) as beside:
        (small_disk / "ballast").write_bytes(b"x" * (shutil.disk_usage(small_disk).free - 8192))
        asked = 150  # 80 KiB of lines, and space for 8 KiB
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda _: ask(beside.port, PROVE).status, range(asked)))
        written = eventually(lambda: beside.stats("filesystem.write_failed").get("filesystem.write_failed"), "full")
        assert ask(beside.port, PROVE).status == 200
    assert (set(found), written > 0) == ({200}, True)
    assert len(beside.log("envoy.log").splitlines()) < asked
