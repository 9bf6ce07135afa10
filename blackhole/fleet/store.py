"""The fleet's store: what a machine asks of Redis, by the client of the package `redis`.

Only the dashboard process uses it, never a worker: no message waits for it.
"""

from __future__ import annotations

import asyncio
import copy
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn, Protocol, Self, TypeVar, overload

from blackhole.fleet.replies import (
    FleetOrder,
    FleetReplyParser,
    FleetRun,
    StoreError,
    checked_count,
    checked_fields,
    checked_number,
    checked_octets,
    checked_scores,
    checked_time,
    parse_order,
    parse_run,
)
from blackhole.fleet.script import (
    ADD_OUTCOMES,
    MARK,
    OUTCOME_SECRET,
    PUBLISH,
    READ_OUTCOMES,
    RESTORE,
    RESTORE_RUN,
    RUNS_VERSION,
    SHARE_WINDOWS,
    START_RUN,
    STOP_RUN,
    WRITE,
)
from blackhole.settings import RedisSettings
from blackhole.store.redis_pool import close_pool, make_pool, redis_errors
from blackhole.store.redis_replies import InvalidReply

if TYPE_CHECKING:
    from redis.asyncio import Redis

Checked = TypeVar("Checked")

WRONG_TYPES: Final = (ValueError, TypeError, AttributeError, LookupError)
"""What the client of the package raises for replies that it does not expect, such as to SUBSCRIBE."""

FLEET_STORE_TIMEOUT: Final = 2.0
"""Seconds for a connection, and for an answer."""


SUBSCRIPTION_INTERVAL: Final = 1.0
"""Seconds to wait for an announcement before the connection is looked at again."""


SUBSCRIBE_INTERVAL: Final = 1.0
"""Seconds after which the store is asked again for announcements."""

ORDER_CHANNEL: Final = "orders"
"""The channel on which orders are announced."""

OUTCOME_CHANNEL: Final = "outcomes"
"""The stream of what became of messages, and the channel on which it is announced."""

FORGOTTEN: Final = "forgotten"
"""What stands in the place of the id of a machine where the counters of those that are forgotten are."""

MAX_FLEET_RUNS: Final = 32
"""Runs kept. The next one takes the place of the oldest that has ended."""


class Written(NamedTuple):
    """The answer to a write."""

    epoch: str
    """Changes when the store has lost its total."""
    alive: int
    """The number of machines that are alive."""
    order: int
    """The number of the order in force."""
    known: int = 0
    """The number of machines whose counters are kept apart."""
    mark: int = 0
    """The number of the last call of `FleetStore.mark`."""
    generation: str = ""
    """What machines count their messages under since one of them was the first."""
    messages: int = 0
    """The messages of all machines in this generation."""
    runs: int = 0
    """The version of the runs."""
    namespaces: int = 0
    """The number of the last order to a namespace."""


class Total(NamedTuple):
    """The sum over all machines that ever were in the fleet."""

    fields: Mapping[str, int]
    began: float
    """When the fleet began to count, in seconds since 1970."""


class StreamEntry(NamedTuple):
    """Changes of outcomes that a machine has written."""

    id: str
    machine: bytes
    octets: bytes

    @property
    def milliseconds(self) -> int:
        """When it was written, by the store's clock, in milliseconds since 1970."""
        return int(self.id.partition("-")[0])


class StoreScript(Protocol):
    """Runs a script of the fleet. Raises StoreError."""

    async def __call__(self, keys: Iterable[str], *words: str | int) -> object:
        """Return the reply."""


STREAM_ID: Final = re.compile(rb"[0-9]{1,18}-[0-9]{1,18}")


