"""The fast path and the general path: the same replies and events, whichever of them answers."""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import Any

import pytest

from blackhole.metrics.layout import (
    LISTENERS_START,
    OUTCOMES_START,
    VIOLATING_CONNECTIONS_START,
    VIOLATIONS_START,
)
from blackhole.smtp import fast_path as module
from blackhole.smtp.engine import SMTPEngine
from blackhole.smtp.inspection import INSPECT_EVERY, INSPECTED_PER_SECOND
from blackhole.smtp.policy import NO_SESSION_POLICY, Decision, NoSessionPolicy, PendingDecision, SessionPolicy
from blackhole.smtp.replies import CODES, NextAction
from blackhole.smtp.session import Session
from blackhole.smtp.state import ClientLimits, ListenerConfig, SessionState
from tests.engines import EVENT_NUMBERS, make_engine

pytestmark = pytest.mark.pure

EHLO, MAIL, RCPT, DATA = (
    b"EHLO c.test\r\n",
    b"MAIL FROM:<a@b.test>\r\n",
    b"RCPT TO:<c@d.test>\r\n",
    b"DATA\r\n",
)
END = b"\r\n.\r\n"
BODY = b"Hello\r\n.\r\n"
GROUP = MAIL + RCPT + DATA


def events_of(session: Session) -> Counter[int]:
    """Return the events since the last call, and clear them, as the connection does."""
    events = Counter(session.counted_events)
    if session.single_event:
        events[session.single_event] += 1
    session.single_event, session.counted_events = 0, []
    return events


def run(engine: SMTPEngine, chunks: list[bytes]) -> tuple[list[bytes], Counter[int], list[float]]:
    """Return the output for each chunk, without ids, all events, and the delays."""
    session = engine.session()
    outputs, events, delays = [session.greet()[:3]], events_of(session), []
    for chunk in chunks:
        out = session.receive(chunk)
        events += events_of(session)
        while session.next_action is NextAction.SLEEP:
            delays.append(session.wait)
            out += session.resume()
            events += events_of(session)
        outputs.append(out if b"queued" not in out else out[:25])
    return outputs, events, delays


