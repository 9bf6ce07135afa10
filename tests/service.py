"""A server with one listener in the test's own process: for what can be seen only from within."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from blackhole.metrics.counters import Counters
from blackhole.metrics.layout import CELL_INDEX
from blackhole.net import server
from blackhole.net.accelerators import make_selector, stream_factory
from blackhole.net.acceptor import bind
from blackhole.net.client_table import ClientTableView
from blackhole.net.poller import LoopPoller
from blackhole.net.tls import TLSContexts
from blackhole.rules import scenario
from blackhole.rules.scenario import Scenario
from blackhole.settings import Listener, Settings
from blackhole.store.active_scenario import ActiveScenario
from blackhole.store.attempts import AttemptTable
from blackhole.store.outcome_table import OutcomeTable
from blackhole.store.redis_attempts import RedisAttemptStore
from tests.transcript import REPLY_TIMEOUT


class Service:
    """A server with one listener, in a thread of its own, swept as a worker sweeps it, ten times as often."""

    def __init__(
        self,
        settings: Settings,
        listener: Listener,
        contexts: TLSContexts | None,
        ledger: ClientTableView | None = None,
    ) -> None:
        self.settings = settings
        self.listener = replace(listener, host="127.0.0.1", port=0)
        self.contexts = contexts
        self.ledger = ledger
        self.stats = Counters(1)
        self.cells = self.stats.cells(self.stats.allocate_row())
        self.sockets = bind(self.listener, 128)
        self.address: tuple[str, int] = self.sockets[0].getsockname()
        self.selector = make_selector(settings.accelerators)
        self.ready = threading.Event()
        self.thread = threading.Thread(target=self.run)
        self.thread.start()
        assert self.ready.wait(REPLY_TIMEOUT)

    def run(self) -> None:
        with asyncio.Runner(loop_factory=self.selector.loop if self.selector else None) as runner:
            runner.run(self.live())

    async def live(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.over = asyncio.Event()
        rules = scenario.load_rules(self.settings.scenario, self.settings.set)
        fleet = RedisAttemptStore(self.settings.attempt_store) if self.settings.attempt_store.host else None
        if fleet is not None:
            await fleet.open()
        active = ActiveScenario(Scenario(rules), time.monotonic(), fleet or AttemptTable(), OutcomeTable())
        self.server = server.SMTPServer(
            self.listener,
            self.settings,
            self.cells,
            self.contexts,
            None,
            scenario=active,
            client_table=self.ledger,
        )
        make_stream = stream_factory(self.settings.accelerators, self.selector)
        self.server.open(self.sockets, self.selector or LoopPoller(), make_stream)
        self.ready.set()
        while not self.over.is_set():
            self.server.sweep()
            with suppress(TimeoutError):
                await asyncio.wait_for(self.over.wait(), 0.1)
        self.server.stop_accepting()
        for connection in list(self.server.connections):
            connection.close()
        await asyncio.sleep(0)
        if fleet is not None:
            await fleet.close()

    def do(self, action: Callable[[], object]) -> None:
        """Let the loop do it, and wait until it has."""
        done = threading.Event()
        self.loop.call_soon_threadsafe(lambda: (action(), done.set()))
        assert done.wait(REPLY_TIMEOUT)

    def open(self) -> int:
        """Connections that are open now, as the counters have it."""
        return int(self.cells[CELL_INDEX["open"]])

    def settle(self) -> None:
        """Wait until the last client is gone."""
        until = time.monotonic() + REPLY_TIMEOUT
        while self.open() and time.monotonic() < until:
            time.sleep(0.005)

    def close(self) -> None:
        """Stop; all connections must have ended by themselves, as all clients are gone."""
        self.settle()
        left = self.open()
        self.loop.call_soon_threadsafe(self.over.set)
        self.thread.join(REPLY_TIMEOUT)
        assert not self.thread.is_alive()
        assert (left, len(self.server.connections)) == (0, 0)


Serve = Callable[..., Service]
"""Start a service: options as on the command line, and `secure` for TLS from the first octet."""
