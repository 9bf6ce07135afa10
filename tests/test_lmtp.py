"""LMTP against the program: figures and records for each recipient, and senders that others wrote."""

from __future__ import annotations

import os
import re
import smtplib
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from blackhole.metrics.transaction_reader import TransactionReader
from blackhole.rules.evaluator import RuleEnvironment
from blackhole.rules.outcomes import EVENTS
from blackhole.rules.scenario_file import parse_rules
from blackhole.smtp.actions import MAX_LMTP_OCTETS, MAX_LMTP_RECIPIENTS
from blackhole.smtp.replies import NextAction
from blackhole.smtp.session import Session
from blackhole.store.outcome_table import OutcomeTable
from tests.engines import EVENT_NUMBERS, VIOLATION_NAMES, make_engine
from tests.external_programs import output_of, requires
from tests.postfix import SENDER, Postfix, requires_postfix, smtp_source
from tests.program import Program, free_port, run, scenario_option, wait_for
from tests.remote_store import RemoteStore, with_lookups

RULES = """
    [[rule]]
    name = "full"
    phase = "."
    recipient = "full@*"
    reply = "552 5.2.2 {recipient} is full"
    [[rule]]
    name = "busy"
    phase = "."
    recipient = "busy@*"
    reply = "451 4.3.0 {recipient} is busy"
"""


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Return a folder that every user can enter: pytest's own are private."""
    with tempfile.TemporaryDirectory(prefix="blackhole-lmtp-") as name:
        os.chmod(name, 0o755)
        yield Path(name)


# Sessions


def converse(session: Session, data: bytes) -> list[str]:
    """Return the codes of the replies to some input."""
    out = session.receive(data)
    while session.next_action in (NextAction.SLEEP, NextAction.LOOKUP):
        out += session.resume()
    return [line[:3].decode() for line in out.splitlines() if line[3:4] == b" "]


ENVELOPE = b"MAIL FROM:<ann@example.com>\r\n%bDATA\r\n"


def envelope(*recipients: bytes) -> bytes:
    return ENVELOPE % b"".join(b"RCPT TO:<%b@example.com>\r\n" % name for name in recipients)


def test_recipients_beyond_the_limit_are_deferred() -> None:
    session = make_engine(service="lmtp").session()
    names = [b"%d" % number for number in range(MAX_LMTP_RECIPIENTS + 2)]
    assert converse(session, envelope(*names))[-4:] == ["250", "452", "452", "354"]
    assert converse(session, b".\r\n") == ["250"] * MAX_LMTP_RECIPIENTS


def test_one_hundred_of_the_longest_addresses_are_accepted_and_not_many_more() -> None:
    """RFC 5321 4.5.3.1.8."""
    session = make_engine(service="lmtp").session()
    names = [b"%03d" % number + b"x" * 61 + b"@" + b"y." * 88 + b"yyyy" for number in range(200)]
    converse(session, b"MAIL FROM:<>\r\n")
    codes = [converse(session, b"RCPT TO:<%b>\r\n" % name)[0] for name in names]
    accepted = codes.count("250")
    assert codes == ["250"] * accepted + ["452"] * (200 - accepted)
    assert 100 <= accepted <= MAX_LMTP_OCTETS // 240


def test_each_recipient_waits_for_an_answer_of_its_own() -> None:
    """The attempts are counted on another machine, which is asked about one recipient after the other."""
    rules = parse_rules(
        '[[rule]]\nphase = "."\nrecipient = "*"\nattempt = "1"\nreply = "451 4.3.0 Later"\n', "rules"
    )
    engine = make_engine(rules, environment=RuleEnvironment(attempt_store=RemoteStore()), service="lmtp")
    session = engine.session()
    for codes in (["451", "451"], ["250", "250"]):
        assert converse(session, envelope(b"a", b"b"))[-1:] == ["354"]
        out = with_lookups(session, session.receive(b"Hello\r\n.\r\n"))
        assert [line[:3].decode() for line in out.splitlines()] == codes


