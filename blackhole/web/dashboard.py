"""The dashboard process: samples the counters once a second, and serves HTTP.

It is never in the path of mail: it reads the counters that workers write, and publishes orders that
they apply in their own time. It is open to whoever can reach it, so it limits requests in number, size and
time, and refuses those that come from pages of other sites.
"""

from __future__ import annotations

import asyncio
import logging
import math
import resource
import signal
import socket
import ssl
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final

from blackhole.fleet.member import FleetMember
from blackhole.fleet.outcomes import OutcomeExchange
from blackhole.fleet.store import FleetStore
from blackhole.fleet.window_clock import WindowClock
from blackhole.metrics.counters import Counters
from blackhole.metrics.namespace_counters import NamespaceState
from blackhole.metrics.transaction_reader import TransactionReader
from blackhole.net.menu_certificates import MenuCertificates
from blackhole.net.tls import TLSContexts
from blackhole.process.logs import limit_repeated_lines, reopen
from blackhole.process.message_total import MessageTotal
from blackhole.process.plan import ChildContext
from blackhole.process.tls_configuration import DashboardTLS
from blackhole.rules.scenario import ScenarioSource
from blackhole.settings import Settings
from blackhole.store.active_scenario import ActiveScenario
from blackhole.store.control import ControlChannel
from blackhole.store.recent import RecentRecords
from blackhole.store.shared_outcomes import SharedOutcomeTable
from blackhole.web.app import make_application
from blackhole.web.base_handler import AllowedHosts
from blackhole.web.control import ScenarioControl
from blackhole.web.control_handlers import APPLY_TIMEOUT, OrderHandler
from blackhole.web.events import EventStream
from blackhole.web.fleet_control import FleetControl
from blackhole.web.fleet_namespaces import FleetNamespaces
from blackhole.web.history import History
from blackhole.web.namespaces import Namespaces
from blackhole.web.order_check import DASHBOARD_SIGNALS
from blackhole.web.server import make_server
from blackhole.web.static_files import StaticFile
from blackhole.web.stats_view import StatsView
from blackhole.web.tls_orders import TLSOrders

log = logging.getLogger(__name__)

ORDER_TIMEOUT: Final = APPLY_TIMEOUT + 1
"""Seconds for orders under way to be answered, when another process has taken over."""

ORDER_POLL: Final = 0.02
"""Seconds between two looks at the orders under way."""

SEND_BUFFER: Final = 65536
"""Octets that the kernel keeps for a client that does not read."""


