"""Private parts of the standard library that the accelerators use, and the check that they are there.

No other module touches them. `check` runs once, when a worker starts. Where CPython or PyPy
has changed one of these, the accelerators stay off, the log says so, and everything else works.
"""

from __future__ import annotations

import asyncio
import select
import selectors
import socket
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any


def ready_queue(loop: asyncio.AbstractEventLoop) -> deque[asyncio.Handle]:
    """Return the callbacks that the loop runs in its next turn."""
    return loop._ready  # type: ignore[attr-defined, no-any-return]


def timers(loop: asyncio.AbstractEventLoop) -> list[asyncio.TimerHandle]:
    """Return the loop's heap of timers. The loop replaces the list when it drops cancelled ones."""
    return loop._scheduled  # type: ignore[attr-defined, no-any-return]


def epoll_of(selector: selectors.EpollSelector) -> select.epoll:
    """Return the epoll object inside of a selector."""
    return selector._selector  # type: ignore[attr-defined, no-any-return]


def keys_by_descriptor(selector: selectors.EpollSelector) -> dict[int, selectors.SelectorKey]:
    """Return the files that asyncio registered, by their descriptors."""
    return selector._fd_to_key  # type: ignore[attr-defined, no-any-return]


def selector_of(loop: asyncio.AbstractEventLoop) -> selectors.BaseSelector | None:
    """Return the selector of an event loop, or None for a loop that has none."""
    return getattr(loop, "_selector", None)


def accept_function(listening: socket.socket) -> Callable[[], tuple[int, Any]]:
    """Return a function that accepts a connection and gives its descriptor and address.

    `socket.accept` makes a socket object of each, which takes a seventh of all the time that a
    connection costs in the server. It is used where the private function is missing.
    """
    private = getattr(listening, "_accept", None)
    return private if callable(private) else partial(_accept, listening)


def _accept(listening: socket.socket) -> tuple[int, Any]:
    connection, address = listening.accept()
    return connection.detach(), address


def check() -> str:
    """Return what is missing or of another kind, or nothing where all is as expected."""
    if not hasattr(selectors, "EpollSelector"):
        return "selectors.EpollSelector"
    selector = selectors.EpollSelector()
    loop = asyncio.SelectorEventLoop(selector)
    try:
        expected = (
            (loop, "_ready", deque),
            (loop, "_scheduled", list),
            (selector, "_selector", select.epoll),
            (selector, "_fd_to_key", dict),
        )
        for owner, name, kind in expected:
            if not isinstance(getattr(owner, name, None), kind):
                return f"{type(owner).__name__}.{name}"
    finally:
        loop.close()
    return ""
