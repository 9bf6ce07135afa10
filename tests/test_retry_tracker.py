"""The retry tracker: outcomes, retries and duplicates, with a clock that is set by hand."""

from __future__ import annotations

import json
from collections import Counter
from functools import partial
from typing import Any
from xml.etree import ElementTree

import pytest

from blackhole.metrics import report
from blackhole.metrics.counters import Counters
from blackhole.metrics.layout import LISTENERS_START, OUTCOMES_START
from blackhole.metrics.snapshot import Snapshot
from blackhole.process.plan import ChildContext
from blackhole.process.worker import SETS_PER_SECOND, Worker, WorkerContext
from blackhole.rules.evaluator import RuleEnvironment, RuleEvaluator
from blackhole.rules.message_identity import message_identity
from blackhole.rules.outcomes import (
    DEFERRED,
    EVENTS,
    NEVER_RETRIED_AFTER,
    RETRY_INTERVALS,
    UNKNOWN_OUTCOME,
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
from blackhole.store.outcome_table import OutcomeTable
from tests.engines import VIOLATION_NAMES, make_engine, tracker_of

pytestmark = pytest.mark.pure

GREYLIST = "[[rule]]\ngreylist = { min = '5m', max = '2d' }\n"


def at_end(what: str) -> str:
    return f"[[rule]]\nphase = '.'\nattempt = 1\n{what}\n"


INTERVALS = ("retry_within_", "retry_later")
"""How the names of events begin that count retries by interval."""


class SimulatedListener:
    """A clock that is set by hand, and a listener with these rules."""

    def __init__(self, text: str, mode: str = "accept", **more: Any) -> None:
        self.now = 0.0
        self.memory, self.past = AttemptTable(sets=64), OutcomeTable(sets=64)
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
            if cell >= LISTENERS_START:
                continue  # an inspection
            if cell >= OUTCOMES_START:
                self.counts[EVENTS[cell - OUTCOMES_START].name] += 1
            elif cell in VIOLATION_NAMES:
                self.counts[VIOLATION_NAMES[cell]] += 1

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

    def new_events(self) -> dict[str, int]:
        """What was counted since this was last asked for, but for how long was waited."""
        told, self.counts = self.counts, Counter()
        return {name: count for name, count in told.items() if not name.startswith(INTERVALS)}


def say(session: Session, recipients: tuple[str, ...], name: str, more: bytes = b"") -> None:
    """A message as most senders send it: its envelope in one, then DATA if a recipient was accepted."""
    envelope = "".join(f"RCPT TO:<{recipient}>\r\n" for recipient in recipients)
    heard = session.receive(f"MAIL FROM:<ann@a>\r\n{envelope}".encode())
    while session.busy:
        heard += session.resume()
    if b"\r\n250" in heard and not session.receive(b"DATA\r\n").startswith(b"4"):
        field = f"Message-ID: <{name}>\r\n" if name else ""
        session.receive(f"{field}Subject: a test\r\n\r\nHello\r\n.\r\n".encode() + more)


# Envelopes


def test_deferred_recipient_that_is_retried_is_counted() -> None:
    listener = SimulatedListener(GREYLIST)
    for at in (0, 100, 400):
        listener.send(at)
    assert listener.counts["retry_within_300"] == 2
    assert listener.new_events() == {
        "deferred": 1,
        "retried_after_4xx": 1,
        "deferred_again": 1,
        "accepted_on_retry": 1,
    }
    listener.send(500)
    assert listener.new_events() == {"duplicate": 1}


@pytest.mark.parametrize("name", ["B" * 30, "B" * 60])
def test_length_of_an_address_makes_no_difference(name: str) -> None:
    listener, recipient = SimulatedListener(GREYLIST), f"{name}@{'d' * 30}.example"
    session = listener.arrive()
    session.receive(f"MAIL FROM:<ann@a>\r\nRCPT TO:<{recipient}>\r\n".encode())  # the general path
    listener.leave(session)
    assert listener.new_events() == {"deferred": 1}
    for _ in range(2):
        listener.now += 400
        session = listener.arrive()
        session.receive(b"MAIL FROM:<ann@a>\r\n")
        session.receive(f"RCPT TO:<{recipient.lower()}>\r\n".encode())  # the fast path
        session.receive(b"DATA\r\n")
        session.receive(b"Message-ID: <1@client>\r\n\r\nHello\r\n.\r\n")
        listener.leave(session)
    assert listener.new_events() == {"retried_after_4xx": 1, "accepted_on_retry": 1, "duplicate": 1}


@pytest.mark.parametrize("wait", [0.5, 1.0, 1.01, 60, 61, 86400, 100000])
def test_retry_interval_is_counted_in_its_class(wait: float) -> None:
    listener = SimulatedListener(GREYLIST)
    listener.send(0)
    listener.send(wait)
    (told,) = [name for name in listener.counts if name.startswith(INTERVALS)]
    assert told == next((f"retry_within_{most}" for most in RETRY_INTERVALS if wait <= most), "retry_later")


def test_each_recipient_of_a_message_is_counted_by_itself() -> None:
    listener = SimulatedListener(
        "[[rule]]\nphase = 'RCPT'\nrecipient = '*@later'\nattempt = 1\nreply = '450 4.2.1 Later'\n"
    )
    listener.send(0, "bob@b", "bob@later", "carol@later", "bob@later")
    assert listener.new_events() == {"deferred": 2}
    listener.send(60, "bob@later", name="1@client")
    assert listener.new_events() == {"retried_after_4xx": 1, "accepted_on_retry": 1}


def test_refused_message_counts_for_all_its_recipients() -> None:
    listener = SimulatedListener(at_end("reply = '451 4.3.0 Later'"))
    listener.send(0, "bob@b", "carol@c")
    assert listener.new_events() == {"deferred": 2}
    listener.send(60, "bob@b", "carol@c")
    assert listener.new_events() == {"retried_after_4xx": 2, "accepted_on_retry": 2}


def test_refused_data_counts_for_all_recipients() -> None:
    listener = SimulatedListener("[[rule]]\nphase = 'DATA'\nreply = '451 4.3.0 Later'\n")
    listener.send(0, "bob@b", "carol@c")
    listener.send(60, "bob@b", "carol@c")
    assert listener.new_events() == {"deferred": 2, "retried_after_4xx": 2, "deferred_again": 2}


def test_deferred_sender_counts_for_the_recipients_in_the_same_group() -> None:
    listener = SimulatedListener("[[rule]]\nphase = 'MAIL'\nattempt = 1\nreply = '451 4.7.1 Slow down'\n")
    listener.send(0, "bob@b", "carol@c")
    assert listener.new_events() == {"deferred": 2}
    listener.send(60, "bob@b", "carol@c")
    assert listener.new_events() == {"retried_after_4xx": 2, "accepted_on_retry": 2}


@pytest.mark.parametrize("command", [b"RSET", b"RSET\r\nMAIL FROM:<ann@a>", b"EHLO client.example.com"])
def test_accepted_recipient_counts_as_accepted_without_a_message(command: bytes) -> None:
    listener = SimulatedListener(GREYLIST)
    listener.send(0)
    listener.now = 400
    session = listener.arrive()
    session.receive(b"MAIL FROM:<ann@a>\r\nRCPT TO:<bob@b>\r\n")
    session.receive(command + b"\r\n")
    listener.leave(session)
    assert listener.new_events() == {"deferred": 1, "retried_after_4xx": 1, "accepted_on_retry": 1}


def test_disconnect_during_data_counts_as_a_retry_and_not_as_accepted() -> None:
    listener = SimulatedListener(GREYLIST)
    listener.send(0)
    listener.now = 400
    session = listener.arrive()
    session.receive(b"MAIL FROM:<ann@a>\r\nRCPT TO:<bob@b>\r\nDATA\r\n")
    session.receive(b"Hel")
    listener.leave(session, politely=False)
    assert listener.new_events() == {"deferred": 1, "retried_after_4xx": 1}


def test_refused_recipient_that_is_retried_is_counted() -> None:
    listener = SimulatedListener("[[rule]]\nphase = 'RCPT'\nreply = '550 5.1.1 Nobody'\n")
    for at in (0, 100, 200):
        listener.send(at)
    assert listener.new_events() == {"refused": 1, "retried_after_5xx": 1}


def test_outcome_of_an_envelope_may_change_from_attempt_to_attempt() -> None:
    reply = "[[rule]]\nphase = 'RCPT'\nattempt = {}\nreply = '{} X'\n"
    listener = SimulatedListener(
        reply.format(1, "450 4.2.1") + reply.format(2, "550 5.1.1") + reply.format(3, "450 4.2.1")
    )
    for at in (0, 100, 200, 300):
        listener.send(at)
    assert listener.new_events() == {
        "deferred": 2,
        "retried_after_4xx": 2,
        "refused": 1,
        "retried_after_5xx": 1,
        "accepted_on_retry": 1,
    }


def test_envelope_is_retried_from_any_network_and_a_message_from_its_own() -> None:
    """A sender with several machines; it is not known of a message that it is the same."""
    listener = SimulatedListener(GREYLIST)
    listener.send(0)
    listener.send(400, client="198.51.100.1")
    assert listener.new_events() == {"deferred": 1, "retried_after_4xx": 1, "deferred_again": 1}
    listener.send(801, client="198.51.100.200")
    assert listener.new_events() == {"accepted_on_retry": 1}
    listener.send(802, client="198.51.100.1", name="2@client")
    listener.send(803, client="192.0.2.1", name="2@client")
    assert listener.new_events() == {}
    listener.send(804, client="192.0.2.200", name="2@client")
    assert listener.new_events() == {"duplicate": 1}


def test_number_of_tracked_recipients_is_limited() -> None:
    listener = SimulatedListener("[[rule]]\nphase = 'RCPT'\nreply = '450 4.2.1 Later'\n")
    listener.send(0, *(f"bob{number}@b" for number in range(MAX_TRACKED_RECIPIENTS + 5)))
    assert listener.new_events()["deferred"] <= MAX_TRACKED_RECIPIENTS
    session = listener.arrive()
    session.receive(b"MAIL FROM:<ann@a>\r\n")
    for number in range(MAX_TRACKED_RECIPIENTS + 5):
        session.receive(b"RCPT TO:<%d@c>\r\n" % number)
    tracker = tracker_of(session)
    assert tracker is not None
    assert len(tracker._answers) == MAX_TRACKED_RECIPIENTS


def test_number_of_tracked_recipients_that_were_accepted_is_limited() -> None:
    listener = SimulatedListener(at_end("reply = '450 4.2.1 Later'"))
    session = listener.arrive()
    session.receive(b"MAIL FROM:<ann@a>\r\n")
    for number in range(MAX_TRACKED_RECIPIENTS + 5):
        assert session.receive(b"RCPT TO:<bob%d@b.example>\r\n" % number).startswith(b"250")
    session.receive(b"DATA\r\n")
    session.receive(b"Message-ID: <1@client>\r\n\r\nHello\r\n.\r\n")
    listener.leave(session)
    assert 0.9 * MAX_TRACKED_RECIPIENTS < listener.new_events()["deferred"] <= MAX_TRACKED_RECIPIENTS


# Messages


def test_accepted_message_that_is_sent_again_is_a_duplicate() -> None:
    listener = SimulatedListener(GREYLIST.replace("5m", "0s"))
    listener.send(0)
    listener.send(1)
    assert listener.new_events() == {"deferred": 1, "retried_after_4xx": 1, "accepted_on_retry": 1}
    listener.send(2)
    listener.send(3, name="2@client")
    listener.send(4, name="")
    listener.send(5, name="")
    assert listener.new_events() == {"duplicate": 1}


def test_sender_that_disconnects_without_quit_may_send_again() -> None:
    listener = SimulatedListener(at_end("reply = '554 5.0.0 No'\nrecipient = 'nobody@*'"))
    listener.send(0, politely=False)
    listener.send(1)
    listener.send(0, "nobody@b", politely=False)
    listener.send(1, "nobody@b")
    assert listener.new_events() == {"refused": 1, "retried_after_5xx": 1}
    listener.send(2)
    assert listener.new_events() == {"duplicate": 1}


def test_sender_that_sent_another_command_has_read_the_reply() -> None:
    listener = SimulatedListener(at_end("reply = '450 4.2.1 Later'\nrecipient = 'nobody@*'"))
    session = listener.arrive()
    for name in ("1@client", "2@client"):
        say(session, ("bob@b",), name)
    listener.leave(session, politely=False)
    listener.send(1, name="1@client")
    assert listener.new_events() == {"duplicate": 1}
    listener.send(2, name="2@client")
    assert listener.new_events() == {}


def test_refused_message_that_is_sent_again_is_a_violation() -> None:
    listener = SimulatedListener("[[rule]]\nphase = '.'\nreply = '554 5.0.0 No'\n")
    listener.send(0)
    listener.send(3600)
    listener.send(3600, name="")
    listener.send(3601, name="")
    assert listener.new_events() == {"refused": 1, "retried_after_5xx": 1, "retried-5xx": 1}


def test_message_sent_again_to_a_refused_recipient_is_a_violation() -> None:
    listener = SimulatedListener(
        "[[rule]]\nphase = 'RCPT'\nrecipient = 'nobody@*'\nattempt = 1\nreply = '550 5.1.1 No'\n"
    )
    listener.send(0, "bob@b", "nobody@b")
    listener.send(60, "nobody@b")
    assert listener.new_events() == {"refused": 1, "retried_after_5xx": 1, "retried-5xx": 1}


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
def test_retries_without_a_pause_are_a_violation(times: tuple[float, ...], accused: int) -> None:
    listener = SimulatedListener("[[rule]]\nphase = '.'\nreply = '451 4.3.0 Later'\n")
    for at in times:
        listener.send(at)
    assert listener.new_events().get("retried-at-once", 0) == accused


def test_retry_at_another_local_address_needs_no_pause() -> None:
    """As the hosts of a domain, of which this machine has several."""
    listener = SimulatedListener("[[rule]]\nphase = '.'\nreply = '451 4.3.0 Later'\n")
    for number in range(5):
        listener.send(number / 100, here=f"192.0.2.{number}:25")
    assert "retried-at-once" not in listener.new_events()


def test_other_messages_to_a_deferred_recipient_need_no_pause() -> None:
    listener = SimulatedListener("[[rule]]\nphase = '.'\nreply = '451 4.3.0 Later'\n")
    for number in range(9):
        listener.send(number / 100, name=f"{number}@client")
    for number in range(9):
        listener.send(1 + number / 100, name="")
    told = listener.new_events()
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
def test_message_with_an_uncertain_outcome_may_be_sent_again(fault: str, outcome: str) -> None:
    listener = SimulatedListener(at_end(fault))
    listener.send(0, politely=False)
    assert listener.new_events() == {outcome: 1}
    listener.send(60)
    assert listener.new_events() == {f"{outcome}_retried": 1}
    listener.send(120)
    assert listener.new_events() == {"duplicate": 1}


@pytest.mark.parametrize("fault", ["delay = 600", "then = { drip = 10 }"])
def test_sender_that_waited_for_a_late_reply_may_not_send_again(fault: str) -> None:
    listener = SimulatedListener(at_end(fault))
    session = listener.arrive()
    say(session, ("bob@b",), "1@client")
    while session.busy:
        session.resume()
    listener.leave(session)
    assert listener.new_events() == {}
    listener.send(60)
    assert listener.new_events() == {"duplicate": 1}


def test_late_reply_does_not_change_the_record_of_a_message_that_was_retried_meanwhile() -> None:
    listener = SimulatedListener(at_end("delay = 600"))
    session = listener.arrive()
    say(session, ("bob@b",), "1@client")
    listener.send(60)
    assert listener.new_events() == {"reply_too_late_retried": 1}
    while session.busy:
        session.resume()
    listener.leave(session)
    listener.send(120)
    assert listener.new_events() == {"duplicate": 1}


@pytest.mark.parametrize("together", [True, False])
def test_sender_that_says_quit_and_leaves_before_a_late_reply_may_send_again(together: bool) -> None:
    """Postfix sends QUIT behind the message, and goes when it has waited long enough."""
    listener = SimulatedListener(at_end("delay = 600"))
    session = listener.arrive()
    say(session, ("bob@b",), "1@client", b"QUIT\r\n" if together else b"")
    session.client_left()
    session.resume()
    if together:
        listener.count(session)
    else:
        listener.leave(session)
    assert listener.new_events() == {"reply_too_late": 1}
    listener.send(60)
    assert listener.new_events() == {"reply_too_late_retried": 1}


def test_client_that_leaves_before_another_late_reply_says_nothing_of_its_message() -> None:
    listener = SimulatedListener("[[rule]]\nphase = 'RCPT'\ndelay = 10\nreply = '250 2.1.5 OK'\n")
    for duplicates in (0, 1):
        session = listener.arrive()
        session.receive(b"MAIL FROM:<ann@a>\r\n")
        session.receive(b"RCPT TO:<bob@b>\r\n")
        assert session.busy
        session.client_left()
        assert session.resume().startswith(b"250")
        session.receive(b"DATA\r\n")
        session.receive(b"Message-ID: <1@client>\r\n\r\nHello\r\n.\r\n")
        listener.leave(session)
        assert listener.new_events() == ({"duplicate": duplicates} if duplicates else {})


def test_delayed_reply_to_an_oversized_message_counts_as_refused() -> None:
    listener = SimulatedListener(
        at_end("then = 'close'\nrecipient = 'x'"), message_size_limit=10, delay=(5.0, 5.0)
    )
    listener.send(0)
    assert listener.new_events() == {"refused": 1, "size-over-limit": 1}
    session = listener.arrive()
    say(session, ("bob@b",), "1@client")
    listener.leave(session)
    assert listener.new_events() == {"retried_after_5xx": 1, "size-over-limit": 1}


@pytest.mark.parametrize("fault", ["close", "half-reply", "close-after-reply"])
def test_refusal_with_a_fault_after_it_counts_as_refused(fault: str) -> None:
    listener = SimulatedListener(at_end(f"reply = '450 4.2.1 Later'\nthen = '{fault}'"))
    listener.send(0, politely=False)
    assert listener.new_events() == {"deferred": 1}


def test_message_without_message_id_is_identified_by_its_header_section() -> None:
    listener = SimulatedListener(at_end("then = 'half-reply'"))
    listener.send(0, name="", politely=False)
    listener.send(1, name="")
    assert listener.new_events() == {"closed_within_reply": 1, "closed_within_reply_retried": 1}


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (b"Message-ID: <1@a>\r\n\r\nMessage-ID: <2@a>\r\n.\r\n", b"<1@a>"),
        (b"Subject: x\r\nMESSAGE-ID :\r\n\t<1@a>\r\nTo: y\r\n\r\n.\r\n", b"<1@a>"),
        (b"Subject: x\nMessage-ID: <1@a>\n\nMessage-ID: <2@a>\n\r\n\r\n.\r\n", b"<1@a>"),
        (
            b"resent-Message-id: <2@a>\r\nMessage-ID: <1@a>\r\n\r\n.\r\n",
            ((b"", b"<2@a>"), (b"<1@a>", b"")),
        ),
        (b"Message-ID: <1@a>\rx\r\n\r\n.\r\n", b"<1@a>\rx"),
        (b"Message-ID: <1@a\r\n b>\r\n\r\n.\r\n", b"<1@a\r\n b>"),
        (b"X-Message-ID: <1@a>\r\n\r\n.\r\n", None),
        (b"Not-Message-ID: <1@a>\r\n Message-ID: <2@a>\r\n\r\n.\r\n", None),
        (b"Message-ID: \r\nTo: y\r\n\r\n.\r\n", None),
        (b"Message-ID:\r\n \r\nTo: y\r\n\r\n.\r\n", None),
        (b"\r\nMessage-ID: <1@a>\r\n.\r\n", None),
        (b"\nMessage-ID: <1@a>\r\n.\r\n", None),
    ],
)
def test_message_identity_is_its_message_id(
    text: bytes, name: bytes | tuple[tuple[bytes, bytes], ...] | None
) -> None:
    found, certain = message_identity(text)
    assert certain == bool(name)
    assert not certain or found == name


