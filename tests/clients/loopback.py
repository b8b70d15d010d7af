"""A network namespace that has only the loopback interface. Nothing in it can reach another machine."""

import contextlib
import ctypes
import fcntl
import os
import socket
import struct
from collections.abc import Iterator

_CLONE_NEWNET = 0x40000000
_SIOCSIFFLAGS, _IFF_UP = 0x8914, 0x1
_libc = ctypes.CDLL(None, use_errno=True)


@contextlib.contextmanager
def loopback_only() -> Iterator[None]:
    """Move this thread into a new network namespace, and back at the end. It needs root, or raises PermissionError.

    Threads and processes that are started inside stay in the namespace.
    """
    outside = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        _call(_libc.unshare(_CLONE_NEWNET))
        try:
            with socket.socket() as control:
                fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _IFF_UP))
            yield
        finally:
            _call(_libc.setns(outside, _CLONE_NEWNET))
    finally:
        os.close(outside)


def _call(result: int) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), "cannot change the network namespace")
