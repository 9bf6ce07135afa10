"""Waiting for a socket that no stream reads at the moment: for a PROXY header, or in a TLS handshake."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


async def wait_readable(fd: int) -> None:
    """Wait until there is something to read, or the client has closed the connection."""
    loop = asyncio.get_running_loop()
    await _wait(fd, loop.add_reader, loop.remove_reader)


async def wait_writable(fd: int) -> None:
    """Wait until the socket takes data, or the connection is broken."""
    loop = asyncio.get_running_loop()
    await _wait(fd, loop.add_writer, loop.remove_writer)


async def _wait(fd: int, add: Callable[..., None], remove: Callable[[int], bool]) -> None:
    event = asyncio.Event()
    add(fd, event.set)
    try:
        await event.wait()
    finally:
        remove(fd)
