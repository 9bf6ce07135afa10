"""A listener at work: its sockets, its engine, and the connections that are open on it."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import resource
import select
import socket
import ssl
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import chain
from random import Random
from typing import Final

from tornado.ioloop import IOLoop
from tornado.netutil import bind_sockets
from tornado.tcpserver import TCPServer

from blackhole.addresses import NetworkSet, to_bytes
from blackhole.metrics.counters import record_values
from blackhole.metrics.layout import CELL_INDEX, LISTENERS_START, EventCells
from blackhole.net import proxy
from blackhole.net.admission import OCTETS, AdmissionControl, client_limits, stressed_limits
from blackhole.net.client_table import ClientTableView
from blackhole.net.connection import RECEIVED, Connection
from blackhole.net.direct import DirectStream, Selector
from blackhole.rules.evaluator import RuleEnvironment, RulePolicy
from blackhole.rules.modes import MODE_RULES
from blackhole.settings import DashboardAddress, Listener, OperatorError, Settings
from blackhole.smtp.engine import SMTPEngine
from blackhole.smtp.engine_tables import TraceFunction
from blackhole.smtp.replies import TOO_MANY_CONNECTIONS, Reply
from blackhole.smtp.state import ListenerConfig
from blackhole.store.active_scenario import NO_SCENARIO, ActiveScenario
from blackhole.store.client_log import ClientLogWriter

log = logging.getLogger(__name__)

ACCEPTS: Final = 16
"""Connections taken in one turn by a worker that has no others beside it."""

EXHAUSTED: Final = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))
"""What accept() says when descriptors or memory have run out."""

EXCLUSIVE: Final = 1 << 28
"""EPOLLEXCLUSIVE of linux/eventpoll.h, of which PyPy's `select` does not know."""

ACCEPT_EVENTS: Final = select.EPOLLIN | EXCLUSIVE

OPEN: Final = CELL_INDEX["open"]

EVENT_CELLS: Final = EventCells()

YIELD_ACCEPT: Final = 0.001
"""Seconds for which a worker that has more connections than the others leaves the next one to them."""

PAUSE: Final = 0.1
"""Seconds without accepting after that. Trying at once again would take the whole processor."""

LOG_INTERVAL: Final = 10
"""Seconds between two lines of the log that say so."""

RESERVED_FDS: Final = 64
"""Descriptors of a worker that are not for its clients: to listen on, the log, epoll, the master's pipe."""

STRESS_ON: Final = 0.9
"""Share of the connections there may be from which on clients have to hurry."""

STRESS_OFF: Final = 0.7
"""Share below which they need not any more."""


def bind(listener: Listener | DashboardAddress, backlog: int) -> list[socket.socket]:
    """The listening sockets of an address, with the options that connections inherit from them.

    Raises OperatorError: EX_NOPERM for a port that is not ours to take, EX_OSERR for
    one that is taken, EX_CONFIG for an address that is none of this machine's.
    """
    try:
        sockets = bind_sockets(listener.port, listener.host or None, backlog=backlog)
    except PermissionError:
        raise OperatorError(
            f"no permission to listen on {listener}: run as root, or choose a port above 1023 with --port,"
            " or grant it: setcap cap_net_bind_service=+ep $(readlink -f $(which python3))",
            os.EX_NOPERM,
        ) from None
    except socket.gaierror as error:
        raise OperatorError(f"cannot listen on {listener}: {error.strerror}", os.EX_CONFIG) from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise OperatorError(
                f"cannot listen on {listener}: something else does; see `ss -ltnp`", os.EX_OSERR
            ) from None
        code = os.EX_CONFIG if error.errno == errno.EADDRNOTAVAIL else os.EX_OSERR
        raise OperatorError(f"cannot listen on {listener}: {os.strerror(error.errno or 0)}", code) from None
    for bound in sockets:
        # Inherited by every accepted socket: a system call less for each. Without it a reply
        # behind a TLS handshake waits 40 ms for the client's acknowledgement.
        bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sockets


