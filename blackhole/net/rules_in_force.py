"""The rules in force for one listener in one worker: of its mode, of the scenario and of namespaces."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from random import Random
from typing import Final

from blackhole.net.accounting import EVENT_CELLS
from blackhole.net.namespace_accounts import NamespaceScenario
from blackhole.net.server_namespaces import ServerNamespaces
from blackhole.net.tls import TLSContexts
from blackhole.rules.evaluator import RuleEnvironment, RulePolicy
from blackhole.rules.model import Rule
from blackhole.rules.modes import MODE_RULES
from blackhole.settings import Listener
from blackhole.smtp.policy import ListenerPolicy
from blackhole.store.active_scenario import NO_SCENARIO, ActiveScenario


def needs_attempt_store(listeners: Iterable[Listener], scenario: ActiveScenario) -> bool:
    """Return whether a rule of one of these listeners needs a store of attempts."""
    return any(rule.needs_store for rule in _rules_with_modes(listeners, scenario))


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
    return any(rule.may_refuse for rule in _rules_with_modes(listeners, scenario))


def _rules_with_modes(listeners: Iterable[Listener], scenario: ActiveScenario) -> Iterator[Rule]:
    """Return the rules of the scenario, and those of the modes of these listeners."""
    return chain(scenario.all_rules, *(MODE_RULES[listener.mode] for listener in listeners))


class RulesInForce:
    """The rules that are in force for a listener, and the policy made of them.

    `namespaces` has the rules of those that there are; None: there are none.
    """

    def __init__(
        self, listener: Listener, scenario: ActiveScenario, namespaces: ServerNamespaces | None
    ) -> None:
        self._listener: Final = listener
        self._scenario = scenario
        self._namespaces: Final = namespaces
        self.policy = self._make_policy(scenario)
        """The policy outside of namespaces."""

    def update(self, scenario: ActiveScenario, namespaces: Mapping[bytes, NamespaceScenario]) -> None:
        """Use other rules."""
        if scenario is not self._scenario:
            self._scenario = scenario
            self.policy = self._make_policy(scenario)
        if self._namespaces is not None:
            self._namespaces.update(namespaces)

    def session_policy(self, tls: TLSContexts | None) -> ListenerPolicy:
        """Return the policy of all sessions, once the certificates of its rules are there."""
        if tls is not None:
            for scenario in self._scenarios():
                tls.add(scenario.certificates)
        if self._namespaces is None:
            return self.policy
        return self._namespaces.policy(self.policy, self._make_policy)

    def all_rules(self) -> list[Rule]:
        """Return the rules of the scenario, and those of the scenarios of namespaces."""
        name = str(self._listener)
        return [rule for scenario in self._scenarios() for rule in scenario.of_listener(name).rules]

    @property
    def may_refuse(self) -> bool:
        """Whether a rule may refuse, delay or cut off a message, so that retries are to be expected."""
        return self.policy.rules.may_refuse or (self._namespaces is not None and self._namespaces.may_refuse)

    def _make_policy(self, scenario: ActiveScenario) -> RulePolicy:
        return rule_policy(self._listener, scenario.of_listener(str(self._listener)))

    def _scenarios(self) -> Iterator[ActiveScenario]:
        """Yield the scenario of the server, and those of its namespaces."""
        yield self._scenario
        if self._namespaces is not None:
            yield from self._namespaces.scenarios
