"""The fleet's store: what a machine asks of Redis, by the client of the package `redis`.

Only the dashboard process uses it, never a worker: no message waits for it.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from blackhole.fleet.script import PUBLISH, RESTORE, WRITE
from blackhole.settings import OperatorError, RedisSettings

if TYPE_CHECKING:
    from redis.asyncio import Redis

FLEET_STORE_TIMEOUT: Final = 2.0
"""Seconds for a connection, and for an answer."""


SUBSCRIPTION_INTERVAL: Final = 1.0
"""Seconds to wait for an announcement before the connection is looked at again."""

MAX_ORDER_RULES: Final = 16
"""One-shot rules of an order."""

MAX_ORDER_TEXT: Final = 1 << 16
"""Octets of the text of a scenario."""


class StoreError(Exception):
    """The store does not answer, or has answered what it should not."""


class Written(NamedTuple):
    """The answer to a write."""

    epoch: str
    """Changes when the store has lost its total."""
    alive: int
    """The number of machines that are alive."""
    order: int
    """The number of the order in force."""


class Total(NamedTuple):
    """The sum over all machines that ever were in the fleet."""

    fields: Mapping[str, int]
    began: float
    """When the fleet began to count, in seconds since 1970."""


class FleetOrder(NamedTuple):
    """What all machines of a fleet are to obey, beside their configurations."""

    number: int = 0
    """0 before the first."""
    name: str = ""
    """Name of the scenario; empty for that of each machine's configuration."""
    text: str = ""
    """Text of the scenario."""
    at: float = 0.0
    """When the scenario was ordered, by the store's clock, in seconds since 1970."""
    rules: tuple[SharedRule, ...] = ()
    """The one-shot rules."""


class SharedRule(NamedTuple):
    """A one-shot rule of a fleet."""

    id: str
    times: int
    """Number of uses over all machines."""
    rule: Mapping[str, Any]
    """The rule, as in a scenario file."""


class FleetStore:
    """The keys of one fleet. It is made before the fork; the first request connects.

    All methods but `close` raise StoreError.
    """

    def __init__(self, settings: RedisSettings, name: str) -> None:
        """Raises OperatorError if the package `redis` is missing."""
        self.settings: Final = settings
        self.name: Final = name
        self._prefix: Final = f"{settings.prefix}:{{{name}}}"
        self._errors: Final = _errors()
        self._client: Final[Redis] = _make_client(settings)
        self._write: Final = self._client.register_script(WRITE)
        self._publish: Final = self._client.register_script(PUBLISH)
        self._restore: Final = self._client.register_script(RESTORE)

    def _key(self, *words: str) -> str:
        return ":".join((self._prefix, *words))

    async def write(self, machine: str, fields: Mapping[str, int], summary: str, age: float = 0) -> Written:
        """Write counters of a machine, and what is shown of it; nothing of that changes if it is empty.

        `age` is the time in seconds since the machine was alive.
        """
        keys = [
            *(self._key("total"), self._key("figures", machine), self._key("machines")),
            *(self._key("seen"), self._key("order")),
        ]
        words = [word for field, count in fields.items() for word in (field, str(count))]
        answer = await self._ask(self._write(keys, [machine, os.urandom(8).hex(), summary, age, *words]))
        try:
            epoch, alive, order = answer
            return Written(epoch.decode(), int(alive), int(order))
        except (ValueError, TypeError, AttributeError):
            raise StoreError(f"unexpected answer {answer!r:.80}") from None

    async def total(self) -> Total:
        """Return the sum over all machines."""
        found = await self._ask(self._client.hgetall(self._key("total")))
        began = found.pop(b"began", b"0")
        found.pop(b"epoch", None)
        return Total(_counts(found), _number(began))

    async def figures(self, machine: str) -> Mapping[str, int]:
        """Return the counters of one machine, empty if they are gone."""
        return _counts(await self._ask(self._client.hgetall(self._key("figures", machine))))

    async def machines(self) -> dict[str, tuple[float, bytes]]:
        """Return the machines: id -> (when it was last seen, by the store's clock; its summary)."""
        seen = await self._ask(self._client.zrange(self._key("seen"), 0, -1, withscores=True))
        summaries = await self._ask(self._client.hgetall(self._key("machines")))
        return {name.decode(errors="replace"): (at, summaries.get(name, b"")) for name, at in seen}

    async def order(self) -> FleetOrder:
        """Return the order in force."""
        found = await self._ask(self._client.hgetall(self._key("order")))
        return parse_order(found) if found else FleetOrder()

    async def publish(self, order: FleetOrder, is_new: bool) -> int:
        """Put an order in force; its number is that of the order that it was made of.

        `is_new` says that its scenario is another. Return the number of the order; 0 if another one came in
        between.
        """
        keys = [self._key("order"), self._key("orders")]
        words: list[str | int] = [order.number, int(is_new), order.name, order.text, json.dumps(order.rules)]
        return int(await self._ask(self._publish(keys, words)))

    async def restore(self, order: FleetOrder) -> None:
        """Write an order again, where the store has none or an earlier one."""
        words: list[str | int] = [
            order.number,
            order.name,
            order.text,
            f"{order.at:.6f}",
            json.dumps(order.rules),
        ]
        await self._ask(self._restore([self._key("order")], words))

    async def announcements(self) -> AsyncIterator[None]:
        """Yield when an order was published, until there is an error. Raises StoreError then."""
        subscriber = self._client.pubsub()
        try:
            await self._ask(subscriber.subscribe(self._key("orders")))
            while True:
                message = await self._ask(subscriber.get_message(True, SUBSCRIPTION_INTERVAL))
                if message is not None:
                    yield
        finally:
            await subscriber.aclose()  # type: ignore[no-untyped-call]

    async def now(self) -> float:
        """Return the store's clock, in seconds since 1970."""
        seconds, microseconds = await self._ask(self._client.time())
        return float(seconds + microseconds / 1e6)

    async def close(self) -> None:
        """Close the connection."""
        await self._client.aclose()

    async def _ask(self, request: Any) -> Any:
        """Return the answer to a request of the client."""
        try:
            return await request
        except self._errors as error:
            raise StoreError(str(error) or "no answer in time") from None


