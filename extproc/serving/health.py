"""`extproc health`: what gRPC's health service says of a router. For probes, which may not have gRPC themselves."""

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc


def serves(address: str, timeout_s: float = 1.0) -> bool:
    """Whether the server at `address`, "host:port" or "unix:///path", says SERVING within the time."""
    with grpc.insecure_channel(address) as channel:
        try:
            reply = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=timeout_s)
        except grpc.RpcError:
            return False
    return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)
