"""The configuration of contrib/haproxy, with the real HAProxy before two sinks."""

from __future__ import annotations

import os
import signal
import smtplib
import socket
import subprocess
from collections.abc import Iterator

import pytest

from tests.external_programs import path_of, requires
from tests.http_api import Sink, figures, sent
from tests.program import ROOT, free_port, wait_for

pytestmark = requires("haproxy")

CONFIGURATION = ROOT / "contrib/haproxy/haproxy.cfg"


def command(*options: str) -> list[str]:
    return [path_of("haproxy"), *options, "-f", str(CONFIGURATION)]


def sink_behind_a_proxy() -> Sink:
    port = free_port()
    listener = f"--listen=127.0.0.1:{port},proxy"
    sink = Sink(listener, "--workers=1", "--proxy_from=127.0.0.1", "--show_clients")
    sink.port = port
    return sink


@pytest.fixture
def sinks() -> Iterator[list[Sink]]:
    """Two sinks that expect a PROXY header."""
    with sink_behind_a_proxy() as first, sink_behind_a_proxy() as second:
        for sink in (first, second):
            sink.dashboard()
        yield [first, second]


@pytest.fixture
def port(sinks: list[Sink]) -> Iterator[int]:
    """HAProxy before the two sinks; the port that it listens on."""
    found = free_port()
    addresses = {f"SINK{number}": f"127.0.0.1:{sink.port}" for number, sink in enumerate(sinks, 1)}
    environ = os.environ | addresses | {"SMTP_ADDRESS": f"127.0.0.1:{found}"}
    checked = subprocess.run(command("-c"), env=environ, capture_output=True, text=True, check=False)
    assert (checked.returncode, "WARNING" in checked.stderr) == (0, False), checked.stderr
    with subprocess.Popen(command("-db"), env=environ, stderr=subprocess.DEVNULL) as process:
        try:
            wait_for(lambda: sent(found), "HAProxy passes mail on")
            yield found
        finally:
            process.kill()


def clients_of(sink: Sink) -> set[str]:
    """Return the addresses of the clients that sent messages."""
    return {client["address"] for client in figures(sink.http)["clients"] if client["messages"]}


def received(sink: Sink) -> int:
    return sum(figures(sink.http)["messages"].values())


def test_both_sinks_get_mail_and_know_the_client(sinks: list[Sink], port: int) -> None:
    def send_from_another_address() -> bool:
        with smtplib.SMTP("127.0.0.1", port, timeout=30, source_address=("127.0.0.5", 0)) as client:
            client.sendmail("a@example.com", ["b@example.com"], "Subject: x\r\n\r\nx\r\n")
        return all("127.0.0.5" in clients_of(sink) for sink in sinks)

    wait_for(send_from_another_address, "both sinks know the client that HAProxy speaks for")
    for sink in sinks:
        assert sum(figures(sink.http)["violations"].values()) == 0, "the checks are no violation"
        wait_for(lambda sink=sink: figures(sink.http)["connections"]["probes"], "a check is a probe")


def test_sink_that_hangs_gets_no_more_mail(sinks: list[Sink], port: int) -> None:
    hanging, other = sinks
    pids = [hanging.pid, *hanging.workers()]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        before = received(other)

        def failed_over() -> bool:
            return all(sent_within(port, 3) for _ in range(4))

        wait_for(failed_over, "four messages in a row arrive", 60)
        assert received(other) >= before + 4
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def sent_within(port: int, timeout: float) -> bool:
    """Return whether a server greets within `timeout` seconds and takes a message."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout) as client:
            return client.recv(4) == b"220 " and sent(port)
    except OSError:
        return False
