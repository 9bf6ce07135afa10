"""The memory that all processes of a server share, made by the master before it forks."""

from __future__ import annotations

import os
from dataclasses import astuple, replace

from blackhole.metrics.counters import Counters
from blackhole.metrics.namespace_counters import NamespaceCounters, NamespaceState
from blackhole.net.client_table import ClientTable
from blackhole.net.limit_log import LimitLog
from blackhole.net.rules_in_force import needs_attempt_store, tracks_retries
from blackhole.net.server import listener_address
from blackhole.process.configuration import Configuration
from blackhole.process.message_total import MessageTotal
from blackhole.settings import RedisSettings, Settings
from blackhole.store.active_scenario import ActiveScenario
from blackhole.store.attempts import AttemptTable
from blackhole.store.client_log import ClientLog
from blackhole.store.control import ControlChannel
from blackhole.store.domain_log import DomainLog
from blackhole.store.namespaces import NamespaceDirectory, NamespaceOrders
from blackhole.store.outcome_table import OutcomeTable
from blackhole.store.recent import RecentRecords
from blackhole.store.redis_attempts import RedisAttemptStore
from blackhole.store.server_facts import ServerFacts
from blackhole.store.shared_outcomes import SharedOutcomeTable


class SharedState:
    """Counters and tables. A table is made when a configuration first needs it, and then stays."""

    def __init__(self, rows: int) -> None:
        """Make the counters, with a row for each of at most `rows` child processes."""
        self.counters = Counters(rows)
        self.control = ControlChannel()
        self.facts = ServerFacts()
        """What other processes may know of the server."""
        self.machine_id = f"{os.uname().nodename}:{os.urandom(6).hex()}"
        """Names this start of the server in a fleet: no other start has the same."""
        self._clients: ClientTable | None = None
        self.limit_log: LimitLog | None = None
        self.messages: MessageTotal | None = None
        self._attempts: AttemptTable | None = None
        self._outcomes: OutcomeTable | None = None
        """What became of each message. In a table of its own, so as not to displace what rules read."""
        self._recent: dict[int, RecentRecords] = {}
        """The last transactions, by how many are kept."""
        self._namespaces: NamespaceState | None = None
        self._redis_stores: dict[RedisSettings, RedisAttemptStore] = {}

    def prepare(self, configuration: Configuration) -> None:
        """Make what the workers and the dashboard of a configuration need."""
        settings = configuration.settings
        for listener, sockets in configuration.bound.items():
            self.counters.listener(listener_address(listener, sockets))
        if settings.counts_clients and self._clients is None:
            self._clients = ClientTable(self.counters.rows)
        if settings.limits_clients and self.limit_log is None:
            self.limit_log = LimitLog()
        if settings.stop_after and self.messages is None:
            self.messages = MessageTotal(self.counters.rows)
        if settings.show_clients and self.counters.client_log is None:
            self.counters.client_log = ClientLog(self.counters.rows)
        if settings.show_domains and self.counters.domain_log is None:
            self.counters.domain_log = DomainLog(self.counters.rows)
        if settings.recent and settings.recent not in self._recent:
            self._recent[settings.recent] = RecentRecords(self.counters.rows, settings.recent)
        if settings.namespace_by and self._namespaces is None:
            directory = NamespaceDirectory(self.control, NamespaceOrders())
            self._namespaces = NamespaceState(directory, NamespaceCounters(self.counters.rows))
        self._prepare_stores(configuration)

    def _prepare_stores(self, configuration: Configuration) -> None:
        settings, bound, scenario = configuration.settings, configuration.bound, configuration.scenario
        # Through the dashboard a scenario may be loaded that needs a table the configured one does not.
        has_dashboard = bool(configuration.dashboard_sockets)
        if self._attempts is None and (has_dashboard or needs_attempt_store(bound, scenario)):
            self._attempts = AttemptTable(self.counters.rows)
        if settings.fleet.host and not isinstance(self._outcomes, SharedOutcomeTable):
            self._outcomes = SharedOutcomeTable(self.counters.rows)
        elif self._outcomes is None and (has_dashboard or tracks_retries(bound, scenario)):
            self._outcomes = OutcomeTable()
        for store in settings.attempt_store, _fleet_settings(settings):
            if store.host and store not in self._redis_stores:
                self._redis_stores[store] = RedisAttemptStore(store)

    def release_row(self, row: int) -> None:
        """Release the concurrency slots that a dead process held."""
        if self._attempts is not None:
            self._attempts.clear_row(row)

    def recent(self, configuration: Configuration) -> RecentRecords | None:
        """Return the last transactions, or None if they are not recorded."""
        return self._recent.get(configuration.settings.recent)

    def forget_unused(self, configuration: Configuration) -> None:
        """Forget what no process of a configuration shows, after a reload."""
        if not configuration.settings.show_clients:
            self.counters.client_log = None
        if not configuration.settings.show_domains:
            self.counters.domain_log = None
        for kept in self._recent.keys() - {configuration.settings.recent}:
            del self._recent[kept]

    def namespace_state(self, configuration: Configuration) -> NamespaceState | None:
        """Return what namespaces need; None if there are none."""
        return self._namespaces if configuration.settings.namespace_by else None

    def clients(self, configuration: Configuration) -> ClientTable | None:
        """Return the table of what each client uses, or None if no limit by client is set."""
        return self._clients if configuration.settings.counts_clients else None

    def fleet_store(self, configuration: Configuration) -> RedisAttemptStore | None:
        """Return the store of what clients use on all machines; None if each machine counts for itself."""
        return self._redis_stores.get(_fleet_settings(configuration.settings))

    def shared_outcomes(self, configuration: Configuration) -> SharedOutcomeTable | None:
        """Return the outcomes that the machines of a fleet exchange; None if there is no fleet."""
        outcomes = self._outcomes
        in_fleet = configuration.settings.fleet.host
        return outcomes if in_fleet and isinstance(outcomes, SharedOutcomeTable) else None

    def attach(self, configuration: Configuration, row: int) -> ActiveScenario:
        """Return the scenario of a configuration with the stores that its rules use, in a worker."""
        scenario = replace(configuration.scenario, outcome_store=self._outcomes)
        shared = self.shared_outcomes(configuration)
        if shared is not None:
            shared.set_ring(row)
        if self._attempts is None:
            return scenario
        self._attempts.set_row(row)
        store = self._redis_stores.get(configuration.settings.attempt_store) or self._attempts
        return replace(scenario, attempt_store=store)


def _fleet_settings(settings: Settings) -> RedisSettings:
    """Return the store that a worker needs for the limits by client of a fleet; without a host, none."""
    if not (settings.fleet.host and settings.counts_clients):
        return RedisSettings()
    return RedisSettings(*astuple(settings.fleet))
