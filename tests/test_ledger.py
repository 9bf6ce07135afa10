"""What the dashboard remembers: an hour by seconds, a day by minutes, and runs."""

from __future__ import annotations

import pytest

from blackhole.metrics.layout import ROW_CELLS
from blackhole.web.figures import series
from blackhole.web.history import DAY, HOUR, NAME, RUNS, SECOND, History, RingBuffer, Sample, rate


def at(seconds: float, messages: int = 0, open: int = 0) -> Sample:
    """`messages` have come by then."""
    return Sample(round(seconds * SECOND), messages, messages, 10 * messages, open)


def ring(slots: int = 5) -> RingBuffer:
    return RingBuffer(memoryview(bytearray(RingBuffer.size(slots) * 8)).cast("Q"), slots, SECOND)


def test_a_ring_keeps_the_last_of_each_step_and_the_most_that_was_open() -> None:
    one = ring()
    one.put(at(7.1, 3, open=9))
    one.put(at(7.8, 4, open=2))
    assert one.get(7) == at(7.8, 4, open=9)
    assert (one.get(6), one.get(8)) == (None, None)


def test_a_ring_forgets() -> None:
    one = ring(5)
    for second in range(1, 10):
        one.put(at(second, second))
    assert [one.get(tick) is not None for tick in range(12)] == [5 <= tick <= 9 for tick in range(12)]


def test_near_is_before_rather_than_after() -> None:
    one = ring(100)
    one.put(at(20))
    one.put(at(30))
    assert one.near(30) == at(30)
    assert one.near(29) == one.near(20) == at(20)
    assert one.near(31) == one.near(39) == at(30)
    assert one.near(10) == at(20), "there is nothing before it"
    assert one.near(60) is None, "that would be too long ago"


def test_a_rate_is_by_the_time_that_really_passed() -> None:
    assert rate(at(10, 100), at(12.5, 200)) == 40.0
    assert rate(at(10, 100), at(12.5, 200), "received_bytes") == 400.0
    assert rate(at(10, 100), at(10, 200)) == 0.0


def test_history_has_holes_where_nobody_looked() -> None:
    ledger = History()
    for second, messages in ((100, 0), (101, 10), (102, 30), (105, 60)):
        ledger.note(at(second, messages, open=second - 100))
    found = series(ledger.hour, at(105).at, HOUR)
    assert found["step"] == 1
    assert len(found["messages"]) == len(found["open"]) == HOUR - 1
    assert found["messages"][-6:] == [None, 10.0, 20.0, None, None, 10.0]
    assert found["received_bytes"][-5:-3] == [100.0, 200.0]
    assert found["open"][-6:] == [0, 1, 2, None, None, 5]


def test_a_day_is_by_minutes() -> None:
    ledger = History()
    for second in range(600, 960):
        ledger.note(at(second, 2 * second))
    found = series(ledger.day, at(959).at, DAY)
    assert (found["step"], len(found["messages"])) == (60, DAY - 1)
    assert found["messages"][-6:] == [None, 2.0, 2.0, 2.0, 2.0, 2.0]


def test_the_busiest_second_is_the_peak() -> None:
    ledger = History()
    for second, messages in enumerate((0, 5, 105, 110, 110), 100):
        ledger.note(at(second, messages, open=messages % 100))
    assert (ledger.peak, ledger.crowd) == (100, 10)


@pytest.mark.parametrize(("span", "pace"), [(1, 0.0), (2, 2.5), (10, 30.0), (60, 30.0)])
def test_pace_looks_back_as_far_as_is_known(span: int, pace: float) -> None:
    ledger = History()
    for second, messages in enumerate((0, 100, 110, 115, 120, 120), 100):
        if second != 102:
            ledger.note(at(second, messages))
    assert ledger.pace(at(105, 120), span) == (pace if span < 10 else 24.0)


def counters(value: int) -> list[int]:
    return [value] * ROW_CELLS


def test_a_run_remembers_its_counters() -> None:
    ledger = History()
    assert ledger.start("x" * NAME, counters(7), 3)
    run = ledger.run("x" * NAME)
    assert run is not None
    assert (run.name, run.ended, run.crowd, list(run.first)) == ("x" * NAME, 0, 3, counters(7))
    ledger.stop(run.name, counters(9))
    run = ledger.run(run.name)
    assert run is not None
    assert run.ended >= run.began > 0
    assert list(run.last) == counters(9)
    ledger.stop(run.name, counters(11))
    assert ledger.run(run.name) == run


def test_a_run_knows_its_busiest_second_and_its_crowd() -> None:
    ledger = History()
    ledger.start("late", counters(0), 0)
    began = ledger.runs()[0].began / SECOND
    ledger.note(at(began - 1.5, 0, open=9))
    ledger.note(at(began - 0.5, 500))
    for second, messages, open in ((0.5, 500, 4), (1.5, 530, 8), (2.5, 540, 2)):
        ledger.note(at(began + second, messages, open))
    run = ledger.runs()[0]
    assert (run.peak, run.crowd) == (30, 8), "what was before it does not count"
    assert run.waited / SECOND == pytest.approx(0.5 * 4 + 8 + 2, abs=0.01)
    ledger.stop("late", counters(0))
    ledger.note(at(began + 3.5, 9999, 99))
    assert ledger.runs()[0].peak == 30


def test_a_sum_too_large_for_a_cell_is_no_fault() -> None:
    """As sums of what is no counter are, of titles."""
    ledger = History()
    ledger.start("it", counters(1 << 64), 0)
    assert ledger.runs()[0].first[0] == 0


def test_there_is_room_for_so_many() -> None:
    ledger = History()
    for number in range(RUNS):
        assert ledger.start(str(number), counters(0), 0)
    assert not ledger.start("more", counters(0), 0)
    ledger.stop("5", counters(0))
    assert ledger.start("more", counters(0), 0)
    assert [run.name for run in ledger.runs()] == [*(str(n) for n in range(RUNS) if n != 5), "more"]
