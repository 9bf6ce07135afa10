"""What became of messages and what came again, with a clock set by hand and with a real Postfix."""

from __future__ import annotations

import json
import smtplib
import subprocess
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from engines import make_engine, tracker_of
from external_programs import path_of, requires
from postfix import QUICK_RETRIES, SENDER, Postfix, requires_postfix
from program import Program, run, scenario_option, wait_for

from blackhole.metrics import report
from blackhole.metrics.counters import Counters
from blackhole.metrics.layout import OUTCOMES_START, VIOLATIONS_START
from blackhole.metrics.snapshot import Snapshot
from blackhole.net.direct import Selector
from blackhole.process.plan import ChildContext
from blackhole.process.worker import SETS_PER_SECOND, Worker, WorkerContext
from blackhole.rules.evaluator import RuleEnvironment, RuleEvaluator
from blackhole.rules.message_identity import message_identity
from blackhole.rules.outcomes import (
    DEFERRED,
    EVENTS,
    NEVER_RETRIED_AFTER,
    RETRY_INTERVALS,
    UNKNOWN,
    mark_if_never_retried,
    update_envelope,
)
from blackhole.rules.retry_tracker import MAX_TRACKED_RECIPIENTS
from blackhole.rules.scenario_file import parse_rules
from blackhole.settings import Settings
from blackhole.smtp.session import Session
from blackhole.smtp.violations import VIOLATIONS
from blackhole.store.active_scenario import ActiveScenario
from blackhole.store.attempts import SETS, SLOTS_PER_SET, AttemptTable
from blackhole.store.control import ControlChannel
from tests.http_api import Sink, ask, post

"""A fixture; pytest takes it from here."""

GREYLIST = "[[rule]]\ngreylist = { min = '5m', max = '2d' }\n"


def at_end(what: str) -> str:
    return f"[[rule]]\nphase = '.'\nattempt = 1\n{what}\n"


INTERVALS = ("retry_within_", "retry_later")
"""How the names of events begin that count retries by interval."""


class World:
    """A clock that is set by hand, and a listener with these rules."""

    def __init__(self, text: str, mode: str = "accept", **more: Any) -> None:
        self.now = 0.0
        self.memory, self.past = AttemptTable(sets=64), AttemptTable(sets=64)
        made = parse_rules(text, "test.toml") if text else ()
        outside = RuleEnvironment(lambda: self.now, self.memory, self.past, lambda: self.now)
        self.engine = make_engine(made, mode, environment=outside, hostname="mx.test", **more)
        self.counts: Counter[str] = Counter()

    def arrive(self, client: str = "192.0.2.1", here: str = "192.0.2.25:25") -> Session:
        session = self.engine.session(client=client)
        assert tracker_of(session) is not None
        session.policy.set_local_address(lambda: here)
        session.greet()
        session.receive(b"EHLO client.example.com\r\n")
        return session

    def leave(self, session: Session, politely: bool = True) -> None:
        """It goes, and what it did is counted."""
        if politely:
            session.receive(b"QUIT\r\n")
        else:
            session.closed()
        self.count(session)

    def count(self, session: Session) -> None:
        """What a session has come to."""
        for cell in session.counted_events:
            if cell >= OUTCOMES_START:
                self.counts[EVENTS[cell - OUTCOMES_START].name] += 1
            elif cell >= VIOLATIONS_START:
                self.counts[VIOLATIONS[cell - VIOLATIONS_START].name] += 1

    def send(
        self,
        at: float,
        *recipients: str,
        name: str = "1@client",
        politely: bool = True,
        client: str = "192.0.2.1",
        here: str = "192.0.2.25:25",
    ) -> None:
        """A message, in a connection of its own."""
        self.now = at
        session = self.arrive(client, here)
        say(session, recipients or ("bob@b",), name)
        self.leave(session, politely)

    def told(self) -> dict[str, int]:
        """What was counted since this was last asked for, but for how long was waited."""
        told, self.counts = self.counts, Counter()
        return {name: count for name, count in told.items() if not name.startswith(INTERVALS)}


