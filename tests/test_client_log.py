"""The client log: kept and shown where the operator asked for it, and nowhere else."""

from __future__ import annotations

import json
import os
import signal
import smtplib
import socket
import time
from contextlib import ExitStack
from pathlib import Path

from blackhole.metrics.counters import Counters
from blackhole.metrics.layout import EventCells
from blackhole.store.client_log import MAX_CLIENTS, MAX_SHOWN_CLIENTS, Client, ClientLog
from tests.http_api import Sink, ask
from tests.program import Program, descriptors, free_port, run, scenario_option, wait_for
from tests.smtp_client import SMTPClient

MAP = "/memfd:blackhole.store.client_log (deleted)"


def shown(client_log: ClientLog) -> list[tuple[str, int, int, int]]:
    return [client[:4] for client in client_log.clients()]


def test_sections_of_all_processes_add_up_and_the_busiest_client_is_first() -> None:
    client_log = ClientLog(3)
    one, other = client_log.writer(0), client_log.writer(2)
    one.update("a", "192.0.2.1", 2, 0)
    one.update("b", "2001:db8::1", 5, 1)
    other.update("c", "::ffff:192.0.2.1", 1, 1)
    assert shown(client_log) == [("2001:db8::1", 1, 5, 1), ("192.0.2.1", 2, 3, 1)]


def test_a_connection_is_counted_once_and_its_messages_as_they_come() -> None:
    client_log = ClientLog(1)
    writer = client_log.writer(0)
    for messages, faults in ((0, 0), (3, 0), (3, 2)):
        writer.update("a", "192.0.2.1", messages, faults)
    writer.forget("a")
    writer.update("b", "192.0.2.1", 1, 0)
    assert shown(client_log) == [("192.0.2.1", 2, 4, 2)]


def test_a_client_without_an_address_is_not_kept() -> None:
    client_log = ClientLog(1)
    client_log.writer(0).update("a", "", 1, 1)
    assert client_log.clients() == []


def test_a_section_outlives_its_process() -> None:
    client_log = ClientLog(1)
    client_log.writer(0).update("a", "192.0.2.1", 1, 0)
    client_log.writer(0).update("b", "192.0.2.1", 1, 0)
    assert shown(client_log) == [("192.0.2.1", 2, 2, 0)]


def test_a_new_client_replaces_the_one_seen_longest_ago_in_a_full_section() -> None:
    client_log = ClientLog(1)
    writer = client_log.writer(0)
    for number in range(MAX_CLIENTS):
        writer.update(number, f"10.0.{number // 256}.{number % 256}", 1, 0)
    writer.update(0, "10.0.0.0", 2, 0)
    writer.update("new", "192.0.2.1", 9, 0)
    assert client_log.clients()[0][:3] == ("192.0.2.1", 1, 9)
    assert len(client_log.clients()) == MAX_SHOWN_CLIENTS
    addresses = set(writer._slots)
    assert (0, 0xFFFF_0A00_0000) in addresses
    assert (0, 0xFFFF_0A00_0001) not in addresses
    assert len(addresses) == MAX_CLIENTS


def send(program: Program, messages: int) -> None:
    with smtplib.SMTP(*program.address, local_hostname="client", timeout=20) as client:
        for _ in range(messages):
            client.sendmail("ann@example.com", ["bob@example.com"], "Subject: a test\r\n\r\nHello\r\n")


def seen(program: Program) -> list[tuple[str, int, int, int, int]] | None:
    clients: tuple[Client, ...] | None = program.snapshot().clients
    return None if clients is None else [client[:5] for client in clients]


