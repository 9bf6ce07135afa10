"""The verdict on a sender, from figures and from the real program; senders that are right are not accused."""

from __future__ import annotations

import json
import os
import signal
import smtplib
import socket
import subprocess
from contextlib import suppress
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import pytest
from conftest import Certificate
from engines import EVENT_NUMBERS
from external_programs import output_of, path_of, requires
from postfix import RECIPIENT, SENDER, Postfix, requires_postfix
from program import (
    MODULE,
    Program,
    alive,
    children,
    environment,
    run,
    scenario_option,
    state,
    title,
    wait_for,
)
from test_clients import message

from blackhole.metrics import report
from blackhole.metrics.counters import Counters
from blackhole.metrics.snapshot import Snapshot
from blackhole.smtp.violations import LEVELS, VIOLATIONS

"""A fixture; pytest takes it from here."""


def figures(**violations: int) -> Snapshot:
    stats = Counters(1)
    cells = stats.cells(stats.allocate_row())
    for rule, count in violations.items():
        cells[EVENT_NUMBERS.violation(rule.replace("_", "-"))] = count
    return stats.snapshot()


def test_the_gravest_stands_first() -> None:
    found = report.findings(figures(hello_name=9, bare_lf=2, no_quit=5, talk_after_421=99))
    assert [one.rule.name for one in found] == ["no-quit", "bare-lf", "hello-name", "talk-after-421"]


@pytest.mark.parametrize(
    ("rule", "fails"),
    [("bare_lf", "must should style"), ("hello_name", "should style"), ("talk_after_421", "style")],
)
def test_a_level_counts_those_above_it(rule: str, fails: str) -> None:
    seen = figures(**{rule: 1})
    assert [level for level in ("never", *LEVELS) if report.fails(seen, level)] == fails.split()


def test_the_text_says_what_where_and_what_to_do() -> None:
    said = report.as_text(figures(bare_lf=2))
    assert "MUST   bare-lf: ended a line with LF alone, 2 times\n" in said
    assert "RFC 5321 2.3.8. Lines end with CR LF" in said
    assert "No violations were found." in report.as_text(figures())


def test_junit_has_a_case_for_each_rule() -> None:
    suite = ElementTree.fromstring(report.as_junit(figures(bare_lf=2, nul=1)))
    assert (suite.get("tests"), suite.get("failures")) == (str(len(VIOLATIONS)), "2")
    assert {case.get("name") for case in suite if len(case)} == {"bare-lf", "nul"}


def test_a_rule_is_well_formed() -> None:
    assert len({rule.name for rule in VIOLATIONS}) == len(VIOLATIONS)
    for rule in VIOLATIONS:
        assert rule.level in LEVELS
        assert rule.meaning[0].islower()
        assert not (rule.meaning + rule.hint).endswith(".")


# The real program


def broken(program: Program) -> list[str]:
    """The rules that were broken so far, once every client is gone."""
    wait_for(lambda: Counters.of(program.pid).snapshot().open == 0, "all have left")
    return [one.rule.name for one in report.findings(Counters.of(program.pid).snapshot())]


def verdict(program: Program, pid: Path) -> list[str]:
    """The same, as the program tells it."""
    wait_for(lambda: Counters.of(program.pid).snapshot().open == 0, "all have left")
    done = run("report", f"--pid={pid}", "--format=json")
    assert done.returncode == 0, done.stderr
    return [one["rule"] for one in json.loads(done.stdout)["findings"]]


