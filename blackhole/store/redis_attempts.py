"""A memory of attempts that several machines share, in a Redis.

What is asked goes there in batches: all that the clients of a worker ask while an answer is under
way is the next batch, on one connection. A batch is one call of one script, so what it changes
nobody else changes at the same time, on whatever machine. Nobody waits longer than 50 milliseconds,
or what the operator wants. When an answer does not come within that time, nothing more is asked
until it does, or until a new connection is there: a dead Redis costs the clients of one moment that
time, and nobody else anything.

The clock is the Redis's own. A key there is a keyed hash and ends by itself. The secret of the
hash is the same for all machines, because it lies in the Redis too: whoever can read that could ask
it whether some address was seen, but not which were. The first to come draws it, and each batch
says by which secret it was made.

Who is there now holds a lease, which its worker renews. A machine that is switched off takes away
what it held with the last of its leases.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import deque
from collections.abc import Coroutine, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from itertools import count
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from blackhole.rules.attempt_store import Answer, PendingAnswer, Slot, Update
from blackhole.rules.limiters import WindowCount
from blackhole.settings import OperatorError, RedisSettings
from blackhole.store.attempts import AttemptTable

if TYPE_CHECKING:
    from redis.asyncio import Connection

log = logging.getLogger(__name__)

Asked = TypeVar("Asked", bound="Query")
Item = TypeVar("Item")

SILENCE: Final = 1.0
"""Seconds after which a connection is given up, unless there is more time for an answer; a new one, with
handshake and password, gets as many."""

PAUSE: Final = 1.0
"""Seconds between two tries to get back to a Redis that does not answer."""

PARTING: Final = 0.2
"""Seconds that a worker takes to give back what it holds, when it stops."""

QUIET: Final = 60.0
"""Seconds between two lines of the log that say so, whichever worker they come from."""

BATCH: Final = 256
"""Questions asked at once, and errands: each takes Redis 6 microseconds, in which it does nothing else."""

RENEW: Final = 20.0
"""Seconds between two renewals of the leases."""

LEASE: Final = 3 * RENEW

NOW: Final = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
"""

SCRIPT: Final = f"""
local secret = redis.call('GET', KEYS[1])
if not secret then
  redis.call('SET', KEYS[1], ARGV[1])
elseif secret ~= ARGV[1] then
  return secret
end
{NOW}
local SECOND = 1000000
local DAY = 86400 * SECOND
local LEASE = {LEASE:.0f} * SECOND

local function whole(number)
  return string.format('%.0f', number)
end

local function known(key)
  local text = redis.call('GET', key)
  if not text then
    return 0, now, now
  end
  local count, first, last = string.match(text, '(%d+) (%d+) (%d+)')
  return tonumber(count), tonumber(first), tonumber(last)
end

local function keep(key, count, first, length)
  local text = whole(count) .. ' ' .. whole(first) .. ' ' .. whole(now)
  redis.call('SET', key, text, 'PX', whole(math.max(1, math.ceil(length / 1000))))
end

local function hold(key, token)
  redis.call('ZADD', key, whole(now + LEASE), token)
  redis.call('PEXPIRE', key, whole(LEASE / 1000))
end

-- Changes of blackhole.rules.limiters, by their names.
local change = {{}}

function change.count_attempt(key)
  local count, first = known(key)
  keep(key, count + 1, first, 7 * DAY)
  return count + 1
end

function change.blocks_attempt(key, least, most)
  local count, first, last = known(key)
  if count > 0 and last - first >= least * SECOND then
    keep(key, count + 1, first, 35 * DAY)
    return 0
  end
  local since = now - first
  if count == 0 or since > most * SECOND then
    count, first, since = 0, now, -1
  end
  if since < least * SECOND then
    keep(key, count + 1, first, most * SECOND)
    return 1
  end
  keep(key, count + 1, first, 35 * DAY)
  return 0
end

function change.spend(key, amount, limit, period)
  local count, first = known(key)
  if count == 0 or now - first >= period * SECOND then
    count, first = 0, now
  end
  if count + amount > tonumber(limit) then
    return 1
  end
  keep(key, count + amount, first, first + period * SECOND - now)
  return 0
end

-- Who is there.

function change.enter(key, limit, token)
  redis.call('ZREMRANGEBYSCORE', key, '-inf', whole(now))
  if redis.call('ZCARD', key) >= tonumber(limit) then
    return 1
  end
  hold(key, token)
  return 0
end

function change.stay(key, token)
  hold(key, token)
  return 0
end

function change.leave(key, token)
  redis.call('ZREM', key, token)
  return 0
end

local answers = {{}}
for number = 2, #KEYS do
  local words = {{}}
  for word in string.gmatch(ARGV[number], '%S+') do
    words[#words + 1] = word
  end
  answers[number - 1] = change[words[1]](KEYS[number], unpack(words, 2))
end
return answers
"""
"""A batch: the secret's key and a key for each question; the secret, and each question in words.

The answers, with 1 for yes and 0 for no; or another secret, if that is the right one.
"""

