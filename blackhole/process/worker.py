"""A worker: one event loop with an SMTP server for each listener, until it is told to stop."""

from __future__ import annotations

import asyncio
import logging
import resource
import select
import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from socket import socket
from typing import Any, Final

# Tornado imports this when a worker first asks for a loop. Imported here, the workers share its pages,
# and need not be able to read the installation.
import tornado.platform.asyncio  # noqa: F401

from blackhole.log_format import printable
from blackhole.messages.dkim_verification import DKIMKeys, SigningKey
from blackhole.metrics.counters import Counters, record_values
from blackhole.metrics.layout import CELL_INDEX, EventCells
from blackhole.metrics.namespace_counters import NamespaceState
from blackhole.net.accelerators import make_selector, stream_factory
from blackhole.net.client_table import ClientTable, ClientTableView
from blackhole.net.fleet_usage import FleetUsage
from blackhole.net.limit_log import LimitLog
from blackhole.net.listener_setup import make_recorder
from blackhole.net.namespace_accounts import NamespaceAccounts, NamespaceScenario
from blackhole.net.poller import LoopPoller, Poller
from blackhole.net.selector import Selector
from blackhole.net.server import SMTPServer, listener_address
from blackhole.net.server_namespaces import ServerNamespaces, listener_key
from blackhole.net.tls import TLSContexts
from blackhole.process import logs
from blackhole.process.domain_counter import DomainCounter
from blackhole.process.message_total import MessageTotal
from blackhole.process.namespace_scenarios import NamespaceScenarios
from blackhole.process.plan import ChildContext
from blackhole.process.transaction_log import TransactionLog
from blackhole.rules.outcomes import OutcomeStore, mark_if_never_retried
from blackhole.settings import Listener, OperatorError, Settings
from blackhole.smtp.engine_tables import TraceFunction
from blackhole.smtp.session import Session
from blackhole.store.active_scenario import ActiveScenario
from blackhole.store.control import INITIAL_NUMBER, ControlChannel, RuntimeOrder, effective_scenario
from blackhole.store.one_shot_rules import OneShotRule
from blackhole.store.recent import RecentRecords
from blackhole.store.redis_attempts import RedisAttemptStore

log = logging.getLogger(__name__)

RETIRE_SIGNAL: Final = signal.SIGUSR2
"""Tells a worker that another one has replaced it."""

FINAL_REPLY_TIMEOUT: Final = 0.3
"""Seconds from the 421 of a worker that retires to its end; less than `Timing.drain_grace`, after which
the supervisor kills it."""

CLOSE_INTERVAL: Final = 0.1
"""Seconds between two looks for connections that have become idle while the worker drains."""

EDGE_TRIGGERED: Final = select.EPOLLIN | select.EPOLLET
"""Wakes a worker once for each order: the pipe stays readable until the next one."""

SETS_PER_SECOND: Final = 64
"""Sets of the outcome table that a worker looks through in a second: all of them in nine minutes."""

CPU: Final = CELL_INDEX["cpu_microseconds"]
ACCEPTING: Final = CELL_INDEX["accepting"]
NEVER_RETRIED: Final = EventCells().violation("never-retried")


@dataclass(frozen=True, slots=True)
class WorkerContext:
    """What a worker gets from the service."""

    settings: Settings
    sockets: Mapping[Listener, Sequence[socket]]
    tls: Mapping[Listener, TLSContexts]
    scenario: ActiveScenario
    """As loaded from files; an order given at run time may replace it."""
    counters: Counters
    control: ControlChannel
    child: ChildContext
    clients: ClientTable | None = None
    """None where no limit by client is set."""
    limit_log: LimitLog | None = None
    """None where no limit on clients is set."""
    messages: MessageTotal | None = None
    """None where the server does not stop after a number of messages."""
    recent: RecentRecords | None = None
    """None where transactions are not recorded."""
    fleet_store: RedisAttemptStore | None = None
    """Where all machines of a fleet count what clients use; None where each counts for itself."""
    namespaces: NamespaceState | None = None
    """None where there are no namespaces."""
    dkim_keys: DKIMKeys = field(default_factory=dict[bytes, SigningKey])
    """The keys with which signatures are verified."""


def run(context: WorkerContext) -> None:
    """Serve until told to stop, in a process that has dropped root."""
    logs.limit_repeated_lines()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    selector = make_selector(context.settings.accelerators)
    with asyncio.Runner(loop_factory=selector.loop if selector is not None else None) as runner:
        runner.run(Worker(context, selector).serve())


