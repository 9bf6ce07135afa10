"""The exchange of outcomes: what this machine knows of messages goes to the others of its fleet, and back.

So a client that is deferred by one machine and retries at another is seen to retry. The dashboard process
does it; no mail waits for it. Changes of records, which are rare, are sent and announced at once, and then no
more often than after a pause; all others are sent once a second. The changes are in a stream of the store,
which forgets them after STREAM_SECONDS: a machine that was cut off for longer does not learn what it missed.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from struct import Struct
from typing import Final

from blackhole.fleet.replies import StoreError
from blackhole.fleet.store import OUTCOME_CHANNEL, FleetStore, StreamEntry
from blackhole.store.redis_attempts import WARNING_INTERVAL
from blackhole.store.shared_outcomes import (
    ADDED,
    OUTCOME_SECRET_OCTETS,
    OutcomeChange,
    SharedOutcomeTable,
)

log = logging.getLogger(__name__)

WIRE_CHANGE: Final = Struct("!QQII")
"""A change in the stream: the hash, the count, and the milliseconds since the first and the last time."""

CHANGES_PER_ENTRY: Final = 4096
"""Changes in an entry of the stream, which has 96 KiB then."""

ENTRIES_PER_READ: Final = 64
"""Entries that are read at once."""

MAX_WIRE_AGE: Final = (1 << 32) - 1
"""Milliseconds: 49 days."""

SECRET_INTERVAL: Final = 60.0
"""Seconds between two questions for the secret, unless the store did not answer."""

EXCHANGE_INTERVAL: Final = 1.0
"""Seconds between two exchanges, where nothing is announced."""

MIN_PAUSE: Final = 0.05
"""Seconds between two exchanges at least."""

PAUSE_PER_MACHINE: Final = 0.001
"""Seconds of the same, for each machine of the fleet: together they read the store 1000 times a second."""


def packed(changes: Sequence[OutcomeChange], now: float) -> bytes:
    """Return changes as they are in the stream."""
    return b"".join(
        WIRE_CHANGE.pack(
            change.key_hash, change.state, _milliseconds(now - change.first), _milliseconds(now - change.last)
        )
        for change in changes
    )


def _milliseconds(seconds: float) -> int:
    return min(MAX_WIRE_AGE, max(0, int(seconds * 1000)))


def unpacked(octets: bytes, now: float) -> list[OutcomeChange]:
    """Return the changes in an entry that was written at a time; none if it is no entry."""
    if len(octets) % WIRE_CHANGE.size:
        return []
    return [
        OutcomeChange(key_hash, state, now - first / 1000, now - last / 1000)
        for key_hash, state, first, last in WIRE_CHANGE.iter_unpack(octets)
        if key_hash
    ]


class OutcomeExchange:
    """The exchange of one machine. `alive` returns how many machines there are."""

    def __init__(
        self,
        store: FleetStore,
        machine: str,
        table: SharedOutcomeTable,
        alive: Callable[[], int] = lambda: 1,
    ) -> None:
        self._alive: Final = alive
        self._is_due: Final = asyncio.Event()
        """There is something to exchange."""
        self._store: Final = store
        self._machine: Final = machine.encode()
        self._table: Final = table
        self._last = "0-0"
        """The entry that was read last."""
        self._secret_is_due = 0.0
        """When to ask for the secret again, which the store may lose."""
        self._lost = 0
        """Changes that were lost, as far as the log says."""
        self._warned = float("-inf")

    async def run(self) -> None:
        """Exchange outcomes for ever: once a second, and when there is something to exchange."""
        self._table.skip_changes()
        loop = asyncio.get_running_loop()
        loop.add_reader(self._table.wakeup_read, self._wake_up)
        listening = asyncio.create_task(self._store.listen(OUTCOME_CHANNEL, self._is_due.set))
        try:
            while True:
                was_due = self._is_due.is_set()
                self._is_due.clear()
                try:
                    await self.exchange()
                except StoreError:  # the writer of the figures says so
                    self._secret_is_due = 0.0
                self._warn_of_losses()
                await asyncio.sleep(self.pause)
                if not was_due:  # else there may be more that was not announced
                    # Not wait_for, which in Python 3.11 ignores to be cancelled as the event is set.
                    with suppress(TimeoutError):
                        async with asyncio.timeout(EXCHANGE_INTERVAL):
                            await self._is_due.wait()
        finally:
            loop.remove_reader(self._table.wakeup_read)
            listening.cancel()

    def _wake_up(self) -> None:
        self._table.clear_wakeup()
        self._is_due.set()

    @property
    def pause(self) -> float:
        """The seconds between two exchanges at least."""
        return min(EXCHANGE_INTERVAL, max(MIN_PAUSE, self._alive() * PAUSE_PER_MACHINE))

    async def exchange(self) -> None:
        """Send what has changed here, and adopt what has changed elsewhere. Raises StoreError."""
        if time.monotonic() >= self._secret_is_due:
            await self._use_common_secret()
        changes = list(self._table.read_changes())
        now = time.monotonic()
        for first in range(0, len(changes), CHANGES_PER_ENTRY):
            part = changes[first : first + CHANGES_PER_ENTRY]
            pause = round(self.pause * 1000) if any(change.state < ADDED for change in part) else 0
            await self._store.add_outcomes(self._machine, packed(part, now), pause)
        full = True
        while full:
            store_now, entries = await self._store.outcomes(self._last, ENTRIES_PER_READ)
            now = time.monotonic()
            for entry in entries:
                self._adopt(entry, now - max(0, store_now - entry.milliseconds) / 1000)
                self._last = entry.id
                await asyncio.sleep(0)
            full = len(entries) == ENTRIES_PER_READ

    async def _use_common_secret(self) -> None:
        """Use the secret that all machines have. Raises StoreError."""
        secret = await self._store.outcome_secret(self._table.secret)
        if len(secret) == OUTCOME_SECRET_OCTETS and secret != self._table.secret:
            self._table.set_secret(secret)
            self._table.skip_changes()  # their hashes have another key
        self._secret_is_due = time.monotonic() + SECRET_INTERVAL

    def _adopt(self, entry: StreamEntry, written: float) -> None:
        """Adopt what another machine wrote at a time of this machine's clock."""
        if entry.machine != self._machine:
            for change in unpacked(entry.octets, written):
                self._table.adopt(change, written)

    def _warn_of_losses(self) -> None:
        """Log, at most once a minute, that changes came too fast to be read."""
        lost = self._table.lost
        if lost > self._lost and time.monotonic() - self._warned >= WARNING_INTERVAL:
            log.warning("fleet: %d outcomes of messages came too fast to be shared", lost - self._lost)
            self._lost, self._warned = lost, time.monotonic()