def test_retries_are_tracked_for_each_recipient() -> None:
    environment = RuleEnvironment(outcome_store=OutcomeTable(sets=64), monotonic=time.monotonic)
    rules = parse_rules(RULES, "rules")
    engine = make_engine(rules, environment=environment, service="lmtp")
    message = b"Message-ID: <1@example.com>\r\n\r\nhello\r\n.\r\n"

    def deliver(*recipients: bytes) -> list[str]:
        session = engine.session(client="192.0.2.1")
        converse(session, b"LHLO c.test\r\n")
        converse(session, envelope(*recipients))
        codes = converse(session, message)
        converse(session, b"QUIT\r\n")
        events = set(session.counted_events)
        session.closed()
        names = [one.name for n, one in enumerate(EVENTS) if EVENT_NUMBERS.outcome(one.name) in events]
        return (
            codes + sorted(names) + [VIOLATION_NAMES[event] for event in events if event in VIOLATION_NAMES]
        )

    assert deliver(b"full", b"bob", b"busy") == ["552", "250", "451", "deferred", "refused"]
    again = deliver(b"busy")
    assert again == ["451", "deferred_again", "retried_after_4xx", "retry_within_1"]
    assert deliver(b"carol") == ["250"]
    assert deliver(b"bob") == ["250", "duplicate"]
    assert "retried-5xx" in deliver(b"full")


def test_each_late_reply_has_an_outcome_of_its_own() -> None:
    rules = parse_rules(RULES + "[[rule]]\nphase = '.'\ndelay = 0.2\n", "rules")
    environment = RuleEnvironment(outcome_store=OutcomeTable(sets=64), monotonic=time.monotonic)
    engine = make_engine(rules, environment=environment, service="lmtp")
    message = b"Message-ID: <1@example.com>\r\n\r\nhello\r\n.\r\n"

    def deliver(early: bool) -> set[str]:
        session = engine.session(client="192.0.2.1")
        converse(session, b"LHLO c.test\r\n")
        converse(session, envelope(b"dave", b"busy", b"eve", b"eve"))
        session.receive(message)
        if early:
            session.policy.client_sent_early()
        while session.next_action is NextAction.SLEEP:
            session.resume()
        converse(session, b"QUIT\r\n")
        events = set(session.counted_events)
        session.closed()
        return {one.name for one in EVENTS if EVENT_NUMBERS.outcome(one.name) in events}

    assert deliver(early=False) == {"deferred"}
    assert "reply_too_late" in deliver(early=True)
    assert "reply_too_late_retried" in deliver(early=False)


def test_client_that_leaves_between_two_replies_learns_nothing_of_the_rest() -> None:
    rules = parse_rules(RULES + "[[rule]]\nphase = '.'\nrecipient = 'eve@*'\nthen = 'close'\n", "rules")
    environment = RuleEnvironment(outcome_store=OutcomeTable(sets=64), monotonic=time.monotonic)
    session = make_engine(rules, environment=environment, service="lmtp").session(client="192.0.2.1")
    converse(session, b"LHLO c.test\r\n")
    converse(session, envelope(b"dave", b"eve", b"bob"))
    assert session.receive(b"hello\r\n.\r\n").count(b"250 ") == 1
    assert session.next_action is NextAction.CLOSE
    session.closed()


def test_what_rfc_2033_section_5_asks_for_is_warned_about() -> None:
    done = run("--listen=127.0.0.1:25,lmtp 127.0.0.1:24,lmtp,extensions=none", "--test-config")
    assert done.returncode == 0
    assert done.stderr.splitlines() == [
        "blackhole: listener 127.0.0.1:25: LMTP does not belong on port 25 (RFC 2033 section 5)",
        *(
            f"blackhole: listener 127.0.0.1:24: LMTP needs {keyword} among its extensions"
            " (RFC 2033 section 5)"
            for keyword in ("ENHANCEDSTATUSCODES", "PIPELINING")
        ),
    ]


# The program


