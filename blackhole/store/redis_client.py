"""The connection to Redis: it is opened, runs batches of requests, and is closed.

A key in Redis is a keyed hash. Its secret is the same for all machines, because it is stored in Redis too:
whoever reads it there can ask whether some address was seen, but cannot list the addresses. The first client
draws it; every batch carries the secret that it was made with.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from typing import TYPE_CHECKING, Final

from blackhole.settings import RedisSettings
from blackhole.store.redis_pool import close_pool, make_pool, redis_errors
from blackhole.store.redis_replies import ReplyParser, checked_answers, checked_secret
from blackhole.store.redis_requests import Key, RedisCommand, RedisQuery, StoreAnswer
from blackhole.store.redis_script import SCRIPT

if TYPE_CHECKING:
    from redis.asyncio import Connection

CONNECT_TIMEOUT: Final = 1.0
"""Seconds for a new connection, with handshake, password and a first answer."""

ANSWER_TIMEOUT: Final = 1.0
"""Seconds without an answer after which a connection is given up, unless the operator allows more."""


MAX_SECRETS: Final = 3
"""Replies with another secret, to one batch: more than there are when several machines start at once."""


class NonWaitingResolver(ThreadPoolExecutor):
    """The executor that resolves the name of the Redis server.

    A resolver can be silent for half a minute; a worker that stops does not wait for it.
    """

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Shut down without waiting, where the event loop asks for waiting as it closes."""
        super().shutdown(wait=False, cancel_futures=True)


class RedisClient:
    """A client that runs batches, on one connection. It is made before the fork; each worker connects."""

    def __init__(self, settings: RedisSettings) -> None:
        self.errors: Final = redis_errors("attempt_store")
        """What `connect` and `run` raise."""
        self._settings: Final = settings
        # Import all that a connection needs now: after privileges are dropped, files may be unreadable.
        self._prefix: Final = f"{{{settings.prefix}}}" if settings.kind == "cluster" else settings.prefix
        """Of all keys. In a cluster it is in braces, so that all keys are in one slot."""
        self._pool: Final = make_pool(settings, f"{self._prefix}:secret", ReplyParser, None)
        self._pool.make_connection()  # type: ignore[no-untyped-call]
        for host, _ in settings.hosts:
            host.encode("idna")
        self._secret = os.urandom(16).hex().encode()
        self._connection: Connection | None = None

    @property
    def connected(self) -> bool:
        """Whether there is a connection."""
        return self._connection is not None

    async def connect(self) -> None:
        """Open a connection, and wait for a first answer over it. Raises what `errors` has."""
        connection = self._pool.make_connection()  # type: ignore[no-untyped-call]
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                await connection.connect()
                await self._run(connection, ())
        except BaseException:  # a worker that stops cancels this too
            await connection.disconnect(nowait=True)
            raise
        self._connection = connection

    async def run(self, batch: Sequence[RedisQuery | RedisCommand]) -> list[StoreAnswer]:
        """Run a batch, and return the answers, one for each request. Raises what `errors` has."""
        assert self._connection is not None
        async with asyncio.timeout(max(ANSWER_TIMEOUT, self._settings.timeout)):
            return await self._run(self._connection, batch)

    async def disconnect(self) -> None:
        """Close the connection at once, if there is one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.disconnect(nowait=True)

    async def close(self) -> None:
        """Close all connections."""
        await self.disconnect()
        await close_pool(self._pool)

    async def _run(
        self, connection: Connection, batch: Sequence[RedisQuery | RedisCommand]
    ) -> list[StoreAnswer]:
        words = [request.words for request in batch]
        for _ in range(MAX_SECRETS):
            keys = [f"{self._prefix}:secret", *(self._key(request.key) for request in batch)]
            await connection.send_command("EVAL", SCRIPT, len(keys), *keys, self._secret, *words)
            reply = await connection.read_response()
            if not isinstance(reply, bytes):
                answers = checked_answers(reply, len(batch))
                return [request.parse(answer) for request, answer in zip(batch, answers, strict=True)]
            self._secret = checked_secret(reply)
        raise ConnectionError(f"another secret in each of {MAX_SECRETS} replies")

    def _key(self, key: Key) -> str:
        """Return the key in Redis."""
        kind, plain = key
        digest = blake2b(plain, digest_size=16, key=self._secret).hexdigest()
        return f"{self._prefix}:{kind}:{digest}"
