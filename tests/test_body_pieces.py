"""Bodies that come in pieces: the same replies, events, records and state on the fast path and without it."""

from __future__ import annotations

import re
from itertools import count
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from blackhole.metrics.transactions import transaction
from blackhole.rules.evaluator import RuleEnvironment
from blackhole.rules.scenario_file import parse_rules
from blackhole.smtp.engine import SMTPEngine
from blackhole.smtp.header_section import FIELD_ROOM
from blackhole.smtp.message_body import MessageBody
from blackhole.smtp.recorded_session import Recorder
from blackhole.smtp.replies import NextAction
from blackhole.smtp.session import Session
from blackhole.smtp.state import ClientLimits, ListenerConfig
from blackhole.smtp.transaction_record import read_record
from blackhole.smtp.wanted_fields import WantedFields
from blackhole.store.attempts import AttemptTable
from blackhole.store.outcome_table import OutcomeTable
from blackhole.store.recent import StoredRecord
from tests.engines import EVENT_NUMBERS, make_policy
from tests.test_fast_path import DATA, EHLO, END, GROUP, MAIL, RCPT, events_of

pytestmark = pytest.mark.pure

QUIT = b"QUIT\r\n"

REFUSED_AT_END = "[[rule]]\nphase = '.'\nchance = 0.5\nreply = '550 5.7.1 No'\n"

SCENARIOS = {
    "none": "",
    "refusals by chance": REFUSED_AT_END,
    "refusals of recipients": "[[rule]]\nphase = 'RCPT'\nchance = 1e-9\nreply = '451 4.7.1 Later'\n",
    "a header field": "[[rule]]\nphase = '.'\nheader = 'Subject: odd'\nreply = '550 5.7.1 Odd'\n",
    "any header field": "[[rule]]\nphase = '.'\nheader = 'X-*: odd'\nreply = '451 4.7.1 Odd'\n",
    "sizes": "[[rule]]\nphase = '.'\nsize = '> 300'\nreply = '552 5.3.4 Large'\n",
    "delays": "[[rule]]\nphase = '.'\nchance = 0.5\ndelay = 2\n" + REFUSED_AT_END,
    "cut-off replies": "[[rule]]\nphase = '.'\nchance = 0.5\nthen = 'half-reply'\n",
    "early replies": (
        "[[rule]]\nphase = 'RCPT'\nchance = 0.5\nreply = '452 4.3.1 Full'\nthen = { reply-after = 40 }\n"
    ),
}

USUAL_SCENARIOS = ("none", "refusals of recipients", "a header field", "any header field", "sizes")
"""Those that let the message of PIECES pass."""

LISTENERS: dict[str, dict[str, Any]] = {
    "not inspected": {"inspect": "off"},
    "no directives": {"inspect": "off", "message_directives": False},
    "sample": {"inspect": "sample"},
    "contents": {"inspect": "all", "inspect_content": True},
    "small": {"inspect": "off", "message_size_limit": 200},
    "counts line feeds": {"inspect": "off", "bare_newline": "count"},
    "rejects line feeds": {"inspect": "off", "bare_newline": "reject"},
    "limits": {"inspect": "off", "limits": ClientLimits(soft_errors=1, errors=9, recipients=2, messages=3)},
}

PIECES = (b"Sub", b"ject: a\r\n\r", b"\nHello", b"\r\n..", b"b\r", b"\n.", b"\r\n")


def make_engine(listener: str, scenario: str, recorder: Recorder | None, fast_path: bool) -> SMTPEngine:
    """Return an engine with stores of its own, so that nothing of another engine is known to it."""
    environment = RuleEnvironment(lambda: 0.0, AttemptTable(), OutcomeTable(sets=16), lambda: 0.0)
    text = SCENARIOS[scenario]
    policy = make_policy(parse_rules(text, "test") if text else (), environment=environment)
    values = {"hostname": "mx.test", "message_directives": True} | LISTENERS[listener]
    config = ListenerConfig(fast_path=fast_path, **values)
    return SMTPEngine(config, policy.random_source, None, policy, EVENT_NUMBERS, recorder)


