"""The log of transactions: one line for each, with the id of its connection, in every format."""

from __future__ import annotations

import json
import re
import smtplib
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.certificates import Certificate
from tests.http_api import Sink, ask
from tests.program import Program, free_port, scenario_option, wait_for
from tests.smtp_client import SMTPClient

FULL = '[[rule]]\nname = "full"\nphase = "RCPT"\nrecipient = "full@*"\nreply = "552 5.2.2 Full"\n'


def lines(log: Path, message: str = "transaction") -> list[dict[str, Any]]:
    """Return the lines of a log in JSON that have this message."""
    return [found for found in map(json.loads, log.read_text().splitlines()) if found["message"] == message]


def test_each_transaction_is_one_line_with_its_fields(tmp_path: Path) -> None:
    log = tmp_path / "log"
    options = (f"--log={log}", "--log-format=json", "--workers=1", scenario_option(tmp_path, FULL))
    with Program("--log-transactions", *options) as program:
        with smtplib.SMTP(*program.address, "client.test") as client:
            for _ in range(2):
                client.sendmail("ann@example.com", ["bob@example.com", "full@example.com"], "hello\r\n")
        with smtplib.SMTP(*program.address, "client.test") as client, suppress(smtplib.SMTPException):
            client.sendmail("ann@example.com", "full@example.com", "hello\r\n")
        wait_for(lambda: len(lines(log)) >= 3, "three lines")
        first, second, third = lines(log)
    assert re.fullmatch("250 2.0.0 OK: queued as [0-9A-F]{10}", first.pop("reply"))
    assert re.fullmatch("[0-9A-F]{10}", first["connection"])
    assert first["connection"] == second["connection"] != third["connection"]
    fields = {name: first[name] for name in first if name not in ("time", "pid", "connection")}
    assert fields == {
        "level": "INFO",
        "process": "worker 1",
        "message": "transaction",
        "client": "127.0.0.1",
        "listener": f"127.0.0.1:{program.port}",
        "helo": "client.test",
        "sender": "ann@example.com",
        "recipients": 1,
        "to": "bob@example.com",
        "refused": "full@example.com",
        "size": 7,
        "outcome": "accepted",
        "rule": "full",
    }
    assert (third["outcome"], third["rule"], third["recipients"]) == ("rejected", "full", 0)
    assert third["reply"] == "552 5.2.2 Full" or third["reply"].startswith("250 ")


def test_id_of_the_connection_is_that_of_the_lines_of_debug(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with Program("--log-transactions", "--debug", f"--log={log}", "--log-format=json") as program:
        with smtplib.SMTP(*program.address) as client:
            client.sendmail("ann@example.com", "bob@example.com", "hello")
        wait_for(lambda: lines(log), "a line")
        assert {one["connection"] for one in lines(log, "RECV")} == {lines(log)[0]["connection"]}


def test_tls_and_violations_are_in_the_line(tmp_path: Path, certificate: Certificate) -> None:
    log, port = tmp_path / "log", free_port()
    with Program(
        *("--log-transactions", f"--log={log}", "--log-format=json", f"--listen=127.0.0.1:{port},tls"),
        *(f"--ssl_cert={certificate.cert}", f"--ssl_key={certificate.key}"),
    ):
        with smtplib.SMTP_SSL("127.0.0.1", port, context=certificate.client) as client:
            for command in ("MAIL FROM:<ann@example.com>", "RCPT TO:<bob@example.com>", "DATA", "."):
                client.docmd(command)
        wait_for(lambda: lines(log), "a line")
        (line,) = lines(log)
    assert line["tls"].startswith("TLSv1.")
    assert "no-hello" in line["violations"].split(",")


def test_text_and_syslog_show_the_fields_as_logfmt(tmp_path: Path) -> None:
    for log_format in ("text", "syslog"):
        log = tmp_path / log_format
        with Program("--log-transactions", f"--log={log}", f"--log-format={log_format}") as program:
            with smtplib.SMTP(*program.address, "client.test") as client:
                client.sendmail("ann@example.com", "bob@example.com", "hello")
            wait_for(lambda log=log: "transaction" in log.read_text(), "a line")  # type: ignore[misc]
        (line,) = re.findall(r"transaction: (client=.*)", log.read_text())
        assert re.fullmatch(
            r"client=127\.0\.0\.1 connection=[0-9A-F]{10} listener=127\.0\.0\.1:\d+ helo=client\.test"
            r" sender=ann@example\.com recipients=1 to=bob@example\.com size=7 outcome=accepted"
            r' reply="250 2\.0\.0 OK: queued as [0-9A-F]{10}"',
            line,
        )


def test_client_cannot_forge_a_field_or_a_line(tmp_path: Path) -> None:
    log = tmp_path / "log"
    forged = 'x" outcome=accepted client=192.0.2.1 \x1b[2J\xff'
    with Program("--log-transactions", f"--log={log}") as program:
        with SMTPClient(program.address) as client:
            client.socket.sendall(f"HELO {forged}\r\nMAIL FROM:<a@b>\r\nRSET\r\nQUIT\r\n".encode("latin-1"))
            while client.socket.recv(4096):
                pass
        wait_for(lambda: "transaction: " in log.read_text(), "a line")
    (line,) = [one for one in log.read_text().splitlines() if "transaction: " in one]
    assert re.fullmatch("[ -~]+", line)
    unquoted = re.sub(r'"(?:[^"\\]|\\.)*"', '""', line)
    assert unquoted.count("client=") == unquoted.count("outcome=") == 1
    assert "192.0.2.1" not in unquoted


def test_more_than_twenty_transactions_in_ten_seconds_are_logged(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with Program("--log-transactions", f"--log={log}", "--log-format=json") as program:
        with smtplib.SMTP(*program.address) as client:
            for _ in range(60):
                client.sendmail("ann@example.com", "bob@example.com", "hello")
        wait_for(lambda: len(lines(log)) == 60, "sixty lines")


def test_transactions_can_be_logged_and_kept(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with Sink("--log-transactions", "--recent=10", f"--log={log}", "--log-format=json") as program:
        program.dashboard()
        with smtplib.SMTP(*program.address) as client:
            client.sendmail("ann@example.com", "bob@example.com", "Subject: hello\r\n\r\n")
        wait_for(lambda: lines(log), "a line")
        kept = ask(program.http, "/recent").json
        assert "hello" in json.dumps(kept)
        assert "hello" not in json.dumps(lines(log))


@pytest.mark.parametrize("option", ["--log-transactions=no", "--strict"])
def test_without_the_option_no_transaction_is_logged(option: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with Program(option, f"--log={log}") as program:
        with smtplib.SMTP(*program.address) as client:
            client.sendmail("ann@example.com", "bob@example.com", "hello")
        program.wait_until_idle()
        assert "example.com" not in log.read_text()
