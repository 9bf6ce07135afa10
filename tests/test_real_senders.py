"""Real senders: which violations they commit, and that correct ones are not accused."""

from __future__ import annotations

import smtplib
from pathlib import Path

import pytest

from tests.certificates import Certificate
from tests.external_programs import output_of, path_of, requires
from tests.postfix import RECIPIENT, SENDER, Postfix, requires_postfix
from tests.program import Program, scenario_option, wait_for
from tests.test_clients import message
from tests.violation_checks import checking_program, reported_violations, violations_of


@requires("smtp-source")
@pytest.mark.parametrize("options", [(), ("-d",)], ids=["a connection each", "connections reused"])
def test_every_message_of_smtp_source_is_counted(tmp_path: Path, options: tuple[str, ...]) -> None:
    """Its only violation is HELO with the name of the machine, if that has no dot."""
    pid = tmp_path / "pid"
    with Program(f"--pid={pid}", "--workers=2") as program:
        target = f"inet:{program.address[0]}:{program.address[1]}"
        output_of(path_of("smtp-source"), "-s", "10", "-m", "500", "-l", "3000", "-r", "3", *options, target)
        assert set(reported_violations(program, pid)) <= {"hello-name"}
        snapshot = program.snapshot()
        assert dict(snapshot.messages) == {"accepted": 500, "deferred": 0, "rejected": 0}
        assert snapshot.recipients == 1500
        assert snapshot.commands["QUIT"] == sum(snapshot.connections.values())
        assert snapshot.commands["DATA"] == snapshot.commands["MAIL"] == 500
        wait_for(lambda: program.snapshot().histograms["message_bytes"].count == 500, "the sizes")
        sizes = program.snapshot().histograms["message_bytes"]
        assert 500 * 2900 < sizes.sum < 500 * 3400
        times = program.snapshot().histograms
        # Sampled: some of the 3,500 turns, and never so many that it would cost something.
        assert 0 < times["service_seconds"].count < 1500
        assert 0 < times["client_think_seconds"].count < 1500


