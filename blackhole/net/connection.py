"""A connection: the coroutine that carries data between a stream and its SMTP session."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

from tornado.iostream import IOStream, StreamClosedError

from blackhole.addresses import local_address, to_bytes
from blackhole.metrics.counters import record_value
from blackhole.metrics.layout import CELL_INDEX
from blackhole.net import proxy
from blackhole.net.accounting import (
    EVENT_CELLS,
    count_disconnect,
    count_rejection,
    count_replies,
    count_violations,
)
from blackhole.net.admission import LIMIT_OF_REPLY, RECEIVED_OCTETS
from blackhole.net.connection_log import log_connection_event
from blackhole.net.graceful_close import close_gracefully
from blackhole.net.handshake import ClosedWithoutHello, HandshakeFault
from blackhole.net.input_faults import limit_input, read_slowly
from blackhole.net.latency import clock
from blackhole.net.stream import (
    CHUNK,
    abort,
    close,
    has_ended,
    has_unacknowledged_output,
    has_unread_input,
)
from blackhole.net.tls_choice import TLSChoice, count_entry
from blackhole.net.waits import cancel, finish_early, timer
from blackhole.smtp.named_client import NO_NAMED_CLIENT
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
from blackhole.smtp.violations import IN_SESSIONS
from blackhole.tls_menu import USUAL_TLS

if TYPE_CHECKING:
    from blackhole.net.admission import ClientUsage
    from blackhole.net.context import ListenerContext

log = logging.getLogger(__name__)

Result = TypeVar("Result")

READ: Final = NextAction.READ
"""To look up an enum's member takes 50 ns, a module's name 5."""

PAUSES: Final = (NextAction.SLEEP, NextAction.LOOKUP)

RECEIVED_CELL: Final = CELL_INDEX["received_bytes"]
TIMED_OUT: Final = CELL_INDEX["timed_out"]
INSPECTED_SESSIONS: Final = EVENT_CELLS.inspection(IN_SESSIONS)

HANG: Final = 3600
"""Seconds after which the server gives up a client that waits for a reply it is never to get."""

STRESS_RATE: Final = 500
"""Octets per second of a body under stress, where no `min_data_rate` is set; Postfix's value."""


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
        "_waiting",
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
        self._waiting: asyncio.Future[Any] | None = None
        """What the coroutine waits for, other than the client's data."""

    async def handle(self) -> None:
        """Serve the client until the connection ends. Raises nothing."""
        sent = b""
        try:
            if not (self.context.greets_at_once or await self._open()):
                return
            session, stream, counters = self.session, self.stream, self.context.counters
            latency = self.context.latency
            turns, answered, received = latency.turns_to_sample(), 0, 0
            first_turns = turns if self._inspects_first_input else 0
            out: bytes | None = self._greet()
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
            self._try_send(INTERNAL_ERROR)
        finally:
            self._end(sent)

    # Before the greeting.

    async def _open(self) -> bool:
        """Do what comes before the greeting. Return false for a client that is not to be greeted."""
        context = self.context
        if context.proxy_parser is not None and not await self._read_proxy_header():
            return False
        if context.admission is not None and not await self._check_admission():
            return False
        if not context.listener.tls:
            return True
        session = self.session
        session.check_implicit_tls()
        while session.next_action is NextAction.LOOKUP:
            session.resume_with_answer(await self.wait(asyncio.shield(session.pending_lookup)))
        if session.next_action is not READ:
            await self._finish(session.next_action, b"")
            return False
        await self._start_tls()
        return True

    async def _read_proxy_header(self) -> bool:
        """Learn the client's address from the proxy. Return false where there is no header to be trusted."""
        context = self.context
        self.closed_by_server = True
        if to_bytes(self.peer) not in context.proxies:
            return False
        self.deadline_override = context.settings.proxy_timeout
        source = proxy.SocketSource(self.stream.socket)
        try:
            address = await self.wait(asyncio.ensure_future(proxy.read_header(source, context.proxy_parser)))
        except (OSError, ValueError) as error:
            context.proxy_errors.add(self.peer, error)
            return False
        self.closed_by_server, self.deadline_override = False, None
        if address:
            self.peer = address
            self.session = context.engine.session(client=address)
        return True

    async def _check_admission(self) -> bool:
        """Apply the limits on clients. Return false for a client that was told to come another time."""
        context = self.context
        assert context.admission is not None
        usage = self.usage = context.admission.admit(self.peer)
        if usage is None:
            return True
        if usage.shared is not None and usage.shared.is_pending:
            await self.wait(asyncio.ensure_future(usage.shared.wait()))
        refusal = context.admission.refusal(usage)
        handshake_follows = context.listener.tls and not self.session.secure
        if refusal is None and handshake_follows and not usage.meter("STARTTLS"):
            refusal = TOO_MANY_TLS_HANDSHAKES
        if refusal is None:
            self.session.apply_limits(context.limited_engine, context.limits, usage.meter)
            return True
        self.closed_by_server = True
        self.session.record_limit(LIMIT_OF_REPLY[refusal])
        if not handshake_follows:
            self._try_send(refusal)
            count_rejection(context.counters, refusal)
        return False

    def _greet(self) -> bytes:
        """Return the greeting, or what is sent in its place."""
        session, stream, context = self.session, self.stream, self.context
        self._share_local_address()
        out = session.greet()
        if self._inspects_first_input and out and has_unread_input(stream):
            out = session.client_spoke_first(out, sampled=not context.settings.strict)
        return out

    def _share_local_address(self) -> None:
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
            return await self._pause(action)
        if action is NextAction.START_TLS:
            await self._start_tls()
            return b""
        if action is NextAction.READ_SLOWLY:
            if self.slow_seconds > HANG:
                self.context.counters[TIMED_OUT] += 1
                self._try_send(TIMEOUT)
                return None
            return await read_slowly(self)
        if action is NextAction.LIMIT_INPUT:
            return limit_input(self)
        if action is NextAction.CHANGE_CLIENT:
            return await self._change_client(sent)
        if not (action is NextAction.CLOSE and self.session.quit_received):
            await self._finish(action, sent)
        return None

    async def _pause(self, action: NextAction) -> bytes:
        """Wait for a look-up, or as long as the reply is to be held back. Return the reply."""
        session, stream = self.session, self.stream
        if action is NextAction.LOOKUP:
            answer = await self.wait(asyncio.shield(session.pending_lookup), watched=True)
            if has_ended(stream):
                session.client_left()
            out = session.resume_with_answer(answer)
        elif session.wait:
            self.idle = -session.wait
            if await self.wait(timer(session.wait), watched=True):
                record_value(self.context.counters, "delay_seconds", int(session.wait * 1e6))
            if has_ended(stream):
                session.client_left()
            out = session.resume()
        else:
            self.idle = 0
            await asyncio.sleep(0)  # other connections have their turn
            out = session.resume()
        if has_unread_input(stream):
            if not self.received and session.next_action not in PAUSES:
                out = session.client_spoke_first(out, sampled=False)
            out = session.client_sent_early(out)
        return out

    async def wait(self, future: asyncio.Future[Result], watched: bool = False) -> Result:
        """Return the result of a future. `close` ends the wait; so does the client's leaving if `watched`."""
        self._waiting = future
        if watched:
            self.stream.set_close_callback(partial(cancel, future))
        try:
            return await future
        finally:
            self._waiting = None
            if watched:
                self.stream.set_close_callback(None)

    @property
    def holds_reply_back(self) -> bool:
        """Whether the connection is in a delay or a look-up."""
        return self._waiting is not None and self.session.next_action in PAUSES and not self.stream.closed()

    def limit_delay(self, seconds: float) -> None:
        """Send a delayed reply now if it was held back for so many seconds. A look-up goes on."""
        waiting, session = self._waiting, self.session
        if waiting and session.next_action is NextAction.SLEEP and self.idle + session.wait >= seconds:
            finish_early(waiting)

    async def _drain(self, written: Awaitable[None]) -> None:
        """Wait until the socket has taken the whole reply."""
        self.deadline_override, self.idle = self.context.settings.write_timeout, 0
        await written
        self.deadline_override, self.idle = None, 0

    async def _start_tls(self) -> None:
        """Do the TLS handshake, before the greeting or after STARTTLS."""
        self.deadline_override, self.idle = self.context.settings.tls_timeout, 0
        choice = TLSChoice.of(self)
        try:
            self.stream = await self.wait(choice.start_tls(self.stream))
        except HandshakeFault as fault:
            count_entry(self.context.counters, choice.parameters, "failed")
            await self._finish(fault.next_action, b"")
            raise StreamClosedError from None
        except (OSError, ValueError) as error:
            if not isinstance(error, ClosedWithoutHello) or self.received:
                self.closed_by_server = True
                choice.failed(self, error)
            # Where TLS begins at once, a client that says nothing is a probe.
            raise StreamClosedError(error) from None
        self.deadline_override = None
        self.tls = choice.parameters
        choice.succeeded(self)
        self._share_local_address()

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
        if context.admission is not None and not await self._check_admission():
            return None
        self._share_local_address()
        return session.greet_named_client()

    # The end.

    async def _finish(self, action: NextAction, sent: bytes) -> None:
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
        if self._waiting is not None:
            self._waiting.cancel()
        else:
            close(self.stream)

    def leave(self) -> bool:
        """Tell the client that the server stops, unless a message is under way. Return true when closed."""
        if self.session.in_body:
            return False
        self._send_and_close(SERVER_STOPPING)
        return True

    def _send_and_close(self, reply: Reply) -> None:
        self._try_send(reply)
        self.close()

    def _try_send(self, reply: Reply) -> None:
        """Send a last reply, unless another one is still being sent, or the client cannot read one now."""
        self.closed_by_server = True
        if self.deadline_override is None:
            with suppress(OSError):
                self.stream.write(reply.wire)

    # Once a second.

    def sweep(self) -> None:
        """Enforce timeouts and rates, and add what was received to the counters."""
        context, settings = self.context, self.context.settings
        fresh = self.received - self.counted
        if fresh:
            context.counters[RECEIVED_CELL] += fresh
            self.counted = self.received
            if self.session.in_body:
                self._credit_body(fresh)
            if self.usage is not None and not self.usage.meter(RECEIVED_OCTETS, fresh):
                self.session.record_limit("client_byte_rate")
                self._send_and_close(TOO_MANY_CLIENT_OCTETS)
                return
        self.idle += 1
        self.age += 1
        limit = settings.timeout if self.deadline_override is None else self.deadline_override
        if context.stressed:
            limit = min(limit, settings.stress_timeout)
        if self.idle > limit:
            context.counters[TIMED_OUT] += 1
            if self.usage is not None and settings.min_data_rate and self.session.in_body:
                self.session.record_limit("min_data_rate")
            self._send_and_close(TIMEOUT)
        elif self.usage is not None and 0 < settings.session_timeout < self.age:
            self.session.record_limit("session_timeout")
            self._send_and_close(SESSION_TIMEOUT)

    def _credit_body(self, octets: int) -> None:
        """Give a client more time for octets of a body: all of it, or in proportion to a rate, as Postfix."""
        rate = self.context.settings.min_data_rate if self.usage is not None else 0
        if self.context.stressed:
            rate = rate or STRESS_RATE
        self.idle = max(0.0, self.idle - octets / rate) if rate else 0.0
