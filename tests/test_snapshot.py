"""Snapshots: sums over rows, differences, and histograms."""

from __future__ import annotations

import os

import pytest

from blackhole.metrics.counters import Counters, record_values
from blackhole.metrics.layout import CELL_INDEX, HISTOGRAM_INDEX, EventCells
from tests.program import run_python

NUMBERS = EventCells()


def test_a_snapshot_adds_the_rows_of_all_processes() -> None:
    counters = Counters(3)
    for row in (counters.allocate_row(), counters.allocate_row()):
        counters.set_owner(row, f"blackhole: worker {row}")
        cells = counters.cells(row)
        cells[NUMBERS.reply(".", 250)] += 10
        cells[NUMBERS.reply(".", 451)] += 1
        cells[NUMBERS.reply("RCPT", 250)] += 20
        cells[NUMBERS.reply("RCPT", 550)] += 5
        cells[NUMBERS.reply("CONNECT", 421)] += 1
        cells[CELL_INDEX["open"]] = 3
        cells[CELL_INDEX["cpu_microseconds"]] = 1_500_000
    seen = counters.snapshot()
    assert dict(seen.messages) == {"accepted": 20, "deferred": 2, "rejected": 0}
    assert seen.recipients == 40
    assert (seen.refused, seen.open, seen.cpu) == (2, 6, 3.0)
    assert seen.replies["RCPT", 550] == 10
    assert seen.commands["RCPT"] == 50
    assert "." not in seen.commands
    assert [worker.title for worker in seen.processes] == ["blackhole: worker 0", "blackhole: worker 1"]
    assert {worker.pid for worker in seen.processes} == {os.getpid()}


def test_the_difference_of_two_snapshots_is_what_happened_between_them() -> None:
    counters = Counters(1)
    cells = counters.cells(counters.allocate_row())
    cells[NUMBERS.reply(".", 250)] = 5
    before = counters.snapshot()
    cells[NUMBERS.reply(".", 250)] = 12
    cells[CELL_INDEX["received_bytes"]] = 100
    between = counters.snapshot() - before
    assert between.messages["accepted"] == 7
    assert between.total("received_bytes") == 100
    assert 0 <= between.seconds < 60


def test_seconds_count_from_the_start_of_the_server_and_not_of_the_machine() -> None:
    """In a process of its own: this one may have the counters of other tests."""
    done = run_python("""
        from blackhole.metrics.counters import Counters
        began = time.monotonic()
        counters = Counters(1)
        first = counters.snapshot()
        time.sleep(0.05)
        last = Counters.of(os.getpid()).snapshot()
        assert 0 <= first.seconds <= last.seconds - 0.05 <= time.monotonic() - began
        assert last.as_dict()["seconds"] == last.seconds
    """)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_histogram_has_count_sum_mean_edges_and_quantiles() -> None:
    counters = Counters(1)
    cells = counters.cells(counters.allocate_row())
    start = HISTOGRAM_INDEX["connection_messages"]
    for messages, times in ((0, 1), (1, 90), (6, 9)):
        cells[start + messages.bit_length()] += times
        cells[start + 28] += messages * times
    seen = counters.snapshot().histograms["connection_messages"]
    assert (seen.count, seen.sum) == (100, 144)
    assert seen.mean == 1.44
    assert seen.edges[:5] == (0, 1, 3, 7, 15)
    assert [seen.quantile(share) for share in (0.01, 0.5)] == [0, 1]
    assert seen.quantile(0.99) == pytest.approx(4 + 3 * 8 / 9), "between 4 and 7: the eighth of nine values"
    assert seen.as_dict()["buckets"] == {"0": 1, "1": 90, "7": 9}


def test_a_quantile_in_the_last_bucket_is_the_last_edge() -> None:
    counters = Counters(1)
    counters.cells(counters.allocate_row())[HISTOGRAM_INDEX["message_bytes"] + 39] += 1
    seen = counters.snapshot().histograms["message_bytes"]
    assert seen.quantile(0.5) == seen.edges[-1]
    assert seen.as_dict()["beyond"] == 1
    assert counters.snapshot().histograms["delay_seconds"].mean == 0


def test_a_quantile_of_even_values_is_exact() -> None:
    counters = Counters(1)
    cells = counters.cells(counters.allocate_row())
    record_values(cells, "message_bytes", range(1 << 13))
    sizes = counters.snapshot().histograms["message_bytes"]
    for share in (0.1, 0.5, 0.9):
        assert sizes.quantile(share) == pytest.approx(share * (1 << 13), rel=0.001)
    assert sizes.as_dict()["sampled"] is False


def test_a_quantile_of_nothing_is_not_known() -> None:
    nothing = Counters(1).snapshot().histograms["service_seconds"]
    assert nothing.quantile(0.5) is None
    assert nothing.as_dict() == {
        "sampled": True, "count": 0, "sum": 0, "mean": None,
        "p50": None, "p90": None, "p99": None, "buckets": {}, "beyond": 0,
    }  # fmt: skip
