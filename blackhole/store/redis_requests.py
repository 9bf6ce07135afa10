"""Requests to Redis: queries, which a session awaits, and commands, which nobody awaits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator, Sequence
from typing import Any, Final, NamedTuple

from blackhole.rules.attempt_store import PendingAnswer
from blackhole.store.redis_replies import checked_answer, checked_counts
from blackhole.store.redis_script import CLIENT_KEY, SLOTS_KEY

Key = tuple[str, bytes]
"""ATTEMPT_KEY, CLIENT_KEY or SLOTS_KEY, and what tells the record from others of its kind."""

StoreAnswer = int | tuple[int, ...]
"""An answer of the script: a number, or several counts."""


class RedisCommand(NamedTuple):
    """A request without an answer."""

    key: Key
    words: str

    def parse(self, answer: object) -> StoreAnswer:
        """Return the answer of the script, which nobody awaits. Raises InvalidReply."""
        return checked_answer(answer)


class RedisQuery(PendingAnswer):
    """A request with an answer; the answer is None if it does not come within `timeout` seconds.

    `on_settled` is called with the seconds since it was made, and whether it has an answer.
    """

    __slots__ = ("_answer", "_began", "_loop", "_on_settled", "_timer", "key", "words")

    def __init__(
        self, key: Key, words: str, timeout: float, on_settled: Callable[[float, bool], None]
    ) -> None:
        self.key: Final = key
        self.words: Final = words
        loop = self._loop = asyncio.get_running_loop()
        self._began: Final = loop.time()
        self._answer: Final[asyncio.Future[Any]] = loop.create_future()
        self._timer: Final = loop.call_later(timeout, self.settle, None)
        self._on_settled: Final = on_settled

    def __await__(self) -> Generator[Any, None, Any]:
        return self._answer.__await__()

    def parse(self, answer: object) -> StoreAnswer:
        """Return the answer of the script. Raises InvalidReply."""
        return checked_answer(answer)

    @property
    def settled(self) -> bool:
        """Whether it has its answer, or its time is over."""
        return self._answer.done()

    def settle(self, answer: StoreAnswer | None) -> None:
        """Set the answer; do nothing if its time is over."""
        if not self._answer.done():
            self._timer.cancel()
            self._answer.set_result(answer)
            self._on_settled(self._loop.time() - self._began, answer is not None)


class SlotLease(RedisQuery):
    """A query for a concurrency slot, and the slot itself if it was acquired."""

    __slots__ = ("token",)

    def __init__(
        self, key: bytes, limit: int, token: str, timeout: float, on_settled: Callable[[float, bool], None]
    ) -> None:
        super().__init__((SLOTS_KEY, key), f"acquire {limit} {token}", timeout, on_settled)
        self.token: Final = token

    @property
    def may_be_held(self) -> bool:
        """Whether the slot was acquired, or may have been because no answer came."""
        return not (self._answer.done() and self._answer.result())

    def command(self, verb: str) -> RedisCommand:
        """Return the command that renews or releases the slot."""
        return RedisCommand(self.key, f"{verb} {self.token}")


class UsageQuery(RedisQuery):
    """A query that adds to what a client has done in this minute; the answer goes to `on_answer` too."""

    __slots__ = ("_on_answer",)

    def __init__(
        self,
        key: bytes,
        amounts: Sequence[int],
        timeout: float,
        on_settled: Callable[[float, bool], None],
        on_answer: Callable[[tuple[int, ...] | None], None],
    ) -> None:
        super().__init__((CLIENT_KEY, key), " ".join(("use", *map(str, amounts))), timeout, on_settled)
        self._on_answer: Final = on_answer

    def parse(self, answer: object) -> StoreAnswer:
        """Return a count for each amount, and the milliseconds that are left of the minute."""
        return checked_counts(answer, len(self.words.split()))

    def settle(self, answer: Any) -> None:
        """Set the answer; do nothing if its time is over."""
        if not self.settled:
            super().settle(answer)
            self._on_answer(answer)
