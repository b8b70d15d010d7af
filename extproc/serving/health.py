"""`extproc health`: ask the gRPC health service of a router. It is for probes that do not speak gRPC."""

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from extproc.contract.names import FILES_HEALTH
from extproc.serving.dialing import DialTls, dial


def serves(address: str, timeout_s: float = 1.0, service: str = "", tls: DialTls | None = None) -> bool:
    """Return whether the server at `address` ("host:port" or "unix:///path") answers SERVING within `timeout_s`."""
    return health_of(address, timeout_s, service, tls) is True


def health_of(address: str, timeout_s: float = 1.0, service: str = "", tls: DialTls | None = None) -> bool | None:
    """Return whether the server at `address` answers SERVING. None: it does not answer within `timeout_s`."""
    word = _word(address, timeout_s, service, tls)
    return None if word is None else word == int(health_pb2.HealthCheckResponse.SERVING)


def refuses_files(address: str, timeout_s: float = 1.0, tls: DialTls | None = None) -> bool:
    """Return whether the files on disk are refused there. Several workers together do not say so."""
    return _word(address, timeout_s, FILES_HEALTH, tls) == int(health_pb2.HealthCheckResponse.NOT_SERVING)


def _word(address: str, timeout_s: float, service: str, tls: DialTls | None) -> int | None:
    with dial(address, tls) as channel:
        try:
            reply = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(service=service), timeout=timeout_s
            )
        except grpc.RpcError:
            return None
    return int(reply.status)
