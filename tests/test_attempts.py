"""The table of attempts: what it keeps, what it drops, and how processes share it."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from contextlib import suppress
from itertools import islice
from typing import IO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blackhole.rules.attempt_store import Answer, Record, Update, count_attempt
from blackhole.rules.quotas import SlidingCount, TokenCount, WindowCount
from blackhole.store import attempts
from blackhole.store.attempts import COUNTERS_PER_ROW, SLOTS_PER_SET, AttemptTable
from tests.stopped_process import process_that_stops, stop


def count_and_return_record(known: Record, now: float) -> tuple[Record, Record]:
    """Count the attempt, and return the record before it."""
    return count_attempt(known, now)[0], known


def test_a_new_key_has_no_record() -> None:
    table = AttemptTable(sets=4)
    assert table.update(b"ann", 10.0, count_and_return_record) == (0, 10.0, 10.0)
    assert table.update(b"bob", 11.0, count_and_return_record) == (0, 11.0, 11.0)


def test_a_record_keeps_the_count_and_the_first_and_last_time() -> None:
    table = AttemptTable(sets=4)
    table.update(b"ann", 10.0, count_and_return_record)
    assert table.update(b"ann", 12.5, count_and_return_record) == (1, 10.0, 10.0)
    assert table.update(b"ann", 20.0, count_and_return_record) == (2, 10.0, 12.5)


@given(st.floats(0, 1e9), st.integers(2, 20))
def test_stored_times_do_not_drift_when_a_record_is_updated(first: float, times: int) -> None:
    table = AttemptTable(sets=1)
    for _ in range(times):
        known = table.update(b"ann", first, count_and_return_record)
    assert abs(known[1] - first) < 1e-6


@given(st.lists(st.binary(max_size=4), max_size=SLOTS_PER_SET))
def test_no_record_is_lost_while_its_set_has_free_slots(keys: list[bytes]) -> None:
    table = AttemptTable(sets=1)
    for number, key in enumerate(keys):
        assert table.update(key, float(number), count_attempt) == keys[: number + 1].count(key)


def test_a_new_key_replaces_the_one_used_longest_ago_in_a_full_set() -> None:
    table = AttemptTable(sets=1)
    for number in range(SLOTS_PER_SET):
        table.update(b"%d" % number, float(number), count_attempt)
    table.update(b"0", 100.0, count_attempt)
    table.update(b"one more", 101.0, count_attempt)
    assert table.update(b"0", 102.0, count_attempt) == 2 + 1
    assert table.update(b"2", 103.0, count_attempt) == 1 + 1
    assert table.update(b"1", 104.0, count_attempt) == 1


def update(table: AttemptTable, key: bytes, change: Update[Answer]) -> Answer:
    """Change a record, however long another process that is given no processor time holds the lock."""
    while (answer := table.update(key, 2.0, change)) is None:
        pass
    return answer


def count_in_child(table: AttemptTable, *keys: bytes, times: int = 1) -> int:
    """Return the pid of a child that counts each key `times` times under the lock."""
    pid = os.fork()
    if pid == 0:
        for _ in range(times):
            for key in keys:
                update(table, key, count_attempt)
        os._exit(0)
    return pid


def test_processes_of_one_fork_share_the_table() -> None:
    table = AttemptTable(sets=4)
    table.update(b"ann", 1.0, count_attempt)
    assert os.waitpid(count_in_child(table, b"ann"), 0)[1] == 0
    assert table.update(b"ann", 3.0, count_and_return_record) == (2, 1.0, 2.0)


def test_updates_are_exact_over_all_processes() -> None:
    table = AttemptTable(sets=1)
    pids = [count_in_child(table, b"ann", b"bob", times=5000) for _ in range(4)]
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * 4
    assert table.update(b"ann", 3.0, count_attempt) == 20001
    assert table.update(b"bob", 3.0, count_attempt) == 20001


@pytest.mark.parametrize(
    "change",
    [
        WindowCount(1, 7000, 3600.0).spend,
        SlidingCount(1, 7000, 3600.0).spend_sliding,
        TokenCount(1, 7000, 1, 3600.0).spend_tokens,
    ],
)
def test_quotas_are_exact_over_all_processes(change: Update[bool]) -> None:
    table = AttemptTable(sets=1)
    pids = []
    for _ in range(4):
        pid = os.fork()
        if pid == 0:
            passed = sum(not update(table, b"quota", change) for _ in range(2500))
            for _ in range(passed):
                update(table, b"passed", count_attempt)
            os._exit(0)
        pids.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * 4
    assert table.update(b"passed", 3.0, count_attempt) == 7001


def test_process_killed_during_an_update_releases_the_lock() -> None:
    table = AttemptTable(sets=1)
    pid = os.fork()
    if pid == 0:
        table.update(b"ann", 2.0, lambda known, now: os.kill(os.getpid(), signal.SIGKILL))
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL
    assert table.update(b"ann", 3.0, count_attempt) == 1


class NoLock:
    """A lock that is not to be had."""

    def acquire(self, octet: int) -> bool:
        return False


def test_only_worker_needs_no_lock() -> None:
    table = AttemptTable(rows=4, sets=1)
    table._lock = NoLock()  # type: ignore[assignment,misc]
    answers = [table.update(b"ann", 2.0, count_attempt)]
    table.set_row(1)
    answers += [table.update(b"ann", 2.0, count_attempt)]
    for row in (0, 3):
        table._users[row] = 1  # another process has taken it
        answers += [table.update(b"ann", 2.0, count_attempt)]
        table.clear_row(row)
        answers += [table.update(b"ann", 2.0, count_attempt)]
    assert answers == [None, 1, None, 2, None, 3]


def count_after_a_stop(known: Record, now: float) -> tuple[Record, int]:
    """Count the attempt, after the process was stopped in the middle of the update."""
    stop()
    return count_attempt(known, now)


def test_process_stopped_during_an_update_blocks_no_other_process() -> None:
    table = AttemptTable(sets=1)
    with process_that_stops(lambda: table.update(b"ann", 2.0, count_after_a_stop)):
        began = time.monotonic()
        assert [table.update(b"ann", 2.0, count_attempt) for _ in range(100)] == [None] * 100
        assert time.monotonic() - began < 0.5
        hashed = table.key_hash(b"ann")
        assert table.update_hash(hashed, 2.0, count_and_return_record) == (0, 2.0, 2.0), "as if new"
        assert not table.contains(hashed)
    assert table.update(b"ann", 3.0, count_attempt) == 2


def test_sweep_leaves_out_records_while_another_process_is_stopped_with_the_lock() -> None:
    table = AttemptTable(sets=1)
    table.update(b"ann", 1.0, count_attempt)
    with process_that_stops(lambda: table.update(b"bob", 2.0, count_after_a_stop)):
        assert list(table.sweep(0, 3.0, count_attempt)) == []
    assert sorted(table.sweep(0, 3.0, count_attempt)) == [2, 2]


def answers_in_child(table: AttemptTable, times: int) -> tuple[int, IO[bytes]]:
    """Return a child that counts one key until it has `times` answers, and the file of these."""
    file = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
    pid = os.fork()
    if pid == 0:
        asked = iter(lambda: table.update(b"ann", 2.0, count_attempt), 0)
        answers = islice((answer for answer in asked if answer is not None), times)
        file.write(b"".join(b"%d " % answer for answer in answers))
        file.flush()
        os._exit(0)
    return pid, file


def test_counts_are_exact_while_processes_are_stopped_and_continued() -> None:
    """Every answer is another number, and together they are all numbers from 1 on: nothing is lost."""
    table, rounds = AttemptTable(sets=1), 3000
    children = [answers_in_child(table, rounds) for _ in range(4)]
    for number in range(40):
        pid = children[number % 2][0]
        os.kill(pid, signal.SIGSTOP)
        time.sleep(0.005)
        os.kill(pid, signal.SIGCONT)
    assert [os.waitpid(pid, 0)[1] for pid, _ in children] == [0] * 4
    answers = []
    for _, file in children:
        with file:
            file.seek(0)
            answers += map(int, file.read().split())
    assert sorted(answers) == list(range(1, 4 * rounds + 1))
    assert table.update(b"ann", 3.0, count_attempt) == 4 * rounds + 1


@pytest.mark.parametrize("cells_written", range(4))
def test_process_killed_while_it_writes_a_record_leaves_no_full_window(cells_written: int) -> None:
    """A window that has ended is full; the one that begins is not, whatever of it was written."""
    table = AttemptTable(sets=1)
    assert [table.update(b"ann", now, WindowCount(1, 2, 60.0).spend) for now in (1.0, 2.0, 3.0)] == [0, 0, 1]
    cells = table._cells
    writes = 0

    class Killed(BaseException):
        pass

    class KilledWriter:
        def __getitem__(self, index: int) -> int:
            return cells[index]

        def __setitem__(self, index: int, value: int) -> None:
            nonlocal writes
            if writes == cells_written:
                raise Killed
            writes += 1
            cells[index] = value

    table._cells = KilledWriter()  # type: ignore[assignment, misc]
    with suppress(Killed):
        table.update(b"ann", 100.0, WindowCount(1, 2, 60.0).spend)
    table._cells = cells  # type: ignore[misc]
    assert not table.update(b"ann", 101.0, WindowCount(1, 2, 60.0).spend)


def test_the_table_holds_no_key_in_plain_text() -> None:
    table = AttemptTable(sets=2)
    table.update(b"ann@example.com", 1.0, count_attempt)
    assert b"ann" not in table._cells.tobytes()


def test_two_tables_share_nothing() -> None:
    one, other = AttemptTable(sets=2), AttemptTable(sets=2)
    one.update(b"ann", 1.0, count_attempt)
    assert other.update(b"ann", 1.0, count_attempt) == 1


# Concurrency slots


def test_a_slot_is_granted_up_to_the_limit_of_its_key() -> None:
    table = AttemptTable(rows=3)
    assert [table.refuse_or_acquire(b"ann", 2) for _ in range(3)] == [False, False, True]
    assert not table.refuse_or_acquire(b"bob", 1)
    table.release(b"ann")
    assert [table.refuse_or_acquire(b"ann", 2) for _ in range(2)] == [False, True]


def test_slots_count_over_all_processes_and_end_with_the_process_that_held_them() -> None:
    table = AttemptTable(rows=3)
    table.set_row(1)
    assert not table.refuse_or_acquire(b"ann", 2)
    pid = os.fork()
    if pid == 0:
        table.set_row(2)
        os._exit(10 * table.refuse_or_acquire(b"ann", 2) + table.refuse_or_acquire(b"ann", 2))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1
    assert table.refuse_or_acquire(b"ann", 2)
    table.set_row(2)
    assert not table.refuse_or_acquire(b"ann", 2)
    assert [sum(table._held[row * COUNTERS_PER_ROW : (row + 1) * COUNTERS_PER_ROW]) for row in range(3)] == [
        0,
        1,
        1,
    ]


def test_slots_of_a_dead_process_are_released_with_its_row() -> None:
    table = AttemptTable(rows=3)
    pid = os.fork()
    if pid == 0:
        table.set_row(2)
        table.refuse_or_acquire(b"ann", 1)
        os._exit(0)
    os.waitpid(pid, 0)
    assert table.refuse_or_acquire(b"ann", 1)
    table.clear_row(2)
    assert not table.refuse_or_acquire(b"ann", 1)


def test_process_stopped_while_it_takes_a_slot_blocks_no_other_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table = AttemptTable(rows=3)

    def acquire_stopped() -> None:
        table.set_row(1)
        monkeypatch.setattr(attempts, "sum", lambda values: stop() or 0, raising=False)
        table.refuse_or_acquire(b"ann", 1)

    with process_that_stops(acquire_stopped):
        began = time.monotonic()
        assert [table.refuse_or_acquire(b"ann", 1) for _ in range(100)] == [None] * 100
        assert time.monotonic() - began < 0.5
        assert table.refuse_or_acquire(b"bob", 1) is False
    assert table.refuse_or_acquire(b"ann", 1) is True


def test_an_update_takes_less_than_50_microseconds() -> None:
    """The limit is ten times the usual time, because the machine may be busy."""
    table = AttemptTable(rows=96)
    began = time.process_time()
    for number in range(2000):
        table.update(b"%d@example.com" % (number % 100), 1.0, count_attempt)
    assert time.process_time() - began < 2000 * 50e-6
