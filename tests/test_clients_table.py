"""What all workers know of each client: the shared table and its ledgers; and networks."""

from __future__ import annotations

import mmap
import multiprocessing
import os
from collections.abc import Iterator
from random import Random

import pytest

from blackhole.addresses import NetworkSet, to_bytes
from blackhole.net import client_table
from blackhole.net.client_table import (
    BUCKETS,
    CONNECTIONS,
    KEY,
    MESSAGES,
    MINUTE,
    RECEIVED,
    REGION,
    SLOT_CELLS,
    SLOTS_PER_BUCKET,
    ClientTable,
    ClientTableView,
    client_key,
)


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def table() -> Iterator[ClientTable]:
    yield ClientTable(4)


def ledger(
    table: ClientTable, row: int, clock: Clock, others: tuple[int, ...] = (0, 1, 2)
) -> ClientTableView:
    return ClientTableView(table, row, lambda: others, clock)


def test_open_connections_of_a_client_are_counted(table: ClientTable, clock: Clock) -> None:
    book = ledger(table, 0, clock)
    ann = [book.enter(b"\xc0\0\2\1") for _ in range(3)]
    bob = book.enter(b"\xc0\0\2\2")
    assert (ann[0].open(), ann[2].open(), bob.open()) == (3, 3, 1)
    ann[1].leave()
    ann[1].leave()
    assert ann[0].open() == 2
    ann[0].leave()
    ann[2].leave()
    assert (book.enter(b"\xc0\0\2\1").open(), bob.open()) == (1, 1)


def test_workers_count_together(table: ClientTable, clock: Clock) -> None:
    books = [ledger(table, row, clock) for row in range(3)]
    places = [book.enter(b"ann.") for book in books]
    assert [place.open() for place in places] == [3, 3, 3]
    assert [place.count(MESSAGES) for place in places] == [1, 2, 3]


def test_connections_of_a_dead_worker_are_forgotten_at_the_next_sweep(
    table: ClientTable, clock: Clock
) -> None:
    alive = [0, 1]
    book = ClientTableView(table, 0, lambda: alive, clock)
    mine, theirs = book.enter(b"ann."), ClientTableView(table, 1, lambda: alive, clock).enter(b"ann.")
    assert (mine.open(), theirs.open()) == (2, 2)
    alive.remove(1)
    book.sweep()
    assert mine.open() == 1


def test_new_worker_starts_with_an_empty_region(table: ClientTable, clock: Clock) -> None:
    ledger(table, 1, clock).enter(b"ann.")
    book = ledger(table, 0, clock)
    ledger(table, 1, clock)
    assert book.enter(b"ann.").open() == 1


