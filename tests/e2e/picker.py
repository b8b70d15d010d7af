"""An endpoint picker of an InferencePool: an ext_proc server that reads a body and names a model server."""

from collections.abc import Iterator
from concurrent import futures
from typing import Any

import grpc

from extproc.pb import ext_proc_pb2 as pb

_DESTINATION = "x-gateway-destination-endpoint"


class Picker:
    """Serves on loopback and names one model server. `bodies` are those of the requests. A context manager."""

    def __init__(self, server: str) -> None:
        self.bodies: list[bytes] = []
        self._server = server
        self._rpc = grpc.server(futures.ThreadPoolExecutor(16))
        process = grpc.stream_stream_rpc_method_handler(
            self._process,
            request_deserializer=pb.ProcessingRequest.FromString,
            response_serializer=pb.ProcessingResponse.SerializeToString,
        )
        service = "envoy.service.ext_proc.v3.ExternalProcessor"
        self._rpc.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, {"Process": process})])
        self.port = self._rpc.add_insecure_port("127.0.0.1:0")

    def __enter__(self) -> "Picker":
        self._rpc.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._rpc.stop(None)

    def _process(self, requests: Iterator[pb.ProcessingRequest], _: Any) -> Iterator[pb.ProcessingResponse]:
        """Read the whole body, then name the server in the reply to the headers, and pass the body on."""
        body = b""
        for request in requests:
            if request.HasField("request_body"):
                body += request.request_body.body
                if request.request_body.end_of_stream:
                    break
        self.bodies.append(body)
        headers = pb.ProcessingResponse()
        change = headers.request_headers.response
        change.clear_route_cache = True
        change.header_mutation.set_headers.add().header.MergeFrom(
            pb.HeaderValue(key=_DESTINATION, raw_value=self._server.encode())
        )
        yield headers
        passed = pb.ProcessingResponse()
        streamed = passed.request_body.response.body_mutation.streamed_response
        streamed.body, streamed.end_of_stream = body, True
        yield passed
