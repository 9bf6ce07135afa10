"""Clients that nobody here wrote, against the real program: smtplib, swaks, smtp-source, Postfix."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import smtplib
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from email.message import EmailMessage
from pathlib import Path

import pytest
from conftest import Certificate
from program import Program, free_port, wait_for

SENDER = "ann@client.test"
RECIPIENT = "bob@example.com"
QUEUED = re.compile(r"250 2\.0\.0 OK: queued as [0-9A-F]{10}")


class Served(Program):
    """The program with a certificate, and a port where TLS comes first."""

    def __init__(self, certificate: Certificate) -> None:
        self.secure = ("127.0.0.1", free_port())
        super().__init__(
            "--hostname=mx.test",
            f"--ssl_cert={certificate.cert}",
            f"--ssl_key={certificate.key}",
            f"--ssl_port={self.secure[1]}",
        )


@pytest.fixture(scope="module")
def program(certificate: Certificate) -> Iterator[Served]:
    with Served(certificate) as program:
        yield program
        assert program.stop() == 0, program.output()
        assert "Traceback" not in program.output()


def needs(name: str) -> str:
    """The path of a program; without it the test is skipped."""
    path = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/usr/bin:/sbin")
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


def output(*command: str, text: str | None = None, timeout: float = 60) -> str:
    """All that a command writes; it has to succeed."""
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


# smtplib


def message(body: str = "Hello\n.\n..\nGoodbye\n") -> EmailMessage:
    made = EmailMessage()
    made["From"], made["To"], made["Subject"] = SENDER, RECIPIENT, "A test"
    made.set_content(body)
    return made


def test_smtplib(program: Served) -> None:
    with smtplib.SMTP(*program.address, timeout=20) as client:
        assert client.send_message(message()) == {}
        assert client.send_message(message("")) == {}
        assert client.has_extn("size")
        assert client.verify(RECIPIENT)[0] == 252
        assert client.rset()[0] == 250
        assert client.noop()[0] == 250
        assert b"QUIT" in client.help()


def test_smtplib_many_recipients(program: Served) -> None:
    with smtplib.SMTP(*program.address, timeout=20) as client:
        recipients = [f"bob{number}@example.com" for number in range(500)]
        assert client.sendmail(SENDER, recipients, "Subject: a test\r\n\r\nHello\r\n") == {}


def test_smtplib_starttls(program: Served, certificate: Certificate) -> None:
    with smtplib.SMTP(*program.address, timeout=20) as client:
        client.ehlo()
        assert client.has_extn("starttls")
        client.starttls(context=certificate.client)
        client.ehlo()
        assert not client.has_extn("starttls")
        assert client.send_message(message()) == {}


def test_smtplib_ssl(program: Served, certificate: Certificate) -> None:
    with smtplib.SMTP_SSL(*program.secure, timeout=20, context=certificate.client) as client:
        client.ehlo()
        assert not client.has_extn("starttls")
        assert client.send_message(message()) == {}


def test_smtplib_smtputf8(program: Served) -> None:
    made = message("Grüße\n")
    made.replace_header("To", "用户@例え.jp")
    with smtplib.SMTP(*program.address, timeout=20) as client:
        assert client.send_message(made) == {}


def test_smtplib_without_a_sender(program: Served) -> None:
    with smtplib.SMTP(*program.address, timeout=20) as client:
        assert client.sendmail("", [RECIPIENT], "Subject: a bounce\r\n\r\n") == {}


def test_smtplib_large(program: Served, certificate: Certificate) -> None:
    """8 MiB, in the clear and under TLS, with dots to be stuffed."""
    body = "0123456789012345678901234567890123456789012345678901234567890123456789\r\n.\r\n" * (
        8 * 2**20 // 75
    )
    with smtplib.SMTP(*program.address, timeout=60) as client:
        assert client.sendmail(SENDER, [RECIPIENT], body) == {}
        client.starttls(context=certificate.client)
        assert client.sendmail(SENDER, [RECIPIENT], body) == {}


def test_smtplib_too_large() -> None:
    """Where a limit is announced, smtplib is told at MAIL; a client that hides the size, at the end."""
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


@pytest.mark.parametrize(
    "how",
    [(), ("--pipeline",), ("--tls",), ("--tls", "--pipeline"), ("--tlsc",), ("--protocol", "SMTP")],
    ids=["plain", "pipelining", "starttls", "starttls pipelining", "implicit tls", "helo"],
)
def test_swaks(program: Served, how: tuple[str, ...]) -> None:
    address = program.secure if "--tlsc" in how else program.address
    said = output(
        needs("swaks"),
        f"--server={address[0]}",
        f"--port={address[1]}",
        f"--from={SENDER}",
        f"--to={RECIPIENT},carol@example.com",
        "--body=Hello\\n.\\nGoodbye",
        "--timeout=20",
        *how,
    )
    assert QUEUED.search(said)
    assert "221 2.0.0" in said
    # swaks marks what it did not expect with asterisks: "<** 500 ..."
    assert "**" not in said
    assert ("=== TLS started" in said) is bool({"--tls", "--tlsc"}.intersection(how))


# smtp-source


@pytest.mark.parametrize("reuse", [(), ("-d",)], ids=["a connection each", "connections reused"])
def test_smtp_source(program: Served, reuse: tuple[str, ...]) -> None:
    """500 messages over 50 sessions at a time. It ends with an error when a single reply is no success."""
    host, port = program.address
    options = ("-s", "50", "-m", "500", "-l", "4096", "-r", "3", "-f", SENDER, "-t", RECIPIENT)
    assert output(needs("smtp-source"), "-c", *options, *reuse, f"inet:{host}:{port}").split()[-1] == "500"


# Postfix


MAIN = """\
compatibility_level = 3.6
queue_directory = {folder}/queue
data_directory = {folder}/data
maillog_file = {folder}/mail.log
maillog_file_prefixes = {folder}
myhostname = client.test
mydestination =
alias_maps =
alias_database =
inet_interfaces = loopback-only
inet_protocols = ipv4
disable_dns_lookups = yes
relayhost = [{host}]:{port}
smtp_tls_security_level = {tls}
smtp_tls_CAfile = {ca}
smtp_tls_secure_cert_match = mx.test
smtp_tls_loglevel = 1
smtp_destination_concurrency_limit = 5
"""

MASTER = """\
pickup    unix  n  -  n  1  1  pickup
cleanup   unix  n  -  n  -  0  cleanup
qmgr      unix  n  -  n  1  1  qmgr
rewrite   unix  -  -  n  -  -  trivial-rewrite
bounce    unix  -  -  n  -  0  bounce
defer     unix  -  -  n  -  0  bounce
trace     unix  -  -  n  -  0  bounce
flush     unix  n  -  n  -  0  flush
proxymap  unix  -  -  n  -  -  proxymap
smtp      unix  -  -  n  -  -  smtp
showq     unix  n  -  n  -  -  showq
error     unix  -  -  n  -  -  error
retry     unix  -  -  n  -  -  error
scache    unix  -  -  n  -  1  scache
tlsmgr    unix  -  -  n  -  1  tlsmgr
postlog   unix-dgram  n  -  n  -  1  postlogd
"""
"""Only what sends: this Postfix listens nowhere, and knows nothing of one that may be running here."""


class Postfix:
    """A mail server with a configuration and a queue of its own, that hands all its mail to one relay."""

    def __init__(
        self, folder: Path, address: tuple[str, int], tls: str = "none", ca: str = "", more: str = ""
    ) -> None:
        self.command = needs("postfix")
        self.conf = folder / "conf"
        self.log = folder / "mail.log"
        for name in ("conf", "queue", "data"):
            (folder / name).mkdir(mode=0o755)
        owner = pwd.getpwnam("postfix")
        os.chown(folder / "data", owner.pw_uid, owner.pw_gid)
        host, port = address
        settings = MAIN.format(folder=folder, host=host, port=port, tls=tls, ca=ca)
        (self.conf / "main.cf").write_text(settings + more)
        (self.conf / "master.cf").write_text(MASTER)

    def __enter__(self) -> Postfix:
        output(self.command, "-c", str(self.conf), "start")
        return self

    def __exit__(self, *_: object) -> None:
        output(self.command, "-c", str(self.conf), "stop")

    def send(self, text: str, *recipients: str) -> None:
        output(needs("sendmail"), "-C", str(self.conf), "-i", "-f", SENDER, *recipients, text=text)

    def queue(self) -> str:
        return output(needs("postqueue"), "-c", str(self.conf), "-p").strip()

    def settled(self, count: int) -> bool:
        """Whether so many recipients were delivered, and nothing is left."""
        sent = [one for one in self.deliveries() if one.startswith("status=sent")]
        return len(sent) >= count and self.queue() == "Mail queue is empty"

    def deliveries(self) -> list[str]:
        """What became of each recipient, in the words of the log."""
        with suppress(FileNotFoundError):
            return re.findall(r"status=.*", self.log.read_text("utf-8", "replace"))
        return []


@pytest.fixture
def folder() -> Iterator[Path]:
    """Where the user postfix can reach it, which pytest's own folders under root are not."""
    with tempfile.TemporaryDirectory(prefix="blackhole-postfix-") as name:
        os.chmod(name, 0o755)
        yield Path(name)


