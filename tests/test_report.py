"""The report on a sender: from counters, and of a running program."""

from __future__ import annotations

import json
import os
import signal
import smtplib
import socket
from pathlib import Path
from xml.etree import ElementTree

import pytest

from blackhole.metrics import report
from blackhole.metrics.counters import Counters
from blackhole.metrics.snapshot import Snapshot
from blackhole.smtp.violations import LEVELS, VIOLATIONS
from tests.engines import EVENT_NUMBERS
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
    assert {case.get("name") for case in suite if len(case)} == {"bare-lf", "nul"}


@pytest.mark.parametrize(
    ("fail_on", "failed"),
    [
        ("never", set()),
        ("must", {"bare-lf"}),
        ("should", {"bare-lf", "hello-name"}),
        ("style", {"bare-lf", "hello-name", "size-wrong"}),
    ],
)
def test_junit_fails_only_what_fail_on_counts(fail_on: str, failed: set[str]) -> None:
    snapshot = snapshot_with(bare_lf=1, hello_name=2, size_wrong=3)
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
