"""One client: bytes between its stream and its session, from the greeting to the end."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Generator
from contextlib import suppress
from types import coroutine
from typing import TYPE_CHECKING, Final

from tornado.iostream import StreamClosedError

from blackhole.addresses import to_bytes
from blackhole.metrics.counters import record_value
from blackhole.metrics.layout import CELL_INDEX, VIOLATIONS_START
from blackhole.net import proxy
from blackhole.net.admission import OCTETS
from blackhole.smtp.replies import (
    INTERNAL_ERROR,
    SERVER_STOPPING,
    SESSION_TIMEOUT,
    TIMEOUT,
    TOO_MANY_CLIENT_OCTETS,
    TOO_MANY_TLS_HANDSHAKES,
    NextAction,
    Reply,
)

if TYPE_CHECKING:
    from blackhole.net.admission import ClientUsage
    from blackhole.net.direct import Answer, DirectStream
    from blackhole.net.server import SMTPServer

log = logging.getLogger(__name__)

READ: Final = NextAction.READ
"""An enum's member costs 50 ns to look up, a module's name 5."""

PAUSES: Final = (NextAction.SLEEP, NextAction.LOOKUP)
"""What goes on by itself."""

NOTHING: Final = frozenset((0,))
"""The cell of what is not counted."""

RECEIVED: Final = CELL_INDEX["received_bytes"]
TIMED_OUT: Final = CELL_INDEX["timed_out"]
PROBES: Final = CELL_INDEX["closed_without_command"]
TLS_OK: Final = CELL_INDEX["tls_ok"]
TLS_FAILED: Final = CELL_INDEX["tls_failed"]
TLS_RESUMED: Final = CELL_INDEX["tls_resumed"]

LINGER: Final = 2
"""Seconds a client is given to read why it was sent away."""

HANG: Final = 3600
"""Seconds after which a client is let go that waits for a reply it was never to get."""

STRESS_RATE: Final = 500
"""Octets a second of a body, where connections are running out and no rate was asked for; Postfix's too."""


