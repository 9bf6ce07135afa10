"""Futures that a connection waits for, and that may end before their time."""

from __future__ import annotations

import asyncio
from typing import Any, TypeVar

Result = TypeVar("Result")


def timer(seconds: float) -> asyncio.Future[bool]:
    """Return a future that is true after so many seconds. `finish_early` makes it false before."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[bool] = loop.create_future()
    handle = loop.call_later(seconds, _set_result, future, True)
    future.add_done_callback(lambda _: handle.cancel())
    return future


def finish_early(future: asyncio.Future[bool]) -> None:
    """End the wait for a timer, unless it is over."""
    _set_result(future, False)


def cancel(future: asyncio.Future[Any]) -> None:
    """Cancel a future, as a callback that returns nothing."""
    future.cancel()


def _set_result(future: asyncio.Future[bool], result: bool) -> None:
    if not future.done():
        future.set_result(result)
