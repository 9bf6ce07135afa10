"""The rules of one listener, and of those the ones that a client can ever match."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from blackhole.rules.context import RuleContext
from blackhole.rules.model import CLIENT_CONDITIONS, Rule
from blackhole.rules.modes import MODES
from blackhole.rules.table import RuleTable

Tables = Mapping[str, RuleTable]
"""Phase -> table."""


MAX_CLIENT_KINDS: Final = 256
"""Kinds of clients whose tables are kept: more kinds than this are made by an attacker, or by mistake."""


class ListenerRules:
    """All rules of one listener: a scenario's, and behind them the mode's."""

    def __init__(self, rules: Sequence[Rule], mode: str, listener: str = "") -> None:
        here = RuleContext(listener)
        self.rules: Final = tuple(
            rule
            for rule in (*rules, *MODES[mode])
            if all(test.matches(here) for test in rule.conditions if test.key == "listener")
        )
        self.listener: Final = listener
        self.phases: Final = frozenset(phase for rule in self.rules for phase in rule.phases)
        """Where a rule may speak."""
        keyed = {test.key for rule in self.rules for test in rule.conditions}
        self.keeps_context: Final = len(self.rules) > len(MODES[mode]) or any(
            rule.limiter for rule in self.rules
        )
        """Whether names and addresses have to be kept from one command to the next."""
        self.may_refuse: Final = any(rule.may_refuse for rule in self.rules)
        """Whether it has to be seen what comes again."""
        self.reads_header: Final = "header" in keyed
        self.certificates: Final = frozenset(rule.effect.certificate for rule in self.rules) - {""}
        """What has to be made for the rules."""
        self._per_client: Final = not keyed.isdisjoint(("client", "tls"))
        self._tables: Final[dict[tuple[bool, ...], Tables]] = {}

    def tables_for(self, context: RuleContext) -> Tables:
        """The rules that this client can ever meet, by phase."""
        kind: tuple[bool, ...] = ()
        if self._per_client:
            kind = tuple(
                all(test.matches(context) for test in rule.conditions if test.key in CLIENT_CONDITIONS)
                for rule in self.rules
            )
        found = self._tables.get(kind)
        if found is None:
            if len(self._tables) >= MAX_CLIENT_KINDS:
                self._tables.clear()
            rules = [rule for rule, met in zip(self.rules, kind, strict=True) if met] if kind else self.rules
            found = {
                phase: RuleTable(rule for rule in rules if phase in rule.phases)
                for phase in {phase for rule in rules for phase in rule.phases}
            }
            self._tables[kind] = found
        return found