def say(session: Session, recipients: tuple[str, ...], name: str, more: bytes = b"") -> None:
    """A message as most senders send it: its envelope in one, then DATA if a recipient was accepted."""
    envelope = "".join(f"RCPT TO:<{recipient}>\r\n" for recipient in recipients)
    heard = session.receive(f"MAIL FROM:<ann@a>\r\n{envelope}".encode())
    while session.busy:
        heard += session.resume()
    if b"\r\n250" in heard:
        session.receive(b"DATA\r\n")
        field = f"Message-ID: <{name}>\r\n" if name else ""
        session.receive(f"{field}Subject: a test\r\n\r\nHello\r\n.\r\n".encode() + more)


# Envelopes


def test_who_is_put_off_and_comes_again() -> None:
    world = World(GREYLIST)
    for at in (0, 100, 400):
        world.send(at)
    assert world.counts["retry_within_300"] == 2
    assert world.told() == {
        "deferred": 1,
        "retried_after_4xx": 1,
        "deferred_again": 1,
        "accepted_on_retry": 1,
    }
    world.send(500)
    assert world.told() == {"duplicate": 1}


@pytest.mark.parametrize("wait", [0.5, 1.0, 1.01, 60, 61, 86400, 100000])
def test_how_long_is_waited_is_told_in_classes(wait: float) -> None:
    world = World(GREYLIST)
    world.send(0)
    world.send(wait)
    (told,) = [name for name in world.counts if name.startswith(INTERVALS)]
    assert told == next((f"retry_within_{most}" for most in RETRY_INTERVALS if wait <= most), "retry_later")


def test_recipients_are_counted_and_each_by_itself() -> None:
    world = World("[[rule]]\nphase = 'RCPT'\nrecipient = '*@later'\nattempt = 1\nreply = '450 4.2.1 Later'\n")
    world.send(0, "bob@b", "bob@later", "carol@later", "bob@later")
    assert world.told() == {"deferred": 2}
    world.send(60, "bob@later", name="1@client")
    assert world.told() == {"retried_after_4xx": 1, "accepted_on_retry": 1}


def test_what_is_refused_at_the_end_is_refused_for_all() -> None:
    world = World(at_end("reply = '451 4.3.0 Later'"))
    world.send(0, "bob@b", "carol@c")
    assert world.told() == {"deferred": 2}
    world.send(60, "bob@b", "carol@c")
    assert world.told() == {"retried_after_4xx": 2, "accepted_on_retry": 2}


def test_what_is_refused_at_data_is_refused_for_all() -> None:
    world = World("[[rule]]\nphase = 'DATA'\nreply = '451 4.3.0 Later'\n")
    world.send(0, "bob@b", "carol@c")
    world.send(60, "bob@b", "carol@c")
    assert world.told() == {"deferred": 2, "retried_after_4xx": 2, "deferred_again": 2}


def test_a_sender_that_is_put_off_is_so_for_the_recipients_sent_along() -> None:
    world = World("[[rule]]\nphase = 'MAIL'\nattempt = 1\nreply = '451 4.7.1 Slow down'\n")
    world.send(0, "bob@b", "carol@c")
    assert world.told() == {"deferred": 2}
    world.send(60, "bob@b", "carol@c")
    assert world.told() == {"retried_after_4xx": 2, "accepted_on_retry": 2}


@pytest.mark.parametrize("command", [b"RSET", b"RSET\r\nMAIL FROM:<ann@a>", b"EHLO client.example.com"])
def test_a_recipient_that_is_let_in_is_taken_without_a_message(command: bytes) -> None:
    world = World(GREYLIST)
    world.send(0)
    world.now = 400
    session = world.arrive()
    session.receive(b"MAIL FROM:<ann@a>\r\nRCPT TO:<bob@b>\r\n")
    session.receive(command + b"\r\n")
    world.leave(session)
    assert world.told() == {"deferred": 1, "retried_after_4xx": 1, "accepted_on_retry": 1}


