"""What may come in: paths, encodings, sizes and protocols. And what may go out: no key and nothing internal."""

import gzip
import http.client
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bench.collector import Collector
from extproc.api.paths import APIS, SIDE_PATHS
from extproc.demo.sample_upstream import Received, SampleUpstreams
from extproc.demo.stack import Stack
from tests.e2e.traffic import (
    CHAT,
    EXTRACT,
    EXTRACTED,
    LEGAL,
    MESSAGES,
    MODELS,
    PROVE,
    RESPONSES,
    Answer,
    arrived,
    ask,
    body_of,
    eventually,
    send,
)

_OWN = "Bearer of the frontier tier"
_KEYS = {
    "authorization": "Bearer a", "x-api-key": "b", "api-key": "c", "x-goog-api-key": "d", "cookie": "s=1",
    "openai-organization": "org-x", "openai-project": "p", "chatgpt-account-id": "q", "x-team-token": "t",
    "proxy-authorization": "r",
}  # fmt: skip
_EMBEDDINGS = b'{"model":"text-embedding-3-small","input":"x"}'
_ALL_SERVED = (*APIS, *SIDE_PATHS)


@pytest.fixture(scope="module")
def doors(small_intents: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Stack, Collector]]:
    """A stack whose frontier tier has a key of its own and whose policy opens three paths. Envoy sends spans."""
    folder = tmp_path_factory.mktemp("doors")
    (folder / "key").write_text(_OWN)
    with Collector() as collector, SampleUpstreams(MODELS) as upstreams:
        stack = Stack(small_intents, folder, upstreams)
        policy = stack.intents / "policy.yaml"
        named = "name: frontier\n"
        assert named in policy.read_text()
        policy.write_text(
            policy.read_text().replace(named, f"{named}  credential: {folder / 'key'}\n")
            + "max_body_mb: 2\nclient_keys: [x-team-token]\npassthrough:\n"
            "- {path: /v1/embeddings, methods: [POST], tier: frontier}\n"
            "- {path: /v1/files/*, methods: [GET, DELETE, POST], tier: frontier, key: tier}\n"
            "- {path: /v1/rerank, tier: small}\n"
            "- {path: /v1/audio/transcriptions, tier: frontier}\n"
            "- {path: /v1beta/*, tier: frontier}\n"
        )
        try:
            stack.start_router()
            stack.start_envoy(otlp=collector.address)
            yield stack, collector
        finally:
            stack.stop()


@pytest.fixture
def stack(doors: tuple[Stack, Collector]) -> Stack:
    return doors[0]


def keys_of(received: Received) -> dict[str, str]:
    return {name: received.headers[name] for name in _KEYS if name in received.headers}


def message_of(answer: Answer, path: str = CHAT) -> str:
    """Return the message of an error, which has the shape of the API at `path`."""
    error: dict[str, Any] = json.loads(answer.body)
    assert answer.headers["content-type"] == "application/json"
    if path.startswith(MESSAGES):
        assert (error.keys(), error["type"], error["error"].keys()) == (
            {"type", "error"}, "error", {"type", "message"},
        )  # fmt: skip
    else:
        assert (error.keys(), error["error"].keys()) == ({"error"}, {"message", "type", "param", "code"})
    message: str = error["error"]["message"]
    return message


# --- closed paths -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("DELETE", "/v1/batches/b_1"), ("GET", "/"), ("POST", "/v1/images/generations"), ("PUT", "/v1/embeddings"),
        ("GET", "/v1/messages/batches"), ("GET", "/v1/files/..%2Fadmin"), ("GET", "/v1/files/%2e%2e/admin"),
        ("POST", "/v1/conversations"), ("GET", "/v1/responses/r_1/output"),
    ],
)  # fmt: skip
def test_a_path_that_nobody_opened_is_closed(stack: Stack, method: str, path: str) -> None:
    """The client gets 404 and reads what is served and how the operator opens a path. No upstream sees it."""
    before = len(stack.upstreams.received)
    answer = send(stack.port, path, b"{}" if method == "POST" else None, _KEYS, method)
    message = message_of(answer, path)
    assert (answer.status, len(stack.upstreams.received)) == (404, before)
    assert all(served in message for served in (*_ALL_SERVED, "/v1/models", "`passthrough` in policy.yaml"))


