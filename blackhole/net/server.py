"""A listener in one worker: its engine, its connections, and what happens to them once a second."""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final

from tornado.iostream import IOStream
from tornado.tcpserver import TCPServer

from blackhole.addresses import client_address, to_bytes
from blackhole.messages.dkim_verification import DKIMKeys
from blackhole.messages.message_checks import NO_KEYS
from blackhole.metrics.counters import record_values
from blackhole.metrics.evidence import EvidenceWriter
from blackhole.metrics.layout import (
    CELL_INDEX,
    LISTENERS_START,
    SAMPLED_START,
    VIOLATING_CONNECTIONS_START,
    VIOLATIONS_START,
)
from blackhole.net import proxy
from blackhole.net.acceptor import Acceptor, OpenConnections, ReservedDescriptor
from blackhole.net.accounting import count_late_verdicts, count_rejection
from blackhole.net.admission import RECEIVED_OCTETS, AdmissionControl, client_limits, stressed_limits
from blackhole.net.client_table import ClientTableView
from blackhole.net.connection import Connection
from blackhole.net.context import ListenerContext
from blackhole.net.disconnects import DisconnectWatch
from blackhole.net.fleet_usage import FleetUsage
from blackhole.net.limit_log import LimitLog
from blackhole.net.listener_setup import connection_type, make_context, make_engines
from blackhole.net.namespace_accounts import NamespaceScenario
from blackhole.net.poller import Poller
from blackhole.net.rules_in_force import RulesInForce
from blackhole.net.server_namespaces import NO_NAMESPACES, ServerNamespaces
from blackhole.net.stream import ClientStream
from blackhole.net.timeouts import RECEIVED_CELL, enforce_timeouts
from blackhole.net.tls import TLSContexts
from blackhole.net.tls_choice import reads_client_hello
from blackhole.settings import Listener, Settings
from blackhole.smtp.engine import SMTPEngine
from blackhole.smtp.engine_tables import TraceFunction
from blackhole.smtp.recorded_session import Recorder
from blackhole.smtp.replies import TOO_MANY_CONNECTIONS
from blackhole.store.active_scenario import NO_SCENARIO, ActiveScenario
from blackhole.store.client_log import ClientLogWriter

log = logging.getLogger(__name__)

OPEN_CELL: Final = CELL_INDEX["open"]

COUNTED_EVENTS: Final = range(VIOLATIONS_START, SAMPLED_START)
SAMPLED_EVENTS: Final = range(SAMPLED_START, VIOLATING_CONNECTIONS_START)

LOG_INTERVAL: Final = 10
"""Seconds between two lines of the log about the same."""

RESERVED_FDS: Final = 64
"""Descriptors of a worker that are not for clients: listening sockets, the log, epoll, the master's pipe."""

STRESS_ON: Final = 0.9
"""Share of `max_connections` from which on timeouts are reduced."""

STRESS_OFF: Final = 0.7
"""Share below which they are not any more."""


def listener_address(listener: Listener, sockets: Sequence[socket.socket]) -> str:
    """Return the address of a listener with the port that it got, where it asked for any."""
    return str(listener if listener.path else replace(listener, port=sockets[0].getsockname()[1]))


