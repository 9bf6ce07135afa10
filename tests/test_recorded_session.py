"""Recorded sessions: the same replies and events, and a record of each transaction."""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from random import Random
from typing import Any

import pytest

from blackhole.metrics.transactions import Transaction, transaction
from blackhole.rules.evaluator import RuleEnvironment
from blackhole.rules.model import Rule
from blackhole.rules.scenario_file import parse_rules
from blackhole.smtp.engine import SMTPEngine
from blackhole.smtp.fast_path import UsualInput
from blackhole.smtp.recorded_session import RecordedSession, Recorder
from blackhole.smtp.replies import NextAction
from blackhole.smtp.session import Session
from blackhole.smtp.state import ListenerConfig
from blackhole.smtp.transaction_record import ADDENDUM, MAX_RECORD, read_record
from blackhole.smtp.wanted_fields import WantedFields
from blackhole.store.recent import StoredRecord
from tests.conftest import Certificate
from tests.engines import EVENT_NUMBERS, make_policy
from tests.remote_store import RemoteStore, with_lookups
from tests.test_fast_path import BODY, CONVERSATIONS, DATA, EHLO, GROUP, LISTENERS, MAIL, RCPT, run
from tests.test_session import session_peer
from tests.transcript import Transcript, all_transcripts, play

pytestmark = pytest.mark.pure

RULE_NUMBER = EVENT_NUMBERS.violation("duplicate") + 1000

FIELDS = ("Subject", "Message-ID")

RSET, QUIT = b"RSET\r\n", b"QUIT\r\n"


class Records:
    """An engine that records, and what it has recorded. Its clock counts the replies."""

    def __init__(self, scenario: str = "", mode: str = "accept", **values: Any) -> None:
        rules = tuple(
            replace(rule, counter=RULE_NUMBER + number)
            for number, rule in enumerate(parse_rules(scenario, "test") if scenario else ())
        )
        self.names = {rule.counter: rule.name for rule in rules}
        self.octets: list[bytes] = []
        self.engine = recording_engine(self, rules, mode, **values)

    def publish(self, octets: bytes) -> int:
        self.octets.append(octets)
        return len(self.octets) - 1

    def session(self, client: str = "192.0.2.1") -> RecordedSession:
        session = self.engine.session(client=client)
        assert isinstance(session, RecordedSession)
        session.greet()
        return session

    def play(self, *chunks: bytes, closes: bool = True) -> RecordedSession:
        """Send chunks in one session, and close it."""
        session = self.session()
        for chunk in chunks:
            if session.next_action is NextAction.READ:
                with_lookups(session, session.receive(chunk))
            while session.next_action is NextAction.SLEEP:
                with_lookups(session, session.resume())
        if closes:
            session.closed()
        return session

    @property
    def transactions(self) -> list[Transaction]:
        found = []
        for number, octets in enumerate(self.octets):
            record = read_record(octets)
            assert record is not None
            if record.ending != ADDENDUM:
                found.append(transaction(StoredRecord(0, number, octets), record, self.names))
        return found

    @property
    def only(self) -> Transaction:
        (found,) = self.transactions
        return found


def recording_engine(records: Records, rules: tuple[Rule, ...], mode: str, **values: Any) -> SMTPEngine:
    environment = values.pop("environment", None)
    policy = make_policy(rules, mode, "", environment or RuleEnvironment())
    clock = count(1)
    recorder = Recorder(
        lambda: float(next(clock)),
        records.publish,
        WantedFields(FIELDS),
        (b"127.0.0.1:25", b",".join(name.encode() for name in FIELDS)),
        mode.encode(),
    )
    values = {"hostname": "mx.test"} | values
    trace = values.pop("trace", None)
    return SMTPEngine(ListenerConfig(**values), Random(7), trace, policy, EVENT_NUMBERS, recorder)


def conversation(one: Transaction) -> list[tuple[str, str, int]]:
    """Return the phases, commands and codes of a transaction."""
    return [(exchange.phase, exchange.command, exchange.code) for exchange in one.exchanges]


def test_record_is_logged_where_somebody_logs_it() -> None:
    logged: list[tuple[object, bytes]] = []
    recorder = replace(recorder_into([]), log=lambda session, octets: logged.append((session, octets)))
    session = SMTPEngine(ListenerConfig(), Random(7), recorder=recorder).session()
    session.greet()
    for chunk in (EHLO, GROUP, BODY):
        session.receive(chunk)
    ((of, octets),) = logged
    assert of is session
    assert read_record(octets) is not None


