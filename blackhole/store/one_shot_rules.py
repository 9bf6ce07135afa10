"""One-shot rules, and the budgets of their uses, in memory that all processes share."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Final, NamedTuple, Protocol

from blackhole.settings import OperatorError
from blackhole.store.shared_lock import SharedLock

MAX_ONE_SHOT_RULES: Final = 16
"""One-shot rules that can wait at the same time, of the server and of each namespace."""

BUDGET_BITS: Final = 32
"""A budget is a number of remaining uses in the low bits of a cell, and the number of its order above
them."""

WRITER_MAX_WAIT: Final = 2.0
"""Seconds that a writer waits for another, which may be making certificates."""


class OneShotRule(NamedTuple):
    """A rule that comes before all others, and ends after a number of uses."""

    number: int
    """Number of the order that it came with, which tells its budget from an earlier one in the same cell."""
    place: int
    """Index of its budget."""
    times: int
    """Number of uses."""
    rule: Mapping[str, Any]
    """The rule, as in a scenario file."""
    shared: str = ""
    """What its uses are counted for in a fleet; empty where this machine alone obeys it."""


class Budgets(Protocol):
    """What one-shot rules need of their budgets."""

    def remaining(self, one: OneShotRule) -> int:
        """Return the number of uses that remain."""

    def consume(self, one: OneShotRule) -> bool:
        """Consume one use; return False if none remains."""


class UseBudgets:
    """The budgets of MAX_ONE_SHOT_RULES rules: a cell for each, and an octet of a lock from `first_octet` on.

    >>> budgets = UseBudgets(memoryview(bytearray(8 * MAX_ONE_SHOT_RULES)).cast("Q"), SharedLock("uses"), 0)
    >>> one = OneShotRule(number=1, place=0, times=1, rule={})
    >>> budgets.set_budget(one, one.times)
    >>> budgets.consume(one), budgets.consume(one)
    (True, False)
    """

    def __init__(self, cells: memoryview, lock: SharedLock, first_octet: int) -> None:
        self._cells: Final = cells
        self._lock: Final = lock
        self._first_octet: Final = first_octet

    def remaining(self, one: OneShotRule) -> int:
        """Return the number of uses that remain; 0 if the budget belongs to another rule by now."""
        number, remaining = divmod(self._cells[one.place], 1 << BUDGET_BITS)
        return remaining if number == one.number else 0

    def set_budget(self, one: OneShotRule, uses: int) -> None:
        """Set the number of uses that remain.

        Raises OperatorError (EX_TEMPFAIL) while another process does not release it.
        """
        octet = self._first_octet + one.place
        acquire_lock(self._lock, octet)
        try:
            self._cells[one.place] = (one.number << BUDGET_BITS) + uses
        finally:
            self._lock.release(octet)

    def consume(self, one: OneShotRule) -> bool:
        """Consume one use; return False if none remains. The count is exact over all processes.

        Also return False, and leave the use to a later message, while the lock is not to be had.
        """
        octet = self._first_octet + one.place
        if not self.remaining(one) or not self._lock.acquire(octet):
            return False
        try:
            if not self.remaining(one):
                return False
            self._cells[one.place] -= 1
            return True
        finally:
            self._lock.release(octet)


def acquire_lock(lock: SharedLock, octet: int) -> None:
    """Lock an octet. Raises OperatorError (EX_TEMPFAIL) while another process does not release it."""
    if not lock.acquire(octet, WRITER_MAX_WAIT):
        raise OperatorError("another process changes the orders and does not finish", os.EX_TEMPFAIL)
