"""The store of attempts in a real Redis: shared by machines, and missing while Redis does not answer."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import Certificate
from hypothesis import given, settings
from hypothesis import strategies as st
from program import ROOT, Program, children, run, wait_for
from program import SCRIPT as PROGRAM
from redis_server import RedisServer
from service import Serve
from test_gates import Client
from test_gates import attempt as attempted
from test_server import connect, until_closed
from transcript import REPLY_TIMEOUT, SocketPeer, Transcript, all_transcripts, play

from blackhole import options, values
from blackhole.rules.attempt_store import Answer, PendingAnswer, ScopedStore, Update, count_attempt
from blackhole.rules.limiters import Greylist, WindowCount
from blackhole.settings import OperatorError, RedisSettings
from blackhole.store import redis_attempts
from blackhole.store.attempts import AttemptTable
from blackhole.store.redis_attempts import BATCH_SIZE, RedisAttemptStore
from blackhole.store.redis_client import ANSWER_TIMEOUT
from blackhole.store.redis_requests import Lease, Query
from blackhole.store.redis_script import LEASE_SECONDS, READ_CLOCK, SCRIPT, request_words


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer() as running:
        yield running


@pytest.fixture
def redis(server: RedisServer) -> RedisServer:
    """The server of this module, empty."""
    server.ask("FLUSHALL")
    return server


@pytest.fixture
def own() -> Iterator[RedisServer]:
    """A server of its own for a test that freezes or kills it."""
    with RedisServer() as running:
        yield running


# The script


class Scripted:
    """The script, run for one request at a time, with a clock that is set by hand."""

    def __init__(self, redis: RedisServer) -> None:
        self.redis = redis
        self.script = SCRIPT.replace(READ_CLOCK, "local now = tonumber(redis.call('GET', 'clock'))")
        assert self.script != SCRIPT

    def ask(self, key: str, text: str, now: float) -> int:
        self.redis.ask("SET", "clock", round(now * 1e6))
        (answer,) = self.redis.ask("EVAL", self.script, 2, "secret", key, "s", text)
        return int(answer)


CHANGES: list[Update[int]] = [
    count_attempt,
    Greylist(300.0, 900.0).blocks_attempt,
    Greylist(0.0, 900.0).blocks_attempt,
    Greylist(0.5, 600.25).blocks_attempt,
    WindowCount(1, 2, 400.0).spend,
    WindowCount(30, 100, 1000.5).spend,
    WindowCount(0, 0, 60.0).spend,
    WindowCount(5, 4, 60.0).spend,
]


@settings(deadline=None, max_examples=60)
@given(
    change=st.sampled_from(CHANGES),
    steps=st.lists(
        st.one_of(
            st.sampled_from([0.0, 299.999999, 300.0, 400.0, 600.0, 900.0, 1000.5]), st.integers(0, 700)
        ),
        min_size=1,
        max_size=12,
    ),
)
def test_the_script_answers_as_the_local_table_does(
    server: RedisServer, change: Update[int], steps: list[float]
) -> None:
    server.ask("FLUSHALL")
    there, here, now = Scripted(server), AttemptTable(sets=1), 1_700_000_000.0
    for step in steps:
        now += step
        assert there.ask("key", request_words(change), now) == here.update(b"key", now, change)


@pytest.mark.parametrize(
    ("change", "lasts"),
    [
        (count_attempt, 7 * 86400),
        (Greylist(300.0, 900.0).blocks_attempt, 900),
        (WindowCount(1, 2, 90.0).spend, 90),
    ],
)
def test_every_record_expires(redis: RedisServer, change: Update[int], lasts: float) -> None:
    there = Scripted(redis)
    there.ask("key", request_words(change), 1e9)
    assert lasts - 60 < redis.ask("PTTL", "key") / 1000 <= lasts


def test_a_triplet_that_passed_the_greylist_is_kept_for_35_days(redis: RedisServer) -> None:
    there = Scripted(redis)
    text = request_words(Greylist(300.0, 900.0).blocks_attempt)
    assert [there.ask("key", text, at) for at in (1000, 1300, 1301)] == [1, 0, 0]
    assert redis.ask("PTTL", "key") / 86400e3 > 34.9


def test_counting_in_a_window_does_not_extend_it(redis: RedisServer) -> None:
    there = Scripted(redis)
    text = request_words(WindowCount(1, 9, 90.0).spend)
    assert [there.ask("key", text, at) for at in (1000, 1080)] == [0, 0]
    assert redis.ask("PTTL", "key") <= 10000


def test_a_slot_that_is_not_renewed_is_free_when_its_lease_ends(redis: RedisServer) -> None:
    there = Scripted(redis)

    def at(now: float, text: str) -> int:
        return there.ask("slot", text, now)

    assert [at(1000, f"acquire 2 w{n}.1") for n in range(3)] == [0, 0, 1]
    assert at(1000 + LEASE_SECONDS - 1, "acquire 2 w4.1") == 1
    assert at(1000 + LEASE_SECONDS - 1, "renew w0.1") == 0
    assert [at(1001 + LEASE_SECONDS, f"acquire 2 w{n}.1") for n in (4, 5)] == [0, 1]
    assert at(1001 + LEASE_SECONDS, "release w0.1") == 0
    assert at(1001 + LEASE_SECONDS, "acquire 2 w5.1") == 0
    assert sorted(redis.ask("ZRANGE", "slot", 0, -1)) == ["w4.1", "w5.1"]


# Stores of several machines


Work = Callable[..., Awaitable[None]]


def run_with_stores(redis: RedisServer, work: Work, count: int = 2, more: str = "") -> None:
    """Run `work` with the open stores of `count` machines."""

    async def together() -> None:
        stores = [RedisAttemptStore(values.attempt_store(redis.url(more))) for _ in range(count)]
        for store in stores:
            await store.open()
        try:
            await work(*stores)
        finally:
            for store in stores:
                await store.close()

    asyncio.run(together())


async def answer(
    store: RedisAttemptStore | ScopedStore, key: bytes, change: Update[Answer] = count_attempt
) -> int | None:  # type: ignore[assignment]
    """Return the answer, or None if there is none."""
    question = store.update(key, 0.0, change)
    return await question if isinstance(question, PendingAnswer) else None


async def acquire(store: RedisAttemptStore | ScopedStore, limit: int) -> Lease | None:
    """Return a slot, or None if all are taken."""
    asked = store.refuse_or_acquire(b"slot", limit)
    assert isinstance(asked, Lease)
    return None if await asked else asked


async def until(look: Callable[[], Awaitable[object]], what: str) -> None:
    end = time.monotonic() + 20
    while not await look():
        assert time.monotonic() < end, f"waited in vain: {what}"
        await asyncio.sleep(0.02)


def test_machines_count_attempts_together(redis: RedisServer) -> None:
    async def work(one: RedisAttemptStore, other: RedisAttemptStore) -> None:
        assert [await answer(store, b"ann@example.com") for store in (one, other, one)] == [1, 2, 3]
        assert await answer(other, b"bob@example.com") == 1

    run_with_stores(redis, work)
    *seen, secret = redis.names()
    assert secret == "blackhole:secret"
    assert len(seen) == 2 and all(key.startswith("blackhole:attempt:") for key in seen)
    everything = " ".join([*seen, *(redis.ask("GET", key) for key in seen)])
    assert "ann" not in everything and "example" not in everything


def test_queries_of_many_sessions_go_in_few_batches(redis: RedisServer) -> None:
    async def work(one: RedisAttemptStore, other: RedisAttemptStore) -> None:
        before = redis.ask("INFO", "commandstats")["cmdstat_eval"]["calls"]
        many = 4 * BATCH_SIZE
        heard = await asyncio.gather(
            *(
                answer(store, b"all", WindowCount(1, many + 7, 3600.0).spend)
                for store in (one, other)
                for _ in range(many)
            )
        )
        assert Counter(heard) == {0: many + 7, 1: many - 7}
        assert redis.ask("INFO", "commandstats")["cmdstat_eval"]["calls"] - before <= 12

    run_with_stores(redis, work)


def test_records_under_different_prefixes_are_separate(redis: RedisServer) -> None:
    async def work(store: RedisAttemptStore) -> None:
        assert await answer(store, b"ann") == 1

    for prefix in ("one", "other"):
        run_with_stores(redis, work, 1, f"&prefix={prefix}")
    assert {key.split(":")[0] for key in redis.names()} == {"one", "other"}


def test_a_lost_secret_is_restored_and_a_foreign_one_adopted(redis: RedisServer) -> None:
    async def work(one: RedisAttemptStore, other: RedisAttemptStore) -> None:
        assert await answer(one, b"ann") == 1
        secret = redis.ask("GET", "blackhole:secret")
        redis.ask("FLUSHALL")
        assert [await answer(store, b"ann") for store in (other, one)] == [1, 2]
        assert redis.ask("GET", "blackhole:secret") == secret
        redis.ask("SET", "blackhole:secret", "of somebody who came first")
        assert [await answer(store, b"ann") for store in (other, one)] == [1, 2]

    run_with_stores(redis, work)


def test_a_concurrency_limit_counts_over_all_machines(redis: RedisServer) -> None:
    async def work(one: RedisAttemptStore, other: RedisAttemptStore) -> None:
        first, second = await acquire(one, 2), await acquire(other, 2)
        assert first and second
        assert not await acquire(one, 2) and not await acquire(other, 2)
        one.release(first)
        await until(lambda: acquire(other, 2), "a slot is free")

    run_with_stores(redis, work)
    assert redis.names("blackhole:slots:*") == [], "all have left, as their machines have"


def test_a_scoped_store_sees_no_record_of_another_scope(redis: RedisServer) -> None:
    async def work(one: RedisAttemptStore, other: RedisAttemptStore) -> None:
        first, second = (ScopedStore(one, mark) for mark in (b"1", b"2"))
        again = ScopedStore(other, b"1")
        assert [await answer(era, b"ann") for era in (one, first, second, again)] == [1, 1, 1, 2]
        place = await acquire(first, 1)
        assert place and await acquire(second, 1)
        assert not await acquire(again, 1)
        first.release(place)
        await until(lambda: acquire(again, 1), "a slot is free")

    run_with_stores(redis, work)


def test_releasing_a_refused_slot_frees_no_other_slot(redis: RedisServer) -> None:
    async def work(one: RedisAttemptStore, other: RedisAttemptStore) -> None:
        assert await acquire(one, 1)
        refused = other.refuse_or_acquire(b"slot", 1)
        assert refused is not None and await refused
        other.release(refused)
        assert await answer(other, b"something that comes behind it")
        assert not await acquire(other, 1)

    run_with_stores(redis, work)


def test_leases_are_renewed_and_restored_after_data_loss(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_attempts, "RENEW_INTERVAL", 0.1)

    async def work(one: RedisAttemptStore, other: RedisAttemptStore) -> None:
        taken = await acquire(one, 2)
        refused = other.refuse_or_acquire(b"slot", 0)
        assert taken is not None and refused is not None and await refused
        (room,) = redis.names("blackhole:slots:*")
        score = redis.ask("ZSCORE", room, taken.token)

        async def renewed() -> bool:
            return float(redis.ask("ZSCORE", room, taken.token) or 0) > float(score)

        await until(renewed, "the lease is longer")
        redis.ask("FLUSHALL")
        await until(renewed, "the lease is restored")
        assert redis.ask("ZRANGE", room, 0, -1) == [taken.token]

    run_with_stores(redis, work)


# Redis does not answer


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


async def not_answering(store: RedisAttemptStore) -> bool:
    return store.update(b"x", 0.0, count_attempt) is None


async def answering(store: RedisAttemptStore) -> bool:
    return await answer(store, b"x") is not None


def test_a_frozen_redis_delays_one_query_and_is_used_again_when_it_answers(
    own: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async def work(store: RedisAttemptStore, other: RedisAttemptStore) -> None:
        own.freeze()
        began = time.monotonic()
        asked = [store.update(b"ann", 0.0, count_attempt), store.refuse_or_acquire(b"slot", 1)]
        assert [await question for question in asked if question is not None] == [None, None]
        assert 0.04 < time.monotonic() - began < 2
        await until(lambda: not_answering(store), "queries are refused")
        assert store.refuse_or_acquire(b"slot", 1) is None
        assert isinstance(asked[1], Lease)
        store.release(asked[1])
        await asyncio.sleep(1.2)
        own.thaw()
        await until(lambda: answering(store), "queries are accepted again")
        # The slot was acquired after its query had timed out, and is released all the same.
        await until(lambda: acquire(other, 1), "the slot is free")

    caplog.set_level(logging.INFO)
    run_with_stores(own, work, more="&timeout=0.05")
    (line,) = warnings(caplog)[:1]
    assert line.startswith(f"attempt_store: redis://127.0.0.1:{own.port}/0: no answer in time; ")
    assert len(warnings(caplog)) <= 2, "one for each machine at most"
    assert any(record.getMessage().endswith("answers again") for record in caplog.records)


def test_a_short_silence_keeps_the_connection_and_logs_nothing(
    own: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    """The pause can be on this side too, on a busy machine."""

    async def work(store: RedisAttemptStore) -> None:
        before = own.ask("CLIENT", "LIST").count("addr=")
        own.freeze()
        assert await answer(store, b"ann") is None
        await until(lambda: not_answering(store), "queries are refused")
        own.thaw()
        await until(lambda: answering(store), "queries are accepted again")
        # A query that was answered too late was counted all the same.
        assert await answer(store, b"ann") == 2
        assert own.ask("CLIENT", "LIST").count("addr=") == before

    run_with_stores(own, work, 1, "&timeout=0.05")
    assert warnings(caplog) == []


def test_a_longer_timeout_also_keeps_the_connection_longer(own: RedisServer) -> None:
    async def work(store: RedisAttemptStore) -> None:
        own.freeze()
        question = store.update(b"ann", 0.0, count_attempt)
        await asyncio.sleep(ANSWER_TIMEOUT + 0.3)
        own.thaw()
        assert question is not None and await question == 1

    run_with_stores(own, work, 1, "&timeout=9")


def test_a_restarted_redis_is_reconnected_to(own: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    async def work(store: RedisAttemptStore) -> None:
        assert await answer(store, b"ann") == 1
        own.kill()
        assert [await answer(store, b"ann") for _ in range(3)] == [None] * 3
        own.start()
        await until(lambda: answering(store), "queries are accepted again")
        assert await answer(store, b"ann") == 1

    run_with_stores(own, work, 1)
    assert len(warnings(caplog)) == 1


def test_a_redis_that_starts_later_is_connected_to(
    own: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async def work(store: RedisAttemptStore) -> None:
        assert await not_answering(store)
        own.start()
        await until(lambda: answering(store), "queries are accepted")

    own.kill()
    run_with_stores(own, work, 1)
    (line,) = warnings(caplog)
    assert "Connect" in line


def test_an_error_reply_counts_as_no_answer(own: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    async def work(store: RedisAttemptStore) -> None:
        own.ask("CONFIG", "SET", "maxmemory", 1)
        assert await answer(store, b"ann") is None
        own.ask("CONFIG", "SET", "maxmemory", 0)
        await until(lambda: answering(store), "queries are accepted again")

    run_with_stores(own, work, 1)
    (line,) = warnings(caplog)
    assert "maxmemory" in line


def test_a_query_whose_time_is_over_is_not_sent(redis: RedisServer) -> None:
    """Its timeout can end while the batch before it is under way."""

    async def work(store: RedisAttemptStore) -> None:
        question = store.update(b"ann", 0.0, count_attempt)
        assert isinstance(question, Query)
        question.settle(None)
        assert await question is None
        assert await answer(store, b"ann") == 1

    run_with_stores(redis, work, 1)


def test_workers_together_log_one_warning_a_minute(
    own: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    store = RedisAttemptStore(values.attempt_store(own.url()))
    own.kill()

    async def work() -> None:
        await store.open()
        await store.close()

    pids = []
    for _ in range(3):
        pids.append(os.fork())
        if pids[-1] == 0:
            asyncio.run(work())
            os._exit(len(warnings(caplog)))
    assert sum(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids) == 1


# Passwords and TLS


def test_a_password_is_used_and_a_wrong_one_is_reported_without_it(caplog: pytest.LogCaptureFixture) -> None:
    with RedisServer("--requirepass", "open%sesame") as own:
        right = RedisAttemptStore(values.attempt_store(own.url(password="open%25sesame")))
        wrong = RedisAttemptStore(values.attempt_store(own.url(password="Sesam")))

        async def both() -> None:
            for store in (right, wrong):
                await store.open()
            assert await answer(right, b"ann") == 1
            assert await not_answering(wrong)
            for store in (right, wrong):
                await store.close()

        asyncio.run(both())
    (line,) = warnings(caplog)
    assert "password" in line and "Sesam" not in line and ":***@" in line


def test_tls_needs_a_trusted_certificate(
    certificate: Certificate, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    with RedisServer() as plain:
        plain.kill()
        plain.command += ["--port", "0", "--tls-port", str(plain.port), "--tls-auth-clients", "no"]
        plain.command += ["--tls-cert-file", certificate.cert, "--tls-key-file", certificate.key]
        plain.start()
        url = plain.url().replace("redis://", "rediss://")
        trusting = RedisAttemptStore(values.attempt_store(f"{url}&ca={certificate.ca}"))
        other = RedisAttemptStore(values.attempt_store(url))

        async def both() -> None:
            for store in (trusting, other):
                await store.open()
            assert await answer(trusting, b"ann") == 1
            assert await not_answering(other)
            for store in (trusting, other):
                await store.close()

        asyncio.run(both())
    (line,) = warnings(caplog)
    assert "certificate verify failed" in line


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("local", RedisSettings()),
        ("redis://mx.example.com", RedisSettings("mx.example.com")),
        ("redis://[::1]:7000/3", RedisSettings("::1", 7000, 3)),
        ("redis://u:p%40ss@192.0.2.1", RedisSettings("192.0.2.1", user="u", password="p@ss")),
        ("redis://:pass@192.0.2.1/?prefix=mx", RedisSettings("192.0.2.1", password="pass", prefix="mx")),
        (
            "rediss://mx.test?ca=/ca.pem&timeout=0.2",
            RedisSettings("mx.test", tls=True, ca="/ca.pem", timeout=0.2),
        ),
    ],
)
def test_urls_are_parsed_and_printed_without_the_password(text: str, wanted: RedisSettings) -> None:
    assert values.attempt_store(text) == wanted
    assert "pass" not in str(wanted) and "p@ss" not in repr(wanted)
    if not wanted.password:
        assert values.attempt_store(str(wanted)) == wanted


@pytest.mark.parametrize(
    "text",
    [
        "redis",
        "memcached://u:geheim@h",
        "redis://u:geheim@",
        "redis://u:geheim@h:99999",
        "redis://u:geheim@h:x",
        "redis://u:geheim@h/db",
        "redis://u:geheim@[::1",
        "redis://u:geheim@h#f",
        "redis://u:geheim@h?x=1",
        "redis://u:geheim@h?prefix",
        "redis://u:geheim@h?ca=/ca.pem",
        "redis://u:geheim@h?timeout=never",
        "redis://u:geheim@h?prefix=a%20b",
        "redis://u:geheim@a..b",
    ],
)
def test_errors_in_a_url_do_not_show_the_password(text: str) -> None:
    with pytest.raises(OperatorError) as found:
        options.parse([f"--attempt_store={text}"], {})
    assert str(found.value).startswith("--attempt_store: expected ")
    assert "geheim" not in str(found.value)


# Sessions that wait for Redis

ASKING = [one for one in all_transcripts() if one.scenario or "--mode=greylist" in one.options]


@pytest.mark.parametrize("transcript", ASKING, ids=str)
def test_transcripts_with_rules_pass_with_redis(
    transcript: Transcript, serve: Serve, certificate: Certificate, redis: RedisServer
) -> None:
    argv = transcript.argv(certificate.cert, certificate.key)[1:]
    service = serve(*argv, f"--attempt_store={redis.url()}", secure=transcript.implicit_tls)
    with SocketPeer(service.address, certificate.client) as peer:
        play(transcript, peer)


def asking(tmp_path: Path, phase: str, more: str = "") -> str:
    """Return the option for a scenario that queries the store in this phase."""
    file = tmp_path / "rules.toml"
    file.write_text(f"[[rule]]\nphase = '{phase}'\nattempt = '> 99'\nreply = '450 4.2.1 Later'\n{more}")
    return f"--scenario={file}"


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
    service = serve(*tls, asking(tmp_path, "STARTTLS"), f"--attempt_store={redis.url()}")
    with connect(service) as client:
        with frozen(redis):
            client.sendall(b"STARTTLS\r\n")
            time.sleep(0.2)
            client.sendall(b"HELO eve.test\r\n")
            time.sleep(0.2)
        assert until_closed(client).startswith(b"554 5.5.0 ")


def test_an_implicit_tls_handshake_waits_for_redis(
    serve: Serve, certificate: Certificate, redis: RedisServer, tmp_path: Path
) -> None:
    service = serve(asking(tmp_path, "STARTTLS"), f"--attempt_store={redis.url()}", secure=True)
    with (
        socket.create_connection(service.address, REPLY_TIMEOUT) as client,
        certificate.client.wrap_socket(client, server_hostname="mx.test") as secure,
    ):
        assert secure.recv(4096).startswith(b"220 ")


def test_early_talk_is_noticed_while_the_greeting_waits_for_redis(
    serve: Serve, redis: RedisServer, tmp_path: Path
) -> None:
    service = serve(asking(tmp_path, "CONNECT"), f"--attempt_store={redis.url()}")
    with frozen(redis):
        client = socket.create_connection(service.address, REPLY_TIMEOUT)
        time.sleep(0.2)
        client.sendall(b"QUIT\r\n")
        time.sleep(0.2)
    with client:
        assert [line[:3] for line in until_closed(client).splitlines()] == [b"220", b"221"]
    service.settle()
    assert service.stats.snapshot().violations["early-talk"] == 1


def test_a_client_that_leaves_while_its_slot_is_queried_releases_the_slot(
    own: RedisServer, serve: Serve, tmp_path: Path
) -> None:
    """The slot is granted after the client has left."""
    more = "[[rule]]\nthrottle = { concurrent = 1 }\nreply = '421 4.7.0 Full'\n"
    service = serve(asking(tmp_path, "EHLO", more=more), f"--attempt_store={own.url()}")
    with frozen(own):
        client = socket.create_connection(service.address, REPLY_TIMEOUT)
        time.sleep(0.2)
        assert service.open() == 1
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.close()
        service.settle()

    def room() -> bool:
        with socket.create_connection(service.address, REPLY_TIMEOUT) as other:
            return other.recv(4096).startswith(b"220 ")

    wait_for(room, "the slot is free again")


def test_replies_keep_their_order_when_only_some_commands_wait_for_redis(
    serve: Serve, redis: RedisServer, tmp_path: Path
) -> None:
    service = serve(asking(tmp_path, "RCPT"), f"--attempt_store={redis.url()}")
    group = b"".join(b"RCPT TO:<r%d@b>\r\nNOOP\r\nVRFY pass=bob\r\n" % number for number in range(50))
    with connect(service) as client:
        client.sendall(b"EHLO a.test\r\nMAIL FROM:<ann@a>\r\n" + group + b"DATA\r\nHi\r\n.\r\nQUIT\r\n")
        heard = [line[4:9] for line in until_closed(client).splitlines() if line[3:4] == b" "]
    assert heard[2:-3] == [b"2.1.5", b"2.0.0", b"2.0.0"] * 50


def test_a_server_stops_while_redis_does_not_answer(own: RedisServer, tmp_path: Path) -> None:
    with Program("--workers=1", asking(tmp_path, "RCPT"), f"--attempt_store={own.url()}") as program:
        with connect(program) as client:
            own.freeze()
            client.sendall(b"RCPT TO:<bob@b>\r\n")
            time.sleep(0.3)
            program.process.send_signal(signal.SIGTERM)
            assert until_closed(client).startswith(b"421 4.3.2 ")
        assert program.process.wait(20) == 0


# Two programs, as two machines


def two_programs(redis: RedisServer, tmp_path: Path, text: str, more: str = "") -> tuple[Program, Program]:
    file = tmp_path / "rules.toml"
    file.write_text(text)
    one, other = (Program(f"--scenario={file}", f"--attempt_store={redis.url(more)}") for _ in range(2))
    return one, other


def test_a_client_greylisted_by_one_program_passes_at_the_other(redis: RedisServer, tmp_path: Path) -> None:
    one, other = two_programs(redis, tmp_path, "[[rule]]\ngreylist = { min = '2s', max = '1h' }\n")
    with one, other:
        began = time.monotonic()
        assert attempted(one) == "450"
        assert attempted(other) == "450" or time.monotonic() - began > 2
        time.sleep(2.1)
        assert attempted(other) == "250"
        assert attempted(one) == "250"
        assert (one.stop(), other.stop()) == (0, 0)
        assert "attempts are stored in redis://127.0.0.1" in one.output()


def test_a_rate_limit_is_exact_over_two_programs(redis: RedisServer, tmp_path: Path) -> None:
    """Sixteen clients send as fast as they can."""
    text = (
        "[[rule]]\nthrottle = { recipients = 500, per = 'hour', by = 'all' }\nreply = '452 4.5.3 Slow down'\n"
    )
    one, other = two_programs(redis, tmp_path, text)
    with one, other:
        clients = [Client(program) for program in (one, other) for _ in range(8)]
        for client in clients:
            client.say("MAIL FROM:<ann@a>")
        for client in clients:
            client.socket.sendall(b"".join(b"RCPT TO:<%d@b>\r\n" % number for number in range(60)))
        heard = Counter(client.hear() for client in clients for _ in range(60))
        for client in clients:
            client.__exit__()
        assert heard == {"250": 500, "452": 460}
        assert (one.stop(), other.stop()) == (0, 0)


def test_a_concurrency_limit_is_exact_over_two_programs(redis: RedisServer, tmp_path: Path) -> None:
    text = "[[rule]]\nthrottle = { concurrent = 6, by = 'all' }\nreply = '421 4.7.0 Too many'\n"
    one, other = two_programs(redis, tmp_path, text)
    with one, other:
        clients = [Client(program) for _ in range(4) for program in (one, other)]
        assert Counter(client.greeting for client in clients) == {"220": 6, "421": 2}
        for client in clients[:6]:
            client.say("QUIT")

        def room() -> bool:
            with Client(other) as late:
                return late.greeting == "220"

        wait_for(room, "a slot is free")
        with Client(one) as late:
            assert late.greeting == "220"
            assert (one.stop(), other.stop()) == (0, 0)
        for client in clients:
            client.__exit__()
    assert redis.names("blackhole:slots:*") == [], "who stops takes along who was there"


CHANCE = "seed = 7\n[[rule]]\nphase = 'RCPT'\nchance = 0.4\nreply = ['450 4.2.1 One', '451 4.2.1 Two']\n"


def outcomes(*programs: Program) -> list[str]:
    """Return the replies to a hundred recipients, each three times, from the programs in turn."""
    heard = []
    for turn in range(3):
        with Client(programs[turn % len(programs)]) as client:
            client.say("MAIL FROM:<ann@a>")
            heard += [client.say(f"RCPT TO:<r{number}@b>") for number in range(100)]
    return heard


def test_the_same_seed_gives_the_same_replies_with_and_without_redis(
    redis: RedisServer, tmp_path: Path
) -> None:
    one, other = two_programs(redis, tmp_path, CHANCE)
    with one, other, Program(f"--scenario={tmp_path / 'rules.toml'}") as alone:
        heard = outcomes(alone)
        assert outcomes(one, other) == heard
        assert {"250", "450", "451"} == {*heard}


WHEN_UNKNOWN = """
[[rule]]
name = "refuses"
throttle = { recipients = 1000, per = "hour", by = "all" }
recipient = "*@sure"
reply = "452 4.5.3 Slow down"
when_unknown = "451 4.3.0 Try again later"
[[rule]]
name = "accepts"
throttle = { recipients = 1, per = "hour", by = "all" }
reply = "452 4.5.3 Slow down"
"""


def strict_reply(program: Program) -> str:
    """Return the reply to a recipient whose rule refuses when Redis does not answer."""
    with Client(program) as client:
        client.say("MAIL FROM:<ann@a>")
        return client.say("RCPT TO:<bob@sure>")


def logged_warnings(program: Program) -> list[str]:
    return [line for line in program.output().splitlines() if "WARNING attempt_store: " in line]


@pytest.mark.parametrize("harm", [RedisServer.kill, RedisServer.freeze], ids=["killed", "frozen"])
def test_mail_is_accepted_while_redis_does_not_answer(
    harm: Callable[[RedisServer], None], own: RedisServer, tmp_path: Path
) -> None:
    one, other = programs = two_programs(own, tmp_path, WHEN_UNKNOWN, "&timeout=0.25")
    with one, other:
        for program in programs:
            wait_for(lambda program=program: strict_reply(program) != "451", "queries are accepted")  # type: ignore[misc]
        harm(own)
        for program in programs:
            with Client(program) as client:
                client.say("MAIL FROM:<ann@a>")
                began = time.monotonic()
                heard = [client.say(f"RCPT TO:<{n}@{'sure' if n % 2 else 'b'}>") for n in range(60)]
                took = time.monotonic() - began
                assert heard == ["250", "451"] * 30
                assert took < 30 * 0.25 * 2 / 3, "the first one waits, and no other"
            wait_for(lambda program=program: logged_warnings(program), "a warning is logged")  # type: ignore[misc]
        own.thaw() if own.alive else own.start()
        for program in programs:
            wait_for(lambda program=program: strict_reply(program) != "451", "queries are accepted again")  # type: ignore[misc]
        assert (one.stop(), other.stop()) == (0, 0)
        for program in programs:
            (line,) = logged_warnings(program)
            assert line.endswith("; each rule's when_unknown applies")


def test_the_password_appears_in_no_output_and_no_command_line(tmp_path: Path) -> None:
    with RedisServer("--requirepass", "geheim") as own:
        url = own.url(password="geheim")
        assert "geheim" not in run(f"--attempt_store={url}", "--print-config").stdout
        assert ":***@" in run(f"--attempt_store={url}", "--print-config").stdout
        options = ("--debug", asking(tmp_path, "RCPT"), f"--attempt_store={url}")
        with Program(*options) as program:
            assert attempted(program) == "250"
            for pid in (program.pid, *children(program.pid)):
                assert b"geheim" not in Path(f"/proc/{pid}/cmdline").read_bytes()
            own.kill()
            assert attempted(program) == "250"
            assert program.stop() == 0
            assert "geheim" not in program.output()


def test_a_reload_can_switch_redis_on(redis: RedisServer, tmp_path: Path) -> None:
    conf = tmp_path / "blackhole.conf"
    conf.write_text("host = 127.0.0.1\nport = 0\nworkers = 2\n")
    with Program(f"--conf={conf}", asking(tmp_path, "RCPT")) as program:
        assert redis.names() == []
        # By name, which takes more of Python than an address; root's workers may not be able to read that.
        url = redis.url().replace("127.0.0.1", "localhost")
        conf.write_text(conf.read_text() + f"attempts = {url}\n")
        program.process.send_signal(signal.SIGHUP)
        wait_for(lambda: "reloaded: attempts are stored in" in program.output(), "the reload")
        wait_for(lambda: redis.names() == ["blackhole:secret"], "workers have opened it")
        assert program.stop() == 0


def test_a_missing_redis_package_is_a_configuration_error(tmp_path: Path) -> None:
    (tmp_path / "redis.py").write_text("raise ImportError('as if it were not installed')\n")
    path = {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    done = run("-t", "--attempt_store=redis://127.0.0.1", **path)
    assert done.returncode == os.EX_CONFIG
    assert done.stderr == (
        'blackhole: attempt_store: Redis needs the package redis: pip install "blackhole[redis]"\n'
    )
    assert run("-t", "--attempt_store=local", **path).returncode == 0


def test_the_redis_package_is_not_imported_without_the_option(tmp_path: Path) -> None:
    (tmp_path / "redis.py").write_text("raise SystemExit('loaded')\n")
    env = {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    with Program(asking(tmp_path, "RCPT"), env=env) as program:
        assert attempted(program) == "250"
        assert program.stop() == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may bind port 53 and mount")
def test_a_worker_stops_while_the_name_of_redis_is_resolved(tmp_path: Path) -> None:
    """The name server, at an address of its own, receives the query and does not answer for half a minute."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as resolver:
        address = f"127.53.{os.getpid() % 250}.{os.getpid() // 250 % 250}"
        resolver.bind((address, 53))
        resolver.settimeout(REPLY_TIMEOUT)
        conf = tmp_path / "resolv.conf"
        conf.write_text(f"nameserver {address}\noptions timeout:30\n")
        inside = f'mount --bind {conf} /etc/resolv.conf && exec "$@"'
        command = ("unshare", "--mount", "sh", "-c", inside, "sh", *PROGRAM)
        options = "--attempt_store=redis://silent.example", asking(tmp_path, "RCPT"), "--drain_timeout=10"
        with Program(*options, command=command) as program:
            assert b"silent" in resolver.recv(999)
            assert attempted(program) == "250"
            assert program.stop() == 0
            assert "is killed" not in program.output()