@pytest.mark.parametrize("path", _ALL_SERVED)
def test_a_wrong_method_is_answered(stack: Stack, path: str) -> None:
    """405 with the right method, in the shape of the path's API."""
    before = len(stack.upstreams.received)
    answer = send(stack.port, path, headers=_KEYS, method="GET")
    assert (answer.status, answer.headers["allow"]) == (405, "POST")
    assert message_of(answer, path) == "this path takes only POST"
    assert len(stack.upstreams.received) == before


def test_an_opened_path_gets_the_clients_own_keys(stack: Stack) -> None:
    """The key of the tier is not added, and the host is the one of the upstream."""
    answer = send(stack.port, "/v1/embeddings?key=K", _EMBEDDINGS, {"host": "gw.internal"} | _KEYS)
    received = arrived(stack)
    assert (answer.status, received.tier, received.body, keys_of(received)) == (404, "frontier", _EMBEDDINGS, _KEYS)
    assert received.headers["host"] == "127.0.0.1"
    assert not [name for name in received.headers if name.startswith(("x-envoy-", "x-router-", "x-cascade-"))]


@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_a_path_opened_with_the_tiers_key_gets_no_key_of_the_client(stack: Stack, method: str) -> None:
    """The operator chose that everyone may use the key there."""
    send(stack.port, "/v1/files/f_1?api-key=K&limit=2", headers=_KEYS, method=method)
    received = arrived(stack)
    assert (received.tier, received.path, keys_of(received)) == (
        "frontier", "/v1/files/f_1?limit=2", {"authorization": _OWN},
    )  # fmt: skip


@pytest.mark.parametrize(
    "body",
    [b'{"model":"auto","input":"x"}', b'{"requests":[{"custom_id":"1","params":{"model":"auto"}}]}'],
    ids=["one", "batch"],
)
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
def test_a_name_that_only_the_router_knows_is_refused_on_an_opened_path(
    stack: Stack, packed: bool, body: bytes
) -> None:
    """No upstream gets it, in any encoding."""
    before = len(stack.upstreams.received)
    headers = {"content-encoding": "gzip"} if packed else {}
    answer = send(stack.port, "/v1/embeddings", gzip.compress(body) if packed else body, headers)
    assert (answer.status, len(stack.upstreams.received)) == (400, before)
    assert message_of(answer).startswith("no upstream of this path knows the model `auto`")


_SPEECH = "/v1/audio/transcriptions"
_FORM = {"content-type": "multipart/form-data; boundary=cut"}


def form(*parts: str, file: bytes = b"\x00\xffRIFF model\r\n\r\nauto\r\n") -> bytes:
    """Return a form: a file, and these other parts."""
    sound = b'Content-Disposition: form-data; name="file"; filename="model"\r\nContent-Type: audio/wav\r\n\r\n'
    return b"".join(b"--cut\r\n%b\r\n" % part for part in (*map(str.encode, parts), sound + file)) + b"--cut--\r\n"


_FIELD = 'Content-Disposition: form-data; name="model"'