# A session that is recorded does what any session does.


@pytest.mark.parametrize("fast_path", [True, False], ids=["fast path", "general path"])
@pytest.mark.parametrize(
    "size", [pytest.param(0, id="whole"), pytest.param(7, id="sevens", marks=pytest.mark.without_coverage)]
)
@pytest.mark.parametrize("transcript", all_transcripts(), ids=str)
def test_replies_do_not_depend_on_recording(
    transcript: Transcript, size: int, fast_path: bool, certificate: Certificate
) -> None:
    size = 0 if transcript.whole_segments else size
    records: list[bytes] = []
    peer = session_peer(transcript, certificate, size, fast_path=fast_path, recorder=recorder_into(records))
    play(transcript, peer)
    peer.session.closed()
    assert all(read_record(octets) is not None and len(octets) <= MAX_RECORD for octets in records)


def recorder_into(records: list[bytes]) -> Recorder:
    def publish(octets: bytes) -> int:
        records.append(octets)
        return len(records)

    return Recorder(lambda: 1.0, publish, WantedFields(FIELDS), (b"", b"Subject"), b"accept")


@pytest.mark.parametrize("listener", LISTENERS)
@pytest.mark.parametrize("name", CONVERSATIONS)
@pytest.mark.parametrize("fast_path", [True, False])
def test_events_do_not_depend_on_recording(name: str, listener: str, fast_path: bool) -> None:
    values = {"message_size_limit": 2000, "fast_path": fast_path, "hostname": "mx.test"} | LISTENERS[listener]
    policy = make_policy()
    plain, recorded = (
        SMTPEngine(ListenerConfig(**values), Random(7), None, policy, EVENT_NUMBERS, recorder)
        for recorder in (None, recorder_into([]))
    )
    assert run(plain, CONVERSATIONS[name]) == run(recorded, CONVERSATIONS[name])


@pytest.mark.parametrize("listener", LISTENERS)
@pytest.mark.parametrize("name", CONVERSATIONS)
def test_records_do_not_depend_on_the_path(name: str, listener: str) -> None:
    found = []
    for fast_path in (True, False):
        records = Records(**{"message_size_limit": 2000, "fast_path": fast_path} | LISTENERS[listener])
        records.play(*CONVERSATIONS[name])
        found.append(
            [
                (conversation(one), one.sender, one.recipients, one.size, one.outcome, one.violations)
                for one in records.transactions
            ]
        )
    assert found[0] == found[1]


def test_engine_without_a_recorder_has_nothing_of_it() -> None:
    """It costs nothing when it is off: sessions and the fast path are those that cannot record."""
    engine = SMTPEngine(ListenerConfig(), Random(7))
    assert type(engine.session()) is Session
    assert type(engine.fast_path.__self__) is UsualInput  # type: ignore[attr-defined]


# What a record says.


def test_record_of_a_message() -> None:
    records = Records()
    message = b"From: x\r\nsubject: Hello\r\n world\r\nMESSAGE-ID: <1@x>\r\n\r\nSubject: no\r\n.\r\n"
    records.play(EHLO, MAIL, RCPT, b"RCPT TO:<e@d.test>\r\n", DATA, message, closes=False)
    one = records.only
    assert (one.listener, one.client, one.helo, one.tls) == ("127.0.0.1:25", "192.0.2.1", "c.test", "")
    assert (one.sender, one.recipients, one.recipient_count) == ("a@b.test", ("c@d.test", "e@d.test"), 2)
    assert (one.size, one.outcome, one.is_message, one.accepted) == (len(message) - 3, "accepted", True, True)
    assert one.fields == {"Subject": "Hello world", "Message-ID": "<1@x>"}
    assert (one.rule, one.violations, one.left_out) == ("", (), 0)
    assert conversation(one) == [
        ("CONNECT", "", 220),
        ("EHLO", "EHLO c.test", 250),
        ("MAIL", "MAIL FROM:<a@b.test>", 250),
        ("RCPT", "RCPT TO:<c@d.test>", 250),
        ("RCPT", "RCPT TO:<e@d.test>", 250),
        ("DATA", "DATA", 354),
        (".", "", 250),
    ]
    assert [exchange.time for exchange in one.exchanges] == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
    assert one.time == 7.0
    assert one.exchanges[1].reply.startswith("250-mx.test\r\n250-")
    assert one.reply.startswith("250 2.0.0 OK: queued as ")