@pytest.mark.parametrize("is_recorded", [False, True], ids=["", "recorded"])
@pytest.mark.parametrize("scenario", USUAL_SCENARIOS)
@pytest.mark.parametrize(
    "listener", ["not inspected", "no directives", "counts line feeds", "rejects line feeds", "limits"]
)
def test_pieces_of_a_body_take_the_fast_path(listener: str, scenario: str, is_recorded: bool) -> None:
    engine = make_engine(listener, scenario, recorder_into([]) if is_recorded else None, True)
    session = engine.session()
    session.greet()
    session.receive(EHLO)
    assert b"354 " in session.receive(GROUP)
    for piece in PIECES:
        assert session.in_body
        reply = engine.fast_path(session, piece)
        assert reply is not None
    assert reply.startswith(b"250 2.0.0 OK: queued as ")
    assert (session.in_body, session.messages, session.body) == (False, 1, None)


@pytest.mark.parametrize("body", [b".\r\n", b"..a" + END, b"a\r\n..b" + END], ids=["empty", "first", "later"])
def test_body_with_dots_at_the_beginning_of_lines_takes_the_fast_path(body: bytes) -> None:
    engine = make_engine("not inspected", "none", None, True)
    session = engine.session()
    session.greet()
    session.receive(EHLO)
    session.receive(GROUP)
    reply = engine.fast_path(session, body)
    assert reply is not None
    assert (reply[:3], engine.sizes) == (b"250", [len(body) - len(b".\r\n")])


@pytest.mark.parametrize(
    ("listener", "pieces", "code"),
    [
        ("not inspected", [b"a", END + QUIT], b"250"),
        ("counts line feeds", [b"a\n", b"b" + END], b"250"),
        ("rejects line feeds", [b"a\n", b"b" + END], b"550"),
        ("small", [150 * b"x", 60 * b"x" + END], b"552"),
        ("sample", [b"a", b"b" + END], b"250"),
    ],
)
def test_unusual_pieces_are_left_to_the_general_path(listener: str, pieces: list[bytes], code: bytes) -> None:
    engine = make_engine(listener, "none", None, True)
    session = engine.session()
    session.greet()
    session.receive(EHLO)
    session.receive(GROUP)
    first, last = pieces
    session.receive(first)
    assert engine.fast_path(session, last) is None
    assert session.receive(last)[:3] == code


# Random conversations.

NO_FIELD = b"no field\r\n"

FIELDS = st.sampled_from(
    (
        *(b"Subject: odd", b"Subject: a test", b"X-Tag: odd", b"X-Tag:", b" folded", b"From: ann@a.example"),
        *(b"Message-ID: <1@a.example>", b"message-id: <2@a.example>", b"Resent-Message-ID: <3@a.example>"),
        *(b"X-Blackhole-Mode: bounce", b"X-Blackhole-Delay: 3", b"X-Long: " + b"x" * FIELD_ROOM),
        NO_FIELD.rstrip(),
    )
)
LINES = st.sampled_from(
    (b"Hello", b"..", b"..dots", b".", b"", b"a.b", b"\xff", b"a\nb", b"a\rb", b"\0", b"x" * 90, b"y" * 3000)
)
BODIES = st.tuples(st.lists(FIELDS, max_size=4), st.lists(LINES, max_size=6)).map(
    lambda parts: b"\r\n".join([*parts[0], b"", *parts[1]]) + END
)
COMMANDS = st.sampled_from((GROUP, MAIL + RCPT + RCPT + DATA, MAIL[:-2] + b" SIZE=9000\r\n" + RCPT + DATA))
MESSAGES = st.tuples(COMMANDS, BODIES, st.sampled_from((b"", b"", b"", b"RSET\r\n", QUIT)))
"""The commands in front of a body, the body, and what comes behind it without a pause."""

CUTS = st.lists(st.one_of(st.integers(1, 12), st.sampled_from((40, 479, 2048))), max_size=12)


def cut_up(body: bytes, sizes: list[int]) -> list[bytes]:
    """Return pieces of these sizes, and the rest."""
    pieces = []
    for size in sizes:
        pieces.append(body[:size])
        body = body[size:]
    return [*filter(None, pieces), *([body] if body else [])]


