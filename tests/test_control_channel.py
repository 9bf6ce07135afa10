"""The control channel: runtime orders between processes, and a worker that applies them."""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import smtplib
import time
import zlib
from dataclasses import replace
from pathlib import Path

import pytest

from blackhole.metrics.counters import Counters
from blackhole.net import acceptor
from blackhole.process import worker
from blackhole.process.plan import ChildContext
from blackhole.process.worker import WorkerContext
from blackhole.settings import Listener, OperatorError, Settings
from blackhole.store.active_scenario import NO_SCENARIO
from blackhole.store.control import (
    INITIAL_NUMBER,
    MAX_ORDER_OCTETS,
    SLOT_HEADER,
    SLOTS_START,
    ControlChannel,
    OneShotRule,
    RuntimeOrder,
    effective_scenario,
)
from tests.program import wait_for
from tests.stopped_process import process_that_stops, stop

# The map


def named(name: str) -> RuntimeOrder:
    return RuntimeOrder(name=name, text="x" * 1000)


def publish_in_child(count: int, channel: ControlChannel) -> int:
    """Return the pid of a child that publishes `count` orders, each with a name one letter longer."""
    pid = os.fork()
    if pid == 0:
        try:
            for _ in range(count):
                channel.publish(lambda before, number: replace(before, name=f"{before.name}x"))
        finally:
            os._exit(0)
    return pid


def test_first_order_has_the_number_1_and_no_other_order_has() -> None:
    channel = ControlChannel()
    assert [channel.publish(lambda before, number: before) for _ in range(3)] == [1, 2, 3]
    counters = Counters(2)
    rows = [counters.allocate_row() for _ in range(2)]
    assert counters.applied_order() is None
    for row, number in zip(rows, (INITIAL_NUMBER, 3), strict=True):
        counters.set_applied_order(row, number)
    assert counters.applied_order() == INITIAL_NUMBER == 0


def test_orders_of_two_concurrent_writers_are_all_applied() -> None:
    channel = ControlChannel()
    for pid in [publish_in_child(200, channel), publish_in_child(200, channel)]:
        os.waitpid(pid, 0)
    assert channel.read() == (INITIAL_NUMBER + 400, RuntimeOrder(name="x" * 400))


def test_a_writer_that_dies_while_writing_leaves_the_previous_order_in_force() -> None:
    channel = ControlChannel()
    number = channel.publish(lambda before, number: named("whole"))
    reader = channel.read()

    def die(before: RuntimeOrder, number: int) -> RuntimeOrder:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        channel.publish(die)
    # A writer that was killed half-way leaves this: the number is written last.
    start = channel._slot(number + 1)
    channel._map[start : start + 500] = os.urandom(500)
    assert channel.read() == reader == (number, named("whole"))
    assert channel.publish(lambda before, number: named("next")) == number + 1
    assert channel.read() == (number + 1, named("next"))


def test_a_reader_keeps_the_previous_order_while_the_new_one_is_half_written() -> None:
    channel = ControlChannel()
    number = channel.publish(lambda before, number: named("one"))
    assert channel.read()[0] == number
    number = channel.publish(lambda before, number: named("two"))
    start = channel._slot(number) + 100
    kept, channel._map[start : start + 1] = bytes(channel._map[start : start + 1]), b"?"
    channel._last_read = number - 1, named("one")
    assert channel.read() == (number - 1, named("one"))
    channel._map[start : start + 1] = kept
    assert channel.read() == (number, named("two"))


def test_an_order_that_is_too_large_is_rejected_and_not_in_force() -> None:
    channel = ControlChannel()
    with pytest.raises(ValueError, match="octets"):
        channel.publish(lambda before, number: RuntimeOrder(text="x" * MAX_ORDER_OCTETS))
    assert channel.read() == (INITIAL_NUMBER, RuntimeOrder())
    assert len(channel._map) >= SLOTS_START + 2 * MAX_ORDER_OCTETS


def test_a_one_shot_rule_cannot_consume_the_budget_of_its_successor() -> None:
    """A worker that has not read the new order yet still asks for the old rule."""
    channel = ControlChannel()
    rule = {"phase": "RCPT", "reply": "451 4.3.0 Next"}
    old, new = OneShotRule(2, 3, 1, rule), OneShotRule(3, 3, 5, rule)
    channel.set_budget(old, 1)
    assert [channel.consume(old), channel.consume(old)] == [True, False]
    channel.set_budget(new, 5)
    assert not channel.consume(old)
    assert channel.consume(new)
    assert (channel.remaining(old), channel.remaining(new)) == (0, 4)


