"""The accelerators: which are on, and that everything works without any of them."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Set

import pytest

from blackhole import options, usage
from blackhole.net import stdlib_internals
from blackhole.net.accelerators import make_selector, stream_factory
from blackhole.net.direct import DirectStream
from blackhole.net.selector import Selector
from blackhole.net.stream import ClientStream
from blackhole.settings import ACCELERATORS, OperatorError
from tests.service import Serve


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", ACCELERATORS),
        ("off", set()),
        ("selector", {"selector"}),
        ("direct,selector", {"direct", "selector"}),
    ],
)
def test_the_environment_names_the_accelerators_that_are_on(text: str, names: Set[str]) -> None:
    assert options.parse([], {"BLACKHOLE_ACCELERATORS": text}).settings.accelerators == names


def test_an_unknown_accelerator_is_an_error() -> None:
    with pytest.raises(OperatorError, match=r"BLACKHOLE_ACCELERATORS: .* unknown accelerator") as caught:
        options.parse([], {"BLACKHOLE_ACCELERATORS": "warp"})
    assert caught.value.code == os.EX_CONFIG


def test_an_accelerator_is_no_option_in_the_help() -> None:
    assert "accelerator" not in usage.help_text().lower()


def test_a_python_without_the_private_parts_is_served_by_the_simple_program(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    no_deque = property(lambda _: [], lambda *_: None)
    monkeypatch.setattr(asyncio.SelectorEventLoop, "_ready", no_deque, raising=False)
    assert make_selector(ACCELERATORS) is None
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "_ready" in record.getMessage()


def test_connections_are_accepted_without_the_private_function_of_sockets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(socket.socket, "_accept", None)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        accept = stdlib_internals.accept_function(listening)
        monkeypatch.undo()  # `socket.accept` uses it too
        with socket.create_connection(listening.getsockname(), 20) as client:
            fd, address = accept()
            os.close(fd)
            assert address == client.getsockname()


def test_this_python_has_the_private_parts() -> None:
    assert stdlib_internals.check() == ""
    assert isinstance(make_selector(ACCELERATORS), Selector)
    assert make_selector(ACCELERATORS - {"selector"}) is None


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (ACCELERATORS, DirectStream),
        (frozenset(("direct", "fast_path")), ClientStream),
        (frozenset(("selector",)), ClientStream),
    ],
    ids=["all", "direct without the selector", "selector without direct"],
)
def test_the_stream_of_a_connection_depends_on_the_accelerators(
    serve: Serve, names: frozenset[str], kind: type
) -> None:
    service = serve(on=names)
    with socket.create_connection(service.address, 20) as client:
        assert client.recv(4096).startswith(b"220 ")
        (connection,) = service.server.connections
        assert type(connection.stream) is kind
        client.sendall(b"QUIT\r\n")
        assert client.recv(4096).startswith(b"221 ")


def test_a_direct_stream_needs_the_selector() -> None:
    async def stream_class() -> type:
        ours, theirs = socket.socketpair()
        with theirs:
            stream = stream_factory(ACCELERATORS, None)(ours.detach())
            stream.close()
            return type(stream)

    assert asyncio.run(stream_class()) is ClientStream
