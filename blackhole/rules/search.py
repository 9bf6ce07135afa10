"""The search for the rule that matches a command, after counting the attempt where a rule needs that."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Final

from blackhole.rules.attempt_store import AttemptStore, PendingAnswer, count_attempt
from blackhole.rules.context import RuleContext
from blackhole.rules.model import PendingMatch, RuleMatch
from blackhole.rules.table import RuleTable
from blackhole.rules.turns import NEXT_TURN
from blackhole.smtp.randomness import RandomSource
from blackhole.smtp.state import SessionState

TableMatch = RuleMatch | PendingMatch | None
"""What a table says about a context: None where no rule matches."""


class RuleSearch:
    """Searches the tables of one listener.

    `clock` returns the seconds since the rules came into force.
    """

    __slots__ = ("_attempt_store", "_clock", "_random_source")

    def __init__(
        self, random_source: RandomSource, attempt_store: AttemptStore, clock: Callable[[], float]
    ) -> None:
        self._random_source: Final = random_source
        self._attempt_store: Final = attempt_store
        self._clock: Final = clock

    def find(self, session: SessionState, table: RuleTable, context: RuleContext, phase: str) -> TableMatch:
        """Return what the table says about the context at a phase of a session."""
        context.phase = phase
        chances = table.chances
        if chances is not None:
            return chances.match(context, self._random_source)
        if table.looks_at_command_alone:
            return table.find(context, self._random_source)
        if table.reads_header:
            found = self._compare_header(table, context, table.compare_header(context))
        else:
            found = self._find_in(table, context)
        if context.limit_events:
            session.counted_events += context.take_limit_events()
        return found

    def _compare_header(
        self, table: RuleTable, context: RuleContext, turns: Iterator[None], answer: object = None
    ) -> TableMatch:
        """Go on comparing the fields of the header section until other clients should have their turn."""
        for _ in turns:
            return PendingMatch(NEXT_TURN, partial(self._compare_header, table, context, turns))
        return self._find_in(table, context)

    def _find_in(self, table: RuleTable, context: RuleContext) -> TableMatch:
        """Return what the table says about the context, after counting the attempt where a rule needs it."""
        if table.reads_clock:
            context.elapsed = self._clock()
        if not table.counts_attempts:
            return table.find(context, self._random_source, self._attempt_store)
        draws = table.drawing.match_all or table.drawing.may_match(context)
        begins_draws = draws and not context.continue_draws()
        if not (begins_draws or table.reading.may_match(context)):
            return table.find(context, self._random_source, self._attempt_store)
        pair_key = context.pair_key
        key = context.attempt_key(pair_key)
        count = self._attempt_store.update(key, context.elapsed, count_attempt)
        if isinstance(count, PendingAnswer):
            return PendingMatch(count, partial(self._find_counted, table, context, pair_key, begins_draws))
        return self._find_counted(table, context, pair_key, begins_draws, count)

    def _find_counted(
        self, table: RuleTable, context: RuleContext, pair_key: bytes, begins_draws: bool, count: int | None
    ) -> TableMatch:
        """Go on with the number of the attempt; None: the store does not know it."""
        context.attempt = count or 1
        if begins_draws:
            context.begin_draws(pair_key)
        if count is None:
            table = table.without_attempts
        return table.find(context, self._random_source, self._attempt_store)
