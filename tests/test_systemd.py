"""Listening sockets passed by systemd, or by a stand-in for it, and readiness."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from blackhole.process import systemd
from blackhole.settings import DashboardAddress, Listener, OperatorError
from tests.external_programs import requires
from tests.http_api import ask
from tests.program import SCRIPT, Program, environment, free_port, run, title, wait_for

PASS_SOCKETS = """
import os, socket, sys
sockets = [socket.create_server((host, int(port))) for host, port in {addresses}]
for number, listening in enumerate(sockets):
    os.dup2(os.dup(listening.fileno()), 3 + number)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(sockets)), LISTEN_FDNAMES="smtp")
os.execv(sys.argv[1], sys.argv[1:])
"""
"""Code that opens the sockets of some addresses and becomes the program, with the same pid."""


def pass_sockets(*addresses: str) -> tuple[str, ...]:
    pairs = [tuple(one.split(":")) for one in addresses]
    return sys.executable, "-W", "ignore", "-c", PASS_SOCKETS.format(addresses=pairs), *SCRIPT


def greeting(address: tuple[str, int]) -> bytes:
    with socket.create_connection(address, 20) as client:
        return client.recv(999)


@pytest.fixture
def sockets() -> list[socket.socket]:
    return [socket.create_server((host, 0)) for host in ("127.0.0.1", "127.0.0.2", "0.0.0.0")]


def address(listening: socket.socket) -> tuple[str, int]:
    host, port = listening.getsockname()
    return host, port


def test_inherited_socket_is_used_for_its_listener_before_and_after_a_reload() -> None:
    """The socket is bound by another process, so the program could not bind the port itself."""
    port = free_port()
    with Program(f"--port={port}", command=pass_sockets(f"127.0.0.1:{port}")) as program:
        assert greeting(program.address).startswith(b"220 ")
        before = program.workers()
        program.process.send_signal(signal.SIGHUP)
        wait_for(lambda: program.workers() and not {*before} & {*program.workers()}, "a reload")
        assert greeting(program.address).startswith(b"220 ")
        assert program.stop() == 0


def test_addresses_without_an_inherited_socket_are_bound() -> None:
    handed, own = free_port(), free_port()
    options = f"--listen=127.0.0.1:{handed}", f"--listen=127.0.0.1:{own}"
    with Program(*options, command=pass_sockets(f"127.0.0.1:{handed}")):
        assert greeting(("127.0.0.1", handed)).startswith(b"220 ")
        assert greeting(("127.0.0.1", own)).startswith(b"220 ")


def test_inherited_socket_without_a_listener_is_an_error() -> None:
    other = free_port()
    done = run(f"--listen=127.0.0.1:{free_port()}", command=pass_sockets(f"127.0.0.1:{other}"))
    assert done.returncode == os.EX_CONFIG
    assert done.stderr == (
        f"blackhole: systemd passed a socket for 127.0.0.1 port {other}, but there is no listener for it\n"
    )


def test_clients_of_an_inherited_dashboard_do_not_block_it() -> None:
    """Several clients at once: after the first, accept(2) of a blocking socket would wait for the next."""
    port, http = free_port(), free_port()
    options = f"--port={port}", f"--dashboard=127.0.0.1:{http}"
    with Program(*options, command=pass_sockets(f"127.0.0.1:{port}", f"127.0.0.1:{http}")):
        for _ in range(2):
            assert ask(http, "/healthz").status == 200


def test_sockets_for_another_process_are_left_alone() -> None:
    for environ in (
        {"LISTEN_PID": "1", "LISTEN_FDS": "1"},
        {"LISTEN_PID": str(os.getpid())},
        {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "-1"},
        {},
    ):
        assert systemd.inherited_sockets(environ) == []
        assert environ == {}, "no child takes the sockets for its own"


@pytest.mark.parametrize("what", ["a file", "a socket that does not listen"])
def test_descriptor_that_is_not_a_listening_socket_is_an_error(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    descriptor = os.open(os.devnull, os.O_RDONLY) if what == "a file" else socket.socket().detach()
    monkeypatch.setattr(systemd, "LISTEN_FDS_START", descriptor)
    with pytest.raises(
        OperatorError,
        match=f"descriptor {descriptor}, passed by systemd, is not a listening TCP or UNIX socket",
    ) as caught:
        systemd.inherited_sockets({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"})
    assert caught.value.code == os.EX_CONFIG
    with suppress(OSError):
        os.close(descriptor)


def test_socket_is_taken_by_the_listener_with_its_address(sockets: list[socket.socket]) -> None:
    first, second, _ = left = [*sockets]
    host, port = address(second)
    assert systemd.take(left, Listener(host, port)) == [second]
    assert systemd.take(left, Listener(host, port)) == []
    host, port = address(first)
    assert systemd.take(left, DashboardAddress(host, port)) == [first]
    for listening in sockets:
        listening.close()


@pytest.mark.parametrize("host", ["", "0.0.0.0", "::"])
def test_wildcard_socket_is_taken_by_a_listener_on_any_wildcard_address(
    sockets: list[socket.socket], host: str
) -> None:
    *_, everywhere = left = [*sockets]
    port = address(everywhere)[1]
    assert systemd.take(left, Listener(host, port + 1)) == []
    assert systemd.take(left, Listener(host, port)) == [everywhere]
    assert left == sockets[:2]
    for listening in sockets:
        listening.close()


@requires("systemd-socket-activate")
def test_program_started_by_systemd_socket_activate_serves_the_first_client() -> None:
    """The client that connects first waits while systemd starts the program."""
    port = free_port()
    command = ["systemd-socket-activate", f"--listen=127.0.0.1:{port}", "-E", "PYTHONPATH", *SCRIPT]
    options = [f"--listen=127.0.0.1:{port}", "--workers=1", "--dashboard=off"]
    with subprocess.Popen(
        [*command, *options], env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        try:
            assert process.stderr is not None
            process.stderr.readline()
            assert greeting(("127.0.0.1", port)).startswith(b"220 ")
            assert title(process.pid) == "blackhole: master"
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
        finally:
            process.kill()


# Readiness


def test_notify_sends_the_state_to_the_socket_of_systemd(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for address, name in (
        (str(tmp_path / "s"), str(tmp_path / "s")),
        (f"@bh{os.getpid()}", f"\0bh{os.getpid()}"),
    ):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.bind(name)
            manager.settimeout(5)
            monkeypatch.setenv("NOTIFY_SOCKET", address)
            systemd.notify("READY=1")
            assert manager.recv(99) == b"READY=1"


def test_notify_without_a_reachable_socket_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    systemd.notify("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", "/nowhere")
    systemd.notify("READY=1")
