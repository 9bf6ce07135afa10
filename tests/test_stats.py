"""The shared map: rows, names, and what a reader makes of it."""

from __future__ import annotations

import json
import os

import pytest
from engines import EVENT_NUMBERS
from program import Program, wait_for

from blackhole.metrics.counters import Counters
from blackhole.metrics.layout import CELL_INDEX, HISTOGRAM_INDEX, LISTENERS_START, MAX_LISTENERS
from blackhole.settings import OperatorError


def test_rows_add_up() -> None:
    stats = Counters(3)
    for row in (stats.allocate_row(), stats.allocate_row()):
        stats.set_owner(row, f"blackhole: worker {row}")
        cells = stats.cells(row)
        cells[EVENT_NUMBERS.reply(".", 250)] += 10
        cells[EVENT_NUMBERS.reply(".", 451)] += 1
        cells[EVENT_NUMBERS.reply("RCPT", 250)] += 20
        cells[EVENT_NUMBERS.reply("RCPT", 550)] += 5
        cells[EVENT_NUMBERS.reply("CONNECT", 421)] += 1
        cells[CELL_INDEX["open"]] = 3
        cells[CELL_INDEX["cpu_microseconds"]] = 1_500_000
    seen = stats.snapshot()
    assert dict(seen.messages) == {"accepted": 20, "deferred": 2, "rejected": 0}
    assert seen.recipients == 40
    assert (seen.refused, seen.open, seen.cpu) == (2, 6, 3.0)
    assert seen.replies["RCPT", 550] == 10
    assert seen.commands["RCPT"] == 50
    assert "." not in seen.commands
    assert [worker.title for worker in seen.workers] == ["blackhole: worker 0", "blackhole: worker 1"]
    assert {worker.pid for worker in seen.workers} == {os.getpid()}


def test_counters_outlive_their_process_and_gauges_do_not() -> None:
    stats = Counters(1)
    row = stats.allocate_row()
    stats.set_owner(row, "blackhole: worker 1")
    stats.heartbeat(row)
    assert stats.last_heartbeat(row) > 0
    stats.cells(row)[EVENT_NUMBERS.reply(".", 250)] += 7
    stats.cells(row)[CELL_INDEX["open"]] = 7
    stats.free_row(row)
    assert stats.allocate_row() == row
    seen = stats.snapshot()
    assert (seen.messages["accepted"], seen.open, seen.workers) == (7, 0, ())
    assert stats.last_heartbeat(row) == 0
    with pytest.raises(RuntimeError):
        stats.allocate_row()


def test_the_difference_is_what_happened_between() -> None:
    stats = Counters(1)
    cells = stats.cells(stats.allocate_row())
    cells[EVENT_NUMBERS.reply(".", 250)] = 5
    before = stats.snapshot()
    cells[EVENT_NUMBERS.reply(".", 250)] = 12
    cells[CELL_INDEX["received_bytes"]] = 100
    between = stats.snapshot() - before
    assert between.messages["accepted"] == 7
    assert between.total("received_bytes") == 100
    assert 0 <= between.seconds < 60


def test_a_listener_keeps_its_cell() -> None:
    stats = Counters(1)
    assert stats.listener("127.0.0.1:25") == LISTENERS_START
    assert stats.listener("[::1]:25") == LISTENERS_START + 1
    assert stats.listener("127.0.0.1:25") == LISTENERS_START
    stats.cells(stats.allocate_row())[LISTENERS_START + 1] = 4
    assert dict(stats.snapshot().connections) == {"127.0.0.1:25": 0, "[::1]:25": 4}


def test_listeners_beyond_the_table_are_others() -> None:
    stats = Counters(1)
    cells = {stats.listener(f"127.0.0.1:{port}") for port in range(1, 100)}
    assert len(cells) == MAX_LISTENERS
    assert stats.snapshot().listeners[-1] == "others"


def test_a_histogram_tells_of_magnitudes() -> None:
    stats = Counters(1)
    cells = stats.cells(stats.allocate_row())
    start = HISTOGRAM_INDEX["connection_messages"]
    for messages, times in ((0, 1), (1, 90), (6, 9)):
        cells[start + messages.bit_length()] += times
        cells[start + 28] += messages * times
    seen = stats.snapshot().histograms["connection_messages"]
    assert (seen.count, seen.sum) == (100, 144)
    assert seen.mean == 1.44
    assert seen.edges[:5] == (0, 1, 3, 7, 15)
    assert [seen.quantile(share) for share in (0.01, 0.5, 0.99)] == [0, 1, 7]
    assert seen.as_dict()["buckets"] == {"0": 1, "1": 90, "7": 9}


def test_what_lies_beyond_the_last_bucket_is_the_last_edge() -> None:
    stats = Counters(1)
    stats.cells(stats.allocate_row())[HISTOGRAM_INDEX["message_bytes"] + 39] += 1
    seen = stats.snapshot().histograms["message_bytes"]
    assert seen.quantile(0.5) == seen.edges[-1]
    assert seen.as_dict()["beyond"] == 1
    assert stats.snapshot().histograms["delay_seconds"].mean == 0


def test_another_process_reads_it() -> None:
    with Program() as program:
        seen = wait_for(lambda: Counters.of(program.pid).snapshot(), "figures")
        assert [worker.title for worker in seen.workers][:2] == ["blackhole: worker 1", "blackhole: worker 2"]
        assert list(seen.connections) == [f"127.0.0.1:{program.port}"]
        assert sorted(worker.pid for worker in seen.workers if "worker" in worker.title) == program.workers()
        json.dumps(seen.as_dict())


def test_a_process_without_figures_is_no_server() -> None:
    with pytest.raises(OperatorError, match="has no counters"):
        Counters.of(os.getppid())
    with pytest.raises(OperatorError, match="has just ended"):
        Counters.of(2**22 + 1)


def test_another_version_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    stats = Counters(1)
    monkeypatch.setattr("blackhole.metrics.counters.LAYOUT_CRC", stats._cells[0] + 1)
    with pytest.raises(OperatorError, match="another version"):
        Counters.of(os.getpid())
