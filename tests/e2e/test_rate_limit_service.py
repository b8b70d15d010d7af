"""Envoy's global rate limit service counts by the router's metadata. Envoy runs the YAML of the guide."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from extproc.demo.stack import Stack
from tests.docs.fences import all_fences
from tests.e2e.traffic import EXTRACT, ask, envoy_beside, eventually, manager_of

_FIELD = descriptor_pb2.FieldDescriptorProto
OK, OVER_LIMIT = 1, 2
MOST_TOKENS = 1000


def _messages() -> tuple[Any, Any]:
    """Request and response of envoy.service.ratelimit.v3, by the numbers of their public definition."""
    file = descriptor_pb2.FileDescriptorProto(name="rls_for_test.proto", package="rls", syntax="proto3")

    def message(name: str, *fields: tuple[str, int, int, str]) -> None:
        declared = file.message_type.add(name=name)
        for field, number, kind, of in fields:
            repeated = field.endswith("s") and kind == _FIELD.TYPE_MESSAGE
            declared.field.add(
                name=field, number=number, type=kind, type_name=of or None,  # type: ignore[arg-type]
                label=_FIELD.LABEL_REPEATED if repeated else _FIELD.LABEL_OPTIONAL,
            )  # fmt: skip

    message("Entry", ("key", 1, _FIELD.TYPE_STRING, ""), ("value", 2, _FIELD.TYPE_STRING, ""))
    message("Addend", ("value", 1, _FIELD.TYPE_UINT64, ""))
    message(
        "Descriptor",
        ("entries", 1, _FIELD.TYPE_MESSAGE, ".rls.Entry"),
        ("hits", 3, _FIELD.TYPE_MESSAGE, ".rls.Addend"),
    )
    file.message_type[-1].field[-1].label = _FIELD.LABEL_OPTIONAL
    message(
        "Request",
        ("domain", 1, _FIELD.TYPE_STRING, ""),
        ("descriptors", 2, _FIELD.TYPE_MESSAGE, ".rls.Descriptor"),
        ("hits_addend", 3, _FIELD.TYPE_UINT32, ""),
    )
    message("Response", ("overall_code", 1, _FIELD.TYPE_INT32, ""))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return tuple(
        message_factory.GetMessageClass(pool.FindMessageTypeByName(f"rls.{name}"))
        for name in ("Request", "Response")
    )  # type: ignore[return-value]


Request, Response = _messages()


class Service:
    """A rate limit service that allows each descriptor MOST_TOKENS tokens."""

    def __init__(self) -> None:
        self.requests: list[tuple[dict[str, str], int]] = []
        self.counts: dict[tuple[tuple[str, str], ...], int] = {}
        self._server = grpc.server(ThreadPoolExecutor(2))
        call = grpc.unary_unary_rpc_method_handler(
            self._limit, request_deserializer=Request.FromString, response_serializer=Response.SerializeToString
        )
        name = "envoy.service.ratelimit.v3.RateLimitService"
        handler = grpc.method_handlers_generic_handler(name, {"ShouldRateLimit": call})
        self._server.add_generic_rpc_handlers((handler,))
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()

    def _limit(self, request: Any, _context: Any) -> Any:
        over = False
        for descriptor in request.descriptors:
            entries = {entry.key: entry.value for entry in descriptor.entries}
            hits = descriptor.hits.value if descriptor.HasField("hits") else request.hits_addend
            self.requests.append((entries, hits))
            key = tuple(sorted(entries.items()))
            over |= self.counts.get(key, 0) >= MOST_TOKENS
            self.counts[key] = self.counts.get(key, 0) + hits
        return Response(overall_code=OVER_LIMIT if over else OK)

    def stop(self) -> None:
        self._server.stop(0).wait()


@pytest.fixture
def service() -> Iterator[Service]:
    service = Service()
    yield service
    service.stop()


def test_the_service_gets_tier_and_tokens_of_each_request(stack: Stack, tmp_path: Path, service: Service) -> None:
    [block] = [fence for fence in all_fences() if fence.title == "part of a virtual host of Envoy"]

    def edit(bootstrap: dict[str, Any]) -> None:
        manager = manager_of(bootstrap)
        [host] = manager["route_config"]["virtual_hosts"]
        host.setdefault("typed_per_filter_config", {}).update(yaml.safe_load(block.text)["typed_per_filter_config"])
        limit = {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.ratelimit.v3.RateLimit",
            "domain": "llm",
            "rate_limit_service": {
                "transport_api_version": "V3", "grpc_service": {"envoy_grpc": {"cluster_name": "ratelimit"}},
            },
        }  # fmt: skip
        manager["http_filters"].insert(-1, {"name": "envoy.filters.http.ratelimit", "typed_config": limit})
        address = {"socket_address": {"address": "127.0.0.1", "port_value": service.port}}
        options = {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": {"http2_protocol_options": {}},
        }
        bootstrap["static_resources"]["clusters"].append(
            {
                "name": "ratelimit", "type": "STATIC", "connect_timeout": "1s",
                "load_assignment": {
                    "cluster_name": "ratelimit",
                    "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
                },
                "typed_extension_protocol_options": {
                    "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options
                },
            }
        )  # fmt: skip

    with envoy_beside(stack, tmp_path, edit) as beside:
        answer = ask(beside.port, EXTRACT)
        assert answer.status == 200
        eventually(lambda: len(service.requests) >= 2, "the service is asked at the start and at the end")
        (first, none), (entries, tokens), *_ = service.requests
        assert first == entries == {"tier": answer.said["x-router-tier"], "principal": "anonymous"}
        assert none == 0 and tokens > 10, service.requests
        assert ask(beside.port, EXTRACT).status == 200
        # The tokens of a request are reported when it is over, and the next one may overtake the report.
        eventually(lambda: ask(beside.port, EXTRACT).status == 429, "the limit is reached")