CONVERSATIONS = {
    "messages": [EHLO, *(MAIL, RCPT, DATA, BODY) * 3, GROUP, BODY, b"RSET\r\n", b"QUIT\r\n"],
    "refused sender, then an accepted one": [EHLO, MAIL[:-2] + b" SIZE=9999\r\n", MAIL, DATA],
    "group, then commands out of order": [EHLO, GROUP, BODY, MAIL[:-2] + b" SIZE=9999\r\n", RCPT, DATA],
    "group after HELO": [b"HELO c.test\r\n", GROUP, BODY],
    "names": [b"EHLO 192.0.2.1\r\n", b"HELO nodot\r\n", b"EHLO [192.0.2.1]\r\n"],
    "addresses": [
        EHLO, b"MAIL FROM:<ann>\r\n", b"RCPT TO:<a@b@c>\r\n", b"RCPT TO:<@b>\r\n", b"RCPT TO:<a@>\r\n",
    ],
    "long addresses": [
        EHLO, MAIL,
        *(b"RCPT TO:<%s@%s.test>\r\n" % (n * b"x", m * b"y") for n in (64, 127, 128) for m in (121, 122)),
    ],
    "lines of more than 998 octets": [EHLO, GROUP, 998 * b"x" + END, GROUP, 999 * b"x" + END],
    "too large": [EHLO, GROUP, 1500 * b"x" + END, GROUP, 2500 * b"x" + END],
    "dots": [EHLO, GROUP, b".." + END, GROUP, b".\r\n", GROUP, b"a\r\n.b" + END, GROUP, b"a\r\n..b" + END],
    "bare line feeds": [
        EHLO, GROUP, b"a\nb" + END, GROUP, b"\na" + END, GROUP, b"a\n.\n" + END, GROUP,
        b"a\r\n\nb" + END, GROUP, 3000 * b"x" + b"\n" + END, GROUP, b"a\rb" + END,
    ],
    "junk": [b"HELO c.test\r\n"] * 4 + [b"RSET\r\n"] * 4,
    "recipients": [EHLO, MAIL, *[RCPT] * 8, DATA, BODY, MAIL + 4 * RCPT + DATA, BODY],
    "pieces": [
        EHLO, GROUP, b"Subject: a\r\n\r\nHel", b"lo", BODY, GROUP, b"Sub", b"ject: a\r\n", b"\r\nHello", END,
        GROUP, b"X-Black", b"hole-Delay: 5\r\n\r\n", BODY,
        GROUP, b"X-Blackhole-Delay: 3\r\n\r\nHel", b"lo\r", b"\n", b".\r\n", b"QUIT\r\n",
    ],
    "ends in pieces": [
        EHLO, GROUP, b".", b"\r\n", GROUP, b".\r", b"\n", GROUP, b"a", END,
        GROUP, b"a\r\n", b"..b\r\n.", b"\r\n",
        GROUP, b"a\r", b"\n.\r\n" + GROUP + BODY, GROUP, b"a", b"b" + END + b"RSET\r\n", b"QUIT\r\n",
    ],
    "too large in pieces": [
        EHLO, GROUP, 900 * b"x", 99 * b"x", b"x" + END, GROUP, 900 * b"x", 400 * b"x", 400 * b"x" + END,
        GROUP, 1500 * b"x", 900 * b"x" + END, GROUP, *[900 * b"x"] * 5, END,
    ],
    "bare line feeds in pieces": [
        EHLO, GROUP, b"a\r", b"\nb\n", b"\nc", END, GROUP, b"a\n", b"b", END,
        GROUP, b"a", b"\nb" + END, b"QUIT\r\n",
    ],
    "many messages": [EHLO, *(MAIL, RCPT, DATA, BODY) * 6, GROUP],
}  # fmt: skip

LISTENERS: dict[str, dict[str, Any]] = {
    "default": {},
    "strict": {"strict": True},
    "limits": {"limits": ClientLimits(soft_errors=1, errors=4, junk=2, recipients=2, messages=4)},
    "metered": {"limits": ClientLimits(recipients=3, metered=True)},
    "small": {"message_size_limit": 1000},
    "directives": {"message_directives": True},
    "count": {"bare_newline": "count"},
    "reject": {"bare_newline": "reject"},
    "limits, not inspected": {
        "limits": ClientLimits(soft_errors=1, errors=4, junk=2, recipients=2, messages=4), "inspect": "off"
    },
    "small, not inspected": {"message_size_limit": 1000, "inspect": "off"},
    "directives, not inspected": {"message_directives": True, "inspect": "off"},
    "count, not inspected": {"bare_newline": "count", "inspect": "off"},
    "reject, not inspected": {"bare_newline": "reject", "inspect": "off"},
}  # fmt: skip


@pytest.mark.parametrize("listener", LISTENERS)
@pytest.mark.parametrize("conversation", CONVERSATIONS)
def test_conversation_does_not_depend_on_the_path(conversation: str, listener: str) -> None:
    values = {"message_size_limit": 2000} | LISTENERS[listener]
    chunks = CONVERSATIONS[conversation]
    fast, general = (
        run(make_engine(fast_path=fast_path, hostname="mx.test", **values), chunks)
        for fast_path in (True, False)
    )
    assert fast == general


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"strict": True},
        {"limits": ClientLimits(recipients=10)},
        {"bare_newline": "count"},
        {"bare_newline": "reject"},
    ],
)
def test_usual_input_takes_the_fast_path(values: dict[str, Any]) -> None:
    engine = make_engine(**values)
    session = engine.session()
    session.greet()
    for chunk in (EHLO, MAIL, RCPT, RCPT, DATA, BODY, GROUP, BODY, b"RSET\r\n", b"QUIT\r\n"):
        assert module.fast_path(engine)(session, chunk) is not None