def test_who_breaks_off_has_come_again_and_was_not_taken() -> None:
    world = World(GREYLIST)
    world.send(0)
    world.now = 400
    session = world.arrive()
    session.receive(b"MAIL FROM:<ann@a>\r\nRCPT TO:<bob@b>\r\nDATA\r\n")
    session.receive(b"Hel")
    world.leave(session, politely=False)
    assert world.told() == {"deferred": 1, "retried_after_4xx": 1}


def test_who_is_refused_and_comes_again() -> None:
    world = World("[[rule]]\nphase = 'RCPT'\nreply = '550 5.1.1 Nobody'\n")
    for at in (0, 100, 200):
        world.send(at)
    assert world.told() == {"refused": 1, "retried_after_5xx": 1}


def test_a_refusal_may_become_another() -> None:
    reply = "[[rule]]\nphase = 'RCPT'\nattempt = {}\nreply = '{} X'\n"
    world = World(reply.format(1, "450 4.2.1") + reply.format(2, "550 5.1.1") + reply.format(3, "450 4.2.1"))
    for at in (0, 100, 200, 300):
        world.send(at)
    assert world.told() == {
        "deferred": 2,
        "retried_after_4xx": 2,
        "refused": 1,
        "retried_after_5xx": 1,
        "accepted_on_retry": 1,
    }


def test_who_comes_again_from_another_network_has_come_again() -> None:
    """A sender with several machines; it is not known of a message that it is the same."""
    world = World(GREYLIST)
    world.send(0)
    world.send(400, client="198.51.100.1")
    assert world.told() == {"deferred": 1, "retried_after_4xx": 1, "deferred_again": 1}
    world.send(801, client="198.51.100.200")
    assert world.told() == {"accepted_on_retry": 1}
    world.send(802, client="198.51.100.1", name="2@client")
    world.send(803, client="192.0.2.1", name="2@client")
    assert world.told() == {}
    world.send(804, client="192.0.2.200", name="2@client")
    assert world.told() == {"duplicate": 1}


def test_a_message_has_no_end_of_recipients() -> None:
    world = World("[[rule]]\nphase = 'RCPT'\nreply = '450 4.2.1 Later'\n")
    world.send(0, *(f"bob{number}@b" for number in range(MAX_TRACKED_RECIPIENTS + 5)))
    assert world.told()["deferred"] <= MAX_TRACKED_RECIPIENTS
    session = world.arrive()
    session.receive(b"MAIL FROM:<ann@a>\r\n")
    for number in range(MAX_TRACKED_RECIPIENTS + 5):
        session.receive(b"RCPT TO:<%d@c>\r\n" % number)
    tracker = tracker_of(session)
    assert tracker is not None
    assert len(tracker._answers) == MAX_TRACKED_RECIPIENTS


# Messages


def test_a_message_that_was_taken_comes_again() -> None:
    world = World(GREYLIST.replace("5m", "0s"))
    world.send(0)
    world.send(1)
    assert world.told() == {"deferred": 1, "retried_after_4xx": 1, "accepted_on_retry": 1}
    world.send(2)
    world.send(3, name="2@client")
    world.send(4, name="")
    world.send(5, name="")
    assert world.told() == {"duplicate": 1}


def test_who_goes_without_a_word_may_not_have_heard() -> None:
    world = World(at_end("reply = '554 5.0.0 No'\nrecipient = 'nobody@*'"))
    world.send(0, politely=False)
    world.send(1)
    world.send(0, "nobody@b", politely=False)
    world.send(1, "nobody@b")
    assert world.told() == {"refused": 1, "retried_after_5xx": 1}
    world.send(2)
    assert world.told() == {"duplicate": 1}


def test_who_has_said_more_has_heard() -> None:
    world = World(at_end("reply = '450 4.2.1 Later'\nrecipient = 'nobody@*'"))
    session = world.arrive()
    for name in ("1@client", "2@client"):
        say(session, ("bob@b",), name)
    world.leave(session, politely=False)
    world.send(1, name="1@client")
    assert world.told() == {"duplicate": 1}
    world.send(2, name="2@client")
    assert world.told() == {}