@pytest.mark.parametrize(
    "part",
    [
        f"{_FIELD}\r\n\r\nauto",
        f"{_FIELD}\r\nContent-Type: text/plain; charset=utf-8\r\n\r\nauto ",
        "content-disposition: form-data; name=model\r\n\r\nauto",
        f"{_FIELD}; x=y\r\n\r\nauto",
        f"{_FIELD}\r\n\r\nwhisper-1\r\n--cut\r\n{_FIELD}\r\n\r\nauto",
        f"{_FIELD}\r\nContent-Transfer-Encoding: base64\r\n\r\nYXV0bw==",
    ],
    ids=["usual", "with a type", "bare", "parameter", "twice", "base64"],
)
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
def test_a_form_that_names_our_model_is_refused(stack: Stack, part: str, packed: bool) -> None:
    """Envoy itself reads the field of a form. No upstream gets the name, whether the file or the field is first."""
    before = len(stack.upstreams.received)
    headers = _FORM | ({"content-encoding": "gzip"} if packed else {})
    for body in (form(part), form().removesuffix(b"--cut--\r\n") + form(part)):
        answer = send(stack.port, _SPEECH, gzip.compress(body) if packed else body, headers)
        assert (answer.status, len(stack.upstreams.received)) == (400, before)
        assert message_of(answer) == (
            "no upstream of this path knows the model of this body: name a model of the upstream"
        )


@pytest.mark.parametrize(
    "parts",
    [
        (),
        (f"{_FIELD}\r\n\r\nwhisper-1",),
        (f"{_FIELD}\r\n\r\nauto-2", 'Content-Disposition: form-data; name="language"\r\n\r\nauto'),
        ('Content-Disposition: form-data; name="model_kind"\r\n\r\nauto',),
    ],
)
def test_a_form_with_another_model_passes_as_it_is(stack: Stack, parts: tuple[str, ...]) -> None:
    body = form(*parts)
    send(stack.port, _SPEECH, body, _FORM)
    assert arrived(stack).body == body


def test_a_form_is_read_in_bounded_time(stack: Stack) -> None:
    """A form above the limit of a body is answered with 413, and one with very many fields with 400."""
    before = len(stack.upstreams.received)
    many = form(*[f"{_FIELD}\r\n\r\nwhisper-1"] * 1001)
    assert send(stack.port, _SPEECH, many, _FORM).status == 400
    assert send(stack.port, _SPEECH, form(file=b"model" * 100_001), _FORM).status == 400
    large = send(stack.port, _SPEECH, form(file=b"x" * 3 * 1024 * 1024), _FORM)
    assert large.status == 413 and message_of(large)
    assert len(stack.upstreams.received) == before


@pytest.mark.parametrize(
    ("path", "body", "kind"),
    [
        ("/v1/embeddings", b"input=x&model=a%75to", "application/x-www-form-urlencoded"),
        ("/v1/embeddings?model=auto", b"{}", "application/json"),
        (f"{_SPEECH}?language=en&model=auto", b"RIFF", "audio/wav"),
        ("/v1beta/models/auto:generateContent?alt=sse", b"{}", "application/json"),
        ("/v1beta/deployments/auto/audio", b"RIFF", "audio/wav"),
    ],
)
def test_our_model_in_a_path_a_query_or_a_plain_form_is_refused(
    stack: Stack, path: str, body: bytes, kind: str
) -> None:
    before = len(stack.upstreams.received)
    answer = send(stack.port, path, body, {"content-type": kind})
    assert (answer.status, len(stack.upstreams.received)) == (400, before)
    assert message_of(answer).startswith("no upstream of this path knows the model")


def test_another_model_in_a_path_or_a_query_passes(stack: Stack) -> None:
    path = "/v1beta/models/auto-2:generateContent?model=auto-2"
    send(stack.port, path, b"{}")
    assert arrived(stack).path == path


def test_files_pass_an_opened_path_unread(stack: Stack) -> None:
    """A body of a type that is not JSON may be larger than the limit."""
    body = b"x" * 3 * 1024 * 1024
    send(stack.port, "/v1/files/", body, {"content-type": "multipart/form-data; boundary=x"})
    assert arrived(stack).body == body


# --- keys ---------------------------------------------------------------------------------------------------