class Connection:
    """One client.

    `idle` counts the seconds since something was achieved: a command answered, or
    bytes of a body read. The server's sweep adds to it once a second, so that no
    read needs a timer of its own. `patience` is how many they may be, where that is not as
    many as for a command: in a handshake, or while a reply does not leave.
    """

    __slots__ = (
        "age",
        "closed_by_server",
        "counted",
        "counters",
        "heard",
        "idle",
        "out",
        "patience",
        "peer",
        "said",
        "server",
        "session",
        "stream",
        "usage",
    )

    def __init__(self, server: SMTPServer, stream: DirectStream, peer: str) -> None:
        self.server = server
        self.stream = stream
        self.counters = server.counters
        self.peer = peer
        self.session = server.engine.session(client=peer)
        self.usage: ClientUsage | None = None
        """What is counted against a client that is judged."""
        self.age = 0
        self.idle = 0.0
        self.patience: float | None = None
        self.heard = 0
        """Octets received."""
        self.counted = 0
        """Octets received that the counters know of."""
        self.out = b""
        """What is yet to be said."""
        self.said: list[int] = []
        """Where it is counted what was said last, if the session's `cell` does not tell."""
        self.closed_by_server = False
        """It is not the client who ends it."""

    async def converse(self) -> None:
        """The whole conversation. Returns or raises nothing but what ends it; the stream closes then."""
        server, stream = self.server, self.stream
        try:
            if server.parser is not None and not await self._introduced():
                return
            if server.admission is not None and not self._admitted():
                return
            session = self.session
            if server.listener.tls:
                session.check_implicit_tls()
                if session.next_action is NextAction.LOOKUP:
                    # What the client says now is for the handshake.
                    stream.pause_reading(False)
                    while session.next_action is NextAction.LOOKUP:
                        session.resume_with_answer(await session.pending_lookup)
                    stream.pause_reading(True)
                if session.next_action is not READ:
                    await self._suffer(session.next_action, b"")
                    return
                await self._secure()
            if server.parser is None:
                session.policy.set_local_address(lambda: str(stream.socket.getsockname()))
            out = session.greet()
            if (session.sampled or server.strict) and out and stream.early():
                out = session.client_spoke_first(out)
            while True:
                out = await self._talk(out)
                next_action = session.next_action
                if next_action is READ:
                    return
                if out and (held := self._say(out)):
                    await self._push(held)
                if next_action in PAUSES:
                    out = await self._pause(next_action)
                elif next_action is NextAction.CLOSE and session.quit_received:
                    return
                elif next_action is NextAction.START_TLS:
                    await self._secure()
                    out = b""
                else:
                    await self._suffer(next_action, out)
                    return
        except StreamClosedError:
            pass
        except Exception:
            # Ours, not the client's: a traceback for us, 421 for the client.
            self.closed_by_server = True
            log.exception("fault in the conversation with %s", self.peer)
            self._part(INTERNAL_ERROR)
        finally:
            self.session.closed()
            if self.session.counted_events or not self.session.quit_received:
                self._settle()
            server.gone(self)

    @coroutine
    def _talk(self, out: bytes) -> Generator[Answer, bytes | None, bytes]:
        """Say this and listen, again and again, until the client has left, or the session wants something
        else; then what is yet to be said.

        The bare `yield` saves a third of a KiB of each idle connection.
        """
        session = self.session
        while session.next_action is READ:
            if out and (held := self._say(out)):
                yield from self._push(held).__await__()
            try:
                data = yield self._answer
            except StreamClosedError:
                self._take_back()
                raise
            if data is None:
                yield from self._push(self._take_back()).__await__()
                out = b""
            elif data:
                out = self.out
            else:
                break
        return out

    def _answer(self, data: bytes, size: int) -> bytes | None:
        """What to say to this, and go on listening; None where the client has left, or the session wants
        something else. `out` is what is to be said then.

        It is counted first, and taken back if it did not leave: who is killed in the middle of a system
        call has sent what it was given. So each reply that left is counted.
        """
        if not size:
            return None
        self.heard += size
        session = self.session
        out = session.receive(data)
        if session.next_action is not READ:
            self.out = out
            return None
        if out:
            self.idle = 0
            cell = session.single_event
            if session.counted_events or not cell:
                self._tell()
            else:
                self.counters[cell] += 1
        return out

    def _tell(self) -> None:
        """Count what is said by any road."""
        session = self.session
        cell = session.single_event
        if session.counted_events or not cell:
            self.said = [cell, *session.counted_events]
            session.single_event, session.counted_events = 0, []
            self._count(self.said, 1)
        else:
            self.counters[cell] += 1

    def _take_back(self) -> list[int]:
        """What was counted did not leave; that is what is to be counted when it has."""
        cells = [self.session.single_event] if self.session.single_event else self.said
        self._count(cells, -1)
        return cells

    def _say(self, out: bytes) -> list[int]:
        """Say it, and do not listen; what is not yet to be counted, since not all of it has left."""
        self.idle = 0
        self._tell()
        try:
            sent = self.stream.send(out)
        except StreamClosedError:
            self._take_back()
            raise
        return [] if sent else self._take_back()

    async def _push(self, cells: list[int]) -> None:
        """Wait until all has left that the socket did not take at once; then it counts."""
        self.patience, self.idle = self.server.settings.write_timeout, 0
        await self.stream.drain()
        self.patience, self.idle = None, 0
        self._count(cells, 1)

    async def _pause(self, next_action: NextAction) -> bytes:
        """Wait for what the session waits for; what it says then."""
        session, stream = self.session, self.stream
        if next_action is NextAction.LOOKUP:
            out = session.resume_with_answer(await session.pending_lookup)
        else:
            self.idle = -session.wait
            await asyncio.sleep(session.wait)
            if session.wait:
                record_value(self.counters, "delay_seconds", int(session.wait * 1e6))
            out = session.resume()
        if stream.ahead:
            if not self.heard and session.next_action not in PAUSES:
                out = session.client_spoke_first(out)
            out = session.client_sent_early(out)
        return out

    async def _introduced(self) -> bool:
        """Learn from the proxy who the client is; false for who is no proxy of ours, and hears nothing."""
        server = self.server
        if to_bytes(self.peer) not in server.proxies:
            self.closed_by_server = True
            return False
        self.patience = server.settings.proxy_timeout
        try:
            address = await proxy.read(self.stream, server.parser)
        except (OSError, ValueError) as error:
            log.debug("%s: no PROXY header: %s", self.peer, error)
            self.closed_by_server = True
            return False
        self.patience = None
        if address:
            self.peer = address
            self.session = server.engine.session(client=address)
        return True

    def _admitted(self) -> bool:
        """Ask the guard; false for a client that was told to come another time."""
        server = self.server
        assert server.admission is not None
        usage = self.usage = server.admission.admit(self.peer)
        if usage is None:
            return True
        refusal = server.admission.refusal(usage)
        if refusal is None and server.listener.tls and not usage.meter("STARTTLS"):
            refusal = TOO_MANY_TLS_HANDSHAKES
        if refusal is None:
            self.session.apply_limits(server.judging, server.limits, usage.meter)
            return True
        self.closed_by_server = True
        if not server.listener.tls:
            self._part(refusal)
            server.count(refusal)
        return False

    def _count(self, cells: list[int], sign: int) -> None:
        """Count what is said, or take that back; 0 stands for nothing."""
        counters = self.counters
        for cell in {*cells} - NOTHING:  # of a pipelined group most are the same
            counters[cell] += sign * cells.count(cell)

    def _settle(self) -> None:
        """Count how a client left that did not say so, and what it did wrong since the last reply left."""
        session, counters = self.session, self.counters
        if not (session.quit_received or self.closed_by_server):
            if self.heard:
                session.record_violation("hung-up-in-body" if session.in_body else "no-quit")
            else:
                counters[PROBES] += 1
        self._note()

    def _note(self) -> None:
        """Count what happened, though no reply leaves any more: all but replies."""
        said, self.session.counted_events = self.session.counted_events, []
        self._count([cell for cell in said if cell >= VIOLATIONS_START], 1)

    async def _secure(self) -> None:
        """The TLS handshake, before the greeting or after STARTTLS."""
        self.patience, self.idle = self.server.settings.tls_timeout, 0
        context = self.server.tls
        if self.session.certificate:
            context = self.server.certificates[self.session.certificate]
        assert context is not None
        try:
            await self.stream.handshake(context)
        except (ssl.SSLError, OSError) as error:
            reason = getattr(error, "reason", None) or error
            self.server.note("%s: TLS handshake failed: %s", self.peer, reason)
            self.closed_by_server = True
            self.counters[TLS_FAILED] += 1
            raise StreamClosedError(error) from None
        self.patience = None
        self.counters[TLS_OK] += 1
        self.counters[TLS_RESUMED] += self.stream.resumed
        self.session.secured()

    async def _hang_up(self, said: bytes) -> None:
        """Close, but not before the client can have read what was said last."""
        self.closed_by_server = True
        self.stream.shutdown_write()
        self.patience, self.idle = LINGER, 0
        refused = not self.session.pipelines and b"\r\n421 " in b"\r\n" + said
        left = 1 << 20
        while left > 0 and (data := await self.stream.receive()):
            left -= len(data)
            if refused and data[:4].upper() != b"QUIT":
                refused = False
                self.heard += len(data)
                self.session.record_violation("talk-after-421")

    async def _suffer(self, next_action: NextAction, said: bytes) -> None:
        """Come to the end that the session has come to, having said something last."""
        self.closed_by_server = True
        self._note()  # a client that stalls may be here for an hour
        if next_action is NextAction.ABORT:
            self.stream.reset()
        elif next_action is NextAction.HANG:
            self.patience, self.idle = HANG, 0
            while await self.stream.receive():
                pass
        elif not self.session.quit_received:
            await self._hang_up(said)

    def sweep(self) -> None:
        """Called once a second."""
        server = self.server
        settings = server.settings
        fresh = self.heard - self.counted
        if fresh:
            server.counters[RECEIVED] += fresh
            if self.session.in_body:
                rate = settings.min_data_rate if self.usage is not None else 0
                if server.stressed:
                    rate = rate or STRESS_RATE
                # What comes fast enough refills the time there is, as in Postfix.
                self.idle = max(0.0, self.idle - fresh / rate) if rate else 0.0
            self.counted = self.heard
            if self.usage is not None and not self.usage.meter(OCTETS, fresh):
                self._part(TOO_MANY_CLIENT_OCTETS)
                self.stream.close()
                return
        self.idle += 1
        self.age += 1
        limit = settings.timeout if self.patience is None else self.patience
        if server.stressed:
            limit = min(limit, settings.stress_timeout)
        if self.idle > limit:
            server.counters[TIMED_OUT] += 1
            self._part(TIMEOUT)
            self.stream.close()
        elif self.usage is not None and 0 < settings.session_timeout < self.age:
            self._part(SESSION_TIMEOUT)
            self.stream.close()

    def leave(self) -> bool:
        """The server stops: say so and close, unless a message is under way. True when closed."""
        if self.session.in_body:
            return False
        self._part(SERVER_STOPPING)
        self.stream.close()
        return True

    def _part(self, reply: Reply) -> None:
        """Say a last word, if nothing else is being said and the socket takes it at once."""
        self.closed_by_server = True
        if self.patience is None:
            with suppress(OSError):
                self.stream.send(reply.wire)
