"""Deliveries to the real program by clients of other projects: smtplib, swaks, smtp-source and Postfix."""

from __future__ import annotations

import re
import smtplib
import time
from collections.abc import Iterator
from email.message import EmailMessage
from pathlib import Path

import pytest

from tests.certificates import Certificate
from tests.external_programs import output_of, path_of, requires
from tests.postfix import QUICK_RETRIES, RECIPIENT, SENDER, Postfix, requires_postfix
from tests.program import Program, free_port, scenario_option, wait_for

QUEUED = re.compile(r"250 2\.0\.0 OK: queued as [0-9A-F]{10}")


class TLSProgram(Program):
    """The program with a certificate, and a port with implicit TLS at `tls_address`."""

    def __init__(self, certificate: Certificate) -> None:
        self.tls_address = ("127.0.0.1", free_port())
        super().__init__(
            "--hostname=mx.test",
            f"--ssl_cert={certificate.cert}",
            f"--ssl_key={certificate.key}",
            f"--ssl_port={self.tls_address[1]}",
        )


@pytest.fixture(scope="module")
def program(certificate: Certificate) -> Iterator[TLSProgram]:
    with TLSProgram(certificate) as program:
        yield program
        assert program.stop() == 0, program.output()
        assert "Traceback" not in program.output()


# smtplib


def message(body: str = "Hello\n.\n..\nGoodbye\n") -> EmailMessage:
    """Return a message from SENDER to RECIPIENT."""
    made = EmailMessage()
    made["From"], made["To"], made["Subject"] = SENDER, RECIPIENT, "A test"
    made.set_content(body)
    return made


def test_smtplib_delivers_messages_and_uses_the_other_commands(program: TLSProgram) -> None:
    with smtplib.SMTP(*program.address, timeout=20) as client:
        assert client.send_message(message()) == {}
        assert client.send_message(message("")) == {}
        assert client.has_extn("size")
        assert client.verify(RECIPIENT)[0] == 252
        assert client.rset()[0] == 250
        assert client.noop()[0] == 250
        assert b"QUIT" in client.help()


def test_smtplib_delivers_to_500_recipients(program: TLSProgram) -> None:
    with smtplib.SMTP(*program.address, timeout=20) as client:
        recipients = [f"bob{number}@example.com" for number in range(500)]
        assert client.sendmail(SENDER, recipients, "Subject: a test\r\n\r\nHello\r\n") == {}


def test_smtplib_delivers_after_starttls(program: TLSProgram, certificate: Certificate) -> None:
    with smtplib.SMTP(*program.address, timeout=20) as client:
        client.ehlo()
        assert client.has_extn("starttls")
        client.starttls(context=certificate.client)
        client.ehlo()
        assert not client.has_extn("starttls")
        assert client.send_message(message()) == {}


def test_smtplib_delivers_over_implicit_tls(program: TLSProgram, certificate: Certificate) -> None:
    with smtplib.SMTP_SSL(*program.tls_address, timeout=20, context=certificate.client) as client:
        client.ehlo()
        assert not client.has_extn("starttls")
        assert client.send_message(message()) == {}


def test_smtplib_delivers_to_an_internationalized_address(program: TLSProgram) -> None:
    made = message("Grüße\n")
    made.replace_header("To", "用户@例え.jp")
    with smtplib.SMTP(*program.address, timeout=20) as client:
        assert client.send_message(made) == {}


def test_smtplib_delivers_with_the_null_reverse_path(program: TLSProgram) -> None:
    with smtplib.SMTP(*program.address, timeout=20) as client:
        assert client.sendmail("", [RECIPIENT], "Subject: a bounce\r\n\r\n") == {}


def test_smtplib_delivers_8_mib_with_dots_to_stuff(program: TLSProgram, certificate: Certificate) -> None:
    """The message is sent in the clear and under TLS."""
    body = "0123456789012345678901234567890123456789012345678901234567890123456789\r\n.\r\n" * (
        8 * 2**20 // 75
    )
    with smtplib.SMTP(*program.address, timeout=60) as client:
        assert client.sendmail(SENDER, [RECIPIENT], body) == {}
        client.starttls(context=certificate.client)
        assert client.sendmail(SENDER, [RECIPIENT], body) == {}


def test_message_over_the_size_limit_is_refused_at_mail_or_at_its_end() -> None:
    """smtplib declares the size at MAIL; a client that does not is refused after the end of the message."""
    with Program("--message_size_limit=100000") as program:
        with smtplib.SMTP(*program.address, timeout=20) as client:
            body = "x" * 78 + "\r\n"
            with pytest.raises(smtplib.SMTPSenderRefused) as refused:
                client.sendmail(SENDER, [RECIPIENT], body * 1251)
            assert refused.value.smtp_code == 552
            client.mail(SENDER)
            client.rcpt(RECIPIENT)
            assert client.data(body * 1251)[0] == 552
            assert client.sendmail(SENDER, [RECIPIENT], body * 1250) == {}
        assert program.stop() == 0


# swaks


@requires("swaks")
@pytest.mark.parametrize(
    "options",
    [(), ("--pipeline",), ("--tls",), ("--tls", "--pipeline"), ("--tlsc",), ("--protocol", "SMTP")],
    ids=["plain", "pipelining", "starttls", "starttls pipelining", "implicit tls", "helo"],
)
def test_swaks_delivers_a_message(program: TLSProgram, options: tuple[str, ...]) -> None:
    address = program.tls_address if "--tlsc" in options else program.address
    output = output_of(
        path_of("swaks"),
        f"--server={address[0]}",
        f"--port={address[1]}",
        f"--from={SENDER}",
        f"--to={RECIPIENT},carol@example.com",
        "--body=Hello\\n.\\nGoodbye",
        "--timeout=20",
        *options,
    )
    assert QUEUED.search(output)
    assert "221 2.0.0" in output
    # swaks marks unexpected replies with asterisks: "<** 500 ..."
    assert "**" not in output
    assert ("=== TLS started" in output) is bool({"--tls", "--tlsc"}.intersection(options))


