"""What one forked SMTP worker does: drop root, run its servers, sweep, and drain when it is told to stop."""

from __future__ import annotations

import asyncio
import logging
import resource
import select
import signal
import ssl
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from socket import socket
from typing import Final

import tornado.platform.asyncio  # noqa: F401 - likewise

from blackhole.metrics.counters import Counters, record
from blackhole.metrics.layout import CELL_INDEX
from blackhole.net import tls
from blackhole.net.client_table import ClientTable, ClientTableView
from blackhole.net.direct import Selector
from blackhole.net.server import SMTPServer, address
from blackhole.process.logs import limit_repeated_lines, printable, reopen
from blackhole.process.supervisor import ChildContext
from blackhole.rules.retries import OutcomeStore, mark_if_never_retried
from blackhole.rules.scenario import NONE, Scenario
from blackhole.settings import Listener, OperatorError, Settings
from blackhole.smtp.session import Session, TraceFunction
from blackhole.smtp.state import ACCUSED
from blackhole.smtp.violations import NUMBER
from blackhole.store.control import INITIAL_NUMBER, ControlChannel, OneShotRule, effective_scenario
from blackhole.store.redis_attempts import RedisAttemptStore

log = logging.getLogger(__name__)

RETIRE_SIGNAL: Final = signal.SIGUSR2
"""Tells a worker that others have taken its place."""

WORKER_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1, RETIRE_SIGNAL)
"""The signals that mean something to a worker."""

PARTING: Final = 0.3
"""Seconds for the last words of one who retires; shorter than the master's patience with him."""
CPU: Final = CELL_INDEX["cpu_microseconds"]
OBEYS: Final = CELL_INDEX["applied_order"]

RINGS: Final = select.EPOLLIN | select.EPOLLET
"""Each time the bell is rung, and not as long as it sounds."""

MISSED: Final = ACCUSED + NUMBER["never-retried"]

SETS: Final = 64
"""Of the memory of what became of messages, which are visited in a second: all of them in nine minutes."""

Bound = Mapping[Listener, Sequence[socket]]


def run(
    settings: Settings,
    sockets: Bound,
    tls: ssl.SSLContext | None,
    stats: Counters,
    context: ChildContext,
    scenario: Scenario = NONE,
    clients: ClientTable | None = None,
    orders: ControlChannel | None = None,
) -> None:
    """The whole life of a worker that has left root behind.

    `clients` are counted where they are given; `orders` may come where there is a map for them.
    """
    limit_repeated_lines()
    _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    ledger = ClientTableView(clients, context.row, stats.live_rows) if clients is not None else None
    cells = stats.cells(context.row)
    selector = Selector(lambda waited, served: meter(cells, waited, served))
    with asyncio.Runner(loop_factory=selector.loop) as runner:
        orders = orders or ControlChannel()
        runner.run(Worker(settings, sockets, tls, stats, context, selector, scenario, orders, ledger).live())


