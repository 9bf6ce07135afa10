"""The memory of attempts: what it keeps, what it forgets, and that it forgets no more than it must."""

from __future__ import annotations

import os
import signal
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blackhole.rules.attempt_store import Record, counted
from blackhole.store.attempts import PLACES, SLOTS, AttemptTable


def seen(known: Record, now: float) -> tuple[Record, Record]:
    """Count it, and tell what was known before."""
    return counted(known, now)[0], known


def test_the_first_attempt_is_the_first() -> None:
    memory = AttemptTable(sets=4)
    assert memory.revise(b"ann", 10.0, seen) == (0, 10.0, 10.0)
    assert memory.revise(b"bob", 11.0, seen) == (0, 11.0, 11.0)


@pytest.mark.parametrize("alone", [False, True])
def test_attempts_are_counted_with_their_times(alone: bool) -> None:
    memory = AttemptTable(sets=4)
    memory.revise(b"ann", 10.0, seen, alone)
    assert memory.revise(b"ann", 12.5, seen, alone) == (1, 10.0, 10.0)
    assert memory.revise(b"ann", 20.0, seen, alone) == (2, 10.0, 12.5)


@given(st.floats(0, 1e9), st.integers(2, 20))
def test_times_do_not_drift(first: float, times: int) -> None:
    memory = AttemptTable(sets=1)
    for _ in range(times):
        known = memory.revise(b"ann", first, seen)
    assert abs(known[1] - first) < 1e-6


@given(st.lists(st.binary(max_size=4), max_size=SLOTS))
def test_nothing_is_forgotten_while_there_is_room(keys: list[bytes]) -> None:
    memory = AttemptTable(sets=1)
    for number, key in enumerate(keys):
        assert memory.revise(key, float(number), counted) == keys[: number + 1].count(key)


def test_of_a_full_set_the_oldest_goes() -> None:
    memory = AttemptTable(sets=1)
    for number in range(SLOTS):
        memory.revise(b"%d" % number, float(number), counted)
    memory.revise(b"0", 100.0, counted)
    memory.revise(b"one more", 101.0, counted)
    assert memory.revise(b"0", 102.0, counted) == 2 + 1
    assert memory.revise(b"2", 103.0, counted) == 1 + 1
    assert memory.revise(b"1", 104.0, counted) == 1


def forked(memory: AttemptTable, *keys: bytes, times: int = 1) -> int:
    """A process that counts each key so many times, alone."""
    pid = os.fork()
    if pid == 0:
        for _ in range(times):
            for key in keys:
                memory.revise(key, 2.0, counted, alone=True)
        os._exit(0)
    return pid


def test_all_processes_share_it() -> None:
    memory = AttemptTable(sets=4)
    memory.revise(b"ann", 1.0, counted)
    assert os.waitpid(forked(memory, b"ann"), 0)[1] == 0
    assert memory.revise(b"ann", 3.0, seen) == (2, 1.0, 2.0)


def test_whoever_changes_it_alone_loses_nothing() -> None:
    memory = AttemptTable(sets=1)
    pids = [forked(memory, b"ann", b"bob", times=5000) for _ in range(4)]
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * 4
    assert memory.revise(b"ann", 3.0, counted) == 20001
    assert memory.revise(b"bob", 3.0, counted) == 20001


def test_whoever_is_killed_holds_nobody_up() -> None:
    memory = AttemptTable(sets=1)
    pid = os.fork()
    if pid == 0:
        memory.revise(b"ann", 2.0, lambda known, now: os.kill(os.getpid(), signal.SIGKILL), alone=True)
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL
    assert memory.revise(b"ann", 3.0, counted, alone=True) == 1


def test_no_key_is_kept() -> None:
    memory = AttemptTable(sets=2)
    memory.revise(b"ann@example.com", 1.0, counted)
    assert b"ann" not in memory._cells.tobytes()


def test_two_memories_share_nothing() -> None:
    one, other = AttemptTable(sets=2), AttemptTable(sets=2)
    one.revise(b"ann", 1.0, counted)
    assert other.revise(b"ann", 1.0, counted) == 1


# Who is there


def test_there_is_room_for_so_many() -> None:
    memory = AttemptTable(rows=3)
    assert [memory.bars(b"ann", 2) for _ in range(3)] == [False, False, True]
    assert not memory.bars(b"bob", 1)
    memory.leave(b"ann")
    assert [memory.bars(b"ann", 2) for _ in range(2)] == [False, True]


def test_all_processes_are_in_one_room_and_take_along_what_they_counted() -> None:
    memory = AttemptTable(rows=3)
    memory.claim(1)
    assert not memory.bars(b"ann", 2)
    pid = os.fork()
    if pid == 0:
        memory.claim(2)
        os._exit(10 * memory.bars(b"ann", 2) + memory.bars(b"ann", 2))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1
    assert memory.bars(b"ann", 2)
    memory.claim(2)
    assert not memory.bars(b"ann", 2)
    assert [sum(memory._present[row * PLACES : (row + 1) * PLACES]) for row in range(3)] == [0, 1, 1]


def test_a_look_up_takes_no_time() -> None:
    """Ten times what it takes, for the sake of busy machines."""
    memory = AttemptTable(rows=96)
    began = time.process_time()
    for number in range(2000):
        memory.revise(b"%d@example.com" % (number % 100), 1.0, counted)
    assert time.process_time() - began < 2000 * 50e-6
