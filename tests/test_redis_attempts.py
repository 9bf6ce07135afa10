"""The store of attempts in Redis: shared by machines, and missing while Redis does not answer."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from blackhole import options, redis_url
from blackhole.rules.attempt_store import Answer, PendingAnswer, ScopedStore, Update, count_attempt
from blackhole.rules.quotas import WindowCount
from blackhole.settings import OperatorError, RedisSettings
from blackhole.store import redis_attempts
from blackhole.store.circuit_breaker import MAX_LATE
from blackhole.store.redis_attempts import BATCH_SIZE, RedisAttemptStore
from blackhole.store.redis_client import ANSWER_TIMEOUT
from blackhole.store.redis_requests import RedisQuery, SlotLease
from tests.certificates import Certificate
from tests.redis_server import RedisServer

Work = Callable[..., Awaitable[None]]


def run_with_stores(redis: RedisServer, work: Work, count: int = 2, more: str = "") -> None:
    """Run `work` with the open stores of `count` machines."""

    async def together() -> None:
        stores = [RedisAttemptStore(redis_url.attempt_store(redis.url(more))) for _ in range(count)]
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


async def acquire(store: RedisAttemptStore | ScopedStore, limit: int) -> SlotLease | None:
    """Return a slot, or None if all are taken."""
    asked = store.refuse_or_acquire(b"slot", limit)
    assert isinstance(asked, SlotLease)
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
        answers = await asyncio.gather(
            *(
                answer(store, b"all", WindowCount(1, many + 7, 3600.0).spend)
                for store in (one, other)
                for _ in range(many)
            )
        )
        assert Counter(answers) == {0: many + 7, 1: many - 7}
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
        redis.ask("SET", "blackhole:secret", "drawn by another machine")
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
        assert [await answer(scope, b"ann") for scope in (one, first, second, again)] == [1, 1, 1, 2]
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
        (slots,) = redis.names("blackhole:slots:*")
        score = redis.ask("ZSCORE", slots, taken.token)

        async def renewed() -> bool:
            return float(redis.ask("ZSCORE", slots, taken.token) or 0) > float(score)

        await until(renewed, "the lease is longer")
        redis.ask("FLUSHALL")
        await until(renewed, "the lease is restored")
        assert redis.ask("ZRANGE", slots, 0, -1) == [taken.token]

    run_with_stores(redis, work)


# Redis does not answer


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


async def not_answering(store: RedisAttemptStore) -> bool:
    return store.update(b"x", 0.0, count_attempt) is None


async def answering(store: RedisAttemptStore) -> bool:
    return await answer(store, b"x") is not None


def test_a_frozen_redis_delays_one_query_and_is_used_again_when_it_answers(
    own_redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async def work(store: RedisAttemptStore, other: RedisAttemptStore) -> None:
        own_redis.freeze()
        began = time.monotonic()
        asked = [store.update(b"ann", 0.0, count_attempt), store.refuse_or_acquire(b"slot", 1)]
        assert [await question for question in asked if question is not None] == [None, None]
        assert 0.04 < time.monotonic() - began < 2
        await until(lambda: not_answering(store), "queries are refused")
        assert store.refuse_or_acquire(b"slot", 1) is None
        assert isinstance(asked[1], SlotLease)
        store.release(asked[1])
        await asyncio.sleep(1.2)
        own_redis.thaw()
        await until(lambda: answering(store), "queries are accepted again")
        # The slot was acquired after its query had timed out, and is released all the same.
        await until(lambda: acquire(other, 1), "the slot is free")

    caplog.set_level(logging.INFO)
    run_with_stores(own_redis, work, more="&timeout=0.05")
    (line,) = warnings(caplog)[:1]
    assert line.startswith(f"attempt_store: redis://127.0.0.1:{own_redis.port}/0: no answer in time; ")
    assert len(warnings(caplog)) <= 2, "one for each machine at most"
    assert any(record.getMessage().endswith("answers again") for record in caplog.records)


def test_a_short_silence_keeps_the_connection_and_logs_nothing(
    own_redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    """The pause can be on this side too, on a busy machine."""

    async def work(store: RedisAttemptStore) -> None:
        before = own_redis.ask("CLIENT", "LIST").count("addr=")
        own_redis.freeze()
        assert await answer(store, b"ann") is None
        await until(lambda: not_answering(store), "queries are refused")
        own_redis.thaw()
        await until(lambda: answering(store), "queries are accepted again")
        # A query that was answered too late was counted all the same.
        assert await answer(store, b"ann") == 2
        assert own_redis.ask("CLIENT", "LIST").count("addr=") == before

    run_with_stores(own_redis, work, 1, "&timeout=0.05")
    assert warnings(caplog) == []


def test_a_store_that_is_always_late_delays_two_questions_and_then_none_until_a_probe_is_in_time(
    redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    """A relay before Redis holds its answers back."""
    pause = [0.0]
    relays: set[asyncio.StreamWriter] = set()

    async def has_ended() -> bool:
        return not relays

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        relays.add(writer)
        inner_reader, inner_writer = await asyncio.open_connection(*redis.address)
        try:
            while data := await reader.read(65536):
                inner_writer.write(data)
                reply = await inner_reader.read(65536)
                await asyncio.sleep(pause[0])
                writer.write(reply)
        except OSError:
            pass
        finally:
            inner_writer.close()
            writer.close()
            relays.discard(writer)

    async def work() -> None:
        server = await asyncio.start_server(relay, "127.0.0.1")
        port = server.sockets[0].getsockname()[1]
        store = RedisAttemptStore(redis_url.attempt_store(f"redis://127.0.0.1:{port}/0?timeout=0.2"))
        await store.open()
        try:
            await until(lambda: answering(store), "it answers")
            pause[0] = 0.6
            late = 0
            while not warnings(caplog):
                asked = store.update(b"ann", 0.0, count_attempt)
                late += isinstance(asked, PendingAnswer)
                assert asked is None or await asked is None
                await asyncio.sleep(0.01)
            assert late <= MAX_LATE
            assert all([await not_answering(store) for _ in range(100)]), "no question is asked"
            assert store.circuit.unanswered >= 100 + late
            pause[0] = 0.0
            await until(lambda: answering(store), "a probe was answered in time")
        finally:
            await store.close()
            await until(has_ended, "the relay has ended")
            server.close()
            await server.wait_closed()

    caplog.set_level(logging.INFO)
    asyncio.run(work())
    (line,) = warnings(caplog)
    assert f"{MAX_LATE} answers took longer than 0.2 s" in line
    assert any(record.getMessage().endswith("answers again") for record in caplog.records)


def test_a_longer_timeout_also_keeps_the_connection_longer(own_redis: RedisServer) -> None:
    async def work(store: RedisAttemptStore) -> None:
        own_redis.freeze()
        question = store.update(b"ann", 0.0, count_attempt)
        await asyncio.sleep(ANSWER_TIMEOUT + 0.3)
        own_redis.thaw()
        assert question is not None and await question == 1

    run_with_stores(own_redis, work, 1, "&timeout=9")


def test_a_restarted_redis_is_reconnected_to(
    own_redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async def work(store: RedisAttemptStore) -> None:
        assert await answer(store, b"ann") == 1
        own_redis.kill()
        assert [await answer(store, b"ann") for _ in range(3)] == [None] * 3
        own_redis.start()
        await until(lambda: answering(store), "queries are accepted again")
        assert await answer(store, b"ann") == 1

    run_with_stores(own_redis, work, 1)
    assert len(warnings(caplog)) == 1


def test_a_redis_that_starts_later_is_connected_to(
    own_redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async def work(store: RedisAttemptStore) -> None:
        assert await not_answering(store)
        own_redis.start()
        await until(lambda: answering(store), "queries are accepted")

    own_redis.kill()
    run_with_stores(own_redis, work, 1)
    (line,) = warnings(caplog)
    assert "Connect" in line


def test_an_error_reply_counts_as_no_answer(own_redis: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    async def work(store: RedisAttemptStore) -> None:
        own_redis.ask("CONFIG", "SET", "maxmemory", 1)
        assert await answer(store, b"ann") is None
        own_redis.ask("CONFIG", "SET", "maxmemory", 0)
        await until(lambda: answering(store), "queries are accepted again")

    run_with_stores(own_redis, work, 1)
    (line,) = warnings(caplog)
    assert "maxmemory" in line


def test_a_query_whose_time_is_over_is_not_sent(redis: RedisServer) -> None:
    """Its timeout can end while the batch before it is under way."""

    async def work(store: RedisAttemptStore) -> None:
        question = store.update(b"ann", 0.0, count_attempt)
        assert isinstance(question, RedisQuery)
        question.settle(None)
        assert await question is None
        assert await answer(store, b"ann") == 1

    run_with_stores(redis, work, 1)


def test_workers_together_log_one_warning_a_minute(
    own_redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    store = RedisAttemptStore(redis_url.attempt_store(own_redis.url()))
    own_redis.kill()

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
        right = RedisAttemptStore(redis_url.attempt_store(own.url(password="open%25sesame")))
        wrong = RedisAttemptStore(redis_url.attempt_store(own.url(password="Sesam")))

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
        trusting = RedisAttemptStore(redis_url.attempt_store(f"{url}&ca={certificate.ca}"))
        other = RedisAttemptStore(redis_url.attempt_store(url))

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
        (
            "redis+sentinel://u:pass@one,[::1]:7000/sinks/2",
            RedisSettings(
                *("one", 26379, 2, "u", "pass"),
                kind="sentinel",
                service="sinks",
                others=(("::1", 7000),),
            ),
        ),
        (
            "rediss+cluster://one:7000,two",
            RedisSettings("one", 7000, tls=True, kind="cluster", others=(("two", 6379),)),
        ),
    ],
)
def test_urls_are_parsed_and_printed_without_the_password(text: str, wanted: RedisSettings) -> None:
    assert redis_url.attempt_store(text) == wanted
    assert "pass" not in str(wanted) and "p@ss" not in repr(wanted)
    if not wanted.password:
        assert redis_url.attempt_store(str(wanted)) == wanted


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
        "redis://u:geheim@a,b",
        "redis+sentinel://u:geheim@a,b",
        "redis+sentinel://u:geheim@a,,b/sinks",
        "redis+cluster://u:geheim@a/sinks",
    ],
)
def test_errors_in_a_url_do_not_show_the_password(text: str) -> None:
    with pytest.raises(OperatorError) as found:
        options.parse([f"--attempt_store={text}"], {})
    assert str(found.value).startswith("--attempt-store: expected ")
    assert "geheim" not in str(found.value)
