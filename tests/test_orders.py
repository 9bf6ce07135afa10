"""Orders: rules that come while the server runs; in engines, in the map, over HTTP on the real program."""

from __future__ import annotations

import logging
import os
import select
import signal
import smtplib
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from program import wait_for

from blackhole.metrics.counters import Counters
from blackhole.net import server, tls
from blackhole.process import worker
from blackhole.process.supervisor import ChildContext
from blackhole.rules import scenario
from blackhole.rules.attempt_store import NULL_STORE, AttemptStore, ScopedStore, count_attempt
from blackhole.rules.evaluator import RuleEnvironment
from blackhole.rules.scenario import NONE
from blackhole.settings import Listener, Settings
from blackhole.smtp.session import Session, SMTPEngine
from blackhole.smtp.state import ListenerConfig
from blackhole.store.attempts import AttemptTable
from blackhole.store.control import (
    FIRST,
    SIZE,
    SLOTS,
    ControlChannel,
    OneShotRule,
    RuntimeOrder,
    effective_scenario,
)

# Another engine takes the place of one


def heard(session: Session, *lines: str) -> list[str]:
    """The codes that are said to these lines, one by one."""
    return [session.receive(f"{line}\r\n".encode())[:3].decode() for line in lines]


def bequeathed(old: SMTPEngine, *rules: str, memory: AttemptStore = NULL_STORE) -> SMTPEngine:
    """The engine that takes the place of another, with the rules of this text."""
    text = "".join(f"[[rule]]\n{rule}\n" for rule in rules)
    return old.replace_rules(
        tuple(scenario.parse_rules(text, "heir") if rules else ()), RuleEnvironment(memory=memory)
    )


LATER = 'phase = "RCPT"\nreply = "451 4.3.0 Later"'
TO_MAIL = ("MAIL FROM:<a@example.com>", "RCPT TO:<b@example.com>")


def test_a_session_obeys_the_heir_of_its_engine_from_its_next_command_on() -> None:
    engine = SMTPEngine(ListenerConfig(), Random(7))
    session = engine.session()
    session.greet()
    assert heard(session, "HELO client.test", *TO_MAIL, "RSET") == ["250"] * 4
    successor = bequeathed(engine, LATER)
    session.busy = True
    assert heard(session, *TO_MAIL) == ["250", "451"]
    assert session.engine is successor
    assert heard(successor.session(), *TO_MAIL) == ["250", "451"]


def test_a_transaction_ends_under_the_rules_under_which_it_began() -> None:
    engine = SMTPEngine(ListenerConfig(), Random(7))
    session = engine.session()
    session.greet()
    assert heard(session, TO_MAIL[0]) == ["250"]
    bequeathed(bequeathed(engine), LATER)
    session.busy = True
    assert heard(session, TO_MAIL[1], "DATA") == ["250", "354"]
    assert session.busy
    assert heard(session, "a body\r\n.", *TO_MAIL) == ["250", "250", "451"]
    assert heard(session, "RSET") == ["250"]
    assert not session.busy, "the short road is open again"


def test_an_exchange_of_auth_ends_under_them_too() -> None:
    engine = SMTPEngine(ListenerConfig(auth=True, auth_plaintext=True), Random(7))
    session = engine.session()
    session.greet()
    assert heard(session, "EHLO client.test", "AUTH LOGIN") == ["250", "334"]
    successor = bequeathed(engine)
    assert heard(session, "YQ==", "YQ==", "NOOP") == ["334", "235", "250"]
    assert session.engine is successor


def test_a_client_without_a_greeting_gets_the_heir_s() -> None:
    engine = SMTPEngine(ListenerConfig(), Random(7))
    session = engine.session()
    bequeathed(engine, 'phase = "CONNECT"\nreply = "554 5.3.2 No"')
    assert session.greet() == b"554 5.3.2 No\r\n"


def test_who_was_refused_for_good_is_not_served_by_an_heir() -> None:
    engine = SMTPEngine(ListenerConfig(mode="offline"), Random(7))
    session = engine.session()
    assert session.greet()[:3] == b"521"
    bequeathed(engine, 'phase = "CONNECT"\nreply = "accept"')
    session.busy = True
    assert heard(session, *TO_MAIL, "QUIT") == ["503", "503", "221"]


