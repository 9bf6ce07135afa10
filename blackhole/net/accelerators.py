"""The accelerators of the network layer, and where each is attached.

`Settings.accelerators` names those that are on. Without any, Blackhole runs on Tornado's IOStream
and asyncio's own selector, and does the same.

| name        | module                    | seam                                          |
|-------------|---------------------------|-----------------------------------------------|
| `fast_path` | `blackhole.smtp.fast_path` | `Session.receive`                            |
| `direct`    | `blackhole.net.direct`    | the stream that the server makes of a socket  |
| `selector`  | `blackhole.net.selector`  | the loop factory of a worker                  |
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Set
from functools import partial

from blackhole.net import stdlib_internals
from blackhole.net.direct import DirectStream
from blackhole.net.direct_loop import DirectLoop
from blackhole.net.selector import Selector
from blackhole.net.stream import ClientStream

log = logging.getLogger(__name__)


def make_selector(accelerators: Set[str]) -> Selector | None:
    """Return the selector for the event loop, or None for asyncio's own."""
    if "selector" not in accelerators:
        return None
    if missing := stdlib_internals.check():
        log.warning("slower than usual: this Python has no %s", missing)
        return None
    return Selector()


def stream_factory(accelerators: Set[str], selector: Selector | None) -> Callable[[int], ClientStream]:
    """Return the function that makes a stream of an accepted descriptor. Called in the running loop.

    Direct streams need the `Selector`.
    """
    if "direct" in accelerators and selector is not None:
        return partial(DirectStream, direct_loop=DirectLoop(selector))
    return open_stream


def open_stream(fd: int) -> ClientStream:
    """Return an ordinary stream of an accepted descriptor."""
    return ClientStream(socket.socket(fileno=fd))