def capacity(wanted: int) -> int:
    """Return how many connections this process can have, of as many as are wanted."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(1, min(wanted, files - RESERVED_FDS))


class SMTPServer(TCPServer):
    """Serves one listener in one worker.

    A plain Tornado server; `open` is a faster `add_sockets`, with the limits on connections:

        server = SMTPServer(listener, settings, counters, tls=None, trace=None)
        server.add_sockets(bind(listener, backlog=128))

    `counters` is the worker's row of the counters, `tls` the contexts where there is a
    certificate, `open_connections` tells how many this worker and the one with the fewest have (None:
    there are no others), `number` is the counter of this listener's connections, `scenario` has the
    rules that come before the listener's mode, `client_table` what all workers know of their
    clients, and `fleet_usage` what all machines of a fleet do, `client_log` gets what is shown of
    them, `limit_log` the limits that they meet, `recorder` the records of transactions, `evidence`
    where violations were committed, `namespaces` has the rules of those that there are, `dkim_keys` the keys
    with which signatures are verified.
    """

    def __init__(
        self,
        listener: Listener,
        settings: Settings,
        counters: memoryview,
        tls: TLSContexts | None,
        trace: TraceFunction | None,
        open_connections: OpenConnections | None = None,
        scenario: ActiveScenario = NO_SCENARIO,
        number: int = LISTENERS_START,
        client_table: ClientTableView | None = None,
        client_log: ClientLogWriter | None = None,
        limit_log: LimitLog | None = None,
        recorder: Recorder | None = None,
        evidence: EvidenceWriter | None = None,
        fleet_usage: FleetUsage | None = None,
        namespaces: ServerNamespaces | None = None,
        dkim_keys: DKIMKeys = NO_KEYS,
    ) -> None:
        super().__init__()
        self.listener: Final = listener
        self.settings: Final = settings
        self.counters: Final = counters
        self.capacity: Final = capacity(settings.max_connections)
        """How many connections this process may have."""
        self.connections: Final[set[Connection]] = set()
        self._rules: Final = RulesInForce(listener, scenario, namespaces)
        policy = self._rules.session_policy(tls)
        self.context = make_context(
            listener,
            settings,
            make_engines(listener, settings, trace, policy, recorder, dkim_keys),
            counters,
            tls,
            self._rules.all_rules(),
            AdmissionControl(settings, client_table, fleet_usage) if settings.limits_clients else None,
            (limit_log or LimitLog()) if settings.limits_clients else None,
            evidence,
            log.debug if settings.public else log.info,
            self.client_changed,
        )
        self._connection_type: Final = connection_type(namespaces, number, recorder is not None)
        self._open_connections: Final = open_connections
        self._number: Final = number
        self._client_log: Final = client_log
        self._connection_messages: Final[list[int]] = []
        """How many messages each client sent that has left since the last sweep."""
        self._disconnects: Final = DisconnectWatch()
        self._warned = -float(LOG_INTERVAL)
        self._acceptors: Final[list[Acceptor]] = []
        self._reserved: ReservedDescriptor | None = None
        self._make_stream: Callable[[int], ClientStream]

    @property
    def engine(self) -> SMTPEngine:
        """The engine of clients without limits."""
        return self.context.engine

    def collect_sizes(self, sizes: list[int]) -> None:
        """Collect the sizes of messages in this list from now on, which `flush_histograms` empties."""
        self.context.engine.sizes = self.context.limited_engine.sizes = sizes

    # From accept to close.

    def open(
        self,
        sockets: Sequence[socket.socket],
        poller: Poller,
        make_stream: Callable[[int], ClientStream],
    ) -> None:
        """Start accepting connections. `make_stream` makes the stream of an accepted descriptor."""
        self._make_stream = make_stream
        self._reserved = ReservedDescriptor()
        for listening in sockets:
            self._acceptors.append(
                Acceptor(listening, poller, self.accept, self._exhausted, self._open_connections)
            )

    def accept(self, fd: int, address: tuple[Any, ...]) -> None:
        """Serve an accepted connection, or reject it where there are too many."""
        if self.counters[OPEN_CELL] >= self.capacity and not self._disconnects.make_room(self.connections):
            self.warn_limited("%d connections are open: no more are accepted", self.capacity)
            self.reject(socket.socket(fileno=fd))
            return
        stream = self._make_stream(fd)
        stream.run(self.handle_stream(stream, address))

    def handle_stream(self, stream: IOStream, address: tuple[Any, ...]) -> Coroutine[Any, Any, None]:
        """Return the coroutine that serves a stream.

        This is no coroutine itself: another frame would take a third of a KiB of each idle connection.
        """
        connection = self._connection_type(
            stream, client_address(address), self.context, self.connection_closed
        )
        self.connections.add(connection)
        self.counters[self._number] += 1
        self.counters[OPEN_CELL] += 1
        return connection.handle()

    def connection_closed(self, connection: Connection) -> None:
        """Account for a connection that has ended."""
        self.connections.discard(connection)
        self.counters[OPEN_CELL] -= 1
        self._connection_messages.append(connection.session.messages)
        self._client_left(connection)

    def client_changed(self, connection: Connection) -> None:
        """Account for the client of a connection that goes on with another one."""
        if connection.session.messages:
            self._connection_messages.append(connection.session.messages)
        self._client_left(connection)

    def _client_left(self, connection: Connection) -> None:
        usage = connection.usage
        fresh = connection.received - connection.counted
        connection.context.counters[RECEIVED_CELL] += fresh
        connection.counted = connection.received
        if usage is not None:
            usage.meter(RECEIVED_OCTETS, fresh)
            usage.leave()
        if self._client_log is not None:
            self._update_client_log(connection)
            self._client_log.forget(connection)

    # Rejecting.

    def reject(self, connection: socket.socket) -> None:
        """Tell a client that there are too many connections, without waiting for it."""
        with connection, suppress(OSError):
            if not self.listener.tls:
                if self.listener.proxy:  # a socket closed with its header unread would be reset
                    connection.recv(proxy.MAX_V2, socket.MSG_DONTWAIT)
                connection.send(TOO_MANY_CONNECTIONS.wire, socket.MSG_DONTWAIT)
                count_rejection(self.counters, TOO_MANY_CONNECTIONS)

    def _exhausted(self, listening: socket.socket, error: OSError) -> bool:
        """Descriptors have run out: reject the next client. Return false where not even that is possible."""
        self.warn_limited("cannot accept connections: %s", error.strerror)
        assert self._reserved is not None
        if not self._reserved.release():
            return False
        try:
            connection, _ = listening.accept()
        except OSError:
            return False
        else:
            self.reject(connection)
            return True
        finally:
            self._reserved.acquire()

    def warn_limited(self, text: str, *values: object) -> None:
        """Log a warning that may be due a thousand times a second, but not as often."""
        now = asyncio.get_running_loop().time()
        if now - self._warned >= LOG_INTERVAL:
            self._warned = now
            log.warning(f"{self.listener}: {text}", *values)

    # Once a second.

    def sweep(self) -> None:
        """Enforce the timeouts of all connections, and flush what is counted in batches."""
        self.flush_histograms()
        self.engine.inspection.refill()
        if self.engine.inspection.awaiting:
            count_late_verdicts(self.context)
        if self._reserved is not None:
            self._reserved.acquire()
        if self.settings.stress_timeout:
            self._check_stress()
        self._disconnects.sweep(self.connections, self.context.stressed)
        for connection in list(self.connections):
            enforce_timeouts(connection)
        if self._client_log is not None:
            for connection in self.connections:
                self._update_client_log(connection)

    def flush_histograms(self) -> None:
        """Add to the histograms what is costly to add one by one."""
        latency = self.context.latency
        for histogram, values in (
            ("message_bytes", self.context.engine.sizes),
            ("message_bytes", self.context.limited_engine.sizes),
            ("connection_messages", self._connection_messages),
            ("client_think_seconds", latency.think_times),
            ("service_seconds", latency.service_times),
        ):
            record_values(self.counters, histogram, values)
            values.clear()

    def _check_stress(self) -> None:
        """Reduce timeouts and limits while connections run out."""
        share = self.counters[OPEN_CELL] / self.capacity
        if share >= STRESS_ON and not self.context.stressed:
            self.warn_limited(
                "%d %% of all connections are in use: client timeouts are reduced to %g s",
                STRESS_ON * 100,
                self.settings.stress_timeout,
            )
            self._set_stress(True)
        elif share < STRESS_OFF and self.context.stressed:
            self._set_stress(False)

    def _set_stress(self, stressed: bool) -> None:
        usual = client_limits(self.settings)
        limits = stressed_limits(usual) if stressed else usual
        self._replace_context(replace(self.context, stressed=stressed, limits=limits))
        for connection in self.connections:
            if connection.session.error_budget is not None:
                connection.session.error_budget.limits = limits

    def _replace_context(self, context: ListenerContext) -> None:
        self.context = context
        for connection in self.connections:
            connection.context = context

    def _update_client_log(self, connection: Connection) -> None:
        assert self._client_log is not None
        session, peer = connection.session, connection.peer
        if self.listener.proxy and to_bytes(peer) in self.context.proxies:
            return  # the client behind the proxy is not known yet, or there is none
        # As many as the counters have.
        events = session.counted_events
        violations = session.violation_count - sum(map(COUNTED_EVENTS.__contains__, events))
        sampled = session.sampled_violation_count - sum(map(SAMPLED_EVENTS.__contains__, events))
        self._client_log.update(connection, peer, session.answered_messages, violations, sampled)

    # Told by the worker.

    def apply_scenario(
        self, scenario: ActiveScenario, namespaces: Mapping[bytes, NamespaceScenario] = NO_NAMESPACES
    ) -> None:
        """Use other rules: for new connections at once, for open ones from the next command outside a
        transaction."""
        context = self.context
        self._rules.update(scenario, namespaces)
        policy = self._rules.session_policy(context.tls)
        engine = context.engine.replace_policy(policy)
        limited = context.limited_engine.replace_policy(policy) if self.settings.limits_clients else engine
        self._replace_context(
            replace(
                context,
                engine=engine,
                limited_engine=limited,
                reads_client_hello=reads_client_hello(context.tls, self._rules.all_rules()),
            )
        )

    @property
    def may_refuse(self) -> bool:
        """Whether a rule may refuse, delay or cut off a message, so that retries are to be expected."""
        return self._rules.may_refuse

    def mark_closed_by_server(self) -> None:
        """Note that the process ends, so that no open connection is counted as the client's fault."""
        for connection in self.connections:
            connection.closed_by_server = True

    def stop_accepting(self) -> None:
        """Close the listening sockets, in this process."""
        if self._reserved is not None:
            self._reserved.release()
            self._reserved = None
        for acceptor in self._acceptors:
            acceptor.close()

    def drain(self) -> None:
        """Close the connections that have no message under way."""
        for connection in list(self.connections):
            connection.leave()