def test_a_message_that_was_refused_comes_again() -> None:
    world = World("[[rule]]\nphase = '.'\nreply = '554 5.0.0 No'\n")
    world.send(0)
    world.send(3600)
    world.send(3600, name="")
    world.send(3601, name="")
    assert world.told() == {"refused": 1, "retried_after_5xx": 1, "retried-5xx": 1}


def test_a_recipient_that_was_refused_comes_again_with_the_message() -> None:
    world = World("[[rule]]\nphase = 'RCPT'\nrecipient = 'nobody@*'\nattempt = 1\nreply = '550 5.1.1 No'\n")
    world.send(0, "bob@b", "nobody@b")
    world.send(60, "nobody@b")
    assert world.told() == {"refused": 1, "retried_after_5xx": 1, "retried-5xx": 1}


@pytest.mark.parametrize(
    ("times", "accused"),
    [
        ((0, 0.1), 0),
        ((0, 0.1, 0.2), 1),
        ((0, 0.1, 0.2, 0.3), 2),
        ((0, 0.1, 0.7, 0.8), 0),
        ((0, 0.6, 1.2, 1.8), 0),
        ((0, 300, 900, 1900), 0),
    ],
)
def test_who_does_not_wait_is_accused(times: tuple[float, ...], accused: int) -> None:
    world = World("[[rule]]\nphase = '.'\nreply = '451 4.3.0 Later'\n")
    for at in times:
        world.send(at)
    assert world.told().get("retried-at-once", 0) == accused


def test_another_address_may_be_tried_at_once() -> None:
    """As the hosts of a domain, of which this machine has several."""
    world = World("[[rule]]\nphase = '.'\nreply = '451 4.3.0 Later'\n")
    for number in range(5):
        world.send(number / 100, here=f"192.0.2.{number}:25")
    assert "retried-at-once" not in world.told()


def test_other_messages_to_the_same_recipient_may_come_at_once() -> None:
    world = World("[[rule]]\nphase = '.'\nreply = '451 4.3.0 Later'\n")
    for number in range(9):
        world.send(number / 100, name=f"{number}@client")
    for number in range(9):
        world.send(1 + number / 100, name="")
    told = world.told()
    assert {rule.name for rule in VIOLATIONS}.isdisjoint(told)
    assert told == {"deferred": 1, "retried_after_4xx": 1, "deferred_again": 17}


@pytest.mark.parametrize(
    ("fault", "outcome"),
    [
        ("then = 'close-before-reply'", "closed_before_reply"),
        ("then = 'close'", "closed_before_reply"),
        ("then = 'reset'", "closed_before_reply"),
        ("then = 'half-reply'", "closed_within_reply"),
        ("then = 'close-after-reply'", "closed_after_reply"),
        ("then = 'stall'", "reply_too_late"),
        ("delay = 600", "reply_too_late"),
        ("then = { drip = 10 }", "reply_too_late"),
    ],
)
def test_who_cannot_be_sure_may_come_again(fault: str, outcome: str) -> None:
    world = World(at_end(fault))
    world.send(0, politely=False)
    assert world.told() == {outcome: 1}
    world.send(60)
    assert world.told() == {f"{outcome}_retried": 1}
    world.send(120)
    assert world.told() == {"duplicate": 1}


@pytest.mark.parametrize("fault", ["delay = 600", "then = { drip = 10 }"])
def test_who_waits_for_a_late_reply_is_sure(fault: str) -> None:
    world = World(at_end(fault))
    session = world.arrive()
    say(session, ("bob@b",), "1@client")
    while session.busy:
        session.resume()
    world.leave(session)
    assert world.told() == {}
    world.send(60)
    assert world.told() == {"duplicate": 1}


@pytest.mark.parametrize("together", [True, False])
def test_who_says_more_before_a_late_reply_may_not_have_heard_it(together: bool) -> None:
    """Postfix says QUIT and goes when it has waited long enough."""
    world = World(at_end("delay = 600"))
    session = world.arrive()
    say(session, ("bob@b",), "1@client", b"QUIT\r\n" if together else b"")
    if not together:
        session.policy.client_sent_early()
    session.resume()
    if together:
        world.count(session)
    else:
        world.leave(session)
    assert world.told() == {"reply_too_late": 1}
    world.send(60)
    assert world.told() == {"reply_too_late_retried": 1}


