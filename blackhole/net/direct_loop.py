"""What the direct streams of an event loop share."""

from __future__ import annotations

import asyncio
from asyncio import Future
from typing import Final

from tornado.ioloop import IOLoop

from blackhole.net.selector import Selector
from blackhole.net.stdlib_internals import selector_of


class DirectLoop:
    """The loop, its selector and a future, made once for all direct streams. The loop uses a `Selector`."""

    __slots__ = ("io_loop", "loop", "selector", "written")

    def __init__(self, selector: Selector) -> None:
        self.io_loop: Final = IOLoop.current()
        self.loop: Final[asyncio.AbstractEventLoop] = self.io_loop.asyncio_loop  # type: ignore[attr-defined]
        self.selector: Final = selector
        self.written: Final[Future[None]] = self.loop.create_future()
        """The future of every write that the socket took at once."""
        self.written.set_result(None)

    @classmethod
    def current(cls) -> DirectLoop | None:
        """Return one for the current event loop, or None where that does not use a `Selector`."""
        selector = selector_of(IOLoop.current().asyncio_loop)  # type: ignore[attr-defined]
        return cls(selector) if isinstance(selector, Selector) else None