def test_a_tier_with_a_key_gets_none_of_the_clients(stack: Stack) -> None:
    """No header and no query parameter with a key. Other parameters stay."""
    path = f"{CHAT}?key=K&beta=true&api_key=L&a%70i-Key=M&access_token=N&x=%20"
    answer = send(stack.port, path, msgspec.json.encode(body_of(CHAT, LEGAL)), _KEYS)
    received = arrived(stack)
    assert (answer.status, received.tier, keys_of(received)) == (200, "frontier", {"authorization": _OWN})
    assert received.path == f"{CHAT}?beta=true&x=%20"


def test_a_tier_without_a_key_gets_the_clients_as_they_were(stack: Stack) -> None:
    """Headers and query are as the client sent them, and nothing internal is beside them."""
    path = f"{CHAT}?key=K&b=%41"
    answer = send(stack.port, path, msgspec.json.encode(body_of(CHAT, PROVE)), _KEYS)
    received = arrived(stack)
    assert (answer.status, received.tier, keys_of(received), received.path) == (200, "large", _KEYS, path)
    assert not [name for name in received.headers if name.startswith(("x-envoy-", "x-router-", "x-cascade-"))]


def test_no_key_of_a_query_is_logged_or_traced(doors: tuple[Stack, Collector]) -> None:
    """The log and the spans of Envoy have the path without the query."""
    stack, collector = doors
    secret = "sk-querysecret-88"
    for path in (CHAT, "/v1/embeddings", "/v1/nothing", "/v1/files/f"):
        send(stack.port, f"{path}?key={secret}", _EMBEDDINGS, {"authorization": f"Bearer {secret}"})
    ask(stack.port, PROVE, model="gpt-4-last")
    eventually(lambda: stack.log("envoy.log").count('"path":"/v1/nothing"'), "the access log is written")
    eventually(lambda: b"/v1/nothing" in collector.everything(), "the spans have the path")
    text = stack.log("envoy.log") + stack.log("envoy.err") + stack.log("router.log")
    assert secret not in text
    assert secret.encode() not in collector.everything()


# --- paths as clients write them ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        f"{CHAT}/", f"/{CHAT}", "/v1//chat///completions", "/chat/completions", f"/openai{CHAT}", f"/v1{CHAT}/",
        "/v1beta/openai/chat/completions",
    ],
)  # fmt: skip
def test_the_path_of_an_api_may_be_written_in_several_ways(stack: Stack, path: str) -> None:
    """It is routed, and the upstream sees the path as it knows it."""
    answer = send(stack.port, f"{path}?a=b", msgspec.json.encode(body_of(CHAT, EXTRACT)))
    assert (answer.status, answer.said, arrived(stack).path) == (200, EXTRACTED, f"{CHAT}?a=b")


@pytest.mark.parametrize("path", SIDE_PATHS)
def test_a_path_without_an_answer_gets_a_model_that_its_tier_knows(stack: Stack, path: str) -> None:
    """The default tier's model takes the place of ours. A tier's model goes to that tier."""
    for model, tier, sent in (("auto", "large", "qwen3-32b"), ("frontier-1", "frontier", "frontier-1")):
        send(stack.port, f"{path}?beta=true", msgspec.json.encode({"model": model, "messages": []}), _KEYS)
        received = arrived(stack)
        assert (received.tier, received.path) == (tier, f"{path}?beta=true")
        assert msgspec.json.decode(received.body) == {"model": sent, "messages": []}
    assert keys_of(received) == {"authorization": _OWN}


def test_a_path_with_a_deployment_is_answered_with_the_base_url(stack: Stack) -> None:
    """A client of another provider learns what to set."""
    path = "/openai/deployments/D/chat/completions?api-version=2024-10-21"
    answer = send(stack.port, path, msgspec.json.encode(body_of(CHAT, EXTRACT)))
    assert answer.status == 404
    assert "set the base URL of your client to this host with /openai/v1 or /v1" in message_of(answer)


