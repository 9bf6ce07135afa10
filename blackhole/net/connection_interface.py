"""The interface of a connection: what the modules that do a part of its work read, change and call."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, Protocol

from tornado.iostream import IOStream

from blackhole.net.admission import ClientUsage
from blackhole.net.context import ListenerContext
from blackhole.net.waits import Result
from blackhole.smtp.replies import NextAction, Reply
from blackhole.smtp.session import Session
from blackhole.tls_menu import TLSParameters


class ConnectionInterface(Protocol):
    """A connection as its parts see it. `Connection`, which imports them all, says what each field means."""

    age: int
    closed_by_server: bool
    context: ListenerContext
    counted: int
    deadline_override: float | None
    idle: float
    peer: str
    received: int
    session: Session
    slow_seconds: float
    stream: IOStream
    tls: TLSParameters
    usage: ClientUsage | None
    waiting: asyncio.Future[Any] | None

    def share_local_address(self) -> None:
        """Let the session find out the local address of the stream."""

    def start_tls(self) -> Awaitable[None]:
        """Do the TLS handshake."""

    def wait(self, future: asyncio.Future[Result], watched: bool = False) -> Awaitable[Result]:
        """Return the result of a future. `close` ends the wait; so does the client's leaving if `watched`."""

    def finish(self, action: NextAction, sent: bytes) -> Awaitable[None]:
        """End the connection as the session says."""

    def try_send(self, reply: Reply) -> None:
        """Send a last reply, if the client can read one now."""

    def send_and_close(self, reply: Reply) -> None:
        """Send a last reply, and end the connection."""