def test_record_is_there_when_the_reply_is_returned() -> None:
    records = Records()
    session = records.session()
    for chunk in (EHLO, GROUP):
        session.receive(chunk)
    assert records.octets == []
    session.receive(BODY)
    assert len(records.octets) == 1


def test_later_messages_of_a_connection_begin_with_mail_and_know_its_name() -> None:
    records = Records()
    records.play(EHLO, GROUP, BODY, GROUP, BODY, QUIT)
    first, second = records.transactions
    assert [phase for phase, _, _ in conversation(first)][:2] == ["CONNECT", "EHLO"]
    assert [phase for phase, _, _ in conversation(second)] == ["MAIL", "RCPT", "DATA", "."]
    assert second.helo == "c.test"


@pytest.mark.parametrize("fast_path", [True, False])
def test_body_is_in_no_record(fast_path: bool) -> None:
    records = Records(fast_path=fast_path)
    for cut in (0, 40, 70):
        message = (
            b"From: x\r\nX-Other: secret\r\nSubject: y\r\n\r\nsecret\r\n.secret\r\nSubject: secret\r\n.\r\n"
        )
        records.play(EHLO, GROUP, *filter(None, (message[:cut], message[cut:])))
    for octets in records.octets:
        assert b"y" in octets
        # A line that breaks a rule is the one exception.
        assert octets.count(b"secret") == octets.count(b".secret")


@pytest.mark.parametrize(
    ("end", "outcome", "last"),
    [
        (RSET, "aborted", "RSET"),
        (b"EHLO d.test\r\n", "aborted", "RCPT"),
        (MAIL, "aborted", "RCPT"),
        (QUIT, "disconnected", "QUIT"),
        (b"DATA\r\nunfinished", "disconnected", "DATA"),
        (b"", "disconnected", "RCPT"),
    ],
)
@pytest.mark.parametrize("fast_path", [True, False])
def test_transaction_without_a_message(end: bytes, outcome: str, last: str, fast_path: bool) -> None:
    records = Records(fast_path=fast_path)
    records.play(EHLO, MAIL, RCPT, *([end] if end else []))
    one = records.transactions[0]
    assert (one.outcome, one.is_message, one.exchanges[-1].phase) == (outcome, False, last)
    assert (one.sender, one.recipients, one.recipient_count) == ("a@b.test", ("c@d.test",), 1)


def test_transaction_that_replaces_another_has_a_record_of_its_own() -> None:
    records = Records()
    records.play(EHLO, MAIL, b"MAIL FROM:<new@b.test>\r\n", RCPT, DATA, BODY)
    assert [(one.sender, one.outcome) for one in records.transactions] == [
        ("a@b.test", "aborted"),
        ("new@b.test", "accepted"),
    ]


def test_session_without_a_transaction_has_no_record() -> None:
    records = Records()
    records.play()
    records.play(EHLO, b"NOOP\r\n", RSET, QUIT)
    assert records.octets == []


@pytest.mark.parametrize("mode", ["unavailable", "offline"])
def test_client_that_is_refused_at_once_has_a_record(mode: str) -> None:
    records = Records(mode=mode)
    records.play(EHLO)
    one = records.only
    assert (one.sender, one.rule) == (None, f"mode {mode}")
    assert one.exchanges[0].rule == f"mode {mode}"
    assert one.outcome == ("deferred" if mode == "unavailable" else "rejected")


REFUSES = """
[[rule]]
name = "nobody"
phase = "RCPT"
recipient = "nobody@*"
reply = "550 5.1.1 No such user"
"""

NOBODY = b"RCPT TO:<nobody@d.test>\r\n"


@pytest.mark.parametrize("fast_path", [True, False])
@pytest.mark.parametrize("pipelined", [True, False])
def test_rule_that_decided_is_named(fast_path: bool, pipelined: bool) -> None:
    records = Records(REFUSES, fast_path=fast_path)
    commands = [MAIL, RCPT, NOBODY, DATA]
    records.play(EHLO, *([b"".join(commands)] if pipelined else commands), b"Subject: x\r\n\r\ny\r\n.\r\n")
    one = records.only
    assert (one.recipients, one.refused_recipients, one.recipient_count) == (
        ("c@d.test",),
        ("nobody@d.test",),
        1,
    )
    assert (one.rule, one.outcome, one.fields) == ("nobody", "accepted", {"Subject": "x"})
    assert [(exchange.phase, exchange.code, exchange.rule) for exchange in one.exchanges[-5:]] == [
        ("MAIL", 250, ""),
        ("RCPT", 250, ""),
        ("RCPT", 550, "nobody"),
        ("DATA", 354, ""),
        (".", 250, ""),
    ]


