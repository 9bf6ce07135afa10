"""What the throttles and greylists of rules have decided, as it was counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from blackhole.metrics.layout import LIMIT_DECISIONS, limit_counters


class RuleLimit(NamedTuple):
    """What the throttle or greylist of a rule has decided."""

    limit: str
    """As text; empty where it is not known, or no rule of that name has one any more."""
    passed: int
    """Commands that it let pass."""
    limited: int
    """Commands to which the rule applied because of it."""


def read_limits(
    counters: Mapping[str, int], texts: Mapping[str, str], cells: Sequence[int]
) -> dict[str, RuleLimit]:
    """Return what limits have decided, by rule: of all rules that have one, or had.

    `counters` are the cells of the matches of rules, and `texts` their limits, by the names of rules.
    """
    found = {}
    for name, counter in counters.items():
        counts = [cells[cell] for cell in limit_counters(counter)]
        if name in texts or any(counts):
            found[name] = RuleLimit(texts.get(name, ""), *counts)
    return found


def by_decision(limits: Mapping[str, RuleLimit]) -> dict[tuple[str, ...], float]:
    """Return how often each decision was made, by rule and decision."""
    return {
        (name, decision): getattr(one, decision)
        for name, one in limits.items()
        for decision in LIMIT_DECISIONS
    }


def limits_as_labels(limits: Mapping[str, RuleLimit]) -> dict[tuple[str, ...], float]:
    """Return 1 for each rule that has a limit, by rule and limit."""
    return {(name, one.limit): 1 for name, one in limits.items() if one.limit}