SEEN: Final = "seen"
ROOM: Final = "room"
"""What stands behind the prefix of a key."""

Key = tuple[str, bytes]
"""One of these, and what is remembered."""


class Command(NamedTuple):
    """Something to be done there that nobody waits for."""

    key: Key
    text: str


def script_arguments(change: Update[Any]) -> str:
    """A change as the script knows it: its name, and what it is bound to."""
    bound: tuple[object, ...] = getattr(change, "__self__", ())
    return " ".join((change.__name__, *map(repr, bound)))


def redis_errors() -> tuple[type[Exception], ...]:
    """The exceptions that mean no answer. Raises OperatorError (EX_CONFIG) where the package is missing."""
    try:
        from redis.asyncio import RedisError
    except ImportError:
        raise OperatorError(
            'attempts: a memory of several machines needs the package redis: pip install "blackhole[redis]"'
        ) from None
    return RedisError, OSError, TimeoutError


class Query(PendingAnswer):
    """Something to be asked. The answer is None where none came in time."""

    __slots__ = ("_answer", "_timer", "key", "text")

    def __init__(self, key: Key, text: str, patience: float) -> None:
        self.key: Final = key
        self.text: Final = text
        loop = asyncio.get_running_loop()
        self._answer: Final[asyncio.Future[int | None]] = loop.create_future()
        self._timer: Final = loop.call_later(patience, self.settle, None)

    def __await__(self) -> Generator[Any, None, int | None]:
        return self._answer.__await__()

    @property
    def settled(self) -> bool:
        """Nobody waits for it any more."""
        return self._answer.done()

    def settle(self, answer: int | None) -> None:
        """Tell the answer, if it is not too late."""
        if not self._answer.done():
            self._timer.cancel()
            self._answer.set_result(answer)


class Lease(Query):
    """A question whether there is room: and the place that is taken, if there is, or if nobody knows."""

    __slots__ = ("token",)

    def __init__(self, key: bytes, limit: int, token: str, patience: float) -> None:
        super().__init__((ROOM, key), f"enter {limit} {token}", patience)
        self.token: Final = token

    @property
    def taken(self) -> bool:
        """Whether it may be."""
        return not (self._answer.done() and self._answer.result())

    def errand(self, verb: str) -> Command:
        """Something to be done about it."""
        return Command(self.key, f"{verb} {self.token}")


