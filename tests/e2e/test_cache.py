"""The cache of accepted answers behind the real Envoy: the clients of an answer, its shape and its end."""

import contextlib
import shutil
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
import redis as client

from extproc.accounting.report import read_report
from extproc.accounting.why import why
from extproc.api.answer import AnswerReader
from extproc.api.paths import APIS
from extproc.cli.health import status_lines
from extproc.demo.processes import end, free_ports
from extproc.demo.sample_upstream import SampleUpstreams
from extproc.demo.stack import Stack
from extproc.serving.files import ask_status
from tests.e2e.traffic import (
    APIS as PATHS,
)
from tests.e2e.traffic import (
    CHAT,
    EXTRACT,
    MESSAGES,
    MODELS,
    PROVE,
    RESPONSES,
    Answer,
    body_of,
    eventually,
    ledger_of,
    send,
    small_intent,
    with_ledger,
    write_small_intents,
)

_RULES = "accept: [complete, non_empty, no_refusal, {{max_chars: {chars}}}]\nescalate: {{to: frontier, share: 1}}"
# The sample upstreams answer in about 40 characters.
_ACCEPTED, _REJECTED = _RULES.format(chars=1000), _RULES.format(chars=5)
CHECKED = '"cache":"checked"'
ALICE, BOB = {"authorization": "Bearer alice"}, {"authorization": "Bearer bob"}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Extractions are kept for each principal, and proofs for all clients. Compliance is above the default tier."""
    folder = tmp_path_factory.mktemp("cache")
    written = write_small_intents(folder / "written")
    (written / "extraction.yaml").write_text(
        small_intent("extraction", f"tier: small\n{_ACCEPTED}\ncache: {{ttl: 1h, verify: 0}}")
    )
    (written / "math_reasoning.yaml").write_text(
        small_intent("math_reasoning", f"tier: large\n{_ACCEPTED}\ncache: {{scope: shared, verify: 0}}")
    )
    (written / "compliance.yaml").write_text(
        small_intent("compliance", "tier: frontier\naccept: [complete, non_empty]\ncache: {verify: 0}")
    )
    with (written / "policy.yaml").open("a") as policy:
        policy.write("upgrades: {per_minute: 0.01, burst: 3}\n")
    with SampleUpstreams(MODELS) as upstreams, with_ledger(Stack(written, folder, upstreams)) as running:
        yield running


@pytest.fixture(scope="module")
def redis() -> Iterator[str]:
    """The URL of a store that outlives the routers."""
    binary = shutil.which("redis-server") or shutil.which("valkey-server")
    if binary is None:
        pytest.skip("there is no redis-server on this machine: apt-get install redis-server")
    (port,) = free_ports(1)
    command = [binary, "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    yield f"redis://127.0.0.1:{port}/0"
    end(server)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory, redis: str) -> Iterator[Stack]:
    """Kept answers are in Redis, and every hit is checked in one of the cohorts."""
    folder = tmp_path_factory.mktemp("stored")
    written = write_small_intents(folder / "written")
    (written / "extraction.yaml").write_text(
        small_intent("extraction", f"tier: small\n{_ACCEPTED}\ncache: {{verify: 1}}")
    )
    (written / "math_reasoning.yaml").write_text(
        small_intent("math_reasoning", f"tier: large\n{_ACCEPTED}\ncache: {{verify: 0}}")
    )
    with (written / "policy.yaml").open("a") as policy:
        policy.write(f"state: {redis}\n")
    with SampleUpstreams(MODELS) as upstreams, with_ledger(Stack(written, folder, upstreams)) as running:
        yield running


def open_store(url: str) -> Any:
    """A client whose methods have types that mypy can read."""
    return client.Redis.from_url(url)


def asked(
    stack: Stack, body: dict[str, Any], path: str = CHAT, headers: dict[str, str] = ALICE
) -> tuple[Answer, int]:
    """The answer, and how many requests the tiers got for it."""
    before = len(stack.upstreams.received)
    answer = send(stack.port, path, msgspec.json.encode(body), headers)
    assert answer.status == 200, answer.body
    return answer, len(stack.upstreams.received) - before


def fill(stack: Stack, body: dict[str, Any], path: str = CHAT, headers: dict[str, str] = ALICE) -> Answer:
    """Ask until the answer comes from the cache. The first answer is kept shortly after its end."""
    first, requests = asked(stack, body, path, headers)
    assert (requests, first.headers["x-router-cache"]) == (1, "miss")

    def again() -> Answer | None:
        answer, requests = asked(stack, body, path, headers)
        return answer if requests == 0 else None

    hit = eventually(again, "the cache answers")
    assert text_of(hit, path) == text_of(first, path) != ""
    return hit


def text_of(answer: Answer, path: str) -> str:
    reader = AnswerReader(APIS[path], answer.headers["content-type"])
    reader.feed(answer.body)
    reader.finish()
    observation = reader.observation()
    assert observation.complete and observation.finish == "stop" and not observation.mislabelled, observation
    return observation.text.strip()


def chat(prompt: str, **more: Any) -> dict[str, Any]:
    return body_of(CHAT, prompt) | more


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", PATHS)
def test_an_answer_is_served_again_in_every_shape(stack: Stack, path: str, stream: bool) -> None:
    body = body_of(path, f"{PROVE} Answer in the shape of {path} {'with' if stream else 'without'} a stream.")
    body |= {"stream": stream} | ({"store": False} if path == RESPONSES else {})
    hit = fill(stack, body, path)
    assert hit.contract == {
        "x-router-cache": "hit", "x-router-cohort": "math_reasoning", "x-router-reason": "matched",
        "x-router-tier": "large", "x-router-attempts": "0", "x-router-escalations": "0",
    }  # fmt: skip
    assert 0 <= int(hit.headers["age"]) < 60
    again, _ = asked(stack, body, path)
    assert again.body != hit.body  # with another id
    other, requests = asked(stack, body | {"stream": not stream}, path)
    assert requests == 0 and text_of(other, path) == text_of(hit, path)
    assert other.headers["content-type"].startswith("application/json" if stream else "text/event-stream")


def test_an_answer_stays_with_its_principal(stack: Stack) -> None:
    body = chat(f"{EXTRACT} For one principal.")
    fill(stack, body)
    other, requests = asked(stack, body, headers=BOB)
    assert (requests, other.headers["x-router-cache"]) == (1, "miss")
    for _ in range(2):
        nobody, requests = asked(stack, body, headers={})
        assert (requests, nobody.headers["x-router-cache"]) == (1, "anonymous")


def test_an_answer_is_shared_only_where_the_intent_says_so(stack: Stack) -> None:
    body = chat(f"{PROVE} For everybody.")
    fill(stack, body)
    for headers in (BOB, {}):
        shared, requests = asked(stack, body, headers=headers)
        assert (requests, shared.headers["x-router-cache"]) == (0, "hit")


def test_other_words_for_the_same_question_count_and_look_alikes_do_not(stack: Stack) -> None:
    fill(stack, chat("How do I show that 17 is a prime number?"))
    same, requests = asked(stack, chat("Could you please explain how to show that 17 is a prime number? Thanks!"))
    assert (requests, same.headers["x-router-cache"]) == (0, "semantic")
    for prompt in (
        "How do I show that 19 is a prime number?",
        "How do I show that 17 is not a prime number?",
        "How do I show that 17 is a square number?",
    ):
        other, requests = asked(stack, chat(prompt))
        assert (requests, other.headers["x-router-cache"]) == (1, "miss"), prompt


@pytest.mark.parametrize(
    ("more", "word"),
    [
        ({"temperature": 0.7}, "sampling"),
        ({"n": 2}, "form"),
        ({"logprobs": True}, "form"),
        ({"max_tokens": 77}, "miss"),
        ({"seed": 5}, "miss"),
        ({"tools": [{"type": "function", "function": {"name": "look_up"}}]}, "miss"),
        ({"unknown_member": [1]}, "miss"),
    ],
)
def test_every_other_member_of_a_request_counts(stack: Stack, more: dict[str, Any], word: str) -> None:
    body = chat(f"{PROVE} With members.")
    if asked(stack, body)[1]:
        eventually(lambda: asked(stack, body)[1] == 0 or None, "the cache answers")
    other, requests = asked(stack, body | more)
    assert requests >= 1 and other.headers["x-router-cache"] == word
    harmless, requests = asked(stack, body | {"user": "u1", "metadata": {"a": "b"}})
    assert requests == 0 and harmless.headers["x-router-cache"] == "hit"


def test_the_system_prompt_and_earlier_turns_count(stack: Stack) -> None:
    ask = {"role": "user", "content": f"{PROVE} In a conversation."}
    terse = [{"role": "system", "content": "Be terse."}, ask]
    fill(stack, {"model": "auto", "messages": terse})
    rude = [{"role": "system", "content": "Be rude."}, ask]
    later = [{"role": "user", "content": PROVE}, {"role": "assistant", "content": "Done."}, ask]
    for messages in (rude, later, [ask]):
        answer, requests = asked(stack, {"model": "auto", "messages": messages})
        assert (requests, answer.headers["x-router-cache"]) == (1, "miss")


@pytest.mark.parametrize(
    ("prompt", "word"),
    [
        ("Show that my number 17 is a prime number", "personal"),
        ("Show that 17 is a prime number and write it to ann@example.com", "personal"),
        ("Show that today's number 17 is a prime number", "moment"),
    ],
)
def test_personal_requests_and_those_about_a_moment_are_never_kept(stack: Stack, prompt: str, word: str) -> None:
    for _ in range(2):
        answer, requests = asked(stack, chat(prompt))
        assert (requests, answer.headers["x-router-cache"]) == (1, word)


def test_a_hit_needs_no_upgrade(stack: Stack) -> None:
    """Three upgrades are used up. Then other questions go to the default tier, and the kept answer is served."""
    carol = {"authorization": "Bearer carol"}
    question = "Does the GDPR allow a shop to keep the birthdays of its customers?"
    kept = fill(stack, chat(question), headers=carol)
    assert (kept.headers["x-router-cache"], kept.headers["x-router-tier"]) == ("hit", "frontier")

    def limited() -> Answer | None:
        other, _ = asked(
            stack, chat(f"Does the GDPR allow {len(stack.upstreams.received)} cookies?"), headers=carol
        )
        return other if other.headers["x-router-reason"] == "upgrade_rate" else None

    assert eventually(limited, "the upgrades are used up").headers["x-router-tier"] == "large"
    for _ in range(3):
        hit, requests = asked(stack, chat(question), headers=carol)
        assert (requests, hit.headers["x-router-cache"], hit.headers["x-router-tier"]) == (0, "hit", "frontier")


def test_the_client_decides_with_cache_control(stack: Stack) -> None:
    body = chat(f"{PROVE} With control.")
    for _ in range(2):
        answer, requests = asked(stack, body, headers=ALICE | {"cache-control": "no-store"})
        assert (requests, answer.headers["x-router-cache"]) == (1, "client")
    fill(stack, body)
    for control in ("no-cache", "no-store"):
        answer, requests = asked(stack, body, headers=ALICE | {"cache-control": control})
        assert (requests, answer.headers["x-router-cache"]) == (1, "client")
    time.sleep(1.1)
    old, requests = asked(stack, body, headers=ALICE | {"cache-control": "max-age=0"})
    assert (requests, old.headers["x-router-cache"]) in ((1, "miss"), (0, "hit"))


def test_rejected_answers_and_errors_are_never_kept(stack: Stack) -> None:
    """The small tier refuses everything with "password". The answer of the next tier is kept."""
    body = chat(f"{EXTRACT} The password is in it.")
    first, requests = asked(stack, body)
    assert (requests, first.headers["x-router-tier"]) == (2, "frontier")

    def hit() -> Answer | None:
        answer, requests = asked(stack, body)
        return answer if requests == 0 else None

    again = eventually(hit, "the cache answers")
    assert again.headers["x-router-tier"] == "frontier" and text_of(again, CHAT) == text_of(first, CHAT)
    sizes = len(stack.upstreams.received)
    for _ in range(2):
        failed = send(stack.port, MESSAGES, b'{"model": "auto", "messages": 5}', ALICE)
        assert "x-router-cache" not in failed.headers or failed.headers["x-router-cache"] != "hit"
    assert len(stack.upstreams.received) >= sizes


def test_the_ledger_says_what_a_hit_saved(stack: Stack) -> None:
    hit = fill(stack, chat(f"{PROVE} For the ledger."))
    request = hit.headers["x-request-id"]

    def story() -> str | None:
        try:
            return why(ledger_of(stack), request)
        except OSError:
            return None

    told = eventually(story, "the ledger has the hit")
    assert "An earlier answer to the same words was served, and no tier was asked (hit)" in told
    assert "Tier large gave the answer. It saved $0.0" in told
    report = read_report(ledger_of(stack), 3600)
    assert report.cached.hits >= 1 and report.cached.saved > 0
    assert report.total.accepted >= report.cached.hits


def test_answers_in_redis_outlive_a_router_and_hold_no_text_of_a_request(stored: Stack, redis: str) -> None:
    bodies = [chat(f"{PROVE} With redis, part {part}.") for part in range(1, 6)]
    for body in bodies:
        fill(stored, body)
    store = open_store(redis)
    eventually(lambda: next(store.scan_iter("extproc:answer:*"), None), "the answer is in Redis")
    assert stored.router is not None
    end(stored.router)
    stored.start_router(options=["--ledger", str(ledger_of(stored))])

    def again() -> Answer | None:
        answer = send(stored.port, CHAT, msgspec.json.encode(chat(PROVE)), ALICE)
        return answer if "x-router-cache" in answer.headers else None  # Envoy has found the new router

    eventually(again, "the router answers")
    # On a busy machine the store may answer some of the questions too late.
    assert "hit" in [asked(stored, body)[0].headers["x-router-cache"] for body in bodies]
    other, requests = asked(stored, bodies[0], headers=BOB)
    assert (requests, other.headers["x-router-cache"]) == (1, "miss")
    entries = {key: store.get(key) or b"" for key in store.scan_iter("extproc:answer:*")}
    assert entries and all(0 < store.ttl(key) <= 86_400 for key in entries)
    for key, value in entries.items():
        for secret in (b"Prove", b"odd numbers", b"alice", b"bob"):
            assert secret not in key and secret not in value


def test_every_hit_is_checked_and_a_cache_with_wrong_hits_is_off(stored: Stack, redis: str) -> None:
    """A poisoned entry in the store counts as wrong, and the answer of the tier takes its place."""
    body, store = chat(f"{EXTRACT} With checks."), open_store(redis)
    known = set(store.scan_iter("extproc:answer:*"))
    assert asked(stored, body)[0].headers["x-router-cache"] == "miss"

    def new() -> bytes | None:
        return next(iter(set(store.scan_iter("extproc:answer:*")) - known), None)

    key = eventually(new, "the answer is kept")
    sound = store.get(key)
    poisoned = msgspec.msgpack.encode(
        msgspec.msgpack.decode(sound) | {"text": "I'm sorry, I can't help with that."}
    )

    def off() -> Answer | None:
        """Under load, Redis may answer too late. Then a check is counted by this process alone."""
        store.set(key, poisoned, ex=3600)
        answer, requests = asked(stored, body)
        assert requests == 1 and "sorry" not in text_of(answer, CHAT)
        return answer if answer.headers["x-router-cache"] == "off" else None

    eventually(off, "the cache is off")
    eventually(lambda: "the cache of `extraction` is off" in stored.log("router.log") or None, "the log says so")
    status = "\n".join(status_lines("router", ask_status(f"127.0.0.1:{stored.router_port}")))
    assert "cache     extraction OFF: " in status and "cache     math_reasoning on: " in status
    report = eventually(lambda: CHECKED in stored.log("envoy.log") or None, "Envoy logs the checks")
    assert report


def test_without_its_store_the_cache_misses_and_nobody_waits(stored: Stack, redis: str) -> None:
    """An answer that this process kept is still served. The store of the others is gone."""
    body = chat(f"{PROVE} Before the store is gone.")
    fill(stored, body)
    with contextlib.suppress(client.ConnectionError):
        open_store(redis).shutdown(nosave=True)
    for prompt in (f"{PROVE} After it.", f"{PROVE} Before the store is gone."):
        answer, _ = asked(stored, chat(prompt))
        assert answer.headers["x-router-cache"] in ("hit", "miss")
