"""What the machines of a fleet keep of namespaces in its store, with a real Redis server."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator

import pytest

from blackhole import redis_url
from blackhole.fleet.fields import FIXED_FIELDS, namespace_fields
from blackhole.fleet.member import FleetMember
from blackhole.fleet.namespace_figures import NamespaceFigures
from blackhole.fleet.namespace_store import NamespaceIndex, NamespaceStore
from blackhole.fleet.replies import FleetOrder, SharedRule, StoreError
from blackhole.fleet.script import KEEP_SECONDS, NAMESPACE_KEY_SECONDS
from blackhole.fleet.store import FORGOTTEN, FleetStore
from blackhole.metrics.counters import Counters
from blackhole.metrics.namespace_counters import NamespaceCounters, NamespaceState
from blackhole.process.order_guard import OrderGuard
from blackhole.rules.scenario import Scenario
from blackhole.settings import Settings
from blackhole.store.control import MAX_NAMESPACES, ControlChannel, NamespaceEntry
from blackhole.store.namespaces import (
    MAX_UNUSED,
    MIN_UNUSED,
    NamespaceDirectory,
    NamespaceOrders,
    NamespacesFull,
)
from blackhole.web.fleet_control import FleetControl
from blackhole.web.fleet_namespaces import FleetNamespaces
from blackhole.web.tls_orders import TLSOrders
from tests.redis_server import RedisServer

ACCEPTED = "reply . 250"
ORDER = FleetOrder(name="PUT /scenario", text="[[rule]]\n", rules=(SharedRule("a", 2, {"phase": "RCPT"}),))
GONE = "dead"
"""The id of a namespace that is gone."""

INDEX, USED = "blackhole:{f}:namespaces", "blackhole:{f}:namespaces:used"

Test = Callable[[FleetStore, NamespaceStore], Awaitable[None]]


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture
def fleet(redis: RedisServer) -> Callable[[Test], None]:
    """Run a coroutine with the store of an empty fleet."""

    def run(test: Test) -> None:
        async def with_store() -> None:
            store = FleetStore(redis_url.fleet(f"redis://127.0.0.1:{redis.port}/0"), "f")
            try:
                await test(store, NamespaceStore(store))
            finally:
                await store.close()

        redis.ask("FLUSHALL")
        asyncio.run(with_store())

    return run


Fleet = Callable[[Test], None]


class NamespacedMember(FleetMember):
    """A member of a fleet whose messages of one namespace a test counts; it has no processes."""

    def __init__(self, store: FleetStore, name: str) -> None:
        counters = Counters(rows=1)
        shown = {"name": name, "version": "1", "scenario": "", "up": 1, "messages": 0, "rate": 0, "open": 0}
        shown |= {"load": 0, "workers": 1}
        super().__init__(store, name, counters.snapshot, lambda: shown)
        self.obeyed_namespaces = 0
        self.messages: dict[str, int] = {}
        self.namespace_fields = lambda snapshot: {
            f"in {namespace} {ACCEPTED}": count for namespace, count in self.messages.items()
        }


def age(redis: RedisServer, name: str, seconds: float) -> None:
    """Make a namespace older that was used just now."""
    redis.ask("ZINCRBY", USED, -seconds, name)


def test_an_order_makes_a_namespace_and_comes_back_as_it_was_given(fleet: Fleet) -> None:
    async def test(store: FleetStore, namespaces: NamespaceStore) -> None:
        assert await namespaces.index() == NamespaceIndex()
        assert await namespaces.publish("a", ORDER, True) == 1
        assert await namespaces.publish("b", FleetOrder(), False) == 2
        one = (await namespaces.index()).namespaces["a"]
        assert abs(one.made - await store.now()) < 60
        found = await namespaces.order(one)
        assert found == ORDER._replace(number=1, at=found.at)
        assert abs(found.at - one.made) < 1
        assert await namespaces.publish("a", ORDER._replace(name="x"), True) == 0, "it is made of no order"
        assert await namespaces.publish("a", found._replace(rules=()), False) == 3
        assert (await namespaces.order(one)).rules == ()
        assert await namespaces.remove("a", "dead") == await namespaces.remove("c") == 3, "there is none"
        assert await namespaces.remove("a", one.id) == 4
        assert await namespaces.order(one) == FleetOrder()
        assert {*(await namespaces.index()).namespaces} == {"b"}
        assert await namespaces.publish("a", FleetOrder(), False) == 5
        assert (await namespaces.index()).namespaces["a"].id != one.id

    fleet(test)


def test_there_is_room_for_so_many_namespaces_in_the_whole_fleet(fleet: Fleet, redis: RedisServer) -> None:
    async def test(store: FleetStore, namespaces: NamespaceStore) -> None:
        for number in range(MAX_NAMESPACES):
            await namespaces.publish(f"n{number}", FleetOrder(), False)
        with pytest.raises(NamespacesFull, match="100 namespaces already"):
            await namespaces.publish("more", FleetOrder(), False)
        age(redis, "n7", MIN_UNUSED + 1)
        await namespaces.publish("more", FleetOrder(), False)
        found = (await namespaces.index()).namespaces
        assert (len(found), "n7" in found, "more" in found) == (MAX_NAMESPACES, False, True)

    fleet(test)


def test_a_namespace_is_gone_an_hour_after_any_machine_has_used_it(fleet: Fleet, redis: RedisServer) -> None:
    async def test(store: FleetStore, namespaces: NamespaceStore) -> None:
        for name in ("used", "idle", "other"):
            await namespaces.publish(name, ORDER, True)
            age(redis, name, MAX_UNUSED + 1)
        before = await namespaces.index()
        used, other = before.namespaces["used"], before.namespaces["other"]
        for one in before.namespaces.values():
            await store.write("m:1", {f"in {one.id} {ACCEPTED}": 1}, "")
        gone = await namespaces.touch([(used, 9.0), (other._replace(id="0"), 1.0)])
        assert sorted(gone) == ["idle", "other"]
        assert await namespaces.touch([(used, 99.0)]) == []
        after = await namespaces.index()
        assert (after.number, [*after.namespaces]) == (before.number + 1, ["used"])
        assert 9 <= (await namespaces.unused())["used"] < 60
        begin = f"blackhole:{{f}}:namespace:{used.id}"
        assert redis.names("*namespace:*") == [f"{begin}:order", f"{begin}:total"]
        for key in redis.names("*namespace:*"):
            assert 0 < redis.ask("TTL", key) <= NAMESPACE_KEY_SECONDS
        assert all(0 < redis.ask("TTL", key) <= KEEP_SECONDS for key in redis.names())

    fleet(test)


def test_machines_count_each_message_of_a_namespace_once(fleet: Fleet, redis: RedisServer) -> None:
    """Also if they write again what is written, and if the store loses everything."""

    async def test(store: FleetStore, namespaces: NamespaceStore) -> None:
        await namespaces.publish("a", FleetOrder(), False)
        shared = (await namespaces.index()).namespaces["a"]
        one, two = NamespacedMember(store, "one:1"), NamespacedMember(store, "two:2")
        one.messages[shared.id], two.messages[shared.id] = 3, 4

        async def messages() -> int:
            for member in (one, two):
                assert await member.write()
            return await NamespaceFigures(one, shared).messages()

        assert await messages() == 7
        one._written = {}
        assert await messages() == 7
        one.messages[shared.id] += 2
        assert await messages() == 9
        assert sum((await one.view()).snapshot.messages.values()) == 0
        view = await NamespaceFigures(two, shared).view()
        assert (view.machines, view.snapshot.started) == ((), shared.made)
        (note,) = view.snapshot.notes
        assert note.startswith("Counted by 2 machines alive now")
        redis.ask("FLUSHALL")
        assert await messages() == 9

    fleet(test)


async def fail(*_: object) -> None:
    raise StoreError("no answer in time")


def test_nothing_is_left_of_a_namespace_that_is_gone(
    fleet: Fleet, redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(store: FleetStore, namespaces: NamespaceStore) -> None:
        member = NamespacedMember(store, "one:1")
        for name in ("a", "b"):
            await namespaces.publish(name, FleetOrder(), False)
            member.messages[(await namespaces.index()).namespaces[name].id] = 1
        kept = (await namespaces.index()).namespaces["b"].id
        await member.write()
        await namespaces.remove("a")
        del member.messages[min(member.messages.keys() - {kept})]
        # A write that fails keeps in mind what is to be removed.
        with monkeypatch.context() as without_store:
            without_store.setattr(member, "_write", fail)
            assert not await member.write()
        assert await member.write()
        assert await store.figures("one:1") == {f"in {kept} {ACCEPTED}": 1}
        # So does the process that takes the place of one which has ended.
        await store.write("one:1", {f"in {GONE} {ACCEPTED}": 1}, "")
        successor = NamespacedMember(store, "one:1")
        successor.messages = member.messages
        assert await successor.write()
        assert await store.figures("one:1") == {f"in {kept} {ACCEPTED}": 1}
        redis.ask("DEL", f"blackhole:{{f}}:namespace:{GONE}:total")
        assert redis.names("*namespace:*") == [
            f"blackhole:{{f}}:namespace:{kept}:{kind}" for kind in ("order", "total")
        ]

    fleet(test)


def test_what_a_forgotten_machine_counted_stays_with_the_namespace_alone(
    fleet: Fleet, redis: RedisServer
) -> None:
    async def test(store: FleetStore, namespaces: NamespaceStore) -> None:
        await namespaces.publish("a", FleetOrder(), False)
        shared = (await namespaces.index()).namespaces["a"]
        await store.write("gone:1", {f"in {shared.id} {ACCEPTED}": 5, ACCEPTED: 6}, "{}")
        redis.ask("ZINCRBY", "blackhole:{f}:seen", -KEEP_SECONDS - 1, "gone:1")
        member = NamespacedMember(store, "one:1")
        await member.write()
        assert await store.figures("gone:1") == {}
        assert await store.figures(FORGOTTEN) == {ACCEPTED: 6}
        assert await NamespaceFigures(member, shared).messages() == 5

    fleet(test)


def test_namespaces_are_restored_as_the_machine_knows_them_that_knows_most(
    fleet: Fleet, redis: RedisServer
) -> None:
    async def test(store: FleetStore, namespaces: NamespaceStore) -> None:
        await namespaces.publish("gone", FleetOrder(), False)
        early = await namespaces.index()
        await namespaces.remove("gone")
        await namespaces.publish("a", ORDER, True)
        late = await namespaces.index()
        orders = {"a": await namespaces.order(late.namespaces["a"])}
        redis.ask("FLUSHALL")
        await namespaces.restore(early, {})
        assert await namespaces.index() == early
        await namespaces.restore(late, orders)
        await namespaces.restore(early, {})
        assert await namespaces.index() == late
        assert await namespaces.order(late.namespaces["a"]) == orders["a"]
        assert redis.names("*namespace:*") == [f"blackhole:{{f}}:namespace:{late.namespaces['a'].id}:order"]
        assert [*(await namespaces.unused())] == ["a"]
        assert await namespaces.publish("a", orders["a"], False) == late.number + 1

    fleet(test)


def test_an_index_that_is_none_is_input_like_any(fleet: Fleet, redis: RedisServer) -> None:
    async def test(store: FleetStore, namespaces: NamespaceStore) -> None:
        for name, text in (("good", "a1 1 2.5"), ("Bad", "a1 1 2"), ("bad", "x 1 2"), ("b d", "a 1 2")):
            redis.ask("HSET", INDEX, name, text)
        assert [*(await namespaces.index()).namespaces] == ["good"]
        redis.ask("HSET", INDEX, " number", "x")
        with pytest.raises(StoreError):
            await namespaces.index()
        redis.ask("DEL", INDEX)
        redis.ask("SET", INDEX, "x")
        used = (await namespaces.unused()).items()
        assert not used
        for request in (
            namespaces.index(),
            namespaces.publish("a", FleetOrder(), False),
            namespaces.remove("a"),
            namespaces.restore(NamespaceIndex(5), {}),
        ):
            with pytest.raises(StoreError):
                await request

    fleet(test)


def test_counters_of_a_namespace_have_the_fields_of_those_of_a_machine() -> None:
    counters, shared = Counters(rows=1), NamespaceCounters(rows=1)
    listener, (rule,) = counters.listener("127.0.0.1:25"), counters.rule_counters(["full"])
    entry = NamespaceEntry("a", 0, 1, 1, 0, 0.0, "f00")
    row = shared.writer(entry, 0)
    for cell, amount in ((FIXED_FIELDS[ACCEPTED], 2), (listener, 1), (rule, 3)):
        row.add(cell, amount)
    assert namespace_fields("f00", shared.counted(entry), counters.snapshot()) == {
        f"in f00 {ACCEPTED}": 2,
        "in f00 listener 127.0.0.1:25": 1,
        "in f00 rule full": 3,
    }


def test_a_namespace_of_whose_order_a_worker_dies_is_removed_from_the_fleet(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    async def test(store: FleetStore, namespaces: NamespaceStore) -> None:
        counters, channel = Counters(rows=2), ControlChannel()
        row, guard = counters.allocate_row(), OrderGuard(counters, channel)
        counters.set_applied_order(row, channel.number)
        member, settings = NamespacedMember(store, "one:1"), Settings()
        control = FleetControl(
            settings, Scenario(), (), channel, counters, TLSOrders(settings, (), None), member
        )
        directory = NamespaceDirectory(channel, NamespaceOrders())
        state = NamespaceState(directory, NamespaceCounters(rows=2))
        here = FleetNamespaces(state, settings, control, counters, member)

        async def work() -> None:
            """Apply orders as a worker does, which dies of those to one namespace."""
            while True:
                number, order = channel.read()
                if order.changed == "fatal":
                    counters.set_reading_order(row, number)
                    guard.check(row, hung=False)
                counters.set_applied_order(row, channel.number)
                await asyncio.sleep(0.001)

        worker = asyncio.create_task(work())
        try:
            await namespaces.publish("good", FleetOrder(), False)
            number = await namespaces.publish("fatal", FleetOrder(), False)
            await here.obey()
            assert here.control("fatal").is_dropped(number)
            assert not here.control("good").is_dropped(number - 1)
            assert [*(await namespaces.index()).namespaces] == ["good"]
            assert (member.obeyed_namespaces, [one.name for one in directory.entries()]) == (number, ["good"])
            await here.obey()
            assert member.obeyed_namespaces == number + 1
            assert "the namespace fatal is removed: a worker has died of its order" in caplog.text
        finally:
            worker.cancel()

    fleet(test)
