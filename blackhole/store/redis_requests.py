"""Requests to Redis: queries, which a session awaits, and commands, which nobody awaits."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from typing import Any, Final, NamedTuple

from blackhole.rules.attempt_store import PendingAnswer
from blackhole.store.redis_script import SLOTS_KEY

Key = tuple[str, bytes]
"""ATTEMPT or SLOTS, and the key that the rules use."""


class RedisCommand(NamedTuple):
    """A request without an answer."""

    key: Key
    words: str


class RedisQuery(PendingAnswer):
    """A request with an answer; the answer is None if it does not come within `timeout` seconds."""

    __slots__ = ("_answer", "_timer", "key", "words")

    def __init__(self, key: Key, words: str, timeout: float) -> None:
        self.key: Final = key
        self.words: Final = words
        loop = asyncio.get_running_loop()
        self._answer: Final[asyncio.Future[int | None]] = loop.create_future()
        self._timer: Final = loop.call_later(timeout, self.settle, None)

    def __await__(self) -> Generator[Any, None, int | None]:
        return self._answer.__await__()

    @property
    def settled(self) -> bool:
        """Whether it has its answer, or its time is over."""
        return self._answer.done()

    def settle(self, answer: int | None) -> None:
        """Set the answer; do nothing if its time is over."""
        if not self._answer.done():
            self._timer.cancel()
            self._answer.set_result(answer)


class SlotLease(RedisQuery):
    """A query for a concurrency slot, and the slot itself if it was acquired."""

    __slots__ = ("token",)

    def __init__(self, key: bytes, limit: int, token: str, timeout: float) -> None:
        super().__init__((SLOTS_KEY, key), f"acquire {limit} {token}", timeout)
        self.token: Final = token

    @property
    def may_be_held(self) -> bool:
        """Whether the slot was acquired, or may have been because no answer came."""
        return not (self._answer.done() and self._answer.result())

    def command(self, verb: str) -> RedisCommand:
        """Return the command that renews or releases the slot."""
        return RedisCommand(self.key, f"{verb} {self.token}")
