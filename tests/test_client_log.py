"""Which clients came: kept and shown where that was asked for, and nowhere else."""

from __future__ import annotations

import json
import os
import signal
import smtplib
import socket
import time
from pathlib import Path

from program import Program, descriptors, free_port, run, wait_for
from test_web import Sink, ask

from blackhole.metrics.counters import Counters
from blackhole.store.client_log import MAX_SHOWN, PLACES, Client, ClientLog

MAP = "/memfd:blackhole.store.client_log (deleted)"


def shown(client_log: ClientLog) -> list[tuple[str, int, int, int]]:
    return [client[:4] for client in client_log.clients()]


def test_pages_add_up_and_the_busiest_is_first() -> None:
    client_log = ClientLog(3)
    one, other = client_log.page(0), client_log.page(2)
    one.note("a", "192.0.2.1", 2, 0)
    one.note("b", "2001:db8::1", 5, 1)
    other.note("c", "::ffff:192.0.2.1", 1, 1)
    assert shown(client_log) == [("2001:db8::1", 1, 5, 1), ("192.0.2.1", 2, 3, 1)]


def test_a_connection_is_counted_once_and_what_it_did_as_it_grows() -> None:
    client_log = ClientLog(1)
    page = client_log.page(0)
    for messages, faults in ((0, 0), (3, 0), (3, 2)):
        page.note("a", "192.0.2.1", messages, faults)
    page.forget("a")
    page.note("b", "192.0.2.1", 1, 0)
    assert shown(client_log) == [("192.0.2.1", 2, 4, 2)]


def test_what_is_no_address_is_not_kept() -> None:
    client_log = ClientLog(1)
    client_log.page(0).note("a", "", 1, 1)
    assert client_log.clients() == []


def test_a_page_outlives_its_process() -> None:
    client_log = ClientLog(1)
    client_log.page(0).note("a", "192.0.2.1", 1, 0)
    client_log.page(0).note("b", "192.0.2.1", 1, 0)
    assert shown(client_log) == [("192.0.2.1", 2, 2, 0)]


def test_in_a_full_page_whoever_was_seen_longest_ago_makes_room() -> None:
    client_log = ClientLog(1)
    page = client_log.page(0)
    for number in range(PLACES):
        page.note(number, f"10.0.{number // 256}.{number % 256}", 1, 0)
    page.note(0, "10.0.0.0", 2, 0)
    page.note("new", "192.0.2.1", 9, 0)
    assert client_log.clients()[0][:3] == ("192.0.2.1", 1, 9)
    assert len(client_log.clients()) == MAX_SHOWN
    addresses = set(page._places)
    assert (0, 0xFFFF_0A00_0000) in addresses
    assert (0, 0xFFFF_0A00_0001) not in addresses
    assert len(addresses) == PLACES


def send(program: Program, messages: int) -> None:
    with smtplib.SMTP(*program.address, local_hostname="client", timeout=20) as client:
        for _ in range(messages):
            client.sendmail("ann@example.com", ["bob@example.com"], "Subject: a test\r\n\r\nHello\r\n")


def seen(program: Program) -> list[tuple[str, int, int, int]] | None:
    clients: tuple[Client, ...] | None = Counters.of(program.pid).snapshot().clients
    return None if clients is None else [client[:4] for client in clients]


def test_clients_are_shown_where_it_was_asked_for(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    with Sink("--show_clients", f"--pid={pid}", "--workers=2") as program:
        program.dashboard()
        with smtplib.SMTP(*program.address, local_hostname="client", timeout=20) as client:
            client.sendmail("ann@example.com", ["bob@example.com"], "Subject: a test\r\n\r\nHello\r\n")
            wait_for(lambda: seen(program) == [("127.0.0.1", 1, 1, 1)], "it is seen while it is here")
        send(program, 3)
        wait_for(lambda: seen(program) == [("127.0.0.1", 2, 4, 2)], "both are counted")
        line = "127.0.0.1: 2 connections, 4 messages, 2 violations\n"
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


def test_who_is_behind_a_proxy_is_shown_and_not_the_proxy() -> None:
    port = free_port()
    options = ("--show_clients", f"--listen=127.0.0.1:{port},proxy", "--proxy_from=127.0.0.1", "--workers=1")
    with Program(*options) as program, socket.create_connection(("127.0.0.1", port), 20) as client:
        wait_for(lambda: Counters.of(program.pid).snapshot().open, "it is here")
        time.sleep(1.2)  # a sweep passes
        client.sendall(b"PROXY TCP4 192.0.2.9 127.0.0.1 4711 25\r\n")
        wait_for(lambda: seen(program) == [("192.0.2.9", 1, 0, 0)], "it is seen")


def test_without_the_option_nothing_is_kept(tmp_path: Path) -> None:
    """Nor after a reload that takes it back, when the memory is gone too."""
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
