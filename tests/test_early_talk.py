"""Clients that talk before the greeting: what tells them from those that wait."""

from __future__ import annotations

import asyncio
import socket

import pytest
from tornado.iostream import IOStream

from blackhole.net.stream import has_unacknowledged_output
from tests.service import Serve
from tests.smtp_client import SMTPClient


def test_output_is_unacknowledged_until_the_client_has_it() -> None:
    async def serve() -> list[bool]:
        ours, theirs = socket.socketpair()
        stream = IOStream(ours)
        seen = [has_unacknowledged_output(stream)]
        await stream.write(b"220 mx.test ESMTP\r\n")
        seen.append(has_unacknowledged_output(stream))
        theirs.recv(100)
        seen.append(has_unacknowledged_output(stream))
        stream.close()
        theirs.close()
        return [*seen, has_unacknowledged_output(stream)]

    assert asyncio.run(serve()) == [False, True, False, False]


@pytest.mark.parametrize("strict", [False, True])
def test_input_that_comes_before_the_greeting_is_acknowledged_is_early(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, strict: bool
) -> None:
    """Looked for in the first input alone: what comes next may be pipelined."""
    monkeypatch.setattr("blackhole.net.connection.has_unacknowledged_output", lambda stream: True)
    service = serve(*(["--strict"] if strict else []))
    with SMTPClient(service.address) as client:
        for line in ("EHLO c.test", "NOOP", "QUIT"):
            assert client.command(line)[0] == "2"
    service.settle()
    snapshot = service.stats.snapshot()
    sample = snapshot.sampled_violations["early-talk"]
    assert snapshot.counted_violations["early-talk"] == strict
    assert (sample.found, sample.inspected, sample.of) == (not strict, 1, 1)


def test_client_that_waits_for_the_greeting_is_not_early(serve: Serve) -> None:
    service = serve()
    for _ in range(50):
        with SMTPClient(service.address) as client:
            assert client.command("EHLO c.test").startswith("250")
    service.settle()
    assert service.stats.snapshot().violations["early-talk"] == 0
