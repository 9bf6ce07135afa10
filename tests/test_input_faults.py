"""Faults in what comes behind a reply: small windows, slow reading, resets and early replies, on sockets.

Each runs with all accelerators and with none, and for DATA and BDAT.
What is answered is in the transcripts of tests/transcripts/scenario.
"""

from __future__ import annotations

import socket
import struct
import subprocess
import time
from pathlib import Path

import pytest

from blackhole.metrics.layout import CELL_INDEX
from blackhole.net import connection as net_connection
from blackhole.settings import ACCELERATORS
from tests.certificates import Certificate
from tests.external_programs import path_of, requires
from tests.postfix import Postfix, requires_postfix, smtp_source
from tests.program import Program, scenario_option, wait_for
from tests.service import Serve, Service
from tests.smtp_client import SMTPClient

RULES = """
[[rule]]
phase = "RCPT"
recipient = "slow@*"
then = { read = 40000 }

[[rule]]
phase = ["DATA", "BDAT"]
recipient = "slowest@*"
then = { read = 10 }

[[rule]]
phase = "RCPT"
recipient = "window@*"
then = { window = 3000 }

[[rule]]
phase = "RCPT"
recipient = "reset@*"
then = { reset-after = 20000 }

[[rule]]
phase = "RCPT"
recipient = "close@*"
then = { close-after = 20000 }

[[rule]]
phase = "RCPT"
recipient = "full@*"
reply = "452 4.3.1 Out of disk space"
then = { reply-after = 20000 }

[[rule]]
phase = "RCPT"
recipient = "gone@*"
reply = "452 4.3.1 Out of disk space"
then = { reply-and-close-after = 20000 }
"""

LINE = b"x" * 78 + b"\r\n"

SENT_WINDOW = 228
"""Position of tcpi_snd_wnd in the struct tcp_info of linux/tcp.h: the window that the peer has offered."""


@pytest.fixture(params=[ACCELERATORS, frozenset()], ids=["fast", "simple"])
def accelerators(request: pytest.FixtureRequest) -> frozenset[str]:
    """Run each test with all accelerators, and with none."""
    return frozenset(request.param)


@pytest.fixture
def service(serve: Serve, tmp_path: Path) -> Service:
    return serve("--listen=127.0.0.1:0", scenario_option(tmp_path, RULES))


def begin(client: SMTPClient, who: str, verb: str, size: int) -> None:
    """Send everything before the body of a message to somebody."""
    client.send(
        f"EHLO client.test\r\nMAIL FROM:<ann@example.com>\r\nRCPT TO:<{who}@example.com>\r\n".encode()
    )
    for _ in range(3):
        assert client.read_reply()[:3] == "250"
    if verb == "DATA":
        assert client.command_code("DATA") == "354"
    else:
        client.send(b"BDAT %d LAST\r\n" % size)


