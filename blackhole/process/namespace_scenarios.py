"""The scenarios of namespaces in a worker, made of their orders."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Final, NamedTuple

from blackhole.net.namespace_accounts import NamespaceAccounts, NamespaceScenario
from blackhole.settings import OperatorError
from blackhole.store.active_scenario import ActiveScenario, RuleCounters
from blackhole.store.control import NamespaceEntry, RuntimeOrder, effective_scenario, with_window_clock
from blackhole.store.namespaces import NamespaceOrders
from blackhole.store.one_shot_rules import OneShotRule, UseBudgets

log = logging.getLogger(__name__)


class KnownNamespace(NamedTuple):
    """A namespace as it was read last."""

    namespace: NamespaceScenario
    one_shot_rules: tuple[OneShotRule, ...]
    """Those that still apply to some message."""
    budgets: UseBudgets

    @property
    def is_used_up(self) -> bool:
        """Whether a one-shot rule applies no more that did when the namespace was read."""
        return not all(map(self.budgets.remaining, self.one_shot_rules))


class NamespaceScenarios:
    """Reads what is in force in each namespace: again only what has changed.

    `loaded` is the scenario of the configuration. `counters` gives rules their counters.
    """

    def __init__(
        self,
        orders: NamespaceOrders,
        loaded: ActiveScenario,
        counters: RuleCounters,
        accounts: NamespaceAccounts,
    ) -> None:
        self._orders, self._loaded, self._counters = orders, loaded, counters
        self.accounts: Final = accounts
        self._known: dict[str, KnownNamespace] = {}

    @property
    def is_used_up(self) -> bool:
        """Whether a one-shot rule of some namespace applies no more."""
        return any(one.is_used_up for one in self._known.values())

    def read(self, order: RuntimeOrder) -> Mapping[bytes, NamespaceScenario]:
        """Return the namespaces of an order by their names."""
        found: dict[str, KnownNamespace] = {}
        loaded = with_window_clock(self._loaded, order)
        has_other_clock, self._loaded = loaded.clock_origin != self._loaded.clock_origin, loaded
        for entry in order.namespaces:
            known = self._known.get(entry.name)
            if known is None or known.namespace.entry != entry or known.is_used_up or has_other_clock:
                known = self._read(entry) or known
            if known is not None:
                found[entry.name] = known
        self._known = found
        namespaces = {name.encode(): one.namespace for name, one in found.items()}
        self.accounts.update(namespaces)
        return namespaces

    def _read(self, entry: NamespaceEntry) -> KnownNamespace | None:
        """Return what is in force in a namespace; None where that cannot be read."""
        order, budgets = self._orders.read(entry), self._orders.budgets(entry.place)
        if order is None:  # overwritten: the next order tells of what is there now
            return None
        one_shot_rules = tuple(filter(budgets.remaining, order.one_shot_rules))
        scope = entry.shared.encode() or b"%d" % entry.since
        loaded = self._loaded.in_scope(b"namespace %b\0" % scope)
        try:
            found = effective_scenario(order, loaded, budgets)
        except OperatorError as error:
            log.error("the order of the namespace %s cannot be followed: %s", entry.name, error)
            return None
        found = found.counted(self._counters)
        return KnownNamespace(NamespaceScenario(entry, found), one_shot_rules, budgets)