@pytest.mark.parametrize("blank", [b" ", b"\r\n "])
def test_message_without_message_id_is_never_a_duplicate(blank: bytes) -> None:
    listener = SimulatedListener(GREYLIST)
    for at in (0, 400, 401):
        listener.now = at
        session = listener.arrive()
        session.receive(b"MAIL FROM:<ann@a>\r\nRCPT TO:<bob@b>\r\n")
        session.receive(b"DATA\r\n")
        session.receive(b"Message-ID:%s\r\nSubject: a test\r\n\r\nHello\r\n.\r\n" % blank)
        listener.leave(session)
    assert "duplicate" not in listener.new_events()


def test_oversized_message_counts_as_refused() -> None:
    listener = SimulatedListener(at_end("then = 'half-reply'\nrecipient = 'x'"), message_size_limit=10)
    listener.send(0)
    assert listener.new_events() == {"refused": 1, "size-over-limit": 1}


def test_starttls_does_not_make_another_client() -> None:
    listener = SimulatedListener(GREYLIST)
    listener.send(0)
    listener.now = 400
    session = listener.arrive()
    session.secured()
    session.receive(b"EHLO client.example.com\r\n")
    say(session, ("bob@b",), "1@client")
    listener.leave(session)
    assert listener.new_events() == {"deferred": 1, "retried_after_4xx": 1, "accepted_on_retry": 1}


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
def test_retries_are_tracked_only_where_rules_can_refuse(mode: str, watched: bool) -> None:
    listener = SimulatedListener("", mode)
    session = listener.engine.session(client="192.0.2.1")
    assert (isinstance(session.policy, RuleEvaluator) and tracker_of(session) is not None) is watched


