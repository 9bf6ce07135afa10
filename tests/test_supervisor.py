"""The supervisor, with children that behave as each test tells them to."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Self

import pytest

from blackhole.process import restarts, supervisor
from blackhole.process.children import IGNORED_IN_CHILDREN
from blackhole.process.heartbeat import Heartbeat
from tests import scripted_master
from tests.program import alive, children, descriptors, end, environment, state, status, title, wait_for
from tests.scripted_master import WORKER


class Master:
    """A running scripted_master.py, and what can be seen of it."""

    def __init__(self, directory: Path, workers: int = 2, **constants: float) -> None:
        self.directory = directory
        directory.chmod(0o777)  # one of the masters is not root
        (directory / "events").touch()
        (directory / "events").chmod(0o666)
        with open(directory / "log", "w") as log:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    scripted_master.__file__,
                    str(directory),
                    str(workers),
                    json.dumps(constants),
                ],
                env=environment(),
                stderr=log,
            )
        self.pid = self.process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        end(self.process)

    def enable(self, name: str) -> None:
        (self.directory / name).touch()

    def disable(self, name: str) -> None:
        (self.directory / name).unlink()

    def events(self) -> list[str]:
        return (self.directory / "events").read_text().splitlines()

    def log(self) -> str:
        return (self.directory / "log").read_text()

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def workers(self) -> list[int]:
        return [pid for pid in children(self.pid) if title(pid).startswith(WORKER)]

    def wait_ready(self) -> Self:
        """Wait until the first workers are ready."""
        wait_for(lambda: "ready" in self.events(), "the first workers are ready")
        return self

    def wait_reloaded(self, times: int = 1) -> None:
        """Wait until so many reloads have succeeded."""
        wait_for(lambda: self.events().count("reloaded") == times, f"reloaded {times} times")

    def wait_workers(self, count: int, without: list[int] | None = None) -> list[int]:
        """Wait for exactly `count` workers, none of them in `without`, and return their pids."""

        def look() -> list[int] | None:
            pids = self.workers()
            return pids if len(pids) == count and not set(pids) & set(without or ()) else None

        return wait_for(look, f"{count} workers, none of {without}") or []

    def wait_logged(self, text: str, times: int = 1) -> None:
        wait_for(lambda: self.log().count(text) >= times, f"{text!r} in the log")

    def wait_exit(self) -> int:
        """Wait for the end of the master and return its exit status."""
        return self.process.wait(20)


@pytest.fixture(autouse=True)
def no_traceback(tmp_path: Path) -> Iterator[None]:
    yield
    log = tmp_path / "log"
    if log.exists() and not (tmp_path / "raise").exists():
        assert "Traceback" not in log.read_text()


def test_each_job_runs_in_a_process_with_its_title(tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    with Master(tmp_path, 3) as master:
        master.wait_ready()
        wait_for(lambda: len(children(master.pid)) == 4, "three workers and the other job")
        titles = sorted(title(pid) for pid in children(master.pid))
        assert titles == ["blackhole: other", f"{WORKER} 1", f"{WORKER} 2", f"{WORKER} 3"]


def test_the_master_has_no_event_loop_and_no_thread(tmp_path: Path) -> None:
    with Master(tmp_path) as master:
        master.wait_ready()
        assert "anon_inode:[eventpoll]" not in descriptors(master.pid)
        assert status(master.pid)["Threads"] == "1"


def test_child_blocks_no_signal_and_ignores_those_meant_for_the_master(tmp_path: Path) -> None:
    with Master(tmp_path, 1) as master:
        (worker,) = master.wait_ready().workers()
        assert int(status(worker)["SigBlk"], 16) == 0
        ignored = int(status(worker)["SigIgn"], 16)
        assert {
            number for number in supervisor.MASTER_SIGNALS if ignored >> (number - 1) & 1
        } == IGNORED_IN_CHILDREN


def test_children_notice_that_the_master_was_killed(tmp_path: Path) -> None:
    with Master(tmp_path) as master:
        workers = master.wait_ready().workers()
        os.kill(master.pid, signal.SIGKILL)
        wait_for(lambda: master.events().count("the master is gone") == 2, "both workers noticed")
        wait_for(lambda: not any(map(alive, workers)), "both workers have ended")


# Deaths.


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM, signal.SIGRTMIN + 1])
def test_worker_that_dies_is_replaced(tmp_path: Path, number: int) -> None:
    with Master(tmp_path, early_death=0.1) as master:
        first, second = master.wait_ready().workers()
        time.sleep(0.2)
        os.kill(first, number)
        master.wait_workers(2, without=[first])
        assert second in master.workers()
        master.wait_logged("next start at once")


def test_all_workers_that_die_at_once_are_replaced(tmp_path: Path) -> None:
    with Master(tmp_path, 4) as master:
        workers = master.wait_ready().workers()
        for pid in workers:
            os.kill(pid, signal.SIGKILL)
        master.wait_workers(4, without=workers)
        assert not any(state(pid) == "Z" for pid in children(master.pid))


def test_master_exits_when_no_worker_ever_becomes_ready(tmp_path: Path) -> None:
    (tmp_path / "die").touch()
    with Master(tmp_path) as master:
        assert master.wait_exit() == os.EX_SOFTWARE
        assert "CRITICAL no worker can be kept running" in master.log()
        assert master.log().count("exited with status 3") == 2 * supervisor.FIRST_TRIES
        assert master.events() == ["stop listening"]


def test_worker_that_never_sends_a_heartbeat_is_a_failed_start(tmp_path: Path) -> None:
    (tmp_path / "mute").touch()
    with Master(tmp_path, 1, heartbeat_timeout=0.3, backoff=(0.0, 0.0, 0.1), abort_timeout=0.1) as master:
        assert master.wait_exit() == os.EX_SOFTWARE
        assert "has sent no heartbeat" in master.log()


def test_worker_that_fails_every_start_is_given_up_while_others_serve(tmp_path: Path) -> None:
    (tmp_path / "die2").touch()
    with Master(tmp_path, backoff=(0.0, 0.0, 0.05)) as master:
        master.wait_ready()
        master.wait_logged("given up until the next reload")
        assert master.log().count("worker 2 (pid") == restarts.GIVE_UP
        assert len(master.workers()) == 1
        master.disable("die2")
        master.send(signal.SIGHUP)
        master.wait_reloaded()
        master.wait_workers(2)


def test_wait_between_failed_starts_grows(tmp_path: Path) -> None:
    (tmp_path / "die2").touch()
    with Master(tmp_path) as master:
        master.wait_logged("next start in 2 s")
        lines = [line for line in master.log().splitlines() if "worker 2" in line]
        assert [line.rpartition("start ")[2] for line in lines] == ["at once", "in 1 s", "in 2 s"]


def test_worker_that_crashes_after_its_start_is_never_given_up(tmp_path: Path) -> None:
    """Otherwise a client that can crash a worker would end the service with ten packets."""
    with Master(tmp_path, 1, backoff=(0.0, 0.0, 0.02, 0.05, 9.0)) as master:
        master.wait_ready()
        master.enable("crash")
        os.kill(master.workers()[0], signal.SIGKILL)
        master.wait_logged("exited with status 4", times=restarts.GIVE_UP + 2)
        master.disable("crash")
        master.wait_workers(1)
        assert master.process.poll() is None


def test_exception_in_a_child_is_logged_once_with_its_traceback(tmp_path: Path) -> None:
    (tmp_path / "raise").touch()
    with Master(tmp_path, 1, backoff=(0.0, 0.0, 0.1)) as master:
        assert master.wait_exit() == os.EX_SOFTWARE
        log = master.log()
        assert log.count("ERROR blackhole: worker 1 failed\n    Traceback") == supervisor.FIRST_TRIES
        assert log.count("\n    ZeroDivisionError: by intent\n") == supervisor.FIRST_TRIES
        assert log.count(f"exited with status {os.EX_SOFTWARE}") == supervisor.FIRST_TRIES


def test_operator_error_in_a_child_is_logged_as_one_line(tmp_path: Path) -> None:
    (tmp_path / "refuse").touch()
    with Master(tmp_path, 1, backoff=(0.0, 0.0, 0.1)) as master:
        assert master.wait_exit() == os.EX_SOFTWARE
        assert master.log().count("ERROR cannot do that\n") == supervisor.FIRST_TRIES
        assert f"exited with status {os.EX_NOPERM}" in master.log()


def test_orphans_of_other_programs_are_reaped(tmp_path: Path) -> None:
    for name in ("subreaper", "orphan"):
        (tmp_path / name).touch()
    with Master(tmp_path, 1) as master:
        master.wait_ready()
        wait_for(lambda: len(children(master.pid)) == 2, "the orphan became a child of the master")
        wait_for(lambda: len(children(master.pid)) == 1, "the orphan was reaped")
        assert len(master.workers()) == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become a user who has no other process")
def test_fork_that_fails_is_tried_again() -> None:
    with TemporaryDirectory() as directory, Master(Path(directory), 2, user=54321) as master:
        master.wait_ready()
        master.wait_logged(
            "cannot fork blackhole: worker 2: Resource temporarily unavailable; next start in 1 s"
        )
        assert len(master.workers()) == 1
        subprocess.run(["prlimit", f"--pid={master.pid}", "--nproc=99"], user=54321, check=True)
        master.wait_workers(2)


# Missing heartbeats.


def test_stopped_worker_is_killed_and_replaced(tmp_path: Path) -> None:
    with Master(tmp_path, heartbeat_timeout=1.0, abort_timeout=0.2) as master:
        first, second = master.wait_ready().workers()
        os.kill(first, signal.SIGSTOP)
        master.wait_workers(2, without=[first])
        assert second in master.workers()
        assert "has sent no heartbeat for 1 s" in master.log()
        assert "was killed by signal 9 (Killed)" in master.log()


def test_worker_without_heartbeat_logs_its_stack_before_it_is_replaced(tmp_path: Path) -> None:
    with Master(tmp_path, 1, heartbeat_timeout=1.0) as master:
        (worker,) = master.wait_ready().workers()
        master.enable("silent")
        master.wait_logged("was killed by signal 6 (Aborted)")
        master.disable("silent")
        master.wait_workers(1, without=[worker])
        assert "Fatal Python error: Aborted" in master.log()
        assert "in run_child" in master.log()


def test_worker_that_hangs_is_replaced_though_another_one_writes_its_heartbeats(tmp_path: Path) -> None:
    """All workers may write the shared counters."""
    with Master(tmp_path, 2, heartbeat_timeout=1.0) as master:
        workers = master.wait_ready().workers()
        master.enable("forge")
        master.enable("silent1")
        master.wait_logged("was killed by signal 6 (Aborted)")
        master.disable("silent1")
        wait_for(lambda: workers[0] not in master.workers(), "it is replaced")
        assert workers[1] in master.workers()


def test_heartbeat_in_the_future_counts_as_one_now() -> None:
    heartbeat = Heartbeat()
    heartbeat._cells[0] = 2**64 - 1
    assert heartbeat.last <= time.monotonic()


def test_later_children_do_not_have_the_heartbeat_of_a_child() -> None:
    heartbeat = Heartbeat()
    heartbeat.hide()
    pid = os.fork()
    if pid == 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(signal.SIGSEGV, signal.SIG_DFL)
        heartbeat.beat()
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGSEGV
    assert heartbeat.last == 0.0


def test_children_are_not_killed_after_ctrl_z_and_fg(tmp_path: Path) -> None:
    with Master(tmp_path, heartbeat_timeout=0.5, poll=0.1) as master:
        workers = master.wait_ready().workers()
        for pid in (master.pid, *workers):
            os.kill(pid, signal.SIGSTOP)
        time.sleep(0.7)
        for pid in (master.pid, *workers):
            os.kill(pid, signal.SIGCONT)
        time.sleep(0.7)
        assert master.workers() == workers


# Signals.


def test_sigterm_lets_children_finish(tmp_path: Path) -> None:
    with Master(tmp_path) as master:
        workers = master.wait_ready().workers()
        master.send(signal.SIGTERM)
        assert master.wait_exit() == 0
        assert master.events()[-1] == "stop listening"
        assert not any(map(alive, workers))
        assert "WARNING" not in master.log()


def test_sigterm_kills_children_after_the_drain_timeout(tmp_path: Path) -> None:
    (tmp_path / "stubborn").touch()
    with Master(tmp_path, drain=0.3) as master:
        master.wait_ready()
        master.send(signal.SIGTERM)
        assert master.wait_exit() == 0
        assert master.log().count("did not stop in time and is killed") == 2


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_second_signal_stops_at_once(tmp_path: Path, second: signal.Signals) -> None:
    (tmp_path / "stubborn").touch()
    with Master(tmp_path, drain=60.0) as master:
        master.wait_ready()
        master.send(signal.SIGTERM)
        wait_for(lambda: "stop listening" in master.events(), "the master stops")
        time.sleep(0.1)
        assert master.process.poll() is None
        began = time.monotonic()
        master.send(second)
        assert master.wait_exit() == 0
        assert time.monotonic() - began < 20, "a third of what it would wait"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT])
def test_sigint_and_sigquit_stop_at_once(tmp_path: Path, number: signal.Signals) -> None:
    with Master(tmp_path, drain=60.0) as master:
        workers = master.wait_ready().workers()
        master.send(number)
        assert master.wait_exit() == 0
        assert not any(map(alive, workers))


def test_sigterm_stops_a_master_whose_workers_are_not_ready_yet(tmp_path: Path) -> None:
    (tmp_path / "mute").touch()
    with Master(tmp_path) as master:
        master.wait_workers(2)
        master.send(signal.SIGTERM)
        assert master.wait_exit() == 0
        assert master.events() == ["stop listening"]


def test_sigttin_adds_a_worker_and_sigttou_removes_all_but_the_last(tmp_path: Path) -> None:
    with Master(tmp_path) as master:
        master.wait_ready()
        master.send(signal.SIGTTIN)
        assert title(master.wait_workers(3)[-1]) == f"{WORKER} 3"
        for left in (2, 1):
            master.send(signal.SIGTTOU)
            master.wait_workers(left)
        master.send(signal.SIGTTOU)
        time.sleep(0.3)
        assert len(master.workers()) == 1
        master.send(signal.SIGTTIN)
        assert [title(pid) for pid in master.wait_workers(2)] == [f"{WORKER} 1", f"{WORKER} 2"]
        assert "WARNING" not in master.log()


def test_sigttin_leaves_rows_for_a_reload(tmp_path: Path) -> None:
    with Master(tmp_path, rows=10) as master:
        master.wait_ready()
        for number in (3, 4, 5):
            master.send(signal.SIGTTIN)
            master.wait_workers(number)
        master.send(signal.SIGTTIN)
        master.wait_logged("WARNING there are 5 workers, and not more until the next start")
        assert len(master.workers()) == 5
        master.send(signal.SIGHUP)
        master.wait_reloaded()
        master.wait_workers(2)


def test_sighup_of_a_closed_terminal_stops_the_master(tmp_path: Path) -> None:
    with Master(tmp_path) as master:
        master.wait_ready()
        master.enable("closed terminal")
        master.send(signal.SIGHUP)
        assert master.wait_exit() == 0
        assert "INFO the terminal is closed" in master.log()


def test_sigusr1_reopens_the_log_of_the_master_first(tmp_path: Path) -> None:
    with Master(tmp_path) as master:
        master.wait_ready()
        master.send(signal.SIGUSR1)
        wait_for(
            lambda: master.events().count("child reopens its log") == 2, "both children reopened their logs"
        )
        assert master.events() == [
            "ready",
            "master reopens its log",
            "child reopens its log",
            "child reopens its log",
        ]


def test_master_replaces_workers_while_the_log_is_being_opened(tmp_path: Path) -> None:
    """SIGUSR1 once more, meanwhile, has it opened again afterwards: there may have been another rotation."""
    with Master(tmp_path, 2) as master:
        workers = master.wait_ready().workers()
        master.enable("slow log")
        master.send(signal.SIGUSR1)
        os.kill(workers[0], signal.SIGKILL)
        master.wait_workers(2, without=workers[:1])
        master.send(signal.SIGUSR1)
        master.send(signal.SIGUSR1)
        time.sleep(0.1)
        assert "master reopens its log" not in master.events()
        master.disable("slow log")
        wait_for(lambda: master.events().count("master reopens its log") == 2, "it was opened twice")
        master.send(signal.SIGTERM)
        assert master.wait_exit() == 0


@pytest.mark.parametrize("how", ["slow log", "wrong log"])
def test_log_that_cannot_be_opened_again_stays_in_use(tmp_path: Path, how: str) -> None:
    with Master(tmp_path, 1, read_timeout=0.5) as master:
        master.wait_ready()
        master.enable(how)
        master.send(signal.SIGUSR1)
        reason = {"slow log": "it took over 0.5 s", "wrong log": "that is wrong"}[how]
        master.wait_logged(f"log file not reopened, the old one stays in use: {reason}")
        master.disable(how)
        master.send(signal.SIGUSR1)
        wait_for(lambda: "child reopens its log" in master.events(), "the child reopened its log")
        assert master.events().count("master reopens its log") == 1


def test_sigusr1_is_sent_to_a_child_only_once_it_is_ready(tmp_path: Path) -> None:
    (tmp_path / "mute").touch()
    with Master(tmp_path, 1) as master:
        (worker,) = master.wait_workers(1)
        master.send(signal.SIGUSR1)
        wait_for(lambda: "master reopens its log" in master.events(), "the master reopened its log")
        time.sleep(0.1)
        assert alive(worker)
        master.disable("mute")
        wait_for(lambda: "child reopens its log" in master.events(), "the child reopened its log")
        assert master.workers() == [worker]


# Reload.


def test_sighup_starts_new_workers_before_the_old_ones_stop(tmp_path: Path) -> None:
    with Master(tmp_path) as master:
        old = master.wait_ready().workers()
        master.enable("mute")
        master.send(signal.SIGHUP)
        both = master.wait_workers(4)
        assert set(old) < set(both)
        master.disable("mute")
        master.wait_reloaded()
        assert not set(master.wait_workers(2)) & set(old)


def test_reload_of_a_wrong_configuration_changes_nothing(tmp_path: Path) -> None:
    with Master(tmp_path) as master:
        workers = master.wait_ready().workers()
        master.enable("wrong")
        master.send(signal.SIGHUP)
        master.wait_logged("ERROR reload failed, nothing has changed: that is wrong")
        assert master.workers() == workers
        assert master.events() == ["ready", "reload"]
        master.disable("wrong")
        master.send(signal.SIGHUP)
        master.wait_reloaded()


def test_reload_that_cannot_use_what_it_read_changes_nothing(tmp_path: Path) -> None:
    with Master(tmp_path) as master:
        workers = master.wait_ready().workers()
        for fault, message in (
            ("wrong plan", "that is wrong, too"),
            ("broken", "blackhole: reload died with status 5"),
        ):
            master.enable(fault)
            master.send(signal.SIGHUP)
            master.wait_logged(f"ERROR reload failed, nothing has changed: {message}")
            master.disable(fault)
        assert master.workers() == workers
        master.send(signal.SIGHUP)
        master.wait_reloaded()


def reader(master: Master) -> int:
    """Return the pid of the process that reads the configuration, once it runs."""

    def look() -> int:
        return next((pid for pid in children(master.pid) if title(pid) == "blackhole: reload"), 0)

    return wait_for(look, "the configuration is being read")


def test_master_replaces_workers_and_stops_while_the_configuration_is_being_read(tmp_path: Path) -> None:
    with Master(tmp_path) as master:
        first, second = master.wait_ready().workers()
        master.enable("slow")
        master.send(signal.SIGHUP)
        pid = reader(master)
        os.kill(first, signal.SIGKILL)
        assert second in master.wait_workers(2, without=[first])
        master.send(signal.SIGTERM)
        assert master.wait_exit() == 0
        wait_for(lambda: not alive(pid), "the reading process has ended")
        assert "reload failed" not in master.log()


def test_reading_the_configuration_is_given_up_after_a_time(tmp_path: Path) -> None:
    with Master(tmp_path, read_timeout=0.3) as master:
        workers = master.wait_ready().workers()
        master.enable("slow")
        master.send(signal.SIGHUP)
        pid = reader(master)
        master.wait_logged("reload failed, nothing has changed: reading the configuration took over 0.3 s")
        wait_for(lambda: not alive(pid), "the reading process has ended")
        assert master.workers() == workers
        master.disable("slow")
        master.send(signal.SIGHUP)
        master.wait_reloaded()


def test_reading_process_ends_with_a_killed_master(tmp_path: Path) -> None:
    with Master(tmp_path) as master:
        master.wait_ready()
        master.enable("slow")
        master.send(signal.SIGHUP)
        pid = reader(master)
        os.kill(master.pid, signal.SIGKILL)
        wait_for(lambda: not alive(pid), "the reading process has ended")


def test_other_job_that_does_not_start_keeps_its_old_process_over_a_reload(tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    with Master(tmp_path, 1) as master:
        master.wait_ready()

        def others() -> list[int]:
            return [pid for pid in children(master.pid) if title(pid) == "blackhole: other"]

        old = others()
        master.enable("die99")
        master.send(signal.SIGHUP)
        wait_for(
            lambda: master.events()[-1] == "reloaded, but blackhole: other failed", "the reload is finished"
        )
        time.sleep(0.3)
        assert others() == old
        master.disable("die99")
        master.send(signal.SIGHUP)
        master.wait_reloaded()
        wait_for(lambda: len(others()) == 1 and others() != old, "another process of the other job")


def test_start_tells_which_other_job_did_not_start(tmp_path: Path) -> None:
    for name in ("other", "die99"):
        (tmp_path / name).touch()
    with Master(tmp_path, 1) as master:
        wait_for(lambda: master.events() == ["ready, but blackhole: other failed"], "the worker is ready")


@pytest.mark.parametrize("fault", ["die", "mute"])
def test_reload_whose_workers_do_not_start_changes_nothing(tmp_path: Path, fault: str) -> None:
    with Master(tmp_path, heartbeat_timeout=1.0) as master:
        workers = master.wait_ready().workers()
        master.enable(fault)
        master.send(signal.SIGHUP)
        wait_for(lambda: "reload failed" in master.events(), "the reload has failed")
        assert master.wait_workers(2) == workers
        assert master.log().count("reload failed") == 1


def test_old_workers_are_killed_after_the_drain_timeout_of_a_reload(tmp_path: Path) -> None:
    (tmp_path / "stubborn").touch()
    with Master(tmp_path, drain=0.5) as master:
        old = master.wait_ready().workers()
        master.disable("stubborn")
        master.send(signal.SIGHUP)
        master.wait_reloaded()
        assert all(map(alive, old))
        master.wait_workers(2, without=old)
        assert master.log().count("did not stop in time and is killed") == 2


def test_many_sighups_at_once_are_followed_by_few_reloads(tmp_path: Path) -> None:
    with Master(tmp_path) as master:
        master.wait_ready()
        for _ in range(5):
            for _ in range(4):  # at once: a busy machine has time for a reload between two that are not
                master.send(signal.SIGHUP)
            time.sleep(0.02)
        wait_for(lambda: master.events()[-1] == "reloaded", "the reload was done")
        time.sleep(0.5)
        master.wait_workers(2)
        events = master.events()
        assert events == ["ready", *["reload", "reloaded"] * events.count("reload")]
        assert events.count("reload") < 20


def test_reload_waits_for_rows_of_children_that_are_still_stopping(tmp_path: Path) -> None:
    (tmp_path / "stubborn").touch()
    with Master(tmp_path, rows=4, drain=0.5) as master:
        first = master.wait_ready().workers()
        master.send(signal.SIGHUP)
        master.wait_reloaded()
        master.send(signal.SIGHUP)
        wait_for(lambda: master.events()[-1] == "reload", "the second reload began")
        assert all(map(alive, first))
        master.wait_reloaded(2)
        assert not any(map(alive, first))


def test_supervisor_survives_a_storm_of_signals_and_deaths(tmp_path: Path) -> None:
    rng = random.Random(7)
    with Master(tmp_path, 3) as master:
        master.wait_ready()
        opened = len(descriptors(master.pid))
        for _ in range(60):
            number = rng.choice(
                [signal.SIGHUP, signal.SIGCHLD, signal.SIGUSR1, signal.SIGKILL, signal.SIGTERM]
            )
            pids = master.workers()
            if number in (signal.SIGKILL, signal.SIGTERM):
                with suppress(IndexError, ProcessLookupError):
                    os.kill(rng.choice(pids), number)
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
