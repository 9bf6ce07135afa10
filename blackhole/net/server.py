"""A listener in one worker: its engine, its connections, and what happens to them once a second."""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import chain
from random import Random
from typing import Any, Final

from tornado.iostream import IOStream
from tornado.tcpserver import TCPServer

from blackhole.addresses import NetworkSet, client_address, to_bytes
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
from blackhole.net.acceptor import Acceptor, ReservedDescriptor
from blackhole.net.accounting import EVENT_CELLS, count_rejection
from blackhole.net.admission import RECEIVED_OCTETS, AdmissionControl, client_limits, stressed_limits
from blackhole.net.client_table import ClientTableView
from blackhole.net.connection import RECEIVED_CELL, Connection
from blackhole.net.context import ListenerContext
from blackhole.net.disconnects import DisconnectWatch
from blackhole.net.dkim_keys import published_keys
from blackhole.net.fleet_usage import FleetUsage
from blackhole.net.limit_log import LimitLog
from blackhole.net.namespace_accounts import NamespaceScenario
from blackhole.net.poller import Poller
from blackhole.net.recorded_connection import RecordedConnection
from blackhole.net.server_namespaces import NO_NAMESPACES, ServerNamespaces, namespace_of
from blackhole.net.stream import ClientStream
from blackhole.net.tls import TLSContexts
from blackhole.net.tls_choice import reads_client_hello
from blackhole.rules.evaluator import RuleEnvironment, RulePolicy
from blackhole.rules.model import Rule
from blackhole.rules.modes import MODE_RULES
from blackhole.settings import Listener, Settings
from blackhole.smtp.auth import choose_mechanisms
from blackhole.smtp.engine import SMTPEngine
from blackhole.smtp.engine_tables import TraceFunction
from blackhole.smtp.extensions import choose
from blackhole.smtp.inspection import InspectionPlan
from blackhole.smtp.policy import ListenerPolicy
from blackhole.smtp.recorded_session import Recorder
from blackhole.smtp.replies import TOO_MANY_CONNECTIONS
from blackhole.smtp.state import LMTP, SMTP, ListenerConfig
from blackhole.smtp.wanted_fields import WantedFields
from blackhole.store.active_scenario import NO_SCENARIO, ActiveScenario
from blackhole.store.client_log import ClientLogWriter
from blackhole.store.recent import RecentWriter

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


def listener_config(settings: Settings, listener: Listener) -> ListenerConfig:
    """Return what the engine of a listener needs to know of the settings."""
    extensions = choose(settings.extensions)
    return ListenerConfig(
        hostname=settings.hostname,
        service=LMTP if listener.lmtp else SMTP,
        extensions=extensions,
        message_size_limit=settings.message_size_limit,
        strict=settings.strict,
        delay=listener.delay,
        starttls=bool(settings.ssl_cert) and not listener.tls and "STARTTLS" in extensions,
        bare_newline=settings.bare_newline,
        inspect=settings.inspect,
        inspect_content=settings.inspect_content,
        dkim_keys=published_keys(settings.dkim_keys, settings.dkim_records) if settings.dkim_records else {},
        limits=client_limits(settings) if settings.limits_clients else None,
        message_directives=settings.message_directives,
        auth=settings.auth != "off" and "AUTH" in extensions,
        auth_plaintext=settings.auth_plaintext,
        auth_mechanisms=choose_mechanisms(settings.auth_mechanisms, settings.passwords is not None),
        auth_required=settings.auth_required,
        passwords=settings.passwords,
        xclient_from=NetworkSet(settings.xclient_from) if settings.xclient_from else None,
        fast_path="fast_path" in settings.accelerators,
    )


def make_recorder(
    settings: Settings,
    listener: Listener,
    address: str,
    writer: RecentWriter | None,
    log_transaction: Callable[[Any, bytes], None] | None = None,
) -> Recorder:
    """Return what records the transactions of a listener. Without a writer they are not kept."""
    names = () if writer is None else settings.recent_fields
    about = address.encode(), ",".join(names).encode()
    publish = keep_nothing if writer is None else writer.append
    return Recorder(
        time.time,
        publish,
        WantedFields(names),
        about,
        listener.mode.encode(),
        log_transaction,
        namespace_of if settings.namespace_by else None,
    )


def keep_nothing(record: bytes) -> int:
    """Keep no record of a transaction that is only logged."""
    return 0


def needs_attempt_store(listeners: Iterable[Listener], scenario: ActiveScenario) -> bool:
    """Return whether a rule of one of these listeners needs a store of attempts."""
    rules = chain(scenario.all_rules, *(MODE_RULES[listener.mode] for listener in listeners))
    return any(rule.needs_store for rule in rules)


def rule_environment(scenario: ActiveScenario) -> RuleEnvironment:
    """Return what the rules of a scenario may ask."""
    return RuleEnvironment(
        lambda: time.monotonic() - scenario.clock_origin,
        scenario.attempt_store,
        scenario.outcome_store,
        time.monotonic,
    )


def rule_policy(listener: Listener, scenario: ActiveScenario = NO_SCENARIO) -> RulePolicy:
    """Return the policy of a listener: the rules of the scenario, and behind them those of its mode."""
    return RulePolicy(
        scenario.rules,
        listener.mode,
        str(listener),
        Random(),
        rule_environment(scenario),
        EVENT_CELLS.outcome,
    )


def tracks_retries(listeners: Iterable[Listener], scenario: ActiveScenario) -> bool:
    """Return whether a rule of one of these listeners may refuse a message, so that retries are tracked."""
    rules = chain(scenario.all_rules, *(MODE_RULES[listener.mode] for listener in listeners))
    return any(rule.may_refuse for rule in rules)


