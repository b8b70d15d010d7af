"""`extproc health`: ask the gRPC health service of a router. It is for probes that do not speak gRPC."""

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc


def serves(address: str, timeout_s: float = 1.0) -> bool:
    """Return whether the server at `address` ("host:port" or "unix:///path") answers SERVING within `timeout_s`."""
    with grpc.insecure_channel(address) as channel:
        try:
            reply = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=timeout_s)
        except grpc.RpcError:
            return False
    return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)
