"""A fleet of many machines, simulated: what it costs the Redis server, and a dashboard that shows it.

    python -m benchmarks.fleet MACHINES [SECONDS [CHANGES]]
    python -m benchmarks.fleet questions
    python -m benchmarks.fleet outcomes

The first writes for all machines in one process, once a second each, to a redis-server of its own. Each also
reads what the others know of messages, and tells so many changes of it (0 unless given). The second asks
what workers ask: about attempts, and about what clients use. The third exchanges outcomes of messages between
two machines. Times of Redis are those of its processor.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from blackhole import __version__
from blackhole.fleet.member import FleetMember
from blackhole.fleet.outcomes import OutcomeExchange, packed
from blackhole.fleet.store import FleetStore
from blackhole.metrics.counters import Counters
from blackhole.net.fleet_usage import AMOUNTS
from blackhole.redis_url import attempt_store, fleet
from blackhole.rules.attempt_store import count_attempt
from blackhole.store.redis_client import RedisClient
from blackhole.store.redis_requests import RedisCommand, RedisQuery, SlotLease, UsageQuery
from blackhole.store.redis_script import ATTEMPT_KEY, request_words
from blackhole.store.shared_outcomes import OutcomeChange, SharedOutcomeTable
from tests.redis_server import RedisServer

CHANGING = (
    *(f"reply {phase} {code}" for phase, code in (("MAIL", 250), ("RCPT", 250), ("DATA", 354), (".", 250))),
    *("reply CONNECT 220", "reply EHLO 250", "reply QUIT 221", "listener 0.0.0.0:25"),
    *("counter received_bytes", "counter cpu_microseconds"),
    *(f"histogram service_seconds {bucket}" for bucket in (8, 9, 10, 11, "sum")),
    *(f"histogram client_think_seconds {bucket}" for bucket in (10, 11, 12, 13, "sum")),
    *(f"histogram message_bytes {bucket}" for bucket in (12, "sum")),
)
"""The fields that a busy machine changes within a second."""

STANDING = tuple(f"reply RCPT {code}" for code in range(400, 500))
"""Fields that a machine has counted before."""

SUMMARY = {
    "name": "sink-17.example.com",
    "version": __version__,
    "scenario": "loaded",
    "up": 86400.0,
    "messages": 10**9,
    "rate": 21000.0,
    "open": 500,
    "load": 0.8,
    "workers": 4,
    "order": 3,
}


NOBODY_WAITS: Final = 3600.0
"""Seconds in which a question has to be answered."""

QUESTIONS: Final = 20_000
"""Questions of each kind, each about another client or recipient."""

CHANGES: Final = 50_000
"""Outcomes that one machine tells another."""

CHANGES_AT_ONCE: Final = 10_000
"""Of these, those of a second; the ring of a worker has room for them."""


def cpu_seconds(server: RedisServer) -> float:
    """Return the processor time of all threads of a Redis server."""
    tasks = Path(f"/proc/{server.process.pid}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


def used_memory(server: RedisServer) -> int:
    return int(server.ask("INFO", "memory")["used_memory"])


def some_changes(count: int) -> list[OutcomeChange]:
    """Return changes of outcomes of messages that nobody else has."""
    now = time.monotonic()
    return [OutcomeChange(int.from_bytes(os.urandom(8)) or 1, 4, now - 1, now) for _ in range(count)]


async def measure(server: RedisServer, machines: int, seconds: int, changes: int) -> dict[str, float]:
    """Return the figures of a fleet, by name."""
    store = FleetStore(fleet(f"redis://127.0.0.1:{server.port}/0"), "bench")
    summary = json.dumps(SUMMARY)
    outcomes = packed(some_changes(changes), time.monotonic())
    read = ["0-0"] * machines

    async def write(number: int, turn: int) -> None:
        fields = dict.fromkeys(CHANGING, 1000 * (turn + 1))
        if not turn:
            fields |= dict.fromkeys(STANDING, 1)
        await store.write(f"sink-{number}:0123456789ab", fields, summary)
        if outcomes:
            await store.add_outcomes(b"sink-%d:0123456789ab" % number, outcomes)
        _, entries = await store.outcomes(read[number], 64)
        read[number] = entries[-1].id if entries else read[number]

    async def write_all(turn: int) -> float:
        began = time.monotonic()
        for first in range(0, machines, 16):
            await asyncio.gather(*(write(number, turn) for number in range(first, min(machines, first + 16))))
        return time.monotonic() - began

    await write_all(0)
    before, began, late = cpu_seconds(server), time.monotonic(), 0.0
    for turn in range(1, seconds + 1):
        took = await write_all(turn)
        late = max(late, took)
        await asyncio.sleep(max(0.0, 1 - took))
    elapsed = time.monotonic() - began
    used = cpu_seconds(server) - before
    member = FleetMember(store, "reader:0", Counters(rows=1).snapshot, dict)
    began = time.process_time()
    view = await member.view()
    shown = time.process_time() - began
    assert view.snapshot.messages["accepted"] == machines * 1000 * (seconds + 1), "the sum is exact"
    await store.close()
    return {
        "machines": machines,
        "requests a second": machines * seconds / elapsed * (3 if outcomes else 2),
        "CPU of Redis": used / elapsed,
        "microseconds of Redis for a machine and second": used / (machines * seconds) * 1e6,
        "MiB of Redis": used_memory(server) / 2**20,
        "KiB of Redis for a machine": used_memory(server) / machines / 1024,
        "milliseconds of CPU to read the fleet": shown * 1e3,
        "slowest turn in seconds": late,
    }


def unsettled(seconds: float, is_answered: bool) -> None:
    """Do nothing with the time that a question took."""


def attempt(number: int) -> RedisQuery:
    """Return a question about an attempt to send to a recipient."""
    key = (ATTEMPT_KEY, b"greylist\0%d@example.com" % number)
    return RedisQuery(key, request_words(count_attempt), NOBODY_WAITS, unsettled)


def usage(number: int) -> RedisQuery:
    """Return a question about what a client has done in this minute."""
    return UsageQuery(b"sinks\0%d" % number, [1] * AMOUNTS, NOBODY_WAITS, unsettled, lambda answer: None)


def slot(number: int) -> SlotLease:
    """Return a question for one of the connections that a client may have open."""
    return SlotLease(b"sinks\0%d" % number, 50, f"w0123456789abcdef.{number}", NOBODY_WAITS, unsettled)


async def measure_questions(server: RedisServer) -> dict[str, float]:
    """Return what questions cost, by name: in batches of the sizes that little and much mail have."""
    client = RedisClient(attempt_store(f"redis://127.0.0.1:{server.port}/0"))
    await client.connect()
    found: dict[str, float] = {}
    kinds: dict[str, Callable[[int], RedisQuery | RedisCommand]] = {
        "attempt": attempt,
        "usage": usage,
        "connection slot": slot,
        "end of a connection": lambda number: slot(number).command("release"),
    }
    for size in 200, 20, 1:
        server.ask("FLUSHDB")
        for kind, make in kinds.items():
            memory, before = used_memory(server), cpu_seconds(server)
            for first in range(0, QUESTIONS, size):
                await run(client, [make(number) for number in range(first, first + size)])
            used = cpu_seconds(server) - before
            found[f"microseconds of Redis, {kind}, {size} at once"] = used / QUESTIONS * 1e6
            if size == 200:
                found[f"octets of Redis, {kind}"] = (used_memory(server) - memory) / QUESTIONS
    await client.close()
    return found


async def run(client: RedisClient, batch: Sequence[RedisQuery | RedisCommand]) -> None:
    for request, answer in zip(batch, await client.run(batch), strict=True):
        if isinstance(request, RedisQuery):
            request.settle(answer)


async def measure_outcomes(server: RedisServer) -> dict[str, float]:
    """Return what the exchange of outcomes costs, by name: of a machine that tells them to another."""
    settings = fleet(f"redis://127.0.0.1:{server.port}/0")
    stores = [FleetStore(settings, "bench") for _ in range(2)]
    tables = [SharedOutcomeTable(rows=1) for _ in stores]
    one, two = (
        OutcomeExchange(store, name, table)
        for store, name, table in zip(stores, ("one:0", "two:0"), tables, strict=True)
    )
    for exchange in one, two:
        await exchange.exchange()
    tables[0].set_ring(0)
    spent = [0.0, 0.0]
    before, memory = cpu_seconds(server), used_memory(server)
    traffic = server.ask("INFO", "stats")
    for _ in range(CHANGES // CHANGES_AT_ONCE):
        for change in some_changes(CHANGES_AT_ONCE):
            tables[0].add_accepted(change.key_hash)
        for place, exchange in enumerate((one, two)):
            began = time.process_time()
            await exchange.exchange()
            spent[place] += time.process_time() - began
    used, after = cpu_seconds(server) - before, server.ask("INFO", "stats")
    assert not tables[0].lost
    result = {
        "microseconds of the machine that tells a change": spent[0] / CHANGES * 1e6,
        "microseconds of the machine that reads it": spent[1] / CHANGES * 1e6,
        "microseconds of Redis": used / CHANGES * 1e6,
        "octets of Redis, for 30 seconds": (used_memory(server) - memory) / CHANGES,
    }
    for way in "input", "output":
        name = f"total_net_{way}_bytes"
        result[f"octets of {way} of Redis"] = (after[name] - traffic[name]) / CHANGES
    for store in stores:
        await store.close()
    return result


def main() -> None:
    """Measure, and print."""
    what, *numbers = sys.argv[1:] or ["1000"]
    with RedisServer() as server:
        if what == "questions":
            figures = measure_questions(server)
        elif what == "outcomes":
            figures = measure_outcomes(server)
        else:
            seconds, changes = [int(number) for number in (*numbers, *("10", "0")[len(numbers) :])]
            figures = measure(server, int(what), seconds, changes)
        for name, value in asyncio.run(figures).items():
            print(f"{name:60} {value:10.3g}")


if __name__ == "__main__":
    main()