# smtp-source


@requires("smtp-source")
@pytest.mark.parametrize("reuse", [(), ("-d",)], ids=["a connection each", "connections reused"])
def test_smtp_source_delivers_500_messages_over_50_sessions(
    program: TLSProgram, reuse: tuple[str, ...]
) -> None:
    """smtp-source fails if a single reply is not a success."""
    host, port = program.address
    options = ("-s", "50", "-m", "500", "-l", "4096", "-r", "3", "-f", SENDER, "-t", RECIPIENT)
    output = output_of(path_of("smtp-source"), "-c", *options, *reuse, f"inet:{host}:{port}")
    assert output.split()[-1] == "500"


# Postfix


@requires_postfix
@pytest.mark.parametrize("tls", ["none", "secure"])
def test_postfix_delivers_its_queue_without_a_deferral(
    program: TLSProgram, certificate: Certificate, postfix_folder: Path, tls: str
) -> None:
    ca = postfix_folder / "ca.pem"
    ca.write_bytes(Path(certificate.ca).read_bytes())
    with Postfix(postfix_folder, program.address, tls, str(ca)) as postfix:
        for number in range(10):
            postfix.send(f"Subject: {number}\n\nHello\n.\n..\n\n", RECIPIENT, f"bob{number}@example.com")
        postfix.send("Subject: large\n\n" + "0123456789\n" * 100000, RECIPIENT)
        postfix.send("Subject: no sender\n\n", "-f", "<>", RECIPIENT)
        wait_for(lambda: len(postfix.delivery_results()) >= 22, "Postfix has tried every delivery", 60)
        results = postfix.delivery_results()
        assert [one for one in results if not one.startswith("status=sent") or not QUEUED.search(one)] == []
        wait_for(lambda: postfix.queue() == "Mail queue is empty", "the queue of Postfix is empty", 60)
    assert len(postfix.delivery_results()) == 22
    assert ("Verified TLS connection established" in postfix.log.read_text()) is (tls == "secure")


@requires_postfix
def test_postfix_retries_after_greylisting(postfix_folder: Path) -> None:
    greylist = scenario_option(postfix_folder, "[[rule]]\ngreylist = { min = '2s', max = '1h' }\n")
    with (
        Program(greylist) as program,
        Postfix(postfix_folder, program.address, more=QUICK_RETRIES) as postfix,
    ):
        for number in range(3):
            postfix.send("Subject: a test\n\n", f"bob{number}@example.com")
        wait_for(lambda: postfix.has_delivered(3), "Postfix has delivered three messages", 60)
        results = postfix.delivery_results()
        assert all("450 4.7.1 Greylisted" in one for one in results if "deferred" in one), results
        assert len([one for one in results if "deferred" in one]) >= 3
        # Now the triplet of bob0 has passed the greylist.
        postfix.send("Subject: another\n\n", "bob0@example.com")
        wait_for(lambda: postfix.has_delivered(4), "Postfix has delivered another message", 60)
        assert len(postfix.delivery_results()) == len(results) + 1


@requires_postfix
def test_postfix_retries_what_a_rate_limit_defers(postfix_folder: Path) -> None:
    """At four messages in two seconds, ten messages take three periods."""
    throttle = scenario_option(
        postfix_folder,
        "[[rule]]\nthrottle = { messages = 4, per = '2s', by = 'sender-domain' }\n"
        "reply = '451 4.7.1 Slow down, {sender}'\n",
    )
    with (
        Program(throttle) as program,
        Postfix(postfix_folder, program.address, more=QUICK_RETRIES) as postfix,
    ):
        began = time.monotonic()
        for number in range(10):
            postfix.send("Subject: a test\n\n", f"bob{number}@example.com")
        wait_for(lambda: postfix.has_delivered(10), "Postfix has delivered ten messages", 60)
        assert time.monotonic() - began >= 4
        results = postfix.delivery_results()
        deferred = [one for one in results if "deferred" in one]
        assert deferred
        assert all(f"451 4.7.1 Slow down, {SENDER}" in one for one in deferred)
        assert len(results) == len(deferred) + 10


@requires_postfix
def test_postfix_delivers_after_an_outage(postfix_folder: Path) -> None:
    outage = scenario_option(
        postfix_folder,
        "[[rule]]\nphase = 'CONNECT'\nwindow = 'outage'\nreply = '421 4.3.2 Down for maintenance'\n"
        "[[window]]\nname = 'outage'\nfor = '6s'\n",
    )
    address = ("127.0.0.1", free_port())
    # The outage begins when the program starts, so Postfix is started first.
    with (
        Postfix(postfix_folder, address, more=QUICK_RETRIES) as postfix,
        Program(outage, f"--port={address[1]}"),
    ):
        for number in range(3):
            postfix.send("Subject: a test\n\n", f"bob{number}@example.com")
        wait_for(lambda: postfix.has_delivered(3), "Postfix has delivered three messages", 60)
        deferred = [one for one in postfix.delivery_results() if "deferred" in one]
        assert any("421 4.3.2 Down for maintenance" in one for one in deferred), deferred