class Dashboard:
    """The process. Everything that it needs was read and imported before."""

    def __init__(
        self,
        settings: Settings,
        counters: Counters,
        history: History,
        files: Mapping[str, StaticFile],
        context: ChildContext,
        active: ActiveScenario,
        profiles: Iterable[ScenarioSource],
        channel: ControlChannel,
        machine: str,
        contexts: Collection[TLSContexts],
        menu: MenuCertificates | None,
        recent: RecentRecords | None = None,
        messages: MessageTotal | None = None,
        outcomes: SharedOutcomeTable | None = None,
        namespaces: NamespaceState | None = None,
    ) -> None:
        """`active` is that of the configuration, `machine` the id of this server in a fleet, `contexts` are
        those of the listeners, and `menu` the certificates of the TLS menu.

        `messages` is the total that ends the server, if one does, and `outcomes` is what the machines of a
        fleet exchange.
        """
        self._settings, self._counters, self._context = settings, counters, context
        self._fleet: Final = self._make_member(machine, channel, active) if settings.fleet.host else None
        tls = TLSOrders(settings, contexts, menu)
        parts = settings, active.scenario, profiles, channel, counters, tls
        if self._fleet is not None and messages is not None:
            fleet = self._fleet
            fleet.counted = lambda: messages.set_elsewhere(fleet.elsewhere)
        self._control: Final = (
            FleetControl(*parts, self._fleet)
            if self._fleet is not None and settings.fleet_control
            else ScenarioControl(*parts)
        )
        self._exchange: Final = (
            None
            if self._fleet is None or outcomes is None
            else OutcomeExchange(self._fleet.store, machine, outcomes, self._machines_alive)
        )
        self._stats: Final = StatsView(settings, counters, history, self._control.state)
        self._namespaces: Final = (
            None if namespaces is None else self._make_namespaces(namespaces, settings, counters)
        )
        self._files: Final = files
        self._hosts: Final = AllowedHosts(settings)
        self._tls: Final = tls
        self._recent: Final = None if recent is None else TransactionReader(recent, counters.rule_names)

    def _make_member(self, machine: str, channel: ControlChannel, active: ActiveScenario) -> FleetMember:
        store = FleetStore(self._settings.fleet, self._settings.fleet_name)
        windows = WindowClock.of_rules(store, channel, active.all_rules, active.clock_origin)
        return FleetMember(store, machine, self._counters.snapshot, lambda: self._stats.machine(), windows)

    def _machines_alive(self) -> int:
        return 1 if self._fleet is None else self._fleet.alive

    def _make_namespaces(self, state: NamespaceState, settings: Settings, counters: Counters) -> Namespaces:
        if isinstance(self._control, FleetControl) and self._fleet is not None:
            return FleetNamespaces(state, settings, self._control, counters, self._fleet)
        return Namespaces(state, settings, self._control, counters)

    def run(self, sockets: Sequence[socket.socket], tls: DashboardTLS | None) -> None:
        """Serve until a signal or the end of the master."""
        logging.getLogger("tornado").setLevel(logging.ERROR)  # mistakes of clients are not worth a warning
        limit_repeated_lines()
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        with asyncio.Runner() as runner:
            runner.run(self._serve(sockets, None if tls is None else tls.context))

    async def _serve(self, sockets: Sequence[socket.socket], tls: ssl.SSLContext | None) -> None:
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            loop.add_signal_handler(number, stop.set)
        loop.add_signal_handler(signal.SIGUSR1, reopen)
        # The master holds the other end of this pipe: it becomes readable when the master ends.
        loop.add_reader(self._context.master_alive_fd, stop.set)
        self._events = EventStream(self._stats, self._control.choices, self._namespaces)
        orders: set[OrderHandler] = set()
        application = make_application(
            {
                "hosts": self._hosts,
                "files": self._files,
                "stats": self._stats,
                "control": self._control,
                "orders": orders,
                "events": self._events,
                "waiting": set(),
                "fleet": self._fleet,
                "recent": self._recent,
                "followers": set(),
                "tls": self._tls,
                "namespaces": self._namespaces,
            },
            self._settings.dashboard_path,
        )
        server = self._server = make_server(application, tls)
        for listening in sockets:  # connections inherit it
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        server.add_sockets(sockets)
        self._sample(2)
        tasks = self._start_fleet()
        await stop.wait()
        server.stop()
        deadline = loop.time() + ORDER_TIMEOUT
        while orders and loop.time() < deadline:
            await asyncio.sleep(ORDER_POLL)
        for task in tasks:
            task.cancel()
        if self._fleet is not None:
            await self._fleet.leave(self._settings.drain_timeout)
        # A loop that is half closed cannot take another signal.
        signal.pthread_sigmask(signal.SIG_BLOCK, DASHBOARD_SIGNALS)

    def _start_fleet(self) -> list[asyncio.Task[None]]:
        """Start what the fleet needs, if there is one."""
        work = [] if self._fleet is None else [self._fleet.run()]
        if isinstance(self._control, FleetControl):
            others = []
            if isinstance(self._namespaces, FleetNamespaces):
                others.append(self._namespaces.obey)
                work.append(self._namespaces.follow())
            work.append(self._control.follow(*others))
        if self._exchange is not None:
            work.append(self._exchange.run())
        tasks = [asyncio.create_task(one) for one in work]
        for task in tasks:
            task.add_done_callback(_log_error)
        return tasks

    def _sample(self, pause: int = 1) -> None:
        """Sample the counters, and again `pause` seconds later, on the full second.

        The first pause is longer, so that no part of a second is taken for a whole one.
        """
        loop = asyncio.get_running_loop()
        self._counters.heartbeat(self._context.row)
        self._context.heartbeat.beat()
        self._stats.sample()
        self._events.publish()
        self._server.sweep()
        if self._namespaces is not None:
            self._namespaces.remove_unused()
        loop.call_at(math.floor(loop.time()) + pause, self._sample)


def _log_error(task: asyncio.Task[None]) -> None:
    """Log why a task has ended that should not: nobody waits for it."""
    if not task.cancelled():
        log.critical("the fleet is left: %r", task.exception(), exc_info=task.exception())
