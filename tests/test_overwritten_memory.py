"""Workers that write over shared memory: the master goes on as if nothing had happened.

A worker that obeys an attacker can write anything there. What the master does, it does by memory of its own:
it replaces the dead, reloads, adds and stops workers.
"""

from __future__ import annotations

import mmap
import os
import random
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from blackhole.metrics.counters import Counters
from blackhole.metrics.layout import CELL_INDEX
from blackhole.metrics.snapshot import Snapshot
from blackhole.metrics.status import end_lines
from blackhole.process.heartbeat import Heartbeat
from blackhole.process.message_total import MessageTotal
from blackhole.process.order_guard import OrderGuard
from blackhole.store.control import INITIAL_NUMBER, MAX_NUMBER, ControlChannel
from blackhole.store.server_facts import ServerFacts
from blackhole.web.history import History, Sample
from tests.http_api import Sink, post
from tests.program import wait_for

LARGEST = 2**64 - 1


@contextmanager
def shared_maps(pid: int) -> Iterator[list[mmap.mmap]]:
    """Map all memory that a master shares, as each of its workers can."""
    maps = []
    for entry in os.listdir(f"/proc/{pid}/fd"):
        path = f"/proc/{pid}/fd/{entry}"
        if os.readlink(path).startswith("/memfd:") and (size := os.stat(path).st_size):
            descriptor = os.open(path, os.O_RDWR)
            try:
                maps.append(mmap.mmap(descriptor, size))
            finally:
                os.close(descriptor)
    try:
        yield maps
    finally:
        for one in maps:
            one.close()


def test_master_replaces_reloads_and_stops_workers_whatever_is_in_shared_memory() -> None:
    source = random.Random(13)
    options = "--show-clients", "--recent=10", "--public", "--drain_timeout=1"
    with Sink(*options, "--workers=2") as program:
        program.dashboard()
        assert post(program.http, "/next", {"phase": "RCPT", "reply": "451 4.3.0 Try again"}).status < 300
        with shared_maps(program.pid) as maps:
            assert len(maps) >= 5

            def overwrite(octet: int | None) -> None:
                for one in maps:
                    size = len(one)
                    one[:] = source.randbytes(size) if octet is None else bytes([octet]) * size

            for octet in (0xFF, None, 0):
                old = program.workers()
                overwrite(octet)
                for pid in old:
                    os.kill(pid, signal.SIGKILL)
                wait_for(
                    lambda old=old: len(program.workers()) == 2 and not {*old} & {*program.workers()},
                    "both workers are replaced",
                )
            overwrite(0xFF)
            program.process.send_signal(signal.SIGHUP)
            wait_for(lambda: "reloaded: listening" in program.output(), "the reload")
            wait_for(lambda: len(program.workers()) == 2, "the old workers have ended")
            overwrite(None)
            program.process.send_signal(signal.SIGTTIN)
            wait_for(lambda: len(program.workers()) == 3, "there is one worker more")
            overwrite(0xFF)
            assert program.stop() == 0
        assert "internal error" not in program.output()


def test_facts_are_written_whatever_number_is_in_the_map() -> None:
    facts = ServerFacts()
    for number in (LARGEST, 0, 7):
        facts._cells[0] = number
        facts.write({"number": number})
        assert ServerFacts.of(os.getpid()) is not None


def test_number_of_an_order_is_one_that_the_counters_can_hold() -> None:
    channel, counters = ControlChannel(), Counters(1)
    row = counters.allocate_row()
    channel._cells[0] = LARGEST
    assert channel.number == MAX_NUMBER
    counters.set_reading_order(row, channel.number)
    assert channel.read()[0] == INITIAL_NUMBER
    OrderGuard(counters, channel).check(row, hung=False)
    assert channel.number == 1  # the order was dropped


def test_row_whose_counters_were_overwritten_is_counted_on_by_its_next_owner() -> None:
    counters = Counters(2)
    row = counters.allocate_row()
    cells = counters.cells(row)
    cells[:] = memoryview(b"\xff" * cells.nbytes).cast("Q")
    cells[CELL_INDEX["received_bytes"]] = 512
    counters.free_row(row)
    assert counters.allocate_row() == row
    assert {*cells.tolist()} == {0, 512}


@pytest.mark.parametrize("octet", [b"\xff", b"\x7f", b"\0"])
def test_figures_of_overwritten_counters_can_be_printed_and_kept(octet: bytes) -> None:
    counters = Counters(3)
    for _ in range(3):
        counters.allocate_row()
    octets = counters._cells.cast("B")
    octets[:] = octet * len(octets)
    snapshot = counters.snapshot()
    assert isinstance(snapshot, Snapshot)
    assert all(line.isprintable() for line in end_lines(snapshot))
    history = History()
    for at in (1, 2):
        history.add(Sample(at * 10**6, *[3 * LARGEST * at] * 6))
    assert history.peak_connections == LARGEST


def test_messages_that_end_a_run_are_counted_where_no_other_worker_can_write() -> None:
    messages, heartbeat = MessageTotal(2), Heartbeat()
    reached: list[bool] = []
    sizes = messages.counted_sizes(0, heartbeat, 3, lambda: reached.append(True))
    sizes.append(1)
    messages._cells[1] = 10**9
    sizes.append(1)
    assert (heartbeat.messages, reached) == (2, [True])