def test_smtplib_commits_no_violation(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    with Program(f"--pid={pid}") as program:
        with smtplib.SMTP(*program.address, local_hostname="client.example.com", timeout=20) as client:
            for body in ("Hello\n.\n..\nGoodbye\n", "", 100 * "x" * 70 + "\n"):
                assert client.send_message(message(body)) == {}
        assert reported_violations(program, pid) == []
        assert program.snapshot().messages["accepted"] == 3


def test_smtplib_sends_8bit_text_without_declaring_it(tmp_path: Path) -> None:
    """send_message() sends 8-bit text without BODY=8BITMIME."""
    pid = tmp_path / "pid"
    with Program(f"--pid={pid}") as program:
        with smtplib.SMTP(*program.address, local_hostname="client.example.com", timeout=20) as client:
            client.send_message(message("Grüße\n"))
        assert reported_violations(program, pid) == ["8bit-undeclared"]


def test_smtplib_does_not_convert_line_endings_of_bytes(tmp_path: Path) -> None:
    """It converts line endings of str, not of bytes."""
    pid = tmp_path / "pid"
    with Program(f"--pid={pid}") as program:
        with smtplib.SMTP(*program.address, local_hostname="client.example.com", timeout=20) as client:
            client.sendmail(SENDER, [RECIPIENT], "Subject: text\n\nHello\n")
        assert reported_violations(program, pid) == []
        with smtplib.SMTP(*program.address, local_hostname="client.example.com", timeout=20) as client:
            client.sendmail(SENDER, [RECIPIENT], b"Subject: bytes\n\nHello\n")
        assert reported_violations(program, pid) == ["bare-lf"]


@requires("swaks")
@pytest.mark.parametrize(
    "how", [(), ("--pipeline",), ("--protocol", "SMTP")], ids=["plain", "pipeline", "helo"]
)
def test_swaks_commits_no_violation(tmp_path: Path, how: tuple[str, ...]) -> None:
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
        assert reported_violations(program, pid) == []


PLAIN_AND_STARTTLS = pytest.mark.parametrize("tls", [False, True], ids=["plain", "starttls"])

TEXT = f"From: {SENDER}\nTo: {RECIPIENT}\nSubject: a test\n\nHello\n.\n..\n.x\nGoodbye\n"


@requires("msmtp")
@PLAIN_AND_STARTTLS
def test_msmtp_commits_no_violation_unless_its_name_has_no_dot(certificate: Certificate, tls: bool) -> None:
    command = [path_of("msmtp"), f"--from={SENDER}", "--domain=client.test", "--host=127.0.0.1"]
    command += ["--tls=on", f"--tls-trust-file={certificate.ca}"] if tls else ["--tls=off"]
    with checking_program(certificate) as program:
        output_of(*command, f"--port={program.port}", RECIPIENT, "carol@example.com", text=TEXT)
        assert violations_of(program) == []
        snapshot = program.snapshot()
        assert (snapshot.messages["accepted"], snapshot.recipients) == (1, 2)
        output_of(*command, f"--port={program.port}", "--domain=localhost", RECIPIENT, text=TEXT)
        assert violations_of(program) == ["hello-name"]


@requires("curl")
@PLAIN_AND_STARTTLS
def test_curl_commits_no_violation_if_it_converts_line_endings(
    tmp_path: Path, certificate: Certificate, tls: bool
) -> None:
    """Without --crlf it sends a file unchanged, with LF; it stuffs dots in any case."""
    mail = tmp_path / "mail"
    mail.write_text(TEXT)
    command = [path_of("curl"), "-sS", f"--mail-from={SENDER}", f"--mail-rcpt={RECIPIENT}", "-T", str(mail)]
    command = [part for one in command for part in (one.split("=") if one.startswith("--") else [one])]
    command += ["--ssl-reqd", "--cacert", certificate.ca] if tls else []
    with checking_program(certificate) as program:
        url = f"smtp://127.0.0.1:{program.port}/client.test"
        output_of(*command, "--crlf", url)
        assert violations_of(program) == []
        output_of(*command, url)
        assert violations_of(program) == ["bare-lf"]


@requires("curl")
def test_curl_declares_a_size_that_ignores_converted_line_endings(
    tmp_path: Path, certificate: Certificate
) -> None:
    """It counts before --crlf converts; the difference exceeds the tolerance when lines are short."""
    mail = tmp_path / "mail"
    mail.write_text(TEXT + "\n" * 4000)
    with checking_program(certificate) as program:
        url = f"smtp://127.0.0.1:{program.port}/client.test"
        options = ("--mail-from", SENDER, "--mail-rcpt", RECIPIENT, "--crlf", "-T", str(mail))
        output_of(path_of("curl"), "-sS", *options, url)
        assert violations_of(program) == ["size-wrong"]


def test_a_declared_size_may_ignore_stuffed_dots(certificate: Certificate) -> None:
    with checking_program(certificate) as program:
        with smtplib.SMTP(*program.address, local_hostname="client.test", timeout=20) as client:
            client.sendmail(SENDER, [RECIPIENT], "Subject: dots\r\n\r\n" + ".\r\n" * 3000)
        assert violations_of(program) == []


@requires("swaks")
def test_swaks_commits_no_violation_over_tls(certificate: Certificate) -> None:
    with checking_program(certificate) as program:
        server = ("--server=127.0.0.1", f"--port={program.port}", f"--from={SENDER}", f"--to={RECIPIENT}")
        output_of(path_of("swaks"), *server, "--helo=client.test", "--tls", "--pipeline")
        assert violations_of(program) == []


@requires_postfix
@PLAIN_AND_STARTTLS
def test_postfix_commits_no_violation(
    tmp_path: Path, certificate: Certificate, postfix_folder: Path, tls: bool
) -> None:
    """Including refused recipients, which it pipelines with DATA."""
    ca = postfix_folder / "ca.pem"
    ca.write_bytes(Path(certificate.ca).read_bytes())
    refusal = scenario_option(
        tmp_path, "[[rule]]\nphase = 'RCPT'\nrecipient = 'nobody*'\nreply = '550 5.1.1 Nobody'\n"
    )
    keeps = "" if tls else "smtp_connection_cache_on_demand = no\n"
    mime = "MIME-Version: 1.0\nContent-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: 8bit\n"
    with (
        checking_program(certificate, refusal) as program,
        Postfix(postfix_folder, program.address, "secure" if tls else "none", str(ca), keeps) as postfix,
    ):
        postfix.send(TEXT, RECIPIENT, "carol@example.com")
        postfix.send(f"{mime}Subject: 8 bit\n\nGr\xfc\xdfe\n", RECIPIENT)
        postfix.send("Subject: large\n\n" + "0123456789\n" * 20000, RECIPIENT)
        postfix.send("Subject: dots\n\n" + ".\n" * 3000, RECIPIENT)
        postfix.send("Subject: long\n\n" + "x" * 3000 + "\n", RECIPIENT)
        postfix.send(TEXT, "nobody@example.com")
        # The bounce of the refused recipient is delivered to this server too.
        wait_for(lambda: len(postfix.delivery_results()) >= 8, "Postfix has tried every delivery")
        assert violations_of(program) == []
        snapshot = program.snapshot()
        assert (snapshot.messages["accepted"], snapshot.replies["RCPT", 550]) == (6, 1)


@requires_postfix
def test_postfix_closes_cached_connections_without_quit(
    certificate: Certificate, postfix_folder: Path
) -> None:
    """scache(8), which holds a connection until its time limit, sends no QUIT."""
    keeps = "smtp_connection_cache_destinations = static:all\nsmtp_connection_cache_time_limit = 1s\n"
    with (
        checking_program(certificate) as program,
        Postfix(postfix_folder, program.address, more=keeps) as postfix,
    ):
        postfix.send(TEXT, RECIPIENT)
        wait_for(lambda: postfix.has_delivered(1), "Postfix has delivered the message")
        assert violations_of(program) == ["no-quit"]