def test_retries_are_tracked_in_modes_that_refuse() -> None:
    listener = SimulatedListener("", "bounce")
    for at in range(0, 60 * 60, 60):
        listener.send(at)
    told = listener.new_events()
    assert told["retried-5xx"] > 9
    assert told["retried_after_4xx"] + told["retried_after_5xx"] > 9


# What never comes again


def visited(past: AttemptTable, now: float) -> int:
    return sum(sum(past.sweep(number, now, mark_if_never_retried)) for number in range(64))


def test_envelope_not_retried_for_twelve_hours_counts_as_never_retried() -> None:
    listener = SimulatedListener(GREYLIST)
    listener.send(0, "bob@b", "carol@c")
    listener.send(60, "carol@c", "dave@d")
    assert visited(listener.past, NEVER_RETRIED_AFTER - 1) == 0
    assert visited(listener.past, NEVER_RETRIED_AFTER) == 1
    assert visited(listener.past, NEVER_RETRIED_AFTER + 1) == 0
    assert visited(listener.past, NEVER_RETRIED_AFTER + 60) == 1
    listener.new_events()
    listener.send(NEVER_RETRIED_AFTER + 100, "bob@b")
    assert listener.new_events() == {"retried_after_4xx": 1, "accepted_on_retry": 1}


