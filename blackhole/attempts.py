"""Who tried what, and when: a bounded memory of attempts, shared by all workers and kept in no file.

What is remembered is a keyed hash, a count and two times, never an address. The
key of the hash is drawn at start and dies with the process, so nobody can ask
the memory afterwards whether some address was in it.

The table is an anonymous map made before the fork: sets of eight slots. A key
belongs to one set; when that is full, whoever was seen longest ago goes. There
is no lock: two workers that count the same key within the same microsecond may
count it once, and a look-up takes 2.5 microseconds, where one with a lock would
take 3 and might wait for a worker that was killed while it held it.
"""

from __future__ import annotations

import mmap
import os
from hashlib import blake2b
from typing import Final, NamedTuple

SETS: Final = 1 << 15
"""With eight slots each: a quarter of a million keys, in 8 MiB, of which only what is used is resident."""

SLOTS: Final = 8
CELLS: Final = 4
"""In a slot: the hash (0: free), the count, and the first and the last time in microseconds."""


class Attempt(NamedTuple):
    """What is known of one key, this attempt included. Times are seconds of the caller's clock."""

    times: int
    first: float
    last: float
    """When it was seen before; where it was not, now."""


class Attempts:
    """The memory. `secret` keys the hash; whoever gives the same one gets the same sets, as tests like it."""

    def __init__(self, sets: int = SETS, secret: bytes | None = None) -> None:
        self._sets: Final = sets
        self._secret: Final = os.urandom(16) if secret is None else secret
        self._cells: Final = memoryview(mmap.mmap(-1, sets * SLOTS * CELLS * 8)).cast("Q")

    def record(self, key: bytes, now: float) -> Attempt:
        """Count an attempt, and tell of those before it. `now` must not be negative."""
        digest = int.from_bytes(blake2b(key, digest_size=8, key=self._secret).digest()) or 1
        start = digest % self._sets * (SLOTS * CELLS)
        slots = self._cells[start : start + SLOTS * CELLS].tolist()
        moment = int(now * 1e6) + 1  # 0 is what a free slot has
        try:
            # A time could look like a hash only by an accident of 2^-64.
            at = start + slots.index(digest)
        except ValueError:
            last = slots[3::CELLS]
            at = start + CELLS * last.index(min(last))
            # The hash comes last: until then nobody finds the slot half written.
            self._cells[at] = 0
            self._cells[at + 1], self._cells[at + 2], self._cells[at + 3] = 1, moment, moment
            self._cells[at] = digest
            return Attempt(1, now, now)
        count = self._cells[at + 1] + 1
        first, last_time = self._cells[at + 2], self._cells[at + 3]
        self._cells[at + 1], self._cells[at + 3] = count, moment
        return Attempt(count, (first - 1) / 1e6, (last_time - 1) / 1e6)