def meter(cells: memoryview, waited: int, served: int) -> None:
    """Count where the time of one turn of a client went, from nanoseconds."""
    record(cells, "client_think_seconds", waited // 1000)
    record(cells, "service_seconds", served // 1000)


def trace(session: Session, direction: str, line: bytes) -> None:
    """For --debug: a line of the conversation, under the transaction's id, as 1.x wrote it."""
    log.debug("[%010X] %s: %s", session.id, direction, printable(line))


class Worker:
    """One process's servers, and the once-a-second work for them."""

    def __init__(
        self,
        settings: Settings,
        sockets: Bound,
        tls: ssl.SSLContext | None,
        stats: Counters,
        context: ChildContext,
        selector: Selector,
        scenario: Scenario,
        orders: ControlChannel,
        ledger: ClientTableView | None,
    ) -> None:
        self.settings: Final = settings
        self.sockets: Final = sockets
        self.tls: Final = tls
        self.stats: Final = stats
        self.context: Final = context
        self.selector: Final = selector
        self.scenario: Final = scenario
        """What was loaded; an order may have put another into its place."""
        self.orders: Final = orders
        self.ledger: Final = ledger
        client_log = stats.client_log if settings.show_clients else None
        self.client_log: Final = None if client_log is None else client_log.writer(context.row)
        self.servers: Final[list[SMTPServer]] = []
        self._stop: Final = asyncio.Event()
        self._hurry = False
        self._spent = 0
        """Microseconds of processor time that are counted."""
        self._number = INITIAL_NUMBER
        """Of the order that was read last."""
        self._one_shot_rules: tuple[OneShotRule, ...] = ()
        """Its rules that are to speak some times more."""
        self._visited = context.row * SETS
        """Sets of that memory; each worker begins elsewhere."""

    async def live(self) -> None:
        """Accept until told to stop; then drain."""
        loop = asyncio.get_running_loop()
        for number, action in zip(
            WORKER_SIGNALS, (self._drain, self._quit, self._quit, reopen, self._retire), strict=True
        ):
            loop.add_signal_handler(number, action)
        # The pipe's other end is the master's: it closes when the master is gone, however it went.
        loop.add_reader(self.context.master_alive_fd, self._drain)
        memory = self.scenario.memory
        if isinstance(memory, RedisAttemptStore):
            await memory.open()
        counters = self.stats.cells(self.context.row)
        counters[CELL_INDEX["accepting"]] = 1
        # In this sequence: whoever orders something now either is read below, or sees us here and waits.
        counters[OBEYS] = INITIAL_NUMBER
        self.selector.attach(self.orders.wakeup_read, self, RINGS)
        scenario = self._scenario()
        counters[OBEYS] = self._number
        should_yield_accept = (
            partial(self.stats.should_yield_accept, self.context.row) if self.settings.workers > 1 else None
        )
        hook: TraceFunction | None = trace if self.settings.debug else None
        for listener, sockets in self.sockets.items():
            counted = self.stats.listener(address(listener, sockets))
            server = SMTPServer(
                listener,
                self.settings,
                counters,
                self.tls,
                hook,
                should_yield_accept,
                scenario,
                counted,
                self.ledger,
                self.client_log,
            )
            server.open(sockets, self.selector)
            self.servers.append(server)
        sweeping = loop.call_soon(self._sweep)
        await self._stop.wait()
        sweeping.cancel()
        # The terminal's Ctrl-C and the master's word may both come; a loop that is half closed
        # cannot take the second.
        signal.pthread_sigmask(signal.SIG_BLOCK, WORKER_SIGNALS)
        for server in self.servers:
            server.abandon()
            server.measure()
        self._spend(counters)
        if isinstance(memory, RedisAttemptStore):
            await memory.close()

    def _sweep(self) -> None:
        """Once a second, and no timer per connection besides."""
        self.stats.heartbeat(self.context.row)
        if self.ledger is not None:
            self.ledger.sweep()
        self._spend(self.stats.cells(self.context.row))
        self.selector.pace()
        self.ready(0)
        past = self.scenario.past
        # Where there are more machines, what is missed here may have come again there.
        alone = not self.settings.attempt_store.host
        if past is not None and alone and any(server.engine.policy.may_refuse for server in self.servers):
            self._visit(past, time.monotonic())
        for server in self.servers:
            server.sweep()
        if self._hurry and not any(server.connections for server in self.servers):
            self._stop.set()
        asyncio.get_running_loop().call_later(1, self._sweep)

    def ready(self, events: int) -> None:
        """The bell was rung, or another second has passed: follow the order in force."""
        orders = self.orders
        if orders.number == self._number and all(map(orders.remaining, self._one_shot_rules)):
            return
        try:
            scenario = self._scenario()
        except OperatorError as error:
            log.error("order %d cannot be followed: %s", self._number, error)
            return
        for server in self.servers:
            server.follow(scenario)
        self.stats.cells(self.context.row)[OBEYS] = self._number

    def _scenario(self) -> Scenario:
        """What is in force now. Raises OperatorError."""
        self._number, order = self.orders.read()
        self._one_shot_rules = tuple(filter(self.orders.remaining, order.one_shot_rules))
        found = effective_scenario(order, self.scenario, self.orders, tls.showing)
        cells = self.stats.rule_counters(rule.name for rule in found.rules)
        rules = (replace(rule, counter=cell) for rule, cell in zip(found.rules, cells, strict=True))
        return replace(found, rules=tuple(rules))

    def _visit(self, past: OutcomeStore, now: float) -> None:
        """Look through a part of what is remembered for what should have come again by now."""
        for number in range(self._visited, self._visited + SETS):
            self.stats.cells(self.context.row)[MISSED] += sum(past.sweep(number, now, mark_if_never_retried))
        self._visited += SETS

    def _spend(self, counters: memoryview) -> None:
        """Count the processor time that passed since the last time."""
        spent = time.process_time_ns() // 1000
        counters[CPU] += spent - self._spent
        self._spent = spent

    def _drain(self) -> None:
        """Stop accepting at once; let messages under way come to their end."""
        self._shut()
        asyncio.get_running_loop().call_later(self.settings.drain_timeout, self._quit)
        self._leave()

    def _retire(self) -> None:
        """Stop accepting, for others do; let the clients here go on until they leave or the time is up."""
        self._shut()
        loop = asyncio.get_running_loop()
        loop.call_later(self.settings.drain_timeout, self._leave)
        loop.call_later(self.settings.drain_timeout + PARTING, self._quit)

    def _shut(self) -> None:
        asyncio.get_running_loop().remove_reader(self.context.master_alive_fd)
        self.stats.cells(self.context.row)[CELL_INDEX["accepting"]] = 0
        for server in self.servers:
            server.shut()
        self._hurry = True

    def _leave(self) -> None:
        """Send away whoever has no message under way; again soon, until nobody is left."""
        for server in self.servers:
            server.drain()
        if any(server.connections for server in self.servers):
            asyncio.get_running_loop().call_later(0.1, self._leave)
        else:
            self._stop.set()

    def _quit(self) -> None:
        """Stop now."""
        self._stop.set()
