"""What clients use on all machines of a fleet, as a worker knows it.

A new connection asks the store one question, which adds the connection to what its client has done in this
minute and to its open connections. What the client does then is added to the store with its first command
after a pause, and once a second while it goes on, in one question for each client. A command is compared with
what the store has told and with what was counted here since, and waits for nothing. So a client that sends to
several machines at once may go beyond a rate by what it does in a second. Where the store does not answer,
the limits of this machine apply alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from blackhole.net.client_table import CONNECTIONS, RECEIVED
from blackhole.rules.attempt_store import HeldSlot, PendingAnswer

AMOUNTS: Final = RECEIVED + 1 - CONNECTIONS
"""The counts of a client that a minute has: the cells of the client table from CONNECTIONS to RECEIVED."""


class UsageStore(Protocol):
    """What is needed of a store that the machines of a fleet share. Each question has None for no answer."""

    def use(
        self, key: bytes, amounts: Sequence[int], on_answer: Callable[[tuple[int, ...] | None], None]
    ) -> PendingAnswer | None:
        """Add amounts to what a client has done in this minute; tell the sums, and the milliseconds left."""

    def refuse_or_acquire(self, key: bytes, limit: int) -> bool | PendingAnswer | None:
        """Return true if `limit` connections of a client are open; otherwise add one and return false."""

    def release(self, slot: HeldSlot) -> None:
        """Take away a connection that was added."""


class FleetClient:
    """A client with connections to this worker, or with counts that the store does not have."""

    __slots__ = ("_clock", "_ends", "_key", "_store", "_sums", "_unsent", "asked", "connections")

    def __init__(self, store: UsageStore, key: bytes, clock: Callable[[], float]) -> None:
        self._store: Final = store
        self._key: Final = key
        self._clock: Final = clock
        self.connections = 0
        """Open ones, in this worker."""
        self.asked = False
        """Whether the store was asked in this second."""
        self._sums = [0] * AMOUNTS
        """What the client has done in this minute, as the store knows it."""
        self._ends = 0.0
        """When this minute ends."""
        self._unsent = [0] * AMOUNTS
        """What was counted since the store was asked."""

    def count(self, cell: int, amount: int) -> int:
        """Add to a count, and return its sum for this minute."""
        place = cell - CONNECTIONS
        self._unsent[place] += amount
        found = self._unsent[place] + self.sum(cell)
        if amount and not self.asked:
            self.ask()
        return found

    def sum(self, cell: int) -> int:
        """Return what the store has told of a count of this minute."""
        return self._sums[cell - CONNECTIONS] if self._clock() < self._ends else 0

    def add_connection(self) -> PendingAnswer | None:
        """Count a new connection, and ask the store."""
        self.connections += 1
        self._unsent[0] += 1
        return self.ask()

    def acquire(self, most: int) -> HeldSlot | bool | None:
        """Ask the store whether another connection may be open."""
        return self._store.refuse_or_acquire(self._key, most)

    def ask(self) -> PendingAnswer | None:
        """Send what the store does not have, and forget it: what is lost on the way is not sent twice."""
        self.asked = True
        unsent, self._unsent = self._unsent, [0] * AMOUNTS
        return self._store.use(self._key, unsent, self._learn)

    def _learn(self, answer: tuple[int, ...] | None) -> None:
        """Take in what the store has told."""
        if answer is not None:
            *self._sums, left = answer
            self._ends = self._clock() + left / 1000

    def sweep(self) -> bool:
        """Once a second, send what was counted. Return whether the client is still here."""
        self.asked = False
        if any(self._unsent):
            self.ask()
            return True
        return self.connections > 0


class FleetConnection:
    """A connection of a client that all machines count."""

    __slots__ = ("_answer", "_lease", "_store", "client", "has_too_many_open")

    def __init__(self, store: UsageStore, client: FleetClient, most: int) -> None:
        self._store = store
        self.client = client
        self.has_too_many_open = False
        """Whether the client had as many connections as it may when this one was opened."""
        self._answer = client.add_connection()
        self._lease = client.acquire(most) if most else None

    @property
    def is_pending(self) -> bool:
        """Whether the store was asked."""
        return self._answer is not None or self._lease is not None

    async def wait(self) -> None:
        """Wait for the answers of the store, which come together, or for the end of their time."""
        if self._answer is not None:
            await self._answer
        if isinstance(self._lease, PendingAnswer):
            self.has_too_many_open = bool(await self._lease)

    def leave(self) -> None:
        """Stop counting the connection as open."""
        self.client.connections -= 1
        if isinstance(self._lease, PendingAnswer):
            self._store.release(self._lease)
            self._lease = None


class FleetUsage:
    """The clients of one worker that has a store. `fleet` is the name of the fleet."""

    def __init__(
        self, store: UsageStore, fleet: str, most: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`most` is the limit of open connections of a client; 0 for none."""
        self._store: Final = store
        self._prefix: Final = f"{fleet}\0".encode()
        self._most: Final = most
        self._clock: Final = clock
        self._clients: Final[dict[bytes, FleetClient]] = {}

    def enter(self, client: bytes) -> FleetConnection:
        """Count a new connection of a client, and ask the store. `FleetConnection.leave` must follow."""
        known = self._clients.get(client)
        if known is None:
            known = FleetClient(self._store, self._prefix + client, self._clock)
            self._clients[client] = known
        return FleetConnection(self._store, known, self._most)

    def sweep(self) -> None:
        """Once a second, send what was counted, and forget the clients that have left."""
        for client, known in [*self._clients.items()]:
            if not known.sweep():
                del self._clients[client]
