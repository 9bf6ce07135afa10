"""Orders that are given to one machine of a fleet, and obeyed by all."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import smtplib
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack

import pytest

from blackhole import options
from blackhole.fleet.member import FleetMember
from blackhole.fleet.replies import FleetOrder, StoreError
from blackhole.fleet.store import FleetStore
from blackhole.metrics.counters import Counters
from blackhole.metrics.layout import CELL_INDEX
from blackhole.rules.scenario import Scenario
from blackhole.settings import OperatorError
from blackhole.store.control import INITIAL_NUMBER, ControlChannel
from blackhole.store.one_shot_rules import MAX_ONE_SHOT_RULES
from blackhole.web.fleet_control import MAX_TRIES, FleetControl
from blackhole.web.tls_orders import TLSOrders
from tests.http_api import Answer, Sink, ask, post
from tests.program import wait_for
from tests.redis_server import RedisServer

FULL = '[[rule]]\nphase = "RCPT"\nreply = "452 4.2.2 Mailbox full"\n'
NEXT = {"phase": "RCPT", "reply": "450 4.2.0 Once"}
ORDER_KEY = "blackhole:{blackhole}:order"


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


class Fleet:
    """Machines that obey the orders of one another, as far as no other options are given."""

    def __init__(self, redis: RedisServer, *options: str) -> None:
        self.options = (f"--fleet=redis://127.0.0.1:{redis.port}/0?timeout=5", *options)
        self.machines: list[Sink] = []
        self._stack = ExitStack()

    def add(self, *options: str) -> Sink:
        sink = self._stack.enter_context(Sink(*self.options, *(options or ("--fleet_control",))))
        sink.dashboard()
        self.machines.append(sink)
        return sink

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


@pytest.fixture
def fleet(redis: RedisServer) -> Iterator[Fleet]:
    with Fleet(redis) as found:
        yield found


@pytest.fixture(scope="module")
def redis_of_pair() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture(scope="module")
def shared_pair(redis_of_pair: RedisServer) -> Iterator[tuple[Sink, Sink]]:
    with Fleet(redis_of_pair) as found:
        yield found.add(), found.add()


@pytest.fixture
def pair(shared_pair: tuple[Sink, Sink]) -> tuple[Sink, Sink]:
    """Two machines that obey the same orders; none is in force."""
    for path in "/scenario", "/next":
        assert ask(shared_pair[0].http, path, "DELETE").status == 200
    return shared_pair


def rcpt(sink: Sink, times: int = 1) -> Counter[int]:
    """Return the codes of the replies to RCPT, on a new connection each."""
    codes: Counter[int] = Counter()
    for _ in range(times):
        with smtplib.SMTP("127.0.0.1", sink.port, timeout=30) as client:
            client.ehlo()
            client.mail("a@example.com")
            codes[client.rcpt("b@example.com")[0]] += 1
    return codes


def order_scenario(sink: Sink, text: str) -> Answer:
    return ask(sink.http, "/scenario", "PUT", text)


def order_number(redis: RedisServer) -> int:
    """Return the number of the order in the store."""
    return int(redis.ask("HGET", ORDER_KEY, "number") or 0)


def test_a_scenario_is_obeyed_by_all_when_the_response_comes(fleet: Fleet) -> None:
    one, two, three = fleet.add(), fleet.add(), fleet.add()
    answer = order_scenario(two, FULL)
    assert answer.status == 200
    assert answer.json["name"] == "PUT /scenario"
    for sink in one, two, three:
        assert rcpt(sink) == {452: 1}
    assert ask(three.http, "/scenario", "DELETE").status == 200
    for sink in one, two, three:
        assert rcpt(sink) == {250: 1}
    assert "fleet: order 2: scenario of the configuration" in one.output()


def test_a_mistake_reaches_no_machine(pair: tuple[Sink, Sink]) -> None:
    one, two = pair
    answer = order_scenario(one, '[[rule]]\nphase = "RCPT"\nreply = "777 x"\n')
    assert answer.status == 400
    assert "reply: expected" in answer.json["error"]
    assert rcpt(one) == rcpt(two) == {250: 1}


def test_a_machine_that_joins_obeys_the_order_in_force(fleet: Fleet) -> None:
    one = fleet.add()
    order_scenario(one, FULL)
    two = fleet.add()
    wait_for(lambda: rcpt(two) == {452: 1}, "it obeys")


def test_a_one_shot_rule_applies_so_many_times_in_the_whole_fleet(pair: tuple[Sink, Sink]) -> None:
    one, two = pair
    assert post(one.http, "/next", {"count": 3, **NEXT}).status == 200
    assert sum((rcpt(sink) for sink in (one, two) * 4), Counter()) == {450: 3, 250: 5}
    assert post(two.http, "/next", {"count": 1, **NEXT}).status == 200
    assert post(one.http, "/next", {"count": 1, **NEXT}).status == 200
    assert rcpt(one, 4) + rcpt(two, 1) == {450: 2, 250: 3}


def test_uses_of_a_one_shot_rule_are_counted_on_when_the_scenario_changes(pair: tuple[Sink, Sink]) -> None:
    one, two = pair
    assert post(one.http, "/next", {"count": 3, **NEXT}).status == 200
    assert rcpt(one) + rcpt(two) == {450: 2}
    assert order_scenario(two, FULL).status == 200
    assert rcpt(one) + rcpt(two) == {450: 1, 452: 1}
    assert ask(two.http, "/scenario", "DELETE").status == 200
    assert rcpt(one) + rcpt(two) == {250: 2}


def test_one_shot_rules_are_removed_everywhere(pair: tuple[Sink, Sink]) -> None:
    one, two = pair
    post(one.http, "/next", {"count": 3, **NEXT})
    assert len(ask(two.http, "/next").json) == 1
    assert ask(two.http, "/next", "DELETE").status == 200
    assert rcpt(one) == rcpt(two) == {250: 1}


def test_a_machine_without_fleet_control_obeys_itself_alone(fleet: Fleet) -> None:
    one, other = fleet.add(), fleet.add("--fleet_control=no")
    assert order_scenario(one, FULL).status == 200
    assert rcpt(one) == {452: 1}
    assert rcpt(other) == {250: 1}
    assert order_scenario(other, FULL.replace("452", "450")).status == 200
    assert rcpt(other) == {450: 1}
    assert rcpt(one) == {452: 1}


def test_namespaces_of_a_machine_without_fleet_control_are_its_own(fleet: Fleet) -> None:
    one, alone = fleet.add("--namespace-by=tag", "--fleet_control"), fleet.add("--namespace-by=tag")
    assert ask(alone.http, "/namespaces/job", "PUT").status == 201
    assert ask(one.http, "/namespaces").json == []
    assert ask(alone.http, "/namespaces/job/report?scope=machine").status == 200
    answer = ask(alone.http, "/namespaces/job/report?scope=fleet")
    assert (answer.status, "--fleet-control" in answer.json["error"]) == (404, True)


def test_a_machine_that_does_not_obey_is_named(fleet: Fleet) -> None:
    one, two = fleet.add(), fleet.add("--fleet_control", "--hostname=stopped.test")
    stopped = two.dashboard()
    wait_for(lambda: order_scenario(one, "").status == 200, "both obey")
    os.kill(stopped, signal.SIGSTOP)
    try:
        answer = order_scenario(one, FULL)
    finally:
        os.kill(stopped, signal.SIGCONT)
    assert answer.status == 504
    assert "stopped.test did not apply it within 5 s" in answer.json["error"]
    wait_for(lambda: rcpt(two) == {452: 1}, "it obeys once it goes on")


def test_without_its_store_a_fleet_takes_no_orders_and_forgets_none(fleet: Fleet, redis: RedisServer) -> None:
    one, two = fleet.add(), fleet.add()
    order_scenario(one, FULL)
    redis.kill()
    answer = order_scenario(one, "")
    assert answer.status == 503
    assert "the store of the fleet does not answer" in answer.json["error"]
    assert rcpt(one) == rcpt(two) == {452: 1}
    redis.start()
    wait_for(lambda: order_number(redis) == 1, "the order is written again")
    assert rcpt(one) == rcpt(two) == {452: 1}
    three = fleet.add()
    wait_for(lambda: rcpt(three) == {452: 1}, "it obeys")
    assert order_scenario(one, "").status == 200
    assert rcpt(three) == {250: 1}


def test_the_clock_of_a_scenario_is_that_of_the_store(fleet: Fleet) -> None:
    one = fleet.add()
    ordered = time.monotonic()
    order_scenario(one, '[[window]]\nname = "outage"\nfor = 4\n' + FULL + 'window = "outage"\n')
    obeyed = time.monotonic()
    two = fleet.add()
    wait_for(lambda: "fleet: order 1" in two.output(), "it obeys")
    replies = rcpt(two)
    assert replies == {452: 1} or time.monotonic() - ordered > 4
    time.sleep(max(0, obeyed + 4 - time.monotonic()))
    assert rcpt(one) == rcpt(two) == {250: 1}


def test_a_machine_obeys_an_order_that_is_older_than_its_boot(
    pair: tuple[Sink, Sink], redis_of_pair: RedisServer
) -> None:
    number = order_number(redis_of_pair) + 1
    redis_of_pair.ask("HSET", ORDER_KEY, "number", number, "name", "old", "text", FULL, "at", 1)
    for sink in pair:
        wait_for(lambda sink=sink: rcpt(sink) == {452: 1}, "it obeys")
    assert order_number(redis_of_pair) == number


def test_no_more_one_shot_rules_wait_in_a_fleet_than_on_a_machine(
    pair: tuple[Sink, Sink], redis_of_pair: RedisServer
) -> None:
    rules = [[str(number), 1, NEXT] for number in range(MAX_ONE_SHOT_RULES)]
    redis_of_pair.ask("HSET", ORDER_KEY, "rules", json.dumps(rules))
    redis_of_pair.ask("HINCRBY", ORDER_KEY, "number", 1)
    answer = post(pair[0].http, "/next", {"count": 1, **NEXT})
    assert (answer.status, "16 rules are waiting already" in answer.json["error"]) == (400, True)


class Control(FleetControl):
    """The control of a machine in this process. No worker reads its orders."""

    def __init__(self, redis: RedisServer) -> None:
        settings = options.parse([f"--fleet={redis.url()}", "--dashboard=127.0.0.1:0"], {}).settings
        self.counters = Counters(rows=1)
        self.store = FleetStore(settings.fleet, "f")
        member = FleetMember(self.store, "one:1", self.counters.snapshot, dict)
        tls = TLSOrders(settings, (), None)
        super().__init__(settings, Scenario(), (), ControlChannel(), self.counters, tls, member)


def with_control(redis: RedisServer, test: Callable[[Control], Awaitable[None]]) -> None:
    async def run() -> None:
        control = Control(redis)
        try:
            await test(control)
        finally:
            await control.store.close()

    asyncio.run(run())


def test_an_order_between_two_others_is_tried_again_and_not_for_ever(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def order(control: Control) -> None:
        publish, calls = control.store.publish, iter((0, 0, None))

        async def publish_late(order: FleetOrder, is_new: bool) -> int:
            return await publish(order, is_new) if next(calls) is None else 0

        monkeypatch.setattr(control.store, "publish", publish_late)
        assert await control.restore() == 1
        calls = iter([0] * MAX_TRIES)
        with pytest.raises(OperatorError, match="other machines give orders at the same time; try again"):
            await control.restore()

    with_control(redis, order)


def test_an_order_that_a_worker_does_not_apply_is_obeyed_and_the_log_says_so(
    redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async def order(control: Control) -> None:
        row = control.counters.allocate_row()
        control.counters.cells(row)[CELL_INDEX["accepting"]] = 1
        control.counters.set_applied_order(row, INITIAL_NUMBER)
        assert await control.obey_locally(FleetOrder(1, at=1.0), 0.01) == (1, False)
        assert caplog.messages == ["fleet: a worker did not apply order 1 within 0.01 s"]

    with_control(redis, order)


def test_a_store_that_is_gone_is_named_where_machines_were_to_obey(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def order(control: Control) -> None:
        async def machines() -> dict[str, tuple[float, bytes]]:
            raise StoreError("the server closed the connection")

        number = await control.restore()
        assert await control.applied(number, 1, lambda: False) == ""
        monkeypatch.setattr(control.store, "machines", machines)
        late = await control.applied(number, 1, lambda: False)
        assert late == "the store of the fleet does not answer, and a machine"

    with_control(redis, order)
