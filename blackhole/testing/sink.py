"""A server for a test: started on free ports, asked what arrived, stopped at the end of a block."""

from __future__ import annotations

import http.client
import json
import os
import re
import select
import signal
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from tempfile import TemporaryFile
from typing import IO, Any, Final, Literal, Self

from blackhole.dashboard_client import DashboardClient
from blackhole.metrics import report
from blackhole.metrics.counters import Counters
from blackhole.metrics.snapshot import Snapshot
from blackhole.metrics.transaction_reader import TransactionReader
from blackhole.metrics.transactions import Transaction
from blackhole.process.systemd import LISTEN_FDS_START
from blackhole.store.recent import Cursor, RecentRecords
from blackhole.store.server_facts import ServerFacts
from blackhole.testing.launcher import LAUNCHER, ServerProcess, SinkError
from blackhole.testing.sink_namespace import SinkNamespace

OptionValue = str | int | float | bool | Sequence[str]
"""The value of an option of the command line; several for one that may be repeated."""

Level = Literal["must", "should", "style"]

BACKLOG: Final = 1024
REMEMBERED: Final = 1000
"""Transactions that a sink remembers."""

CHUNK_OF_RECORDS: Final = 1000
"""Transactions that are read at once."""

START_TIMEOUT: Final = 30.0
STOP_TIMEOUT: Final = 5.0
"""Seconds from SIGINT to SIGKILL."""

CONTROL_TIMEOUT: Final = 10.0
POLL_INTERVAL: Final = 0.002
"""Seconds after which `wait` reads the counters again."""