def write_order(channel: ControlChannel, text: bytes, number: int | None = None) -> None:
    """Write something into the map as an order, as any process that has it could."""
    number = channel.number + 1 if number is None else number
    start = channel._slot(number)
    SLOT_HEADER.pack_into(channel._map, start, zlib.crc32(text), len(text))
    channel._map[start + SLOT_HEADER.size : start + SLOT_HEADER.size + len(text)] = text
    channel._cells[0] = number


def order_text(**fields: object) -> bytes:
    """Return an order as it stands in the map, with these fields."""
    order = {name: getattr(RuntimeOrder(), name) for name in RuntimeOrder.__slots__}
    return json.dumps(order | fields).encode()


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\xff",
        b"null",
        b"[]",
        b"{}",
        b"[" * 100_000,
        b"9" * 5000,
        order_text(more=1),
        order_text(name=None),
        order_text(text=1),
        order_text(at="now"),
        order_text(at=float("nan")),
        order_text(at=1e300),
        order_text(began=1e300),
        order_text(began="now"),
        order_text(windows_began=float("nan")),
        order_text(certificates=[1]),
        order_text(certificates={"expired": 1}),
        order_text(one_shot_rules=1),
        order_text(one_shot_rules=[1]),
        order_text(one_shot_rules=[[1, 0, 1]]),
        order_text(one_shot_rules=[[1, 99, 1, {}]]),
        order_text(one_shot_rules=[[1, -1, 1, {}]]),
        order_text(one_shot_rules=[["1", 0, 1, {}]]),
        order_text(one_shot_rules=[[1, 0, 1, "rule"]]),
    ],
    ids=lambda text: repr(text[:30] + text[-40:]),
)
def test_what_is_no_order_is_not_read_and_can_be_replaced(text: bytes) -> None:
    channel = ControlChannel()
    whole = channel.publish(lambda before, number: named("whole"))
    channel.read()
    write_order(channel, text)
    assert channel.read() == (whole, named("whole"))
    number = channel.publish(lambda before, number: replace(before, name="next"))
    assert number == whole + 2
    assert channel.read()[1].name == "next"


def test_a_clock_may_have_started_before_the_machine_was_booted() -> None:
    """Another machine of a fleet had that order, or these windows."""
    channel = ControlChannel()
    order = RuntimeOrder(name="outage.toml", began=-5.0, windows_began=-9.0)
    channel.publish(lambda before, number: order)
    assert channel.read()[1] == order


@pytest.mark.parametrize("number", [2**32 - 1, 2**32, 2**64 - 1])
def test_order_after_one_with_a_number_of_any_size_can_be_published(number: int) -> None:
    channel = ControlChannel()
    channel._cells[0] = number
    one = OneShotRule(channel.publish(lambda before, number: named("next")), 0, 3, {})
    channel.set_budget(one, 3)
    assert channel.remaining(one) == 3
    assert channel.read() == (one.number, named("next"))


def publish_stopped(before: RuntimeOrder, number: int) -> RuntimeOrder:
    """Stop the process in the middle of an order."""
    stop()
    return named("late")


def test_writer_that_is_stopped_blocks_no_reader_and_no_writer() -> None:
    channel = ControlChannel()
    number = channel.publish(lambda before, number: named("whole"))
    with process_that_stops(lambda: channel.publish(publish_stopped)):
        began = time.monotonic()
        assert channel.read() == (number, named("whole"))
        with pytest.raises(OperatorError, match="does not finish") as found:
            channel.publish(lambda before, number: named("other"))
        assert found.value.code == os.EX_TEMPFAIL
        assert time.monotonic() - began < 0.5
    assert channel.read() == (number + 1, named("late"))
    assert channel.publish(lambda before, number: named("other")) == number + 2