def address(listener: Listener, sockets: Sequence[socket.socket]) -> str:
    """Where a listener is to be found, its port known even if any was good enough."""
    return str(replace(listener, port=sockets[0].getsockname()[1]))


def capacity(wanted: int) -> int:
    """How many connections this process can have, of as many as are wanted."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(1, min(wanted, files - RESERVED_FDS))


def config(settings: Settings, listener: Listener) -> ListenerConfig:
    """Return what the engine needs to know of the settings."""
    return ListenerConfig(
        hostname=settings.hostname,
        message_size_limit=settings.message_size_limit,
        strict=settings.strict,
        delay=listener.delay,
        starttls=bool(settings.ssl_cert) and not listener.tls,
        bare_newline=settings.bare_newline,
        limits=client_limits(settings) if settings.limits_clients else None,
        message_directives=settings.message_directives,
        auth=settings.auth != "off",
        auth_plaintext=settings.auth_plaintext,
        passwords=settings.passwords,
    )


def remembers(listeners: Iterable[Listener], scenario: ActiveScenario) -> bool:
    """Whether a rule of one of them needs a memory of attempts."""
    rules = chain(scenario.rules, *(MODE_RULES[listener.mode] for listener in listeners))
    return any(rule.needs_store for rule in rules)


def outside(scenario: ActiveScenario) -> RuleEnvironment:
    """What its rules may ask."""
    return RuleEnvironment(
        lambda: time.monotonic() - scenario.clock_origin,
        scenario.attempt_store,
        scenario.outcome_store,
        time.monotonic,
    )


def rule_policy(listener: Listener, scenario: ActiveScenario = NO_SCENARIO) -> RulePolicy:
    """Return the policy of a listener: the rules of the scenario, and behind them those of its mode."""
    return RulePolicy(
        scenario.rules, listener.mode, str(listener), Random(), outside(scenario), EVENT_CELLS.outcome
    )


def watches(listeners: Iterable[Listener], scenario: ActiveScenario) -> bool:
    """Whether it has to be known of one of them what became of messages."""
    rules = chain(scenario.rules, *(MODE_RULES[listener.mode] for listener in listeners))
    return any(rule.may_refuse for rule in rules)


class SMTPServer(TCPServer):
    """One listener in one worker.

    `counters` is the worker's row of the stats, `tls` the context where there is a
    certificate. `should_yield_accept` tells whether other workers have fewer connections; None
    where there are no others. `number` is the counter of this listener's connections.
    `scenario` has rules that come before the listener's mode. `ledger` has what all
    workers know of their clients, `page` what is shown of them.
    """

    def __init__(
        self,
        listener: Listener,
        settings: Settings,
        counters: memoryview,
        tls: ssl.SSLContext | None,
        trace: TraceFunction | None,
        should_yield_accept: Callable[[], bool] | None = None,
        scenario: ActiveScenario = NO_SCENARIO,
        number: int = LISTENERS_START,
        ledger: ClientTableView | None = None,
        client_log: ClientLogWriter | None = None,
    ) -> None:
        super().__init__()
        self.listener: Final = listener
        judging = config(settings, listener)
        self.policy = rule_policy(listener, scenario)
        self.settings: Final = settings
        self.engine = SMTPEngine(replace(judging, limits=None), Random(), trace, self.policy, EVENT_CELLS)
        """Talks to those who are trusted, or to all where nobody is judged."""
        self.judging = (
            SMTPEngine(judging, Random(), trace, self.policy, EVENT_CELLS)
            if settings.limits_clients
            else self.engine
        )
        self.admission: Final = AdmissionControl(settings, ledger) if settings.limits_clients else None
        self.parser: Final = proxy.parser() if listener.proxy else None
        self.proxies: Final = NetworkSet(settings.proxy_from)
        self.capacity: Final = capacity(settings.max_connections)
        """How many connections this process may have."""
        self.strict: Final = settings.strict
        self.limits = client_limits(settings)
        """What is borne of one client now."""
        self.stressed = False
        """Nearly as many are there, and clients have to hurry."""
        # One line a connection is too much for a sink that the world knocks at.
        self.note: Final = log.debug if settings.public else log.info
        self.counters: Final = counters
        self.tls: Final = tls
        self.certificates = scenario.certificates
        self.should_yield_accept: Final = should_yield_accept
        self.number: Final = number
        self.sent: Final[list[int]] = []
        """How many messages each client sent that has left since the last sweep."""
        self.connections: Final[set[Connection]] = set()
        self._loop: Final = IOLoop.current()
        self._complained = -float(LOG_INTERVAL)
        self._spare: int | None = None
        self._doors: Final[list[Acceptor]] = []
        self._client_log: Final = client_log

    def open(self, sockets: Sequence[socket.socket], selector: Selector) -> None:
        """Start to accept."""
        self._hold()
        for listening in sockets:
            self._doors.append(Acceptor(self, listening, selector))

    def follow(self, scenario: ActiveScenario) -> None:
        """Obey another scenario: whoever comes from now on; who is here from the next command outside a
        transaction."""
        judging = self.judging
        self.policy = rule_policy(self.listener, scenario)
        self.engine = self.engine.replace_policy(self.policy)
        self.judging = judging.replace_policy(self.policy) if self.settings.limits_clients else self.engine
        # Not those alone that its rules name: a handshake may be about to use another.
        self.certificates = {**self.certificates, **scenario.certificates}

    def take(self, fd: int, address: tuple[object, ...], selector: Selector) -> None:
        """A client is here."""
        if self.counters[OPEN] >= self.capacity:
            self.warn_limited("%d connections are open, and no more are taken", self.capacity)
            self.reject(socket.socket(fileno=fd))
            return
        stream = DirectStream(fd, selector, self._loop)
        self.handle_stream(stream, address)

    def reject(self, connection: socket.socket) -> None:
        """Tell a client that there is no room for it; it is not waited for."""
        with connection, suppress(OSError):
            if not self.listener.tls:
                if self.listener.proxy:  # a socket closed with its header unread would be reset
                    connection.recv(proxy.V2, socket.MSG_DONTWAIT)
                connection.send(TOO_MANY_CONNECTIONS.wire, socket.MSG_DONTWAIT)
                self.count(TOO_MANY_CONNECTIONS)

    def count(self, refusal: Reply) -> None:
        """A client heard this in place of a greeting."""
        self.counters[EVENT_CELLS.reply("CONNECT", refusal.code)] += 1

    def warn_limited(self, text: str, *values: object) -> None:
        """Log what may happen a thousand times a second, but not as often."""
        now = self._loop.time()
        if now - self._complained >= LOG_INTERVAL:
            self._complained = now
            log.warning(f"{self.listener}: {text}", *values)

    def _hold(self) -> None:
        """Keep a descriptor that can be given up, to tell a client that there are no more."""
        if self._spare is None:
            with suppress(OSError):
                self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    def reject_next(self, door: socket.socket) -> bool:
        """Descriptors have run out: tell the next client so; false where not even that can be done."""
        if self._spare is None:
            return False
        os.close(self._spare)
        self._spare = None
        try:
            connection, _ = door.accept()
        except OSError:
            return False
        finally:
            self._hold()
        self.reject(connection)
        self._hold()
        return True

    def handle_stream(self, stream: DirectStream, address: tuple[object, ...]) -> None:  # type: ignore[override]
        """Hand a stream to the coroutine that holds the conversation."""
        client = Connection(self, stream, str(address[0]) if address else "")
        self.connections.add(client)
        self.counters[self.number] += 1
        self.counters[OPEN] += 1
        stream.run(client.converse())

    def gone(self, client: Connection) -> None:
        """A connection has ended."""
        self.connections.discard(client)
        self.counters[OPEN] -= 1
        self.counters[RECEIVED] += client.heard - client.counted
        self.sent.append(client.session.messages)
        if client.usage is not None:
            client.usage.meter(OCTETS, client.heard - client.counted)
            client.usage.leave()
        if self._client_log is not None:
            self._note(client)
            self._client_log.forget(client)

    def measure(self) -> None:
        """Count what is costly to count one by one."""
        for histogram, values in (
            ("message_bytes", self.engine.sizes),
            ("message_bytes", self.judging.sizes),
            ("connection_messages", self.sent),
        ):
            record_values(self.counters, histogram, values)
            values.clear()

    def sweep(self) -> None:
        """Once a second: look for clients that take too long."""
        self.measure()
        self._hold()
        if self.settings.stress_timeout:
            share = self.counters[OPEN] / self.capacity
            if share >= STRESS_ON and not self.stressed:
                self.warn_limited("connections are running out, so clients have to hurry")
                self._press(True)
            elif share < STRESS_OFF and self.stressed:
                self._press(False)
        for client in list(self.connections):
            client.sweep()
        if self._client_log is not None:
            for client in self.connections:
                self._note(client)

    def _note(self, client: Connection) -> None:
        """Have it shown what a client did."""
        assert self._client_log is not None
        if self.parser is not None and to_bytes(client.peer) in self.proxies:
            return  # who is behind the proxy is not known yet, or nobody is
        self._client_log.update(client, client.peer, client.session.messages, client.session.violation_count)

    def _press(self, stressed: bool) -> None:
        """Begin to hurry clients, or to let them take their time."""
        self.stressed = stressed
        usual = client_limits(self.settings)
        self.limits = stressed_limits(usual) if stressed else usual
        for client in self.connections:
            if client.session.error_budget is not None:
                client.session.error_budget.limits = self.limits

    def abandon(self) -> None:
        """The process ends: whoever is still here is not to blame."""
        for client in self.connections:
            client.closed_by_server = True

    def shut(self) -> None:
        """Accept no more; close the sockets, in this process."""
        if self._spare is not None:
            os.close(self._spare)
            self._spare = None
        for door in self._doors:
            door.shut()

    def drain(self) -> None:
        """Send away whom nothing keeps here: who has no message under way."""
        for client in list(self.connections):
            client.leave()


class Acceptor:
    """One listening socket, which other workers may listen on too: accepts for its server.

    EPOLLEXCLUSIVE has the kernel wake one worker for a client and not all of them:
    the one that has listened longest. So one that has more clients than another
    stops to listen for a moment, which also puts it at the end of the queue. Of 200
    connections over four workers each gets 50, give or take 4; without this, one
    gets all when they come one by one.
    """

    def __init__(self, server: SMTPServer, listening: socket.socket, selector: Selector) -> None:
        self._server: Final = server
        self._socket: Final = listening
        self._selector: Final = selector
        self._loop: Final = asyncio.get_running_loop()
        self._open = True
        listening.setblocking(False)
        self._attach()

    def _attach(self) -> None:
        if self._open:
            # Exclusive: a client wakes one idle worker, not all of them.
            self._selector.attach(self._socket.fileno(), self, ACCEPT_EVENTS)

    def ready(self, events: int) -> None:
        """Somebody knocks."""
        should_yield_accept = self._server.should_yield_accept
        for _ in range(1 if should_yield_accept else ACCEPTS):
            try:
                # socket.accept() would ask two enumerations for the family and the type of each
                # connection, which takes a seventh of all the time a connection costs in here.
                fd, address = self._socket._accept()  # type: ignore[attr-defined]
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in EXHAUSTED:
                    self._server.warn_limited("cannot accept connections: %s", error.strerror)
                    if not self._server.reject_next(self._socket):
                        self._rest()
                    return
                # ECONNABORTED and whatever a network hands up through accept(2): that client is gone.
                continue
            self._server.take(fd, address, self._selector)
        if should_yield_accept is not None and self._open and should_yield_accept():
            self._selector.detach(self._socket.fileno())
            self._loop.call_later(YIELD_ACCEPT, self._attach)

    def _rest(self) -> None:
        """Out of descriptors or memory: let go for a moment."""
        self._selector.detach(self._socket.fileno())
        self._loop.call_later(PAUSE, self._attach)

    def shut(self) -> None:
        """Let nobody in any more."""
        if self._open:
            self._open = False
            self._selector.detach(self._socket.fileno())
            self._socket.close()
