"""The guard of runtime orders: drops an order that workers do not survive."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from typing import Final

from blackhole.metrics.counters import Counters
from blackhole.settings import OperatorError
from blackhole.store.control import INITIAL_NUMBER, ControlChannel, RuntimeOrder

log = logging.getLogger(__name__)

MAX_HUNG: Final = 2
"""Workers that hang under an order, after they have applied it, before it is dropped."""


class OrderGuard:
    """Looks at the order under which a child has died, in the master.

    Each replacement would read the order again: one that kills would end all mail until somebody intervenes.
    """

    def __init__(self, counters: Counters, control: ControlChannel) -> None:
        self._counters, self._control = counters, control
        self._suspect = INITIAL_NUMBER
        """Number of the order under which workers hang."""
        self._hung = 0
        """How many have."""

    def check(self, row: int, hung: bool) -> None:
        """Drop the order in force if a child that has exited died of it. Its row must not be free yet.

        It died of the order if it was reading it; or, as the second one, if it was computing when its
        heartbeat was missing for too long (`hung`).
        """
        number = self._control.number
        reading, applied = self._counters.orders_of(row)
        if number == INITIAL_NUMBER or number not in (reading, applied):
            return
        if reading is None:
            if not hung:
                return
            self._hung = self._hung + 1 if self._suspect == number else 1
            self._suspect = number
            if self._hung < MAX_HUNG:
                return
        self._drop(number)

    def _drop(self, number: int) -> None:
        """Put an empty order in force in place of this one, or one without the namespace that it changed."""
        changed = self._control.read()[1].changed

        def change(before: RuntimeOrder, following: int) -> RuntimeOrder:
            if following > number + 1:
                return before
            if changed:  # the orders for other namespaces, and for the server, do no harm
                others = tuple(one for one in before.namespaces if one.name != changed)
                return replace(before, namespaces=others, dropped=number)
            return RuntimeOrder(at=time.time(), windows_began=before.windows_began, dropped=number)

        try:
            following = self._control.publish(change)
        except (OperatorError, ValueError) as error:  # the next worker that dies of it leads here again
            log.error("order %d, of which a worker has died, is not dropped: %s", number, error)
        else:
            log.error(
                "order %d is dropped, because a worker has died of it; order %d restores the configuration%s",
                *(number, following, changed and f" of the namespace {changed}"),
            )