@pytest.mark.parametrize("fast_path", [True, False])
def test_refused_transaction_is_recorded_when_the_client_gives_up(fast_path: bool) -> None:
    records = Records(REFUSES, fast_path=fast_path)
    records.play(EHLO, MAIL, NOBODY, RSET, QUIT)
    one = records.only
    assert (one.outcome, one.recipients, one.refused_recipients) == ("rejected", (), ("nobody@d.test",))
    assert (one.code, one.reply) == (550, "550 5.1.1 No such user")


@pytest.mark.parametrize(
    ("fault", "reply", "outcome", "is_message"),
    [
        ("half-reply", "250 ", "disconnected", False),
        ("close-before-reply", "", "disconnected", False),
        ("close-after-reply", "250 2.0.0 OK: queued as ", "accepted", True),
    ],
)
@pytest.mark.parametrize("fast_path", [True, False])
def test_fault_of_the_final_reply_is_named(
    fault: str, reply: str, outcome: str, is_message: bool, fast_path: bool
) -> None:
    records = Records(f'[[rule]]\nname = "bad"\nphase = "."\nthen = "{fault}"\n', fast_path=fast_path)
    records.play(EHLO, GROUP, b"Subject: x\r\n\r\ny\r\n.\r\n")
    one = records.only
    last = one.exchanges[-1]
    assert (last.fault, last.rule, one.outcome, one.is_message) == (fault, "bad", outcome, is_message)
    assert last.reply.startswith(reply)
    assert one.fields == {"Subject": "x"}
    assert (one.code, one.reply) == (last.code, last.reply)


def test_rest_of_a_message_that_was_answered_within_is_not_recorded() -> None:
    records = Records('[[rule]]\nphase = "DATA"\nreply = "452 4.3.1 Full"\nthen = { reply-after = 30 }\n')
    records.play(EHLO, GROUP, b"Subject: x\r\n\r\n" + 40 * b"y", b"z\r\n", b".\r\n", b"NOOP\r\n")
    message = records.only
    assert (message.code, message.fields) == (452, {"Subject": "x"})
    assert conversation(message)[-1] == (".", "", 452)


def test_reply_that_drips_is_recorded_as_a_whole() -> None:
    records = Records('[[rule]]\nname = "slow"\nphase = "DATA"\nthen = { drip = 10 }\n')
    records.play(EHLO, GROUP, BODY)
    data = records.only.exchanges[-2]
    assert (data.reply, data.fault) == ("354 Start mail input; end with <CRLF>.<CRLF>", "drip")


def test_delayed_reply_has_the_time_at_which_it_left() -> None:
    """A session makes its greeting at once, and all other replies after a delay."""
    records = Records(delay=(1.0, 1.0))
    records.play(EHLO, GROUP, BODY)
    assert [one.time for one in records.only.exchanges] == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]


@pytest.mark.parametrize("mode", ["bounce", "random", "greylist"])
def test_mode_that_decided_is_named(mode: str) -> None:
    records = Records(mode=mode, environment=RuleEnvironment(attempt_store=RemoteStore()))
    for _ in range(20):
        records.play(EHLO, MAIL, RCPT, DATA, BODY, QUIT)
    assert {one.rule for one in records.transactions if not one.accepted} == {f"mode {mode}"}


@pytest.mark.parametrize("cut", [0, 30])
@pytest.mark.parametrize("scenario", ["", REFUSES])
def test_directive_of_the_message_is_named(cut: int, scenario: str) -> None:
    records = Records(scenario, message_directives=True)
    message = b"X-Blackhole-Mode: bounce\r\nSubject: x\r\n\r\ny\r\n.\r\n"
    records.play(EHLO, GROUP, *filter(None, (message[:cut], message[cut:])))
    assert records.only.rule == "X-Blackhole-Mode: bounce"
    assert not records.only.accepted


