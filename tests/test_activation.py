"""Listening sockets that are handed over by systemd, or by somebody who does the same."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import suppress

import pytest
from program import SCRIPT, Program, environment, free_port, run, title, wait_for

from blackhole.process import systemd
from blackhole.settings import DashboardAddress, Listener, OperatorError

HANDS_OVER = """
import os, socket, sys
doors = [socket.create_server((host, int(port))) for host, port in {addresses}]
for number, door in enumerate(doors):
    os.dup2(os.dup(door.fileno()), 3 + number)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(doors)), LISTEN_FDNAMES="smtp")
os.execv(sys.argv[1], sys.argv[1:])
"""
"""What becomes the program and has the sockets of some addresses; its pid stays."""


def hands_over(*addresses: str) -> tuple[str, ...]:
    pairs = [tuple(one.split(":")) for one in addresses]
    return sys.executable, "-W", "ignore", "-c", HANDS_OVER.format(addresses=pairs), *SCRIPT


def greeting(address: tuple[str, int]) -> bytes:
    with socket.create_connection(address, 20) as client:
        return client.recv(999)


@pytest.fixture
def doors() -> list[socket.socket]:
    return [socket.create_server((host, 0)) for host in ("127.0.0.1", "127.0.0.2", "0.0.0.0")]


def address(door: socket.socket) -> tuple[str, int]:
    host, port = door.getsockname()
    return host, port


def test_what_is_handed_over_is_used() -> None:
    """With the port in other hands the program could not have bound it."""
    port = free_port()
    with Program(f"--port={port}", command=hands_over(f"127.0.0.1:{port}")) as program:
        assert greeting(program.address).startswith(b"220 ")
        before = program.workers()
        program.process.send_signal(signal.SIGHUP)
        wait_for(lambda: program.workers() and not {*before} & {*program.workers()}, "a reload")
        assert greeting(program.address).startswith(b"220 ")
        assert program.stop() == 0


def test_it_may_listen_elsewhere_too() -> None:
    handed, own = free_port(), free_port()
    options = f"--listen=127.0.0.1:{handed}", f"--listen=127.0.0.1:{own}"
    with Program(*options, command=hands_over(f"127.0.0.1:{handed}")):
        assert greeting(("127.0.0.1", handed)).startswith(b"220 ")
        assert greeting(("127.0.0.1", own)).startswith(b"220 ")


def test_what_nobody_asked_for_is_refused() -> None:
    other = free_port()
    done = run(f"--listen=127.0.0.1:{free_port()}", command=hands_over(f"127.0.0.1:{other}"))
    assert done.returncode == os.EX_CONFIG
    assert done.stderr == (
        f"blackhole: systemd hands over 127.0.0.1 port {other}, but there is no listener for it\n"
    )


def test_what_is_for_somebody_else_is_left_alone() -> None:
    for environ in (
        {"LISTEN_PID": "1", "LISTEN_FDS": "1"},
        {"LISTEN_PID": str(os.getpid())},
        {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "-1"},
        {},
    ):
        assert systemd.inherited_sockets(environ) == []
        assert environ == {}, "nor do our children take it for theirs"


@pytest.mark.parametrize("what", ["a file", "a socket that does not listen"])
def test_what_does_not_listen_is_refused(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    descriptor = os.open(os.devnull, os.O_RDONLY) if what == "a file" else socket.socket().detach()
    monkeypatch.setattr(systemd, "FIRST", descriptor)
    with pytest.raises(OperatorError, match=f"descriptor {descriptor} of systemd is no TCP socket") as caught:
        systemd.inherited_sockets({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"})
    assert caught.value.code == os.EX_CONFIG
    with suppress(OSError):
        os.close(descriptor)


def test_an_address_is_that_address(doors: list[socket.socket]) -> None:
    first, second, _ = left = [*doors]
    host, port = address(second)
    assert systemd.take(left, Listener(host, port)) == [second]
    assert systemd.take(left, Listener(host, port)) == []
    host, port = address(first)
    assert systemd.take(left, DashboardAddress(host, port)) == [first]
    for door in doors:
        door.close()


@pytest.mark.parametrize("host", ["", "0.0.0.0", "::"])
def test_all_addresses_are_all_addresses(doors: list[socket.socket], host: str) -> None:
    *_, everywhere = left = [*doors]
    port = address(everywhere)[1]
    assert systemd.take(left, Listener(host, port + 1)) == []
    assert systemd.take(left, Listener(host, port)) == [everywhere]
    assert left == doors[:2]
    for door in doors:
        door.close()


@pytest.mark.skipif(shutil.which("systemd-socket-activate") is None, reason="there is no systemd")
def test_systemd_hands_over() -> None:
    """It starts the program when the first client comes, who waits meanwhile."""
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
