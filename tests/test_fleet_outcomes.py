"""Retries that a client makes at another machine of a fleet."""

from __future__ import annotations

import asyncio
import os
import select
import time
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from blackhole import redis_url
from blackhole.fleet import outcomes
from blackhole.fleet.outcomes import OutcomeExchange, packed, unpacked
from blackhole.fleet.replies import StoreError
from blackhole.fleet.store import FleetStore
from blackhole.rules.outcomes import (
    ACCEPTED,
    DEFERRED,
    EVENTS,
    NEVER_RETRIED_AFTER,
    mark_if_never_retried,
    update_envelope,
)
from blackhole.store.shared_outcomes import ADDED, RING_ENTRIES, OutcomeChange, SharedOutcomeTable
from tests.http_api import Sink, figures
from tests.program import scenario_option, wait_for
from tests.redis_server import RedisServer
from tests.smtp_client import SMTPClient

DEFERS = "[[rule]]\nphase = 'RCPT'\nrecipient = 'defer*'\nreply = '450 4.2.1 Later'\n"


def attempt(sink: Sink, sender: str, recipient: str) -> str:
    """Send one message, and return the code of the reply to RCPT, or of the final one."""
    with SMTPClient(("127.0.0.1", sink.port)) as client:
        client.command_code(f"MAIL FROM:<{sender}>")
        code = client.command_code(f"RCPT TO:<{recipient}>")
        if code == "250":
            client.command_code("DATA")
            code = client.command_code(f"Message-ID: <{sender}>\r\n\r\nHi\r\n.")
        client.command_code("QUIT")
        return code


def test_a_retry_and_a_duplicate_at_another_machine_are_seen(redis: RedisServer, tmp_path: Path) -> None:
    fleet = (scenario_option(tmp_path, DEFERS), f"--fleet={redis.url()}")
    number = count()

    def seen() -> bool:
        """Send to one machine, and again to the other, which may not know it yet."""
        sender = f"ann{next(number)}@a.test"
        assert attempt(one, sender, "defer@b.test") == "450"
        assert attempt(one, sender, "bob@b.test") == "250"
        time.sleep(1.5)
        assert attempt(two, sender, "defer@b.test") == "450"
        assert attempt(two, sender, "bob@b.test") == "250"
        found = figures(two.http)
        return bool(found["retries"]["deferred"]["returned"] and found["violations"]["duplicate"])

    from redis import Redis

    with Sink(*fleet) as one, Sink(*fleet) as two:
        for sink in one, two:
            sink.dashboard()
        wait_for(seen, "the other machine has learnt it", 60)
        with Redis(port=redis.port) as client:
            kept = str(client.xrange("blackhole:{blackhole}:outcomes"))
        assert "changes" in kept and "a.test" not in kept, "hashes alone"


def exchange_between(redis: RedisServer, work: Any) -> None:
    """Run `work` with the tables and the exchanges of two machines."""

    async def run() -> None:
        stores = [FleetStore(redis_url.fleet(redis.url()), "f") for _ in range(2)]
        tables = [SharedOutcomeTable(rows=2, sets=64) for _ in range(2)]
        for table in tables:
            table.set_ring(1)
        exchanges = [
            OutcomeExchange(store, name, table)
            for store, name, table in zip(stores, ("one:1", "two:2"), tables, strict=True)
        ]
        try:
            for one in exchanges:
                await one.exchange()
            await work(*tables, *exchanges)
        finally:
            for store in stores:
                await store.close()

    asyncio.run(run())


def test_records_and_hashes_reach_the_other_machine_once(redis: RedisServer) -> None:
    async def work(
        one: SharedOutcomeTable, two: SharedOutcomeTable, first: OutcomeExchange, second: OutcomeExchange
    ) -> None:
        assert one.secret == two.secret
        envelope, message = one.key_hash((b"ann@a", b"bob@b")), one.key_hash(b"<1@a>")
        assert two.key_hash((b"ann@a", b"bob@b")) == envelope
        now = time.monotonic()
        one.update_hash(envelope, now - 100, partial(update_envelope, DEFERRED))
        assert one.add_accepted(message)
        await first.exchange()
        await second.exchange()
        assert two.contains(envelope) and not two.add_accepted(message)
        assert two.remove_accepted(message)
        events = two.update_hash(envelope, now, partial(update_envelope, ACCEPTED))
        names = [EVENTS[number].name for number in events]
        assert names == ["retry_within_300", "retried_after_4xx", "accepted_on_retry"]
        await second.exchange()
        await first.exchange()
        assert one.add_accepted(message), "it was removed at the other machine"
        later = now + NEVER_RETRIED_AFTER + 1
        assert not any(sum(one.sweep(number, later, mark_if_never_retried)) for number in range(64))

    exchange_between(redis, work)