def send_body(client: SMTPClient, verb: str, size: int) -> bool:
    """Send a body; return whether the whole of it could be sent."""
    try:
        client.send(LINE * (size // len(LINE)) + (b".\r\n" if verb == "DATA" else b""))
    except OSError:
        return False
    return True


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("verb", ["DATA", "BDAT"])
def test_message_is_read_at_the_rate_of_the_rule(
    serve: Serve, tmp_path: Path, certificate: Certificate, verb: str, secure: bool
) -> None:
    service = serve("--listen=127.0.0.1:0", scenario_option(tmp_path, RULES), secure=secure)
    with SMTPClient(service.address, read_greeting=False) as client:
        if secure:
            client.socket = certificate.client.wrap_socket(client.socket, server_hostname="mx.test")
        assert client.read_reply()[:3] == "220"
        begin(client, "slow", verb, 16000)
        began = time.monotonic()
        assert send_body(client, verb, 16000)
        assert client.read_reply()[:3] == "250"
        assert time.monotonic() - began >= 0.35
        # The rule holds for this transaction only.
        assert client.command_code("QUIT") == "221"


def test_slowly_read_client_that_leaves_is_noticed_and_costs_no_memory(service: Service) -> None:
    with SMTPClient(service.address) as client:
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        begin(client, "slowest", "DATA", 0)
        client.socket.settimeout(0.2)
        with pytest.raises(OSError):
            client.socket.sendall(LINE * 20000)
        (connection,) = service.server.connections
        assert connection.received < 100_000
        client.reset_on_close()
    service.settle()
    assert service.open() == 0


def test_slow_reading_ends_with_the_time_that_a_stalled_client_has(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(net_connection, "HANG", 0.3)
    with SMTPClient(service.address) as client:
        begin(client, "slowest", "DATA", 0)
        client.send(LINE)
        assert client.read_reply()[:3] == "421"
        assert client.read_to_end() == b""
    service.settle()
    assert service.cells[CELL_INDEX["timed_out"]] == 1


def test_limits_hold_for_a_client_that_is_read_slowly(serve: Serve, tmp_path: Path) -> None:
    service = serve(
        "--listen=127.0.0.1:0", scenario_option(tmp_path, RULES), "--trusted=192.0.2.1", "--session_timeout=3"
    )
    with SMTPClient(service.address) as client:
        begin(client, "slowest", "DATA", 0)
        client.send(LINE)
        assert client.read_reply() == "421 4.4.2 The session has lasted too long, closing"


def test_client_is_offered_a_small_window(service: Service) -> None:
    with SMTPClient(service.address) as client:
        begin(client, "window", "DATA", 0)
        # The window that was offered before is used up first.
        client.socket.settimeout(0.3)
        (connection,) = service.server.connections
        assert connection.stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) <= 6000
        client.socket.settimeout(20)
        assert send_body(client, "DATA", 80_000)
        assert client.read_reply()[:3] == "250"
        info = client.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
        if len(info) >= SENT_WINDOW + 4:
            (window,) = struct.unpack_from("I", info, SENT_WINDOW)
            assert 0 < window <= 16384


@pytest.mark.parametrize("verb", ["DATA", "BDAT"])
def test_connection_is_reset_in_the_middle_of_a_message(service: Service, verb: str) -> None:
    with SMTPClient(service.address) as client:
        begin(client, "reset", verb, 8_000_000)
        assert not send_body(client, verb, 8_000_000)
    service.settle()
    assert not service.server.connections


@pytest.mark.parametrize("verb", ["DATA", "BDAT"])
def test_connection_is_closed_in_the_middle_of_a_message(service: Service, verb: str) -> None:
    with SMTPClient(service.address) as client:
        begin(client, "close", verb, 24_000)
        send_body(client, verb, 24_000)
        assert client.read_to_end() == b""


@pytest.mark.parametrize("verb", ["DATA", "BDAT"])
def test_reply_comes_before_the_end_of_the_message(service: Service, verb: str) -> None:
    with SMTPClient(service.address) as client:
        begin(client, "full", verb, 48_000)
        client.send(LINE * 400)
        assert client.read_reply() == "452 4.3.1 Out of disk space"
        # The rest of the message is discarded, and it is not answered again.
        client.send(LINE * 200 + (b".\r\n" if verb == "DATA" else b""))
        assert client.command("NOOP") == "250 2.0.0 OK"
        assert client.send_message()[:3] == "250"


@pytest.mark.parametrize("verb", ["DATA", "BDAT"])
def test_reply_comes_before_the_end_of_the_message_and_the_connection_closes(
    service: Service, verb: str
) -> None:
    with SMTPClient(service.address) as client:
        begin(client, "gone", verb, 48_000)
        client.send(LINE * 400)
        assert client.read_to_end() == b"452 4.3.1 Out of disk space\r\n"


def test_discarded_message_has_limits_too(serve: Serve, tmp_path: Path) -> None:
    service = serve("--listen=127.0.0.1:0", scenario_option(tmp_path, RULES), "--timeout=3")
    with SMTPClient(service.address) as client:
        begin(client, "full", "DATA", 0)
        client.send(LINE * 400)
        assert client.read_reply()[:3] == "452"
        assert client.read_reply() == "421 4.4.2 Timeout waiting for the client"


# What senders do that others wrote


@requires_postfix
def test_postfix_keeps_the_messages_that_met_a_fault(tmp_path: Path, postfix_folder: Path) -> None:
    expected = {
        "slow": "sent (250 ",
        "window": "sent (250 ",
        "reset": "deferred (lost connection with 127.0.0.1[127.0.0.1] while sending ",
        "close": "deferred (lost connection with 127.0.0.1[127.0.0.1] while sending ",
        "full": "deferred (host 127.0.0.1[127.0.0.1] said: 452 4.3.1 Out of disk space ",
        "gone": "deferred (",
    }
    more = "default_destination_recipient_limit = 1\n"
    with (
        Program("--workers=1", scenario_option(tmp_path, RULES)) as program,
        Postfix(postfix_folder, program.address, more=more) as postfix,
    ):
        text = "Subject: test\n\n" + (13 * "hello " + "\n") * 300
        postfix.send(text, *(f"{who}@example.com" for who in expected))
        wait_for(lambda: len(postfix.delivery_results()) >= len(expected), "Postfix has tried them all", 60)
        log = postfix.log.read_text("utf-8", "replace")
    for who, result in expected.items():
        (line,) = (line for line in log.splitlines() if f"to=<{who}@example.com>" in line)
        assert f"status={result}" in line


@requires("smtp-source")
def test_smtp_source_fails_where_a_message_is_cut_off_or_refused(tmp_path: Path) -> None:
    with Program("--workers=1", scenario_option(tmp_path, RULES)) as program:
        for who, status in (("slow", 0), ("reset", 1), ("full", 1)):
            command = smtp_source(
                program.address, 1, "-l", "24000", "-t", f"{who}@example.com", connections=1
            )
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
            assert (who, done.returncode) == (who, status), done.stderr


@requires("swaks")
def test_swaks_shows_the_reply_in_the_middle_of_a_message(tmp_path: Path) -> None:
    body = tmp_path / "message"
    body.write_text("Subject: test\n\n" + "x" * 70 * 400)
    with Program("--workers=1", scenario_option(tmp_path, RULES)) as program:
        done = subprocess.run(
            [
                *(path_of("swaks"), "--server", f"{program.address[0]}:{program.address[1]}"),
                *("--from", "ann@example.com", "--to", "full@example.com", "--data", f"@{body}"),
            ],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert "<** 452 4.3.1 Out of disk space" in done.stdout
    assert done.returncode == 26
