"""Our shortened protos match the bytes of Envoy: every field is compared with the published descriptors."""

import sys
from pathlib import Path
from typing import Any

import grpc_tools
import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.message import Message
from grpc_tools import protoc

import envoy
from extproc.pb import access_log_pb2 as our_log
from extproc.pb import ext_proc_pb2 as ours
from extproc.pb import token_usage_pb2 as our_usage

# The Makefile installs Envoy's protos in a separate folder, because they overwrite files of OpenTelemetry. Their
# package also has the same name as the package with the Envoy binary.
XDS = Path(sys.prefix) / "xds"
sys.path.append(str(XDS))
envoy.__path__.append(str(XDS / "envoy"))

from envoy.service.accesslog.v3 import als_pb2 as envoys_log  # noqa: E402
from envoy.service.ext_proc.v3 import external_processor_pb2 as envoys  # noqa: E402

ROOT = Path(__file__).parent.parent
# All other messages are inside these.
TRAVELLING = (
    (ours.ProcessingRequest, envoys.ProcessingRequest),
    (ours.ProcessingResponse, envoys.ProcessingResponse),
    (our_log.StreamAccessLogsMessage, envoys_log.StreamAccessLogsMessage),
)
SOURCES = ("ext_proc", "access_log", "token_usage")


def messages() -> dict[str, tuple[Descriptor, Descriptor]]:
    """Each of our messages with Envoy's counterpart. The search follows the fields of those in TRAVELLING."""
    found: dict[str, tuple[Descriptor, Descriptor]] = {}
    ahead: list[tuple[Any, Any]] = [(mine.DESCRIPTOR, theirs.DESCRIPTOR) for mine, theirs in TRAVELLING]
    while ahead:
        mine, theirs = ahead.pop()
        if mine.full_name not in found and mine.file.package.startswith("extproc.pb"):
            found[mine.full_name] = (mine, theirs)
            both = [(field, theirs.fields_by_name[field.name]) for field in mine.fields]
            ahead += [(a.message_type, b.message_type) for a, b in both if a.message_type is not None]
    return found


MESSAGES = messages()


def name_of(descriptor) -> str | None:
    """The name of a type without its package, which differs between the two sides."""
    return descriptor and descriptor.full_name.removeprefix(f"{descriptor.file.package}.")


def shape(field: FieldDescriptor) -> dict[str, object]:
    oneof = field.containing_oneof
    return {
        "name": field.name,
        "number": field.number,
        "type": field.type,
        "repeated": field.is_repeated,
        "presence": field.has_presence,
        "oneof": oneof.name if oneof is not None else None,
        "message": name_of(field.message_type),
        "enum": name_of(field.enum_type),
    }


def test_every_message_of_ours_is_reached_and_compared():
    """A message that is not part of one in TRAVELLING would not be compared."""
    files = (ours.DESCRIPTOR, our_log.DESCRIPTOR)
    declared = [message for file in files for message in file.message_types_by_name.values()]
    assert set(MESSAGES) == {m.full_name for top in declared for m in (top, *top.nested_types)}


@pytest.mark.parametrize("name", MESSAGES)
def test_every_field_is_envoys(name):
    """The name, number, type, label and oneof of every field are the same as in Envoy."""
    mine, theirs = MESSAGES[name]
    expected = [shape(theirs.fields_by_name[field.name]) for field in mine.fields]
    if name == "extproc.pb.HttpStatus":
        # Envoy has an enum here and we have an int32, so that we can send any status. Both are varints on the wire.
        assert expected[0]["type"] == FieldDescriptor.TYPE_ENUM
        expected[0] |= {"type": FieldDescriptor.TYPE_INT32, "enum": None}
    assert [shape(field) for field in mine.fields] == expected
    assert name_of(mine) == name_of(theirs)


@pytest.mark.parametrize("name", MESSAGES)
def test_every_oneof_holds_no_stranger(name):
    """Each of our oneofs declares every member that may arrive in it."""
    mine, theirs = MESSAGES[name]
    # We never send the first. The second is a log of connections, and we configure no Envoy to send it.
    unread = {"streamed_immediate_response", "tcp_logs"}
    for oneof in mine.oneofs:
        others = {field.name for field in theirs.oneofs_by_name[oneof.name].fields}
        assert {field.name for field in oneof.fields} == others - unread


@pytest.mark.parametrize("name", MESSAGES)
def test_every_enum_value_is_envoys(name):
    """An enum has the same names and numbers on both sides."""
    mine, theirs = MESSAGES[name]
    for enum in mine.enum_types:
        other = theirs.enum_types_by_name[enum.name]
        assert {v.name: v.number for v in enum.values} == {v.name: v.number for v in other.values}