def test_rules_of_an_heir_know_who_the_client_is_and_what_it_said_to_rules_before() -> None:
    engine = SMTPEngine(ListenerConfig(), Random(7))
    session = engine.session(client="192.0.2.1")
    session.greet()
    assert heard(session, "HELO client.test") == ["250"]
    successor = bequeathed(engine, f'{LATER}\nclient = "192.0.2.0/24"\nhelo = "nobody"')
    session.busy = True
    assert heard(session, "HELO me.test", "VRFY x") == ["250", "252"]
    bequeathed(successor, f'{LATER}\nclient = "192.0.2.0/24"\nhelo = "me.test"')
    session.busy = True
    assert heard(session, *TO_MAIL) == ["250", "451"]


ROOM = 'throttle = { concurrent = 1, by = "client" }\nreply = "421 4.7.0 Crowded"'
ONCE = 'throttle = { messages = 1, per = "connection" }\nreply = "450 4.7.0 Enough"'


@pytest.mark.parametrize("same", [True, False], ids=["the same memory", "another memory"])
def test_what_was_used_up_stays_so_where_the_memory_is_the_same(same: bool) -> None:
    memory = AttemptTable(sets=64)
    engine = bequeathed(SMTPEngine(ListenerConfig(), Random(7)), ROOM, ONCE, memory=memory)
    session = engine.session()
    assert session.greet()[:3] == b"220"
    assert heard(session, TO_MAIL[0], "RSET") == ["250", "250"]
    bequeathed(engine, ROOM, ONCE, memory=memory if same else ScopedStore(memory, b"2"))
    session.busy = True
    assert heard(session, TO_MAIL[0]) == ["450" if same else "250"]
    other = bequeathed(SMTPEngine(ListenerConfig(), Random(7)), ROOM, memory=memory)
    assert other.session().greet()[:3] == (b"421" if same else b"220")
    assert session.evaluator is not None
    session.evaluator.leave()
    assert other.session().greet()[:3] == (b"220" if same else b"421")


def test_an_heir_without_rules_has_no_judge() -> None:
    memory = AttemptTable(sets=64)
    engine = bequeathed(SMTPEngine(ListenerConfig(), Random(7)), ROOM, memory=memory)
    session = engine.session()
    session.greet()
    bequeathed(engine)
    session.busy = True
    assert heard(session, "NOOP") == ["250"]
    assert session.evaluator is None
    assert engine.session().greet()[:3] == b"220", "it has left the room"


def test_an_era_remembers_what_was_in_it() -> None:
    memory = AttemptTable(sets=64)
    first, second = ScopedStore(memory, b"1"), ScopedStore(memory, b"2")
    assert [era.update(b"key", 1.0, count_attempt) for era in (first, first, second, first)] == [1, 2, 1, 3]


# The map


def named(name: str) -> RuntimeOrder:
    return RuntimeOrder(name=name, text="x" * 1000)


def forked(work: int, orders: ControlChannel) -> int:
    """A process that gives so many orders, each a letter longer than the one it has read."""
    pid = os.fork()
    if pid == 0:
        try:
            for _ in range(work):
                orders.give(lambda before, number: replace(before, name=f"{before.name}x"))
        finally:
            os._exit(0)
    return pid


def test_none_is_lost_of_two_who_order_at_once() -> None:
    orders = ControlChannel()
    for pid in [forked(200, orders), forked(200, orders)]:
        os.waitpid(pid, 0)
    assert orders.read() == (FIRST + 400, RuntimeOrder(name="x" * 400))


def test_who_dies_while_writing_leaves_the_order_before_in_force() -> None:
    orders = ControlChannel()
    number = orders.give(lambda before, number: named("whole"))
    reader = orders.read()

    def die(before: RuntimeOrder, number: int) -> RuntimeOrder:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        orders.give(die)
    # As if it had been killed in the middle: the number comes last.
    start = orders._slot(number + 1)
    orders._map[start : start + 500] = os.urandom(500)
    assert orders.read() == reader == (number, named("whole"))
    assert orders.give(lambda before, number: named("next")) == number + 1
    assert orders.read() == (number + 1, named("next"))