def test_store_that_answers_later_changes_nothing() -> None:
    scenario = '[[rule]]\nname = "twice"\nphase = "RCPT"\nattempt = "1"\nreply = "451 4.3.0 Later"\n'
    records = Records(scenario, environment=RuleEnvironment(attempt_store=RemoteStore()))
    records.play(EHLO, GROUP, RSET)
    records.play(EHLO, GROUP, BODY)
    assert [(one.rule, one.outcome, one.recipient_count) for one in records.transactions] == [
        ("twice", "deferred", 0),
        ("", "accepted", 1),
    ]


# Violations.


@pytest.mark.parametrize("fast_path", [True, False])
@pytest.mark.parametrize(
    ("chunks", "name", "line"),
    [
        ([b"EHLO nodot\r\n", GROUP, BODY], "hello-name", "EHLO nodot"),
        ([EHLO, b"MAIL FROM: <a@b.test>\r\n", RCPT, DATA, BODY], "syntax", "MAIL FROM: <a@b.test>"),
        ([EHLO, b"FROB " + b"x" * 200 + b"\r\n", GROUP, BODY], "unknown-command", "FROB " + "x" * 75),
        ([EHLO, MAIL, RCPT, b"DATA\n", BODY], "bare-lf", "DATA"),
        ([EHLO, MAIL, RCPT, b"DATA\0\r\n", DATA, BODY], "nul", "DATA\0"),
        (
            [EHLO, b"MAIL FROM:<a@b.test> SIZE=99999\r\n", RCPT, DATA, BODY],
            "size-wrong",
            "MAIL FROM:<a@b.test> SIZE=99999",
        ),
        ([EHLO, GROUP, b"one\r\ntwo\nthree\r\n.\r\n"], "bare-lf", "two"),
        ([EHLO, GROUP, b"one\rtwo\r\n.\r\n"], "bare-cr", "one\rtwo"),
        ([EHLO, GROUP, b"one\r\ntw\0o\r\n.\r\n"], "nul", "tw\0o"),
        ([EHLO, GROUP, b"Subject: x\r\n\r\ntw\xc3\xb6\r\n.\r\n"], "8bit-undeclared", "twö"),
        ([EHLO, GROUP, b"one\r\n.two\r\n.\r\n"], "unstuffed-dot", ".two"),
        ([EHLO, GROUP, b"one\r\n" + b"y" * 1200 + b"\r\n.\r\n"], "long-line", "y" * 80),
        ([EHLO, GROUP, b"one\r\ntwo\xff\r\n.\r\n"], "8bit-undeclared", "two\\xff"),
        ([EHLO, b"NOOP " + b"x" * 3000 + b"\r\n", GROUP, BODY], "long-command", "NOOP " + "x" * 75),
        (
            [EHLO, b"NOOP " + b"x" * 2100, b"y" * 99 + b"\r\n", GROUP, BODY],
            "long-command",
            "NOOP " + "x" * 75,
        ),
    ],
)
def test_violation_has_the_line_that_shows_it(
    chunks: list[bytes], name: str, line: str, fast_path: bool
) -> None:
    records = Records(fast_path=fast_path)
    records.play(*chunks)
    assert (name, line) in [(one.name, one.line) for one in records.transactions[0].violations]


def test_violation_of_a_line_that_came_in_pieces_shows_its_last_piece() -> None:
    records = Records()
    records.play(EHLO, GROUP, b"x" * 600, b"y" * 600 + b"\r\n.\r\n")
    assert [(one.name, one.line) for one in records.only.violations] == [("long-line", "xxxx" + "y" * 76)]


def test_violation_after_the_record_is_an_addendum() -> None:
    records = Records()
    session = records.play(EHLO, GROUP, BODY)
    session.record_violation("no-quit")
    session = records.play()
    session.record_violation("no-quit")  # no record of this connection exists
    _, addendum = records.octets
    found = read_record(addendum)
    assert found is not None
    assert (found.ending, found.size, found.marks) == (ADDENDUM, 0, [b"Vno-quit\0"])


def test_what_follows_a_421_is_an_addendum() -> None:
    scenario = '[[rule]]\nphase = "."\nreply = "421 4.3.2 Gone"\n'
    records = Records(scenario)
    session = records.play(EHLO, GROUP, BODY, closes=False)
    session.record_violation("talk-after-421")
    found = read_record(records.octets[-1])
    assert found is not None
    assert (found.ending, found.marks) == (ADDENDUM, [b"Vtalk-after-421\0"])


