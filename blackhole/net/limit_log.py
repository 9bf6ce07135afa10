"""The log of limits that clients met: one line a client and minute at most, in all workers together.

An anonymous map of a fixed size, made before the fork: a hash table of buckets with the time of the last line
about each client. A bucket that is full of clients of the last minute takes no other one, so that a flood of
addresses brings no flood of lines; the counters count on.
"""

from __future__ import annotations

import logging
import mmap
import os
import time
from collections.abc import Callable
from hashlib import blake2b
from typing import Final

from blackhole.addresses import to_bytes
from blackhole.log_format import log_event
from blackhole.net.client_table import client_key
from blackhole.store.shared_lock import SharedLock

log = logging.getLogger(__name__)

LIMIT_EVENT: Final = "client limit"
"""How the lines begin, after the level: the filter of fail2ban in contrib looks for it."""

QUIET_SECONDS: Final = 60
"""Seconds after a line about a client in which there is no other one about it."""

LOG_BUCKETS: Final = 2048
BUCKET_CLIENTS: Final = 4
"""The table has 64 KiB, of which the kernel allocates only the pages that were written to."""

SECONDS_BITS: Final = 32
"""A cell is a part of the hash of a client, and in its low bits the time of the last line in seconds."""


class LimitLog:
    """Logs which clients met which limit. It is made once for all workers."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._map: Final = mmap.mmap(-1, LOG_BUCKETS * BUCKET_CLIENTS * 8)
        self._cells: Final = memoryview(self._map).cast("Q")
        self._secret: Final = os.urandom(16)
        """Key of the hash, so that a client cannot choose addresses that share a bucket."""
        self._lock: Final = SharedLock("blackhole limit log")
        self._clock: Final = clock

    def tell(self, client: str, connection: str, listener: str, limit: str, most: float) -> None:
        """Log that a client met a limit, unless there was a line about it within the last minute."""
        if self._is_due(client_key(to_bytes(client))):
            log_event(
                log,
                logging.INFO,
                LIMIT_EVENT,
                {
                    "client": client,
                    "limit": limit,
                    "most": most,
                    "listener": listener,
                    "connection": connection,
                },
            )

    def _is_due(self, client: bytes) -> bool:
        """Return whether a line about a client is due, and record that it is written."""
        digest = blake2b(client, digest_size=8, key=self._secret).digest()
        tag, first = int.from_bytes(digest[:4]), int.from_bytes(digest[4:]) % LOG_BUCKETS * BUCKET_CLIENTS
        if not self._lock.acquire():
            return False
        try:
            now = int(self._clock()) + QUIET_SECONDS  # an empty cell is that of a line long ago
            places = range(first, first + BUCKET_CLIENTS)
            ages = {place: now - (self._cells[place] & (1 << SECONDS_BITS) - 1) for place in places}
            known = next((place for place in places if self._cells[place] >> SECONDS_BITS == tag), None)
            place = max(ages, key=lambda one: ages[one]) if known is None else known
            if ages[place] < QUIET_SECONDS:
                return False
            self._cells[place] = (tag << SECONDS_BITS) + now
            return True
        finally:
            self._lock.release()