def test_a_reply_that_waits_may_refuse_a_message_that_has_not_come_to_its_end() -> None:
    world = World(at_end("then = 'close'\nrecipient = 'x'"), message_size_limit=10, delay=(5.0, 5.0))
    world.send(0)
    assert world.told() == {"refused": 1, "size-over-limit": 1}
    session = world.arrive()
    say(session, ("bob@b",), "1@client")
    world.leave(session)
    assert world.told() == {"retried_after_5xx": 1, "size-over-limit": 1}


@pytest.mark.parametrize("fault", ["close", "half-reply", "close-after-reply"])
def test_a_refusal_is_one_however_it_leaves(fault: str) -> None:
    world = World(at_end(f"reply = '450 4.2.1 Later'\nthen = '{fault}'"))
    world.send(0, politely=False)
    assert world.told() == {"deferred": 1}


def test_a_message_without_a_name_is_told_from_others_by_its_header() -> None:
    world = World(at_end("then = 'half-reply'"))
    world.send(0, name="", politely=False)
    world.send(1, name="")
    assert world.told() == {"closed_within_reply": 1, "closed_within_reply_retried": 1}


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (b"Message-ID: <1@a>\r\n\r\nMessage-ID: <2@a>\r\n.\r\n", ((b"<1@a>", b""),)),
        (b"Subject: x\r\nMESSAGE-ID :\r\n\t<1@a>\r\nTo: y\r\n\r\n.\r\n", ((b"<1@a>", b""),)),
        (b"Subject: x\nMessage-ID: <1@a>\n\nMessage-ID: <2@a>\n\r\n\r\n.\r\n", ((b"<1@a>", b""),)),
        (
            b"resent-Message-id: <2@a>\r\nMessage-ID: <1@a>\r\n\r\n.\r\n",
            ((b"", b"<2@a>"), (b"<1@a>", b"")),
        ),
        (b"Message-ID: <1@a>\rx\r\n\r\n.\r\n", ((b"<1@a>\rx", b""),)),
        (b"Message-ID: <1@a\r\n b>\r\n\r\n.\r\n", ((b"<1@a\r\n b>", b""),)),
        (b"X-Message-ID: <1@a>\r\n\r\n.\r\n", None),
        (b"Not-Message-ID: <1@a>\r\n Message-ID: <2@a>\r\n\r\n.\r\n", None),
        (b"Message-ID: \r\nTo: y\r\n\r\n.\r\n", None),
        (b"Message-ID:\r\n \r\nTo: y\r\n\r\n.\r\n", None),
        (b"\r\nMessage-ID: <1@a>\r\n.\r\n", None),
        (b"\nMessage-ID: <1@a>\r\n.\r\n", None),
    ],
)
def test_the_name_of_a_message(text: bytes, name: tuple[tuple[bytes, bytes], ...] | None) -> None:
    found, certain = message_identity(text)
    assert certain == bool(name)
    assert not certain or found == name


@pytest.mark.parametrize("blank", [b" ", b"\r\n "])
def test_who_names_no_message_is_not_accused_of_sending_it_twice(blank: bytes) -> None:
    world = World(GREYLIST)
    for at in (0, 400, 401):
        world.now = at
        session = world.arrive()
        session.receive(b"MAIL FROM:<ann@a>\r\nRCPT TO:<bob@b>\r\n")
        session.receive(b"DATA\r\n")
        session.receive(b"Message-ID:%s\r\nSubject: a test\r\n\r\nHello\r\n.\r\n" % blank)
        world.leave(session)
    assert "duplicate" not in world.told()


def test_a_message_that_is_too_large_is_refused() -> None:
    world = World(at_end("then = 'half-reply'\nrecipient = 'x'"), message_size_limit=10)
    world.send(0)
    assert world.told() == {"refused": 1, "size-over-limit": 1}


def test_tls_does_not_make_another_client() -> None:
    world = World(GREYLIST)
    world.send(0)
    world.now = 400
    session = world.arrive()
    session.secured()
    session.receive(b"EHLO client.example.com\r\n")
    say(session, ("bob@b",), "1@client")
    world.leave(session)
    assert world.told() == {"deferred": 1, "retried_after_4xx": 1, "accepted_on_retry": 1}