def test_new_worker_starts_with_an_empty_region_without_madv_remove(
    table: ClientTable, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system that knows no holes: here one that is asked for what no mapping has."""
    ledger(table, 1, clock).enter(b"ann.")
    monkeypatch.setattr(mmap, "MADV_REMOVE", 12345)
    ledger(table, 1, clock)
    assert not any(table.cells[REGION : 2 * REGION])


def test_new_minute_resets_rates_but_not_open_connections(table: ClientTable, clock: Clock) -> None:
    book, other = ledger(table, 0, clock), ledger(table, 1, clock)
    place, beside = book.enter(b"ann."), other.enter(b"ann.")
    assert [place.count(CONNECTIONS) for _ in range(3)] == [1, 2, 3]
    assert beside.count(CONNECTIONS) == 4
    clock.now += 60
    book.sweep()
    other.sweep()
    assert place.count(CONNECTIONS) == 1
    assert beside.count(CONNECTIONS) == 2
    assert place.open() == 2


def test_counts_saturate(table: ClientTable, clock: Clock) -> None:
    place = ledger(table, 0, clock).enter(b"ann.")
    assert place.count(RECEIVED, 3 << 30) == 3 << 30
    assert place.count(RECEIVED, 3 << 30) == 2**32 - 1
    assert place.count(MESSAGES) == 1


def fill(book: ClientTableView, table: ClientTable, bucket: int, random: Random) -> Iterator[bytes]:
    """Clients whose places are in one bucket."""
    while True:
        who = random.randbytes(8)
        place = book.enter(who)
        found = place._bucket == bucket
        place.leave()
        if found:
            yield who


def test_new_client_in_a_full_bucket_is_not_counted(
    table: ClientTable, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_table, "BUCKETS", 8)
    book = ledger(table, 0, clock)
    some = fill(book, table, 0, Random(7))
    places = [book.enter(next(some)) for _ in range(SLOTS_PER_BUCKET)]
    late = book.enter(next(some))
    assert [place.open() for place in places] == [1] * SLOTS_PER_BUCKET
    assert (late.open(), late.count(MESSAGES)) == (0, 0)
    late.leave()
    places[2].leave()
    assert book.enter(next(some)).open() == 1
    assert [place.open() for place in places[:2]] == [1, 1]


def test_least_recently_seen_client_is_evicted(
    table: ClientTable, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_table, "BUCKETS", 8)
    book = ledger(table, 0, clock)
    some = fill(book, table, 0, Random(7))
    known = [next(some) for _ in range(SLOTS_PER_BUCKET)]
    for who in known:
        place = book.enter(who)
        place.count(MESSAGES)
        place.leave()
        clock.now += 60
        book.sweep()
    keys = {table.cells[place + KEY] for place in range(0, SLOTS_PER_BUCKET * SLOT_CELLS, SLOT_CELLS)}
    oldest = min(
        range(0, SLOTS_PER_BUCKET * SLOT_CELLS, SLOT_CELLS), key=lambda place: table.cells[place + MINUTE]
    )
    gone = table.cells[oldest + KEY]
    book.enter(next(some))
    assert keys - {
        table.cells[place + KEY] for place in range(0, SLOTS_PER_BUCKET * SLOT_CELLS, SLOT_CELLS)
    } == {gone}


def test_table_does_not_grow_with_the_number_of_clients(table: ClientTable, clock: Clock) -> None:
    book = ledger(table, 0, clock)
    random = Random(7)
    for _ in range(100000):
        place = book.enter(random.randbytes(8))
        place.count(CONNECTIONS)
        place.leave()
    assert REGION * 4 == BUCKETS * SLOTS_PER_BUCKET * SLOT_CELLS * 4 == 256 * 1024
    assert len(table.cells) == 4 * REGION


def test_buckets_of_addresses_cannot_be_predicted() -> None:
    places = {ClientTableView(ClientTable(1), 0, list).enter(b"\xc0\0\2\1")._bucket for _ in range(20)}
    assert len(places) > 10


def work(table: ClientTable, row: int, times: int, start: object) -> None:
    book = ClientTableView(table, row, lambda: range(4))
    start.wait()  # type: ignore[attr-defined]
    place = book.enter(b"ann.")
    for _ in range(times):
        place.count(MESSAGES)
    os._exit(0)


def test_concurrent_processes_lose_no_count(table: ClientTable) -> None:
    fork = multiprocessing.get_context("fork")
    start = fork.Event()
    workers = [fork.Process(target=work, args=(table, row, 20000, start)) for row in (1, 2, 3)]
    for worker in workers:
        worker.start()
    book = ClientTableView(table, 0, lambda: range(4))
    start.set()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    place = book.enter(b"ann.")
    book.sweep()
    assert place.open() == 4
    book._minute = max(book._minute, 1)
    assert place.count(MESSAGES) in (60001, 1)  # 1: a minute began meanwhile


@pytest.mark.parametrize(
    ("address", "who"),
    [
        ("192.0.2.1", b"\xc0\0\2\1"),
        ("::ffff:192.0.2.1", b"\xc0\0\2\1"),
        ("2001:db8:1:2:3:4:5:6", b"\x20\1\x0d\xb8\0\1\0\2"),
        ("fe80::1%eth0", b"\xfe\x80" + bytes(6)),
        ("", b""),
        ("a path", b""),
        ("not:an:address", b""),
    ],
)
def test_client_is_an_ipv4_address_or_an_ipv6_64(address: str, who: bytes) -> None:
    assert client_key(to_bytes(address)) == who


def test_network_set_contains_the_addresses_of_its_networks() -> None:
    networks = NetworkSet(["192.0.2.0/24", "127.0.0.1", "2001:db8::/32", "::1"])
    inside = ("192.0.2.0", "192.0.2.255", "::ffff:192.0.2.7", "127.0.0.1", "2001:db8:ffff::1", "::1")
    outside = ("192.0.3.0", "127.0.0.2", "2001:db9::", "::2", "", "c000:200::")
    assert [to_bytes(address) in networks for address in inside] == [True] * len(inside)
    assert [to_bytes(address) in networks for address in outside] == [False] * len(outside)
    assert to_bytes("127.0.0.1") not in NetworkSet([])


def test_network_of_mapped_addresses_is_an_ipv4_network() -> None:
    networks = NetworkSet(["::ffff:10.0.0.0/104", "::ffff:192.0.2.1", "::fffe:0:0/95"])
    inside = ("10.1.2.3", "::ffff:10.1.2.3", "192.0.2.1", "::fffe:0:1")
    assert [to_bytes(address) in networks for address in inside] == [True] * len(inside)
    assert to_bytes("11.0.0.1") not in networks
    assert to_bytes("203.0.113.1") in NetworkSet(["::ffff:0:0/96"])


def test_network_of_all_addresses_contains_every_address() -> None:
    assert to_bytes("203.0.113.1") in NetworkSet(["0.0.0.0/0"])
    assert to_bytes("2001:db8::1") not in NetworkSet(["0.0.0.0/0"])
