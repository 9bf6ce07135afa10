"""The scenario that is in force in a process: its rules, and what they work with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from blackhole.rules.attempt_store import NULL_STORE, AttemptStore
from blackhole.rules.model import Rule
from blackhole.rules.outcomes import OutcomeStore
from blackhole.rules.scenario import Scenario


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

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The rules of the scenario, in their order."""
        return self.scenario.rules

    def with_rules(self, rules: Iterable[Rule]) -> ActiveScenario:
        """Return the same with other rules."""
        return replace(self, scenario=replace(self.scenario, rules=tuple(rules)))


NO_SCENARIO: Final = ActiveScenario()
