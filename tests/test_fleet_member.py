"""A machine of a fleet whose store is slow."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any, cast

import pytest

from blackhole.fleet.member import FleetMember
from blackhole.fleet.store import FleetStore, Written
from blackhole.metrics.counters import Counters
from blackhole.web.dashboard import _log_error


class SlowStore:
    """Takes the first write when the test lets it, and all others at once."""

    def __init__(self) -> None:
        self.calls = 0
        self.orders: list[int] = []
        self.ready = asyncio.Event()

    async def write(
        self, machine: str, fields: Mapping[str, int], summary: str, age: float = 0, known: str = ""
    ) -> Written:
        order = json.loads(summary)["order"]
        self.calls += 1
        if self.calls == 1:
            await self.ready.wait()
        self.orders.append(order)
        return Written("epoch", 1, 0)


def test_a_write_never_takes_back_what_a_later_one_says() -> None:
    async def write_twice() -> list[int]:
        store = SlowStore()
        member = FleetMember(
            cast(FleetStore, cast(Any, store)), "one:1", Counters(rows=1).snapshot, dict[str, Any]
        )
        first = asyncio.create_task(member.write())
        await asyncio.sleep(0)
        member.obeyed = 7
        second = asyncio.create_task(member.write())
        await asyncio.sleep(0)
        store.ready.set()
        assert await asyncio.gather(first, second) == [True, True]
        return store.orders

    assert asyncio.run(write_twice()) == [-1, 7]


def test_a_mistake_in_the_work_for_the_fleet_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def fail() -> None:
        raise LookupError("a mistake")

    async def run_both() -> None:
        failing, waiting = asyncio.create_task(fail()), asyncio.create_task(asyncio.sleep(60))
        for task in failing, waiting:
            task.add_done_callback(_log_error)
        waiting.cancel()
        await asyncio.wait((failing, waiting))
        await asyncio.sleep(0)

    asyncio.run(run_both())
    assert [record.getMessage() for record in caplog.records] == [
        "the fleet is left: LookupError('a mistake')"
    ]