@pytest.mark.skipif(os.geteuid() != 0, reason="Postfix starts as root only")
@pytest.mark.parametrize("tls", ["none", "secure"])
def test_postfix_empties_its_queue(program: Served, certificate: Certificate, folder: Path, tls: str) -> None:
    """A real mail server with Blackhole as its relayhost: every recipient is delivered, none is deferred."""
    ca = folder / "ca.pem"
    ca.write_bytes(Path(certificate.ca).read_bytes())
    with Postfix(folder, program.address, tls, str(ca)) as postfix:
        for number in range(10):
            postfix.send(f"Subject: {number}\n\nHello\n.\n..\n\n", RECIPIENT, f"bob{number}@example.com")
        postfix.send("Subject: large\n\n" + "0123456789\n" * 100000, RECIPIENT)
        postfix.send("Subject: no sender\n\n", "-f", "<>", RECIPIENT)
        wait_for(lambda: len(postfix.deliveries()) >= 22, "Postfix has tried to deliver all", 60)
        said = postfix.deliveries()
        assert [one for one in said if not one.startswith("status=sent") or not QUEUED.search(one)] == []
        wait_for(lambda: postfix.queue() == "Mail queue is empty", "Postfix has emptied its queue", 60)
    assert len(postfix.deliveries()) == 22
    assert ("Verified TLS connection established" in postfix.log.read_text()) is (tls == "secure")