def recorder_into(records: list[bytes]) -> Recorder:
    """Return a recorder whose clock counts the replies."""
    clock = count(1)

    def publish(octets: bytes) -> int:
        records.append(octets)
        return len(records)

    wanted = WantedFields(("Subject", "Message-ID"))
    return Recorder(lambda: float(next(clock)), publish, wanted, (b"", b"Subject,Message-ID"), b"accept")


COMPARED = (
    *("stage", "refused", "messages", "recipients", "octets", "size", "smtputf8", "eightbit", "in_body"),
    *(
        "answered_early",
        "busy",
        "needs_general_path",
        "next_action",
        "wait",
        "next_inspection",
        "unprocessed",
    ),
    *("directive_delay", "discarded", "quit_received", "violation_count", "sampled_violation_count"),
    *("violation_contexts", "cut_off_messages", "greeting_omitted", "decision", "rejected"),
)
"""The attributes of a session that are to be the same."""


def state_of(session: Session) -> dict[str, Any]:
    """Return what a session remembers."""
    state = {name: getattr(session, name) for name in COMPARED}
    state |= {name: repr(getattr(session, name)) for name in ("input_fault", "lasting_fault")}
    state["after_421"] = session.after_421 is not None
    body = session.body
    if session.in_body and isinstance(body, MessageBody):
        state |= {f"body.{name}": getattr(body, name) for name in ("tail", "octets", "has_bare_newline")}
    return state


def told(records: list[bytes]) -> list[Any]:
    """Return what records tell, but for the times, and the order of violations."""
    found = []
    for octets in records:
        record = read_record(octets)
        assert record is not None
        one = transaction(StoredRecord(0, 0, octets), record, {})
        exchanges = [(exchange.phase, exchange.command, exchange.code) for exchange in one.exchanges]
        violations = sorted(violation.name for violation in one.violations)
        found.append((exchanges, one.sender, one.recipients, one.size, one.outcome, violations, one.fields))
    return found


def run(engine: SMTPEngine, chunks: list[bytes]) -> list[Any]:
    """Send chunks in one session; return the output for each, its events, and the state behind it."""
    session, found = engine.session(client="192.0.2.1"), list[Any]()
    session.policy.set_local_address(lambda: "192.0.2.25:25")
    out = session.greet()
    for chunk in [b"", *chunks]:
        if chunk and session.next_action is NextAction.READ:
            out = session.receive(chunk)
        delays = []
        while session.next_action is NextAction.SLEEP:
            delays.append(session.wait)
            out += session.resume()
        events = events_of(session)
        found.append((re.sub(rb"queued as \w+", b"queued", out), delays, events, state_of(session)))
        out = b""
    session.closed()
    return [*found, events_of(session)]


@pytest.mark.parametrize("is_recorded", [False, True], ids=["", "recorded"])
@pytest.mark.parametrize("listener", LISTENERS)
@settings(
    max_examples=25,
    deadline=None,
    phases=(Phase.generate, Phase.shrink),
    suppress_health_check=[HealthCheck.too_slow],
)
@given(data=st.data())
def test_pieces_do_not_depend_on_the_path(listener: str, is_recorded: bool, data: st.DataObject) -> None:
    scenario = data.draw(st.sampled_from(tuple(SCENARIOS)))
    chunks = [EHLO]
    for commands, body, behind in data.draw(st.lists(MESSAGES, min_size=1, max_size=4)):
        if is_recorded:  # Of a whole message, fields behind a line that is no field are recorded too.
            body = body.replace(NO_FIELD, b"")
        chunks += [commands, *cut_up(body + behind, data.draw(CUTS))]
    found: list[tuple[list[Any], list[bytes]]] = []
    for fast_path in (True, False):
        records: list[bytes] = []
        engine = make_engine(listener, scenario, recorder_into(records) if is_recorded else None, fast_path)
        found.append((run(engine, chunks), records))
    fast, general = found
    for number, (one, other) in enumerate(zip(fast[0], general[0], strict=True)):
        assert one == other, chunks[: number + 1]
    assert told(fast[1]) == told(general[1])
