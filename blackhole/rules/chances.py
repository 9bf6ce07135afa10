"""Runs of rules that depend on chance alone, and are decided together."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Iterable, Sequence
from typing import Final

from blackhole.rules.context import RuleContext
from blackhole.rules.draws import uniform
from blackhole.rules.model import Rule, RuleMatch
from blackhole.smtp.randomness import RandomSource


class ChanceRun:
    """Rules in a row without a seed that have no conditions, and a chance that never changes.

    One draw decides: they miss together with the product of the probabilities by which each one misses.

    >>> from random import Random
    >>> from blackhole.rules.effects import Effect
    >>> run = ChanceRun([Rule(frozenset(("RCPT",)), Effect(), chance=chance) for chance in (0.5, 0.25)])
    >>> run.thresholds
    [0.5, 0.625]
    """

    __slots__ = ("_reach", "_rules", "thresholds")

    def __init__(self, rules: Iterable[Rule]) -> None:
        self._rules: Final = tuple(rules)
        self.thresholds: Final[list[float]] = []
        """The probability that this rule or one before it matches, for each."""
        reached = 1.0
        for rule in self._rules:
            reached *= 1.0 - rule.chance
            self.thresholds.append(1.0 - reached)
        self._reach: Final = self.thresholds[-1]

    work = 1
    """How many rules could be tried in the time it takes."""

    def match(self, context: RuleContext, random_source: RandomSource) -> RuleMatch | None:
        """Return the match of the first rule that the draw hits; None where it misses all."""
        draw = random_source.random()
        if draw >= self._reach:
            return None
        rule = self._rules[bisect(self.thresholds, draw)]
        random = random_source.random
        return RuleMatch(rule.effect, (draw, random(), random(), random()), rule.counter)


class SeededChanceRun:
    """Rules in a row with a seed that have no conditions, and a chance that never changes.

    Each has a draw of its own, which no other rule changes.
    """

    __slots__ = ("_rows", "work")

    def __init__(self, rules: Iterable[Rule]) -> None:
        self._rows: Final = tuple((rule.salt, rule.chance, rule) for rule in rules)
        self.work: Final = len(self._rows)

    def match(self, context: RuleContext, random_source: RandomSource) -> RuleMatch | None:
        """Return the match of the first rule whose draw hits; None where all miss."""
        state = context.draw_state
        for salt, chance, rule in self._rows:
            draw = uniform(state ^ salt)
            if draw < chance:
                return RuleMatch(rule.effect, rule.draw_all(draw, context, random_source), rule.counter)
        return None


def chance_run(rules: Sequence[Rule]) -> ChanceRun | SeededChanceRun:
    """Return the run of rules that are decided together."""
    return ChanceRun(rules) if rules[0].seed is None else SeededChanceRun(rules)


def runs(rules: Iterable[Rule], decided: Iterable[str]) -> Sequence[Sequence[Rule]]:
    """Return the rules in their order: those that a run decides together, all others by themselves.

    `decided` names conditions that are fulfilled.
    """
    known = frozenset(decided)

    def joins(rule: Rule) -> bool:
        return rule.depends_on_chance_alone and known.issuperset(
            condition.key for condition in rule.conditions
        )

    found: list[list[Rule]] = []
    together = False
    for rule in rules:
        if together and joins(rule) and (rule.seed is None) is (found[-1][0].seed is None):
            found[-1].append(rule)
        else:
            together = joins(rule)
            found.append([rule])
    return found