def test_a_report_of_a_running_server(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    with Program(f"--pid={pid}", "--workers=2") as program:
        assert verdict(program, pid) == []
        assert run("report", f"--pid={pid}", "--fail_on=must").returncode == 0
        with socket.create_connection(program.address, 20) as client:
            client.recv(4096)
            client.sendall(b"MAIL FROM:<ann@example.com>\n")
            client.recv(4096)
        assert sorted(verdict(program, pid)) == ["bare-lf", "no-hello", "no-quit"]
        done = run("report", f"--pid={pid}", "--fail_on=must")
        assert (done.returncode, "MUST   bare-lf" in done.stdout) == (1, True)
        ElementTree.fromstring(run("report", f"--pid={pid}", "--format=junit").stdout)
        told = json.loads(run("status", f"--pid={pid}", "--json").stdout)
        assert (told["pid"], told["connections"]["total"]) == (program.pid, 1)
        assert "worker 2: pid" in run("status", f"--pid={pid}").stdout
    gone = run("report", f"--pid={pid}")
    assert (gone.returncode, "not running" in gone.stderr) == (7, True)


def hasty(program: Program) -> socket.socket:
    """A client that waits for nothing."""
    client = socket.create_connection(program.address, 20)
    client.sendall(b"EHLO client.example.com\r\n")
    return client


def unseen(program: Program) -> socket.socket:
    """One that has talked before the worker could see it."""
    (worker,) = program.workers()
    os.kill(worker, signal.SIGSTOP)
    wait_for(lambda: state(worker) == "T", "it has stopped")
    try:
        return hasty(program)
    finally:
        os.kill(worker, signal.SIGCONT)


@pytest.mark.parametrize("delayed", [False, True], ids=["before it is seen", "while the greeting is late"])
def test_who_talks_before_the_greeting_is_told_of(tmp_path: Path, delayed: bool) -> None:
    slow = [scenario_option(tmp_path, "[[rule]]\nphase = 'CONNECT'\ndelay = 0.5\n")] if delayed else []
    with Program("--workers=1", *slow) as program:
        with (hasty if delayed else unseen)(program) as client, client.makefile("rb") as heard:
            assert heard.readline().startswith(b"220 ")
            while heard.readline().startswith(b"250-"):
                pass
            client.sendall(b"QUIT\r\n")
            assert heard.read().endswith(b"Goodbye\r\n")
        assert broken(program) == ["early-talk"]


@pytest.mark.parametrize("delayed", [False, True], ids=["before it is seen", "while the greeting is late"])
def test_strictly_who_talks_before_the_greeting_is_sent_away(tmp_path: Path, delayed: bool) -> None:
    slow = [scenario_option(tmp_path, "[[rule]]\nphase = 'CONNECT'\ndelay = 0.5\n")] if delayed else []
    with Program("--workers=1", "--strict", *slow) as program:
        for _ in range(20):  # each is looked at, not only one in sixteen
            with (hasty if delayed else unseen)(program) as client, client.makefile("rb") as heard:
                assert heard.read() == b"554 5.5.0 Talked before its turn, closing\r\n"
            if delayed:
                break
        assert set(broken(program)) == {"early-talk"}


def test_who_leaves_in_the_middle_of_a_message_is_told_of() -> None:
    with Program("--workers=1") as program:
        client = smtplib.SMTP(*program.address, local_hostname="client.example.com", timeout=20)
        client.ehlo()
        client.mail(SENDER)
        client.rcpt(RECIPIENT)
        assert client.docmd("DATA")[0] == 354
        client.send(b"Subject: a test\r\n\r\nHel")
        client.close()
        assert broken(program) == ["hung-up-in-body"]
        assert sum(Counters.of(program.pid).snapshot().messages.values()) == 0


def watching(pid: Path) -> subprocess.Popen[str]:
    """`blackhole top`."""
    return subprocess.Popen(
        [*MODULE, "top", f"--pid={pid}"],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_top_shows_a_line_a_second_until_the_end(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    with Program(f"--pid={pid}") as program:
        with watching(pid) as top:
            assert top.stdout is not None
            assert "messages/s" in top.stdout.readline()
            assert "open" in top.stdout.readline()
            top.send_signal(signal.SIGINT)
            assert top.wait(20) == 0
        assert program.stop() == 0


def test_top_ends_with_the_server(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    with Program(f"--pid={pid}") as program, watching(pid) as top:
        assert top.stdout is not None and top.stderr is not None
        assert "messages/s" in top.stdout.readline()
        assert program.stop() == 0
        assert top.wait(20) == os.EX_UNAVAILABLE
        assert top.stderr.read() == f"blackhole: pid {program.pid} has ended\n"


def test_top_ends_when_nobody_reads_it(tmp_path: Path) -> None:
    """As `blackhole top | head -1` does."""
    pid = tmp_path / "pid"
    with Program(f"--pid={pid}"), watching(pid) as top:
        assert top.stdout is not None and top.stderr is not None
        assert "messages/s" in top.stdout.readline()
        top.stdout.close()
        assert (top.wait(20), top.stderr.read()) == (0, "")


def test_progress_in_the_foreground() -> None:
    with Program("--progress") as program:
        wait_for(lambda: "messages/s" in program.output(), "a line")
        assert "blackhole: progress" in [title(child) for child in children(program.pid)]
        assert program.stop() == 0


def test_progress_ends_with_a_master_that_was_killed() -> None:
    with Program("--progress") as program:
        (telling,) = [child for child in children(program.pid) if title(child) == "blackhole: progress"]
        wait_for(lambda: "messages/s" in program.output(), "a line")
        os.kill(program.pid, signal.SIGKILL)
        wait_for(lambda: not alive(telling), "it is gone")


# Senders that nobody here wrote


@requires("smtp-source")
@pytest.mark.parametrize("options", [(), ("-d",)], ids=["a connection each", "connections reused"])
def test_smtp_source_is_counted_to_the_message(tmp_path: Path, options: tuple[str, ...]) -> None:
    """HELO with the bare name of the machine is all that is wrong with it, where that has no dot."""
    pid = tmp_path / "pid"
    with Program(f"--pid={pid}", "--workers=2") as program:
        target = f"inet:{program.address[0]}:{program.address[1]}"
        output_of(path_of("smtp-source"), "-s", "10", "-m", "500", "-l", "3000", "-r", "3", *options, target)
        assert set(verdict(program, pid)) <= {"hello-name"}
        seen = Counters.of(program.pid).snapshot()
        assert dict(seen.messages) == {"accepted": 500, "deferred": 0, "rejected": 0}
        assert seen.recipients == 1500
        assert seen.commands["QUIT"] == sum(seen.connections.values())
        assert seen.commands["DATA"] == seen.commands["MAIL"] == 500
        wait_for(
            lambda: Counters.of(program.pid).snapshot().histograms["message_bytes"].count == 500, "the sizes"
        )
        sizes = Counters.of(program.pid).snapshot().histograms["message_bytes"]
        assert 500 * 2900 < sizes.sum < 500 * 3400
        times = Counters.of(program.pid).snapshot().histograms
        # Sampled: some of the 3,500 turns, and never so many that it would cost something.
        assert 0 < times["service_seconds"].count < 1500
        assert 0 < times["client_think_seconds"].count < 1500


def test_smtplib_is_right(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    with Program(f"--pid={pid}") as program:
        with smtplib.SMTP(*program.address, local_hostname="client.example.com", timeout=20) as client:
            for body in ("Hello\n.\n..\nGoodbye\n", "", 100 * "x" * 70 + "\n"):
                assert client.send_message(message(body)) == {}
        assert verdict(program, pid) == []
        assert Counters.of(program.pid).snapshot().messages["accepted"] == 3


def test_smtplib_says_nothing_of_8_bit(tmp_path: Path) -> None:
    """send_message() leaves text in 8 bit, and does not say BODY=8BITMIME."""
    pid = tmp_path / "pid"
    with Program(f"--pid={pid}") as program:
        with smtplib.SMTP(*program.address, local_hostname="client.example.com", timeout=20) as client:
            client.send_message(message("Grüße\n"))
        assert verdict(program, pid) == ["8bit-undeclared"]


def test_smtplib_sends_octets_as_they_are(tmp_path: Path) -> None:
    """Of text it converts the ends of lines, of bytes it does not."""
    pid = tmp_path / "pid"
    with Program(f"--pid={pid}") as program:
        with smtplib.SMTP(*program.address, local_hostname="client.example.com", timeout=20) as client:
            client.sendmail(SENDER, [RECIPIENT], "Subject: text\n\nHello\n")
        assert verdict(program, pid) == []
        with smtplib.SMTP(*program.address, local_hostname="client.example.com", timeout=20) as client:
            client.sendmail(SENDER, [RECIPIENT], b"Subject: bytes\n\nHello\n")
        assert verdict(program, pid) == ["bare-lf"]


@requires("swaks")
@pytest.mark.parametrize(
    "how", [(), ("--pipeline",), ("--protocol", "SMTP")], ids=["plain", "pipeline", "helo"]
)
def test_swaks_is_right(tmp_path: Path, how: tuple[str, ...]) -> None:
    pid = tmp_path / "pid"
    with Program(f"--pid={pid}") as program:
        output_of(
            path_of("swaks"),
            f"--server={program.address[0]}",
            f"--port={program.address[1]}",
            "--from=ann@example.com",
            "--to=bob@example.com,carol@example.com",
            "--helo=client.example.com",
            "--body=Hello\\n.\\nGoodbye",
            *how,
        )
        assert verdict(program, pid) == []


def sink(certificate: Certificate, *options: str) -> Program:
    """The program with one worker, which looks at the first 16 sessions; under TLS for who asks."""
    secure = (f"--ssl_cert={certificate.cert}", f"--ssl_key={certificate.key}")
    return Program("--workers=1", "--hostname=mx.test", *secure, *options)


IN_THE_CLEAR_AND_NOT = pytest.mark.parametrize("tls", [False, True], ids=["plain", "starttls"])

TEXT = f"From: {SENDER}\nTo: {RECIPIENT}\nSubject: a test\n\nHello\n.\n..\n.x\nGoodbye\n"


@requires("msmtp")
@IN_THE_CLEAR_AND_NOT
def test_msmtp_is_right(certificate: Certificate, tls: bool) -> None:
    command = [path_of("msmtp"), f"--from={SENDER}", "--domain=client.test", "--host=127.0.0.1"]
    command += ["--tls=on", f"--tls-trust-file={certificate.ca}"] if tls else ["--tls=off"]
    with sink(certificate) as program:
        output_of(*command, f"--port={program.port}", RECIPIENT, "carol@example.com", text=TEXT)
        assert broken(program) == []
        seen = Counters.of(program.pid).snapshot()
        assert (seen.messages["accepted"], seen.recipients) == (1, 2)
        output_of(*command, f"--port={program.port}", "--domain=localhost", RECIPIENT, text=TEXT)
        assert broken(program) == ["hello-name"]


@requires("curl")
@IN_THE_CLEAR_AND_NOT
def test_curl_is_right_when_it_converts_the_ends_of_lines(
    tmp_path: Path, certificate: Certificate, tls: bool
) -> None:
    """It sends a file as it is, LF and all, unless it is told otherwise; dots it doubles in any case."""
    mail = tmp_path / "mail"
    mail.write_text(TEXT)
    command = [path_of("curl"), "-sS", f"--mail-from={SENDER}", f"--mail-rcpt={RECIPIENT}", "-T", str(mail)]
    command = [part for one in command for part in (one.split("=") if one.startswith("--") else [one])]
    command += ["--ssl-reqd", "--cacert", certificate.ca] if tls else []
    with sink(certificate) as program:
        url = f"smtp://127.0.0.1:{program.port}/client.test"
        output_of(*command, "--crlf", url)
        assert broken(program) == []
        output_of(*command, url)
        assert broken(program) == ["bare-lf"]


@requires("curl")
def test_curl_declares_a_size_without_the_ends_of_lines(tmp_path: Path, certificate: Certificate) -> None:
    """--crlf comes after it has counted; it shows where lines are short."""
    mail = tmp_path / "mail"
    mail.write_text(TEXT + "\n" * 2000)
    with sink(certificate) as program:
        url = f"smtp://127.0.0.1:{program.port}/client.test"
        options = ("--mail-from", SENDER, "--mail-rcpt", RECIPIENT, "--crlf", "-T", str(mail))
        output_of(path_of("curl"), "-sS", *options, url)
        assert broken(program) == ["size-wrong"]


def test_a_size_need_not_count_doubled_dots(certificate: Certificate) -> None:
    with sink(certificate) as program:
        with smtplib.SMTP(*program.address, local_hostname="client.test", timeout=20) as client:
            client.sendmail(SENDER, [RECIPIENT], "Subject: dots\r\n\r\n" + ".\r\n" * 3000)
        assert broken(program) == []


@requires("swaks")
def test_swaks_is_right_under_tls(certificate: Certificate) -> None:
    with sink(certificate) as program:
        server = ("--server=127.0.0.1", f"--port={program.port}", f"--from={SENDER}", f"--to={RECIPIENT}")
        output_of(path_of("swaks"), *server, "--helo=client.test", "--tls", "--pipeline")
        assert broken(program) == []


@requires_postfix
@IN_THE_CLEAR_AND_NOT
def test_postfix_is_right(tmp_path: Path, certificate: Certificate, postfix_folder: Path, tls: bool) -> None:
    """With recipients that are refused too, which it sends together with DATA."""
    ca = postfix_folder / "ca.pem"
    ca.write_bytes(Path(certificate.ca).read_bytes())
    refusal = scenario_option(
        tmp_path, "[[rule]]\nphase = 'RCPT'\nrecipient = 'nobody*'\nreply = '550 5.1.1 Nobody'\n"
    )
    keeps = "" if tls else "smtp_connection_cache_on_demand = no\n"
    mime = "MIME-Version: 1.0\nContent-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: 8bit\n"
    with (
        sink(certificate, refusal) as program,
        Postfix(postfix_folder, program.address, "secure" if tls else "none", str(ca), keeps) as postfix,
    ):
        postfix.send(TEXT, RECIPIENT, "carol@example.com")
        postfix.send(f"{mime}Subject: 8 bit\n\nGr\xfc\xdfe\n", RECIPIENT)
        postfix.send("Subject: large\n\n" + "0123456789\n" * 20000, RECIPIENT)
        postfix.send("Subject: dots\n\n" + ".\n" * 3000, RECIPIENT)
        postfix.send("Subject: long\n\n" + "x" * 3000 + "\n", RECIPIENT)
        postfix.send(TEXT, "nobody@example.com")
        # What was refused comes back to the sender, whose server this is too.
        wait_for(lambda: len(postfix.delivery_results()) >= 8, "Postfix has tried to deliver all")
        assert broken(program) == []
        seen = Counters.of(program.pid).snapshot()
        assert (seen.messages["accepted"], seen.replies["RCPT", 550]) == (6, 1)


@requires_postfix
def test_postfix_leaves_without_quit_what_it_has_kept_for_later(
    certificate: Certificate, postfix_folder: Path
) -> None:
    """Its scache(8), which holds the connection until its time is up, speaks no SMTP."""
    keeps = "smtp_connection_cache_destinations = static:all\nsmtp_connection_cache_time_limit = 1s\n"
    with (
        sink(certificate) as program,
        Postfix(postfix_folder, program.address, more=keeps) as postfix,
    ):
        postfix.send(TEXT, RECIPIENT)
        wait_for(lambda: postfix.has_delivered(1), "Postfix has delivered it")
        assert broken(program) == ["no-quit"]


# Exactness


@requires("smtp-source")
def test_a_reload_under_load_loses_no_message() -> None:
    """smtp-source fails if a single reply is no success; it sends until all workers are others."""
    source, told = path_of("smtp-source"), 0
    with Program("--workers=2") as program:
        old = set(program.workers())
        target = f"inet:{program.address[0]}:{program.address[1]}"
        for reloads in (1, 2):
            os.kill(program.pid, signal.SIGHUP)
            while program.output().count("reloaded: ") < reloads or old.intersection(program.workers()):
                output_of(source, "-s", "10", "-m", "100", "-l", "500", target)
                told += 100
            old = set(program.workers())
        output_of(source, "-s", "10", "-m", "100", "-l", "500", target)
        seen = Counters.of(program.pid).snapshot()
        assert dict(seen.messages) == {"accepted": told + 100, "deferred": 0, "rejected": 0}


def test_messages_under_tls_are_counted_one_by_one(certificate: Certificate) -> None:
    """Over a reload too, whose old worker may send a client away behind a message, and not before."""
    told, sessions = 0, 6
    with sink(certificate) as program:
        for number in range(sessions):
            client = smtplib.SMTP(*program.address, local_hostname="client.test", timeout=20)
            client.starttls(context=certificate.client)
            with suppress(smtplib.SMTPException):
                for turn in range(20):
                    client.sendmail(SENDER, [RECIPIENT], "Hello\r\n")
                    told += 1
                    if (number, turn) == (2, 10):
                        os.kill(program.pid, signal.SIGHUP)
                        wait_for(lambda: "reloaded: " in program.output(), "the reload")
                client.quit()
            client.close()
        wait_for(lambda: Counters.of(program.pid).snapshot().open == 0, "all have left")
        seen = Counters.of(program.pid).snapshot()
        assert seen.messages["accepted"] == told >= 20 * (sessions - 1) + 11
        assert seen.total("tls_ok") == sessions


def succeeded(program: Program, victim: int) -> bool:
    workers = program.workers()
    return len(workers) == 2 and victim not in workers


def test_killed_workers_lose_no_message(tmp_path: Path) -> None:
    """What the sender was told is what is counted, though workers are killed while it sends."""
    told = 0
    with Program("--workers=2", f"--pid={tmp_path / 'pid'}") as program:
        for _ in range(6):
            client = smtplib.SMTP(*program.address, local_hostname="client.example.com", timeout=20)
            for _number in range(20):
                client.sendmail("ann@example.com", ["bob@example.com"], "Hello\r\n")
                told += 1
            victim = next(
                worker.pid
                for worker in Counters.of(program.pid).snapshot().workers
                if worker.open and "worker" in worker.title
            )
            os.kill(victim, signal.SIGKILL)
            client.close()
            wait_for(partial(succeeded, program, victim), "a successor")
        assert Counters.of(program.pid).snapshot().messages["accepted"] == told == 120