class SMTPServer(TCPServer):
    """Serves one listener in one worker.

    A plain Tornado server; `open` is a faster `add_sockets`, with the limits on connections:

        server = SMTPServer(listener, settings, counters, tls=None, trace=None)
        server.add_sockets(bind(listener, backlog=128))

    `counters` is the worker's row of the counters, `tls` the contexts where there is a
    certificate, `should_yield` tells whether other workers have fewer connections (None: there
    are no others), `number` is the counter of this listener's connections, `scenario` has the
    rules that come before the listener's mode, `client_table` what all workers know of their
    clients, and `fleet_usage` what all machines of a fleet do, `client_log` gets what is shown of
    them, `limit_log` the limits that they meet, `recorder` the records of transactions, `evidence`
    where violations were committed, `namespaces` has the rules of those that there are.
    """

    def __init__(
        self,
        listener: Listener,
        settings: Settings,
        counters: memoryview,
        tls: TLSContexts | None,
        trace: TraceFunction | None,
        should_yield: Callable[[], bool] | None = None,
        scenario: ActiveScenario = NO_SCENARIO,
        number: int = LISTENERS_START,
        client_table: ClientTableView | None = None,
        client_log: ClientLogWriter | None = None,
        limit_log: LimitLog | None = None,
        recorder: Recorder | None = None,
        evidence: EvidenceWriter | None = None,
        fleet_usage: FleetUsage | None = None,
        namespaces: ServerNamespaces | None = None,
    ) -> None:
        super().__init__()
        self.listener: Final = listener
        self.settings: Final = settings
        self.counters: Final = counters
        self.capacity: Final = capacity(settings.max_connections)
        """How many connections this process may have."""
        self.connections: Final[set[Connection]] = set()
        self.context: ListenerContext
        self._namespaces: Final = namespaces
        self._scenario = scenario
        self.policy = self._make_policy(scenario)
        policy = self._listener_policy(tls)
        rules = self._all_rules()
        limited = listener_config(settings, listener)
        inspection = InspectionPlan(settings.inspect)
        engine = SMTPEngine(
            replace(limited, limits=None), Random(), trace, policy, EVENT_CELLS, recorder, inspection
        )
        self.context = ListenerContext(
            listener=listener,
            settings=settings,
            engine=engine,
            limited_engine=(
                SMTPEngine(limited, Random(), trace, policy, EVENT_CELLS, recorder, inspection)
                if settings.limits_clients
                else engine
            ),
            limits=client_limits(settings),
            counters=counters,
            tls=tls,
            reads_client_hello=reads_client_hello(tls, rules),
            admission=(
                AdmissionControl(settings, client_table, fleet_usage) if settings.limits_clients else None
            ),
            limit_log=(limit_log or LimitLog()) if settings.limits_clients else None,
            proxy_parser=proxy.make_parser() if listener.proxy else None,
            proxies=NetworkSet(settings.proxy_from),
            greets_at_once=not (listener.proxy or listener.tls or settings.limits_clients),
            log_connection=log.debug if settings.public else log.info,
            client_changed=self.client_changed,
            evidence=evidence,
        )
        self._connection_type: Final[Callable[..., Connection]] = (
            namespaces.connection_type(number, recorder is not None)
            if namespaces is not None
            else Connection
            if recorder is None
            else RecordedConnection
        )
        self._should_yield: Final = should_yield
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
                Acceptor(listening, poller, self.accept, self._exhausted, self._should_yield)
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
        if self._reserved is not None:
            self._reserved.acquire()
        if self.settings.stress_timeout:
            self._check_stress()
        self._disconnects.sweep(self.connections, self.context.stressed)
        for connection in list(self.connections):
            connection.sweep()
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
        if scenario is not self._scenario:
            self._scenario = scenario
            self.policy = self._make_policy(scenario)
        if self._namespaces is not None:
            self._namespaces.update(namespaces)
        policy = self._listener_policy(context.tls)
        engine = context.engine.replace_policy(policy)
        limited = context.limited_engine.replace_policy(policy) if self.settings.limits_clients else engine
        self._replace_context(
            replace(
                context,
                engine=engine,
                limited_engine=limited,
                reads_client_hello=reads_client_hello(context.tls, self._all_rules()),
            )
        )

    def _make_policy(self, scenario: ActiveScenario) -> RulePolicy:
        return rule_policy(self.listener, scenario.of_listener(str(self.listener)))

    def _listener_policy(self, tls: TLSContexts | None) -> ListenerPolicy:
        """Return the policy of all sessions, once the certificates of its rules are there."""
        if tls is not None:
            for scenario in self._scenarios():
                tls.add(scenario.certificates)
        if self._namespaces is None:
            return self.policy
        return self._namespaces.policy(self.policy, self._make_policy)

    def _scenarios(self) -> Iterator[ActiveScenario]:
        """Yield the scenario of the server, and those of its namespaces."""
        yield self._scenario
        if self._namespaces is not None:
            yield from self._namespaces.scenarios

    def _all_rules(self) -> list[Rule]:
        name = str(self.listener)
        return [rule for scenario in self._scenarios() for rule in scenario.of_listener(name).rules]

    @property
    def may_refuse(self) -> bool:
        """Whether a rule may refuse, delay or cut off a message, so that retries are to be expected."""
        return self.policy.rules.may_refuse or (self._namespaces is not None and self._namespaces.may_refuse)

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
