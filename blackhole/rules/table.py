"""A table of rules: those of one phase for one kind of client, asked in their order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from functools import partial
from operator import attrgetter
from typing import Final

from blackhole.rules.attempt_store import NULL_STORE, AttemptStore, PendingAnswer
from blackhole.rules.chances import ChanceRun, SeededChanceRun, chance_run, runs
from blackhole.rules.context import RuleContext
from blackhole.rules.draws import NO_DRAWS, Draws
from blackhole.rules.glob_index import LiteralPart
from blackhole.rules.glob_prefilter import GlobPrefilter, can_prefilter
from blackhole.rules.globs import GlobSet
from blackhole.rules.header_index import HeaderIndex
from blackhole.rules.index import INDEXED_TEXTS, RuleIndex, condition_globs, header_globs, useful_index
from blackhole.rules.limiters import ConcurrencyLimit
from blackhole.rules.model import (
    CLIENT_CONDITIONS,
    ENVELOPE_CONDITIONS,
    Condition,
    PendingMatch,
    Rule,
    RuleMatch,
)
from blackhole.rules.turns import NEXT_TURN
from blackhole.smtp.randomness import RandomSource

RULES_PER_TURN: Final = 2000
"""Rules tried, or as much other work, before other clients have their turn: about a millisecond."""

FEW: Final = 100
"""Rules, or as much other work, whose time does not matter: a turn has no more than 128 commands."""

CHARACTERS_PER_RULE: Final = 4
"""Characters of an address that are looked up in the time in which a rule is tried."""

RuleRow = tuple[tuple[Callable[[RuleContext], bool], ...], Rule, ChanceRun | SeededChanceRun | bool]
"""The conditions to ask, the rule, and a fact about it, worked out beforehand.