class FleetStore:
    """The keys of one fleet. It is made before the fork; the first request connects.

    All methods but `close` raise StoreError.
    """

    def __init__(self, settings: RedisSettings, name: str) -> None:
        """Raises OperatorError if the package `redis` is missing."""
        self.settings: Final = settings
        self.name: Final = name
        self._prefix = f"{settings.prefix}:{{{name}}}"
        self._errors: Final = redis_errors("fleet")
        self._client: Final[Redis] = _make_client(settings, self._prefix)
        self._write: Final = self._client.register_script(WRITE)
        self._publish: Final = self._client.register_script(PUBLISH)
        self._restore: Final = self._client.register_script(RESTORE)
        self._add_outcomes: Final = self._client.register_script(ADD_OUTCOMES)
        self._read_outcomes: Final = self._client.register_script(READ_OUTCOMES)
        self._outcome_secret: Final = self._client.register_script(OUTCOME_SECRET)
        self._mark: Final = self._client.register_script(MARK)
        self._share_windows: Final = self._client.register_script(SHARE_WINDOWS)
        self._start_run: Final = self._client.register_script(START_RUN)
        self._stop_run: Final = self._client.register_script(STOP_RUN)
        self._restore_run: Final = self._client.register_script(RESTORE_RUN)

    def _key(self, *words: str) -> str:
        return ":".join((self._prefix, *words))

    def of_namespace(self, namespace: str) -> Self:
        """Return the keys of the namespace with this id: its order, its total and its runs."""
        found = copy.copy(self)
        found._prefix = self._key("namespace", namespace)
        return found

    def script(self, text: str) -> StoreScript:
        """Return a function that runs a script: it takes the words of its keys, and its arguments.

        The arguments of the script begin with what the keys of namespaces begin with.
        """
        registered = self._client.register_script(text)

        async def run(keys: Iterable[str], *words: str | int) -> object:
            below = self._key("namespace", "")
            return await self._ask(registered([self._key(key) for key in keys], [below, *words]))

        return run

    async def read_hash(self, key: str) -> dict[bytes, bytes]:
        """Return a hash of the fleet."""
        return await self._ask(self._client.hgetall(self._key(key)), checked_fields)

    async def read_scores(self, key: str) -> dict[bytes, float]:
        """Return the members of a sorted set of the fleet with their scores."""
        return await self._ask(self._client.zrange(self._key(key), 0, -1, withscores=True), checked_scores)

    async def write(
        self, machine: str, fields: Mapping[str, int | None], summary: str, age: float = 0, known: str = ""
    ) -> Written:
        """Write counters of a machine, and what is shown of it; nothing of that changes if it is empty.

        A counter that is None is removed, and what it has counted stays in the total.

        `age` is the time in seconds since the machine was alive: above 0 when it leaves, and below 0 for a
        copy of one that may come back. `known` is the generation that it knows.
        """
        keys = [
            *(self._key("total"), self._key("figures", machine), self._key("machines")),
            *(self._key("seen"), self._key("order"), self._key("left"), self._key("runs")),
            *(self._key("figures", FORGOTTEN), self._key("namespaces")),
        ]
        words = [
            word for field, count in fields.items() for word in (field, "" if count is None else str(count))
        ]
        answer = await self._ask(
            self._write(keys, [machine, os.urandom(8).hex(), summary, age, known, *words])
        )
        try:
            epoch, alive, order, known, mark, generation, messages, runs, namespaces = answer
            return Written(
                epoch.decode(),
                checked_count(alive),
                checked_count(order),
                checked_count(known),
                checked_count(mark),
                generation.decode(),
                checked_count(messages),
                checked_count(runs),
                checked_count(namespaces),
            )
        except (InvalidReply, ValueError, TypeError, AttributeError):
            raise StoreError(f"unexpected answer {answer!r:.80}") from None

    async def mark(self) -> int:
        """Ask all machines to write; return the number that a machine then writes of itself."""
        return await self._ask(self._mark([self._key("total")]), checked_count)

    async def epoch(self) -> str:
        """Return what changes when the store has lost its total; empty if it has none."""
        found = await self._ask(self._client.hget(self._key("total"), "epoch"))
        if not isinstance(found, bytes | None):
            raise StoreError("a reply of another type")
        return (found or b"").decode(errors="replace")

    async def total(self) -> Total:
        """Return the sum over all machines."""
        found = await self._ask(self._client.hgetall(self._key("total")), checked_fields)
        began = found.pop(b"began", b"0")
        for other in (b"epoch", b"generation", b"mark"):
            found.pop(other, None)
        return Total(_counts(found), _checked(checked_number, began))

    async def figures(self, machine: str) -> Mapping[str, int]:
        """Return the counters of one machine, empty if they are gone."""
        return _counts(await self._ask(self._client.hgetall(self._key("figures", machine)), checked_fields))

    async def machines(self) -> dict[str, tuple[float, bytes]]:
        """Return the machines: id -> (seconds since it was last seen, its summary)."""
        now = await self.now()
        request = self._client.zrange(self._key("seen"), 0, -1, withscores=True)
        seen = await self._ask(request, checked_scores)
        summaries = await self._ask(self._client.hgetall(self._key("machines")), checked_fields)
        return {
            name.decode(errors="replace"): (now - at, summaries.get(name, b"")) for name, at in seen.items()
        }

    async def order(self) -> FleetOrder:
        """Return the order in force."""
        found = await self._ask(self._client.hgetall(self._key("order")), checked_fields)
        return parse_order(found) if found else FleetOrder()

    async def publish(self, order: FleetOrder, is_new: bool) -> int:
        """Put an order in force; its number is that of the order that it was made of.

        `is_new` says that its scenario is another. Return the number of the order; 0 if another one came in
        between.
        """
        keys = [self._key("order"), self._key(ORDER_CHANNEL)]
        words: list[str | int] = [order.number, int(is_new), order.name, order.text, json.dumps(order.rules)]
        return await self._ask(self._publish(keys, words), checked_count)

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

    async def share_windows(self, generation: str, windows: str, age: float) -> float:
        """Return how many seconds ago some windows began for all machines; `age`: for this one."""
        keys = [self._key("windows", generation, windows)]
        return await self._ask(self._share_windows(keys, [f"{age:.6f}"]), checked_number)

    # Runs.

    async def runs(self) -> dict[str, FleetRun]:
        """Return the runs by name, the oldest first."""
        found = await self._ask(self._client.hgetall(self._key("runs")), checked_fields)
        found.pop(RUNS_VERSION.encode(), None)
        runs = [run for name, text in found.items() if (run := parse_run(name, text))]
        return {run.name: run for run in sorted(runs, key=lambda run: run.started)}

    async def start_run(self, run: FleetRun, dropped: str, most: int = MAX_FLEET_RUNS) -> int:
        """Write a run that begins; return 0 if its name is taken, 1 if there are too many, else 2.

        `dropped` is the name of the run that makes room for it, or empty. There can be `most` runs.
        """
        words: list[str | int] = [run.name, run.text(), dropped, most]
        return await self._ask(self._start_run([self._key("runs")], words), checked_count)

    async def stop_run(self, run: FleetRun) -> bool:
        """Write a run that has ended; return whether it was running."""
        return bool(
            await self._ask(self._stop_run([self._key("runs")], [run.name, run.text()]), checked_count)
        )

    async def restore_run(self, run: FleetRun) -> None:
        """Write a run again, where the store has none of its name, or one that has not ended."""
        words: list[str | int] = [run.name, run.text(), int(run.ended > 0)]
        await self._ask(self._restore_run([self._key("runs")], words))

    # Announcements, and the clock.

    async def follow(self, channel: str, notice: Callable[[], None]) -> NoReturn:
        """Call `notice` at each announcement, until there is an error. Raises StoreError then.

        `channel` is ORDER_CHANNEL or OUTCOME_CHANNEL.
        """
        subscriber = self._client.pubsub()
        try:
            await self._ask(subscriber.subscribe(self._key(channel)))
            while True:
                message = await self._ask(subscriber.get_message(True, SUBSCRIPTION_INTERVAL))
                if message is not None:
                    notice()
        finally:
            await subscriber.aclose()  # type: ignore[no-untyped-call]

    async def listen(self, channel: str, notice: Callable[[], None]) -> None:
        """Call `notice` at each announcement, for ever; without the store, nothing is announced."""
        while True:
            with suppress(StoreError):
                await self.follow(channel, notice)
            await asyncio.sleep(SUBSCRIBE_INTERVAL)

    async def outcome_secret(self, own: bytes) -> bytes:
        """Return the secret of the hashes of outcomes; the own one if the fleet has none yet."""
        return await self._ask(self._outcome_secret([self._key("secret")], [own]), checked_octets)

    async def add_outcomes(self, machine: bytes, octets: bytes, pause: int = 0) -> None:
        """Add changes of outcomes for the other machines.

        They are announced unless `pause` is 0, or another announcement was made in so many milliseconds.
        """
        keys = [self._key(OUTCOME_CHANNEL), self._key("announced")]
        await self._ask(self._add_outcomes(keys, [machine, octets, pause]))

    async def outcomes(self, last: str, count: int) -> tuple[int, list[StreamEntry]]:
        """Return the store's clock in milliseconds, and entries of all machines behind the last one read."""
        reply = await self._ask(self._read_outcomes([self._key(OUTCOME_CHANNEL)], [last, count]))
        if not (isinstance(reply, list) and len(reply) % 3 == 1):
            raise StoreError("the stream of outcomes is none")
        now, *words = reply
        octets = [_checked(checked_octets, word) for word in words]
        if not all(map(STREAM_ID.fullmatch, octets[::3])):
            raise StoreError("the stream of outcomes is none")
        entries = zip(octets[::3], octets[1::3], octets[2::3], strict=True)
        return _checked(checked_count, now), [
            StreamEntry(entry_id.decode(), machine, changes) for entry_id, machine, changes in entries
        ]

    async def now(self) -> float:
        """Return the store's clock, in seconds since 1970."""
        return await self._ask(self._client.time(), checked_time)

    async def close(self) -> None:
        """Close the connection."""
        await close_pool(self._client.connection_pool)
        await self._client.aclose()

    @overload
    async def _ask(self, request: Any) -> Any: ...

    @overload
    async def _ask(self, request: Any, check: Callable[[object], Checked]) -> Checked: ...

    async def _ask(self, request: Any, check: Callable[[object], Any] = lambda reply: reply) -> Any:
        """Return the answer to a request of the client, as a check returns it."""
        try:
            reply = await request
        except self._errors as error:
            raise StoreError(str(error) or "no answer in time") from None
        except WRONG_TYPES:
            raise StoreError("a reply of another type") from None
        return _checked(check, reply)


def _checked(check: Callable[[object], Checked], reply: object) -> Checked:
    try:
        return check(reply)
    except InvalidReply as error:
        raise StoreError(str(error)) from None


def _make_client(redis: RedisSettings, key: str) -> Redis:
    """Return a client that connects with the first request to the server that has a key, and again after an
    error.

    It returns replies as they came: the callbacks of the package expect the right types.
    """
    from redis.asyncio import Redis

    client = Redis.from_pool(make_pool(redis, key, FleetReplyParser, FLEET_STORE_TIMEOUT))
    client.response_callbacks.clear()
    return client


def _counts(found: Mapping[bytes, bytes]) -> dict[str, int]:
    """Return counters as they are stored, without what is none."""
    return {
        name.decode(errors="replace"): int(count)
        for name, count in found.items()
        if count.isdigit() and len(count) < 20
    }