@pytest.mark.parametrize(
    ("mode", "watched"),
    [
        ("accept", False),
        ("unavailable", False),
        ("offline", False),
        ("bounce", True),
        ("random", True),
        ("greylist", True),
    ],
)
def test_where_all_is_taken_nobody_watches(mode: str, watched: bool) -> None:
    world = World("", mode)
    session = world.engine.session(client="192.0.2.1")
    assert (isinstance(session.policy, RuleEvaluator) and tracker_of(session) is not None) is watched


def test_modes_that_refuse_know_who_comes_again() -> None:
    world = World("", "bounce")
    for at in range(0, 60 * 60, 60):
        world.send(at)
    told = world.told()
    assert told["retried-5xx"] > 9
    assert told["retried_after_4xx"] + told["retried_after_5xx"] > 9


# What never comes again


def visited(past: AttemptTable, now: float) -> int:
    return sum(sum(past.sweep(number, now, mark_if_never_retried)) for number in range(64))


def test_what_does_not_come_for_twelve_hours_never_comes() -> None:
    world = World(GREYLIST)
    world.send(0, "bob@b", "carol@c")
    world.send(60, "carol@c", "dave@d")
    assert visited(world.past, NEVER_RETRIED_AFTER - 1) == 0
    assert visited(world.past, NEVER_RETRIED_AFTER) == 1
    assert visited(world.past, NEVER_RETRIED_AFTER + 1) == 0
    assert visited(world.past, NEVER_RETRIED_AFTER + 60) == 1
    world.told()
    world.send(NEVER_RETRIED_AFTER + 100, "bob@b")
    assert world.told() == {"retried_after_4xx": 1, "accepted_on_retry": 1}


