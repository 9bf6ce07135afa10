"""Locks between processes: exclusive, and no reason to wait for a process that is stopped."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from blackhole.store import shared_lock
from blackhole.store.shared_lock import MAX_WAIT, SharedLock
from tests.stopped_process import process_that_stops, stop

OCTET = 5


def hold_stopped(lock: SharedLock) -> None:
    lock.acquire(OCTET)
    stop()
    lock.release(OCTET)


@contextmanager
def held_by_a_running_process(lock: SharedLock) -> Iterator[int]:
    ready, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        lock.acquire(OCTET)
        os.write(tell, b"!")
        time.sleep(60)
        os._exit(1)
    try:
        os.read(ready, 1)
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(ready)
        os.close(tell)


def seconds_to_fail(lock: SharedLock) -> float:
    """Return how long it takes to be told that the lock is not to be had."""
    began = time.monotonic()
    assert not lock.acquire(OCTET)
    return time.monotonic() - began


def test_lock_of_a_stopped_process_is_not_waited_for() -> None:
    lock = SharedLock("test")
    with process_that_stops(lambda: hold_stopped(lock)):
        assert max(seconds_to_fail(lock) for _ in range(20)) < MAX_WAIT / 2
        assert lock.acquire(OCTET + 1)
        lock.release(OCTET + 1)
    assert lock.acquire(OCTET)


def test_lock_of_a_process_that_runs_is_waited_for_once() -> None:
    lock = SharedLock("test")
    with held_by_a_running_process(lock):
        assert MAX_WAIT <= seconds_to_fail(lock) < 8 * MAX_WAIT
        assert sum(seconds_to_fail(lock) for _ in range(5)) < MAX_WAIT
    assert lock.acquire(OCTET)
    lock.release(OCTET)
    with held_by_a_running_process(lock):
        assert seconds_to_fail(lock) >= MAX_WAIT, "what was had in between is waited for again"


def test_lock_of_a_killed_process_is_free() -> None:
    lock = SharedLock("test")
    with held_by_a_running_process(lock):
        pass
    with process_that_stops(lambda: hold_stopped(lock)) as pid:
        os.kill(pid, signal.SIGKILL)
        assert lock.acquire(OCTET, 20)


def test_lock_that_the_kernel_has_no_memory_for_is_not_had(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks_available(*_: object) -> None:
        raise OSError(37, os.strerror(37))

    lock = SharedLock("test")
    with monkeypatch.context() as patch:
        patch.setattr(shared_lock, "lockf", no_locks_available)
        assert not lock.acquire(OCTET, 0.01)
    assert lock.acquire(OCTET)


def test_a_process_that_cannot_be_looked_at_counts_as_running() -> None:
    assert not shared_lock.is_stopped(os.getpid())
    assert not shared_lock.is_stopped(2**22 + 1)