def test_the_models_are_listed(stack: Stack) -> None:
    """The name that is replaced and those of the tiers, in the shape of OpenAI or Anthropic."""
    names = ["auto", *MODELS.values()]
    openai = send(stack.port, "/v1/models", method="GET")
    assert (openai.status, openai.headers["content-type"]) == (200, "application/json")
    listed = json.loads(openai.body)
    assert (listed["object"], [model["id"] for model in listed["data"]]) == ("list", names)
    assert {model["object"] for model in listed["data"]} == {"model"}
    listed = json.loads(send(stack.port, "/v1/models?limit=9", None, {"anthropic-version": "1"}, "GET").body)
    assert ([model["id"] for model in listed["data"]], listed["has_more"]) == (names, False)
    assert {model["type"] for model in listed["data"]} == {"model"}
    assert json.loads(send(stack.port, "/v1/models/auto", method="GET").body)["id"] == "auto"
    assert send(stack.port, "/v1/models/gpt-4o", method="GET").status == 404


# --- bodies -------------------------------------------------------------------------------------------------


_PLAIN = b'{"model":"auto","input":"Prove that 17 is prime."}'
_PACKED = {
    "gzip": gzip.compress(_PLAIN),
    # Brotli and zstd store so short a text unchanged, between marks.
    "br": bytes.fromhex("8b1880") + _PLAIN + bytes.fromhex("03"),
    "zstd": bytes.fromhex("28b52ffd2432910100") + _PLAIN + bytes.fromhex("e64c0f19"),
}


@pytest.mark.parametrize("encoding", ["gzip", "br", "zstd"])
def test_a_compressed_body_is_routed(stack: Stack, encoding: str) -> None:
    """The upstream gets it plain, with its new length."""
    answer = send(stack.port, RESPONSES, _PACKED[encoding], {"content-encoding": encoding})
    received = arrived(stack)
    assert (answer.status, answer.said["x-router-cohort"]) == (200, "math_reasoning")
    assert "content-encoding" not in received.headers
    assert received.headers["content-length"] == str(len(received.body))
    assert msgspec.json.decode(received.body)["model"] == "qwen3-32b"