@pytest.fixture(scope="module")
def program(folder: Path) -> Iterator[Program]:
    """Start a server with LMTP on a UNIX socket and on a port."""
    port = free_port()
    options = [f"--listen=unix:{folder}/s,lmtp,strict 127.0.0.1:{port},lmtp,hostname=mx2.test"]
    options += [scenario_option(folder, RULES), "--workers=1", "--recent=100", "--inspect=all"]
    with Program(*options) as program:
        program.address = ("127.0.0.1", port)
        yield program
        assert program.stop() == 0, program.output()
        assert "Traceback" not in program.output()


def newest(program: Program, count: int) -> list[dict[str, object]]:
    """Return the last transactions that were recorded."""
    page = TransactionReader.of(program.pid).newest(count)
    return [one.as_dict() for one in page.transactions]


def test_record_has_the_reply_to_each_recipient(program: Program) -> None:
    before = program.snapshot()
    with smtplib.LMTP(*program.address) as client:
        assert (
            client.sendmail("ann@example.com", ["bob@example.com"], "Subject: hello\r\n\r\nhello\r\n") == {}
        )
        client.mail("ann@example.com")
        for name in ("full", "bob", "busy"):
            client.rcpt(f"{name}@example.com")
        client.docmd("DATA")
        client.send(b"Subject: hello\r\n\r\nhello\r\n.\r\n")
        assert [client.getreply()[0] for _ in range(3)] == [552, 250, 451]
    program.wait_until_idle()
    after = program.snapshot()
    assert {name: after.messages[name] - before.messages[name] for name in after.messages} == {
        "accepted": 2,
        "deferred": 1,
        "rejected": 1,
    }
    assert after.recipients - before.recipients == 4
    (last,) = newest(program, 1)
    assert last["recipients"] == ("bob@example.com",)
    assert last["refused_recipients"] == ("full@example.com", "busy@example.com")
    assert (last["outcome"], last["recipient_count"]) == ("accepted", 1)


@requires("swaks")
def test_swaks_sends_to_two_recipients(program: Program, folder: Path) -> None:
    message = ("--from", "ann@example.com", "--to", "bob@example.com,carol@example.com", "--helo", "c.test")
    before = program.snapshot().messages["accepted"]
    for target in (("--socket", f"{folder}/s"), ("--server", "{}:{}".format(*program.address))):
        shown = output_of("swaks", "--protocol", "LMTP", *target, *message)
        assert len(re.findall("250 2.0.0 OK: queued", shown)) == 2
    wait_for(lambda: program.snapshot().messages["accepted"] - before == 4, "all are counted")


@requires("smtp-source")
def test_smtp_source_sends_many_messages(program: Program) -> None:
    before = program.snapshot().messages["accepted"]
    command = smtp_source(program.address, 200, "-L", "-d", "-r", "3", connections=5)
    subprocess.run(command, check=True, timeout=60)
    wait_for(lambda: program.snapshot().messages["accepted"] - before == 600, "all are counted")


@requires_postfix
@pytest.mark.parametrize("kind", ["unix", "inet"])
def test_postfix_delivers_and_returns_for_each_recipient(
    program: Program, postfix_folder: Path, folder: Path, kind: str
) -> None:
    target = f"unix:{folder}/s" if kind == "unix" else "inet:{}:{}".format(*program.address)
    more = f"default_transport = lmtp:{target}\nrelayhost =\nlmtp_destination_recipient_limit = 10\n"
    with Postfix(postfix_folder, program.address, more=more) as postfix:
        postfix.send("Subject: test\n\nHello\n", "bob@example.com", "full@example.com", "busy@example.com")
        wait_for(lambda: len(postfix.delivery_results()) >= 3, "three results", 60)
        results = "\n".join(postfix.delivery_results())
        log = postfix.log.read_text()
    assert re.search(r"to=<bob@example.com>.*status=sent \(250 2.0.0 OK: queued", log), results
    assert re.search(r"to=<full@example.com>.*status=bounced .*552 5.2.2 full@example.com is full", log), (
        results
    )
    assert re.search(r"to=<busy@example.com>.*status=deferred .*451 4.3.0 busy@example.com is busy", log), (
        results
    )
    last = [one for one in newest(program, 5) if one["sender"] == SENDER][-1]
    assert last["client"] == ("unix" if kind == "unix" else "127.0.0.1")
    assert last["violations"] == []
