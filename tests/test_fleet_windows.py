"""Windows of the configuration, which are open at the same time on all machines of a fleet."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from blackhole import redis_url
from blackhole.fleet.store import FleetStore
from blackhole.fleet.window_clock import WindowClock
from blackhole.rules.scenario_file import parse_rules
from blackhole.store.control import MAX_ORDER_OCTETS, ControlChannel, RuntimeOrder, order_text
from tests.http_api import Sink
from tests.program import scenario_option, wait_for
from tests.redis_server import RedisServer
from tests.test_fleet_control import rcpt

OUTAGE = """
[[window]]
name = "outage"
for = "%gs"
[[rule]]
phase = "RCPT"
window = "outage"
reply = "452 4.3.1 Out"
"""

MOVED = "s earlier than they did on this machine, as on the others"
ALONE = "windows run from the start of this machine until then"


def test_machines_that_start_at_different_times_are_in_a_window_at_the_same_time(
    own_redis: RedisServer, tmp_path: Path
) -> None:
    options = scenario_option(tmp_path, OUTAGE % 3600), f"--fleet={own_redis.url()}", "--workers=1"
    with Sink(*options) as one:
        wait_for(lambda: own_redis.names("*:windows:*"), "it says when its windows began")
        time.sleep(1.5)
        own_redis.kill()
        with Sink(*options) as two:
            wait_for(lambda: ALONE in two.output(), "it says what its windows run by")
            assert rcpt(two) == {452: 1}
            own_redis.start()
            wait_for(lambda: MOVED in two.output(), "it learns when they began")
            assert rcpt(one) == rcpt(two) == {452: 1}
            assert MOVED not in one.output(), "it was the first"
            # As if the first one had been started an hour before.
            for key in own_redis.names("*:windows:*"):
                own_redis.ask("SET", key, float(own_redis.ask("GET", key)) - 3600)
            for sink in one, two:
                wait_for(lambda sink=sink: rcpt(sink) == {250: 1}, "the window is closed")  # type: ignore[misc]
            os.kill(two.pid, signal.SIGHUP)
            wait_for(lambda: "reloaded:" in two.output(), "it reads the configuration again")
            assert rcpt(two) == {250: 1}
            assert two.output().count(MOVED) == 2


class Machine:
    """The clock of a machine whose server was started so many minutes ago."""

    def __init__(self, store: FleetStore, minutes: float, text: str = OUTAGE % 60) -> None:
        self.channel = ControlChannel()
        started = time.monotonic() - minutes * 60
        clock = WindowClock.of_rules(store, self.channel, parse_rules(text, "test"), started)
        assert clock is not None
        self.clock = clock

    async def minutes(self, generation: str = "g") -> int:
        """Update its clock, and return how many minutes ago its windows began."""
        await self.clock.update(generation)
        return round((time.monotonic() - self.clock.origin) / 60)


def with_store(redis: RedisServer, test: Callable[[FleetStore], Awaitable[None]]) -> None:
    async def run() -> None:
        store = FleetStore(redis_url.fleet(redis.url()), "f")
        try:
            await test(store)
        finally:
            await store.close()

    asyncio.run(run())


def test_the_first_machine_says_when_windows_began(
    redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "blackhole")

    async def start(store: FleetStore) -> None:
        first, second = Machine(store, 50), Machine(store, 20)
        assert [await one.minutes() for one in (first, second)] == [50, 50]
        (said,) = caplog.messages
        assert re.fullmatch(rf"fleet f: windows begin [0-9.]+ {MOVED}", said)
        assert first.channel.number == 0, "its workers have the right clock"
        # A difference that nobody notices is not worth a line.
        began = (first.clock.origin - time.monotonic()) / -60
        assert await Machine(store, began - 0.005).minutes() == 50
        assert caplog.messages == [said]
        redis.ask("FLUSHALL")
        third = Machine(store, 3)
        assert [await one.minutes() for one in (third, second, third)] == [3, 50, 50], "it was lost"
        other = Machine(store, 7, OUTAGE % 90)
        assert await other.minutes() == 7, "other windows have a clock of their own"
        assert await Machine(store, 4).minutes("h") == 4, "and so have those of another generation"
        assert all(0 < redis.ask("TTL", key) <= 10 for key in redis.names("*:windows:*"))

    with_store(redis, start)


@pytest.mark.parametrize("stored", ["", "x", "nan", "-inf", "inf", "99999999999"])
def test_what_says_when_windows_began_is_input_like_any(redis: RedisServer, stored: str) -> None:
    async def start(store: FleetStore) -> None:
        one = Machine(store, 50)
        await one.minutes()
        (key,) = redis.names("*:windows:*")
        redis.ask("SET", key, stored)
        assert await one.minutes() == 50
        assert round((time.time() - float(redis.ask("GET", key))) / 60) == 50
        redis.ask("DEL", key)
        redis.ask("HSET", key, "a", "hash")
        assert await one.minutes() == 50

    with_store(redis, start)


@pytest.mark.parametrize("age", [-1.0, 1e11])
def test_an_answer_that_is_no_age_is_not_used(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch, age: float
) -> None:
    async def start(store: FleetStore) -> None:
        async def answer(*_: object) -> float:
            return age

        monkeypatch.setattr(store, "share_windows", answer)
        assert await Machine(store, 20).minutes() == 20

    with_store(redis, start)


def test_a_clock_that_cannot_be_published_stays_as_it_was(
    redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async def start(store: FleetStore) -> None:
        await Machine(store, 50).minutes()
        full = Machine(store, 20)
        room = MAX_ORDER_OCTETS - len(order_text(RuntimeOrder()))
        full.channel.publish(lambda before, number: RuntimeOrder(text="x" * room))
        assert await full.minutes() == 20
        assert caplog.messages[0].startswith("fleet f: the clock of windows is not corrected: more than")

    with_store(redis, start)


def test_rules_without_windows_need_no_clock(redis: RedisServer) -> None:
    async def start(store: FleetStore) -> None:
        rules = parse_rules('[[rule]]\nphase = "RCPT"\nreply = "450 4.2.1 Later"', "test")
        assert WindowClock.of_rules(store, ControlChannel(), rules, 0.0) is None

    with_store(redis, start)
