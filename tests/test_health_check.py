"""`blackhole check`: whether a server greets its clients, whatever its dashboard says."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from blackhole import health_check
from blackhole.settings import Listener, OperatorError, Settings
from tests.certificates import Certificate
from tests.http_api import Sink, ask
from tests.program import Program, free_port, run


def settings(*listeners: Listener) -> Settings:
    return Settings(listeners=listeners)


@contextmanager
def answering(octets: bytes) -> Iterator[Listener]:
    """A server that sends this to each client and closes."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            while True:
                try:
                    client, _ = listening.accept()
                except OSError:
                    return
                with client:
                    client.sendall(octets)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield Listener(*listening.getsockname())
        listening.shutdown(socket.SHUT_RDWR)
        thread.join(10)


def test_server_that_greets_is_healthy_and_the_check_is_no_violation() -> None:
    with Program() as program:
        done = run("check", f"--port={program.port}")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("220 ")
        program.wait_until_idle()
        assert sum(program.snapshot().violations.values()) == 0


def test_server_whose_dashboard_answers_while_its_worker_hangs_is_not_healthy() -> None:
    with Sink("--workers=1") as sink:
        sink.dashboard()
        worker = sink.workers()[0]
        os.kill(worker, signal.SIGSTOP)
        try:
            done = run("check", "--host=127.0.0.1", f"--port={sink.port}")
            assert ask(sink.http, "/healthz").status == 200
        finally:
            os.kill(worker, signal.SIGCONT)
        assert done.returncode == 1
        assert done.stderr.startswith(f"blackhole: 127.0.0.1:{sink.port} timed out; expected 220")


def test_check_waits_for_a_server_that_is_starting() -> None:
    port = free_port()
    found: list[str] = []
    check = threading.Thread(
        target=lambda: found.append(health_check.check(settings(Listener("", port)), timeout=20))
    )
    check.start()
    with Program(f"--port={port}"):
        check.join(30)
    assert found[0].startswith("220 ")


def test_no_server_is_an_error_after_the_timeout() -> None:
    began = time.monotonic()
    with pytest.raises(OperatorError, match="Connection refused; expected 220") as caught:
        health_check.check(settings(Listener("0.0.0.0", free_port())), timeout=0.3)
    assert caught.value.code == 1
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("octets", "problem"),
    [(b"", "closed the connection"), (b"HTTP/1.1 200 OK\r\n", "greets with 'HTTP/1.1 200")],
)
def test_port_that_does_not_speak_smtp_is_an_error(octets: bytes, problem: str) -> None:
    with answering(octets) as listener, pytest.raises(OperatorError, match=problem):
        health_check.check(settings(listener), timeout=0.3)


@pytest.mark.parametrize("mode", health_check.GREETINGS)
def test_mode_that_refuses_in_the_greeting_is_healthy(mode: str) -> None:
    with Program(f"--mode={mode}") as program:
        assert run("check", f"--port={program.port}", f"--mode={mode}").returncode == 0
        done = run("check", f"--port={program.port}")
        assert done.returncode == 1
        assert f"greets with '{health_check.GREETINGS[mode]} " in done.stderr


def test_listener_with_tls_or_behind_a_proxy_is_checked_too(certificate: Certificate) -> None:
    for suffix in (",tls", ",proxy", ",tls,proxy"):
        port = free_port()
        options = (
            f"--listen=127.0.0.1:{port}{suffix}",
            f"--ssl_cert={certificate.cert}",
            f"--ssl_key={certificate.key}",
            "--proxy_from=127.0.0.1",
        )
        with Program(*options):
            done = run("check", *options)
            assert (done.returncode, done.stdout[:4]) == (0, "220 "), (suffix, done.stderr)


def test_plain_listener_is_preferred() -> None:
    first, second, third = (Listener("a", 1, proxy=True), Listener("a", 2, tls=True), Listener("a", 3))
    assert health_check.choose((first, second, third)) == third
    assert health_check.choose((first, second)) == second


def test_port_that_the_kernel_chooses_cannot_be_checked() -> None:
    done = run("check", "--port=0")
    assert (done.returncode, done.stderr) == (
        os.EX_CONFIG,
        "blackhole: port 0 is any free port: check needs to know the port\n",
    )
