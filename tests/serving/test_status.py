"""`extproc status` at an address whose answer it cannot use."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from extproc.contract.names import STATUS_METHOD, STATUS_SERVICE
from extproc.serving.files import ask_status


def test_a_router_of_another_release_is_named(tmp_path: Path) -> None:
    """Its status may have other members."""
    address = f"unix://{tmp_path}/router.sock"
    server = grpc.server(ThreadPoolExecutor(1))
    answer: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(lambda *_: b"{}")
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(STATUS_SERVICE, {STATUS_METHOD: answer}),)
    )
    server.add_insecure_port(address)
    server.start()
    with pytest.raises(
        OSError, match="is a router of another release: ask it with `extproc status` of that release"
    ):
        ask_status(address)
    server.stop(None).wait()


def test_where_nothing_listens_the_error_says_which_port_to_give(tmp_path: Path) -> None:
    remedy = "give the port of `extproc serve`, and --tls-cert, --tls-key and --tls-ca if that has --tls-cert"
    with pytest.raises(OSError, match=rf"\(UNAVAILABLE\): {remedy}"):
        ask_status(f"unix://{tmp_path}/none.sock")