def test_early_talker_is_recorded_with_the_reply_that_it_got() -> None:
    records = Records(strict=True)
    session = records.session()
    assert session.client_spoke_first(b"220 x\r\n", False).startswith(b"554")
    session.closed()
    assert records.only.reply == "554 5.5.0 Talked before its turn, closing"


def test_reply_of_the_connection_is_the_last() -> None:
    from blackhole.smtp.replies import TIMEOUT

    records = Records()
    session = records.play(EHLO, MAIL, closes=False)
    session.closed_with(TIMEOUT)
    session.closed()
    assert conversation(records.only)[-1] == ("", "", 421)
    session = records.engine.session()
    assert isinstance(session, RecordedSession)
    session.closed_with(TIMEOUT)  # before the greeting: nothing was said
    session.closed()
    assert len(records.octets) == 1


# Secrets.


@pytest.mark.parametrize("debug", [False, True])
@pytest.mark.parametrize(
    "chunks",
    [
        [b"AUTH PLAIN AHNlY3JldABzZWNyZXQ=\r\n"],
        [b"AUTH PLAIN\r\n", b"AHNlY3JldABzZWNyZXQ=\r\n"],
        [b"AUTH PLAIN AHNlY3JldABzZWNyZXQ=\n"],
        [b" AUTH PLAIN AHNlY3JldABzZWNyZXQ=\r\n"],
        [b"AUTH LOGIN\r\n", b"c2VjcmV0\r\n", b"c2VjcmV0\r\n"],
        [b"AUTH NONE\r\nAHNlY3JldABzZWNyZXQ=\r\n", b"c2VjcmV0\r\n"],
        [b"AUTH PLAIN " + b"AHNlY3JldABzZWNyZXQ=" * 700 + b"\r\n"],
        [b"AUTH PLAIN\r\n", b"AHNlY3JldABzZWNyZXQ=" * 700 + b"\r\n"],
        [b"AUTH AHNlY3JldABzZWNyZXQ=\r\n"],
    ],
)
def test_secrets_are_not_recorded(chunks: list[bytes], debug: bool) -> None:
    traced: list[bytes] = []
    trace = (lambda session, way, line: traced.append(line)) if debug else None
    records = Records(auth=True, auth_plaintext=True, trace=trace)
    records.play(EHLO, *chunks, GROUP, BODY, MAIL, RSET)
    recorded = b"".join((*records.octets, *traced))
    assert b"AHNlY3JldABzZWNyZXQ" not in recorded
    assert b"c2VjcmV0" not in recorded
    assert b"AUTH" in recorded


# Bounds.


@pytest.mark.parametrize("fast_path", [True, False])
@pytest.mark.parametrize("pipelined", [True, False])
@pytest.mark.parametrize("recipients", [1, 5, 9, 15, 16, 17, 18, 19, 20, 21, 25, 40, 1000])
def test_of_many_recipients_the_first_ten_are_kept(recipients: int, pipelined: bool, fast_path: bool) -> None:
    records = Records(fast_path=fast_path)
    commands = [MAIL, *(b"RCPT TO:<r%d@d.test>\r\n" % number for number in range(recipients)), DATA]
    records.play(EHLO, *([b"".join(commands)] if pipelined else commands), BODY)
    one = records.only
    assert one.recipients == tuple(f"r{number}@d.test" for number in range(min(10, recipients)))
    assert one.recipient_count == recipients
    assert len(one.exchanges) + one.left_out == recipients + len(("CONNECT", "EHLO", "MAIL", "DATA", "."))
    assert conversation(one)[-2:] == [("DATA", "DATA", 354), (".", "", 250)]
    assert [code for _, _, code in conversation(one)[2:-2]] == [250] * (len(one.exchanges) - 4)
    assert len(records.octets[0]) < 4096


def test_refused_recipient_behind_many_in_a_group_is_the_last_that_is_kept() -> None:
    records = Records(REFUSES)
    many = b"".join(b"RCPT TO:<r%d@d.test>\r\n" % number for number in range(100))
    records.play(EHLO, MAIL + many + NOBODY + DATA, BODY)
    one = records.only
    assert (one.refused_recipients, one.recipient_count, one.left_out) == (("nobody@d.test",), 100, 82)
    assert len(one.recipients) == 10


