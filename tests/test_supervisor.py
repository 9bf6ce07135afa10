"""The supervisor, as crew.py runs it: with children that do what the test wants them to."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Self

import crew
import pytest
from crew import WORKER
from program import alive, children, descriptors, end, environment, state, status, title, wait_for

from blackhole.process import supervisor


class Master:
    """crew.py, and what can be seen of it."""

    def __init__(self, directory: Path, workers: int = 2, **constants: float) -> None:
        self.directory = directory
        directory.chmod(0o777)  # one of the masters is not root
        (directory / "said").touch()
        (directory / "said").chmod(0o666)
        with open(directory / "log", "w") as log:
            self.process = subprocess.Popen(
                [sys.executable, crew.__file__, str(directory), str(workers), json.dumps(constants)],
                env=environment(),
                stderr=log,
            )
        self.pid = self.process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        end(self.process)

    def tell(self, name: str) -> None:
        (self.directory / name).touch()

    def untell(self, name: str) -> None:
        (self.directory / name).unlink()

    def said(self) -> list[str]:
        return (self.directory / "said").read_text().splitlines()

    def log(self) -> str:
        return (self.directory / "log").read_text()

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def workers(self) -> list[int]:
        return [pid for pid in children(self.pid) if title(pid).startswith(WORKER)]

    def settled(self, times: int = 1) -> Self:
        """When the first crew, or the one of so many reloads later, has taken over."""
        wait_for(lambda: self.said().count("settle True") == times, f"settled {times} times")
        return self

    def has(self, count: int, without: list[int] | None = None) -> list[int]:
        """Just so many workers, when they are there, none of them of those."""

        def look() -> list[int] | None:
            pids = self.workers()
            return pids if len(pids) == count and not set(pids) & set(without or ()) else None

        return wait_for(look, f"{count} workers, none of {without}") or []

    def logged(self, text: str, times: int = 1) -> None:
        wait_for(lambda: self.log().count(text) >= times, f"{text!r} in the log")

    def ends(self) -> int:
        """The exit code, once it has ended."""
        return self.process.wait(20)


@pytest.fixture(autouse=True)
def no_traceback(tmp_path: Path) -> Iterator[None]:
    yield
    log = tmp_path / "log"
    if log.exists() and not (tmp_path / "raise").exists():
        assert "Traceback" not in log.read_text()


def test_every_job_has_a_process_with_its_title(tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    with Master(tmp_path, 3) as master:
        master.settled()
        wait_for(lambda: len(children(master.pid)) == 4, "three workers and another")
        titles = sorted(title(pid) for pid in children(master.pid))
        assert titles == ["blackhole: other", f"{WORKER} 1", f"{WORKER} 2", f"{WORKER} 3"]


def test_the_master_has_no_event_loop_and_no_thread(tmp_path: Path) -> None:
    with Master(tmp_path) as master:
        master.settled()
        assert "anon_inode:[eventpoll]" not in descriptors(master.pid)
        assert status(master.pid)["Threads"] == "1"


def test_children_block_no_signal_and_are_deaf_to_what_means_the_master(tmp_path: Path) -> None:
    with Master(tmp_path, 1) as master:
        (worker,) = master.settled().workers()
        assert int(status(worker)["SigBlk"], 16) == 0
        ignored = int(status(worker)["SigIgn"], 16)
        assert {
            number for number in supervisor.SIGNALS if ignored >> (number - 1) & 1
        } == supervisor.IGNORED_IN_CHILDREN


def test_only_the_master_holds_the_pipe_that_ends_with_it(tmp_path: Path) -> None:
    with Master(tmp_path) as master:
        workers = master.settled().workers()
        os.kill(master.pid, signal.SIGKILL)
        wait_for(lambda: master.said().count("the master is gone") == 2, "both workers heard of it")
        wait_for(lambda: not any(map(alive, workers)), "both left")


# Deaths.


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM, signal.SIGRTMIN + 1])
def test_a_worker_that_dies_is_replaced(tmp_path: Path, number: int) -> None:
    with Master(tmp_path, EARLY_DEATH=0.1) as master:
        first, second = master.settled().workers()
        time.sleep(0.2)
        os.kill(first, number)
        master.has(2, without=[first])
        assert second in master.workers()
        master.logged("the next one starts at once")


def test_all_workers_may_die_at_once(tmp_path: Path) -> None:
    with Master(tmp_path, 4) as master:
        workers = master.settled().workers()
        for pid in workers:
            os.kill(pid, signal.SIGKILL)
        master.has(4, without=workers)
        assert not any(state(pid) == "Z" for pid in children(master.pid))


def test_a_program_that_cannot_work_here_ends(tmp_path: Path) -> None:
    (tmp_path / "die").touch()
    with Master(tmp_path) as master:
        assert master.ends() == os.EX_SOFTWARE
        assert "CRITICAL no worker can be kept running" in master.log()
        assert master.log().count("ended with exit code 3") == 2 * supervisor.FIRST_TRIES
        assert master.said() == ["leave"]


def test_workers_that_never_get_ready_count_as_dead(tmp_path: Path) -> None:
    (tmp_path / "mute").touch()
    with Master(tmp_path, 1, HEARTBEAT_TIMEOUT=0.3, BACKOFF=(0.0, 0.0, 0.1), ABORT_TIMEOUT=0.1) as master:
        assert master.ends() == os.EX_SOFTWARE
        assert "has been silent" in master.log()


def test_who_dies_at_start_again_and_again_is_given_up_while_others_serve(tmp_path: Path) -> None:
    (tmp_path / "die2").touch()
    with Master(tmp_path, BACKOFF=(0.0, 0.0, 0.05)) as master:
        master.settled()
        master.logged("given up until the next reload")
        assert master.log().count("worker 2 (pid") == supervisor.GIVE_UP
        assert len(master.workers()) == 1
        master.untell("die2")
        master.send(signal.SIGHUP)
        master.settled(2)
        master.has(2)


def test_between_failed_starts_it_waits_longer_and_longer(tmp_path: Path) -> None:
    (tmp_path / "die2").touch()
    with Master(tmp_path) as master:
        master.logged("the next one starts in 2 s")
        lines = [line for line in master.log().splitlines() if "worker 2" in line]
        assert [line.rpartition("starts ")[2] for line in lines] == ["at once", "in 1 s", "in 2 s"]


def test_a_crash_after_the_start_gives_up_no_place(tmp_path: Path) -> None:
    """Whoever can crash workers from outside would end the service with ten packets."""
    with Master(tmp_path, 1, BACKOFF=(0.0, 0.0, 0.02, 0.05, 9.0)) as master:
        master.settled()
        master.tell("crash")
        os.kill(master.workers()[0], signal.SIGKILL)
        master.logged("ended with exit code 4", times=supervisor.GIVE_UP + 2)
        master.untell("crash")
        master.has(1)
        assert master.process.poll() is None


def test_an_exception_in_a_child_is_logged_once_with_its_traceback(tmp_path: Path) -> None:
    (tmp_path / "raise").touch()
    with Master(tmp_path, 1, BACKOFF=(0.0, 0.0, 0.1)) as master:
        assert master.ends() == os.EX_SOFTWARE
        log = master.log()
        assert log.count("ERROR blackhole: worker 1 failed\n    Traceback") == supervisor.FIRST_TRIES
        assert log.count("\n    ZeroDivisionError: by intent\n") == supervisor.FIRST_TRIES
        assert log.count(f"ended with exit code {os.EX_SOFTWARE}") == supervisor.FIRST_TRIES


def test_an_operators_mistake_in_a_child_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "refuse").touch()
    with Master(tmp_path, 1, BACKOFF=(0.0, 0.0, 0.1)) as master:
        assert master.ends() == os.EX_SOFTWARE
        assert master.log().count("ERROR cannot do that\n") == supervisor.FIRST_TRIES
        assert f"ended with exit code {os.EX_NOPERM}" in master.log()


def test_strangers_are_buried_too(tmp_path: Path) -> None:
    for name in ("subreaper", "orphan"):
        (tmp_path / name).touch()
    with Master(tmp_path, 1) as master:
        master.settled()
        wait_for(lambda: len(children(master.pid)) == 2, "an orphan came to us")
        wait_for(lambda: len(children(master.pid)) == 1, "nobody but the worker is left")
        assert len(master.workers()) == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become a user who has no other process")
def test_when_no_process_can_be_forked_it_goes_on_trying() -> None:
    with TemporaryDirectory() as directory, Master(Path(directory), 2, user=54321) as master:
        master.settled()
        master.logged(
            "worker 2 cannot be forked: Resource temporarily unavailable; the next one starts in 1 s"
        )
        assert len(master.workers()) == 1
        subprocess.run(["prlimit", f"--pid={master.pid}", "--nproc=99"], user=54321, check=True)
        master.has(2)


# Silence.


def test_a_stopped_worker_is_killed_and_replaced(tmp_path: Path) -> None:
    with Master(tmp_path, HEARTBEAT_TIMEOUT=1.0, ABORT_TIMEOUT=0.2) as master:
        first, second = master.settled().workers()
        os.kill(first, signal.SIGSTOP)
        master.has(2, without=[first])
        assert second in master.workers()
        assert "has been silent for 1 s" in master.log()
        assert "was killed by signal 9 (Killed)" in master.log()


def test_a_frozen_worker_writes_down_where_it_stands(tmp_path: Path) -> None:
    with Master(tmp_path, 1, HEARTBEAT_TIMEOUT=1.0) as master:
        (worker,) = master.settled().workers()
        master.tell("silent")
        master.logged("was killed by signal 6 (Aborted)")
        master.untell("silent")
        master.has(1, without=[worker])
        assert "Fatal Python error: Aborted" in master.log()
        assert "in serve" in master.log()


def test_ctrl_z_is_not_held_against_the_children(tmp_path: Path) -> None:
    with Master(tmp_path, HEARTBEAT_TIMEOUT=0.5, LOOK=0.1) as master:
        workers = master.settled().workers()
        for pid in (master.pid, *workers):
            os.kill(pid, signal.SIGSTOP)
        time.sleep(0.7)
        for pid in (master.pid, *workers):
            os.kill(pid, signal.SIGCONT)
        time.sleep(0.7)
        assert master.workers() == workers


# Signals.


def test_term_lets_children_finish(tmp_path: Path) -> None:
    with Master(tmp_path) as master:
        workers = master.settled().workers()
        master.send(signal.SIGTERM)
        assert master.ends() == 0
        assert master.said()[-1] == "leave"
        assert not any(map(alive, workers))
        assert "WARNING" not in master.log()


def test_term_has_a_limit(tmp_path: Path) -> None:
    (tmp_path / "stubborn").touch()
    with Master(tmp_path, drain=0.3) as master:
        master.settled()
        master.send(signal.SIGTERM)
        assert master.ends() == 0
        assert master.log().count("does not end and is killed") == 2


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_asked_twice_it_stops_now(tmp_path: Path, second: signal.Signals) -> None:
    (tmp_path / "stubborn").touch()
    with Master(tmp_path, drain=60.0) as master:
        master.settled()
        master.send(signal.SIGTERM)
        wait_for(lambda: "leave" in master.said(), "it is about to stop")
        time.sleep(0.1)
        assert master.process.poll() is None
        began = time.monotonic()
        master.send(second)
        assert master.ends() == 0
        assert time.monotonic() - began < 20, "a third of what it would wait"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT])
def test_int_and_quit_stop_now(tmp_path: Path, number: signal.Signals) -> None:
    with Master(tmp_path, drain=60.0) as master:
        workers = master.settled().workers()
        master.send(number)
        assert master.ends() == 0
        assert not any(map(alive, workers))


def test_term_before_it_is_ready(tmp_path: Path) -> None:
    (tmp_path / "mute").touch()
    with Master(tmp_path) as master:
        master.has(2)
        master.send(signal.SIGTERM)
        assert master.ends() == 0
        assert master.said() == ["leave"]


def test_one_more_and_one_less_but_never_none(tmp_path: Path) -> None:
    with Master(tmp_path) as master:
        master.settled()
        master.send(signal.SIGTTIN)
        assert title(master.has(3)[-1]) == f"{WORKER} 3"
        for left in (2, 1):
            master.send(signal.SIGTTOU)
            master.has(left)
        master.send(signal.SIGTTOU)
        time.sleep(0.3)
        assert len(master.workers()) == 1
        master.send(signal.SIGTTIN)
        assert [title(pid) for pid in master.has(2)] == [f"{WORKER} 1", f"{WORKER} 2"]
        assert "died" not in master.log()


def test_usr1_reopens_the_masters_log_first(tmp_path: Path) -> None:
    with Master(tmp_path) as master:
        master.settled()
        master.send(signal.SIGUSR1)
        wait_for(lambda: master.said().count("child reopens") == 2, "both children reopened")
        assert master.said() == ["settle True", "master reopens", "child reopens", "child reopens"]


def test_usr1_reaches_a_child_when_it_is_ready_for_it(tmp_path: Path) -> None:
    (tmp_path / "mute").touch()
    with Master(tmp_path, 1) as master:
        (worker,) = master.has(1)
        master.send(signal.SIGUSR1)
        wait_for(lambda: "master reopens" in master.said(), "the master reopened")
        time.sleep(0.1)
        assert alive(worker)
        master.untell("mute")
        wait_for(lambda: "child reopens" in master.said(), "the child did as well")
        assert master.workers() == [worker]


# Reload.


def test_hup_starts_new_workers_before_the_old_leave(tmp_path: Path) -> None:
    with Master(tmp_path) as master:
        old = master.settled().workers()
        master.tell("mute")
        master.send(signal.SIGHUP)
        both = master.has(4)
        assert set(old) < set(both)
        master.untell("mute")
        master.settled(2)
        assert not set(master.has(2)) & set(old)


def test_a_wrong_configuration_changes_nothing(tmp_path: Path) -> None:
    with Master(tmp_path) as master:
        workers = master.settled().workers()
        master.tell("wrong")
        master.send(signal.SIGHUP)
        master.logged("ERROR not reloaded, all stays as it was: that is wrong")
        assert master.workers() == workers
        assert master.said() == ["settle True", "reload"]
        master.untell("wrong")
        master.send(signal.SIGHUP)
        master.settled(2)


@pytest.mark.parametrize("fault", ["die", "mute"])
def test_new_workers_that_do_not_start_change_nothing(tmp_path: Path, fault: str) -> None:
    with Master(tmp_path, HEARTBEAT_TIMEOUT=1.0) as master:
        workers = master.settled().workers()
        master.tell(fault)
        master.send(signal.SIGHUP)
        wait_for(lambda: "settle False" in master.said(), "it gave up the new ones")
        assert master.has(2) == workers
        assert master.log().count("not reloaded") == 1


def test_the_old_are_given_time_to_leave_and_no_more(tmp_path: Path) -> None:
    (tmp_path / "stubborn").touch()
    with Master(tmp_path, drain=0.5) as master:
        old = master.settled().workers()
        master.untell("stubborn")
        master.send(signal.SIGHUP)
        master.settled(2)
        assert all(map(alive, old))
        master.has(2, without=old)
        assert master.log().count("does not end and is killed") == 2


def test_many_hups_are_as_good_as_the_last(tmp_path: Path) -> None:
    with Master(tmp_path) as master:
        master.settled()
        for _ in range(5):
            for _ in range(4):  # at once: a busy machine has time for a reload between two that are not
                master.send(signal.SIGHUP)
            time.sleep(0.02)
        wait_for(lambda: master.said()[-1] == "settle True" and len(master.said()) > 1, "the reload was done")
        time.sleep(0.5)
        master.has(2)
        said = master.said()
        assert said == ["settle True", *["reload", "settle True"] * said.count("reload")]
        assert said.count("reload") < 20


def test_a_reload_waits_for_rows_that_leaving_children_still_hold(tmp_path: Path) -> None:
    (tmp_path / "stubborn").touch()
    with Master(tmp_path, rows=4, drain=0.5) as master:
        first = master.settled().workers()
        master.send(signal.SIGHUP)
        master.settled(2)
        master.send(signal.SIGHUP)
        wait_for(lambda: master.said()[-1] == "reload", "the second reload began")
        assert all(map(alive, first))
        master.settled(3)
        assert not any(map(alive, first))


def test_a_storm_of_signals_and_deaths(tmp_path: Path) -> None:
    dice = random.Random(7)
    with Master(tmp_path, 3) as master:
        master.settled()
        opened = len(descriptors(master.pid))
        for _ in range(60):
            number = dice.choice(
                [signal.SIGHUP, signal.SIGCHLD, signal.SIGUSR1, signal.SIGKILL, signal.SIGTERM]
            )
            pids = master.workers()
            if number in (signal.SIGKILL, signal.SIGTERM):
                with suppress(IndexError, ProcessLookupError):
                    os.kill(dice.choice(pids), number)
            else:
                master.send(number)
            time.sleep(0.03)
        wait_for(
            lambda: len(master.workers()) == 3 == len(children(master.pid)), "three workers", timeout=6.0
        )
        time.sleep(0.5)
        assert len(master.workers()) == 3
        assert not any(state(pid) == "Z" for pid in children(master.pid))
        assert len(descriptors(master.pid)) == opened
