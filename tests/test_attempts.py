"""The memory of attempts: what it counts, what it forgets, and that it forgets no more than it must."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blackhole.attempts import SLOTS, Attempt, Attempts


def test_the_first_attempt_is_the_first() -> None:
    memory = Attempts(sets=4)
    assert memory.record(b"ann", 10.0) == Attempt(1, 10.0, 10.0)
    assert memory.record(b"bob", 11.0) == Attempt(1, 11.0, 11.0)


def test_attempts_are_counted_with_their_times() -> None:
    memory = Attempts(sets=4)
    memory.record(b"ann", 10.0)
    assert memory.record(b"ann", 12.5) == Attempt(2, 10.0, 10.0)
    assert memory.record(b"ann", 20.0) == Attempt(3, 10.0, 12.5)


@given(st.lists(st.binary(max_size=4), max_size=SLOTS))
def test_nothing_is_forgotten_while_there_is_room(keys: list[bytes]) -> None:
    memory = Attempts(sets=1)
    for number, key in enumerate(keys):
        assert memory.record(key, float(number)).times == keys[: number + 1].count(key)


def test_of_a_full_set_the_oldest_goes() -> None:
    memory = Attempts(sets=1)
    for number in range(SLOTS):
        memory.record(b"%d" % number, float(number))
    memory.record(b"0", 100.0)
    memory.record(b"one more", 101.0)
    assert memory.record(b"0", 102.0).times == 2 + 1
    assert memory.record(b"2", 103.0).times == 1 + 1
    assert memory.record(b"1", 104.0).times == 1


def test_all_processes_share_it() -> None:
    memory = Attempts(sets=4)
    memory.record(b"ann", 1.0)
    pid = os.fork()
    if pid == 0:
        os._exit(memory.record(b"ann", 2.0).times)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 2
    assert memory.record(b"ann", 3.0) == Attempt(3, 1.0, 2.0)


def test_no_key_is_kept() -> None:
    memory = Attempts(sets=2)
    memory.record(b"ann@example.com", 1.0)
    assert b"ann" not in memory._cells.tobytes()


@pytest.mark.parametrize("secret", [None, b"x" * 16])
def test_two_memories_share_nothing(secret: bytes | None) -> None:
    one, other = Attempts(sets=2, secret=secret), Attempts(sets=2, secret=secret)
    one.record(b"ann", 1.0)
    assert other.record(b"ann", 1.0).times == 1