@pytest.fixture
def no_regular_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exchange outcomes only where there is news, and not each second."""
    monkeypatch.setattr(outcomes, "EXCHANGE_INTERVAL", 3600.0)


def test_what_was_not_accepted_is_told_without_a_wait_for_the_next_second(
    redis: RedisServer, no_regular_exchange: None
) -> None:
    async def work(
        one: SharedOutcomeTable, two: SharedOutcomeTable, first: OutcomeExchange, second: OutcomeExchange
    ) -> None:
        running = [asyncio.create_task(exchange.run()) for exchange in (first, second)]
        try:
            async with asyncio.timeout(30):
                while redis.ask("PUBSUB", "NUMSUB", "blackhole:{f}:outcomes")[1] < 2:
                    await asyncio.sleep(0.01)
                message = one.key_hash(b"accepted")
                one.add_accepted(message)
                # More than one, so that some are not announced: another announcement was just made.
                for number in range(5):
                    envelope = one.key_hash(number)
                    one.update_hash(envelope, time.monotonic(), partial(update_envelope, DEFERRED))
                    while not two.contains(envelope):
                        await asyncio.sleep(0.01)
                assert not two.add_accepted(message), "it came along"
        finally:
            # As asyncio.run does: redis-py may miss one that comes as it sends (wait_for of Python 3.11).
            while not all(task.done() for task in running):
                for task in running:
                    task.cancel()
                await asyncio.wait(running, timeout=0.1)

    exchange_between(redis, work)


def test_exchange_can_be_ended_at_the_moment_at_which_there_is_news(
    redis: RedisServer, no_regular_exchange: None
) -> None:
    async def work(
        one: SharedOutcomeTable, two: SharedOutcomeTable, first: OutcomeExchange, second: OutcomeExchange
    ) -> None:
        running = asyncio.create_task(first.run())
        await asyncio.sleep(10 * outcomes.MIN_PAUSE)
        first._is_due.set()
        running.cancel()
        await asyncio.wait([running], timeout=10)
        assert running.cancelled()

    exchange_between(redis, work)


def test_many_machines_tell_what_they_know_less_often(redis: RedisServer) -> None:
    store = FleetStore(redis_url.fleet(redis.url()), "f")
    pauses = [
        OutcomeExchange(store, "one:1", SharedOutcomeTable(rows=1, sets=64), lambda alive=alive: alive).pause
        for alive in (1, 50, 400, 1000, 5000)
    ]
    assert pauses == [0.05, 0.05, 0.4, 1.0, 1.0]


@pytest.mark.pure
def test_a_reader_is_woken_up_once_by_all_that_was_not_accepted() -> None:
    table = SharedOutcomeTable(rows=1, sets=64)
    table.set_ring(0)

    def is_readable() -> bool:
        return bool(select.select([table.wakeup_read], [], [], 0)[0])

    table.add_accepted(7)
    assert not is_readable()
    for number in range(RING_ENTRIES + 10):
        table.update_hash(number + 1, 1.0, partial(update_envelope, DEFERRED))
    assert os.read(table.wakeup_read, 100) == b"!"
    assert len(list(table.read_changes())) == RING_ENTRIES
    table.update_hash(5, 2.0, partial(update_envelope, DEFERRED))
    assert is_readable()
    table.clear_wakeup()
    table.clear_wakeup()
    assert not is_readable()


def test_only_the_machine_that_deferred_counts_what_is_never_retried(redis: RedisServer) -> None:
    async def work(
        one: SharedOutcomeTable, two: SharedOutcomeTable, first: OutcomeExchange, second: OutcomeExchange
    ) -> None:
        now = time.monotonic()
        one.update_hash(one.key_hash(b"x"), now, partial(update_envelope, DEFERRED))
        await first.exchange()
        await second.exchange()
        assert two.contains(one.key_hash(b"x"))
        later = now + NEVER_RETRIED_AFTER + 1
        counts = [
            sum(sum(table.sweep(number, later, mark_if_never_retried)) for number in range(64))
            for table in (one, two)
        ]
        assert counts == [1, 0]

    exchange_between(redis, work)


def test_what_is_in_the_stream_is_input_like_any(redis: RedisServer) -> None:
    async def work(
        one: SharedOutcomeTable, two: SharedOutcomeTable, first: OutcomeExchange, second: OutcomeExchange
    ) -> None:
        stream = "blackhole:{f}:outcomes"
        for changes in (b"", b"x", b"\xff" * 24, b"\0" * 24, b"\xff" * 24 * 5000):
            redis.ask("XADD", stream, "*", "machine", "three", "changes", changes)
        redis.ask("XADD", stream, "*", "other", "fields")
        for number in range(200):
            redis.ask("XADD", stream, "*", "machine", "three", "changes", number.to_bytes(24))
        await first.exchange()
        redis.ask("DEL", stream)
        redis.ask("SET", stream, "text")
        with pytest.raises(StoreError):
            await first.exchange()
        redis.ask("SET", "blackhole:{f}:secret", "short")
        redis.ask("DEL", stream)
        await OutcomeExchange(first._store, "one:2", one).exchange()
        assert one.secret == two.secret

    exchange_between(redis, work)


@pytest.mark.pure
def test_changes_that_come_too_fast_are_counted_and_the_newest_are_kept() -> None:
    table = SharedOutcomeTable(rows=1, sets=64)
    table.add_accepted(7)
    table.update_hash(8, 1.0, partial(update_envelope, DEFERRED))
    assert list(table.read_changes()) == [], "this process has no ring"
    table.set_ring(0)
    for number in range(1, RING_ENTRIES + 11):
        table.add_accepted(number << 20)
    changes = list(table.read_changes())
    assert (len(changes), table.lost) == (RING_ENTRIES, 10)
    assert changes[-1] == OutcomeChange(RING_ENTRIES + 10 << 20, ADDED, 0.0, 0.0)
    assert list(table.read_changes()) == []


@pytest.mark.pure
def test_changes_are_packed_with_their_ages() -> None:
    change = OutcomeChange(5, DEFERRED | 1 << 8, 100.0, 160.0)
    (found,) = unpacked(packed([change], 200.0), 1200.0)
    assert found == OutcomeChange(5, DEFERRED | 1 << 8, 1100.0, 1160.0)