def test_clients_are_shown_with_show_clients(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    with Sink("--show_clients", f"--pid={pid}", "--workers=2") as program:
        program.dashboard()
        with smtplib.SMTP(*program.address, local_hostname="client", timeout=20) as client:
            client.sendmail("ann@example.com", ["bob@example.com"], "Subject: a test\r\n\r\nHello\r\n")
            wait_for(lambda: seen(program) == [("127.0.0.1", 1, 1, 0, 1)], "an open connection is shown")
        send(program, 3)
        wait_for(lambda: seen(program) == [("127.0.0.1", 2, 4, 0, 2)], "both connections are counted")
        line = "127.0.0.1: 2 connections, 4 messages, 0 violations counted, 2 seen in samples\n"
        assert run("status", f"--pid={pid}").stdout.endswith(line)
        assert run("report", f"--pid={pid}").stdout.endswith(line)
        assert ask(program.http, "/report").body.decode().endswith(line)
        for text in (
            run("status", f"--pid={pid}", "--json").stdout,
            run("report", f"--pid={pid}", "--json").stdout,
            ask(program.http, "/stats.json").body,
        ):
            (client,) = json.loads(text)["clients"]
            assert (client["address"], client["connections"]) == ("127.0.0.1", 2)
        assert "127.0.0.1" not in ask(program.http, "/metrics").body.decode().replace("127.0.0.1:", "")


FAULTS = """
[[rule]]
recipient = "half@*"
phase = "."
then = "half-reply"
[[rule]]
recipient = "none@*"
phase = "."
then = "close-before-reply"
[[rule]]
recipient = "gone@*"
phase = "."
then = "close"
[[rule]]
recipient = "drip@*"
phase = "."
then = { drip = 1 }
[[rule]]
recipient = "late@*"
phase = "."
delay = "9s"
"""


def figures_of_the_client(program: Program) -> tuple[int, int, int]:
    """Return the figures of the only client, after checking that no total is less."""
    snapshot = program.snapshot()
    totals = tuple(
        sum(part.values()) for part in (snapshot.connections, snapshot.messages, snapshot.violations)
    )
    if not snapshot.clients:
        return 0, 0, 0
    client = snapshot.clients[0]
    figures = client.connections, client.messages, client.violations + client.sampled_violations
    assert all(figure <= total for figure, total in zip(figures, totals, strict=True)), (client, totals)
    return figures


def test_figures_by_client_do_not_add_up_to_more_than_the_totals(tmp_path: Path) -> None:
    """A message counts by client too when its reply has left, whatever rules do to replies."""
    with Program("--show_clients", scenario_option(tmp_path, FAULTS), "--workers=2") as program:
        with ExitStack() as stack:
            for recipient in (b"half", b"none", b"gone", b"drip", b"late", b"usual"):
                client = stack.enter_context(SMTPClient(program.address))
                client.send(b"HELO a.test\r\nMAIL FROM:<ann@a>\r\nRCPT TO:<%b@b>\r\nDATA\r\n" % recipient)
                assert [client.read_reply()[:3] for _ in range(4)] == ["250", "250", "250", "354"]
                client.send(b"Subject: a test\r\n\r\nHi\r\n.\r\n")
            wait_for(lambda: figures_of_the_client(program)[:2] == (6, 1), "all connections are shown")
            time.sleep(1.2)  # longer than the interval of the sweep, and less than the delay
            assert figures_of_the_client(program)[:2] == (6, 1)
        program.wait_until_idle(40)
        connections, messages, violations = figures_of_the_client(program)
        snapshot = program.snapshot()
        assert connections == 6
        assert messages == sum(snapshot.messages.values()) < 3
        assert violations == sum(snapshot.violations.values()) > 3


def test_reader_sees_no_message_of_a_client_that_it_does_not_see_in_the_total() -> None:
    counters = Counters(1)
    counters.client_log = ClientLog(1)
    cells, writer = counters.cells(counters.allocate_row()), counters.client_log.writer(0)
    ready, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        for number in range(1, 2**40):
            cells[EventCells().reply(".", 250)] = number
            writer.update("a", "192.0.2.1", number, 0)
            if number == 1:
                os.write(tell, b"!")
    try:
        os.read(ready, 1)
        for _ in range(500):
            snapshot = counters.snapshot()
            assert snapshot.clients is not None
            assert snapshot.clients[0].messages <= snapshot.messages["accepted"]
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(ready)
        os.close(tell)


def test_the_address_from_the_proxy_header_is_shown_instead_of_the_proxy() -> None:
    port = free_port()
    options = ("--show_clients", f"--listen=127.0.0.1:{port},proxy", "--proxy_from=127.0.0.1", "--workers=1")
    with Program(*options) as program, socket.create_connection(("127.0.0.1", port), 20) as client:
        wait_for(lambda: program.snapshot().open, "the connection is open")
        time.sleep(1.2)  # longer than the interval of the sweep
        client.sendall(b"PROXY TCP4 192.0.2.9 127.0.0.1 4711 25\r\n")
        wait_for(lambda: seen(program) == [("192.0.2.9", 1, 0, 0, 0)], "the client is shown")


def test_no_client_is_kept_without_show_clients(tmp_path: Path) -> None:
    """After a reload that switches it off the map is closed too."""
    conf, pid = tmp_path / "blackhole.conf", tmp_path / "pid"
    conf.write_text("")
    with Program(f"--conf={conf}", f"--pid={pid}", "--listen=127.0.0.1:0", "--workers=2") as program:
        assert seen(program) is None
        assert MAP not in descriptors(program.pid)
        assert "clients" not in json.loads(run("status", f"--pid={pid}", "--json").stdout)
        for text, kept in (("show_clients = yes\n", True), ("", False)):
            before = program.output().count("reloaded:")
            conf.write_text(text)
            os.kill(program.pid, signal.SIGHUP)
            wait_for(lambda count=before: program.output().count("reloaded:") > count, "the reload")
            assert (MAP in descriptors(program.pid)) is kept
            assert (seen(program) is not None) is kept