_WHOLE = gzip.compress(_PLAIN)
_NOT_WHOLE = {
    "two members": gzip.compress(_PLAIN[:20]) + gzip.compress(_PLAIN[20:]),
    "a member after the object": _WHOLE + gzip.compress(b" "),
    "another object after it": _WHOLE + gzip.compress(_PLAIN.replace(b"17", b"19")),
    "bytes after it": _WHOLE + b"more",
    "zeros after it": _WHOLE + bytes(64),
    "cut": _WHOLE[:-1],
    "no checksum": _WHOLE[:-8],
    "half": _WHOLE[: len(_WHOLE) // 2],
    "a wrong checksum": _WHOLE[:-8] + bytes(4) + _WHOLE[-4:],
    "not gzip": _PLAIN,
    "nearly nothing": b"\x1f\x8b",
}


@pytest.mark.parametrize("sent_as", ["whole", "chunked"])
@pytest.mark.parametrize("name", _NOT_WHOLE)
def test_a_gzip_body_that_is_not_one_whole_member_is_answered_with_400(
    stack: Stack, name: str, sent_as: str
) -> None:
    """Envoy decodes up to the damage or to the end of the first member. No upstream sees that part."""
    before, body = len(stack.upstreams.received), _NOT_WHOLE[name]
    pieces = [body[i : i + 5] for i in range(0, len(body), 5)]
    answer = send(stack.port, RESPONSES, pieces if sent_as == "chunked" else body, {"content-encoding": "gzip"})
    assert (answer.status, len(stack.upstreams.received)) == (400, before)
    assert message_of(answer).startswith("the gzip body is damaged, or has bytes after its first member: send all")
    assert answer.headers["x-router-reason"] == "bad_request"


@pytest.mark.parametrize("encoding", ["gzip", "GZIP"])
def test_a_gzip_body_in_many_pieces_is_routed(stack: Stack, encoding: str) -> None:
    pieces = [_WHOLE[i : i + 3] for i in range(0, len(_WHOLE), 3)]
    answer = send(stack.port, RESPONSES, pieces, {"content-encoding": encoding})
    assert (answer.status, answer.said["x-router-cohort"]) == (200, "math_reasoning")


@pytest.mark.parametrize("encoding", ["deflate", "compress", "gzip, gzip", "x-unknown"])
@pytest.mark.parametrize("path", [CHAT, MESSAGES])
def test_another_encoding_is_answered_with_415(stack: Stack, path: str, encoding: str) -> None:
    """No upstream sees what we cannot read."""
    before = len(stack.upstreams.received)
    answer = send(stack.port, path, b"\x00\x01", {"content-encoding": encoding})
    assert (answer.status, len(stack.upstreams.received)) == (415, before)
    assert "gzip, br, zstd" in message_of(answer, path)


@pytest.mark.parametrize("path", [CHAT, MESSAGES])
@pytest.mark.parametrize("sent_as", ["whole", "chunked", "packed"])
def test_a_body_above_the_limit_is_answered_with_413(stack: Stack, path: str, sent_as: str) -> None:
    """The error names the limit and its key. A packed body counts as it is when it is unpacked."""
    body: Any = b"x" * 3 * 1024 * 1024
    headers = {"content-encoding": "gzip"} if sent_as == "packed" else {}
    body = gzip.compress(body) if sent_as == "packed" else [body] if sent_as == "chunked" else body
    answer = send(stack.port, path, body, headers)
    assert answer.status == 413
    assert message_of(answer, path).startswith("the body is larger than 2 MiB")
    assert "`max_body_mb` in policy.yaml" in message_of(answer, path)


@pytest.mark.parametrize(
    "body",
    ['{"model":"auto","messages":[]}'.encode("utf-16"), b'{"model":"auto","messages":[{"role', b"no", b"\x00" * 9],
    ids=["UTF-16", "cut", "text", "nul"],
)
@pytest.mark.parametrize("path", [CHAT, MESSAGES])
def test_a_body_that_cannot_be_read_is_answered_with_400(stack: Stack, path: str, body: bytes) -> None:
    """The router cannot know which model it names, so no upstream gets it."""
    before = len(stack.upstreams.received)
    answer = send(stack.port, path, body)
    assert (answer.status, len(stack.upstreams.received)) == (400, before)
    assert message_of(answer, path).startswith("the body is not a JSON object")


# --- protocols ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "path"), [("GET", RESPONSES), ("GET", "/v1/realtime"), ("POST", CHAT)])
def test_a_websocket_is_answered_with_426(stack: Stack, method: str, path: str) -> None:
    """Clients that can do without it then send the request with POST."""
    headers = {"connection": "Upgrade", "upgrade": "websocket", "sec-websocket-version": "13"}
    answer = send(stack.port, path, b"{}" if method == "POST" else None, headers, method)
    assert (answer.status, message_of(answer)) == (426, "WebSocket is not served here: use HTTP")


def test_http_1_0_is_served(stack: Stack) -> None:
    """A proxy in front of Envoy may speak it, without a Host header."""
    body = msgspec.json.encode(body_of(CHAT, PROVE))
    with socket.create_connection(("127.0.0.1", stack.port), timeout=30) as connection:
        head = f"POST {CHAT} HTTP/1.0\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        assert (answer.status, answer.headers["x-router-cohort"]) == (200, "math_reasoning")


def test_the_errors_of_envoy_are_json(stack: Stack) -> None:
    """A tier that is gone, and headers that are too large."""
    stack.upstreams.stop_tier("frontier")
    try:
        for path in (CHAT, MESSAGES):
            answer = send(stack.port, path, msgspec.json.encode(body_of(path, LEGAL)))
            assert answer.status == 503
            assert message_of(answer, path)
    finally:
        stack.upstreams.restart_tier("frontier")
    answer = send(stack.port, CHAT, b"{}", {"x-large": "x" * 70_000})
    assert (answer.status, message_of(answer)) == (431, "Request Header Fields Too Large")
