"""Pollers: call a handler when something happens to a descriptor, with epoll's own events.

The listening sockets and the wake-up pipe of the control channel need EPOLLEXCLUSIVE and
EPOLLET, which asyncio's `add_reader` does not offer. `LoopPoller` has an epoll object of its own
for them, which the event loop watches. `blackhole.net.selector` takes its place where the
accelerators are on.
"""

from __future__ import annotations

import asyncio
import select
from typing import Final, Protocol


class EventHandler(Protocol):
    """An object that can be attached to a poller."""

    def handle_events(self, events: int) -> None:
        """Deal with the events of epoll(7) that happened."""


class Poller(Protocol):
    """The descriptors that a process watches outside of asyncio's `add_reader`."""

    def attach(self, fd: int, handler: EventHandler, events: int) -> None:
        """Call `handler.handle_events` when one of these events happens to `fd`."""

    def detach(self, fd: int) -> None:
        """Watch `fd` no more."""


class LoopPoller:
    """A poller that the running event loop calls."""

    def __init__(self) -> None:
        self._epoll: Final = select.epoll()
        self._handlers: Final[dict[int, EventHandler]] = {}
        asyncio.get_running_loop().add_reader(self._epoll.fileno(), self._dispatch)

    def attach(self, fd: int, handler: EventHandler, events: int) -> None:
        """Call `handler.handle_events` when one of these events happens to `fd`."""
        self._epoll.register(fd, events)
        self._handlers[fd] = handler

    def detach(self, fd: int) -> None:
        """Watch `fd` no more."""
        if self._handlers.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def _dispatch(self) -> None:
        for fd, events in self._epoll.poll(0):
            if handler := self._handlers.get(fd):
                handler.handle_events(events)
