"""Connections to a Redis that never answers are closed, at whatever moment the work on them is cancelled."""

from __future__ import annotations

import asyncio
import gc
import socket
import warnings
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import replace

import pytest

from blackhole.fleet import store as fleet_store
from blackhole.fleet.store import FleetStore
from blackhole.settings import RedisSettings
from blackhole.store import redis_pool
from blackhole.store.redis_attempts import RedisAttemptStore
from blackhole.store.redis_client import RedisClient

MOMENTS = (0, 1, 3, 5, 7, 9, 12, 20)
"""Steps of the event loop before work is cancelled: some before the connection is open, some after it."""

KINDS = {
    "plain": {},
    "password": {"password": "secret"},
    "database": {"db": 2},
    "cluster": {"kind": "cluster"},
    "sentinel": {"kind": "sentinel", "service": "mx"},
    "TLS": {"tls": True},
}


@pytest.fixture(autouse=True)
def short_timeouts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet_store, "FLEET_STORE_TIMEOUT", 0.05)
    monkeypatch.setattr(redis_pool, "SENTINEL_TIMEOUT", 0.05)


@pytest.fixture
def settings() -> Iterator[RedisSettings]:
    """Settings of a server whose kernel accepts connections, and which says nothing."""
    with socket.create_server(("127.0.0.1", 0), backlog=1000) as listening:
        yield RedisSettings(*listening.getsockname())


async def steps(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def cancel_after(moment: int, work: Awaitable[object]) -> None:
    """Begin some work, and cancel it after some steps of the event loop."""
    task = asyncio.ensure_future(work)
    await steps(moment)
    task.cancel()
    with suppress(asyncio.CancelledError, Exception):
        await task
    await steps(3)  # what a transport does when it is closed


def closes_everything(play: Callable[[], Awaitable[None]]) -> None:
    """Run some work, and fail if a transport or socket is left open."""

    async def run() -> None:
        await play()

    gc.collect()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        asyncio.run(run())
        gc.collect()
    assert [str(one.message) for one in caught if issubclass(one.category, ResourceWarning)] == []


def test_connection_is_closed_if_what_follows_connecting_is_cancelled(
    settings: RedisSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def play() -> None:
        client = RedisClient(settings)
        connected = asyncio.Event()

        async def run(connection: object, batch: object) -> None:
            connected.set()
            await asyncio.sleep(60)

        monkeypatch.setattr(client, "_run", run)
        task = asyncio.ensure_future(client.connect())
        await connected.wait()
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        await client.close()

    closes_everything(play)


@pytest.mark.parametrize("kind", KINDS)
def test_connection_is_closed_if_connecting_is_cancelled(settings: RedisSettings, kind: str) -> None:
    async def play() -> None:
        for moment in MOMENTS:
            client = RedisClient(replace(settings, **KINDS[kind]))  # type: ignore[arg-type]
            await cancel_after(moment, client.connect())
            await client.close()

    closes_everything(play)


@pytest.mark.parametrize("kind", KINDS)
def test_connection_is_closed_if_an_attempt_store_is_closed_while_it_connects(
    settings: RedisSettings, kind: str
) -> None:
    async def play() -> None:
        for moment in MOMENTS:
            store = RedisAttemptStore(replace(settings, **KINDS[kind]))  # type: ignore[arg-type]
            opening = asyncio.ensure_future(store.open())
            await steps(moment)
            opening.cancel()
            with suppress(asyncio.CancelledError):
                await opening
            store._start(store._reconnect())
            await steps(moment)
            await store.close()
            await steps(3)

    closes_everything(play)


@pytest.mark.parametrize("kind", KINDS)
def test_connection_is_closed_if_a_fleet_store_is_closed_while_it_asks(
    settings: RedisSettings, kind: str
) -> None:
    async def play() -> None:
        for moment in MOMENTS:
            store = FleetStore(replace(settings, **KINDS[kind]), "mx")  # type: ignore[arg-type]
            await cancel_after(moment, store.now())
            await store.close()

    closes_everything(play)
