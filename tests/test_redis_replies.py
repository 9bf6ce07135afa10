"""What a store replies is input like any other: whatever it is, it ends no worker and fills no memory."""

from __future__ import annotations

import asyncio
import logging
import re
import resource
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from blackhole import redis_url
from blackhole.rules.attempt_store import PendingAnswer, count_attempt
from blackhole.store.redis_attempts import MAX_REASON, RedisAttemptStore
from tests.program import Program, scenario_option, status
from tests.redis_server import RedisServer
from tests.smtp_client import SMTPClient

ACCEPTED = b"*0\r\n"
"""The reply to a batch without requests."""

BAD_REPLIES = (
    *(b"+OK\r\n", b"+\r\n", b"+\xff\xfe\r\n", b"+" + b"x" * 100_000 + b"\r\n", b"\r\n", b"x" * 300_000),
    *(b"-ERR no\r\n", b"-\r\n", b"-\xff\r\n", b"-OOM command not allowed\r\n", b"-NOAUTH Log in\r\n"),
    *(b"-ERR max number of clients reached\r\n", b"-MOVED 1 127.0.0.1:1\r\n", b"-LOADING wait\r\n"),
    *(b"-ERR " + b"x" * 5000 + b"\r\n", b"-ERR \x1b[2J\r\n", b"-NOSCRIPT no\r\n", b"-BUSY wait\r\n"),
    *(b":1\r\n", b":-1\r\n", b":x\r\n", b":\r\n", b":" + b"9" * 5000 + b"\r\n", b":1.5\r\n", b":+1\r\n"),
    *(b"$-1\r\n", b"$-2\r\n", b"$x\r\n", b"$0\r\n\r\n", b"$3\r\nabcde\r\n", b"$65\r\n" + b"x" * 65 + b"\r\n"),
    *(b"$2147483647\r\n" + b"x" * 100_000, b"$9223372036854775807\r\n", b"$4097\r\n" + b"x" * 4099),
    *(
        b"$3\r\n\xff\xfe\xfd\r\n",
        b"*-1\r\n",
        b"*-2\r\n",
        b"*x\r\n",
        b"*2147483647\r\n",
        b"*2\r\n:1\r\n:1\r\n",
    ),
    *(b"*1\r\n$-1\r\n", b"*1\r\n$1\r\n1\r\n", b"*1\r\n+1\r\n", b"*1\r\n-ERR no\r\n", b"*1\r\n:-1\r\n"),
    *(b"*1\r\n" * 20_000, b"*1\r\n*1\r\n:1\r\n", b"*1\r\n*-1\r\n", b"*1\r\n:99999999999999999999\r\n"),
    *(b"%1\r\n+a\r\n:1\r\n", b"_\r\n", b"#t\r\n", b",1.5\r\n", b"(1\r\n", b"~1\r\n:1\r\n", b">1\r\n:1\r\n"),
    *(b"HTTP/1.1 400 Bad Request\r\n\r\n", b"220 mx ESMTP\r\n", b"\0" * 1000 + b"\r\n", b"\n", b""),
)


class FakeRedis:
    """A server that gives each of these replies to one command, and the last one to all further ones.

    After an empty reply it closes the connection.
    """

    def __init__(self, *replies: bytes) -> None:
        self.replies = replies
        self.connections = 0
        self.listening = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self.listening.accept()
                self.connections += 1
                threading.Thread(target=self.serve, args=(connection,), daemon=True).start()

    def serve(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            number = 0
            while connection.recv(1 << 20):
                reply = self.replies[min(number, len(self.replies) - 1)]
                if not reply:
                    return
                connection.sendall(reply)
                number += 1

    def url(self, login: str = "", database: int = 0) -> str:
        return f"redis://{login}127.0.0.1:{self.listening.getsockname()[1]}/{database}?timeout=2"


@contextmanager
def fake(*replies: bytes) -> Iterator[FakeRedis]:
    server = FakeRedis(*replies)
    try:
        yield server
    finally:
        server.listening.shutdown(socket.SHUT_RDWR)
        server.listening.close()


def run_with_store(url: str, work: Callable[[RedisAttemptStore], Awaitable[None]]) -> None:
    async def opened() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: pytest.fail(str(context)))
        store = RedisAttemptStore(redis_url.attempt_store(url))
        await store.open()
        try:
            await work(store)
        finally:
            await store.close()

    asyncio.run(opened())


async def answer(store: RedisAttemptStore, key: bytes = b"ann") -> object:
    """Return the answer, or None if there is none."""
    query = store.update(key, 0.0, count_attempt)
    return await query if isinstance(query, PendingAnswer) else None


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def short(reply: bytes) -> str:
    return repr(reply[:24])