def test_a_reader_who_is_overtaken_reads_another_time() -> None:
    orders = ControlChannel()
    number = orders.give(lambda before, number: named("one"))
    assert orders.read()[0] == number
    number = orders.give(lambda before, number: named("two"))
    start = orders._slot(number) + 100
    kept, orders._map[start : start + 1] = orders._map[start : start + 1], b"?"
    orders._known = number - 1, named("one")
    assert orders.read() == (number - 1, named("one"))
    orders._map[start : start + 1] = kept
    assert orders.read() == (number, named("two"))


def test_one_that_is_too_large_is_not_in_force() -> None:
    orders = ControlChannel()
    with pytest.raises(ValueError, match="octets"):
        orders.give(lambda before, number: RuntimeOrder(text="x" * SIZE))
    assert orders.read() == (FIRST, RuntimeOrder())
    assert len(orders._map) >= SLOTS + 2 * SIZE


def test_a_budget_is_of_one_rule_alone() -> None:
    """A worker that has not heard yet that another rule has the place does not take from it."""
    orders = ControlChannel()
    rule = {"phase": "RCPT", "reply": "451 4.3.0 Next"}
    old, new = OneShotRule(2, 3, 1, rule), OneShotRule(3, 3, 5, rule)
    orders.fill(old, 1)
    assert [orders.take(old), orders.take(old)] == [True, False]
    orders.fill(new, 5)
    assert not orders.take(old)
    assert orders.take(new)
    assert (orders.left(old), orders.left(new)) == (0, 4)


def test_what_has_spoken_often_enough_is_no_part_of_the_scenario() -> None:
    orders = ControlChannel()
    one = OneShotRule(2, 0, 1, {"phase": "RCPT", "reply": "451 4.3.0 Next"})
    orders.fill(one, 1)
    order = RuntimeOrder(coming=(one,))
    assert [rule.phases for rule in effective_scenario(order, NONE, orders, tls.showing).rules] == [{"RCPT"}]
    assert orders.take(one)
    assert effective_scenario(order, NONE, orders, tls.showing).rules == ()


def test_the_bell_is_heard_at_each_order_and_is_never_full() -> None:
    orders = ControlChannel()
    with select.epoll() as ears:
        ears.register(orders.bell, select.EPOLLIN | select.EPOLLET)
        for _ in range(3):
            assert ears.poll(0) == []
            orders.give(lambda before, number: before)
            assert ears.poll(1) == [(orders.bell, select.EPOLLIN)]
    assert len(os.read(orders.bell, 100)) == 1


# A worker


def test_an_order_that_cannot_be_followed_leaves_the_one_before_in_force(tmp_path: Path) -> None:
    """The dashboard gives no such order; but what is in a map may come from anybody who has it."""
    stats, orders = Counters(2), ControlChannel()
    row, log = stats.allocate_row(), tmp_path / "log"
    life, end = os.pipe()
    listener = Listener("127.0.0.1", 0)
    (door,) = server.bind(listener, 10)
    pid = os.fork()
    if pid == 0:
        try:
            os.close(end)
            logging.basicConfig(filename=log, force=True)
            settings = Settings(listeners=(listener,))
            worker.run(settings, {listener: [door]}, None, stats, ChildContext(row, life), orders=orders)
        finally:
            os._exit(0)
    try:
        wait_for(stats.applied_order, "it lives")

        def said() -> str:
            with smtplib.SMTP(*door.getsockname(), timeout=20) as client:
                client.helo("client.test")
                return client.docmd("NOOP")[1].decode()

        text = '[[rule]]\nphase = "NOOP"\nreply = "250 2.0.0 Ordered"\n'
        number = orders.give(lambda before, number: RuntimeOrder(name="good", text=text))
        wait_for(lambda: stats.applied_order() == number, "it obeys")
        orders.give(lambda before, number: RuntimeOrder(name="bad", text="nonsense"))
        wait_for(lambda: "order 3 cannot be followed: bad: " in log.read_text(), "it says so")
        assert (stats.applied_order(), said()) == (number, "2.0.0 Ordered")
        number = orders.give(lambda before, number: RuntimeOrder())
        wait_for(lambda: stats.applied_order() == number, "it obeys the next one")
        assert said() == "2.0.0 OK"
    finally:
        os.kill(pid, signal.SIGINT)
        os.waitpid(pid, 0)
        for descriptor in (life, end):
            os.close(descriptor)
        door.close()
