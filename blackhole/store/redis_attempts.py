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
from collections.abc import Callable, Coroutine, Sequence
from itertools import count, islice
from typing import Any, Final, TypeVar

from blackhole.rules.attempt_store import Answer, HeldSlot, Update
from blackhole.rules.quotas import WindowCount
from blackhole.settings import RedisSettings
from blackhole.store.attempts import AttemptTable
from blackhole.store.circuit_breaker import MAX_LATE, PROBE_INTERVAL, CircuitBreaker
from blackhole.store.redis_client import NonWaitingResolver, RedisClient
from blackhole.store.redis_requests import RedisCommand, RedisQuery, SlotLease, UsageQuery
from blackhole.store.redis_script import ATTEMPT_KEY, RENEW_INTERVAL, request_words

log = logging.getLogger(__name__)

QueryType = TypeVar("QueryType", bound=RedisQuery)

RECONNECT_DELAYS: Final = (0.0, 1.0, 2.0, 4.0, 5.0)
"""Seconds before the next attempt to connect, by the number of failures since queries were last answered.

A connection that breaks is replaced at once; a Redis that fails again is left alone for longer and longer.
"""

MAX_REASON: Final = 200
"""Characters of an error message that are logged."""

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
        self.circuit: Final = CircuitBreaker()
        self._probe_is_due = False
        self._queries: Final[deque[RedisQuery]] = deque()
        self._commands: Final[dict[str, RedisCommand]] = {}
        """By the token of the slot, so that one waits for each slot, however long Redis does not answer."""
        self._failures = 0
        """Failures since queries were last answered."""
        self._leases: Final[set[SlotLease]] = set()
        """Slots of this worker. One whose answer never came counts from the next renewal on."""
        self._token_numbers: Final = count()
        self._worker_id = ""
        self._tasks: Final[set[asyncio.Task[None]]] = set()
        self._exchange: asyncio.Task[None] | None = None
        """Sends the batches, while there is something to send."""

    # AttemptStore.

    def update(self, key: bytes, now: float, change: Update[Answer]) -> RedisQuery | None:
        """Query a change of a record; return None while Redis does not answer.

        `now` means nothing here: Redis has its own clock.
        """
        if not self._may_ask():
            return None
        return self._ask(RedisQuery((ATTEMPT_KEY, key), request_words(change), *self._limits))

    def refuse_or_acquire(self, key: bytes, limit: int) -> SlotLease | None:
        """Query for a slot; return None while Redis does not answer."""
        if not self._may_ask():
            return None
        token = f"{self._worker_id}.{next(self._token_numbers)}"
        lease = SlotLease(key, limit, token, *self._limits)
        self._leases.add(lease)
        return self._ask(lease)

    def release(self, place: HeldSlot) -> None:
        """Release a slot that was queried for by `refuse_or_acquire`."""
        assert isinstance(place, SlotLease)
        self._leases.discard(place)
        if place.may_be_held:
            self._commands[place.token] = place.command("release")
            self._wake()

    # The limits by client.

    def use(
        self, key: bytes, amounts: Sequence[int], on_answer: Callable[[tuple[int, ...] | None], None]
    ) -> UsageQuery | None:
        """Query what a client has done in this minute, with these amounts added to it.

        Return None while Redis does not answer.
        """
        if not self._may_ask():
            return None
        return self._ask(UsageQuery(key, amounts, *self._limits, on_answer))

    # The life of a worker.

    async def open(self) -> None:
        """Connect. If Redis does not answer, log it, and go on trying in the background."""
        self._worker_id = f"w{os.urandom(8).hex()}"
        asyncio.get_running_loop().set_default_executor(NonWaitingResolver())
        if not await self._connect():
            self._failures = 1
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
        await self._client.close()

    # Batches.

    def _may_ask(self) -> bool:
        """Return whether a question may be asked now, and count it."""
        circuit = self.circuit
        circuit.questions += 1
        circuit.unanswered += not circuit.closed
        return circuit.closed

    @property
    def _limits(self) -> tuple[float, Callable[[float, bool], None]]:
        return self._settings.timeout, self.circuit.settled

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
            while self._client.connected and (self._queries or self._commands or self._probe_is_due):
                await self._run_batch()
        finally:
            self._exchange = None

    async def _run_batch(self) -> None:
        """Run one batch, and settle its queries. If Redis does not answer, begin to reconnect."""
        self._probe_is_due = False
        loop = asyncio.get_running_loop()
        late = loop.call_later(self._settings.timeout, self._stop_answering)
        until = loop.time() + self._settings.timeout
        queries = [query for query in self._take_queries() if not query.settled]
        commands = self._take_commands()
        try:
            answers = await self._client.run([*queries, *commands.values()])
        except self._client.errors as error:
            self._commands.update(commands | self._commands)
            self._stop_answering()
            for query in queries:
                query.settle(None)
            self._warn(error)
            await self._client.disconnect()
            self._start(self._reconnect())
            return
        finally:
            late.cancel()
        if queries:
            self._failures = 0
        self._update_circuit(in_time=loop.time() <= until)
        for query, answer in zip(queries, answers, strict=False):
            query.settle(answer)

    def _update_circuit(self, in_time: bool) -> None:
        """Open or close the circuit after an answer. While it is open, send a probe from time to time."""
        if self.circuit.answered(in_time):
            if in_time:
                self._log_recovery()
            return
        self._stop_answering()
        self._warn(TimeoutError(f"{MAX_LATE} answers took longer than {self._settings.timeout:g} s"))
        asyncio.get_running_loop().call_later(PROBE_INTERVAL, self._probe)

    def _probe(self) -> None:
        self._probe_is_due = True
        self._wake()

    def _take_queries(self) -> list[RedisQuery]:
        """Remove and return as many queries as a batch holds."""
        return [self._queries.popleft() for _ in range(min(BATCH_SIZE, len(self._queries)))]

    def _take_commands(self) -> dict[str, RedisCommand]:
        """Remove and return as many commands as a batch holds."""
        return {token: self._commands.pop(token) for token in [*islice(self._commands, BATCH_SIZE)]}

    def _stop_answering(self) -> None:
        """Accept no further queries, and answer those that wait with None."""
        self.circuit.open()
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
        self.circuit.close()
        self._log_recovery()
        self._renew()
        return True

    def _log_recovery(self) -> None:
        if self._warned:
            self._warned = False
            log.info("attempt_store: %s answers again", self._settings)

    async def _reconnect(self) -> None:
        """Try to connect until that succeeds."""
        connected = False
        while not connected:
            await asyncio.sleep(RECONNECT_DELAYS[min(self._failures, len(RECONNECT_DELAYS) - 1)])
            self._failures += 1
            connected = await self._connect()

    async def _renew_regularly(self) -> None:
        """Renew the leases from time to time, which also notices a Redis that no longer answers."""
        while True:
            await asyncio.sleep(RENEW_INTERVAL)
            if self._client.connected:
                self._renew()

    def _renew(self) -> None:
        """Renew the lease of every slot that this worker may hold."""
        self._leases.intersection_update([lease for lease in self._leases if lease.may_be_held])
        self._commands.update((lease.token, lease.command("renew")) for lease in self._leases)
        self._wake()

    def _warn(self, error: Exception) -> None:
        """Log that Redis does not answer, unless a worker has logged it within WARNING_INTERVAL."""
        change = WindowCount(1, 1, WARNING_INTERVAL).spend
        if self._warnings.update(b"", time.monotonic(), change) is False:
            self._warned = True
            reason = self._reason(error)
            log.warning("attempt_store: %s: %s; each rule's when_unknown applies", self._settings, reason)

    def _reason(self, error: Exception) -> str:
        """Return the message of an error as it is logged; Redis may have written it, and quote passwords."""
        message = str(error) or "no answer in time"
        if self._settings.password:
            message = message.replace(self._settings.password, "***")
        shown = "".join(character if character.isprintable() else "?" for character in message)
        return shown if len(shown) <= MAX_REASON else f"{shown[:MAX_REASON]}..."