@pytest.mark.parametrize("reply", [*BAD_REPLIES, b"*1\r\n:1\r\n"], ids=short)
def test_unexpected_first_reply_is_logged_and_the_store_has_no_answers(
    reply: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async def work(store: RedisAttemptStore) -> None:
        assert [await answer(store) for _ in range(3)] == [None] * 3

    with fake(reply) as server:
        run_with_store(server.url(), work)
        assert server.connections == 1
    (line,) = warnings(caplog)
    assert line.isprintable()
    assert len(line) < MAX_REASON + 200


@pytest.mark.parametrize("reply", [*BAD_REPLIES, ACCEPTED], ids=short)
def test_unexpected_reply_to_a_batch_is_no_answer(reply: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async def work(store: RedisAttemptStore) -> None:
        assert await answer(store) is None
        assert await answer(store) is None

    with fake(ACCEPTED, reply) as server:
        run_with_store(server.url(), work)
        assert server.connections <= 2
    (line,) = warnings(caplog)
    assert line.isprintable()


@pytest.mark.parametrize(
    "reply", [b"+OK\r\n", b":1\r\n", b"$-1\r\n", b"*0\r\n", b"$2147483647\r\n", b"-ERR no\r\n"]
)
@pytest.mark.parametrize(("login", "database"), [(":geheim@", 0), ("u:geheim@", 0), ("", 3), (":geheim@", 3)])
def test_unexpected_reply_to_auth_and_select_is_no_answer(
    reply: bytes, login: str, database: int, caplog: pytest.LogCaptureFixture
) -> None:
    async def work(store: RedisAttemptStore) -> None:
        assert await answer(store) is None

    with fake(reply) as server:
        run_with_store(server.url(login, database), work)
    assert len(warnings(caplog)) == 1


def test_password_that_a_server_repeats_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def work(store: RedisAttemptStore) -> None:
        assert await answer(store) is None

    with fake(b"-ERR unknown command 'AUTH', with args beginning with: 'geheim'\r\n") as server:
        run_with_store(server.url(":geheim@"), work)
    (line,) = warnings(caplog)
    assert "'***'" in line
    assert "geheim" not in line


def test_store_that_fails_at_each_query_is_asked_less_often(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The connection and its first batch succeed each time."""

    async def work(store: RedisAttemptStore) -> None:
        until = time.monotonic() + 3.5
        while time.monotonic() < until:
            assert await answer(store) is None
            await asyncio.sleep(0.002)

    with fake(ACCEPTED, b"-ERR no\r\n") as server:
        run_with_store(server.url(), work)
        assert 2 <= server.connections <= 4
    assert len(warnings(caplog)) == 1


def test_an_announced_string_takes_no_memory() -> None:
    async def work(store: RedisAttemptStore) -> None:
        await answer(store)

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with fake(ACCEPTED, b"$2147483647\r\n" + b"x" * (64 << 20)) as server:
        run_with_store(server.url(), work)
    # The 64 MiB themselves belong to the fake server, which is in this process.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10


UNKNOWN = """
[[rule]]
throttle = { recipients = 4, per = "hour", by = "all" }
reply = "452 4.5.3 Slow down"
when_unknown = "451 4.3.0 Try again later"
"""


@pytest.mark.parametrize(
    "reply", [b":1\r\n", b"$-1\r\n", b"$2147483647\r\n" + b"x" * 100_000, b"$3\r\n\xff\xfe\xfd\r\n"]
)
def test_program_serves_whatever_the_store_replies(reply: bytes, tmp_path: Path) -> None:
    with (
        fake(reply) as server,
        Program(
            "--workers=2", scenario_option(tmp_path, UNKNOWN), f"--attempt_store={server.url()}"
        ) as program,
    ):
        with SMTPClient(program.address) as client:
            client.command_code("MAIL FROM:<ann@a>")
            assert [client.command_code("RCPT TO:<bob@b>") for _ in range(30)] == ["451"] * 30
        for pid in program.workers():
            assert int(status(pid)["VmRSS"].split()[0]) < 100_000
        assert program.stop() == 0
        assert len(re.findall("WARNING", program.output())) == 1
        assert "Traceback" not in program.output()


# With Redis itself


async def until_answered(store: RedisAttemptStore) -> None:
    end = time.monotonic() + 20
    while await answer(store, b"any") is None:
        assert time.monotonic() < end, "no answer in time"
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("secret", [b"x" * 16, b"x" * 64, b"\xff\xfe" * 16, b"\r\n" * 9, b"?"], ids=short)
def test_secret_of_any_octets_is_used(secret: bytes, redis: RedisServer) -> None:
    redis.ask("SET", "blackhole:secret", secret)  # type: ignore[arg-type]

    async def work(store: RedisAttemptStore) -> None:
        assert [await answer(store) for _ in range(2)] == [1, 2]

    run_with_store(redis.url(), work)


@pytest.mark.parametrize(
    "command",
    [
        ("SET", "blackhole:secret", ""),
        ("SET", "blackhole:secret", "x" * 65),
        ("SET", "blackhole:secret", "é" * 1_000_000),
        ("LPUSH", "blackhole:secret", "x"),
        ("HSET", "blackhole:secret", "x", "y"),
    ],
    ids=lambda command: f"{command[0]} {len(command[2])}",
)
def test_unusable_secret_is_reported_and_its_deletion_noticed(
    command: tuple[str, ...], redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async def work(store: RedisAttemptStore) -> None:
        assert await answer(store) == 1
        redis.ask("DEL", "blackhole:secret")
        redis.ask(*command)
        assert [await answer(store) for _ in range(3)] == [None] * 3
        redis.ask("DEL", "blackhole:secret")
        await until_answered(store)
        assert await answer(store) == 2, "with the secret that it had before"

    run_with_store(redis.url(), work)
    (line,) = warnings(caplog)
    assert "blackhole:secret holds no secret of 1 to 64 octets; delete it" in line


@pytest.mark.parametrize(
    "command",
    [
        ("SET", "junk"),
        ("SET", ""),
        ("SET", "1 2"),
        ("SET", "-1 1 1"),
        ("SET", "1 2 3 4"),
        ("SET", "9" * 300 + " 1 1"),
        ("SET", "99999999999999999999 1 1"),
        ("SET", f"1 {10**18} {10**18}"),
        ("SET", "1 5 4"),
        ("SET", "1" * 100_000),
        ("LPUSH", "junk"),
        ("SADD", "junk"),
        ("ZADD", "1", "junk"),
        ("HSET", "a", "b"),
    ],
    ids=lambda command: f"{command[0]} {command[1][:12]}",
)
def test_key_that_holds_no_record_is_a_new_key(command: tuple[str, ...], redis: RedisServer) -> None:
    verb, *value = command

    async def work(store: RedisAttemptStore) -> None:
        assert await answer(store) == 1
        (key,) = redis.names("blackhole:attempt:*")
        redis.ask("DEL", key)
        redis.ask(verb, key, *value)
        assert await asyncio.gather(answer(store), answer(store, b"bob")) == [1, 1]
        assert await answer(store) == 2

    run_with_store(redis.url(), work)


@pytest.mark.parametrize(
    "command",
    [("SET", "junk"), ("LPUSH", "junk"), ("ZADD", "9e18", "junk"), ("ZADD", "+inf", "junk")],
    ids=str,
)
def test_key_that_holds_no_leases_has_free_slots(command: tuple[str, ...], redis: RedisServer) -> None:
    verb, *value = command

    async def work(store: RedisAttemptStore) -> None:
        lease = store.refuse_or_acquire(b"slot", 1)
        assert lease is not None
        assert await lease == 0
        (key,) = redis.names("blackhole:slots:*")
        redis.ask("DEL", key)
        redis.ask(verb, key, *value)
        store._renew()
        assert await answer(store) == 1
        other = store.refuse_or_acquire(b"slot", 1)
        assert other is not None
        assert await other == 1, "it was renewed"
        redis.ask("DEL", key)
        redis.ask(verb, key, *value)
        store.release(lease)
        third = store.refuse_or_acquire(b"slot", 1)
        assert third is not None
        assert await third == 0

    run_with_store(redis.url(), work)


def test_redis_without_memory_is_not_connected_to_once_a_query(
    own_redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    def connections() -> int:
        return int(own_redis.ask("INFO", "stats")["total_connections_received"])

    async def work(store: RedisAttemptStore) -> None:
        assert await answer(store) == 1
        own_redis.ask("CONFIG", "SET", "maxmemory", 1)
        before, until = connections(), time.monotonic() + 1.5
        while time.monotonic() < until:
            assert await answer(store) is None
            await asyncio.sleep(0.002)
        assert connections() - before <= 4
        assert "answers again" not in caplog.text
        own_redis.ask("CONFIG", "SET", "maxmemory", 0)
        await until_answered(store)

    run_with_store(own_redis.url(), work)
    assert len(warnings(caplog)) == 1
    assert caplog.text.count("answers again") == 1


def test_commands_that_wait_for_redis_are_one_for_each_slot(own_redis: RedisServer) -> None:
    async def work(store: RedisAttemptStore) -> None:
        leases = [store.refuse_or_acquire(b"slot", 9) for _ in range(3)]
        for lease in leases:
            assert lease is not None
            assert await lease == 0
        own_redis.ask("CONFIG", "SET", "maxmemory", 1)
        for _ in range(50):
            store._renew()
        assert await answer(store) is None
        assert len(store._commands) <= 3
        assert leases[0] is not None
        store.release(leases[0])
        store._renew()
        assert sorted(command.words.split()[0] for command in store._commands.values()) == [
            "release",
            "renew",
            "renew",
        ]
        own_redis.ask("CONFIG", "SET", "maxmemory", 0)
        await until_answered(store)
        (key,) = own_redis.names("blackhole:slots:*")
        assert own_redis.ask("ZCARD", key) == 2

    run_with_store(own_redis.url(), work)
