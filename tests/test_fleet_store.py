"""What machines keep in the store of their fleet, with a real Redis server and machines in this process."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from blackhole import __version__, redis_url
from blackhole.fleet.fields import FIXED_FIELDS
from blackhole.fleet.machine import find_differences, make_view, parse_machines
from blackhole.fleet.member import FleetMember
from blackhole.fleet.replies import FleetRun, StoreError, parse_run
from blackhole.fleet.runs import FleetRuns, RunConflict
from blackhole.fleet.store import MAX_FLEET_RUNS, FleetStore, Total
from blackhole.metrics.counters import Counters
from tests.redis_server import RedisServer

ACCEPTED = "reply . 250"


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture
def fleet(redis: RedisServer) -> Iterator[Callable[[Callable[[FleetStore], Awaitable[None]]], None]]:
    """Run a coroutine with the store of an empty fleet."""

    def run(test: Callable[[FleetStore], Awaitable[None]]) -> None:
        async def with_store() -> None:
            store = FleetStore(redis_url.fleet(f"redis://127.0.0.1:{redis.port}/0"), "f")
            try:
                await test(store)
            finally:
                await store.close()

        redis.ask("FLUSHALL")
        asyncio.run(with_store())

    yield run


Fleet = Callable[[Callable[[FleetStore], Awaitable[None]]], None]


class CountingMember(FleetMember):
    """A member of a fleet whose messages a test counts; it has no processes."""

    def __init__(self, store: FleetStore, name: str, **shown: Any) -> None:
        counters = Counters(rows=1)
        self.cells = counters.cells(counters.allocate_row())
        facts = {"version": __version__, "scenario": "loaded", "up": 1.0, "rate": 0.0, "open": 0, "load": 0.0}
        facts |= {"name": name, "messages": 0, "workers": 1} | shown
        super().__init__(store, f"{name}:1", counters.snapshot, lambda: facts)

    async def count(self, messages: int) -> None:
        """Count messages, and write."""
        self.cells[FIXED_FIELDS[ACCEPTED]] += messages
        assert await self.write()


def test_nothing_is_left_of_machines_that_came_and_went_but_what_they_counted(
    fleet: Fleet, redis: RedisServer
) -> None:
    async def come_and_go(store: FleetStore) -> None:
        for number in range(200):
            await store.write(f"gone-{number}:1", {ACCEPTED: 3, "counter timed_out": 1}, "{}", 3601)
        for number in range(5):
            await store.write(f"crashed-{number}:1", {ACCEPTED: 2}, "{}")
            redis.ask("ZADD", "blackhole:{f}:seen", time.time() - 8 * 86400, f"crashed-{number}:1")
        one = CountingMember(store, "one.test")
        for _ in range(25):
            await one.count(1)
        keys = {key.removeprefix("blackhole:{f}:") for key in redis.ask("KEYS", "*")}
        assert keys == {"total", "figures:one.test:1", "figures:forgotten", "machines", "seen"}
        prefix = "blackhole:{f}:"
        assert (redis.ask("ZCARD", f"{prefix}seen"), redis.ask("HLEN", f"{prefix}machines")) == (1, 1)
        assert all(0 < redis.ask("TTL", f"blackhole:{{f}}:{key}") <= 7 * 86400 for key in keys)
        assert (await store.total()).fields[ACCEPTED] == 200 * 3 + 5 * 2 + 25
        await one._copies.update()
        redis.ask("FLUSHALL")
        await one.count(1)
        assert (await store.total()).fields[ACCEPTED] == 200 * 3 + 5 * 2 + 26, "also in an empty store"
        assert (await store.total()).fields["counter timed_out"] == 200

    fleet(come_and_go)


def test_a_machine_that_has_left_is_restored_as_one(fleet: Fleet, redis: RedisServer) -> None:
    """And once only, whoever has a copy of it; its figures are not lost with the next loss."""

    async def lose(store: FleetStore) -> None:
        one, two = CountingMember(store, "one"), CountingMember(store, "two")
        three = CountingMember(FleetStore(store.settings, "f"), "three")
        for machine in one, two, three:
            await machine.count(5)
        await three.leave(0)
        for _ in range(3):
            for machine in one, two:
                await machine.count(0)
                await machine._copies.update()
            redis.ask("FLUSHALL")
            for machine in one, two:
                await machine.count(1)
            found = {machine.name: machine.alive for machine in await one.machines()}
            assert found == {"one": True, "two": True, "three": False}
        assert (await store.total()).fields[ACCEPTED] == 15 + 6

    fleet(lose)


def test_copies_of_a_store_that_has_just_lost_its_data_replace_no_others(
    fleet: Fleet, redis: RedisServer
) -> None:
    async def lose(store: FleetStore) -> None:
        one = CountingMember(store, "one")
        await store.write("gone:1", {ACCEPTED: 7}, json.dumps({}), 20)
        await one.count(1)
        await one._copies.update()
        one._copies._wants_machines = one._copies._wants_runs = True
        one._copies._next = 0.0
        redis.ask("FLUSHALL")
        await one._copies.update()
        await one.count(1)
        assert (await store.total()).fields[ACCEPTED] == 7 + 2

    fleet(lose)


def test_what_a_replica_lacks_that_has_taken_over_is_written_again(
    fleet: Fleet, redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> None:
        raise StoreError("the server closed the connection")

    async def fail_over(store: FleetStore) -> None:
        one = CountingMember(store, "one")
        await one.count(5)
        # The replica had not received the last write of its primary.
        redis.ask("HINCRBY", "blackhole:{f}:total", ACCEPTED, -2)
        redis.ask("HINCRBY", "blackhole:{f}:figures:one:1", ACCEPTED, -2)
        with monkeypatch.context() as patch:
            patch.setattr(store, "write", fail)
            assert not await one.write()
        assert await one.write()
        assert (await store.total()).fields[ACCEPTED] == 5

    fleet(fail_over)


def test_a_machine_cut_off_for_seven_days_counts_twice_what_it_had_counted_and_no_more(
    fleet: Fleet, redis: RedisServer
) -> None:
    async def cut_off(store: FleetStore) -> None:
        one, two = CountingMember(store, "one"), CountingMember(store, "two")
        await one.count(5)
        await two.count(7)
        redis.ask("ZADD", "blackhole:{f}:seen", time.time() - 7 * 86400 - 1, one.machine)
        await two.count(0)
        assert (await store.total()).fields[ACCEPTED] == 12
        await one.count(1)
        assert (await store.total()).fields[ACCEPTED] == 12 + 5 + 1
        await one.count(1)
        await two.count(1)
        assert (await store.total()).fields[ACCEPTED] == 12 + 5 + 3

    fleet(cut_off)


@pytest.mark.parametrize("hours", [0.5, 2, 7 * 24 - 1])
def test_a_machine_cut_off_while_its_store_loses_everything_counts_once_for_seven_days(
    fleet: Fleet, redis: RedisServer, hours: float
) -> None:
    async def cut_off(store: FleetStore) -> None:
        one, two = CountingMember(store, "one"), CountingMember(store, "two")
        await one.count(5)
        await two.count(7)
        redis.ask("ZADD", "blackhole:{f}:seen", time.time() - hours * 3600, one.machine)
        await two.count(0)
        await two._copies.update()
        redis.ask("FLUSHALL")
        for _ in range(3):
            await two.count(0)
        assert (await store.total()).fields[ACCEPTED] == 12, "from the copy"
        await one.count(1)
        assert (await store.total()).fields[ACCEPTED] == 12 + 1

    fleet(cut_off)


def test_a_machine_that_was_back_for_a_while_is_copied_again(fleet: Fleet, redis: RedisServer) -> None:
    async def come_back(store: FleetStore) -> None:
        one, two = CountingMember(store, "one"), CountingMember(store, "two")
        await two.count(7)
        for hours in 2, 1:
            await one.count(5)
            await two.count(0)
            redis.ask("ZADD", "blackhole:{f}:seen", time.time() - hours * 3600, one.machine)
            await two.count(0)
            two._copies._next = 0.0  # a second later
            await two._copies.update()
        redis.ask("FLUSHALL")
        for _ in range(3):
            await two.count(0)
        assert (await store.total()).fields[ACCEPTED] == 7 + 10

    fleet(come_back)


def test_a_machine_that_leaves_is_gone_at_once_and_says_since_when(fleet: Fleet) -> None:
    async def leave(store: FleetStore) -> None:
        one = CountingMember(store, "one")
        await one.count(1)
        await one.write(10)
        (found,) = await one.machines()
        assert (found.alive, round(found.age)) == (False, 0)

    fleet(leave)


def test_a_generation_lasts_from_the_first_machine_to_the_last(fleet: Fleet, redis: RedisServer) -> None:
    async def live(store: FleetStore) -> None:
        one, two = CountingMember(store, "one"), CountingMember(store, "two")
        await one.count(5)
        await two.count(2)
        assert one.generation == two.generation
        for machine in one, two, one:
            await machine.count(0)
        assert (one.elsewhere, two.elsewhere) == (2, 5)
        redis.ask("FLUSHALL")
        await one.count(1)
        assert (one.elsewhere, one.generation) == (2, two.generation), "it is known until it comes back"
        await two.count(1)
        await one.count(0)
        assert (one.elsewhere, two.elsewhere) == (3, 6)
        for machine in one, two:
            await machine.write(10)
        three = CountingMember(store, "three")
        await three.count(1)
        assert three.generation != one.generation
        assert three.elsewhere == 0

    fleet(live)


def test_runs_are_restored_as_they_were_last_known(fleet: Fleet, redis: RedisServer) -> None:
    async def lose(store: FleetStore) -> None:
        one, two = CountingMember(store, "one"), CountingMember(store, "two")
        for machine in one, two:
            await machine.count(3)
        runs = FleetRuns(one)
        writing = asyncio.create_task(two.run())
        try:
            await runs.start("a")
            for machine in one, two:
                await machine.count(2)
                await machine._copies.update()
            run = await runs.find("a")
            assert run is not None
            await runs.stop(run)
            await runs.stop(run)  # changes nothing
        finally:
            writing.cancel()
        await one.count(0)
        await one._copies.update()  # the other one knows of the beginning only
        redis.ask("FLUSHALL")
        for machine in two, one, two:
            await machine.count(0)
        found = await runs.find("a")
        assert found is not None
        assert (found.first[ACCEPTED], found.last[ACCEPTED], found.late) == (6, 10, ())

    fleet(lose)


def test_no_more_runs_are_kept_than_a_machine_keeps(fleet: Fleet) -> None:
    async def start_many(store: FleetStore) -> None:
        one = CountingMember(store, "one")
        await one.count(1)
        runs = FleetRuns(one)
        for number in range(MAX_FLEET_RUNS):
            await runs.start(f"n{number}")
        with pytest.raises(RunConflict, match="32 runs are running already"):
            await runs.start("more")
        await runs.stop((await runs.all())["n5"])
        await runs.start("more")
        names = [*(await runs.all())]
        assert (len(names), "n5" in names, names[-1]) == (MAX_FLEET_RUNS, False, "more")
        with pytest.raises(RunConflict, match="There is a run more already"):
            await runs.start("more")

    fleet(start_many)


@pytest.mark.parametrize(
    "text",
    [
        *(b"", b"[]", b"{}", b"[" * 5000, b"\xff"),
        *(
            json.dumps({"started": 1, "ended": 0, "first": {}, "last": {}, "late": []} | change).encode()
            for change in (
                *({"started": wrong} for wrong in ("1", -1, None, 1e300)),
                *({"first": wrong} for wrong in ([], {"a": -1}, {"a": 1.5}, {"a": True}, {"a": 1 << 70})),
                *({"late": wrong} for wrong in (None, 5)),
            )
        ),
    ],
    ids=lambda text: repr(text)[:60],
)
def test_a_run_that_is_none_is_left_out(text: bytes) -> None:
    assert parse_run(b"x", text) is None


def test_a_run_comes_back_as_it_was_stored() -> None:
    run = FleetRun("x", 1.5, 2.5, {ACCEPTED: 1}, {ACCEPTED: 2}, ("one.test",))
    assert parse_run(b"x", run.text().encode()) == run


def compare(store: FleetStore, caplog: pytest.LogCaptureFixture, *machines: CountingMember) -> Any:
    """Return what each machine logs when it has compared itself with the others."""

    async def look() -> list[str]:
        for _ in range(2):
            for machine in machines:
                await machine.count(0)
                machine._joined = (machine._joined or time.monotonic()) - 3
        caplog.clear()
        for machine in machines:
            await machine._compare_with_others()
            await machine._compare_with_others()  # says no more
        return [record.getMessage() for record in caplog.records]

    return look()


def test_a_machine_that_joins_tells_in_one_line_in_what_it_differs(
    fleet: Fleet, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)

    async def join(store: FleetStore) -> None:
        one, two = CountingMember(store, "one", up=50.0), CountingMember(store, "two", up=40.0)
        assert await compare(store, caplog, one, two) == ["fleet f: joined, beside 1 machine"] * 2
        other = CountingMember(store, "three", version="1.0", scenario="new.toml", digest="0" * 16)
        (line,) = await compare(store, caplog, other)
        assert line == (
            f"fleet f: this machine differs: version 1.0, not {__version__} as on one, two;"
            " scenario new.toml (0000000000000000), not loaded (empty) as on one, two"
        )

    fleet(join)

    async def join_with_the_name_of_another(store: FleetStore) -> None:
        first, second = CountingMember(store, "same", up=50.0), CountingMember(store, "same")
        second.machine = "same:2"  # type: ignore[misc]
        assert await compare(store, caplog, first, second) == [
            "fleet f: joined, beside 1 machine",
            "fleet f: this machine differs: it needs another --hostname, because it has"
            " the name of same (same:1)",
        ]
        assert sorted(one.name for one in await first.machines()) == ["same (same:1)", "same (same:2)"]

    fleet(join_with_the_name_of_another)

    async def join_with_a_wrong_clock(store: FleetStore) -> None:
        one = CountingMember(store, "one")
        now = time.time
        monkeypatch.setattr(time, "time", lambda: now() + 90)
        (line,) = await compare(store, caplog, one)
        assert re.fullmatch(
            r"fleet f: this machine differs: its clock is (89|90)\.\d s ahead of .* store", line
        )

    fleet(join_with_a_wrong_clock)


def test_a_machine_differs_from_many_in_one_line() -> None:
    text = {"name": "x", "version": "2", "scenario": "s", "up": 1, "messages": 0, "rate": 0, "open": 0}
    text |= {"load": 0, "workers": 1, "order": 0, "layout": 5}
    found = {f"m{n}:1": (0.0, json.dumps(text | {"name": f"m{n}"}).encode()) for n in range(9)}
    own, *others = parse_machines(found)
    lines = [*find_differences(own._replace(layout=6, namespaces=0), others, -7.25)]
    assert lines == [
        "another layout of the counters as on m1, m2, m3 and 5 more",
        "namespaces shared, not unshared as on m1, m2, m3 and 5 more",
        "its clock is 7.2 s behind that of the store",
    ]
    silent = [one._replace(age=5.0, name="\x1b[31m") for one in others] * 4
    notes = make_view("f", Total({}, 0), 1, silent).snapshot.notes
    assert notes[1] == "?[31m: silent, its last figures are 5 s old."
    assert notes[-2] == "12 more machines are silent or gone."
