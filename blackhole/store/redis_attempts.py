"""The store of attempts that several machines share, in Redis.

Requests go to Redis in batches, on one connection for each worker: all requests that come while a batch is
under way are the next batch. A batch is one call of one script. No session waits longer than the timeout (50
milliseconds unless the operator sets another). Once an answer has not come within it, requests are answered
with "not known" at once, until Redis answers again or a new connection is open: a dead Redis delays the
sessions of one moment only.

A held concurrency slot is a lease, which its worker renews. The slots of a machine that is switched off are
free again when their leases end.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import deque
from collections.abc import Coroutine
from itertools import count
from typing import Any, Final, TypeVar

from blackhole.rules.attempt_store import Answer, HeldSlot, Update
from blackhole.rules.limiters import WindowCount
from blackhole.settings import RedisSettings
from blackhole.store.attempts import AttemptTable
from blackhole.store.redis_client import NonWaitingResolver, RedisClient
from blackhole.store.redis_requests import RedisCommand, RedisQuery, SlotLease
from blackhole.store.redis_script import ATTEMPT_KEY, RENEW_INTERVAL, request_words

log = logging.getLogger(__name__)

QueryType = TypeVar("QueryType", bound=RedisQuery)
Item = TypeVar("Item")

RECONNECT_INTERVAL: Final = 1.0
"""Seconds between two attempts to connect."""

RELEASE_TIMEOUT: Final = 0.2
"""Seconds that a stopping worker takes to release its slots."""

WARNING_INTERVAL: Final = 60.0
"""Seconds between two warnings that Redis does not answer, over all workers."""

BATCH_SIZE: Final = 256
"""Queries, and commands, in a batch. Each takes Redis 6 microseconds, during which it serves nobody else."""


class RedisAttemptStore:
    """An AttemptStore in Redis. It is made before the fork, and opened by each worker."""

    def __init__(self, settings: RedisSettings) -> None:
        self._settings: Final = settings
        self._client: Final = RedisClient(settings)
        self._warnings: Final = AttemptTable(sets=1)
        """Limits the warnings of all workers together."""
        self._warned = False
        """This worker has logged that Redis does not answer."""
        self._answering = False
        """Redis answered the last batch in time, so queries are accepted."""
        self._queries: Final[deque[RedisQuery]] = deque()
        self._commands: Final[deque[RedisCommand]] = deque()
        self._leases: Final[set[SlotLease]] = set()
        """Slots of this worker. One whose answer never came counts from the next renewal on."""
        self._token_numbers: Final = count()
        self._worker_id = ""
        self._tasks: Final[set[asyncio.Task[None]]] = set()
        self._exchange: asyncio.Task[None] | None = None
        """Sends the batches, while there is something to send."""

    # AttemptStore.

    def update(
        self, key: bytes, now: float, change: Update[Answer], alone: bool = False
    ) -> RedisQuery | None:
        """Query a change of a record; return None while Redis does not answer.

        `now` and `alone` mean nothing here: Redis has its own clock, and changes every record exclusively.
        """
        if not self._answering:
            return None
        return self._ask(RedisQuery((ATTEMPT_KEY, key), request_words(change), self._settings.timeout))

    def refuse_or_acquire(self, key: bytes, limit: int) -> SlotLease | None:
        """Query for a slot; return None while Redis does not answer."""
        if not self._answering:
            return None
        token = f"{self._worker_id}.{next(self._token_numbers)}"
        lease = SlotLease(key, limit, token, self._settings.timeout)
        self._leases.add(lease)
        return self._ask(lease)

    def release(self, place: HeldSlot) -> None:
        """Release a slot that was queried for by `refuse_or_acquire`."""
        assert isinstance(place, SlotLease)
        self._leases.discard(place)
        if place.may_be_held:
            self._commands.append(place.command("release"))
            self._wake()

    # The life of a worker.

    async def open(self) -> None:
        """Connect. If Redis does not answer, log it, and go on trying in the background."""
        self._worker_id = f"w{os.urandom(8).hex()}"
        asyncio.get_running_loop().set_default_executor(NonWaitingResolver())
        if not await self._connect():
            self._start(self._reconnect())
        self._start(self._renew_regularly())

    async def close(self) -> None:
        """Release all slots, answer all queries with None, and disconnect."""
        for task in self._tasks:
            task.cancel()
        for lease in [*self._leases]:
            self.release(lease)
        if self._exchange is not None:
            await asyncio.wait((self._exchange,), timeout=RELEASE_TIMEOUT)
        self._stop_answering()
        await self._client.disconnect()

    # Batches.

    def _ask(self, query: QueryType) -> QueryType:
        self._queries.append(query)
        self._wake()
        return query

    def _wake(self) -> None:
        """Send what waits, unless a batch is under way: then it is sent with the next one."""
        if self._exchange is None and self._client.connected:
            self._exchange = asyncio.get_running_loop().create_task(self._exchange_batches())

    async def _exchange_batches(self) -> None:
        """Run batches until nothing waits any more."""
        try:
            while self._client.connected and (self._queries or self._commands):
                await self._run_batch()
        finally:
            self._exchange = None

    async def _run_batch(self) -> None:
        """Run one batch, and settle its queries. If Redis does not answer, begin to reconnect."""
        late = asyncio.get_running_loop().call_later(self._settings.timeout, self._stop_answering)
        queries = [query for query in take_batch(self._queries) if not query.settled]
        commands = take_batch(self._commands)
        try:
            answers = await self._client.run([*queries, *commands])
        except self._client.errors as error:
            self._commands.extendleft(reversed(commands))
            self._stop_answering()
            for query in queries:
                query.settle(None)
            self._warn(error)
            await self._client.disconnect()
            self._start(self._reconnect())
            return
        finally:
            late.cancel()
        self._answering = True
        for query, answer in zip(queries, answers, strict=False):
            query.settle(answer)

    def _stop_answering(self) -> None:
        """Accept no further queries, and answer those that wait with None."""
        self._answering = False
        for query in self._queries:
            query.settle(None)
        self._queries.clear()

    # The connection.

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a task in the background until `close`."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self) -> bool:
        """Try once to connect; return whether that succeeded."""
        try:
            await self._client.connect()
        except self._client.errors as error:
            self._warn(error)
            return False
        self._answering = True
        if self._warned:
            self._warned = False
            log.info("attempt_store: %s answers again", self._settings)
        self._renew()
        return True

    async def _reconnect(self) -> None:
        """Try to connect until that succeeds."""
        while not await self._connect():
            await asyncio.sleep(RECONNECT_INTERVAL)

    async def _renew_regularly(self) -> None:
        """Renew the leases from time to time, which also notices a Redis that no longer answers."""
        while True:
            await asyncio.sleep(RENEW_INTERVAL)
            if self._client.connected:
                self._renew()

    def _renew(self) -> None:
        """Renew the lease of every slot that this worker may hold."""
        self._leases.intersection_update([lease for lease in self._leases if lease.may_be_held])
        self._commands.extend(lease.command("renew") for lease in self._leases)
        self._wake()

    def _warn(self, error: Exception) -> None:
        """Log that Redis does not answer, unless a worker has logged it within LOG_INTERVAL."""
        change = WindowCount(1, 1, WARNING_INTERVAL).spend
        if not self._warnings.update(b"", time.monotonic(), change, alone=True):
            self._warned = True
            reason = str(error) or "no answer in time"
            log.warning("attempt_store: %s: %s; each rule's when_unknown applies", self._settings, reason)


def take_batch(waiting: deque[Item]) -> list[Item]:
    """Remove and return as many items as a batch holds."""
    return [waiting.popleft() for _ in range(min(BATCH_SIZE, len(waiting)))]
