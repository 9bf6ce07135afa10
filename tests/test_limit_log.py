"""Which limit a client met: one line a client and minute, a counter for each limit, and fail2ban."""

from __future__ import annotations

import logging
import re
import smtplib
import socket
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from blackhole.net.connection import Connection
from blackhole.net.limit_log import BUCKET_CLIENTS, LOG_BUCKETS, LimitLog
from blackhole.settings import CLIENT_LIMITS
from blackhole.smtp.session import Session
from tests.external_programs import output_of, path_of, requires
from tests.http_api import Sink, ask, figures
from tests.program import ROOT, Program, wait_for
from tests.service import Serve
from tests.smtp_client import SMTPClient

FILTER = ROOT / "contrib/fail2ban/filter.d/blackhole.conf"

STRICT = ("--trusted=none", "--workers=2")


def limits_met(program: Program) -> dict[str, int]:
    return {name: count for name, count in program.snapshot().limits_met.items() if count}


# One line a client and minute


class ClientCollector(logging.Handler):
    """Collects the clients of the lines."""

    def __init__(self) -> None:
        super().__init__()
        self.clients: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.clients.append(record.fields["client"])  # type: ignore[attr-defined]


@pytest.fixture
def told() -> ClientCollector:
    logger, handler = logging.getLogger("blackhole.net.limit_log"), ClientCollector()
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO)
    return handler


def test_there_is_one_line_a_client_and_minute_whatever_limits_it_meets(told: ClientCollector) -> None:
    now = 1000.0
    limit_log = LimitLog(lambda: now)

    def tell(client: str) -> None:
        limit_log.tell(client, "3B21D0F6A4", "0.0.0.0:25", "max_errors", 20)

    for client in ("192.0.2.1", "192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2", "2001:db8:0:1::1"):
        tell(client)
    assert told.clients == ["192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8:0:1::1"]
    now = 1059.0
    tell("192.0.2.1")
    assert len(told.clients) == 4
    now = 1060.0
    tell("192.0.2.1")
    assert told.clients[4:] == ["192.0.2.1"]


