"""Public keys for DKIM that a DNS resolver is asked for, in the background, and that are kept for a while.

A client chooses the names that are asked for, so all of it is bounded: the queries of a second and those that
wait for an answer, the size of an answer, and the keys that are kept.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple

from blackhole.messages.dkim_verification import AWAITED_KEY, DKIMKeys, SigningKey
from blackhole.net.dkim_keys import PublishedKey, UnusableKey, published_keys, require_cryptography
from blackhole.net.dns_records import DNSClient, DNSLookupError, TextRecords
from blackhole.settings import Settings

log = logging.getLogger(__name__)

MAX_QUERIES_PER_SECOND: Final = 20

MAX_OUTSTANDING: Final = 20
"""Queries that wait for an answer, at most."""

MAX_KEPT_KEYS: Final = 1024
"""Names of which the answer is kept. A new one takes the place of the oldest."""

LEAST_SECONDS: Final = 60.0
"""Seconds for which an answer is kept, at least, whatever its time to live is."""

MOST_SECONDS: Final = 3600.0

RETRY_SECONDS: Final = 30.0
"""Seconds from a query without an answer to the next one for the same name."""

UNANSWERED_INTERVAL: Final = 60.0
"""Seconds between two lines of the log about queries without an answer."""

RecordLookup = Callable[[bytes], Awaitable[TextRecords]]
"""Returns the TXT records with a name. Raises ValueError and DNSLookupError, as DNSClient.text_records."""


class KeptAnswer(NamedTuple):
    """What is known of a name, until some time of the clock. Without a key nothing is known."""

    key: SigningKey | None
    until: float


class ResolvedKeys:
    """Keys that are known, and others that are asked for when they are first needed.

    `get` never waits: a key that was asked for is AWAITED_KEY until the answer has come.
    """

    def __init__(
        self,
        known: DKIMKeys,
        look_up: RecordLookup,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._known: Final = known
        self._look_up: Final = look_up
        self._clock: Final = clock
        self._kept: Final[dict[bytes, KeptAnswer]] = {}
        self._outstanding: Final[dict[bytes, asyncio.Task[None]]] = {}
        self._second = 0
        """The second of the clock in which queries are counted, and how many there were."""
        self._queries = 0
        self._warned = -UNANSWERED_INTERVAL

    def get(self, name: bytes, /) -> SigningKey | None:
        """Return the key with a name; None if it is not known, AWAITED_KEY if an answer is awaited."""
        key = self._known.get(name)
        if key is not None:
            return key
        now = self._clock()
        kept = self._kept.get(name)
        if kept is not None and now < kept.until:
            return kept.key
        if name not in self._outstanding:
            if not self._may_ask(now):
                return None
            self._outstanding[name] = asyncio.get_running_loop().create_task(self._ask(name))
        return AWAITED_KEY

    def _may_ask(self, now: float) -> bool:
        """Return whether another query may leave, and count it."""
        if int(now) != self._second:
            self._second, self._queries = int(now), 0
        if self._queries >= MAX_QUERIES_PER_SECOND or len(self._outstanding) >= MAX_OUTSTANDING:
            return False
        self._queries += 1
        return True

    async def _ask(self, name: bytes) -> None:
        """Ask for a key, and keep the answer."""
        try:
            records = await self._look_up(name)
        except ValueError:
            self._keep(name, None, MOST_SECONDS)
        except DNSLookupError as error:
            self._warn(name, error)
            self._keep(name, None, RETRY_SECONDS)
        else:
            self._keep(name, key_of(records.texts), min(max(records.seconds, LEAST_SECONDS), MOST_SECONDS))
        finally:
            del self._outstanding[name]

    def _keep(self, name: bytes, key: SigningKey | None, seconds: float) -> None:
        self._kept.pop(name, None)  # so that it is the latest
        if len(self._kept) >= MAX_KEPT_KEYS:
            del self._kept[next(iter(self._kept))]
        self._kept[name] = KeptAnswer(key, self._clock() + seconds)

    def _warn(self, name: bytes, error: DNSLookupError) -> None:
        now = self._clock()
        if now - self._warned >= UNANSWERED_INTERVAL:
            self._warned = now
            log.warning("dkim_resolver: %s: %s", name.decode("ascii", "replace"), error)


def signing_keys(settings: Settings) -> DKIMKeys:
    """Return the keys with which workers verify signatures. They are made before the fork.

    Raises OperatorError.
    """
    known = published_keys(settings.dkim_keys, settings.dkim_records) if settings.dkim_records else {}
    if not settings.dkim_resolver.host:
        return known
    require_cryptography("dkim_resolver")
    return ResolvedKeys(known, DNSClient(settings.dkim_resolver).text_records)


def key_of(texts: tuple[bytes, ...]) -> SigningKey:
    """Return the key in the first of these records that has one, or what is wrong with them."""
    fault = "no key is published"
    for text in texts:
        try:
            return PublishedKey(text)
        except ValueError as error:
            fault = f"the record of the key is wrong: {error}"
    return UnusableKey(fault)
