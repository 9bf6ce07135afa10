"""One client: bytes between its stream and its session, from the greeting to the end."""

from __future__ import annotations

import asyncio
import logging
import ssl
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from tornado.iostream import StreamClosedError

from blackhole.smtp.reply import INTERNAL, STOPPING, TIMEOUT, TOO_EARLY, Reply, Then
from blackhole.stats import AT

if TYPE_CHECKING:
    from blackhole.server import Server
    from blackhole.stream import Stream

log = logging.getLogger(__name__)

LISTEN: Final = Then.LISTEN
"""An enum's member costs 50 ns to look up, a module's name 5."""

RECEIVED: Final = AT["received_bytes"]

LINGER: Final = 2
"""Seconds a client is given to read why it was sent away."""

STALL: Final = 3600
"""Seconds after which a client is let go that waits for a reply it was never to get."""


class Connection:
    """One client.

    `idle` counts the seconds since something was achieved: a command answered, or
    bytes of a body read. The server's sweep adds to it once a second, so that no
    read needs a timer of its own.
    """

    __slots__ = ("heard", "idle", "peer", "server", "session", "stream")

    def __init__(self, server: Server, stream: Stream, peer: str) -> None:
        self.server = server
        self.stream = stream
        self.peer = peer
        self.session = server.engine.session(client=peer)
        self.idle = 0.0
        self.heard = 0
        """Octets received since the last sweep."""

    async def converse(self) -> None:
        """The whole conversation. Returns or raises nothing but what ends it; the stream closes then."""
        server, stream, session = self.server, self.stream, self.session
        try:
            if server.listener.tls:
                await self._secure()
            out = session.greet()
            counters = server.counters
            said = session.said
            while True:
                if out:
                    if not stream.send(out):
                        await stream.drain()
                    # Only what has left is counted.
                    for cell in said:
                        counters[cell] += 1
                    said.clear()
                    self.idle = 0
                then = session.then
                if then is not LISTEN:
                    if then is Then.WAIT:
                        self.idle = -session.wait
                        await asyncio.sleep(session.wait)
                        out = session.resume()
                        if session.then is Then.SECURE and stream.ahead:
                            # It came in the clear, while the reply waited: CVE-2011-0411 once more.
                            out = session.interrupt(TOO_EARLY)
                        continue
                    if then is Then.HANG_UP:
                        if not session.left:
                            await self._hang_up()
                        return
                    if then is Then.STALL:
                        await self._stall()
                        return
                    if then is Then.RESET:
                        stream.reset()
                        return
                    await self._secure()
                data = await stream.receive()
                if not data:
                    return
                self.heard += len(data)
                out = session.receive(data)
                if not out and session.in_body:
                    self.idle = 0
        except StreamClosedError:
            pass
        except Exception:
            # Ours, not the client's: a traceback for us, 421 for the client.
            log.exception("fault in the conversation with %s", self.peer)
            self._part(INTERNAL)
        finally:
            server.gone(self)

    async def _secure(self) -> None:
        """The TLS handshake, before the greeting or after STARTTLS."""
        assert self.server.tls is not None
        try:
            await self.stream.shake_hands(self.server.tls)
        except (ssl.SSLError, OSError) as error:
            log.info("%s: TLS handshake failed: %s", self.peer, getattr(error, "reason", None) or error)
            raise StreamClosedError(error) from None
        self.session.secured()

    async def _hang_up(self) -> None:
        """Close, but not before the client can have read the last reply."""
        self.stream.last_words()
        self.idle = self.server.timeout - LINGER
        left = 1 << 20
        while left > 0 and (data := await self.stream.receive()):
            left -= len(data)

    async def _stall(self) -> None:
        """Say nothing, whatever the client says, until it leaves."""
        self.idle = self.server.timeout - STALL
        while await self.stream.receive():
            pass

    def sweep(self) -> None:
        """Called once a second."""
        self.server.counters[RECEIVED] += self.heard
        self.heard = 0
        self.idle += 1
        if self.idle > self.server.timeout:
            self._part(TIMEOUT)
            self.stream.close()

    def leave(self) -> bool:
        """The server stops: say so and close, unless a message is under way. True when closed."""
        if self.session.in_body:
            return False
        self._part(STOPPING)
        self.stream.close()
        return True

    def _part(self, reply: Reply) -> None:
        """Say a last word if the socket takes it at once."""
        with suppress(OSError):
            self.stream.send(reply.wire)