def test_flood_of_addresses_brings_at_most_as_many_lines_as_the_table_has_places(
    told: ClientCollector,
) -> None:
    limit_log = LimitLog(lambda: 0.0)
    for number in range(3 * LOG_BUCKETS * BUCKET_CLIENTS):
        limit_log.tell(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", "", "", "max_junk", 1)
    assert len(told.clients) <= LOG_BUCKETS * BUCKET_CLIENTS
    assert len(told.clients) == len({*told.clients})


# Every limit


def connect(program: Program, count: int) -> None:
    with ExitStack() as stack:
        for _ in range(count):
            stack.enter_context(SMTPClient(program.address))


def say(*lines: str) -> Callable[[Program], None]:
    """Return what sends these lines in one session."""

    def client(program: Program) -> None:
        with SMTPClient(program.address) as session, suppress(OSError):
            for line in lines:
                session.command_code(line)

    return client


def stall(program: Program) -> None:
    """Begin a message, and send too little of it."""
    with socket.create_connection(program.address) as client, suppress(OSError):
        client.sendall(b"DATA\r\n")
        client.settimeout(20)
        while client.recv(4096):
            pass


def flood(program: Program) -> None:
    with socket.create_connection(program.address) as client, suppress(OSError):
        client.sendall(b"DATA\r\n" + b"x" * 200_000)
        while client.recv(4096):
            pass


MESSAGE = ("MAIL FROM:<a@example.com>", "RCPT TO:<b@example.com>", "DATA", ".")

MEETS: dict[str, tuple[str, Callable[[Program], None]]] = {
    "client_connections": ("2", lambda program: connect(program, 3)),
    "client_connection_rate": ("1", lambda program: connect(program, 1)),
    "client_message_rate": ("1", say(*MESSAGE)),
    "client_recipient_rate": ("1", say(*MESSAGE[:2])),
    "client_byte_rate": ("64k", flood),
    "soft_errors": ("1", say("MAIL", "MAIL")),
    "max_errors": ("2", say("MAIL", "MAIL")),
    "max_junk": ("1", say("NOOP", "NOOP")),
    "max_recipients": ("1", say(*MESSAGE[:2], *MESSAGE[1:2])),
    "max_messages": ("1", say(*MESSAGE, *MESSAGE[:3])),
    "min_data_rate": ("1k", stall),
    "session_timeout": ("1s", stall),
}
"""Limit -> its value, and a client that meets it once, if need be when it comes again.

`client_tls_rate` needs a certificate.
"""


def meet_once(program: Program, client: Callable[[Program], None]) -> dict[str, int]:
    """Let a client act, again and again until it meets a limit, and return what was counted.

    A worker learns within a second that a minute began, or that another worker counts too. Meanwhile, a
    client whose connections come to both may do a little more.
    """

    def act() -> dict[str, int]:
        client(program)
        program.wait_until_idle()  # a connection that is refused is counted when it ends
        return limits_met(program)

    return wait_for(act, "the limit is met and counted")


@pytest.mark.parametrize("limit", MEETS)
def test_limit_is_counted_and_logged_once(limit: str) -> None:
    value, client = MEETS[limit]
    with Program(*STRICT, f"--{limit}={value}", "--timeout=2s") as program:
        assert meet_once(program, client) == {limit: 1}
        lines = re.findall(r"INFO client limit: (.*)", program.output())
        assert len(lines) == 1
        where = r"listener=127\.0\.0\.1:\d+ connection=[0-9A-F]{10}"
        assert re.fullmatch(rf"client=127\.0\.0\.1 limit={limit} most=[\d.]+ {where}", lines[0])


def test_tls_rate_is_counted_and_logged_too(tmp_path: Path, certificate: object) -> None:
    options = (f"--ssl_cert={certificate.cert}", f"--ssl_key={certificate.key}")  # type: ignore[attr-defined]

    def start_tls(program: Program) -> None:
        with smtplib.SMTP(*program.address) as client, suppress(smtplib.SMTPResponseException):
            client.starttls()

    with Program(*STRICT, "--client_tls_rate=1", *options) as program:
        assert meet_once(program, start_tls) == {"client_tls_rate": 1}
        assert program.output().count("limit=client_tls_rate") == 1


def test_the_tests_above_meet_every_limit() -> None:
    assert {*CLIENT_LIMITS} - {*MEETS} == {"client_tls_rate"}


def test_trusted_client_meets_no_limit() -> None:
    with Program("--max_errors=1") as program:
        say("MAIL", "MAIL", "MAIL")(program)
        assert limits_met(program) == {}
        assert "client limit" not in program.output()


def test_workers_write_one_line_together_and_count_all() -> None:
    with Sink(*STRICT, "--workers=4", "--max_errors=1") as program:
        program.dashboard()
        for _ in range(12):
            say("MAIL")(program)
        wait_for(lambda: limits_met(program) == {"max_errors": 12}, "all are counted")
        assert program.output().count("INFO client limit: ") == 1
        assert figures(program.http)["limits_met"]["max_errors"] == 12
        metrics = ask(program.http, "/metrics").body.decode()
        assert 'blackhole_client_limits_total{limit="max_errors"} 12.0' in metrics


def test_without_limits_and_logs_nothing_is_made_for_them(serve: Serve) -> None:
    server = serve().server
    assert server.context.limit_log is None
    assert server._connection_type is Connection
    assert type(server.context.engine.sizes) is list
    assert type(server.context.engine.session()) is Session
    assert serve("--max-errors=5").server.context.limit_log is not None


# fail2ban

FORGED = 'MAIL x INFO client limit: client=198.51.100.66 limit=max_errors "client": "198.51.100.66",'


@requires("fail2ban-regex")
@pytest.mark.parametrize("log_format", ["text", "json", "syslog"])
def test_fail2ban_finds_the_client_and_is_not_fooled(log_format: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with Program(
        *STRICT, "--max_errors=2", "--debug", f"--log={log}", f"--log-format={log_format}"
    ) as program:
        say(FORGED, FORGED)(program)
        wait_for(lambda: limits_met(program), "the limit is counted")
    assert "198.51.100.66" in log.read_text()
    done = output_of(path_of("fail2ban-regex"), "--out=row", str(log), str(FILTER))
    found = [line for line in done.splitlines() if line.startswith("[")]
    assert len(found) == 1, done
    assert "127.0.0.1" in found[0]
    assert "198.51.100.66" not in done


@requires("fail2ban-regex")
@pytest.mark.parametrize("time", ["Nov  9 05:37:25", "2026-11-09T05:37:25.123456+01:00"])
def test_fail2ban_reads_what_rsyslog_writes_of_lines_for_syslog(time: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    head = f"{time} mx blackhole[7]: worker 1:"
    log.write_text(
        f"{head} client limit: client=192.0.2.7 limit=max_errors\n"
        f"{head} 192.0.2.8 connection [3B] RECV: worker 1: client limit: client=198.51.100.66 limit=x\n"
    )
    done = output_of(path_of("fail2ban-regex"), "--out=id", str(log), str(FILTER))
    assert done.split() == ["192.0.2.7"]


@requires("fail2ban-client")
def test_fail2ban_accepts_the_jail(tmp_path: Path) -> None:
    folder = tmp_path / "fail2ban"
    output_of("cp", "-a", "/etc/fail2ban", str(folder))
    for kind in ("filter.d", "jail.d"):
        (folder / kind / "blackhole.conf").write_text(
            (ROOT / "contrib/fail2ban" / kind / "blackhole.conf").read_text()
        )
    shown = output_of(path_of("fail2ban-client"), "-c", str(folder), "--dp")
    assert "['set', 'blackhole', 'maxretry', 3]" in shown
    assert "client limit: client=" in shown
