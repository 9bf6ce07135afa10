"""Comparisons of numbers with limits, and an index over many of them."""

from __future__ import annotations

import operator
from bisect import bisect_right
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Final

COMPARISONS: Final[Mapping[str, Callable[[int, int], bool]]] = MappingProxyType(
    {
        "<=": operator.ge,
        ">=": operator.le,
        "<": operator.gt,
        ">": operator.lt,
        "=": operator.eq,
    }
)
"""Sign -> the operator that compares a limit with a number, in this order."""

Comparison = partial[bool]
"""Takes a number, and returns whether it is, say, "<=" a limit, which is in `args`."""


def comparison(sign: str, limit: int) -> Comparison:
    """Return the comparison with a limit.

    >>> comparison("<=", 5)(4)
    True
    """
    return partial(COMPARISONS[sign], limit)


MAX_SPANS: Final = 256
"""Spans of which a ThresholdIndex keeps the result."""


class ThresholdIndex:
    """Finds which of many comparisons are true of a number.

    >>> index = ThresholdIndex({1: comparison(">", 100), 2: comparison("<", 50)})
    >>> index.find(200), index.find(60)
    ((1,), ())
    """

    def __init__(self, compared: Mapping[int, Comparison]) -> None:
        self._compared: Final = compared
        limits = {compare.args[0] for compare in compared.values()}
        self._edges: Final = sorted(limits | {limit + 1 for limit in limits})
        """Numbers at which the result changes."""
        self._spans: Final[dict[int, tuple[int, ...]]] = {}
        """Results between two edges, kept when they were first asked for."""

    def find(self, value: int) -> tuple[int, ...]:
        """Return the keys of the comparisons that are true of a value."""
        span = bisect_right(self._edges, value)
        found = self._spans.get(span)
        if found is None:
            if len(self._spans) >= MAX_SPANS:
                self._spans.clear()
            found = tuple(number for number, holds in self._compared.items() if holds(value))
            self._spans[span] = found
        return found
