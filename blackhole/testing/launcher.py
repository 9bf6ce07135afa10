"""The launcher, as tests see it: starts its process for the first server, and asks it for all others."""

from __future__ import annotations

import atexit
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Final

PROGRAM: Final = (
    "import gc, json, sys; gc.disable(); sys.path[:] = json.loads(sys.argv[1]); "
    "from blackhole.testing.launcher_process import run; run(int(sys.argv[2]))"
)
"""What the process runs: with the path of this process, so that it finds the same Blackhole.

Imports make no garbage: to look for it takes a sixth of their time. `run` enables it again.
"""

ACCELERATORS_VARIABLE: Final = "BLACKHOLE_ACCELERATORS"
"""The one variable of Blackhole that servers for tests obey."""

LAUNCH_TIMEOUT: Final = 30.0
"""Seconds for the launcher to import everything and fork."""


class SinkError(RuntimeError):
    """A server did not start, did not stop, or refused a request; the text says why."""


class ServerProcess:
    """A server that the launcher forked, known by a descriptor, which no other process can take over."""

    def __init__(self, pid: int, descriptor: int) -> None:
        self.pid: Final = pid
        self.descriptor: Final = descriptor

    def send_signal(self, number: signal.Signals) -> None:
        """Signal the process, if it is alive."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.descriptor, number)

    def has_ended(self, timeout: float = 0.0) -> bool:
        """Wait up to `timeout` seconds, and return whether the process has ended."""
        poller = select.poll()
        poller.register(self.descriptor, select.POLLIN)
        return bool(poller.poll(timeout * 1000))

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self.descriptor)


class Launcher:
    """Starts servers. One object serves a whole process, and its children after a fork as well."""

    def __init__(self) -> None:
        self._lock: Final = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._requests: socket.socket | None = None
        self._owner = 0
        """The pid that started the process; a child after a fork starts another."""

    def prepare(self) -> None:
        """Start the process, so that it is ready by the time the first server is needed."""
        with self._lock:
            self._connection()

    def start(
        self, arguments: Sequence[str], environ: Mapping[str, str], listening: int, descriptors: Sequence[int]
    ) -> ServerProcess:
        """Start a server. Raises SinkError."""
        request = {"arguments": list(arguments), "environ": dict(environ), "listening": listening}
        with self._lock:
            try:
                connection = self._connection()
                socket.send_fds(connection, [json.dumps(request).encode()], descriptors)
                data, passed, _, _ = socket.recv_fds(connection, 64, 1)
            except OSError as error:
                self._close()
                raise SinkError(f"cannot start a server: {error}") from error
        if not data:
            self.close()
            raise SinkError("cannot start a server: the launcher has ended; its standard error says why")
        # Without a descriptor, the server has ended already: a pipe without a writer looks the same.
        return ServerProcess(int(data), passed[0] if passed else _ended_pipe())

    def close(self) -> None:
        """End the process, and with it all servers that still run."""
        with self._lock:
            self._close()

    def _connection(self) -> socket.socket:
        """Return the socket to the process, which is started if there is none."""
        running = self._process is not None and self._process.poll() is None
        if self._requests is None or not running or self._owner != os.getpid():
            self._close()
            self._requests = self._open()
            self._requests.settimeout(LAUNCH_TIMEOUT)
        return self._requests

    def _open(self) -> socket.socket:
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with far:
            self._process = subprocess.Popen(  # noqa: S603 (it runs this program)
                [sys.executable, "-c", PROGRAM, json.dumps(sys.path), str(os.getpid())],
                stdin=far.fileno(),
                stdout=subprocess.DEVNULL,
                env=clean_environment(),
                start_new_session=True,
            )
        if not self._owner:
            atexit.register(self.close)
        self._owner = os.getpid()
        return near

    def _close(self) -> None:
        requests, process = self._requests, self._process
        self._requests = self._process = None
        if requests is not None:
            requests.close()
        if process is not None and self._owner == os.getpid():
            process.wait()


def clean_environment() -> dict[str, str]:
    """Return the environment of this process without options of Blackhole, which are not for tests."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("BLACKHOLE_") or name == ACCELERATORS_VARIABLE
    }


def _ended_pipe() -> int:
    reader, writer = os.pipe()
    os.close(writer)
    return reader


LAUNCHER: Final = Launcher()
"""The launcher of this process."""
