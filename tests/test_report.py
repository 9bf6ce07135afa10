"""The report on a sender: from counters, and of a running program."""

from __future__ import annotations

import json
import os
import signal
import smtplib
import socket
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blackhole.metrics import report
from blackhole.metrics.counters import Counters
from blackhole.metrics.evidence import EvidenceLog
from blackhole.metrics.layout import VIOLATION_NUMBERS
from blackhole.metrics.snapshot import Snapshot
from blackhole.smtp.state import ViolationContext
from blackhole.smtp.violations import LEVELS, OF_CONTENT, VIOLATIONS
from tests.engines import EVENT_NUMBERS
from tests.http_api import Sink, ask, figures
from tests.postfix import RECIPIENT, SENDER
from tests.program import Program, run, scenario_option, state, wait_for
from tests.violation_checks import reported_violations, violations_of


def snapshot_with(**violations: int) -> Snapshot:
    stats = Counters(1)
    cells = stats.cells(stats.allocate_row())
    for rule, count in violations.items():
        cells[EVENT_NUMBERS.violation(rule.replace("_", "-"))] = count
    return stats.snapshot()


def test_findings_are_ordered_by_level_and_then_by_count() -> None:
    found = report.findings(snapshot_with(hello_name=9, bare_lf=2, no_quit=5, talk_after_421=99))
    assert [one.rule.name for one in found] == ["no-quit", "bare-lf", "hello-name", "talk-after-421"]


@pytest.mark.parametrize(
    ("rule", "fails"),
    [("bare_lf", "must should style"), ("hello_name", "should style"), ("talk_after_421", "style")],
)
def test_fail_on_a_level_includes_the_graver_levels(rule: str, fails: str) -> None:
    snapshot = snapshot_with(**{rule: 1})
    assert [level for level in ("never", *LEVELS) if report.fails(snapshot, level)] == fails.split()


def test_the_text_names_the_violation_its_source_and_a_hint() -> None:
    said = report.report_text(snapshot_with(bare_lf=2))
    assert "MUST   bare-lf: ended a line with LF alone, 2 times\n" in said
    assert "RFC 5321 2.3.8. Lines end with CR LF" in said
    assert "No violations were found." in report.report_text(snapshot_with())


def test_junit_has_a_case_for_each_violation_and_fails_those_found() -> None:
    suite = ElementTree.fromstring(report.report_junit(snapshot_with(bare_lf=2, nul=1)))
    assert (suite.get("tests"), suite.get("failures")) == (str(len(VIOLATIONS)), "2")
    assert {case.get("name") for case in suite if len(case) and case[0].tag != "skipped"} == {
        "bare-lf",
        "nul",
    }
    skipped = {case.get("name") for case in suite.iter("testcase") if case.find("skipped") is not None}
    assert skipped == {rule.name for rule in VIOLATIONS if rule.sampled_in in OF_CONTENT}
    assert suite.get("skipped") == str(len(skipped))


@pytest.mark.parametrize(
    ("fail_on", "failed"),
    [
        ("never", set()),
        ("must", {"bare-lf", "no-date"}),
        ("should", {"bare-lf", "no-date", "hello-name"}),
        ("style", {"bare-lf", "no-date", "hello-name", "size-wrong"}),
        ("provider:gmail", {"no-date", "no-one-click"}),
        ("provider:yahoo", {"no-one-click"}),
        ("provider:orange", set()),
    ],
)
def test_junit_fails_only_what_fail_on_counts(fail_on: str, failed: set[str]) -> None:
    snapshot = snapshot_with(bare_lf=1, hello_name=2, size_wrong=3, no_date=1, no_one_click=1)
    suite = ElementTree.fromstring(report.report_junit(snapshot, fail_on))
    assert suite.get("failures") == str(len(failed))
    assert {case.get("name") for case in suite if case.find("failure") is not None} == failed
    (passed,) = [case.findtext("system-out") for case in suite if case.get("name") == "size-wrong"]
    assert (passed is None) == ("size-wrong" in failed)


def test_the_table_of_violations_is_consistent() -> None:
    assert len({rule.name for rule in VIOLATIONS}) == len(VIOLATIONS)
    for rule in VIOLATIONS:
        assert rule.level in LEVELS
        assert rule.meaning[0].islower()
        assert not (rule.meaning + rule.hint).endswith(".")


