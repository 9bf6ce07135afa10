"""The domain log: what became of recipients by their domain, with --show-domains."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from blackhole.metrics.transactions import transaction
from blackhole.process.accepted_envelope import read_accepted_envelope
from blackhole.process.domain_counter import DomainCounter
from blackhole.rules.evaluator import RuleEnvironment
from blackhole.rules.scenario_file import parse_rules
from blackhole.smtp.recorded_session import RecordedSession, Recorder
from blackhole.smtp.state import LMTP, SMTP
from blackhole.smtp.transaction_record import read_record
from blackhole.smtp.wanted_fields import WantedFields
from blackhole.store.attempts import AttemptTable
from blackhole.store.domain_log import (
    INTERVAL_BUCKETS,
    MAX_DOMAINS,
    MAX_SHOWN_DOMAINS,
    OTHER_DOMAINS,
    Domain,
    DomainLog,
)
from blackhole.store.recent import StoredRecord
from tests.engines import make_engine
from tests.http_api import Sink, ask
from tests.program import Program, run, scenario_option, wait_for
from tests.smtp_client import SMTPClient

RULES = """
[[rule]]
phase = "RCPT"
recipient = "later@*"
attempt = "<= 1"
reply = "451 4.2.1 Later"
[[rule]]
phase = "RCPT"
recipient = "nobody@*"
reply = "550 5.1.1 No such user"
[[rule]]
phase = "."
recipient = "full@*"
reply = "452 4.2.2 Full"
[[rule]]
phase = "DATA"
recipient = "no@*"
reply = "554 5.7.1 No"
"""


def shown(domain_log: DomainLog) -> list[tuple[str, int, int, int]]:
    return [one[:4] for one in domain_log.domains()]


def test_domains_of_all_processes_are_added_up() -> None:
    domain_log = DomainLog(3)
    one, other = domain_log.writer(0), domain_log.writer(2)
    one.update(b"ann@a", b"bob@B.test", "accepted", 1.0)
    other.update(b"ann@a", b"eve@b.Test", "refused", 1.0)
    other.update(b"ann@a", b"postmaster", "refused", 1.0)
    other.count_others("deferred", 3)
    assert shown(domain_log) == [("b.test", 1, 0, 1), ("postmaster", 0, 0, 1), (OTHER_DOMAINS, 0, 3, 0)]
    again = domain_log.writer(0)
    again.update(b"", b"x@b.test", "accepted", 1.0)
    assert shown(domain_log)[0] == ("b.test", 2, 0, 1), "a worker that takes a place goes on counting"


def test_log_is_bounded_and_adds_the_rest_up() -> None:
    domain_log = DomainLog(1)
    writer = domain_log.writer(0)
    for number in range(MAX_DOMAINS + 9):
        writer.update(b"ann@a", b"bob@d%d.test" % number, "accepted", 0.0)
    for _ in range(3):
        writer.update(b"ann@a", b"bob@d%d.test" % (MAX_DOMAINS + 8), "deferred", 0.0)
    found = domain_log.domains()
    assert (found[0].domain, found[0].recipients) == (f"d{MAX_DOMAINS + 8}.test", 4)
    assert (len(found), found[-1].domain) == (MAX_SHOWN_DOMAINS + 1, OTHER_DOMAINS)
    assert sum(one.recipients for one in found) == MAX_DOMAINS + 12


def test_names_of_domains_may_be_anything() -> None:
    domain_log = DomainLog(1)
    writer = domain_log.writer(0)
    for name in (b"x" * 999, b"\xff\xfe", "ü.example".encode(), b"", b"a\0b"):
        writer.update(b"", b"bob@" + name, "accepted", 0.0)
        writer.update(b"", b"bob@" + name, "accepted", 0.0)
    assert [one.accepted for one in domain_log.domains()] == [2] * 5
    assert {one.domain for one in domain_log.domains()} >= {"ü.example", "<none>"}


def test_time_from_a_deferral_to_the_next_attempt_is_known_in_all_processes() -> None:
    domain_log = DomainLog(2)
    one, other = domain_log.writer(0), domain_log.writer(1)
    for number in range(100):
        one.update(b"ann@a", b"%d@b.test" % number, "deferred", 1000.0)
        other.update(b"ANN@a", b"%d@B.test" % number, "deferred", 1000.0 + (60 if number < 98 else 5000))
    one.update(b"ann@a", b"0@b.test", "accepted", 1e12)
    one.update(b"ann@a", b"0@b.test", "accepted", 1e12)
    (found,) = domain_log.domains()
    assert (found.retries, found.retry_p50, found.retry_p99) == (101, 64.0, 8192.0)
    assert found.deferred == 200
    assert 2**INTERVAL_BUCKETS > 86400 * 180


def test_rate_is_that_of_the_last_minute_from_the_first_recipient_on() -> None:
    domain_log = DomainLog(2)
    for row in range(2):
        domain_log.writer(row).update(b"", b"bob@b.test", "accepted", 0.0)
    cells = domain_log._cells
    minute = max(one for one in cells if 29_000_000 < one < 60_000_000)
    for cell, value in enumerate(cells):
        if 29_000_000 < value < 60_000_000:
            cells[cell] = minute  # in case that the second came in the next minute
    rates = {
        seconds: domain_log.domains(minute * 60 + seconds)[0].per_minute
        for seconds in (0, 59, 60, 89, 90, 119, 120)
    }
    assert rates == {0: 2, 59: 2, 60: 2, 89: 2, 90: 1, 119: 1, 120: 0}


def test_minute_before_has_a_share_in_the_rate() -> None:
    domain_log = DomainLog(1)
    writer = domain_log.writer(0)
    for _ in range(20):
        writer.update(b"", b"bob@b.test", "accepted", 0.0)
    cells = domain_log._cells
    minute = next(one for one in cells if 29_000_000 < one < 60_000_000)
    cells[cells.tolist().index(minute)] = minute - 1
    writer.update(b"", b"bob@b.test", "accepted", 0.0)
    if minute in cells.tolist():  # no minute has begun meanwhile
        rates = [domain_log.domains(minute * 60 + seconds)[0].per_minute for seconds in (0, 30, 57, 60, 90)]
        assert rates == [21, 11, 2, 1, 1]


def domains(program: Program) -> dict[str, tuple[int, int, int]]:
    found: tuple[Domain, ...] | None = program.snapshot().domains
    return {one.domain: (one.accepted, one.deferred, one.refused) for one in found or ()}


def from_dashboard(program: Sink) -> set[tuple[str, int, int]]:
    """Return the domains of /stats.json, with their accepted recipients and their retries."""
    found = json.loads(ask(program.http, "/stats.json").body)["domains"]
    return {(one["domain"], one["accepted"], one["retries"]) for one in found}


def send(program: Program, *recipients: str) -> None:
    with SMTPClient(program.address) as client:
        client.command_code("MAIL FROM:<ann@client.test>")
        accepted = [client.command_code(f"RCPT TO:<{one}>") == "250" for one in recipients]
        if any(accepted) and client.command_code("DATA") == "354":
            client.send(b"Subject: hello\r\n\r\nhello\r\n.\r\n")
            client.read_reply()
        client.command_code("QUIT")


def test_domains_are_shown_with_show_domains(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    options = ("--show_domains", f"--pid={pid}", "--workers=2", scenario_option(tmp_path, RULES))
    with Sink(*options) as program:
        program.dashboard()
        send(program, "bob@a.test", "nobody@a.test", "later@b.test")
        send(program, "later@b.test")
        send(program, "full@c.test")
        send(program, "no@c.test")
        send(program, *(f"bob{number}@d.test" for number in range(40)))
        expected = {"a.test": (1, 0, 1), "b.test": (1, 1, 0), "c.test": (0, 1, 1)}
        wait_for(lambda: sum(map(sum, domains(program).values())) == 46, "all are counted")
        found = domains(program)
        assert {name: found[name] for name in expected} == expected
        assert found["d.test"][0] + found[OTHER_DOMAINS][0] == 40
        wait_for(lambda: ("b.test", 1, 1) in from_dashboard(program), "the dashboard shows the retry")
        metrics = ask(program.http, "/metrics").body.decode()
        assert 'blackhole_domain_recipients_total{domain="b.test",outcome="deferred"} 1.0' in metrics
        assert 'blackhole_domain_retry_interval_seconds{domain="b.test",percentile="50"}' in metrics
        report = run("report", f"--pid={pid}").stdout
        assert "  a.test: 1 accepted, 0 deferred, 1 refused\n" in report
        assert "half of 1 retry within" in report
        assert program.stop() == 0


def test_no_domain_is_kept_without_show_domains(tmp_path: Path) -> None:
    with Program("--workers=1", scenario_option(tmp_path, RULES), "--log_transactions") as program:
        send(program, "nobody@a.test")
        assert program.snapshot().domains is None
        assert program.stop() == 0


MAIL = b"MAIL FROM:<Ann@client.test>\r\n"
BODY = b"Subject: hello\r\n\r\nhello\r\n.\r\n"

CONVERSATIONS = {
    "usual": [b"EHLO c.test\r\n", MAIL, b"RCPT TO:<Bob@A.test>\r\n", b"DATA\r\n", BODY],
    "two messages": [
        *[MAIL, b"RCPT TO:<bob@a.test>\r\n", b"RCPT TO:<eve@b.test>\r\n", b"DATA\r\n", BODY] * 2
    ],
    "a group": [MAIL + b"RCPT TO:<bob@a.test>\r\nRCPT TO:<eve@b.test>\r\nDATA\r\n", BODY],
    "null sender, parameters, other cases": [
        b"mail from:<> SIZE=99 BODY=8BITMIME\r\n",
        b"Rcpt To:<bob@a.test> NOTIFY=NEVER\r\n",
        b"RCPT TO: <eve@b.test>\r\n",
        b"DATA\r\n",
        BODY,
    ],
    "unusual addresses": [
        b"MAIL FROM:<@x.test,@y.test:ann@client.test>\r\n",
        b'RCPT TO:<"a>b"@c.test>\r\n',
        b"RCPT TO:<postmaster>\r\n",
        b"RCPT TO:<@x.test:bob@a.test>\r\n",
        b"RCPT TO:<bob@[192.0.2.1]>\r\n",
        b"DATA\r\n",
        BODY,
    ],
    "a refused recipient": [
        MAIL,
        b"RCPT TO:<bob@a.test>\r\n",
        b"RCPT TO:<nobody@b.test>\r\n",
        b"DATA\r\n",
        BODY,
    ],
    "a refused message": [MAIL, b"RCPT TO:<full@a.test>\r\n", b"DATA\r\n", BODY],
    "another sender after RSET": [MAIL, b"RCPT TO:<bob@a.test>\r\n", b"RSET\r\n", MAIL, b"QUIT\r\n"],
    "a retry": [
        *[MAIL, b"RCPT TO:<later@b.test>\r\n", b"RSET\r\n"],
        *[MAIL, b"RCPT TO:<LATER@b.test>\r\n", b"DATA\r\n", BODY],
    ],
    "many recipients": [MAIL, *(b"RCPT TO:<%d@d.test>\r\n" % n for n in range(40)), b"DATA\r\n", BODY],
    "a large group": [MAIL + b"".join(b"RCPT TO:<%d@d.test>\r\n" % n for n in range(80)) + b"DATA\r\n", BODY],
    "a message in pieces": [MAIL, b"RCPT TO:<bob@a.test>\r\n", b"DATA\r\n", BODY[:9], BODY[9:]],
    "chunks": [MAIL, b"RCPT TO:<bob@a.test>\r\n", b"BDAT 3\r\nx\r\n", b"BDAT 0 LAST\r\n"],
    "blanks before a verb": [
        MAIL,
        b" RCPT TO:<bob@a.test>\r\n",
        b"RCPT TO:<eve@b.test>\r\n",
        b"DATA\r\n",
        BODY,
    ],
    "no message": [MAIL, b"RCPT TO:<bob@a.test>\r\n", b"QUIT\r\n"],
}


ACCEPTED_AS_A_WHOLE = ("usual", "two messages", "a group", "a retry", "a message in pieces")


@pytest.mark.parametrize("service", [SMTP, LMTP])
@pytest.mark.parametrize("name", CONVERSATIONS)
def test_usual_record_is_counted_as_one_that_is_read_as_a_whole(name: str, service: str) -> None:
    """A record of the usual form is not taken apart, which takes longer than its message."""
    shortly, wholly = DomainLog(1), DomainLog(1)

    def log(session: RecordedSession, octets: bytes) -> None:
        record = read_record(octets)
        assert record is not None
        now = next(times)
        DomainCounter(shortly.writer(0), lambda: now).write(session, octets)
        DomainCounter(wholly.writer(0), lambda: now).count(
            transaction(StoredRecord(0, 0, octets), record, {})
        )
        usual.append(read_accepted_envelope(session.record) is not None)

    usual: list[bool] = []
    times = itertools.count(1000.0, 60.0)
    recorder = Recorder(lambda: 1.0, lambda octets: 0, WantedFields(()), (b"", b""), b"accept", log)
    environment = RuleEnvironment(attempt_store=AttemptTable())
    rules = tuple(parse_rules(RULES, "test"))
    session = make_engine(rules, environment=environment, recorder=recorder, service=service).session()
    session.greet()
    for data in CONVERSATIONS[name]:
        session.receive(data.replace(b"EHLO", b"LHLO") if service == LMTP else data)
    session.closed()
    assert usual, "a record was written"
    assert shortly.domains() == wholly.domains()
    of_several = service == LMTP and name in ("two messages", "a group")
    assert any(usual) == (name in ACCEPTED_AS_A_WHOLE and not of_several)