class Sink:
    """A server on free ports. Each option of the command line may be given as a keyword.

    >>> with Sink(mode="unavailable") as sink:
    ...     with socket.create_connection((sink.host, sink.port)) as client:
    ...         client.recv(3)
    b'421'

    `scenario` is the path of a file, a profile ("profile:greylist"), or the rules themselves as TOML.
    """

    def __init__(
        self,
        mode: str = "accept",
        scenario: str | os.PathLike[str] | None = None,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        **options: OptionValue,
    ) -> None:
        if "dashboard" in options:
            raise TypeError("a sink chooses the address of its dashboard: leave dashboard out")
        self.host: Final = host
        self.port = port
        """The port for SMTP."""
        self.tls_port = 0
        """The port for implicit TLS, if there is a certificate."""
        self.dashboard_port = 0
        """The port of the dashboard and its HTTP API, on 127.0.0.1."""
        self._scenario: Final = scenario
        self._options: Final = {"mode": mode, "workers": 1, "recent": REMEMBERED, **options}
        self._process: ServerProcess | None = None
        self._output: IO[bytes] | None = None
        self._log = ""
        self._counters: Counters | None = None
        self._first: Snapshot | None = None
        """The counters at the last `reset`."""
        self._reader: TransactionReader | None = None
        self._cursor: Cursor = {}
        """The transactions before the last `reset`."""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # Start and stop.

    def start(self) -> None:
        """Start the server, and return when it accepts connections. Raises SinkError."""
        if self._process is not None:
            raise SinkError("the sink runs already")
        self._first, self._cursor = None, {}
        self._output = TemporaryFile()  # noqa: SIM115 (`stop` closes it)
        try:
            self._launch(self._output.fileno())
        except BaseException:
            self.stop()
            raise

    def _launch(self, output: int) -> None:
        with ExitStack() as opened:
            ready = opened.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
            ready.bind("")  # the kernel chooses an abstract address (unix(7))
            listening = [opened.enter_context(one) for one in self._listen()]
            descriptors = [output, *(one.fileno() for one in listening)]
            scenario = self._scenario
            if isinstance(scenario, str) and "\n" in scenario:
                text = opened.enter_context(open(os.memfd_create("scenario"), "wb", buffering=0))
                text.write(scenario.encode())
                scenario = f"/proc/self/fd/{LISTEN_FDS_START + len(listening)}"
                descriptors.append(text.fileno())
            arguments = [*self._arguments(), *([f"--scenario={os.fspath(scenario)}"] if scenario else [])]
            environ = {"NOTIFY_SOCKET": "@" + ready.getsockname()[1:].decode()}
            self._process = LAUNCHER.start(arguments, environ, len(listening), descriptors)
            self._wait_until_ready(ready)
            self._counters = Counters.of(self._process.pid)
            records = RecentRecords.of(self._process.pid)
            names = self._counters.rule_names
            self._reader = None if records is None else TransactionReader(records, names)

    @property
    def authority(self) -> str:
        """The authority of the certificates that the server has issued, as PEM; empty if it issued none."""
        if self._process is None:
            return ""
        return str(ServerFacts.of(self._process.pid).get("authority", ""))

    @property
    def dashboard_url(self) -> str:
        """Where the page of the dashboard is; paths of the HTTP API are below it. Empty if no server runs."""
        if self._process is None:
            return ""
        return str(ServerFacts.of(self._process.pid).get("dashboard") or "")

    def _listen(self) -> Iterator[socket.socket]:
        """Yield listening sockets, and note their ports: the server is given the sockets themselves."""
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        listening = socket.create_server((self.host, self.port), family=family, backlog=BACKLOG)
        self._address, self.port = listening.getsockname()[:2]
        yield listening
        dashboard = socket.create_server(("127.0.0.1", 0))
        self.dashboard_port = dashboard.getsockname()[1]
        yield dashboard
        if not self._options.keys().isdisjoint(("ssl_cert", "tls_menu")):
            listening = socket.create_server((self._address, 0), family=family, backlog=BACKLOG)
            self.tls_port = listening.getsockname()[1]
            yield listening

    def _arguments(self) -> Iterator[str]:
        yield from (f"--host={self._address}", f"--port={self.port}")
        yield f"--dashboard=127.0.0.1:{self.dashboard_port}"
        yield from [f"--ssl_port={self.tls_port}"] if self.tls_port else []
        for name, value in self._options.items():
            values = [value] if isinstance(value, str | int | float) else value
            for one in values:
                yield f"--{name}={('no', 'yes')[one] if isinstance(one, bool) else one}"

    def _wait_until_ready(self, ready: socket.socket) -> None:
        """Wait for the message of sd_notify(3). Raises SinkError."""
        assert self._process is not None
        until = time.monotonic() + START_TIMEOUT
        poller = select.poll()
        poller.register(ready, select.POLLIN)
        poller.register(self._process.descriptor, select.POLLIN)
        while events := poller.poll(max(0.0, until - time.monotonic()) * 1000):
            if ready.fileno() not in dict(events):
                raise SinkError(f"the server has not started: {self.log.strip() or 'it wrote nothing'}")
            if ready.recv(4096) == b"READY=1":
                return
        raise SinkError(f"the server is not ready after {START_TIMEOUT:g} s: {self.log.strip()}")

    def stop(self) -> None:
        """Stop the server at once; what it counted can still be read. Does nothing if it does not run."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(signal.SIGINT)
            if not process.has_ended(STOP_TIMEOUT):
                process.send_signal(signal.SIGKILL)
                process.has_ended(STOP_TIMEOUT)
            process.close()
        self._log = self.log
        output, self._output = self._output, None
        if output is not None:
            output.close()

    @property
    def log(self) -> str:
        """What the server wrote to standard error."""
        if self._output is None:
            return self._log
        descriptor = self._output.fileno()
        text = os.pread(descriptor, os.fstat(descriptor).st_size, 0).decode(errors="replace")
        return re.sub(r"/proc/self/fd/\d+", "scenario", text)

    # What arrived.

    @property
    def received(self) -> int:
        """Messages that got a final reply, accepted or not, since the start or the last `reset`."""
        return sum(self._snapshot().messages.values())

    def wait(self, messages: int = 1, timeout: float = 5.0) -> int:
        """Wait for so many messages since the start or the last `reset`, and return how many there are.

        Raises TimeoutError after `timeout` seconds.
        """
        until = time.monotonic() + timeout
        while (received := self.received) < messages:
            if time.monotonic() >= until:
                raise TimeoutError(f"{received} of {messages} messages arrived within {timeout:g} s")
            time.sleep(POLL_INTERVAL)
        return received

    @property
    def messages(self) -> list[Transaction]:
        """The messages that got a final reply, since the start or the last `reset`, the oldest first.

        A message is here before its sender can read the reply to it. The last 1000 transactions are kept;
        the option `recent=5000` keeps more.
        """
        return [one for one in self.transactions if one.is_message]

    @property
    def transactions(self) -> list[Transaction]:
        """The messages, and beside them what ended without one: refused, abandoned, or cut off."""
        if self._reader is None:
            raise SinkError("the sink remembers no transactions; it was never started, or with recent=0")
        found: dict[str, Transaction] = {}
        more, cursor = True, self._cursor
        while more:
            ended, cursor, more = self._reader.since(cursor, CHUNK_OF_RECORDS)
            found |= {one.id: one for one in ended}
        return [*found.values()][-self._reader.records.kept :]

    def report(self) -> dict[str, Any]:
        """Return what `blackhole report --json` prints, since the start or the last `reset`."""
        return report.as_dict(self._snapshot())

    def assert_no_violations(self, level: Level = "style") -> None:
        """Raise AssertionError if the sender broke a rule of this level or of a graver one."""
        snapshot = self._snapshot()
        if report.fails(snapshot, level):
            raise AssertionError(report.report_text(snapshot))

    def _snapshot(self) -> Snapshot:
        if self._counters is None:
            raise SinkError("the sink was never started")
        now = self._counters.snapshot()
        return now if self._first is None else now - self._first

    # How it behaves.

    def next(self, phase: str, reply: str, count: int = 1, **keys: object) -> None:
        """Give the next `count` commands of a phase this reply; `keys` are further keys of the rule.

        Returns when the server does so. Raises SinkError.
        """
        self.request("POST", "/next", {"phase": phase, "reply": reply, "count": count, **keys})

    def load_scenario(self, text: str) -> None:
        """Replace the scenario by these rules. Raises SinkError."""
        self.request("PUT", "/scenario", text)

    def namespace(self, name: str) -> SinkNamespace:
        """Return a namespace, to be entered. The sink needs the option `namespace_by`. Raises SinkError."""
        if self._process is None:
            raise SinkError("the sink does not run")
        return SinkNamespace(name, self._process.pid, self.request, lambda: self.transactions)

    def reset(self) -> None:
        """Return to the scenario of the start, drop replies that `next` left, and count from zero."""
        self.request("DELETE", "/next")
        self.request("DELETE", "/scenario")
        assert self._counters is not None
        self._first = self._counters.snapshot()
        if self._reader is not None:
            self._cursor = self._reader.records.end()

    def request(self, method: str, path: str, body: str | Mapping[str, object] = "") -> Any:
        """Send a request to the HTTP API of the dashboard, and return its JSON. Raises SinkError."""
        if self._process is None:
            raise SinkError("the sink does not run")
        text = body if isinstance(body, str) else json.dumps(body)
        try:
            client = DashboardClient(ServerFacts.of(self._process.pid), CONTROL_TIMEOUT)
            answer = client.request(method, path, text.encode())
            found = json.loads(answer.body)
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise SinkError(f"{method} {path}: {error}") from error
        if answer.status >= http.client.BAD_REQUEST:
            text = found.get("error", answer.reason)
            raise SinkError(text if text.startswith(method) else f"{method} {path}: {text}")
        return found
