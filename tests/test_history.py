"""The history of the dashboard: the last hour by seconds, the last day by minutes, peaks and runs."""

from __future__ import annotations

import pytest

from blackhole.metrics.layout import ROW_CELLS
from blackhole.web.history import DAY, HOUR, MAX_RUN_NAME, MAX_RUNS, SECOND, History, RingBuffer, Sample, rate
from blackhole.web.stats_view import columns


def at(seconds: float, messages: int = 0, open: int = 0, deferred: int = 0) -> Sample:
    """Return a sample with so many messages by then, of which so many were deferred."""
    accepted = messages - deferred
    return Sample(round(seconds * SECOND), accepted, deferred, 0, messages, 10 * messages, open)


def ring(slots: int = 5) -> RingBuffer:
    return RingBuffer(memoryview(bytearray(RingBuffer.size(slots) * 8)).cast("Q"), slots, SECOND)


def test_a_ring_buffer_keeps_the_last_sample_of_a_step_and_its_largest_open() -> None:
    one = ring()
    one.put(at(7.1, 3, open=9))
    one.put(at(7.8, 4, open=2))
    assert one.get(7) == at(7.8, 4, open=9)
    assert (one.get(6), one.get(8)) == (None, None)


def test_a_ring_buffer_overwrites_its_oldest_samples() -> None:
    one = ring(5)
    for second in range(1, 10):
        one.put(at(second, second))
    assert [one.get(tick) is not None for tick in range(12)] == [5 <= tick <= 9 for tick in range(12)]


def test_latest_before_returns_an_earlier_sample_or_else_the_next_one() -> None:
    one = ring(100)
    one.put(at(20))
    one.put(at(30))
    assert one.latest_before(30) == at(30)
    assert one.latest_before(29) == one.latest_before(20) == at(20)
    assert one.latest_before(31) == one.latest_before(39) == at(30)
    assert one.latest_before(10) == at(20), "the next one, because nothing is known before"
    assert one.latest_before(60) is None, "the gap is too long"


def test_a_rate_is_an_average_over_the_time_between_two_samples() -> None:
    assert rate(at(10, 100), at(12.5, 200)) == 40.0
    assert rate(at(10, 100), at(12.5, 200), "received_bytes") == 400.0
    assert rate(at(10, 100), at(10, 200)) == 0.0


def test_seconds_without_a_sample_are_null() -> None:
    history = History()
    for second, messages in ((100, 0), (101, 10), (102, 30), (105, 60)):
        history.add(at(second, messages, open=second - 100))
    found = columns(history.hour, at(105).at)
    assert found["step"] == 1
    assert len(found["messages"]) == len(found["open"]) == HOUR - 1
    assert found["messages"][-6:] == [None, 10.0, 20.0, None, None, 10.0]
    assert found["received_bytes"][-5:-3] == [100.0, 200.0]
    assert found["open"][-6:] == [0, 1, 2, None, None, 5]


def test_the_history_tells_the_outcomes_apart() -> None:
    history = History()
    for second, messages, deferred in ((100, 0, 0), (101, 10, 0), (102, 30, 15)):
        history.add(at(second, messages, deferred=deferred))
    found = columns(history.hour, at(102).at)
    shown = {name: found[name][-2:] for name in ("messages", "accepted", "deferred", "rejected")}
    assert shown == {
        "messages": [10.0, 20.0],
        "accepted": [10.0, 5.0],
        "deferred": [0.0, 15.0],
        "rejected": [0.0, 0.0],
    }


def test_a_day_has_one_value_for_each_minute() -> None:
    history = History()
    for second in range(600, 960):
        history.add(at(second, 2 * second))
    found = columns(history.day, at(959).at)
    assert (found["step"], len(found["messages"])) == (60, DAY - 1)
    assert found["messages"][-6:] == [None, 2.0, 2.0, 2.0, 2.0, 2.0]


def test_the_peak_is_the_busiest_second() -> None:
    history = History()
    for second, messages in enumerate((0, 5, 105, 110, 110), 100):
        history.add(at(second, messages, open=messages % 100))
    assert (history.peak, history.peak_connections) == (100, 10)


@pytest.mark.parametrize(("seconds", "expected"), [(1, 0.0), (2, 2.5), (10, 30.0), (60, 30.0)])
def test_a_rate_over_more_time_than_is_known_uses_what_is_known(seconds: int, expected: float) -> None:
    history = History()
    for second, messages in enumerate((0, 100, 110, 115, 120, 120), 100):
        if second != 102:
            history.add(at(second, messages))
    assert history.rate(at(105, 120), seconds) == (expected if seconds < 10 else 24.0)


def counters(value: int) -> list[int]:
    return [value] * ROW_CELLS


def test_a_run_keeps_the_counters_of_its_start_and_end() -> None:
    history = History()
    assert history.start("x" * MAX_RUN_NAME, counters(7), 3)
    run = history.run("x" * MAX_RUN_NAME)
    assert run is not None
    assert (run.name, run.ended, run.peak_connections) == ("x" * MAX_RUN_NAME, 0, 3)
    assert list(run.first) == counters(7)
    history.stop(run.name, counters(9))
    run = history.run(run.name)
    assert run is not None
    assert run.ended >= run.began > 0
    assert list(run.last) == counters(9)
    history.stop(run.name, counters(11))
    assert history.run(run.name) == run


def test_a_run_has_the_peaks_of_its_own_time() -> None:
    history = History()
    history.start("late", counters(0), 0)
    began = history.runs()[0].began / SECOND
    history.add(at(began - 1.5, 0, open=9))
    history.add(at(began - 0.5, 500))
    for second, messages, open in ((0.5, 500, 4), (1.5, 530, 8), (2.5, 540, 2)):
        history.add(at(began + second, messages, open))
    run = history.runs()[0]
    assert (run.peak, run.peak_connections) == (30, 8), "nothing before the run counts"
    assert run.connection_time / SECOND == pytest.approx(0.5 * 4 + 8 + 2, abs=0.01)
    history.stop("late", counters(0))
    history.add(at(began + 3.5, 9999, 99))
    assert history.runs()[0].peak == 30


def test_a_sum_of_more_than_64_bits_is_cut_off() -> None:
    """Cells that are no counters, such as those of titles, have such sums."""
    history = History()
    history.start("it", counters(1 << 64), 0)
    assert history.runs()[0].first[0] == 0


def test_a_new_run_replaces_the_oldest_that_has_ended() -> None:
    history = History()
    for number in range(MAX_RUNS):
        assert history.start(str(number), counters(0), 0)
    assert not history.start("more", counters(0), 0)
    history.stop("5", counters(0))
    assert history.start("more", counters(0), 0)
    assert [run.name for run in history.runs()] == [*(str(n) for n in range(MAX_RUNS) if n != 5), "more"]
