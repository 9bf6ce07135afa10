"""The table of outcomes: what became of messages and envelopes, shared by all workers, in memory only.

Nearly all messages are accepted, and of those nothing but their hash is kept: in sets of eight that fill one
line of the processor's cache, where a new hash takes the place of the oldest. Reading and writing a set takes
a fifth of the time for a record of the table of attempts. All other outcomes are records of that table.

No lock is taken. Two workers that accept messages of the same set within the same microsecond may keep one.
"""

from __future__ import annotations

import mmap
from struct import Struct
from typing import Final

from blackhole.store.attempts import SETS, SLOTS_PER_SET, AttemptTable

HASH_OCTETS: Final = 8
SET_OCTETS: Final = SLOTS_PER_SET * HASH_OCTETS

pack_hash: Final = Struct("Q").pack


class OutcomeTable(AttemptTable):
    """An OutcomeStore that all processes of one fork share.

    >>> table = OutcomeTable(sets=1)
    >>> message = table.key_hash("a message")
    >>> table.add_accepted(message), table.add_accepted(message), table.remove_accepted(message)
    (True, False, True)
    """

    def __init__(self, sets: int = SETS) -> None:
        super().__init__(sets=sets)
        self._accepted: Final = mmap.mmap(-1, sets * SET_OCTETS)
        self._accepted_hashes: Final = memoryview(self._accepted).cast("Q")
        self._has_records: Final = mmap.mmap(-1, 1)

    def has_records(self) -> bool:
        """Return whether there ever was a record: whether anything was not simply accepted."""
        return self._has_records[0] != 0

    def add_accepted(self, key_hash: int) -> bool:
        """Add an accepted message, and return True; return False and change nothing if it is known."""
        number, accepted = key_hash % self._sets, self._accepted
        start = number * SET_OCTETS
        if accepted.find(pack_hash(key_hash), start, start + SET_OCTETS) >= 0:
            return False
        accepted.move(start + HASH_OCTETS, start, SET_OCTETS - HASH_OCTETS)
        self._accepted_hashes[number * SLOTS_PER_SET] = key_hash
        return True

    def remove_accepted(self, key_hash: int) -> bool:
        """Remove an accepted message, and return whether it was known."""
        start, hashes = key_hash % self._sets * SET_OCTETS, self._accepted
        place = hashes.find(pack_hash(key_hash), start, start + SET_OCTETS)
        if place < 0:
            return False
        hashes[place : place + HASH_OCTETS] = bytes(HASH_OCTETS)
        return True

    def _insert(
        self, key_hash: int, start: int, entries: tuple[int, ...], last: int, first: int, count: int
    ) -> None:
        super()._insert(key_hash, start, entries, last, first, count)
        self._has_records[0] = 1
