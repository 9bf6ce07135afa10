"""A namespace of a server for tests, for a test that runs in asyncio."""

from __future__ import annotations

import asyncio
from typing import Any, Final, Self

from blackhole.metrics.transactions import Transaction
from blackhole.testing.sink_namespace import SinkNamespace


class AsyncSinkNamespace:
    """A SinkNamespace whose methods do not block the event loop.

    async with sink.namespace("checkout") as mine:
        await mine.next("RCPT", "550 5.1.1 No such user")
        await send(sink.port, to=mine.address("bob"))
        await mine.wait(messages=1)
    """

    def __init__(self, namespace: SinkNamespace) -> None:
        self.namespace: Final = namespace
        """The same namespace, with methods that block."""

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self.namespace.__enter__)
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self.namespace.__exit__)

    @property
    def name(self) -> str:
        """Its name, in lower case."""
        return self.namespace.name

    def address(self, local: str = "anyone", domain: str = "example.com") -> str:
        """Return a recipient that chooses the namespace, where `namespace_by` has `tag`."""
        return self.namespace.address(local, domain)

    @property
    def received(self) -> int:
        """Messages that got a final reply, accepted or not."""
        return self.namespace.received

    @property
    def messages(self) -> list[Transaction]:
        """The messages that got a final reply, the oldest first."""
        return self.namespace.messages

    @property
    def transactions(self) -> list[Transaction]:
        """The messages, and what ended without one."""
        return self.namespace.transactions

    async def wait(self, messages: int = 1, timeout: float = 5.0) -> int:
        """Wait for so many messages, as `SinkNamespace.wait`. Raises TimeoutError."""
        return await asyncio.to_thread(self.namespace.wait, messages, timeout)

    async def next(self, phase: str, reply: str, count: int = 1, **keys: object) -> None:
        """Give the next `count` commands of a phase this reply, as `Sink.next`. Raises SinkError."""
        await asyncio.to_thread(self.namespace.next, phase, reply, count, **keys)

    async def load_scenario(self, text: str) -> None:
        """Replace the scenario of the namespace by these rules. Raises SinkError."""
        await asyncio.to_thread(self.namespace.load_scenario, text)

    async def reset(self) -> None:
        """Remove what was ordered for the namespace, and count from zero. Raises SinkError."""
        await asyncio.to_thread(self.namespace.reset)

    def report(self) -> dict[str, Any]:
        """Return the report, as `SinkNamespace.report`."""
        return self.namespace.report()

    def assert_no_violations(self, level: str = "style") -> None:
        """Raise AssertionError if the sender broke a rule, as `SinkNamespace.assert_no_violations`."""
        self.namespace.assert_no_violations(level)
