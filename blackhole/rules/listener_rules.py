"""The rules of one listener, and the tables of those that a client can match."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from blackhole.rules.context import RuleContext
from blackhole.rules.model import CLIENT_CONDITIONS, Rule
from blackhole.rules.modes import MODE_RULES
from blackhole.rules.table import RuleTable

Tables = Mapping[str, RuleTable]
"""Phase -> the table of its rules."""

MAX_CLIENT_KINDS: Final = 256
"""Sets of tables that are kept, one for each set of rules that a client can match."""


class ListenerRules:
    """All rules of one listener: those of the scenario, then those of the mode.

    >>> ListenerRules((), "greylist").phases
    frozenset({'RCPT'})
    """

    def __init__(self, rules: Sequence[Rule], mode: str, listener: str = "") -> None:
        context = RuleContext(listener)
        self.rules: Final = tuple(
            rule
            for rule in (*rules, *MODE_RULES[mode])
            if all(condition.matches(context) for condition in rule.conditions if condition.key == "listener")
        )
        self.listener: Final = listener
        self.phases: Final = frozenset(phase for rule in self.rules for phase in rule.phases)
        """Phases that have a rule."""
        keys = {condition.key for rule in self.rules for condition in rule.conditions}
        self.keeps_context: Final = len(self.rules) > len(MODE_RULES[mode]) or any(
            rule.limiter for rule in self.rules
        )
        """Whether rules look at earlier commands."""
        self.may_refuse: Final = any(rule.may_refuse for rule in self.rules)
        """Whether a rule can refuse, defer, delay or cut off a message."""
        self.reads_header: Final = "header" in keys
        self._per_client: Final = not keys.isdisjoint(("client", "tls"))
        self._tables: Final[dict[tuple[bool, ...], Tables]] = {}

    def tables_for(self, context: RuleContext) -> Tables:
        """Return the tables of the rules that a client can match, by phase."""
        matching = tuple(_can_match(rule, context) for rule in self.rules) if self._per_client else ()
        tables = self._tables.get(matching)
        if tables is None:
            if len(self._tables) >= MAX_CLIENT_KINDS:
                self._tables.clear()
            rules = self.rules
            if matching:
                rules = tuple(rule for rule, matches in zip(rules, matching, strict=True) if matches)
            tables = _by_phase(rules)
            self._tables[matching] = tables
        return tables


def _can_match(rule: Rule, context: RuleContext) -> bool:
    """Return whether the conditions on the client match."""
    return all(
        condition.matches(context) for condition in rule.conditions if condition.key in CLIENT_CONDITIONS
    )


def _by_phase(rules: Sequence[Rule]) -> Tables:
    """Return a table for each phase that has rules."""
    phases = {phase for rule in rules for phase in rule.phases}
    return {phase: RuleTable(rule for rule in rules if phase in rule.phases) for phase in phases}