HEADERS = {"headers": {"headers": [{"key": ":path", "value": "/v1"}, {"key": "a", "rawValue": "wyg="}]}}
CHANGED = {
    "response": {
        "status": 1,
        "headerMutation": {
            "setHeaders": [{"header": {"key": "x-router-cluster", "rawValue": "c21hbGw="}, "appendAction": 2}],
            "removeHeaders": ["content-length"],
        },
        "bodyMutation": {"streamedResponse": {"body": "e30=", "endOfStream": True}},
        "clearRouteCache": True,
    }
}
MODE = {"requestHeaderMode": 1, "responseHeaderMode": 2, "requestBodyMode": 4, "responseTrailerMode": 1}
EXCHANGED = [
    ("ProcessingRequest", {"requestHeaders": {**HEADERS, "endOfStream": True}}),
    ("ProcessingRequest", {"responseHeaders": HEADERS}),
    (
        "ProcessingRequest",
        {
            "requestBody": {"body": "AP8=", "endOfStream": True},
            "attributes": {"envoy.filters.http.ext_proc": {"request.path": "/v1", "n": 1.5}},
            "metadataContext": {"filterMetadata": {"semantic_router": {"cohort": "code"}}},
            "observabilityMode": True,
            "protocolConfig": {"requestBodyMode": 2, "sendBodyWithoutWaitingForHeaderResponse": True},
        },
    ),
    ("ProcessingRequest", {"responseBody": {"body": "AP8="}, "protocolConfig": {"responseBodyMode": 5}}),
    ("ProcessingRequest", {"requestTrailers": {"trailers": HEADERS["headers"]}}),
    ("ProcessingRequest", {"responseTrailers": {}}),
    ("ProcessingResponse", {"requestHeaders": CHANGED, "modeOverride": MODE}),
    ("ProcessingResponse", {"responseHeaders": {}}),
    ("ProcessingResponse", {"requestBody": CHANGED, "dynamicMetadata": {"a": {"b": [{"c": 1.0}, None, True]}}}),
    ("ProcessingResponse", {"responseBody": {"response": {"bodyMutation": {"clearBody": True}}}}),
    ("ProcessingResponse", {"requestTrailers": {"headerMutation": {"removeHeaders": ["a"]}}}),
    ("ProcessingResponse", {"responseTrailers": {}}),
    ("ProcessingResponse", {"immediateResponse": {"status": {"code": 429}, "body": "e30=", "details": "why"}}),
]


def plain(message: Message) -> dict[str, object]:
    return MessageToDict(message, use_integers_for_enums=True)


@pytest.mark.parametrize(("name", "value"), EXCHANGED)
def test_what_we_write_envoy_reads_and_the_other_way_round(name, value):
    """A message has the same meaning and the same bytes on both sides."""
    mine, theirs = ParseDict(value, getattr(ours, name)()), ParseDict(value, getattr(envoys, name)())
    assert plain(mine) == plain(theirs) == value
    written = mine.SerializeToString(deterministic=True)
    assert written == theirs.SerializeToString(deterministic=True)
    assert plain(type(theirs).FromString(written)) == plain(type(mine).FromString(written)) == value


def test_an_entry_of_the_access_log_is_read_as_envoy_writes_it():
    """Times, flags, tags and both kinds of metadata arrive. Fields that the ledger does not read are skipped."""
    usage = our_usage.TokenUsage(extraction_status="COMPLETE")
    usage.input_tokens.value = 7
    theirs = envoys_log.StreamAccessLogsMessage()
    entry = theirs.http_logs.log_entry.add()
    entry.request.path = "/v1?key=secret"
    entry.request.request_id = "5-5"
    common = entry.common_properties
    common.duration.FromMilliseconds(12)
    common.response_flags.downstream_connection_termination = True
    common.response_flags.upstream_retry_limit_exceeded = True
    common.custom_tags["tier"] = "small"
    common.metadata.filter_metadata["semantic_router"]["tier"] = "small"
    common.metadata.typed_filter_metadata["envoy.ai.token_usage"].Pack(usage)
    entry.response.response_code.value = 200
    (read,) = our_log.StreamAccessLogsMessage.FromString(theirs.SerializeToString()).http_logs.log_entry
    unpacked = our_usage.TokenUsage.FromString(
        read.common_properties.metadata.typed_filter_metadata["envoy.ai.token_usage"].value
    )
    assert unpacked == usage
    read.common_properties.metadata.ClearField("typed_filter_metadata")
    assert plain(read) == {
        "commonProperties": {
            "duration": "0.012s",
            "responseFlags": {"downstreamConnectionTermination": True},
            "customTags": {"tier": "small"},
            "metadata": {"filterMetadata": {"semantic_router": {"tier": "small"}}},
        },
        "request": {"requestId": "5-5"},
        "response": {"responseCode": 200},
    }


def test_what_we_leave_out_is_skipped():
    """Envoy's fields that we do not declare do not change the fields that we read."""
    theirs = envoys.ProcessingRequest(request_body=envoys.HttpBody(body=b"{}", end_of_stream=True))
    theirs.metadata_context.typed_filter_metadata["a"].type_url = "b"
    mine = ours.ProcessingRequest.FromString(theirs.SerializeToString())
    assert plain(mine) == {"requestBody": {"body": "e30=", "endOfStream": True}, "metadataContext": {}}


def test_the_committed_code_is_what_the_protos_compile_to(tmp_path):
    """After a change to a proto, `make protos` must be run and its output committed."""
    sources = [f"extproc/pb/{name}.proto" for name in SOURCES]
    includes = [f"-I{ROOT / 'protos'}", f"-I{Path(grpc_tools.__file__).parent / '_proto'}"]
    assert protoc.main(["protoc", *includes, f"--python_out={tmp_path}", f"--pyi_out={tmp_path}", *sources]) == 0
    for file in (f"{name}_pb2{kind}" for name in SOURCES for kind in (".py", ".pyi")):
        assert (tmp_path / "extproc/pb" / file).read_text() == (ROOT / "extproc/pb" / file).read_text()
