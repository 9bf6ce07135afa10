"""Runtime orders that workers do not survive are dropped."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from blackhole.metrics.counters import Counters
from blackhole.process.order_guard import OrderGuard
from blackhole.process.processes import is_computing
from blackhole.settings import OperatorError
from blackhole.store.control import ControlChannel, RuntimeOrder
from blackhole.store.namespaces import NamespaceDirectory, NamespaceOrders
from blackhole.store.one_shot_rules import OneShotRule
from tests.http_api import Sink, ask, sent
from tests.program import PYTHON, wait_for

TABLES = {"rule": [{"phase": "NOOP", "reply": "250 2.0.0 Ordered"}]}


class Guarded:
    """A guard, and the row of a worker."""

    def __init__(self) -> None:
        self.counters, self.control = Counters(4), ControlChannel()
        self.guard = OrderGuard(self.counters, self.control)
        self.row = self.counters.allocate_row()

    def publish(self, name: str = "fatal") -> int:
        one = OneShotRule(1, 0, 1, {"phase": "RCPT", "reply": "451 4.3.0 Next"})
        return self.control.publish(
            lambda before, number: replace(before, name=name, tables=TABLES, one_shot_rules=(one,))
        )

    @property
    def in_force(self) -> str:
        return self.control.read()[1].name


@pytest.fixture
def guarded() -> Guarded:
    return Guarded()


def test_an_order_is_dropped_after_a_worker_died_while_reading_it(
    guarded: Guarded, caplog: pytest.LogCaptureFixture
) -> None:
    number = guarded.publish()
    guarded.counters.set_reading_order(guarded.row, number)
    guarded.guard.check(guarded.row, hung=False)
    following, order = guarded.control.read()
    assert (following, order) == (number + 1, RuntimeOrder(at=order.at, dropped=number))
    assert caplog.messages == [
        f"order {number} is dropped, because a worker has died of it; "
        f"order {following} restores the configuration"
    ]


def test_a_deadly_order_for_a_namespace_costs_that_namespace_alone(
    guarded: Guarded, caplog: pytest.LogCaptureFixture
) -> None:
    directory = NamespaceDirectory(guarded.control, NamespaceOrders())
    guarded.publish("of the server")
    directory.channel("good").publish(lambda before, number: before)
    number = directory.channel("fatal").publish(lambda before, number: before)
    guarded.counters.set_reading_order(guarded.row, number)
    guarded.guard.check(guarded.row, hung=False)
    following, order = guarded.control.read()
    assert [entry.name for entry in order.namespaces] == ["good"]
    assert (guarded.in_force, order.dropped, following) == ("of the server", number, number + 1)
    assert caplog.messages[0].endswith("restores the configuration of the namespace fatal")
    assert directory.channel("fatal").read()[1].dropped == number


def test_the_clock_of_windows_survives_an_order_that_is_dropped(guarded: Guarded) -> None:
    guarded.control.publish(lambda before, number: replace(before, windows_began=-5.0))
    number = guarded.publish()
    guarded.counters.set_reading_order(guarded.row, number)
    guarded.guard.check(guarded.row, hung=False)
    assert (guarded.in_force, guarded.control.read()[1].windows_began) == ("", -5.0)


def test_an_order_survives_the_death_of_a_worker_that_had_applied_it(guarded: Guarded) -> None:
    number = guarded.publish()
    guarded.counters.set_reading_order(guarded.row, number)
    guarded.counters.set_applied_order(guarded.row, number)
    for _ in range(5):
        guarded.guard.check(guarded.row, hung=False)
    assert guarded.in_force == "fatal"


def test_an_order_survives_the_death_of_a_worker_that_has_not_begun_to_read_it(guarded: Guarded) -> None:
    first = guarded.publish("first")
    guarded.counters.set_reading_order(guarded.row, first)
    guarded.publish("second")
    guarded.guard.check(guarded.row, hung=True)
    assert guarded.in_force == "second"
    guarded.counters.set_reading_order(guarded.row, None)
    guarded.guard.check(guarded.row, hung=True)
    assert guarded.in_force == "second"


def test_an_order_is_dropped_when_a_second_worker_hangs_under_it(guarded: Guarded) -> None:
    for name in ("first", "second"):
        guarded.counters.set_applied_order(guarded.row, guarded.publish(name))
        guarded.guard.check(guarded.row, hung=True)
        assert guarded.in_force == name
    guarded.guard.check(guarded.row, hung=True)
    assert guarded.in_force == ""


def test_the_configuration_is_never_dropped(guarded: Guarded) -> None:
    guarded.counters.set_reading_order(guarded.row, guarded.control.number)
    for _ in range(3):
        guarded.guard.check(guarded.row, hung=True)
    assert guarded.control.number == 0


def test_an_order_that_replaced_the_fatal_one_meanwhile_stays(
    guarded: Guarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    number, publish = guarded.publish(), guarded.control.publish
    guarded.counters.set_reading_order(guarded.row, number)

    def late(change: Callable[[RuntimeOrder, int], RuntimeOrder]) -> int:
        publish(lambda before, _: replace(before, name="good"))
        return publish(change)

    monkeypatch.setattr(guarded.control, "publish", late)
    guarded.guard.check(guarded.row, hung=False)
    assert guarded.in_force == "good"


def test_an_order_that_cannot_be_dropped_is_an_error_in_the_log(
    guarded: Guarded, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    guarded.counters.set_reading_order(guarded.row, guarded.publish())

    def fail(change: object) -> int:
        raise OperatorError("busy")

    monkeypatch.setattr(guarded.control, "publish", fail)
    with caplog.at_level(logging.ERROR):
        guarded.guard.check(guarded.row, hung=False)
    assert caplog.messages == ["order 1, of which a worker has died, is not dropped: busy"]


def test_a_process_computes_while_it_neither_sleeps_nor_is_stopped() -> None:
    pid = os.fork()
    if pid == 0:
        while True:
            pass
    try:
        wait_for(lambda: is_computing(pid), "it runs")
        os.kill(pid, signal.SIGSTOP)
        wait_for(lambda: not is_computing(pid), "it is stopped")
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert not is_computing(pid)


FATAL = """
import os, sys
from blackhole.process import worker

read = worker.effective_scenario

def read_or_die(order, *others):
    if order.name:
        {die}
    return read(order, *others)

worker.effective_scenario = read_or_die
from blackhole.main import main
sys.exit(main())
"""


@pytest.mark.parametrize(("die", "seconds"), [("os._exit(9)", 0), ("while True: pass", 9)])
def test_mail_flows_again_after_an_order_that_kills_every_worker(die: str, seconds: int) -> None:
    command = (*PYTHON, "-c", FATAL.format(die=die))
    with Sink("--workers=2", command=command) as program:
        program.dashboard()
        rule = '[[rule]]\nphase = "RCPT"\nreply = "450 4.2.1 Later"\n'
        began = time.monotonic()
        answer = ask(program.http, "/scenario", "PUT", rule)
        if seconds:
            assert answer.status == 504
        else:
            dropped = "The order was dropped, because a worker has died of it."
            assert (answer.status, answer.json) == (400, {"error": dropped})
        wait_for(lambda: "order 1 is dropped" in program.output(), "the master drops it", 20)
        assert time.monotonic() - began >= seconds
        program.wait_until_accepting(2)
        assert sent(program.port)
        assert ask(program.http, "/scenario").json["name"] == "loaded"
