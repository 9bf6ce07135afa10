"""The rules of one listener, and the tables of those that a client can match."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from typing import Final

from blackhole.rules.conduct import RefusalLimit
from blackhole.rules.context import RuleContext
from blackhole.rules.globs import GlobSet
from blackhole.rules.index import header_globs
from blackhole.rules.model import CLIENT_CONDITIONS, SESSION_CONDITIONS, Rule
from blackhole.rules.modes import MODE_RULES
from blackhole.rules.table import RuleTable
from blackhole.smtp.header_section import ANY_NAME

MAX_CLIENT_KINDS: Final = 256
"""Kinds of clients that have tables of their own. Further kinds share tables that look at the client too."""


FIRST_CHUNK: Final = "DATA, BDAT"
"""The name of the table for the first chunk of a message."""

BEGIN_OF_MESSAGE: Final = frozenset(("DATA", "BDAT"))
"""The phases whose rules apply to the first chunk: a rule for DATA does not mind how a message is sent."""


CONTEXT_PHASES: Final = frozenset(("HELO", "EHLO", "AUTH", "MAIL", "RCPT", "DATA", "BDAT", "RSET"))
"""Phases that change the context of rules, or what the retry tracker knows of the transaction."""


class PhaseTables(dict[str, RuleTable | None]):
    """The table of each phase, made when it is first asked for; None for a phase without rules."""

    def __init__(self, rules: Sequence[Rule], decided: Set[str]) -> None:
        super().__init__()
        self._rules: Final = rules
        self._decided: Final = decided
        """Conditions that all rules fulfil."""

    def __missing__(self, phase: str) -> RuleTable | None:
        phases = BEGIN_OF_MESSAGE if phase == FIRST_CHUNK else {phase}
        rules = [rule for rule in self._rules if not phases.isdisjoint(rule.phases)]
        table = self[phase] = RuleTable(rules, self._decided) if rules else None
        return table


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
        self.reads_session: Final = not keys.isdisjoint(SESSION_CONDITIONS)
        """Whether rules look at what only the session knows."""
        self.may_refuse: Final = any(rule.may_refuse for rule in self.rules)
        """Whether a rule can refuse, defer, delay or cut off a message."""
        self.header_names: Final = frozenset(
            name for rule in self.rules for globs in header_globs(rule) for name in _header_names(globs)
        )
        """The names, in lower case, of header fields that rules look at; ANY_NAME for those of every name."""
        self.refusal_limits: Final = tuple(
            (rule, rule.limiter) for rule in self.rules if isinstance(rule.limiter, RefusalLimit)
        )
        """The rules that count refused recipients, and their limiters."""
        per_client = not keys.isdisjoint(("client", "tls"))
        self._tables: Final[dict[tuple[bool, ...], PhaseTables]] = {}
        """Which rules a client can match -> their tables."""
        self._tables_for_all: Final = PhaseTables(
            self.rules, frozenset() if per_client else CLIENT_CONDITIONS
        )
        self.shared_tables: Final = None if per_client else self._tables_for_all
        """The tables for every client, where all clients can match the same rules; else None."""

    def asks(self, phase: str) -> bool:
        """Return whether a session has to ask about the commands of a phase."""
        return (
            phase in self.phases
            # After a refusal in place of the greeting, the replies are the rules' and not the client's fault.
            or "CONNECT" in self.phases
            or (phase == "BDAT" and "DATA" in self.phases)
            or ((self.keeps_context or self.may_refuse) and phase in CONTEXT_PHASES)
            or (self.may_refuse and phase in (".", "QUIT"))
        )

    def make_tables(self) -> None:
        """Make the tables that all clients share, before the first client comes."""
        if self.shared_tables is not None:
            for phase in self.phases:
                assert self.shared_tables[phase] is not None

    def tables_for(self, context: RuleContext) -> PhaseTables:
        """Return the tables of the rules that a client can match."""
        if self.shared_tables is not None:
            return self.shared_tables
        matching = tuple(_can_match(rule, context) for rule in self.rules)
        tables = self._tables.get(matching)
        if tables is None:
            if len(self._tables) >= MAX_CLIENT_KINDS:
                return self._tables_for_all
            rules = tuple(rule for rule, matches in zip(self.rules, matching, strict=True) if matches)
            tables = self._tables[matching] = PhaseTables(rules, CLIENT_CONDITIONS)
        return tables


def _header_names(globs: GlobSet) -> Iterator[bytes]:
    """Yield the names in globs of header fields, in lower case."""
    for glob in globs.globs:
        name = glob.partition(":")[0].strip()
        yield ANY_NAME if "*" in name or "?" in name else name.encode()


def _can_match(rule: Rule, context: RuleContext) -> bool:
    """Return whether the conditions on the client match."""
    return all(
        condition.matches(context) for condition in rule.conditions if condition.key in CLIENT_CONDITIONS
    )
