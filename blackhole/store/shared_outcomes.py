"""The table of outcomes of a machine in a fleet: its changes go to the other machines, and theirs come here.

Its hashes are keyed with a secret that all machines have, so that they mean the same on each. A worker writes
each change into a ring of its own in shared memory, and waits for nobody. Another process of the machine
reads the rings, and adopts what other machines have changed. A change of a record wakes it up: of a message
that was not simply accepted.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Hashable, Iterator
from contextlib import suppress
from functools import partial
from hashlib import blake2b
from struct import Struct
from typing import Final, NamedTuple

from blackhole.rules.attempt_store import Answer, Record, Update
from blackhole.rules.outcomes import FOREIGN
from blackhole.store.attempts import SETS
from blackhole.store.outcome_table import OutcomeTable

RING_ENTRIES: Final = 1 << 14
"""Changes of a worker that are kept until they are read: those of a second, at 8,000 messages a second."""

ENTRY: Final = Struct("QQdd")
"""A change: the hash, the count of the record, and its first and last time."""

POSITION: Final = Struct("Q")
"""The number of changes that a worker has written."""

RING_OCTETS: Final = POSITION.size + RING_ENTRIES * ENTRY.size

ADDED: Final = 1 << 63
REMOVED: Final = ADDED + 1
"""In place of a count: the hash of an accepted message was added, or removed."""

OUTCOME_SECRET_OCTETS: Final = 16


class OutcomeChange(NamedTuple):
    """A change of the table."""

    key_hash: int
    state: int
    """The count of the record; or ADDED, or REMOVED."""
    first: float
    last: float


class SharedOutcomeTable(OutcomeTable):
    """An OutcomeStore of a fleet, for `rows` processes of one fork."""

    def __init__(self, rows: int, sets: int = SETS) -> None:
        super().__init__(sets=sets)
        self._shared_secret: Final = mmap.mmap(-1, OUTCOME_SECRET_OCTETS)
        self._shared_secret[:] = os.urandom(OUTCOME_SECRET_OCTETS)
        self._rings: Final = mmap.mmap(-1, rows * RING_OCTETS)
        self._rows: Final = rows
        self._ring = -1
        """Where the ring of this process begins; -1 if it has none, and its changes stay here."""
        self._read: Final[list[int]] = [0] * rows
        """The number of changes that were read from each ring."""
        self.lost = 0
        """Changes that were overwritten before they were read."""
        self.wakeup_read, self._wakeup_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        """Becomes readable when a record changes after all changes were read."""
        self._is_awake: Final = mmap.mmap(-1, 1)
        """Whether it is readable, so that one octet is written however many records change."""

    def set_ring(self, row: int) -> None:
        """Write the changes of this process into the ring of a row."""
        self._ring = row * RING_OCTETS

    @property
    def secret(self) -> bytes:
        """The key of all hashes."""
        return self._shared_secret[:]

    def set_secret(self, secret: bytes) -> None:
        """Use the secret of the fleet, in all processes. What another one was used for is found no more."""
        self._shared_secret[:] = secret

    # OutcomeStore.

    def key_hash(self, key: Hashable) -> int:
        """Return the keyed hash of a key: 64 bits, never 0, the same on all machines."""
        digest = blake2b(repr(key).encode(), digest_size=8, key=self._shared_secret[:]).digest()
        return int.from_bytes(digest) or 1

    def add_accepted(self, key_hash: int) -> bool:
        """Add an accepted message, and return True; return False and change nothing if it is known."""
        added = super().add_accepted(key_hash)
        if added:
            self._write(key_hash, ADDED, 0.0, 0.0)
        return added

    def remove_accepted(self, key_hash: int) -> bool:
        """Remove an accepted message, and return whether it was known."""
        removed = super().remove_accepted(key_hash)
        if removed:
            self._write(key_hash, REMOVED, 0.0, 0.0)
        return removed

    def update_hash(self, key_hash: int, now: float, change: Update[Answer]) -> Answer:
        """Change the record of a hash and return the answer."""
        if self._ring < 0:
            return super().update_hash(key_hash, now, change)

        def written(record: Record, at: float) -> tuple[Record, Answer]:
            changed, answer = change(record, at)
            if changed != record and (changed[0] or record[0]):
                self._write(key_hash, *changed)
            return changed, answer

        return super().update_hash(key_hash, now, written)

    # The rings.

    def _write(self, key_hash: int, count: int, first: float, last: float) -> None:
        start, rings = self._ring, self._rings
        if start < 0:
            return
        (position,) = POSITION.unpack_from(rings, start)
        place = start + POSITION.size + position % RING_ENTRIES * ENTRY.size
        ENTRY.pack_into(rings, place, key_hash, count, first, last)
        POSITION.pack_into(rings, start, position + 1)
        if count < ADDED and not self._is_awake[0]:
            self._is_awake[0] = 1
            with suppress(BlockingIOError):  # full, and so readable
                os.write(self._wakeup_write, b"!")

    def clear_wakeup(self) -> None:
        """Make `wakeup_read` unreadable until a record changes. The changes are to be read then."""
        with suppress(BlockingIOError):
            os.read(self.wakeup_read, 1 << 12)

    def skip_changes(self) -> None:
        """Read no change that was written before."""
        for row in range(self._rows):
            (self._read[row],) = POSITION.unpack_from(self._rings, row * RING_OCTETS)

    def read_changes(self) -> Iterator[OutcomeChange]:
        """Yield the changes since the last call, of all workers."""
        self._is_awake[0] = 0
        for row in range(self._rows):
            start = row * RING_OCTETS
            (position,) = POSITION.unpack_from(self._rings, start)
            first = max(self._read[row], position - RING_ENTRIES)
            self.lost += first - self._read[row]
            self._read[row] = position
            for number in range(first, position):
                place = start + POSITION.size + number % RING_ENTRIES * ENTRY.size
                yield OutcomeChange(*ENTRY.unpack_from(self._rings, place))

    def adopt(self, change: OutcomeChange, now: float) -> None:
        """Take over a change of another machine, unless what is known here is newer."""
        if change.state == ADDED:
            super().add_accepted(change.key_hash)
        elif change.state == REMOVED:
            super().remove_accepted(change.key_hash)
        else:
            super().update_hash(change.key_hash, now, partial(newer_record, change))


def newer_record(change: OutcomeChange, record: Record, now: float) -> tuple[Record, None]:
    """Return the record of another machine, or this one if it is newer."""
    count, _, last = record
    if count and last > change.last:
        return record, None
    return (change.state | FOREIGN, max(0.0, change.first), max(0.0, change.last)), None
