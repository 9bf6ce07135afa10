"""XCLIENT and XFORWARD: a server that acts for clients, on sockets and as Postfix and swaks do it.

What each command is answered is in tests/transcripts/xclient.
"""

from __future__ import annotations

import smtplib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from blackhole.metrics.layout import CELL_INDEX, LISTENERS_START
from blackhole.settings import ACCELERATORS
from blackhole.smtp.named_client import NO_NAMED_CLIENT
from blackhole.store.client_log import Client, ClientLog
from tests.certificates import Certificate
from tests.external_programs import output_of, path_of, requires
from tests.http_api import Sink, ask
from tests.postfix import RECIPIENT, Postfix, requires_postfix
from tests.program import free_port, wait_for
from tests.service import Serve
from tests.smtp_client import SMTPClient


@pytest.fixture(params=[ACCELERATORS, frozenset()], ids=["fast", "simple"])
def accelerators(request: pytest.FixtureRequest) -> frozenset[str]:
    """Run each test of a server in this process with all accelerators, and with none."""
    return frozenset(request.param)


TRUSTS_THIS_MACHINE = "--xclient_from=127.0.0.0/8"


def name_client(client: SMTPClient, attributes: str) -> str:
    """Send XCLIENT and EHLO; return the reply to XCLIENT."""
    reply = client.command(f"XCLIENT {attributes}")
    if reply.startswith("220"):
        assert client.command_code("EHLO client.example.com") == "250"
    return reply


# On sockets


def test_limits_hold_for_the_client_that_xclient_names(serve: Serve) -> None:
    service = serve("--listen=127.0.0.1:0", TRUSTS_THIS_MACHINE, "--client_connections=1")
    with SMTPClient(service.address) as first, SMTPClient(service.address) as second:
        assert name_client(first, "ADDR=192.0.2.7")[:3] == "220"
        assert name_client(second, "ADDR=IPV6:2001:db8::7")[:3] == "220"
        assert name_client(second, "ADDR=192.0.2.7") == "421 4.7.0 Too many connections from your network"
        assert second.read_to_end() == b""
        # With another client, the place of the first one is free.
        assert name_client(first, "ADDR=192.0.2.8")[:3] == "220"
        with SMTPClient(service.address) as third:
            assert name_client(third, "ADDR=192.0.2.7")[:3] == "220"
            assert {one.peer for one in service.server.connections} == {"192.0.2.8", "192.0.2.7"}
    service.settle()
    assert service.cells[LISTENERS_START] == 3


def test_limit_of_messages_begins_anew_with_each_client(serve: Serve) -> None:
    service = serve("--listen=127.0.0.1:0", TRUSTS_THIS_MACHINE, "--max_messages=1", "--inspect=off")
    with SMTPClient(service.address) as client:
        for address in ("192.0.2.7", "192.0.2.8"):
            assert name_client(client, f"ADDR={address}")[:3] == "220"
            assert client.send_message()[:3] == "250"
        assert client.command_code("MAIL FROM:<ann@example.com>") == "250"
        assert client.command_code("RCPT TO:<bob@example.com>") == "250"
        assert client.command_code("DATA") == "421"
        received = next(iter(service.server.connections), None)
        assert received is None or received.counted <= received.received
    service.settle()
    assert service.cells[CELL_INDEX["received_bytes"]] > 0


def test_xclient_works_under_tls(serve: Serve, certificate: Certificate) -> None:
    service = serve(
        "--listen=127.0.0.1:0",
        TRUSTS_THIS_MACHINE,
        "--client_tls_rate=1",
        "--client_connections=1",
        secure=True,
    )
    client = SMTPClient(service.address, read_greeting=False)
    with client:
        client.socket = certificate.client.wrap_socket(client.socket, server_hostname="mx.test")
        assert client.read_reply()[:3] == "220"
        for _ in range(3):  # There is no further handshake to be counted.
            assert name_client(client, "ADDR=192.0.2.7")[:3] == "220"
        (connection,) = service.server.connections
        assert connection.session.secure
        with SMTPClient(service.address, read_greeting=False) as second:
            second.socket = certificate.client.wrap_socket(second.socket, server_hostname="mx.test")
            assert second.read_reply()[:3] == "220"
            assert name_client(second, "ADDR=192.0.2.7")[:3] == "421"


