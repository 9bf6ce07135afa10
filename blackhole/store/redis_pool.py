"""Connections to the Redis server that has the data, by its address, by Sentinel or by its slot of a cluster.

Sentinel is asked through the package `redis`. In a cluster, all keys of a store are in one slot; a connection
follows the redirection of any node to the one that has it, and looks again after an error.
"""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from blackhole.settings import OperatorError, RedisSettings
from blackhole.store.redis_replies import InvalidReply

if TYPE_CHECKING:
    from redis.asyncio import ConnectionPool

SENTINEL_TIMEOUT: Final = 0.3
"""Seconds for a connection to a Sentinel, and for its answer: one of three may be down."""

MAX_REDIRECTIONS: Final = 3
"""Redirections that a connection follows."""

MAX_POOL_CONNECTIONS: Final = 16


def redis_errors(option: str) -> tuple[type[Exception], ...]:
    """Return the exceptions that mean "no answer" of the Redis server that an option names.

    Raises OperatorError (EX_CONFIG) if the package `redis` is missing.
    """
    try:
        from redis.asyncio import RedisError
    except ImportError:
        raise OperatorError(
            f'{option}: Redis needs the package redis: pip install "blackhole-smtp[redis]"'
        ) from None
    return RedisError, OSError, TimeoutError, InvalidReply


def make_pool(settings: RedisSettings, key: str, parser: type[Any], timeout: float | None) -> ConnectionPool:
    """Return a pool whose connections lead to the server that has a key. `timeout` is that of each answer."""
    from redis.asyncio import Connection, ConnectionPool, SSLConnection
    from redis.asyncio.retry import Retry
    from redis.asyncio.sentinel import (
        Sentinel,
        SentinelConnectionPool,
        SentinelManagedConnection,
        SentinelManagedSSLConnection,
    )
    from redis.backoff import NoBackoff

    tls: dict[str, Any] = _authority(settings) if settings.tls else {}
    options: dict[str, Any] = {
        "db": settings.db,
        "username": settings.user or None,
        "password": settings.password or None,
        "protocol": 2,
        "parser_class": parser,
        "driver_info": None,
        "socket_timeout": timeout,
        "socket_connect_timeout": timeout,
        "retry": Retry(NoBackoff(), 0),
        "max_connections": MAX_POOL_CONNECTIONS,
        **tls,
    }
    if settings.kind == "sentinel":
        asking = {
            "socket_timeout": SENTINEL_TIMEOUT,
            "socket_connect_timeout": SENTINEL_TIMEOUT,
            "protocol": 2,
            "retry": Retry(NoBackoff(), 0),
            **({"ssl": True, **tls} if tls else {}),
        }
        managed = SentinelManagedSSLConnection if tls else SentinelManagedConnection
        return SentinelConnectionPool(  # type: ignore[no-untyped-call]
            settings.service,
            Sentinel(settings.hosts, sentinel_kwargs=asking),  # type: ignore[no-untyped-call]
            connection_class=managed,
            **options,
        )
    single = SSLConnection if tls else Connection
    connection_class = cluster_connection(single, settings, key) if settings.kind == "cluster" else single
    return ConnectionPool(
        connection_class=connection_class, host=settings.host, port=settings.port, **options
    )


def _authority(settings: RedisSettings) -> dict[str, Any]:
    """Return the options that say whose certificates are trusted. The names in them are checked too."""
    if settings.ca_text:
        return {"ssl_ca_data": settings.ca_text}
    return {"ssl_ca_certs": settings.ca or None}


async def close_pool(pool: ConnectionPool) -> None:
    """Close all connections of a pool, and those to Sentinels."""
    await pool.disconnect()
    manager = getattr(pool, "sentinel_manager", None)
    for sentinel in () if manager is None else manager.sentinels:
        await sentinel.aclose()


def cluster_connection(base: type[Any], settings: RedisSettings, key: str) -> type[Any]:
    """Return a class of connections to the node of a cluster that has a key."""
    from redis.asyncio import RedisError
    from redis.exceptions import ConnectionError as LostConnectionError
    from redis.exceptions import MovedError

    nodes = deque(settings.hosts)
    """The nodes to ask; one that does not answer is asked last the next time."""

    class ClusterConnection(base):  # type: ignore[misc]
        """A connection that looks for its node whenever it connects."""

        looking = False

        async def connect(self) -> None:
            """Connect to the node that has the key."""
            if self.is_connected:
                return
            error: Exception = LostConnectionError("no node of the cluster answers")
            for _ in settings.hosts:
                self.host, self.port = nodes[0]
                nodes.rotate(-1)
                try:
                    await self.follow()
                except (RedisError, OSError) as failure:
                    await self.disconnect(nowait=True)
                    error = failure
                else:
                    nodes.rotate(1)
                    return
            raise error

        async def follow(self) -> None:
            """Connect to a node, and go where it redirects to."""
            self.looking = True
            try:
                for _ in range(MAX_REDIRECTIONS):
                    await super().connect()
                    await self.send_command("EXISTS", key)
                    try:
                        await super().read_response()
                    except MovedError as moved:
                        await self.disconnect(nowait=True)
                        self.host, self.port = moved.host or self.host, moved.port
                    else:
                        return
                raise LostConnectionError("the nodes of the cluster redirect to one another")
            finally:
                self.looking = False

        async def read_response(self, *args: Any, **options: Any) -> Any:
            """Read a reply; disconnect if the key is on another node by now."""
            try:
                return await super().read_response(*args, **options)
            except MovedError:
                if self.looking:
                    raise
                with suppress(OSError):
                    await self.disconnect(nowait=True)
                raise LostConnectionError("another node of the cluster has the keys now") from None

    return ClusterConnection
