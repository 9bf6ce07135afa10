"""The clock of windows in a fleet: those of the configuration open at the same time on all machines.

It starts with the first machine that has these windows, while no other one is alive. Each machine says once a
second when its own has started; the store answers with the time of all, by its clock. A machine that does not
reach the store uses its own start until then.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Final, Self

from blackhole.fleet.replies import StoreError
from blackhole.fleet.store import FleetStore
from blackhole.rules.model import Rule
from blackhole.settings import OperatorError
from blackhole.store.control import ControlChannel

log = logging.getLogger(__name__)

MAX_WINDOW_DIFFERENCE: Final = 0.1
"""Seconds between the clock of a machine and that of all which are not corrected."""

MAX_WINDOW_AGE: Final = 1e10
"""Seconds: longer ago than 1970, where the store's clock begins."""

NOTICED_DIFFERENCE: Final = 1.0
"""Seconds from which a correction is logged."""

WINDOWS_DIGITS: Final = 16
"""Digits of what tells some windows from others."""


class WindowClock:
    """The clock of one machine, which its workers read from the control channel."""

    def __init__(self, store: FleetStore, channel: ControlChannel, windows: str, started: float) -> None:
        """`windows` tells them from others; `started` is when the server was, in monotonic time."""
        self._store: Final = store
        self._channel: Final = channel
        self._windows: Final = windows
        self._started: Final = started

    @classmethod
    def of_rules(
        cls, store: FleetStore, channel: ControlChannel, rules: Iterable[Rule], started: float
    ) -> Self | None:
        """Return the clock for the windows of some rules; None if they have none."""
        windows = sorted({rule.window for rule in rules if rule.window is not None})
        if not windows:
            return None
        digest = hashlib.sha256(repr(windows).encode()).hexdigest()[:WINDOWS_DIGITS]
        return cls(store, channel, digest, started)

    @property
    def origin(self) -> float:
        """When the clock of this machine has started, in monotonic time."""
        return self._channel.read()[1].windows_began or self._started

    async def update(self, generation: str) -> None:
        """Ask the store for the clock of all machines in a generation, and use it."""
        asked = time.monotonic()
        try:
            age = await self._store.share_windows(generation, self._windows, asked - self.origin)
        except StoreError:
            return  # the next write says so
        waited = (time.monotonic() - asked) / 2
        difference = asked + waited - age - self.origin
        if abs(difference) > MAX_WINDOW_DIFFERENCE + waited and 0 <= age < MAX_WINDOW_AGE:
            self._correct(difference)

    def _correct(self, difference: float) -> None:
        """Move the start of the clock by some seconds, in all workers."""
        origin = self.origin + difference
        try:
            self._channel.publish(lambda before, _: replace(before, windows_began=origin))
        except (OperatorError, ValueError) as error:  # the next update corrects it
            log.error("fleet %s: the clock of windows is not corrected: %s", self._store.name, error)
            return
        if abs(difference) >= NOTICED_DIFFERENCE:
            side = "earlier" if difference < 0 else "later"
            log.info(
                "fleet %s: windows begin %.1f s %s than they did on this machine, as on the others",
                *(self._store.name, abs(difference), side),
            )