def test_process_that_is_stopped_while_it_consumes_a_use_blocks_no_other_process() -> None:
    """The others do not apply the rule; the use remains for a later message."""
    channel = ControlChannel()
    one = OneShotRule(2, 0, 3, {"phase": "RCPT", "reply": "451 4.3.0 Next"})
    other = OneShotRule(3, 1, 3, {"phase": "RCPT", "reply": "451 4.3.0 Next"})
    channel.set_budget(one, 3)
    channel.set_budget(other, 3)

    def consume_stopped() -> None:
        channel._lock.acquire(one.place)
        stop()
        channel._lock.release(one.place)

    with process_that_stops(consume_stopped):
        began = time.monotonic()
        assert not any(channel.consume(one) for _ in range(20))
        assert channel.consume(other)
        with pytest.raises(OperatorError, match="does not finish"):
            channel.set_budget(one, 9)
        assert time.monotonic() - began < 0.5
    assert (channel.remaining(one), channel.remaining(other)) == (3, 2)
    assert [channel.consume(one) for _ in range(4)] == [True, True, True, False]


def consume_in_child(channel: ControlChannel, one: OneShotRule, times: int) -> int:
    """Return the pid of a child that exits with the number of uses that it got of `times`."""
    pid = os.fork()
    if pid == 0:
        os._exit(sum(channel.consume(one) for _ in range(times)))
    return pid


def test_uses_of_a_one_shot_rule_are_exact_over_all_processes() -> None:
    channel = ControlChannel()
    one = OneShotRule(2, 0, 400, {"phase": "RCPT", "reply": "451 4.3.0 Next"})
    channel.set_budget(one, 400)
    pids = [consume_in_child(channel, one, 120) for _ in range(4)]
    assert sum(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids) == 400


def test_a_one_shot_rule_without_remaining_uses_is_not_in_the_scenario() -> None:
    channel = ControlChannel()
    one = OneShotRule(2, 0, 1, {"phase": "RCPT", "reply": "451 4.3.0 Next"})
    channel.set_budget(one, 1)
    order = RuntimeOrder(one_shot_rules=(one,))
    active = effective_scenario(order, NO_SCENARIO, channel)
    assert [rule.phases for rule in active.rules] == [{"RCPT"}]
    assert channel.consume(one)
    assert effective_scenario(order, NO_SCENARIO, channel).rules == ()


def test_each_order_wakes_readers_up_and_the_pipe_never_fills() -> None:
    channel = ControlChannel()
    with select.epoll() as poller:
        poller.register(channel.wakeup_read, select.EPOLLIN | select.EPOLLET)
        for _ in range(3):
            assert poller.poll(0) == []
            channel.publish(lambda before, number: before)
            assert poller.poll(1) == [(channel.wakeup_read, select.EPOLLIN)]
    assert len(os.read(channel.wakeup_read, 100)) == 1


# A worker


def test_an_order_that_cannot_be_applied_leaves_the_previous_one_in_force(tmp_path: Path) -> None:
    """The dashboard publishes no such order, but any process that has the map could."""
    stats, channel = Counters(2), ControlChannel()
    row, log = stats.allocate_row(), tmp_path / "log"
    alive_fd, end = os.pipe()
    listener = Listener("127.0.0.1", 0)
    (bound,) = acceptor.bind(listener, 10)
    pid = os.fork()
    if pid == 0:
        try:
            os.close(end)
            logging.basicConfig(filename=log, force=True)
            settings = Settings(listeners=(listener,))
            child = ChildContext(row, alive_fd)
            worker.run(WorkerContext(settings, {listener: [bound]}, {}, NO_SCENARIO, stats, channel, child))
        finally:
            os._exit(0)
    try:
        wait_for(lambda: stats.applied_order() is not None, "the worker sends heartbeats")

        def noop_reply() -> str:
            with smtplib.SMTP(*bound.getsockname(), timeout=20) as client:
                client.helo("client.test")
                return client.docmd("NOOP")[1].decode()

        tables = {"rule": [{"phase": "NOOP", "reply": "250 2.0.0 Ordered"}]}
        number = channel.publish(lambda before, number: RuntimeOrder(name="good", tables=tables))
        wait_for(lambda: stats.applied_order() == number, "the worker applies the order")
        channel.publish(lambda before, number: RuntimeOrder(name="bad", tables={"rule": 1}))
        wait_for(lambda: "order 2 cannot be followed: bad: " in log.read_text(), "the error is logged")
        assert (stats.applied_order(), noop_reply()) == (number, "2.0.0 Ordered")
        number = channel.publish(lambda before, number: RuntimeOrder())
        wait_for(lambda: stats.applied_order() == number, "the worker applies the next order")
        assert noop_reply() == "2.0.0 OK"
    finally:
        os.kill(pid, signal.SIGINT)
        os.waitpid(pid, 0)
        for descriptor in (alive_fd, end):
            os.close(descriptor)
        bound.close()
