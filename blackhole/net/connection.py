"""A connection: the coroutine that carries data between a stream and its SMTP session."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from tornado.iostream import IOStream

from blackhole.addresses import local_address
from blackhole.net.accounting import EVENT_CELLS, count_disconnect, count_replies, count_violations
from blackhole.net.connection_log import log_connection_event
from blackhole.net.graceful_close import close_gracefully
from blackhole.net.input_faults import limit_input, read_slowly
from blackhole.net.latency import clock
from blackhole.net.opening import check_admission, prepare
from blackhole.net.pauses import PAUSES, pause
from blackhole.net.stream import CHUNK, abort, close, has_unacknowledged_output, has_unread_input
from blackhole.net.timeouts import TIMED_OUT
from blackhole.net.tls_choice import count_entry
from blackhole.net.tls_start import start_tls
from blackhole.net.waits import Result, cancel
from blackhole.smtp.named_client import NO_NAMED_CLIENT
from blackhole.smtp.replies import INTERNAL_ERROR, SERVER_STOPPING, TIMEOUT, NextAction, Reply
from blackhole.smtp.violations import IN_SESSIONS
from blackhole.tls_menu import USUAL_TLS

if TYPE_CHECKING:
    from blackhole.net.admission import ClientUsage
    from blackhole.net.context import ListenerContext

log = logging.getLogger(__name__)

READ: Final = NextAction.READ
CLOSE: Final = NextAction.CLOSE
"""To look up an enum's member takes 50 ns, a module's name 5."""

INSPECTED_SESSIONS: Final = EVENT_CELLS.inspection(IN_SESSIONS)

HANG: Final = 3600
"""Seconds after which the server gives up a client that waits for a reply it is never to get."""


class Connection:
    """Serves one client over an IOStream.

    Tornado's `handle_stream` needs nothing else:

        async def handle_stream(self, stream: IOStream, address: tuple) -> None:
            await Connection(stream, address[0], self.context, self.connection_closed).handle()

    `idle` counts the seconds since a command was answered, or octets of a body were read. The
    server's sweep adds to it once a second, so that no read needs a timer of its own.
    """

    __slots__ = (
        "_on_close",
        "age",
        "closed_by_server",
        "context",
        "counted",
        "deadline_override",
        "idle",
        "peer",
        "received",
        "session",
        "slow_seconds",
        "stream",
        "tls",
        "usage",
        "waiting",
    )

    def __init__(
        self,
        stream: IOStream,
        peer: str,
        context: ListenerContext,
        on_close: Callable[[Connection], None],
    ) -> None:
        self.stream: IOStream = stream
        self.peer = peer
        """The client's address; behind a proxy, the one in the PROXY header."""
        self.context = context
        self.session = context.engine.session(client=peer)
        self.usage: ClientUsage | None = None
        """What is counted against a client with limits."""
        self.age = 0
        self.idle = 0.0
        self.deadline_override: float | None = None
        """Seconds that `idle` may reach in place of `timeout`: in a handshake, or while a reply waits."""
        self.received = 0
        """Octets received."""
        self.counted = 0
        """Octets received that are in the counters."""
        self.closed_by_server = False
        """The server ends the connection, so the client is not to blame for how it ends."""
        self.slow_seconds = 0.0
        """Seconds for which the server has read slowly."""
        self.tls = USUAL_TLS
        """How the TLS handshake was done, if not as the listener does all, without an entry of the menu."""
        self._on_close = on_close
        self.waiting: asyncio.Future[Any] | None = None
        """What the coroutine waits for, other than the client's data."""

    async def handle(self) -> None:
        """Serve the client until the connection ends. Raises nothing."""
        sent = b""
        try:
            if not (self.context.greets_at_once or await prepare(self)):
                return
            session, stream, counters = self.session, self.stream, self.context.counters
            latency = self.context.latency
            turns, answered, received = latency.turns_to_sample(), 0, 0
            inspects = self._inspects_first_input
            first_turns = turns if inspects else 0
            out: bytes | None = self._greet(inspects)
            while out is not None:
                if out:
                    self.idle = 0
                    event = session.single_event
                    # A reply counts when it is handed to the socket.
                    if session.counted_events or not event:
                        count_replies(self, sent)
                    else:
                        counters[event] += 1
                    sent = out
                    written = stream.write(out)
                    if not written.done():
                        await self._drain(written)
                if session.next_action is not READ:
                    if session.next_action is CLOSE and session.quit_received:
                        break
                    out = await self._act(session.next_action, sent)
                    session, stream, received = self.session, self.stream, 0
                    continue
                turns -= 1
                if turns <= 0:
                    if turns:
                        turns = latency.add(answered, received, clock())
                    else:
                        answered = clock()
                data = await stream.read_bytes(CHUNK, True)
                if turns <= first_turns:
                    if first_turns:
                        first_turns = self._inspect_first_input()
                    if not turns:
                        received = clock()
                self.received += len(data)
                out = session.receive(data)
        except (OSError, asyncio.CancelledError):
            pass  # StreamClosedError, or what else a broken connection raises; `close` while waiting
        except Exception:
            # A fault of the server: the log gets a traceback, the client 421.
            log_connection_event(self, log.exception, "fault")
            self.try_send(INTERNAL_ERROR)
        finally:
            self._end(sent)

    # The greeting.

    def _greet(self, inspects: bool) -> bytes:
        """Return the greeting, or what is sent in its place. `inspects`: see `_inspects_first_input`."""
        session, stream, context = self.session, self.stream, self.context
        self.share_local_address()
        out = session.greet()
        if inspects and out and has_unread_input(stream):
            out = session.client_spoke_first(out, sampled=not context.settings.strict)
        return out

    def share_local_address(self) -> None:
        """Let the session find out the local address of the stream, where no proxy stands between.

        Where XCLIENT has named a client, it is what XCLIENT said of the client's own connection.
        """
        stream, named = self.stream, self.session.named_client
        if named is not NO_NAMED_CLIENT:
            address = f"{named.local_address or ''} {named.local_port or ''}".strip()
            self.session.policy.set_local_address(lambda: address)
        elif self.context.proxy_parser is None:
            self.session.policy.set_local_address(
                lambda: local_address(stream.socket.getsockname()) if stream.socket is not None else ""
            )

    @property
    def _inspects_first_input(self) -> bool:
        """Whether to find out if the client speaks before it is greeted. It takes two system calls."""
        return self.session.sampled or self.context.settings.strict

    def _inspect_first_input(self) -> int:
        """Take note if the client cannot have received the greeting when it sent its first input; return 0.

        TCP acknowledges with each segment what has come by then (RFC 9293 3.1). So a client whose input
        arrives while the greeting is not acknowledged sent it before the greeting reached its system.
        """
        session = self.session
        if session.sampled and not session.rejected:
            self.context.counters[INSPECTED_SESSIONS] += 1
        if has_unacknowledged_output(self.stream):
            session.client_spoke_early(sampled=not self.context.settings.strict)
        return 0

    # What the session asks for besides reading.

    async def _act(self, action: NextAction, sent: bytes) -> bytes | None:
        """Do what the session asks for. Return what to send then, or None at the end of the connection.

        `sent` is what the client was told last.
        """
        if action in PAUSES:
            return await pause(self, action)
        if action is NextAction.START_TLS:
            await self.start_tls()
            return b""
        if action is NextAction.READ_SLOWLY:
            if self.slow_seconds > HANG:
                self.context.counters[TIMED_OUT] += 1
                self.try_send(TIMEOUT)
                return None
            return await read_slowly(self)
        if action is NextAction.LIMIT_INPUT:
            return limit_input(self)
        if action is NextAction.CHANGE_CLIENT:
            return await self._change_client(sent)
        await self.finish(action, sent)
        return None

    async def wait(self, future: asyncio.Future[Result], watched: bool = False) -> Result:
        """Return the result of a future. `close` ends the wait; so does the client's leaving if `watched`."""
        self.waiting = future
        if watched:
            self.stream.set_close_callback(partial(cancel, future))
        try:
            return await future
        finally:
            self.waiting = None
            if watched:
                self.stream.set_close_callback(None)

    async def _drain(self, written: Awaitable[None]) -> None:
        """Wait until the socket has taken the whole reply."""
        self.deadline_override, self.idle = self.context.settings.write_timeout, 0
        await written
        self.deadline_override, self.idle = None, 0

    async def start_tls(self) -> None:
        """Do the TLS handshake. Raises StreamClosedError if it fails."""
        await start_tls(self)

    async def _change_client(self, sent: bytes) -> bytes | None:
        """Begin a session with the client that XCLIENT has named, as if it had just connected.

        Return what it is sent, or None if its limits do not let it in.
        """
        context, before = self.context, self.session
        session = context.engine.session_after(before)
        count_replies(self, sent)
        context.client_changed(self)
        self.session, self.peer, self.usage = session, session.client, None
        self.age, self.idle = 0, 0
        if context.admission is not None and not await check_admission(self):
            return None
        self.share_local_address()
        return session.greet_named_client()

    # The end.

    async def finish(self, action: NextAction, sent: bytes) -> None:
        """End the connection as the session says."""
        self.closed_by_server = True
        count_violations(self, sent)  # a client that waits for nothing may be here for an hour
        if action is NextAction.ABORT:
            abort(self.stream)
        elif action is NextAction.HANG:
            self.deadline_override, self.idle = HANG, 0
            while True:
                await self.stream.read_bytes(CHUNK, True)
        elif not self.session.quit_received:
            await close_gracefully(self)

    def _end(self, sent: bytes) -> None:
        """Close the stream, and count how the connection ended. `sent` is what the client was told last."""
        session = self.session
        session.closed()
        if session.counted_events or not session.quit_received:
            count_disconnect(self, sent)
        if self.tls is not USUAL_TLS:
            count_entry(self.context.counters, self.tls, "sent" if session.messages else "left")
        self._on_close(self)
        close(self.stream)

    def close(self) -> None:
        """End the connection at once, whatever it waits for."""
        if self.waiting is not None:
            self.waiting.cancel()
        else:
            close(self.stream)

    def leave(self) -> bool:
        """Tell the client that the server stops, unless a message is under way. Return true when closed."""
        if self.session.in_body:
            return False
        self.send_and_close(SERVER_STOPPING)
        return True

    def send_and_close(self, reply: Reply) -> None:
        self.try_send(reply)
        self.close()

    def try_send(self, reply: Reply) -> None:
        """Send a last reply, unless another one is still being sent, or the client cannot read one now."""
        self.closed_by_server = True
        if self.deadline_override is None:
            with suppress(OSError):
                self.stream.write(reply.wire)
