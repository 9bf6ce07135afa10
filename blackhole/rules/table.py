"""A table of rules: those of one phase for one kind of client, asked in their order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from functools import partial
from typing import Final, NamedTuple

from blackhole.rules.attempt_store import NULL_STORE, AttemptStore, PendingAnswer
from blackhole.rules.context import RuleContext
from blackhole.rules.index import RuleIndex
from blackhole.rules.model import NO_DRAWS, STANDING, Decision, Draws, PendingDecision, Rule
from blackhole.smtp.randomness import RandomSource


class _Row(NamedTuple):
    """A rule, with what is asked for each command worked out beforehand."""

    tests: tuple[Callable[[RuleContext], bool], ...]
    """The conditions that are left to ask."""
    rule: Rule
    drawn: bool
    counts: bool


def _row(rule: Rule, decided: Set[str]) -> _Row:
    """Return a row without the conditions of the keys that are decided already."""
    tests = tuple(test.holds for test in rule.tests if test.key not in decided)
    return _Row(tests, rule, rule.drawn, rule.counts)


class RuleTable:
    """Finds the first rule that matches a context."""

    def __init__(self, rules: Iterable[Rule]) -> None:
        rules = tuple(rules)
        self._rows: Final = tuple(_row(rule, STANDING) for rule in rules)
        self._bare: Final = tuple(_row(rule, STANDING | {"attempt"}) for rule in rules)
        """The same, to ask without knowing how often anything was tried."""
        self._blind: RuleTable | None = None
        self.counts: Final = any(rule.counts for rule in rules)
        self._moody: Final = any(rule.counts and not rule.steady for rule in rules)
        self.timed: Final = any(rule.window is not None or rule.remembers for rule in rules)
        """Whether a rule looks at the clock."""
        self._spends: Final = any(test.spends for rule in rules for test in rule.tests)
        index = RuleIndex(rules)
        self._index: Final = index if index.is_useful else None

    def _candidates(self, case: RuleContext, rows: Sequence[_Row]) -> Sequence[_Row]:
        """Return those of all rows whose rules may match, in their order."""
        if self._index is None:
            return rows
        return [rows[number] for number in self._index.candidates(case)]

    def silent(self, case: RuleContext) -> bool:
        """Return whether no rule can match now, whatever is drawn or remembered, and none needs this attempt
        to be counted. Nothing changes by asking."""
        if self._moody or self._spends:
            return False
        for tests, rule, _, counts in self._candidates(case, self._bare):
            for holds in tests:
                if not holds(case):
                    break
            else:
                if counts or rule.odds(case.at):
                    return False
        return True

    def counted(self, case: RuleContext) -> bool:
        """Return whether attempts of this context have to be counted.

        They need not where each rule that reads the count is for other addresses: a count belongs to an
        envelope, which those rules never see.
        """
        return self._moody or (
            self.counts
            and any(
                row.counts and all(holds(case) for holds in row.tests)
                for row in self._candidates(case, self._bare)
            )
        )

    @property
    def blind(self) -> RuleTable:
        """The same rules for an attempt whose number nobody knows."""
        if self._blind is None:
            self._blind = RuleTable(left for row in self._rows if (left := row.rule.blind()))
        return self._blind

    def find(
        self,
        case: RuleContext,
        random_source: RandomSource,
        memory: AttemptStore = NULL_STORE,
        rows: Iterator[_Row] | None = None,
    ) -> Decision | PendingDecision | None:
        """Return the decision of the first rule that matches; None where none does.

        `rows` are those left to ask, where an answer of the store was waited for.
        """
        if rows is None:
            rows = iter(self._candidates(case, self._rows))
        tried = b""
        for tests, rule, drawn, _ in rows:
            for holds in tests:
                if not holds(case):
                    break
            else:
                odds = rule.odds(case.at)
                if not odds:
                    continue
                draws = NO_DRAWS
                if drawn:
                    tried = tried or case.tried
                    draws = rule.draws(tried, random_source)
                if draws[0] >= odds:
                    continue
                if rule.gate is None:
                    return Decision(rule.effect, draws, rule.cell)
                shut = rule.gate.stops(rule.name, case, memory)
                if isinstance(shut, PendingAnswer):
                    resume = partial(self._resume, rule, draws, case, random_source, memory, rows)
                    return PendingDecision(shut, resume)
                if decision := rule.decision(shut, draws):
                    return decision
        return None

    def _resume(
        self,
        rule: Rule,
        draws: Draws,
        case: RuleContext,
        random_source: RandomSource,
        memory: AttemptStore,
        rows: Iterator[_Row],
        shut: bool | None,
    ) -> Decision | PendingDecision | None:
        """Go on with the answer of a rule's limiter; None: the store has none."""
        return rule.decision(shut, draws) or self.find(case, random_source, memory, rows)