def _errors() -> tuple[type[Exception], ...]:
    try:
        from redis.asyncio import RedisError
    except ImportError:
        raise OperatorError('fleet: needs the package redis: pip install "blackhole-smtp[redis]"') from None
    return RedisError, OSError, TimeoutError


def _make_client(redis: RedisSettings) -> Redis:
    """Return a client that connects with the first request, and again after an error."""
    from redis.asyncio import Redis
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff

    options: dict[str, Any] = {"ssl": True, "ssl_ca_certs": redis.ca or None} if redis.tls else {}
    return Redis(
        host=redis.host,
        port=redis.port,
        db=redis.db,
        username=redis.user or None,
        password=redis.password or None,
        socket_timeout=FLEET_STORE_TIMEOUT,
        socket_connect_timeout=FLEET_STORE_TIMEOUT,
        retry=Retry(NoBackoff(), 0),
        max_connections=16,
        **options,
    )


def parse_order(found: Mapping[bytes, bytes]) -> FleetOrder:
    """Return an order as it is stored. Raises StoreError."""
    try:
        rules = tuple(SharedRule(*rule) for rule in json.loads(found[b"rules"]))
        order = FleetOrder(
            int(found[b"number"]),
            found.get(b"name", b"").decode(),
            found.get(b"text", b"").decode(),
            float(found.get(b"at", b"0")),
            rules,
        )
        valid = len(rules) <= MAX_ORDER_RULES and len(order.text) <= MAX_ORDER_TEXT
        valid &= all(isinstance(rule.id, str) and isinstance(rule.rule, dict) for rule in rules)
        valid &= all(isinstance(rule.times, int) and 0 < rule.times < 1 << 32 for rule in rules)
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        valid = False
    if not valid:
        raise StoreError("the order in the store is none")
    return order


def _counts(found: Mapping[bytes, bytes]) -> dict[str, int]:
    """Return counters as they are stored, without what is none."""
    return {
        name.decode(errors="replace"): int(count)
        for name, count in found.items()
        if count.isdigit() and len(count) < 20
    }


def _number(text: bytes) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0
