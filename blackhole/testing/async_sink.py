"""A server for a test that runs in asyncio."""

from __future__ import annotations

import asyncio
import os
from typing import Any, Self

from blackhole.metrics.transactions import Transaction
from blackhole.testing.async_sink_namespace import AsyncSinkNamespace
from blackhole.testing.sink import Level, OptionValue, Sink


class AsyncSink:
    """A Sink whose methods do not block the event loop.

    async with AsyncSink() as sink:
        await aiosmtplib.send(message, hostname=sink.host, port=sink.port)
        await sink.wait(messages=1)
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
        self.sink = Sink(mode, scenario, host=host, port=port, **options)
        """The same server, with methods that block."""

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self.sink.start)
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self.sink.stop)

    @property
    def host(self) -> str:
        """The address for SMTP."""
        return self.sink.host

    @property
    def port(self) -> int:
        """The port for SMTP."""
        return self.sink.port

    @property
    def received(self) -> int:
        """Messages that got a final reply, since the start or the last `reset`."""
        return self.sink.received

    @property
    def messages(self) -> list[Transaction]:
        """The messages that got a final reply, as `Sink.messages`."""
        return self.sink.messages

    @property
    def transactions(self) -> list[Transaction]:
        """The messages, and what ended without one, as `Sink.transactions`."""
        return self.sink.transactions

    async def wait(self, messages: int = 1, timeout: float = 5.0) -> int:
        """Wait for so many messages, as `Sink.wait`. Raises TimeoutError."""
        return await asyncio.to_thread(self.sink.wait, messages, timeout)

    async def next(self, phase: str, reply: str, count: int = 1, **keys: object) -> None:
        """Give the next `count` commands of a phase this reply, as `Sink.next`. Raises SinkError."""
        await asyncio.to_thread(self.sink.next, phase, reply, count, **keys)

    async def load_scenario(self, text: str) -> None:
        """Replace the scenario, as `Sink.load_scenario`. Raises SinkError."""
        await asyncio.to_thread(self.sink.load_scenario, text)

    def namespace(self, name: str) -> AsyncSinkNamespace:
        """Return a namespace, to be entered, as `Sink.namespace`. Raises SinkError."""
        return AsyncSinkNamespace(self.sink.namespace(name))

    async def reset(self) -> None:
        """Begin again, as `Sink.reset`. Raises SinkError."""
        await asyncio.to_thread(self.sink.reset)

    def report(self) -> dict[str, Any]:
        """Return the report, as `Sink.report`."""
        return self.sink.report()

    def assert_no_violations(self, level: Level = "style") -> None:
        """Raise AssertionError if the sender broke a rule, as `Sink.assert_no_violations`."""
        self.sink.assert_no_violations(level)