class NonWaitingResolver(ThreadPoolExecutor):
    """Looks up the Redis's name. A resolver may be silent for half a minute; a worker that ends does not wait
    for it."""

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Called as the loop is closed, which would wait."""
        super().shutdown(wait=False, cancel_futures=True)


class RedisAttemptStore:
    """The memory. It is made before the fork, and opened by each worker."""

    def __init__(self, redis: RedisSettings) -> None:
        self._redis: Final = redis
        self._lost: Final = redis_errors()
        # All of the package and of Python that it takes is loaded now: workers may not be able to read it.
        connection(redis)
        redis.host.encode("idna")
        self._secret: str = os.urandom(16).hex()
        self._complaints: Final = AttemptTable(sets=1)
        """Of all workers, so that there are not too many."""
        self._complained = False
        """This worker has."""
        self._link: Connection | None = None
        self._open = False
        """Questions are taken: it has answered, and in time."""
        self._questions: Final[deque[Query]] = deque()
        self._errands: Final[deque[Command]] = deque()
        self._seats: Final[set[Lease]] = set()
        """Who is here. If nobody knew whether there was room, he counts from the next renewal on."""
        self._tokens: Final = count()
        self._name = ""
        self._tasks: Final[set[asyncio.Task[None]]] = set()
        self._work: asyncio.Task[None] | None = None

    # What rules ask.

    def update(self, key: bytes, now: float, change: Update[Answer], alone: bool = False) -> Query | None:
        """The Redis tells the time, so `now` has no meaning here; and every change is made alone."""
        if not self._open:
            return None
        return self._ask(Query((SEEN, key), script_arguments(change), self._redis.timeout))

    def refuse_or_acquire(self, key: bytes, limit: int) -> Lease | None:
        if not self._open:
            return None
        seat = Lease(key, limit, f"{self._name}.{next(self._tokens)}", self._redis.timeout)
        self._seats.add(seat)
        return self._ask(seat)

    def release(self, place: Slot) -> None:
        assert isinstance(place, Lease)
        self._seats.discard(place)
        if place.taken:
            self._errands.append(place.errand("leave"))
            self._rouse()

    # The life of a worker.

    async def open(self) -> None:
        """Be ready to be asked. If the Redis does not answer, that is said, and tried again for ever."""
        self._name = f"w{os.urandom(8).hex()}"
        asyncio.get_running_loop().set_default_executor(NonWaitingResolver())
        await self._return(once=True)
        if self._link is None:
            self._start(self._return())
        self._start(self._renew())

    async def close(self) -> None:
        """Leave nothing behind that others would take for somebody."""
        for task in self._tasks:
            task.cancel()
        for seat in [*self._seats]:
            self.release(seat)
        if self._work is not None:
            await asyncio.wait((self._work,), timeout=PARTING)
        self._shut()
        link, self._link = self._link, None
        if link is not None:
            await link.disconnect(nowait=True)

    # The conversation with the Redis.

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _ask(self, question: Asked) -> Asked:
        self._questions.append(question)
        self._rouse()
        return question

    def _rouse(self) -> None:
        if self._work is None and self._link is not None:
            self._work = asyncio.get_running_loop().create_task(self._converse())

    async def _converse(self) -> None:
        """Ask all there is to ask, and what comes meanwhile."""
        try:
            while self._link is not None:
                silence = asyncio.get_running_loop().call_later(self._redis.timeout, self._shut)
                questions = [one for one in first(self._questions) if not one.settled]
                errands = first(self._errands)
                try:
                    async with asyncio.timeout(max(SILENCE, self._redis.timeout)):
                        answers = await self._tell(self._link, [*questions, *errands])
                except self._lost as error:
                    self._errands.extendleft(reversed(errands))
                    self._lose(self._link, error, questions)
                    return
                finally:
                    silence.cancel()
                self._open = True
                for question, answer in zip(questions, answers, strict=False):
                    question.settle(answer)
                if not self._questions and not self._errands:
                    return
        finally:
            self._work = None

    async def _tell(self, link: Connection, batch: Sequence[Query | Command]) -> list[int]:
        """Ask; the answers, one for one. Raises what _lost has."""
        prefix = self._redis.prefix
        while True:
            secret = self._secret.encode()
            keys = [f"{prefix}:secret"]
            for one in batch:
                kind, key = one.key
                keys.append(f"{prefix}:{kind}:{blake2b(key, digest_size=16, key=secret).hexdigest()}")
            await link.send_command(
                "EVAL", SCRIPT, len(keys), *keys, self._secret, *(one.text for one in batch)
            )
            answers = await link.read_response()
            if isinstance(answers, list):
                return answers
            self._secret = answers.decode()

    def _shut(self) -> None:
        """Take no more questions; those that were not asked yet have no answer."""
        self._open = False
        for question in self._questions:
            question.settle(None)
        self._questions.clear()

    def _lose(self, link: Connection, error: Exception, questions: Iterable[Query]) -> None:
        """Give the connection up, and try to get another."""
        self._link = None
        self._shut()
        self._complain(error)
        for question in questions:
            question.settle(None)
        self._start(self._return(link))

    async def _return(self, redis_errors: Connection | None = None, once: bool = False) -> None:
        """Try to get to it; again and again, unless once is enough."""
        if redis_errors is not None:
            await redis_errors.disconnect(nowait=True)
        while True:
            link = connection(self._redis)
            try:
                async with asyncio.timeout(SILENCE):
                    await link.connect()  # type: ignore[no-untyped-call]
                    await self._tell(link, ())
                break
            except self._lost as error:
                await link.disconnect(nowait=True)
                self._complain(error)
            if once:
                return
            await asyncio.sleep(PAUSE)
        self._link, self._open = link, True
        if self._complained:
            self._complained = False
            log.info("attempts: %s answers again", self._redis)
        self._stay()
        self._rouse()

    async def _renew(self) -> None:
        """Say from time to time who is still there; and notice, before somebody asks, who is not."""
        while True:
            await asyncio.sleep(RENEW)
            if self._link is not None:
                self._stay()
                self._rouse()

    def _stay(self) -> None:
        self._seats.intersection_update([seat for seat in self._seats if seat.taken])
        self._errands.extend(seat.errand("stay") for seat in self._seats)

    def _complain(self, error: Exception) -> None:
        """Say that it does not answer, if that was not said a moment ago, by whichever worker."""
        change = WindowCount(1, 1, QUIET).spend
        if not self._complaints.update(b"", time.monotonic(), change, alone=True):
            self._complained = True
            reason = str(error) or "nothing was heard in time"
            log.warning("attempts: %s: %s; rules do as their when_unknown says", self._redis, reason)


def first(waiting: deque[Item]) -> list[Item]:
    """Take as many as go into a batch."""
    return [waiting.popleft() for _ in range(min(BATCH, len(waiting)))]


def connection(to: RedisSettings) -> Connection:
    """One to be made."""
    from redis.asyncio import Connection, SSLConnection
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff

    options: dict[str, Any] = {
        "host": to.host,
        "port": to.port,
        "db": to.db,
        "username": to.user or None,
        "password": to.password or None,
        "protocol": 2,
        "driver_info": None,
        "socket_timeout": None,
        "retry": Retry(NoBackoff(), 0),
    }
    return SSLConnection(**options, ssl_ca_certs=to.ca or None) if to.tls else Connection(**options)
