"""What is said about an address that cannot be listened on, and how workers share connections."""

from __future__ import annotations

import asyncio
import errno
import os
import socket

import pytest

from blackhole.addresses import NetworkSet, client_address, socket_host, to_bytes
from blackhole.net import acceptor
from blackhole.net.poller import EventHandler
from blackhole.settings import DashboardAddress, Listener, OperatorError


def problem(address: acceptor.Address, code: int, others: tuple[acceptor.Address, ...] = ()) -> str:
    return acceptor.bind_problem(address, OSError(code, ""), others)


def error_of(
    monkeypatch: pytest.MonkeyPatch,
    raised_by_bind: OSError,
    address: acceptor.Address,
    *others: acceptor.Address,
) -> OperatorError:
    """The error where Tornado raises this one."""

    def refuse(*_: object, **__: object) -> None:
        raise raised_by_bind

    monkeypatch.setattr(acceptor, "bind_sockets", refuse)
    with pytest.raises(OperatorError) as raised:
        acceptor.bind(address, 1, others)
    return raised.value


def test_an_address_that_blackhole_has_itself_is_said_to_be_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = OSError(errno.EADDRINUSE, "")
    error = error_of(monkeypatch, taken, DashboardAddress("127.0.0.1", 465), Listener("", 465, tls=True))
    assert str(error) == (
        "cannot listen on 127.0.0.1:465: Blackhole itself does, for --ssl-port or --listen;"
        " choose another port with --dashboard"
    )
    assert problem(Listener("", 25), errno.EADDRINUSE) == "something else does; see `ss -ltnp`"


@pytest.mark.parametrize(
    ("address", "option"),
    [
        (Listener("", 465, tls=True), "--ssl-port or --listen"),
        (Listener("", 25), "--port or --listen"),
        (DashboardAddress("::1", 80), "--dashboard"),
    ],
)
def test_error_about_a_privileged_port_names_its_option(
    monkeypatch: pytest.MonkeyPatch, address: acceptor.Address, option: str
) -> None:
    error = error_of(monkeypatch, PermissionError(), address)
    assert f"above 1023 with {option}, or " in str(error)
    assert "setcap" not in str(error)
    assert error.code == os.EX_NOPERM


def test_link_local_address_without_its_interface_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    error = error_of(monkeypatch, OSError(errno.EINVAL, ""), Listener("fe80::1", 0))
    assert str(error) == (
        "cannot listen on [fe80::1]:0: a link-local address needs its interface: fe80::1%eth0"
    )
    assert error.code == os.EX_CONFIG
    assert problem(Listener("fe80::1%lo", 0), errno.EINVAL) == "Invalid argument"
    assert problem(Listener("", 0), errno.EINVAL) == "Invalid argument"


def test_link_local_address_keeps_its_interface_in_what_is_said() -> None:
    loopback = socket.if_nametoindex("lo")
    assert socket_host(("fe80::1", 25, 0, loopback)) == "fe80::1%lo"
    assert socket_host(("fe80::1%lo", 25, 0, loopback)) == "fe80::1%lo"
    assert socket_host(("fe80::1", 25, 0, 1 << 30)) == f"fe80::1%{1 << 30}"
    assert socket_host(("::1", 25, 0, 0)) == "::1"
    assert socket_host(("127.0.0.1", 25)) == "127.0.0.1"


def test_link_local_client_keeps_its_interface() -> None:
    """Two neighbours may have the same address, each on its own interface."""
    client = client_address(("fe80::1", 1024, 0, socket.if_nametoindex("lo")))
    assert client == "fe80::1%lo"
    assert to_bytes(client) in NetworkSet(["fe80::/10"])
    assert client_address(("::ffff:192.0.2.1", 1024, 0, 0)) == "192.0.2.1"
    assert client_address("") == client_address("/run/client.sock") == "unix"


class RecordingPoller:
    """A poller that only notes what is asked of it."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def attach(self, fd: int, handler: EventHandler, events: int) -> None:
        self.asked.append("attach")

    def detach(self, fd: int) -> None:
        self.asked.append("detach")


@pytest.mark.parametrize(
    "own, least, asked",
    [
        (26, 24, ["attach"]),
        (30, 24, ["attach", "detach", "attach"]),
        (80, 24, ["attach", "detach"]),
    ],
    ids=["even", "ahead", "far ahead"],
)
def test_worker_lets_others_accept_where_it_has_more_connections(
    own: int, least: int, asked: list[str]
) -> None:
    """Ahead, it waits behind the others but goes on. Only far ahead does it stop for a moment."""
    accepted: list[int] = []

    async def accept() -> list[str]:
        poller = RecordingPoller()
        listening = socket.create_server(("127.0.0.1", 0))
        with listening, socket.create_connection(listening.getsockname()):
            one = acceptor.Acceptor(
                listening, poller, lambda fd, _: accepted.append(fd), lambda *_: False, lambda: (own, least)
            )
            one.handle_events(0)
            at_once = list(poller.asked)
            if at_once[-1] == "detach":
                async with asyncio.timeout(10):
                    while poller.asked[-1] == "detach":
                        await asyncio.sleep(0.001)
            one.close()
        return at_once

    assert asyncio.run(accept()) == asked
    assert len(accepted) == 1
    os.close(accepted[0])
