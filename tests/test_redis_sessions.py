"""Sessions that wait for Redis: order of replies, TLS, and clients that leave."""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.certificates import Certificate
from tests.program import Program, wait_for
from tests.redis_server import RedisServer, querying_scenario
from tests.service import Serve
from tests.smtp_client import read_until_closed
from tests.test_server import connect
from tests.transcript import REPLY_TIMEOUT, SocketPeer, Transcript, all_transcripts, play

QUERYING = [one for one in all_transcripts() if one.scenario or "--mode=greylist" in one.options]


@pytest.mark.parametrize("transcript", QUERYING, ids=str)
def test_transcripts_with_rules_pass_with_redis(
    transcript: Transcript, serve: Serve, certificate: Certificate, redis: RedisServer
) -> None:
    argv = transcript.argv(certificate.cert, certificate.key)[1:]
    service = serve(*argv, f"--attempt_store={redis.url()}", secure=transcript.implicit_tls)
    with SocketPeer(service.address, certificate.client) as peer:
        play(transcript, peer)


@contextmanager
def frozen(redis: RedisServer) -> Iterator[None]:
    redis.freeze()
    try:
        yield
    finally:
        redis.thaw()


def test_a_command_sent_while_starttls_waits_for_redis_is_never_run_under_tls(
    serve: Serve, certificate: Certificate, redis: RedisServer, tmp_path: Path
) -> None:
    """CVE-2011-0411, with a command that arrives before Redis has answered whether STARTTLS is refused."""
    tls = (f"--ssl_cert={certificate.cert}", f"--ssl_key={certificate.key}")
    service = serve(*tls, querying_scenario(tmp_path, "STARTTLS"), f"--attempt_store={redis.url()}")
    with connect(service) as client:
        with frozen(redis):
            client.sendall(b"STARTTLS\r\n")
            time.sleep(0.2)
            client.sendall(b"HELO eve.test\r\n")
            time.sleep(0.2)
        assert read_until_closed(client).startswith(b"554 5.5.0 ")


def test_an_implicit_tls_handshake_waits_for_redis(
    serve: Serve, certificate: Certificate, redis: RedisServer, tmp_path: Path
) -> None:
    service = serve(querying_scenario(tmp_path, "STARTTLS"), f"--attempt_store={redis.url()}", secure=True)
    with (
        socket.create_connection(service.address, REPLY_TIMEOUT) as client,
        certificate.client.wrap_socket(client, server_hostname="mx.test") as secure,
    ):
        assert secure.recv(4096).startswith(b"220 ")


def test_early_talk_is_noticed_while_the_greeting_waits_for_redis(
    serve: Serve, redis: RedisServer, tmp_path: Path
) -> None:
    service = serve(querying_scenario(tmp_path, "CONNECT"), f"--attempt_store={redis.url()}")
    with frozen(redis):
        client = socket.create_connection(service.address, REPLY_TIMEOUT)
        time.sleep(0.2)
        client.sendall(b"QUIT\r\n")
        time.sleep(0.2)
    with client:
        assert [line[:3] for line in read_until_closed(client).splitlines()] == [b"220", b"221"]
    service.settle()
    assert service.stats.snapshot().violations["early-talk"] == 1


def test_a_client_that_leaves_while_its_slot_is_queried_releases_the_slot(
    own_redis: RedisServer, serve: Serve, tmp_path: Path
) -> None:
    """The slot is granted after the client has left."""
    more = "[[rule]]\nthrottle = { concurrent = 1 }\nreply = '421 4.7.0 Full'\n"
    service = serve(querying_scenario(tmp_path, "EHLO", more=more), f"--attempt_store={own_redis.url()}")
    with frozen(own_redis):
        client = socket.create_connection(service.address, REPLY_TIMEOUT)
        time.sleep(0.2)
        assert service.open() == 1
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.close()
        service.settle()

    def slot_is_free() -> bool:
        with socket.create_connection(service.address, REPLY_TIMEOUT) as other:
            return other.recv(4096).startswith(b"220 ")

    wait_for(slot_is_free, "the slot is free again")


def test_replies_keep_their_order_when_only_some_commands_wait_for_redis(
    serve: Serve, redis: RedisServer, tmp_path: Path
) -> None:
    service = serve(querying_scenario(tmp_path, "RCPT"), f"--attempt_store={redis.url()}")
    group = b"".join(b"RCPT TO:<r%d@b>\r\nNOOP\r\nVRFY pass=bob\r\n" % number for number in range(50))
    with connect(service) as client:
        client.sendall(b"EHLO a.test\r\nMAIL FROM:<ann@a>\r\n" + group + b"DATA\r\nHi\r\n.\r\nQUIT\r\n")
        replies = [line[4:9] for line in read_until_closed(client).splitlines() if line[3:4] == b" "]
    assert replies[2:-3] == [b"2.1.5", b"2.0.0", b"2.0.0"] * 50


def test_a_server_stops_while_redis_does_not_answer(own_redis: RedisServer, tmp_path: Path) -> None:
    with Program(
        "--workers=1", querying_scenario(tmp_path, "RCPT"), f"--attempt_store={own_redis.url()}"
    ) as program:
        with connect(program) as client:
            own_redis.freeze()
            client.sendall(b"RCPT TO:<bob@b>\r\n")
            time.sleep(0.3)
            program.process.send_signal(signal.SIGTERM)
            assert read_until_closed(client).startswith(b"421 4.3.2 ")
        assert program.process.wait(20) == 0