def test_local_address_is_what_xclient_says(serve: Serve) -> None:
    service = serve("--listen=127.0.0.1:0", TRUSTS_THIS_MACHINE)
    with SMTPClient(service.address) as client:
        (connection,) = service.server.connections
        assert connection.session.named_client is NO_NAMED_CLIENT
        assert name_client(client, "ADDR=192.0.2.7 DESTADDR=198.51.100.1 DESTPORT=2525")[:3] == "220"
        named = connection.session.named_client
        assert (named.local_address, named.local_port) == ("198.51.100.1", "2525")
        assert client.command_code("QUIT") == "221"


# The real program, and clients that others wrote


@pytest.fixture(scope="module")
def sink() -> Iterator[Sink]:
    with Sink("--recent=100", "--workers=1", "--show_clients", TRUSTS_THIS_MACHINE) as program:
        program.dashboard()
        program.wait_until_accepting(1)
        yield program


def clients_of(sink: Sink) -> list[Client]:
    log = ClientLog.of(sink.process.pid)
    assert log is not None
    return log.clients()


def last_transaction(sink: Sink) -> Any:
    (found,) = ask(sink.http, "/recent?limit=1").json["transactions"]
    return found


def test_recent_shows_the_client_that_xclient_names(sink: Sink) -> None:
    with SMTPClient(sink.address) as client:
        client.send(b"EHLO proxy.example.com\r\n")
        assert client.read_reply()[:3] == "250"
        assert client.send_message()[:3] == "250"
        assert name_client(client, "ADDR=192.0.2.71 HELO=named.example.com")[:3] == "220"
        assert client.send_message()[:3] == "250"
        wait_for(
            lambda: (
                {one.address for one in clients_of(sink) if one.messages == 1} >= {"127.0.0.1", "192.0.2.71"}
            ),
            "the messages of both clients",
        )
    assert (last_transaction(sink)["client"], last_transaction(sink)["helo"]) == (
        "192.0.2.71",
        "client.example.com",
    )


def test_recent_shows_the_client_that_xforward_names_for_one_transaction(sink: Sink) -> None:
    with SMTPClient(sink.address) as client:
        client.send(b"EHLO proxy.example.com\r\n")
        assert client.read_reply()[:3] == "250"
        assert client.command_code("XFORWARD ADDR=192.0.2.72 HELO=forwarded.example.com") == "250"
        for expected in (("192.0.2.72", "forwarded.example.com"), ("127.0.0.1", "proxy.example.com")):
            assert client.send_message()[:3] == "250"
            assert (last_transaction(sink)["client"], last_transaction(sink)["helo"]) == expected
        assert client.command_code("XFORWARD ADDR=192.0.2.73") == "250"
        assert client.command_code("MAIL FROM:<ann@example.com>") == "250"
    wait_for(lambda: last_transaction(sink)["client"] == "192.0.2.73", "the transaction that was cut off")
    assert last_transaction(sink)["helo"] == "proxy.example.com"


@requires("swaks")
def test_swaks_sends_xclient(sink: Sink) -> None:
    output_of(
        path_of("swaks"),
        *("--server", f"{sink.address[0]}:{sink.address[1]}"),
        *("--from", "ann@example.com", "--to", "bob@example.com", "--helo", "swaks.example.com"),
        *("--xclient-addr", "192.0.2.74", "--xclient-name", "client.example.com"),
        *(
            "--xclient-helo",
            "named.example.com",
            "--xclient-login",
            "ann@example.com",
            "--xclient-port",
            "4711",
        ),
    )
    found = last_transaction(sink)
    assert (found["client"], found["helo"]) == ("192.0.2.74", "swaks.example.com")


@requires_postfix
def test_postfix_sends_xforward_for_a_message_that_it_relays(sink: Sink, postfix_folder: Path) -> None:
    port = free_port()
    postfix = Postfix(postfix_folder, sink.address, more="smtp_send_xforward_command = yes\n")
    with (postfix.conf / "master.cf").open("a") as services:
        services.write(f"127.0.0.1:{port} inet n - n - - smtpd\nanvil unix - - n - 1 anvil\n")
    with postfix:
        with smtplib.SMTP("127.0.0.1", port, "relayed.example.com", timeout=60) as client:
            client.sendmail("ann@example.com", [RECIPIENT], "Subject: test\r\n\r\nHello\r\n")
        wait_for(lambda: postfix.has_delivered(1), "Postfix has delivered the message", 60)
    found = last_transaction(sink)
    assert (found["client"], found["helo"], found["outcome"]) == (
        "127.0.0.1",
        "relayed.example.com",
        "accepted",
    )
    sent = [one["command"].split(" ")[0] for one in found["exchanges"] if one["phase"] == "other"]
    assert set(sent) == {"XFORWARD"}
    assert {one["code"] for one in found["exchanges"] if one["phase"] == "other"} == {250}
    assert found["violations"] == []
