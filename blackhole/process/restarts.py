"""Restarts of children: how failed starts of a slot are counted, and when its next child is started."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Final

from blackhole.process.children import Child, Slot

log = logging.getLogger(__name__)

GIVE_UP: Final = 10
"""Failed starts of one slot after which it stays empty."""

MAX_CRASH_FAILURES: Final = 3
"""The most failures that children count which were ready before they died: a client that can crash
workers keeps a slot empty for the back-off of this many failures, and not for ever."""


def count_exit(slot: Slot, child: Child, now: float, early_death: float) -> None:
    """Count an exit as a failed start, unless the child was ready for `early_death` seconds."""
    if not child.ready_at:
        slot.failures += 1
    elif now < child.ready_at + early_death:
        slot.failures = min(slot.failures + 1, MAX_CRASH_FAILURES)
    else:
        slot.failures = 0


def count_failed_fork(slot: Slot) -> None:
    """Count a start for which the machine was short of something: never a reason to give up a slot."""
    slot.failures = min(slot.failures + 1, GIVE_UP - 1)


def schedule_start(slot: Slot, now: float, backoff: Sequence[float], reason: str) -> None:
    """Set when the next child of a slot starts, or give the slot up.

    `backoff` has the seconds to wait, by the number of failures in a row.
    """
    if slot.failures >= GIVE_UP:
        slot.start_at = math.inf
        log.error("%s; given up until the next reload, after %d failed starts", reason, GIVE_UP)
    else:
        wait = backoff[min(slot.failures, len(backoff) - 1)]
        slot.start_at = now + wait
        log.warning("%s; next start %s", reason, f"in {wait:g} s" if wait else "at once")