def test_workers_count_envelopes_that_were_never_retried() -> None:
    """Each of two looks at all that is remembered, by and by; what one has found the other has not."""
    past, stats = AttemptTable(), Counters(2)
    for number in range(20):
        past.update(b"%d" % number, 1.0, partial(update_envelope, DEFERRED))
    scenario, channel = ActiveScenario(outcome_store=past), ControlChannel()
    children = [ChildContext(stats.allocate_row(), -1) for _ in range(2)]
    workers = [
        Worker(WorkerContext(Settings(), {}, {}, scenario, stats, channel, child)) for child in children
    ]
    for late, found in ((0, 0), (1, 20), (2, 20)):
        for _ in range(SETS // SETS_PER_SECOND):
            for worker in workers:
                worker.find_missing_retries(past, NEVER_RETRIED_AFTER + late)
        assert stats.snapshot().violations["never-retried"] == found


def test_accepted_envelopes_are_not_stored() -> None:
    """An envelope that was never refused is not kept, or these would push out those that were."""
    past = AttemptTable(sets=1)
    past.update(b"bob", 0.0, partial(update_envelope, DEFERRED))
    for number in range(SLOTS_PER_SET * 2):
        past.update(b"%d" % number, 1.0, partial(update_envelope, UNKNOWN_OUTCOME))
    assert len(list(past.sweep(0, 2.0, mark_if_never_retried))) == 1


# Reports


def snapshot_of(**events: int) -> Snapshot:
    stats = Counters(1)
    cells = stats.cells(stats.allocate_row())
    for number, event in enumerate(EVENTS):
        cells[OUTCOMES_START + number] = events.get(event.name, 0)
    return stats.snapshot()


def test_report_shows_retries_and_uncertain_outcomes() -> None:
    seen = snapshot_of(
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
    assert "Retries" not in report.report_text(snapshot_of())
    told = json.loads(report.report_json(seen))["retries"]
    assert (told["deferred"]["missing"], told["deferred"]["waits"]["900"]) == (1, 6)
    assert told["uncertain"]["before"] == {"messages": 2, "returned": 2}
    suite = ElementTree.fromstring(report.report_junit(seen))
    assert "deferred with 4xx: 12 recipients" in str(suite.findtext("system-out"))
    assert "deferred" not in report.report_junit(snapshot_of())


@pytest.mark.parametrize("phase", ["NOOP", "RSET", "EHLO"])
def test_recipients_are_tracked_through_a_command_that_ends_no_transaction(phase: str) -> None:
    reply = "accept" if phase == "NOOP" else "450 4.3.0 Not now"
    name = "x" if phase == "EHLO" else "client*"
    refused = f"[[rule]]\nphase = '{phase}'\nhelo = '{name}'\nreply = '{reply}'\n"
    events = []
    for command in (b"", f"{phase} x\r\n".encode().replace(b"RSET x", b"RSET")):
        listener = SimulatedListener(at_end("reply = '451 4.3.0 Later'") + refused)
        for at in (0.0, 60.0):
            listener.now = at
            session = listener.arrive()
            session.receive(b"HELO client.example.com\r\n")
            session.receive(b"MAIL FROM:<ann@a>\r\nRCPT TO:<bob@b>\r\n" + command + b"DATA\r\n")
            session.receive(b"Message-ID: <1@client>\r\n\r\nHello\r\n.\r\n")
            listener.leave(session)
        events.append({name: listener.counts[name] for name in ("deferred", "accepted_on_retry")})
    assert events == [{"deferred": 1, "accepted_on_retry": 1}] * 2


def test_552_at_rcpt_may_be_taken_for_too_many_recipients() -> None:
    """RFC 5321 4.5.3.1.10."""
    rule = "[[rule]]\nphase = 'RCPT'\nrecipient = 'bob@b'\nattempt = 1\nreply = '%s No'\n"
    for code, violations in (("552 5.5.3", 0), ("550 5.1.1", 1)):
        listener = SimulatedListener(rule % code)
        listener.send(0, "bob@b", "carol@c")
        listener.send(60, "bob@b")
        assert listener.new_events().get("retried-5xx", 0) == violations


@pytest.mark.parametrize("quit_", [b"", b"QUIT\r\n"], ids=["alone", "with QUIT behind"])
@pytest.mark.parametrize(
    ("effect", "attempts", "violation"),
    [
        ("reply = '250 2.0.0 OK'", 2, "duplicate"),
        ("reply = '554 5.0.0 No'", 2, "retried-5xx"),
        ("reply = '451 4.3.0 Later'", 3, "retried-at-once"),
    ],
)
def test_verdicts_on_retries_do_not_depend_on_a_delay(
    effect: str, attempts: int, violation: str, quit_: bytes
) -> None:
    refusing = at_end("then = 'close'\nrecipient = 'nobody'")
    for delay in ("", "delay = 10"):
        listener = SimulatedListener(f"[[rule]]\nphase = '.'\n{effect}\n{delay}\n{refusing}")
        for _ in range(attempts):
            assert listener.new_events().get(violation, 0) == 0
            session = listener.arrive()
            say(session, ("bob@b",), "1@client", quit_)
            if session.busy:
                listener.now += 10
                session.resume()
            listener.leave(session, politely=True) if not quit_ else listener.count(session)
            listener.now += 0.1
        assert listener.new_events().get(violation, 0) == 1