@pytest.mark.parametrize(
    "values",
    [{"fast_path": False}, {"delay": (1.0, 1.0)}],
)
def test_listener_without_fast_path(values: dict[str, Any]) -> None:
    engine = make_engine(**values)
    session = engine.session()
    session.greet()
    assert module.fast_path(engine)(session, EHLO) is None


def inspected_messages(session: Session, count: int) -> list[int]:
    """Send messages with a NUL, and return the numbers of those in which it was found."""
    event, found = EVENT_NUMBERS.sampled_violation("nul"), []
    for number in range(count):
        session.receive(GROUP)
        session.receive(b"\0\r\n.\r\n" if number % 2 else b"\0\r\n" + BODY)
        if event in events_of(session):
            found.append(number)
    return found


def ready_session(engine: SMTPEngine) -> Session:
    session = engine.session()
    session.greet()
    session.receive(EHLO)
    return session


def test_every_body_is_inspected_up_to_a_rate_and_then_one_in_sixty_four() -> None:
    engine, last = make_engine(), INSPECTED_PER_SECOND - 1
    session = ready_session(engine)
    later = [last + INSPECT_EVERY * number for number in (1, 2, 3)]
    assert inspected_messages(session, later[-1] + 1) == [*range(INSPECTED_PER_SECOND), *later]
    engine.inspection.refill()
    found = inspected_messages(session, 2 * INSPECT_EVERY)
    assert found == [*range(INSPECT_EVERY - 1, 2 * INSPECT_EVERY)], (
        "the next one of the sample, then all again"
    )


def test_beyond_that_rate_the_bodies_of_all_sessions_are_inspected_alike() -> None:
    engine = make_engine()
    inspected_messages(ready_session(engine), INSPECTED_PER_SECOND)
    first = [inspected_messages(ready_session(engine), INSPECT_EVERY) for _ in range(INSPECT_EVERY)]
    assert sorted(first) == [[number] for number in range(INSPECT_EVERY)]


SAMPLED = INSPECTED_PER_SECOND + INSPECT_EVERY + 4


@pytest.mark.parametrize(
    ("inspect", "found"), [("all", SAMPLED), ("sample", INSPECTED_PER_SECOND + 1), ("off", 0)]
)
def test_names_are_inspected_in_all_sessions_in_a_sample_or_in_none(inspect: str, found: int) -> None:
    engine = make_engine(inspect=inspect)
    event, count = EVENT_NUMBERS.sampled_violation("hello-name"), 0
    for _ in range(SAMPLED):
        session = engine.session()
        session.greet()
        session.receive(b"EHLO nodot\r\n")
        session.receive(b"EHLO nodot\r\n")  # once in a session
        count += events_of(session)[event]
    assert count == found


@pytest.mark.parametrize(
    ("inspect", "found"), [("all", SAMPLED), ("sample", INSPECTED_PER_SECOND + 1), ("off", 0)]
)
def test_bodies_are_inspected_in_all_messages_in_a_sample_or_in_none(inspect: str, found: int) -> None:
    session = ready_session(make_engine(inspect=inspect))
    assert len(inspected_messages(session, SAMPLED)) == found


@pytest.mark.parametrize("traced", [False, True])
def test_greeting_is_replaced_for_a_client_that_speaks_first_to_a_strict_listener(traced: bool) -> None:
    engine = make_engine(strict=True, trace=(lambda session, way, line: None) if traced else None)
    session = engine.session()
    out = session.client_spoke_first(session.greet(), sampled=False)
    assert (out[:3], session.next_action) == (b"554", NextAction.CLOSE)
    assert events_of(session) == {
        EVENT_NUMBERS.reply("CONNECT", 554): 1, EVENT_NUMBERS.violation("early-talk"): 1
    }  # fmt: skip