def trace(session: Session, direction: str, line: bytes) -> None:
    """Log a line that was sent, with the client's address and the ids of its connection and transaction.

    Blackhole 1.x logged the id of the transaction with --debug.
    """
    client, shown = session.client or "unknown", printable(line)
    connection, transaction = f"{session.connection_id:010X}", f"{session.traced_id:010X}"
    fields = {"client": client, "connection": connection, "transaction": transaction, "line": shown}
    log.debug(
        "%s connection [%s] transaction [%s] %s: %s",
        *(client, connection, transaction, direction, shown),
        extra={"event": direction, "fields": fields},
    )


class Worker:
    """The SMTP servers of one process, and the work that is done for all of them once a second.

    asyncio.run(Worker(context, selector).serve())  # until one of WORKER_SIGNALS
    """

    def __init__(self, context: WorkerContext, selector: Selector | None = None) -> None:
        row, counters = context.child.row, context.counters
        self._context: Final = context
        self._selector: Final = selector
        self._cells: Final = counters.cells(row)
        self._set_applied_order: Final = partial(counters.set_applied_order, row)
        self._set_reading_order: Final = partial(counters.set_reading_order, row)
        clients = context.clients
        self._clients: Final = None if clients is None else ClientTableView(clients, row, counters.live_rows)
        client_log = counters.client_log if context.settings.show_clients else None
        self._client_log: Final = None if client_log is None else client_log.writer(row)
        self.servers: Final[list[SMTPServer]] = []
        self._stop: Final = asyncio.Event()
        self._draining = False
        self._run_ended = False
        self._transactions: Final = TransactionLog(counters) if context.settings.log_transactions else None
        stores = context.scenario.attempt_store, context.fleet_store
        self._stores: Final = {store for store in stores if isinstance(store, RedisAttemptStore)}
        fleet, settings = context.fleet_store, context.settings
        self._fleet_usage: Final = (
            None if fleet is None else FleetUsage(fleet, settings.fleet_name, settings.client_connections)
        )
        self._store_figures: Counter[str] = Counter()
        """The figures of the stores that the counters have."""
        self._cpu_recorded = 0
        """Microseconds of processor time that the counters have."""
        self._order = INITIAL_NUMBER
        """The number of the last order that was read."""
        self._one_shot_rules: tuple[OneShotRule, ...] = ()
        """Those of that order that still apply to some message."""
        self._namespaces: Final = self._make_namespaces(context.namespaces)
        self._in_force: tuple[RuntimeOrder, tuple[OneShotRule, ...], ActiveScenario] | None = None
        """What was ordered last for the whole server, and the scenario of it."""
        self._next_set = row * SETS_PER_SECOND
        """The set of the outcome table to look at next; each worker begins elsewhere."""

    def _make_namespaces(self, state: NamespaceState | None) -> NamespaceScenarios | None:
        if state is None:
            return None
        context, orders = self._context, state.directory.orders
        accounts = NamespaceAccounts(state.counters, context.child.row, orders.touch)
        return NamespaceScenarios(orders, context.scenario, context.counters, accounts)

    async def serve(self) -> None:
        """Accept connections until told to stop; then drain."""
        loop = asyncio.get_running_loop()
        for number, action in WORKER_SIGNALS.items():
            loop.add_signal_handler(number, action, self)
        # The pipe is readable once the master is gone, whatever ended it.
        loop.add_reader(self._context.child.master_alive_fd, self.drain)
        for store in self._stores:
            await store.open()
        poller = self._selector or LoopPoller()
        self._open_servers(*self._follow_orders(poller), poller)
        sweeping = loop.call_soon(self._sweep)
        await self._stop.wait()
        sweeping.cancel()
        # The terminal and the master may both send SIGINT; a loop that is half closed cannot take the second.
        signal.pthread_sigmask(signal.SIG_BLOCK, WORKER_SIGNALS)
        for server in self.servers:
            server.mark_closed_by_server()
            server.flush_histograms()
        self._record_cpu()
        await self._close_stores()

    async def _close_stores(self) -> None:
        if self._fleet_usage is not None:
            self._fleet_usage.sweep()
        for store in self._stores:
            await store.close()
        self._record_store_figures()

    def _follow_orders(self, poller: Poller) -> tuple[ActiveScenario, Mapping[bytes, NamespaceScenario]]:
        """Return what is in force, and from now on read every order. Raises OperatorError.

        The sequence matters: an order given meanwhile is either read below, or the process that gave
        it finds this worker accepting, and waits until the worker has applied it.
        """
        self._cells[ACCEPTING] = 1
        self._set_applied_order(INITIAL_NUMBER)
        poller.attach(self._context.control.wakeup_read, self, EDGE_TRIGGERED)
        in_force = self._read_order()
        self._set_applied_order(self._order)
        return in_force

    def _transaction_reader(self) -> Callable[[Any, bytes], None] | None:
        """Return what takes the record of each transaction, besides the recent ones; None for nothing."""
        readers: list[Callable[[Any, bytes], None]] = []
        if self._transactions is not None:
            readers.append(self._transactions.write)
        domain_log = self._context.counters.domain_log
        if domain_log is not None and self._context.settings.show_domains:
            writer = domain_log.writer(self._context.child.row)
            readers.append(DomainCounter(writer, time.monotonic).write)
        if len(readers) < 2:
            return readers[0] if readers else None

        def read_all(session: Any, record: bytes) -> None:
            for read in readers:
                read(session, record)

        return read_all

    def _open_servers(
        self, scenario: ActiveScenario, namespaces: Mapping[bytes, NamespaceScenario], poller: Poller
    ) -> None:
        """Start to accept connections."""
        settings, counters = self._context.settings, self._context.counters
        row = self._context.child.row
        open_connections = partial(counters.open_connections, row) if settings.workers > 1 else None
        hook: TraceFunction | None = trace if settings.debug else None
        make_stream = stream_factory(settings.accelerators, self._selector)
        recent = self._context.recent
        writer = None if recent is None else recent.writer(row)
        log_transaction = self._transaction_reader()
        for listener, sockets in self._context.sockets.items():
            address = listener_address(listener, sockets)
            server = SMTPServer(
                listener,
                settings.of_listener(listener),
                self._cells,
                self._context.tls.get(listener),
                hook,
                open_connections,
                scenario,
                counters.listener(address),
                self._clients,
                self._client_log,
                self._context.limit_log,
                make_recorder(settings, listener, address, writer, log_transaction)
                if writer is not None or log_transaction is not None
                else None,
                None if counters.evidence is None else counters.evidence.writer(row, settings.show_lines),
                self._fleet_usage,
                None
                if self._namespaces is None
                else ServerNamespaces(
                    settings.namespace_by, listener_key(address), self._namespaces.accounts, namespaces
                ),
                self._context.dkim_keys,
            )
            if self._context.messages is not None and settings.stop_after:
                server.collect_sizes(
                    self._context.messages.counted_sizes(
                        row, self._context.child.heartbeat, settings.stop_after, self.end_run
                    )
                )
            server.open(sockets, poller, make_stream)
            self.servers.append(server)

    def _sweep(self) -> None:
        """Do what is done once a second, without a timer for each connection."""
        self._context.counters.heartbeat(self._context.child.row)
        self._context.child.heartbeat.beat()
        if self._clients is not None:
            self._clients.sweep()
        if self._fleet_usage is not None:
            self._fleet_usage.sweep()
        if self._stores:
            self._record_store_figures()
        self._record_cpu()
        self.handle_events(0)
        outcomes = self._context.scenario.outcome_store
        # With a shared store, the retry that is missing here may have come to another machine, which does not
        # tell it unless they are a fleet.
        settings = self._context.settings
        alone = not settings.attempt_store.host or bool(settings.fleet.host)
        if outcomes is not None and alone and any(server.may_refuse for server in self.servers):
            self.find_missing_retries(outcomes, time.monotonic())
        for server in self.servers:
            server.sweep()
        if self._draining and not self._has_connections():
            self._stop.set()
        asyncio.get_running_loop().call_later(1, self._sweep)

    def find_missing_retries(self, outcomes: OutcomeStore, now: float) -> None:
        """Look through a part of the outcome table for messages that should have been retried by now."""
        for number in range(self._next_set, self._next_set + SETS_PER_SECOND):
            self._cells[NEVER_RETRIED] += sum(outcomes.sweep(number, now, mark_if_never_retried))
        self._next_set += SETS_PER_SECOND

    def _record_cpu(self) -> None:
        """Count the processor time used since the last call."""
        used = time.process_time_ns() // 1000
        self._cells[CPU] += used - self._cpu_recorded
        self._cpu_recorded = used

    def _record_store_figures(self) -> None:
        """Count the questions to stores, and those without an answer, since the last call."""
        figures: Counter[str] = Counter()
        for store in self._stores:
            figures.update(store.circuit.figures())
            record_values(self._cells, "store_seconds", store.circuit.waits)
            store.circuit.waits.clear()
        for name, count in figures.items():
            self._cells[CELL_INDEX[name]] += count - self._store_figures[name]
        self._store_figures = figures

    def _has_connections(self) -> bool:
        return any(server.connections for server in self.servers)

    # Orders given at run time.

    def handle_events(self, events: int) -> None:
        """Apply the order in force; called by the selector at each order, and once a second."""
        control = self._context.control
        used_up = self._namespaces is not None and self._namespaces.is_used_up
        if (
            control.number == self._order
            and all(map(control.remaining, self._one_shot_rules))
            and not used_up
        ):
            return
        try:
            scenario, namespaces = self._read_order()
        except OperatorError as error:
            log.error("order %d cannot be followed: %s", self._order, error)
            self._set_reading_order(None)
            return
        for server in self.servers:
            server.apply_scenario(scenario, namespaces)
        self._set_applied_order(self._order)

    def _read_order(self) -> tuple[ActiveScenario, Mapping[bytes, NamespaceScenario]]:
        """Return the scenario in force, with a counter for each of its rules, and those of the namespaces.

        Raises OperatorError.
        """
        control = self._context.control
        self._set_reading_order(control.number)  # the master drops an order that a worker dies of
        self._order, order = control.read()
        self._one_shot_rules = tuple(filter(control.remaining, order.one_shot_rules))
        of_server = replace(order, namespaces=(), changed="")
        known = self._in_force
        if known is not None and known[:2] == (of_server, self._one_shot_rules):
            found = known[2]  # only a namespace has changed
        else:
            found = effective_scenario(order, self._context.scenario, control)
            found = found.counted(self._context.counters)
            self._in_force = of_server, self._one_shot_rules, found
        namespaces = {} if self._namespaces is None else self._namespaces.read(order)
        if self._transactions is not None:
            self._transactions.update_rules()
        return found, namespaces

    # Stopping.

    def end_run(self) -> None:
        """Stop serving clients after the last of `stop_after` messages. The master then stops all workers."""
        if not self._run_ended:
            self._run_ended = True
            # Not at once: the reply to the message that was the last has not left.
            asyncio.get_running_loop().call_soon(self._stop_serving)

    def _stop_serving(self) -> None:
        for server in self.servers:
            server.stop_accepting()
            server.drain()

    def drain(self) -> None:
        """Stop accepting, close idle connections, and let messages under way be finished."""
        self._stop_accepting()
        asyncio.get_running_loop().call_later(self._context.settings.drain_timeout, self.stop)
        self._close_idle()

    def retire(self) -> None:
        """Stop accepting, and let clients go on until they quit or the drain timeout has passed."""
        self._stop_accepting()
        loop, timeout = asyncio.get_running_loop(), self._context.settings.drain_timeout
        loop.call_later(timeout, self._close_idle)
        loop.call_later(timeout + FINAL_REPLY_TIMEOUT, self.stop)

    def stop(self) -> None:
        """Stop now."""
        self._stop.set()

    def reopen_log(self) -> None:
        """Open the log file again after its rotation."""
        logs.reopen()

    def _stop_accepting(self) -> None:
        asyncio.get_running_loop().remove_reader(self._context.child.master_alive_fd)
        self._cells[ACCEPTING] = 0
        for server in self.servers:
            server.stop_accepting()
        self._draining = True

    def _close_idle(self) -> None:
        """Close connections without a message under way; again and again, until none is left."""
        for server in self.servers:
            server.drain()
        if self._has_connections():
            asyncio.get_running_loop().call_later(CLOSE_INTERVAL, self._close_idle)
        else:
            self._stop.set()


WORKER_SIGNALS: Final[dict[signal.Signals, Callable[[Worker], None]]] = {
    signal.SIGTERM: Worker.drain,
    signal.SIGINT: Worker.stop,
    signal.SIGQUIT: Worker.stop,
    signal.SIGUSR1: Worker.reopen_log,
    RETIRE_SIGNAL: Worker.retire,
}
"""The signals of a worker, and what each does."""