def test_hostile_client_does_not_make_a_record_grow() -> None:
    long = b"RCPT TO:<" + b"x" * 1900 + b"@d.test>\r\n"
    records = Records()
    records.play(
        b"EHLO " + b"y" * 2000 + b"\r\n",
        *(b"FROB " + b"\xff" * 1000 + b"\r\n",) * 50,
        b"MAIL FROM:<" + b"z" * 1900 + b"@d.test>\r\n",
        *(long,) * 300,
        DATA,
        b"".join(b"Subject: " + b"\xff" * 900 + b"\r\n " + b"\xff" * 900 + b"\r\n" for _ in range(50)),
        b"\r\n.\r\n",
    )
    (octets,) = records.octets
    assert len(octets) <= MAX_RECORD
    assert records.only.recipient_count == 300


def test_record_that_is_too_large_loses_its_first_exchanges_and_then_its_fields() -> None:
    from blackhole.smtp import transaction_record
    from blackhole.smtp.transaction_record import ENDED_BY_MESSAGE, TransactionRecord

    record = TransactionRecord()
    for _ in range(30):
        record.add((1.0, b"NOOP " + b"x" * 1000 + b"\r\n", b"250 OK\r\n"))
    record.fields = [b"Subject:" + b"x" * MAX_RECORD]
    octets = record.encode(ENDED_BY_MESSAGE, 1, 1, transaction_record.NOBODY)
    found = read_record(octets)
    assert found is not None
    assert len(octets) <= MAX_RECORD
    assert (found.first, len(found.last), found.left_out, found.fields) == ([], 4, 26, ())


def test_prelude_of_a_transaction_is_bounded() -> None:
    records = Records()
    records.play(*(EHLO,) * 100, *(b"NOOP\r\n",) * 100, GROUP, BODY)
    assert len(records.only.exchanges) < 16


def test_exchanges_within_a_transaction_are_bounded() -> None:
    records = Records()
    records.play(EHLO, MAIL, *(b"NOOP\r\n",) * 1000, RCPT, DATA, BODY)
    one = records.only
    assert (len(one.exchanges), one.left_out) == (24, 1000 + 6 - 24)
    assert (one.recipients, one.sender) == (("c@d.test",), "a@b.test")


def test_long_transaction_that_another_replaces_has_a_record_of_its_own() -> None:
    records = Records()
    records.play(EHLO, MAIL, *(b"NOOP\r\n",) * 100, EHLO, GROUP, BODY)
    first, second = records.transactions
    assert (first.outcome, len(first.exchanges), first.left_out) == ("aborted", 23, 3 + 100 - 23)
    assert (first.exchanges[-1].phase, second.exchanges[0].phase) == ("NOOP", "EHLO")
    assert (second.outcome, second.left_out) == ("accepted", 0)


def test_violations_of_a_record_are_bounded() -> None:
    records = Records()
    records.play(EHLO, *(b"FROB\r\n",) * 100, GROUP, BODY)
    assert [one.name for one in records.only.violations] == ["unknown-command"] * 32


def test_message_without_mail_that_is_too_large_shows_no_line() -> None:
    records = Records(message_size_limit=100)
    records.play(EHLO, DATA, b"x" * 150 + b"\r\n.\r\n")
    assert [one.line for one in records.only.violations if one.name == "size-over-limit"] == [""]
    assert (records.only.sender, records.only.outcome) == (None, "rejected")


# Chunks.


@pytest.mark.parametrize("size", [3, 1000])
def test_record_of_a_message_in_chunks(size: int) -> None:
    records = Records()
    octets = b"BDAT 19\r\nSubject: x\r\n\r\nsecreBDAT 10 LAST\r\nt secret\r\n"
    records.play(EHLO, MAIL, RCPT, *(octets[start : start + size] for start in range(0, len(octets), size)))
    one = records.only
    assert (one.fields, one.size, one.outcome, one.is_message) == ({"Subject": "x"}, 29, "accepted", True)
    assert conversation(one)[-2:] == [("BDAT", "BDAT 19", 250), (".", "BDAT 10 LAST", 250)]
    assert b"secre" not in records.octets[0]


def test_fields_of_an_abandoned_message_are_not_those_of_the_next() -> None:
    records = Records()
    records.play(EHLO, MAIL, RCPT, b"BDAT 12\r\nSubject: x\r\n", RSET, GROUP, b"x", b"y\r\n.\r\n")
    assert [(one.outcome, one.fields) for one in records.transactions] == [
        ("aborted", {"Subject": "x"}),
        ("accepted", {}),
    ]