def test_input_before_the_reply_to_starttls_closes_the_connection() -> None:
    session = make_engine(starttls=True, delay=(1.0, 1.0)).session()
    session.greet()
    session.resume()
    session.receive(EHLO)
    session.resume()
    events_of(session)
    session.receive(b"STARTTLS\r\n")
    out = session.client_sent_early(session.resume())
    assert (out[:3], session.next_action) == (b"554", NextAction.CLOSE)
    assert events_of(session) == {
        EVENT_NUMBERS.reply("STARTTLS", 554): 1, EVENT_NUMBERS.violation("talk-behind-starttls"): 1
    }  # fmt: skip


# Any policy


class RecordingPolicy(NoSessionPolicy):
    """A policy that is asked about RCPT, and refuses the second recipient."""

    phases = frozenset(("RCPT",))
    header_names: frozenset[bytes] = frozenset()
    noted_phases = frozenset[str]()
    phases_after_refusals = frozenset[str]()

    def __init__(self) -> None:
        self.asked: list[bytes] = []
        self.answers: list[int] = []

    def for_session(self, client: str, secure: bool) -> SessionPolicy:
        return self

    def decide(
        self, session: SessionState, phase: str, argument: bytes = b"", size: int = 0, mode: str = ""
    ) -> Decision | PendingDecision | None:
        assert phase == "RCPT"
        self.asked.append(argument)
        return Decision(CODES[550], replaces_command=True) if len(self.asked) == 2 else None

    def accept_recipient(self, session: SessionState, recipient: bytes) -> Decision | PendingDecision | None:
        decision = self.decide(session, "RCPT", recipient)
        if decision is None:
            self.answers.append(250)
        return decision

    def answered(self, session: SessionState, phase: str, code: int) -> None:
        self.answers.append(code)


@pytest.mark.parametrize("fast_path", [True, False])
@pytest.mark.parametrize("pipelined", [True, False])
def test_policy_is_asked_once_about_each_command_of_its_phases(pipelined: bool, fast_path: bool) -> None:
    policy = RecordingPolicy()
    session = SMTPEngine(ListenerConfig(fast_path=fast_path), Random(7), policy=policy).session()
    session.greet()
    session.receive(EHLO)
    recipients = [b"RCPT TO:<%s@d.test>\r\n" % name for name in (b"a", b"b", b"c")]
    chunks = [MAIL, *recipients, DATA]
    codes = [
        line[:3]
        for chunk in ([b"".join(chunks)] if pipelined else chunks)
        for line in session.receive(chunk).splitlines()
    ]
    assert codes == [b"250", b"250", b"550", b"250", b"354"]
    assert (policy.asked, policy.answers) == ([b"a@d.test", b"b@d.test", b"c@d.test"], [250, 550, 250])
    assert session.recipients == 2


def test_null_policy_objects_to_nothing() -> None:
    session = SMTPEngine(ListenerConfig(), Random(7)).session(secure=True)
    session.check_implicit_tls()
    assert session.next_action is NextAction.READ
    session.secured()
    assert session.policy is NO_SESSION_POLICY
    assert session.greet()[:3] == b"220"
    session.policy.set_local_address(lambda: "192.0.2.1:25")
    session.policy.answered(session, "EHLO", 250)
    session.policy.message_reply_delayed(session, False)
    session.closed()
    assert session.counted_events == []


def test_rules_without_an_outcome_store_track_no_retries() -> None:
    engine = make_engine(mode="bounce")
    session = engine.session()
    session.greet()
    session.policy.set_local_address(lambda: "192.0.2.1:25")
    session.receive(EHLO)
    session.receive(GROUP)
    out = session.client_sent_early(session.receive(BODY))
    assert out[:1] in (b"4", b"5")
    session.closed()
    events = events_of(session).keys()
    assert not events & {
        *range(VIOLATIONS_START, VIOLATING_CONNECTIONS_START),
        *range(OUTCOMES_START, LISTENERS_START),
    }