It is a plain tuple, as unpacking a named one takes twice as long.
"""


def _conditions(rule: Rule, decided: Set[str]) -> tuple[Callable[[RuleContext], bool], ...]:
    """Return the conditions of a rule but for those that are decided already."""
    return tuple(_test(condition) for condition in rule.conditions if condition.key not in decided)


def _test(condition: Condition) -> Callable[[RuleContext], bool]:
    """Return the test of a condition. Fields of the header section have been compared beforehand."""
    globs = condition.operand
    if condition.key == "header" and isinstance(globs, GlobSet):
        if condition.negated:
            return lambda context: globs not in context.header_matches
        return lambda context: globs in context.header_matches
    return condition.matches


def _candidates(context: RuleContext, index: RuleIndex | None, rows: Sequence[RuleRow]) -> Sequence[RuleRow]:
    """Return those of all rows whose rules may match, in their order."""
    return rows if index is None else [rows[number] for number in index.candidates(context)]


def _prefilter_parts(rule: Rule, name: str) -> Sequence[LiteralPart]:
    """Return the literal parts of which a text has one that the rule matches; none if it has other globs.

    A rule that needs the number of the attempt has attempts counted whatever the names and the user are.
    """
    if name not in ENVELOPE_CONDITIONS and rule.needs_attempt_count:
        return ()
    globs = condition_globs(rule, name)
    return globs.literal_parts if globs is not None and can_prefilter(globs.literal_parts) else ()


class EnvelopeConditions:
    """Tells whether some rules can match a context, by its client and addresses alone."""

    __slots__ = ("_index", "_rows", "match_all")

    def __init__(self, rules: Iterable[Rule], decided: Set[str]) -> None:
        bare = [rule.for_envelope() for rule in rules]
        self._rows: Final[Sequence[RuleRow]] = tuple(
            (_conditions(rule, decided), rule, True) for rule in bare
        )
        self._index: Final = useful_index(bare)
        self.match_all: Final = any(not conditions for conditions, _, _ in self._rows)
        """Whether a rule has no such condition."""

    def may_match(self, context: RuleContext) -> bool:
        """Return whether a rule can match the context."""
        if self.match_all or not self._rows:
            return self.match_all
        return any(
            all(matches(context) for matches in conditions)
            for conditions, _, _ in _candidates(context, self._index, self._rows)
        )


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

    def __init__(self, rules: Iterable[Rule], decided: Set[str] = CLIENT_CONDITIONS) -> None:
        """`decided` names the conditions that all contexts fulfil which the table is asked about."""
        rules = tuple(rules)
        self._rules: Final = rules
        self._decided: Final = decided
        groups = runs(rules, decided)
        self._rows: Final[Sequence[RuleRow]] = tuple(
            ((), group[0], chance_run(group))
            if group[0].depends_on_chance_alone and not _conditions(group[0], decided)
            else (_conditions(group[0], decided), group[0], group[0].is_random)
            for group in groups
        )
        """With all conditions, and one row for a run; the third column tells whether anything is drawn, or is
        the run."""
        only = self._rows[0][2] if len(self._rows) == 1 else False
        self._only_run: Final = None if isinstance(only, bool) else only
        """The run of chances, if the table consists of it alone; else None."""
        self.chances: Final = only if isinstance(only, ChanceRun) else None
        """The same, if one draw without a seed decides: that needs nothing of the context."""
        self._more_work: Final = sum(
            run.work - 1 for _, _, run in self._rows if isinstance(run, SeededChanceRun)
        )
        self._without_attempts: RuleTable | None = None
        self.counts_attempts: Final = any(rule.needs_attempt_count for rule in rules)
        # A rule for other addresses never sees the count of an envelope, which need not be counted for it.
        self.drawing: Final = EnvelopeConditions((rule for rule in rules if rule.draws_by_seed), decided)
        """The rules that draw by a seed."""
        self.reading: Final = EnvelopeConditions((rule for rule in rules if rule.reads_attempt), decided)
        """The rules that have a condition on the number of the attempt."""
        self.reads_clock: Final = any(rule.window is not None or rule.needs_store for rule in rules)
        """Whether a rule looks at the clock."""
        headers = {globs for rule in rules for globs in header_globs(rule)}
        self._header_index: Final = HeaderIndex(headers)
        self.looks_at_command_alone: Final = not (self.counts_attempts or self.reads_clock or headers)
        """Whether no rule looks at the clock, the header section or what is stored."""
        self.reads_header: Final = bool(headers)
        """Whether a rule looks at header fields."""
        self._index: Final = useful_index([first for first, *_ in groups])
        self._prefilter: GlobPrefilter | None = None
        """Finds addresses that no prefiltered rule matches, so that `_others` is enough for them."""
        self._text: Callable[[RuleContext], bytes] = attrgetter("recipient")
        """Returns the address that is compared."""
        self._others: RuleTable | None = None
        self._narrows_on = False
        """Whether these others have a prefilter too."""
        self._make_prefilter()
        self._looks_up_texts: Final = (self._index is not None and self._index.looks_up_texts) or any(
            isinstance(condition.operand, GlobSet) and condition.operand.is_indexed
            for rule in rules
            for condition in rule.conditions
        )

    def _make_prefilter(self) -> None:
        """Make a prefilter of the first text that enough rules name, and a table of all other rules."""
        for name, attribute in INDEXED_TEXTS.items():
            parts = [_prefilter_parts(rule, name) for rule in self._rules]
            if any(parts):
                self._text = attrgetter(attribute)
                self._prefilter = GlobPrefilter(part for its_parts in parts for part in its_parts)
                others = [rule for rule, its_parts in zip(self._rules, parts, strict=True) if not its_parts]
                self._others = RuleTable(others, self._decided) if others else None
                self._narrows_on = self._others is not None and self._others._prefilter is not None
                return

    def narrowed(self, context: RuleContext) -> RuleTable | None:
        """Return the table of those rules that may match a context by its addresses; None where none may."""
        prefilter = self._prefilter
        if prefilter is None or prefilter.may_match(self._text(context)):
            return self
        others = self._others
        return others.narrowed(context) if self._narrows_on and others is not None else others

    def compare_header(self, context: RuleContext) -> Iterator[None]:
        """Compare the header fields of a context, before rules are looked for. Yields when other clients
        should have their turn."""
        context.header_matches = matches = set[GlobSet]()
        return self._header_index.search(context.header, matches)

    @property
    def without_attempts(self) -> RuleTable:
        """The same rules for an attempt of unknown number."""
        if self._without_attempts is None:
            left = (rule.without_attempts() for rule in self._rules)
            self._without_attempts = RuleTable(filter(None, left), self._decided)
        return self._without_attempts

    def find(
        self,
        context: RuleContext,
        random_source: RandomSource,
        store: AttemptStore = NULL_STORE,
        rows: Iterator[RuleRow] | None = None,
    ) -> RuleMatch | PendingMatch | None:
        """Return the decision of the first rule that matches; None where none does.

        `rows` are those left to ask, where something was waited for.
        """
        if self._only_run is not None and self._more_work < FEW:
            return self._only_run.match(context, random_source)
        if rows is None:
            candidates = self._rows if self._index is None else _candidates(context, self._index, self._rows)
            rows = iter(candidates)
            work = len(candidates) + self._more_work
            if self._looks_up_texts:
                work += context.texts_length // CHARACTERS_PER_RULE
            if work > FEW or context.work > RULES_PER_TURN:
                context.work += work
                if context.work > RULES_PER_TURN:
                    context.work = 0
                    return PendingMatch(
                        NEXT_TURN, partial(self._after_turn, context, random_source, store, rows)
                    )
        for conditions, rule, is_random in rows:
            for matches in conditions:
                if not matches(context):
                    break
            else:
                if not isinstance(is_random, bool):
                    if match := is_random.match(context, random_source):
                        return match
                    continue
                probability = rule.probability(context.elapsed)
                if not probability:
                    continue
                draws = NO_DRAWS
                if is_random:
                    chance = rule.draw_chance(context, random_source)
                    if chance >= probability:
                        continue
                    draws = rule.draw_all(chance, context, random_source)
                if rule.limiter is None:
                    return RuleMatch(rule.effect, draws, rule.counter)
                blocked = rule.limiter.blocks(rule.key, context, store)
                if isinstance(blocked, PendingAnswer):
                    resume = partial(self._resume, rule, draws, context, random_source, store, rows)
                    return PendingMatch(blocked, resume)
                if match := rule.match(blocked, draws, context):
                    return match
        return None

    def _after_turn(
        self,
        context: RuleContext,
        random_source: RandomSource,
        store: AttemptStore,
        rows: Iterator[RuleRow],
        answer: object,
    ) -> RuleMatch | PendingMatch | None:
        """Go on after other clients have had their turn."""
        return self.find(context, random_source, store, rows)

    def _resume(
        self,
        rule: Rule,
        draws: Draws,
        context: RuleContext,
        random_source: RandomSource,
        store: AttemptStore,
        rows: Iterator[RuleRow],
        answer: int | None,
    ) -> RuleMatch | PendingMatch | None:
        """Go on with the answer of a rule's limiter: 0 or 1 where it is remote; None: the store has none."""
        blocked = None if answer is None else bool(answer)
        if blocked and isinstance(rule.limiter, ConcurrencyLimit):
            rule.limiter.forget_refused(rule.key, context)
        return rule.match(blocked, draws, context) or self.find(context, random_source, store, rows)