def test_workers_look_for_what_never_came() -> None:
    """Each of two looks at all that is remembered, by and by; what one has found the other has not."""
    past, stats = AttemptTable(), Counters(2)
    for number in range(20):
        past.update(b"%d" % number, 1.0, partial(update_envelope, DEFERRED))
    scenario, channel = ActiveScenario(outcome_store=past), ControlChannel()
    children = [ChildContext(stats.allocate_row(), -1) for _ in range(2)]
    workers = [
        Worker(WorkerContext(Settings(), {}, None, scenario, stats, channel, child), Selector())
        for child in children
    ]
    for late, found in ((0, 0), (1, 20), (2, 20)):
        for _ in range(SETS // SETS_PER_SECOND):
            for worker in workers:
                worker.find_missing_retries(past, NEVER_RETRIED_AFTER + late)
        assert stats.snapshot().violations["never-retried"] == found


def test_what_was_taken_takes_no_room() -> None:
    """An envelope that was never refused is not kept, or these would push out those that were."""
    past = AttemptTable(sets=1)
    past.update(b"bob", 0.0, partial(update_envelope, DEFERRED))
    for number in range(SLOTS_PER_SET * 2):
        past.update(b"%d" % number, 1.0, partial(update_envelope, UNKNOWN))
    assert len(list(past.sweep(0, 2.0, mark_if_never_retried))) == 1


# Reports


def figures(**events: int) -> Snapshot:
    stats = Counters(1)
    cells = stats.cells(stats.allocate_row())
    for number, event in enumerate(EVENTS):
        cells[OUTCOMES_START + number] = events.get(event.name, 0)
    return stats.snapshot()


def test_the_report_says_how_the_sender_retried() -> None:
    seen = figures(
        deferred=12,
        retried_after_4xx=11,
        deferred_again=3,
        accepted_on_retry=9,
        retry_within_10=2,
        retry_within_300=5,
        retry_within_900=6,
        retry_later=1,
        refused=4,
        retried_after_5xx=1,
        closed_before_reply=2,
        closed_before_reply_retried=2,
        reply_too_late=1,
    )
    assert report.retry_lines(seen) == [
        "deferred with 4xx: 12 recipients; 11 retried, 1 not yet, 9 accepted in the end",
        "14 retries, 3 deferred again: the shortest interval within 10 s, the median within 5 min,"
        " the longest over 24 h",
        "  within 10 s: 2",
        "  within 5 min: 5",
        "  within 15 min: 6",
        "  over 24 h: 1",
        "refused with 5xx: 4 recipients; 1 retried",
        "connection closed instead of the final reply: 2 messages; 2 sent again",
        "client did not wait for a delayed final reply: 1 message; 0 sent again",
    ]
    assert "\nRetries:\ndeferred with 4xx: 12" in report.report_text(seen)
    assert "Retries" not in report.report_text(figures())
    told = json.loads(report.report_json(seen))["retries"]
    assert (told["deferred"]["missing"], told["deferred"]["waits"]["900"]) == (1, 6)
    assert told["uncertain"]["before"] == {"messages": 2, "returned": 2}
    suite = ElementTree.fromstring(report.report_junit(seen))
    assert "deferred with 4xx: 12 recipients" in str(suite.findtext("system-out"))
    assert ElementTree.fromstring(report.report_junit(figures())).find("system-out") is None


def retries(program: Program, pid: Path) -> dict[str, dict[str, int]]:
    """What the program tells of them, once every client is gone."""
    wait_for(lambda: Counters.of(program.pid).snapshot().open == 0, "all have left")
    done = run("report", f"--pid={pid}", "--format=json")
    assert done.returncode == 0, done.stderr
    told: dict[str, dict[str, int]] = json.loads(done.stdout)["retries"]
    return told


def test_all_workers_know_what_came_again(tmp_path: Path) -> None:
    """In connections that go to any of four workers, over a reload too."""
    fates = "".join(
        f"[[rule]]\nphase = '.'\nattempt = 1\nrecipient = '{name}@*'\n{what}\n"
        for name, what in (
            ("before", "then = 'close-before-reply'"),
            ("within", "then = 'half-reply'"),
            ("after", "then = 'close-after-reply'"),
            ("late", "delay = 5"),
            ("no", "reply = '554 5.0.0 No'"),
        )
    )
    pid = tmp_path / "pid"
    with Sink(f"--pid={pid}", "--workers=4", scenario_option(tmp_path, fates)) as program:
        program.dashboard()
        for turn in ("first", "second"):
            assert post(program.http, "/runs", {"name": turn}).status == 201
            for name in ("before", "within", "after", "late", "no"):
                client = smtplib.SMTP(*program.address, local_hostname="client.example.com", timeout=20)
                client.ehlo()
                client.mail(SENDER)
                client.rcpt(f"{name}@example.com")
                client.docmd("DATA")
                client.send(f"Message-ID: <{name}@client>\r\n\r\nHello\r\n.\r\n".encode())
                if name != "late":
                    assert client.sock is not None
                    client.sock.recv(1000)
                client.close()
        told = retries(program, pid)
        assert told["uncertain"] == {
            name: {"messages": 1, "returned": 1} for name in ("before", "within", "after", "late")
        }
        assert told["refused"] == {"recipients": 1, "returned": 1}
        for path in ("/report?format=json", "/runs/second/report?format=json", "/stats.json"):
            over_http = json.loads(ask(program.http, path).body)["retries"]
            assert {
                name: over_http["uncertain"][name]["returned"] for name in told["uncertain"]
            } == dict.fromkeys(told["uncertain"], 1), path
        exposition = ask(program.http, "/metrics").body.decode()
        assert 'blackhole_retried_uncertain_outcomes_total{outcome="closed_within_reply"} 1.0' in exposition


# Senders that nobody here wrote


@requires("smtp-source", "swaks")
def test_a_new_message_of_smtp_source_or_swaks_is_no_retry(tmp_path: Path) -> None:
    """They give up when they are put off or refused. The next run has come again, and is not to blame."""
    pid = tmp_path / "pid"
    refuse = "[[rule]]\nphase = '.'\nrecipient = '{}*'\nreply = '{} No'\n"
    fates = refuse.format("later", "450 4.2.1") + refuse.format("no", "550 5.1.1")
    with Program(f"--pid={pid}", scenario_option(tmp_path, fates)) as program:
        host, port = program.address
        senders = (
            (path_of("smtp-source"), "-M", "client.test", "-f", SENDER, "-t", "{}@source", f"{host}:{port}"),
            (
                path_of("swaks"),
                f"--server={host}:{port}",
                f"--from={SENDER}",
                "--helo=client.test",
                "--to={}@swaks",
            ),
        )
        for command in senders * 2:
            for name in ("later", "no", "yes"):
                filled = [word.format(name) for word in command]
                subprocess.run(filled, capture_output=True, timeout=60, check=False)
        told = retries(program, pid)
        assert (told["deferred"]["recipients"], told["deferred"]["returned"]) == (2, 2)
        assert told["refused"] == {"recipients": 2, "returned": 2}
        assert {one.rule.name for one in report.findings(Counters.of(program.pid).snapshot())} <= {"no-quit"}


@requires_postfix
def test_postfix_waits_and_comes_again(tmp_path: Path, postfix_folder: Path) -> None:
    """Greylisted: it is accused of nothing, though its timers are turned down."""
    pid = tmp_path / "pid"
    greylist = scenario_option(postfix_folder, "[[rule]]\ngreylist = { min = '3s', max = '1h' }\n")
    with (
        Program(f"--pid={pid}", "--hostname=mx.test", greylist) as program,
        Postfix(postfix_folder, program.address, more=QUICK_RETRIES) as postfix,
    ):
        for number in range(3):
            postfix.send("Subject: a test\n\n", f"bob{number}@example.com")
        wait_for(lambda: postfix.has_delivered(3), "Postfix has delivered all", 60)
        told = retries(program, pid)["deferred"]
        assert (told["recipients"], told["returned"], told["missing"], told["taken"]) == (3, 3, 0, 3)
        put_off = [one for one in postfix.delivery_results() if "deferred" in one]
        assert told["again"] == len(put_off) - 3
        assert sum(told["waits"].values()) == len(put_off)
        assert [one.rule.name for one in report.findings(Counters.of(program.pid).snapshot())] == []
        said = run("report", f"--pid={pid}").stdout
        assert "deferred with 4xx: 3 recipients; 3 retried, 0 not yet, 3 accepted in the end" in said


@requires_postfix
def test_postfix_sends_again_what_it_cannot_be_sure_of(tmp_path: Path, postfix_folder: Path) -> None:
    """What was closed behind the 250 it takes for delivered; all else it sends again, once."""
    fates = "".join(
        f"[[rule]]\nphase = '.'\nattempt = 1\nrecipient = '{name}@*'\n{what}\n"
        for name, what in (
            ("before", "then = 'close-before-reply'"),
            ("within", "then = 'half-reply'"),
            ("after", "then = 'close-after-reply'"),
            ("late", "delay = 5"),
            ("later", "reply = '451 4.3.0 Later'"),
            ("no", "reply = '554 5.0.0 No'"),
        )
    )
    pid = tmp_path / "pid"
    hasty = f"{QUICK_RETRIES}smtp_data_done_timeout = 2s\n"
    with (
        Program(f"--pid={pid}", "--hostname=mx.test", scenario_option(postfix_folder, fates)) as program,
        Postfix(postfix_folder, program.address, more=hasty) as postfix,
    ):
        for name in ("before", "within", "after", "late", "later", "no"):
            postfix.send(f"Subject: {name}\n\n", f"{name}@example.com")
        wait_for(lambda: postfix.has_delivered(6), "Postfix has delivered all, and a bounce", 60)
        told = retries(program, pid)
        assert told["uncertain"] == {
            "before": {"messages": 1, "returned": 1},
            "within": {"messages": 1, "returned": 1},
            "after": {"messages": 1, "returned": 0},
            "late": {"messages": 1, "returned": 1},
        }
        assert told["refused"] == {"recipients": 1, "returned": 0}
        assert (told["deferred"]["recipients"], told["deferred"]["taken"]) == (1, 1)
        assert [one.rule.name for one in report.findings(Counters.of(program.pid).snapshot())] == []
