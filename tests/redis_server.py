"""A real Redis or Valkey that a test stops and starts."""

import shutil
import subprocess
import tempfile

import pytest

from extproc.demo.processes import end, free_ports

# Valkey has the same protocol and scripts. The first one that this machine has is used.
_SERVERS = ("valkey-server", "redis-server")


class Redis:
    """A server that stores nothing on disk by itself, so a restart empties it, or restores what a SAVE kept."""

    def __init__(self) -> None:
        binary = next((path for name in _SERVERS if (path := shutil.which(name)) is not None), None)
        if binary is None:
            pytest.skip("there is no redis-server on this machine: apt-get install redis-server")
        self._binary = binary
        self._folder = tempfile.TemporaryDirectory(prefix="extproc-redis-")
        (self._port,) = free_ports(1)
        self.url = f"redis://127.0.0.1:{self._port}/0"
        self.start()

    def start(self) -> None:
        command = [self._binary, "--port", str(self._port), "--bind", "127.0.0.1", "--save", ""]
        command += ["--dir", self._folder.name]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL)

    def stop(self) -> None:
        end(self._process)
