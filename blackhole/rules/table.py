"""A table of rules: those of one phase for one kind of client, asked in their order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from functools import partial
from typing import Final

from blackhole.rules.attempt_store import NULL_STORE, AttemptStore, PendingAnswer
from blackhole.rules.context import RuleContext
from blackhole.rules.index import RuleIndex
from blackhole.rules.model import CLIENT_CONDITIONS, NO_DRAWS, Draws, PendingMatch, Rule, RuleMatch
from blackhole.smtp.randomness import RandomSource

RuleRow = tuple[tuple[Callable[[RuleContext], bool], ...], Rule, bool]
"""The conditions to ask, the rule, and a fact about it, worked out beforehand.

It is a plain tuple, as unpacking a named one takes twice as long.
"""


def _conditions(rule: Rule, decided: Set[str]) -> tuple[Callable[[RuleContext], bool], ...]:
    """Return the conditions of a rule but for those that are decided already."""
    return tuple(condition.matches for condition in rule.conditions if condition.key not in decided)


class RuleTable:
    """Finds the first rule that matches a context.

    >>> from random import Random
    >>> from blackhole.rules.scenario_file import parse_rules
    >>> text = '[[rule]]\\nphase = "RCPT"\\nrecipient = "bob@*"\\nreply = "450 4.2.1 Later"'
    >>> table, context = RuleTable(parse_rules(text, "example")), RuleContext()
    >>> context.update("RCPT", b"bob@example.com")
    >>> table.find(context, Random()).effect.replies[0].code
    450
    """

    def __init__(self, rules: Iterable[Rule]) -> None:
        rules = tuple(rules)
        self._rules: Final = rules
        self._rows: Final[Sequence[RuleRow]] = tuple(
            (_conditions(rule, CLIENT_CONDITIONS), rule, rule.is_random) for rule in rules
        )
        """With all conditions; the third column tells whether anything is drawn."""
        self._rows_without_attempts: Final[Sequence[RuleRow]] = tuple(
            (_conditions(rule, CLIENT_CONDITIONS | {"attempt"}), rule, rule.needs_attempt_count)
            for rule in rules
        )
        """Without those on the number of the attempt; the third column tells whether the rule needs it."""
        self._without_attempts: RuleTable | None = None
        self.counts_attempts: Final = any(rule.needs_attempt_count for rule in rules)
        self._attempt_dependent: Final = any(
            rule.needs_attempt_count and not rule.depends_only_on_envelope for rule in rules
        )
        self.reads_clock: Final = any(rule.window is not None or rule.needs_store for rule in rules)
        """Whether a rule looks at the clock."""
        index = RuleIndex(rules)
        self._index: Final = index if index.is_useful else None

    def _candidates(self, context: RuleContext, rows: Sequence[RuleRow]) -> Sequence[RuleRow]:
        """Return those of all rows whose rules may match, in their order."""
        if self._index is None:
            return rows
        return [rows[number] for number in self._index.candidates(context)]

    def needs_attempt_count(self, context: RuleContext) -> bool:
        """Return whether attempts of this context have to be counted.

        They need not where each rule that reads the count is for other addresses: a count belongs to an
        envelope, which those rules never see.
        """
        return self._attempt_dependent or (
            self.counts_attempts
            and any(
                needs_count and all(matches(context) for matches in conditions)
                for conditions, _, needs_count in self._candidates(context, self._rows_without_attempts)
            )
        )

    @property
    def without_attempts(self) -> RuleTable:
        """The same rules for an attempt of unknown number."""
        if self._without_attempts is None:
            self._without_attempts = RuleTable(
                left for rule in self._rules if (left := rule.without_attempts())
            )
        return self._without_attempts

    def find(
        self,
        context: RuleContext,
        random_source: RandomSource,
        store: AttemptStore = NULL_STORE,
        rows: Iterator[RuleRow] | None = None,
    ) -> RuleMatch | PendingMatch | None:
        """Return the decision of the first rule that matches; None where none does.

        `rows` are those left to ask, where an answer of the store was waited for.
        """
        if rows is None:
            rows = iter(self._candidates(context, self._rows))
        draw_key = b""
        for conditions, rule, is_random in rows:
            for matches in conditions:
                if not matches(context):
                    break
            else:
                probability = rule.probability(context.elapsed)
                if not probability:
                    continue
                draws = NO_DRAWS
                if is_random:
                    draw_key = draw_key or context.draw_key
                    draws = rule.draw(draw_key, random_source)
                if draws[0] >= probability:
                    continue
                if rule.limiter is None:
                    return RuleMatch(rule.effect, draws, rule.counter)
                blocked = rule.limiter.blocks(rule.key, context, store)
                if isinstance(blocked, PendingAnswer):
                    resume = partial(self._resume, rule, draws, context, random_source, store, rows)
                    return PendingMatch(blocked, resume)
                if match := rule.match(blocked, draws):
                    return match
        return None

    def _resume(
        self,
        rule: Rule,
        draws: Draws,
        context: RuleContext,
        random_source: RandomSource,
        store: AttemptStore,
        rows: Iterator[RuleRow],
        blocked: bool | None,
    ) -> RuleMatch | PendingMatch | None:
        """Go on with the answer of a rule's limiter; None: the store has none."""
        return rule.match(blocked, draws) or self.find(context, random_source, store, rows)
