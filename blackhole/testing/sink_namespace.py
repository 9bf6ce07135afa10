"""A namespace of a server for tests: what one test orders and sees, while others use the same server."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final, Self

from blackhole.metrics import report
from blackhole.metrics.namespace_counters import reader
from blackhole.metrics.snapshot import Snapshot
from blackhole.metrics.transactions import Transaction

NAMESPACE_POLL_INTERVAL: Final = 0.002
"""Seconds after which `wait` reads the counters again."""


class SinkNamespace:
    """A namespace, made when it is entered, and removed with all that was ordered at the end of the block.

        with sink.namespace("checkout") as mine:
            mine.next("RCPT", "550 5.1.1 No such user")
            send(sink.port, to=mine.address("bob"))

    `pid` is the master of the server, `request` sends a request to its HTTP API, and `transactions` returns
    what it has recorded.
    """

    def __init__(
        self,
        name: str,
        pid: int,
        request: Callable[..., Any],
        transactions: Callable[[], list[Transaction]],
    ) -> None:
        self.name: Final = name.lower()
        self._path: Final = f"/namespaces/{name}"
        self._pid: Final = pid
        self._request: Final = request
        self._all_transactions: Final = transactions
        self._since = 0.0
        """When it was made, in seconds since 1970."""

    def __enter__(self) -> Self:
        self._since = float(self._request("PUT", self._path)["made"])
        return self

    def __exit__(self, *_: object) -> None:
        self._request("DELETE", self._path)

    def address(self, local: str = "anyone", domain: str = "example.com") -> str:
        """Return a recipient that chooses the namespace, where `namespace_by` has `tag`."""
        return f"{local}+ns.{self.name}@{domain}"

    @property
    def received(self) -> int:
        """Messages that got a final reply, accepted or not."""
        return sum(self._snapshot().messages.values())

    def wait(self, messages: int = 1, timeout: float = 5.0) -> int:
        """Wait for so many messages, and return how many there are. Raises TimeoutError."""
        read, until = reader(self._pid, self.name), time.monotonic() + timeout
        while (received := sum(read().messages.values())) < messages:
            if time.monotonic() >= until:
                raise TimeoutError(f"{received} of {messages} messages arrived within {timeout:g} s")
            time.sleep(NAMESPACE_POLL_INTERVAL)
        return received

    @property
    def messages(self) -> list[Transaction]:
        """The messages that got a final reply, the oldest first."""
        return [one for one in self.transactions if one.is_message]

    @property
    def transactions(self) -> list[Transaction]:
        """The messages, and what ended without one."""
        found = self._all_transactions()
        return [one for one in found if one.namespace == self.name and one.time >= self._since]

    def report(self) -> dict[str, Any]:
        """Return what `blackhole report --json --namespace` prints."""
        return report.as_dict(self._snapshot())

    def assert_no_violations(self, level: str = "style") -> None:
        """Raise AssertionError if the sender broke a rule of this level or of a graver one."""
        snapshot = self._snapshot()
        if report.fails(snapshot, level):
            raise AssertionError(report.report_text(snapshot))

    def next(self, phase: str, reply: str, count: int = 1, **keys: object) -> None:
        """Give the next `count` commands of a phase in the namespace this reply, as `Sink.next`."""
        self._request("POST", f"{self._path}/next", {"phase": phase, "reply": reply, "count": count, **keys})

    def load_scenario(self, text: str) -> None:
        """Replace the scenario of the namespace by these rules."""
        self._request("PUT", f"{self._path}/scenario", text)

    def reset(self) -> None:
        """Remove what was ordered for the namespace, and count from zero."""
        self.__exit__()
        self.__enter__()

    def _snapshot(self) -> Snapshot:
        return reader(self._pid, self.name)()
