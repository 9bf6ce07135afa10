"""The scenario that is in force in a process: its rules, and what they work with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Final, Protocol

from blackhole.rules.attempt_store import NULL_STORE, AttemptStore, ScopedStore
from blackhole.rules.model import Rule
from blackhole.rules.outcomes import OutcomeStore
from blackhole.rules.scenario import Scenario

SEVERAL_LIMITS: Final = "several limits"
"""In place of the limit of rules that have the same name, but not the same limit."""


class RuleCounters(Protocol):
    """Gives rules their counters: see `blackhole.metrics.counters.Counters`."""

    def rule_counters(self, names: Iterable[str], limits: Mapping[str, str], /) -> Sequence[int]:
        """Return the counters of rules with these names; `limits` are the texts of their limiters."""

    def limit_counters(self, counter: int, /) -> tuple[int, ...]:
        """Return the counters of what the limiter of the rule with this counter decides."""


@dataclass(frozen=True, slots=True)
class ActiveScenario:
    """A scenario with its clock, its stores and its certificates."""

    scenario: Scenario = Scenario()  # noqa: RUF009 - it is frozen
    clock_origin: float = 0.0
    """When its windows began to count, on the monotonic clock, which all processes share."""
    attempt_store: AttemptStore = NULL_STORE
    """Attempts that all processes have seen."""
    outcome_store: OutcomeStore | None = None
    """What became of messages in all processes; None where nothing can be refused."""
    certificates: Mapping[str, bytes] = field(default_factory=dict)
    """Certificates of the TLS menu that were issued for its rules, by name, as PEM, with their keys."""

    own_rules: Mapping[str, tuple[Rule, ...]] = field(default_factory=dict)
    """Address of a listener -> the rules of its own scenario, which take the place of all others there."""

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The rules of the scenario, in their order."""
        return self.scenario.rules

    @property
    def all_rules(self) -> tuple[Rule, ...]:
        """The rules of the scenario, and behind them those of single listeners."""
        return (*self.rules, *chain.from_iterable(self.own_rules.values()))

    def of_listener(self, listener: str) -> ActiveScenario:
        """Return what is in force at a listener. One with rules of its own shares no limit with others."""
        if listener not in self.own_rules:
            return self
        return replace(
            self,
            scenario=replace(self.scenario, rules=self.own_rules[listener]),
            attempt_store=ScopedStore(self.attempt_store, b"%b\0" % listener.encode()),
            own_rules={},
        )

    def in_scope(self, prefix: bytes) -> ActiveScenario:
        """Return the same with attempts and limits of its own."""
        return replace(self, attempt_store=ScopedStore(self.attempt_store, prefix))

    def preceded_by(self, first: Iterable[Rule]) -> ActiveScenario:
        """Return the same with some rules before all others, at all listeners."""
        first = tuple(first)
        return self._changed(lambda rules: (*first, *rules))

    def counted(self, counters: RuleCounters) -> ActiveScenario:
        """Return the same with a counter for each rule, and with two more for each that has a limiter."""
        names = dict.fromkeys(rule.name for rule in self.all_rules)
        limits: dict[str, str] = {}
        for rule in self.all_rules:
            if rule.limiter is not None and (text := rule.limiter.summary):
                limits[rule.name] = text if limits.get(rule.name, text) == text else SEVERAL_LIMITS
        cells = dict(zip(names, counters.rule_counters(names, limits), strict=True))

        def count(rule: Rule) -> Rule:
            cell = cells[rule.name]
            if rule.limiter is None or not rule.limiter.summary:
                return replace(rule, counter=cell)
            return replace(rule, counter=cell, limit_counters=counters.limit_counters(cell))

        return self._changed(lambda rules: tuple(map(count, rules)))

    def _changed(self, change: Callable[[tuple[Rule, ...]], tuple[Rule, ...]]) -> ActiveScenario:
        scenario = replace(self.scenario, rules=change(self.rules))
        own_rules = {listener: change(rules) for listener, rules in self.own_rules.items()}
        return replace(self, scenario=scenario, own_rules=own_rules)


NO_SCENARIO: Final = ActiveScenario()
