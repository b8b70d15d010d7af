"""The review queue: a file or a Redis stream, with texts only if the policy keeps them."""

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from extproc.demo.processes import end, free_ports
from extproc.settings import Human
from extproc.verifying.review import enqueue

FACTS = {"cohort": "support_faq", "reason": "refusal", "attempt": 1, "revision": "abc"}


def put(queue: str, keep_text: bool = False) -> str:
    return enqueue(Human(queue=queue, keep_text=keep_text), FACTS, "Where is my parcel?", "I cannot say.")


def test_a_case_is_a_line_without_its_text(tmp_path: Path) -> None:
    """Hashes and lengths distinguish cases and show no text."""
    queue = tmp_path / "review.jsonl"
    cases = [put(str(queue)), put(str(queue))]
    rows = [json.loads(line) for line in queue.read_text().splitlines()]
    assert [row["case"] for row in rows] == cases
    assert FACTS.items() <= rows[0].items() and (rows[0]["request_chars"], rows[0]["answer_chars"]) == (19, 13)
    assert "parcel" not in queue.read_text() and "cannot" not in queue.read_text()


def test_text_is_kept_if_the_policy_says_so(tmp_path: Path) -> None:
    put(str(tmp_path / "review.jsonl"), keep_text=True)
    row = json.loads((tmp_path / "review.jsonl").read_text())
    assert (row["request"], row["answer"]) == ("Where is my parcel?", "I cannot say.")


@pytest.mark.parametrize("queue", ["/nowhere/review.jsonl", "redis://127.0.0.1:1/0", "redis://["])
def test_a_queue_that_fails_costs_no_client_its_answer(queue: str, caplog: pytest.LogCaptureFixture) -> None:
    """The case has an id, and the log reports it without its text."""
    case = put(queue)
    assert case in caplog.text and "parcel" not in caplog.text


@pytest.fixture
def redis_url() -> Iterator[str]:
    binary = shutil.which("redis-server")
    if binary is None:
        pytest.skip("there is no redis-server on this machine: apt-get install redis-server")
    (port,) = free_ports(1)
    server = subprocess.Popen(
        [binary, "--port", str(port), "--bind", "127.0.0.1", "--save", ""], stdout=subprocess.DEVNULL
    )
    yield f"redis://127.0.0.1:{port}/0"
    end(server)


def test_a_redis_stream_also_takes_cases(redis_url: str) -> None:
    """Several routers can share this queue."""
    import redis

    client: Any = redis.Redis.from_url(redis_url)
    deadline = time.monotonic() + 20
    while True:
        try:
            client.ping()
            break
        except redis.ConnectionError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    case = put(redis_url)
    ((_, entry),) = client.xrange("extproc:review")
    assert json.loads(entry[b"case"])["case"] == case