IMPATIENT = """\
minimal_backoff_time = 1s
maximal_backoff_time = 2s
queue_run_delay = 1s
smtp_connection_cache_on_demand = no
"""
"""A Postfix that tries again after seconds, where it would after minutes."""


def rules(folder: Path, text: str) -> str:
    """The option for a file with these rules."""
    (folder / "rules.toml").write_text(text)
    return f"--scenario={folder / 'rules.toml'}"


@pytest.mark.skipif(os.geteuid() != 0, reason="Postfix starts as root only")
def test_postfix_comes_again_to_a_greylisting_host(folder: Path) -> None:
    greylist = rules(folder, "[[rule]]\ngreylist = { min = '2s', max = '1h' }\n")
    with Program(greylist) as program, Postfix(folder, program.address, more=IMPATIENT) as postfix:
        for number in range(3):
            postfix.send("Subject: a test\n\n", f"bob{number}@example.com")
        wait_for(lambda: postfix.settled(3), "Postfix has delivered all", 60)
        said = postfix.deliveries()
        assert all("450 4.7.1 Greylisted" in one for one in said if "deferred" in one), said
        assert len([one for one in said if "deferred" in one]) >= 3
        # The triplet is known now.
        postfix.send("Subject: another\n\n", "bob0@example.com")
        wait_for(lambda: postfix.settled(4), "Postfix has delivered one more", 60)
        assert len(postfix.deliveries()) == len(said) + 1


@pytest.mark.skipif(os.geteuid() != 0, reason="Postfix starts as root only")
def test_postfix_backs_off_from_a_throttle(folder: Path) -> None:
    """Four messages in two seconds: ten of them take three periods."""
    throttle = rules(
        folder,
        "[[rule]]\nthrottle = { messages = 4, per = '2s', by = 'sender-domain' }\n"
        "reply = '451 4.7.1 Slow down, {sender}'\n",
    )
    with Program(throttle) as program, Postfix(folder, program.address, more=IMPATIENT) as postfix:
        began = time.monotonic()
        for number in range(10):
            postfix.send("Subject: a test\n\n", f"bob{number}@example.com")
        wait_for(lambda: postfix.settled(10), "Postfix has delivered all", 60)
        assert time.monotonic() - began >= 4
        said = postfix.deliveries()
        put_off = [one for one in said if "deferred" in one]
        assert put_off
        assert all(f"451 4.7.1 Slow down, {SENDER}" in one for one in put_off)
        assert len(said) == len(put_off) + 10


@pytest.mark.skipif(os.geteuid() != 0, reason="Postfix starts as root only")
def test_postfix_outlives_an_outage(folder: Path) -> None:
    outage = rules(
        folder,
        "[[rule]]\nphase = 'CONNECT'\nwindow = 'outage'\nreply = '421 4.3.2 Down for maintenance'\n"
        "[[window]]\nname = 'outage'\nfor = '6s'\n",
    )
    address = ("127.0.0.1", free_port())
    # Postfix first: the outage begins with the program, and is not to be over before there is mail.
    with Postfix(folder, address, more=IMPATIENT) as postfix, Program(outage, f"--port={address[1]}"):
        for number in range(3):
            postfix.send("Subject: a test\n\n", f"bob{number}@example.com")
        wait_for(lambda: postfix.settled(3), "Postfix has delivered all", 60)
        said = [one for one in postfix.deliveries() if "deferred" in one]
        assert any("421 4.3.2 Down for maintenance" in one for one in said), said