# The real program


def test_report_and_status_of_a_running_server(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    with Program(f"--pid={pid}", "--workers=2") as program:
        assert reported_violations(program, pid) == []
        assert run("report", f"--pid={pid}", "--fail_on=must").returncode == 0
        with socket.create_connection(program.address, 20) as client:
            client.recv(4096)
            client.sendall(b"MAIL FROM:<ann@example.com>\n")
            client.recv(4096)
        assert sorted(reported_violations(program, pid)) == ["bare-lf", "no-hello", "no-quit"]
        done = run("report", f"--pid={pid}", "--fail_on=must")
        assert (done.returncode, "MUST   bare-lf" in done.stdout) == (1, True)
        for fail_on, failures in (("never", "0"), ("must", "3")):
            said = run("report", f"--pid={pid}", "--format=junit", f"--fail_on={fail_on}").stdout
            assert ElementTree.fromstring(said).get("failures") == failures
        sent = json.loads(run("status", f"--pid={pid}", "--json").stdout)
        assert (sent["pid"], sent["connections"]["total"]) == (program.pid, 1)
        assert "worker 2: pid" in run("status", f"--pid={pid}").stdout
    gone = run("report", f"--pid={pid}")
    assert (gone.returncode, "not running" in gone.stderr) == (7, True)


BAD_MESSAGE = b"From: ann@a.test\r\nDate: Mon, 29 Nov 2026 06:25:31 +0000\r\n\r\nHello\r\n"


def test_report_on_the_content_of_messages(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    options = "--workers=2", "--inspect=all", "--inspect-content"
    with Sink(f"--pid={pid}", *options) as program:
        arguments = "report", f"--pid={pid}"
        done = run(*arguments, "--fail_on=provider:gmail")
        assert (done.returncode, "no message was inspected" in done.stderr) == (1, True)
        assert run(*arguments, "--fail_on=provider:gmial").returncode == os.EX_USAGE
        for _ in range(5):
            with smtplib.SMTP(*program.address, local_hostname="c.test") as client:
                client.sendmail("ann@a.test", ["bob@b.test"], BAD_MESSAGE)
        done = run(*arguments, "--fail_on=style")
        assert done.returncode == 1
        assert "MUST   bad-date: sent a message whose Date field is not well formed," in done.stdout
        assert " in 5 of 5 headers, all inspected\n" in done.stdout
        assert 'CRLF>": the day of the week is not that of the date\n' in done.stdout
        assert "provider no-dkim-signature: " in done.stdout
        assert run(*arguments, "--fail_on=provider:gmail").returncode == 1
        found = {one["rule"]: one for one in json.loads(run(*arguments, "--json").stdout)["findings"]}
        assert found.keys() == {"bad-date", "no-message-id", "no-dkim-signature", "no-list-unsubscribe"}
        assert found["no-list-unsubscribe"]["source"] == "Gmail's sender guidelines, 2024-02-01"
        assert found["no-list-unsubscribe"]["providers"] == ["gmail", "yahoo"]
        assert found["bad-date"]["sample"]["found"] == 5
        stats = figures(program.http)
        assert stats["inspected"]["headers"] == {"inspected": 5, "of": 5}
        metrics = ask(program.http, "/metrics").body.decode()
        assert 'blackhole_sampled_violations_total{rule="bad-date"} 5.0' in metrics
        assert 'blackhole_inspected_total{what="contents"} 5.0' in metrics
        suite = ElementTree.fromstring(run(*arguments, "--format=junit", "--fail_on=provider:orange").stdout)
        failed = [case.get("name") for case in suite if case.find("failure") is not None]
        assert failed == ["no-dkim-signature"]


def early_client(program: Program) -> socket.socket:
    """Return a client that sends EHLO before the greeting."""
    client = socket.create_connection(program.address, 20)
    client.sendall(b"EHLO client.example.com\r\n")
    return client


def unaccepted_early_client(program: Program) -> socket.socket:
    """Return a client that sent EHLO before the worker accepted it."""
    (worker,) = program.workers()
    os.kill(worker, signal.SIGSTOP)
    wait_for(lambda: state(worker) == "T", "the worker is stopped")
    try:
        return early_client(program)
    finally:
        os.kill(worker, signal.SIGCONT)


@pytest.mark.parametrize("delayed", [False, True], ids=["before accept", "during a delayed greeting"])
def test_a_client_that_talks_before_the_greeting_is_reported(tmp_path: Path, delayed: bool) -> None:
    slow = [scenario_option(tmp_path, "[[rule]]\nphase = 'CONNECT'\ndelay = 0.5\n")] if delayed else []
    with Program("--workers=1", *slow) as program:
        with (
            (early_client if delayed else unaccepted_early_client)(program) as client,
            client.makefile("rb") as replies,
        ):
            assert replies.readline().startswith(b"220 ")
            while replies.readline().startswith(b"250-"):
                pass
            client.sendall(b"QUIT\r\n")
            assert replies.read().endswith(b"Goodbye\r\n")
        assert violations_of(program) == ["early-talk"]


@pytest.mark.parametrize("delayed", [False, True], ids=["before accept", "during a delayed greeting"])
def test_a_client_that_talks_before_the_greeting_is_rejected_with_strict(
    tmp_path: Path, delayed: bool
) -> None:
    slow = [scenario_option(tmp_path, "[[rule]]\nphase = 'CONNECT'\ndelay = 0.5\n")] if delayed else []
    with Program("--workers=1", "--strict", *slow) as program:
        for _ in range(20):  # every session is checked, not only the sampled ones
            with (
                (early_client if delayed else unaccepted_early_client)(program) as client,
                client.makefile("rb") as replies,
            ):
                assert replies.read() == b"554 5.5.0 Talked before its turn, closing\r\n"
            if delayed:
                break
        assert set(violations_of(program)) == {"early-talk"}


def test_a_client_that_disconnects_during_data_is_reported() -> None:
    with Program("--workers=1") as program:
        client = smtplib.SMTP(*program.address, local_hostname="client.example.com", timeout=20)
        client.ehlo()
        client.mail(SENDER)
        client.rcpt(RECIPIENT)
        assert client.docmd("DATA")[0] == 354
        client.send(b"Subject: a test\r\n\r\nHel")
        client.close()
        assert violations_of(program) == ["hung-up-in-body"]
        assert sum(program.snapshot().messages.values()) == 0


# Counts and samples.


def sampled_snapshot(found: int, inspected: int, sessions: int, counted: int = 0) -> Snapshot:
    """Return the counters of sessions, some of them inspected, in some of which a name was wrong."""
    counters = Counters(1)
    cells = counters.cells(counters.allocate_row())
    cells[counters.listener("127.0.0.1:25")] = sessions
    cells[EVENT_NUMBERS.inspection("sessions")] = inspected
    cells[EVENT_NUMBERS.sampled_violation("hello-name")] = found
    cells[EVENT_NUMBERS.violation("hello-name")] = counted
    return counters.snapshot()


def test_figure_of_a_sample_says_of_how_many_and_what_can_be_expected() -> None:
    snapshot = sampled_snapshot(19, 20, 64)
    said = report.report_text(snapshot)
    assert "inspected: 20 of 64 sessions, 0 of 0 messages\n" in said
    assert "EHLO or HELO, in 19 of 20 sessions inspected, of 64\n" in said
    assert "About 61 of 64 sessions (95 % confidence interval: 49 to 63)." in said
    (finding,) = json.loads(report.report_json(snapshot))["findings"]
    sample = {
        "found": 19,
        "inspected": 20,
        "of": 64,
        "what": "sessions",
        "estimate": 61,
        "interval": [49, 63],
    }
    assert (finding["counted"], finding["sample"]) == (0, sample)
    suite = ElementTree.fromstring(report.report_junit(snapshot))
    (failure,) = suite.iter("failure")
    assert failure.get("message", "").endswith(", in 19 of 20 sessions inspected, of 64")
    assert "About 61 of 64 sessions" in str(failure.text)
    assert "inspected: 20 of 64" in str(suite.findtext("system-out"))


@pytest.mark.parametrize(
    ("found", "inspected", "sessions", "counted", "said"),
    [
        (1, 1, 1, 0, "in 1 of 1 session, all inspected"),
        (3, 64, 64, 0, "in 3 of 64 sessions, all inspected"),
        (3, 64, 64, 2, "counted 2 times; seen in 3 of 64 sessions, all inspected"),
        (0, 64, 64, 2, "2 times"),
        (1200, 1500, 24000, 1, "counted once; seen in 1,200 of 1,500 sessions inspected, of 24,000"),
        (3, 2, 2, 0, "in 3 of 3 sessions, all inspected"),
    ],
)
def test_figures_of_both_kinds_are_not_added_up(
    found: int, inspected: int, sessions: int, counted: int, said: str
) -> None:
    (finding,) = report.findings(sampled_snapshot(found, inspected, sessions, counted))
    assert (finding.seen, bool(finding.expected)) == (said, "inspected, of" in said)


def test_json_of_all_figures_has_counts_and_samples_apart() -> None:
    figures = sampled_snapshot(19, 20, 64, 2).as_dict()
    assert figures["inspected"]["sessions"] == {"inspected": 20, "of": 64}
    assert figures["violations"]["hello-name"] == 2
    assert figures["sampled_violations"]["hello-name"]["found"] == 19


# Evidence.


def test_report_shows_the_latest_lines_that_differ_of_all_processes() -> None:
    counters = Counters(2)
    assert counters.evidence is not None
    writers = [counters.evidence.writer(row) for row in range(2)]
    for number in range(3):
        for writer in writers:
            writer.add("syntax", ViolationContext("RCPT", b"RCPT TO:<bob>\r"), b"250 2.1.0 Sender OK\r\n")
        writers[0].add("syntax", ViolationContext("MAIL", b"MAIL FROM:" + number * b"a" + b"@b.test"), b"")
    evidence = counters.evidence.read()["syntax"]
    assert [(one.phase, one.line, one.reply) for one in evidence.examples] == [
        ("RCPT", "RCPT TO:<xxx>", "250 2.1.0 Sender OK"),
        ("MAIL", "MAIL FROM:x@x.xxxx", ""),
        ("MAIL", "MAIL FROM:@x.xxxx", ""),
    ]
    assert 0 < evidence.first <= evidence.examples[-1].at <= evidence.examples[0].at <= evidence.last


def test_flood_of_violations_replaces_one_line_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1_000_000_000_000_000]
    monkeypatch.setattr("blackhole.metrics.evidence.time.time_ns", lambda: now[0] * 1000)
    log = EvidenceLog(1)
    writer = log.writer(0)
    for number in range(10_000):
        now[0] += 1000  # a millisecond
        writer.add("unknown-command", ViolationContext("other", b"X%d" % number), b"")
    evidence = log.read()["unknown-command"]
    assert (evidence.first, evidence.last) == (1_000_000_000.001, 1_000_000_010)
    assert [one.line for one in evidence.examples] == ["X9003", "X8003", "X7003"]
    writer.touch(VIOLATION_NUMBERS["unknown-command"])
    assert log.read(since=1_000_000_009.5)["unknown-command"][:2] == (0.0, 1_000_000_010)
    assert log.read(until=1_000_000_000.5)["unknown-command"][:2] == (1_000_000_000.001, 0.0)
    assert log.read(since=1_000_000_011) == {}


@pytest.mark.parametrize(
    ("phase", "line", "shown"),
    [
        (
            "MAIL",
            b"MAIL FROM:<ann..b@example.com> SIZE=7 BODY=8BITMIME",
            "MAIL FROM:<xxx..x@xxxxxxx.xxx> SIZE=7 BODY=8BITMIME",
        ),
        ("MAIL", b"mail from: ann@b AUTH=<c@d>", "mail from: xxx@x AUTH=<x@x>"),
        ("MAIL", b'MAIL FROM:<"a b> c"@d.test> FUTURE', 'MAIL FROM:<"x x> x"@x.xxxx> xxxxxx'),
        (
            "RCPT",
            b"RCPT TO:<\xc3\xbc@b.test> ORCPT=rfc822;ann@b",
            "RCPT TO:<\\x??\\x??@x.xxxx> ORCPT=xxxxxx;xxx@x",
        ),
        ("RCPT", b"RCPT bob", "RCPT xxx"),
        ("EHLO", b"EHLO laptop", "EHLO laptop"),
        ("EHLO", b"EHLO 192.0.2.1", "EHLO xxx.x.x.x"),
        ("HELO", b"HELO [IPv6:2001:db8::1]", "HELO [IPv6:xxxx:xxx::x]"),
        ("EHLO", b"EHLO abc.de", "EHLO abc.de"),
        ("VRFY", b"VRFY bob", "VRFY xxx"),
        ("AUTH", b"AUTH PLAIN ...", "AUTH PLAIN ..."),
        ("other", b"XYZZY open sesame\tnow", "XYZZY xxxx xxxxxx\\txxx"),
        (".", b"Subject: a secret\n", "Subject: x xxxxxx\\n"),
        (".", b"Dear Bob, \x00 \x1b[2J\r\n", "xxxx xxx, \\x00 \\x1b[xx"),
        (".", b"Secret: word\\", "xxxxxx: xxxx\\\\"),
        ("other", 100 * b"Y", 77 * "Y" + "..."),
        ("other", b"", ""),
    ],
)
def test_line_is_masked_and_printable(phase: str, line: bytes, shown: str) -> None:
    log = EvidenceLog(1)
    log.writer(0).add("syntax", ViolationContext(phase, line), b"")
    assert log.read()["syntax"].examples[0].line == shown


def test_line_is_shown_as_it_came_where_that_is_asked_for() -> None:
    log = EvidenceLog(1)
    log.writer(0, shows_lines=True).add(
        "syntax", ViolationContext("RCPT", b"RCPT TO:<b\xc3\xbc>\r"), b"250 OK\r\n"
    )
    assert log.read()["syntax"].examples[0].line == "RCPT TO:<b\\xc3\\xbc>"


@given(st.sampled_from(["MAIL", "RCPT", "EHLO", "other", "."]), st.binary(max_size=200))
def test_no_line_breaks_a_report(phase: str, line: bytes) -> None:
    counters = Counters(1)
    cells = counters.cells(counters.allocate_row())
    cells[EVENT_NUMBERS.violation("syntax")] = 1
    assert counters.evidence is not None
    counters.evidence.writer(0).add("syntax", ViolationContext(phase, line), line)
    snapshot = counters.snapshot()
    assert all(text.isprintable() for text in report.report_text(snapshot).split("\n"))
    ElementTree.fromstring(report.report_junit(snapshot))
    (shown,) = snapshot.evidence["syntax"].examples
    assert len(shown.line) <= 80 and len(shown.reply) <= 80


SECRET = b"MAIL FROM:<secret@example.com>\n"


def talk(program: Program, *lines: bytes) -> None:
    with socket.create_connection(program.address, 20) as client, client.makefile("rb") as replies:
        replies.readline()
        for line in lines:
            client.sendall(line)
            while replies.readline()[3:4] == b"-":
                pass


@pytest.mark.parametrize("shows_lines", [False, True])
def test_evidence_of_a_running_server(tmp_path: Path, shows_lines: bool) -> None:
    pid = tmp_path / "pid"
    with Program(f"--pid={pid}", "--workers=2", *(["--show-lines"] if shows_lines else [])) as program:
        for _ in range(3):
            talk(program, b"HELO a.test\r\n", SECRET, SECRET)
        program.wait_until_idle()
        found = {
            one["rule"]: one for one in json.loads(run("report", f"--pid={pid}", "--json").stdout)["findings"]
        }
        bare = found["bare-lf"]
        assert (bare["counted"], bare["connections"], bare["sample"]) == (6, 3, None)
        example = bare["evidence"]["examples"][0]
        address = "secret@example.com" if shows_lines else "xxxxxx@xxxxxxx.xxx"
        assert example["line"] == f"MAIL FROM:<{address}>\\n"
        assert (example["phase"], example["reply"][:4]) == ("MAIL", "250 ")
        assert abs(example["at"] - time.time()) < 60
        left = found["no-quit"]["evidence"]["examples"][0]
        assert (left["phase"], left["line"], left["reply"]) == ("", "", "250 2.1.0 Sender OK")
        said = run("report", f"--pid={pid}").stdout
        assert f'       MAIL after "{example["reply"]}": MAIL FROM:<{address}>\\n\n' in said
        assert "       In 3 connections, first 20" in said


def test_report_says_that_nothing_was_inspected() -> None:
    with Program("--workers=1", "--inspect=off") as program:
        talk(program, b"HELO nodot\r\n", b"QUIT\r\n")
        program.wait_until_idle()
        snapshot = program.snapshot()
        assert report.findings(snapshot) == []
        assert "inspected: 0 of 1 session, 0 of 0 messages" in report.report_text(snapshot)
