"""The supervisor: keeps the jobs of a plan alive, each in a forked process of its own.

The master blocks its signals and takes them one at a time, SIGALRM among them, so nothing is
interrupted: poll the children, wait for a signal, handle it, poll again. There is no event loop
and no thread in the master, so it can fork at any time.
"""

from __future__ import annotations

import gc
import logging
import math
import os
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from socket import AF_UNIX, SOCK_SEQPACKET, socketpair
from typing import Final

from blackhole.metrics.counters import Counters
from blackhole.metrics.findings import plural
from blackhole.process import processes
from blackhole.process.children import Child, Generation, Slot, run_child
from blackhole.process.configuration_reading import ConfigurationReading
from blackhole.process.heartbeat import Heartbeat
from blackhole.process.log_reopening import LogReopening
from blackhole.process.plan import ChildContext, ProcessPlan
from blackhole.process.restarts import GIVE_UP, count_exit, count_failed_fork, schedule_start
from blackhole.process.supervised_service import SupervisedService
from blackhole.process.timing import Timing

log = logging.getLogger(__name__)


FIRST_TRIES: Final = 3
"""Failed starts of every worker, before any was ever ready, after which the master gives up."""

EXPECTED_EXITS: Final = (os.EX_OK, -signal.SIGTERM, -signal.SIGINT, -signal.SIGUSR2, -signal.SIGKILL)
"""Exit statuses of a child that was told to stop which are not worth a warning. A signal kills a child that
has not begun to serve."""


class Supervisor:
    """Keeps the jobs of a plan alive until a signal tells it to stop.

    A child is ready when it has sent a heartbeat, and alive as long as others follow.

        def serve(child: ChildContext) -> None: ...

        plan = ProcessPlan(lambda number: Job(f"worker {number}", serve), workers=4)
        exit_status = Supervisor(plan, Counters(64), service).run()
    """

    def __init__(
        self, plan: ProcessPlan, counters: Counters, service: SupervisedService, timing: Timing | None = None
    ) -> None:
        self._counters: Final = counters
        self._service: Final = service
        self._timing: Final = timing or Timing()
        self._current = Generation(plan)
        self._next: Generation | None = None
        """The generation of a reload, until all its workers are ready or one has failed."""
        self._children: Final[dict[int, Child]] = {}
        """By pid: of both generations, and those that were told to stop and have not exited."""
        self._earlier_messages = 0
        """Messages of children that have exited."""
        self._started = False
        """Whether the first workers were ready."""
        self._reload_wanted = False
        self._reading: Final = ConfigurationReading(service, MASTER_SIGNALS, self._timing.read_timeout)
        self._log_reopening: Final = LogReopening(service, MASTER_SIGNALS, self._timing.read_timeout)
        self._stopping = False
        self._code = os.EX_OK
        self._master_alive_fd, self._master_fd = os.pipe()

    def run(self) -> int:
        """Return the exit status once all children are gone: EX_SOFTWARE if no worker can run, else 0."""
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # if inherited as ignored, waitpid finds no child
        signal.pthread_sigmask(signal.SIG_BLOCK, MASTER_SIGNALS)
        with suppress(AttributeError):  # PyPy does not have it
            gc.freeze()  # so that a collection in a child does not copy the pages it shares with the master
        last_poll = time.monotonic()
        while True:
            now = time.monotonic()
            if now > last_poll + 3 * self._timing.poll:
                self._extend_deadlines(now)
            last_poll = now
            self._poll(now)
            if self._stopping and not self._children:
                log.info("stopped")
                return self._code
            # Not sigtimedwait: when SIGCONT arrives at its deadline, CPython 3.11 returns a bogus signal.
            signal.setitimer(signal.ITIMER_REAL, self._seconds_to_next_poll(now))
            MASTER_SIGNALS[signal.Signals(signal.sigwait(MASTER_SIGNALS))](self)

    @property
    def max_children(self) -> int:
        """The most children of a generation: so many that another generation has rows beside it."""
        return self._counters.rows // 2

    @property
    def messages(self) -> int:
        """The messages that all children have counted, those that have exited too."""
        return self._earlier_messages + sum(child.heartbeat.messages for child in self._children.values())

    # Signal handlers.

    def drain(self) -> None:
        """Stop when the children have finished their work; at the second signal, stop now."""
        if self._stopping:
            self.stop()
        else:
            self._begin_stop()
            timeout = self._current.plan.drain_timeout
            log.info("stopping: open sessions have %g s to finish", timeout)
            timeout += self._timing.drain_grace
            for child in self._children.values():
                self._tell_to_stop(child, signal.SIGTERM, timeout)

    def stop(self) -> None:
        """Stop now."""
        log.info("stopping at once")
        self._begin_stop()
        for child in self._children.values():
            self._tell_to_stop(child, signal.SIGINT, self._timing.fast_stop_timeout)

    def reload(self) -> None:
        """Start the next generation, once no other reload is under way.

        When a terminal is closed, its processes get the same signal; then stop.
        """
        if self._service.is_terminal_closed():
            log.info("the terminal is closed")
            self.drain()
        else:
            self._reload_wanted = True

    def reopen_log(self) -> None:
        """Open the log again: first for the master, which may create the file, then for the children."""
        self._log_reopening.begin()

    def add_worker(self) -> None:
        """Run one worker more, until the next reload."""
        workers, plan = self._current.workers, self._current.plan
        if len(self._current.slots) < self.max_children:
            workers.append(Slot(plan.worker(len(workers) + 1)))
            log.info("one worker more: %d until the next reload", len(workers))
        else:
            log.warning("there are %d workers, and not more until the next start", len(workers))

    def remove_worker(self) -> None:
        """Run one worker less, until the next reload; the last one stays."""
        if len(self._current.workers) > 1:
            self._retire(self._current.workers.pop(), self._current.plan)
            log.info("one worker less: %d until the next reload", len(self._current.workers))
        else:
            log.info("the last worker stays")

    def reap(self) -> None:
        """Wait for every child that has exited: one SIGCHLD may stand for several.

        As PID 1 the master also gets the orphans of other programs.
        """
        with suppress(ChildProcessError):
            while (found := os.waitpid(-1, os.WNOHANG)) != (0, 0):
                pid, code = found[0], os.waitstatus_to_exitcode(found[1])
                child = self._children.pop(pid, None)
                if child is not None:
                    self._handle_exit(child, code, time.monotonic())
                elif (plan := self._reading.ended(pid, code)) is not None:
                    self._begin_generation(plan)
                elif self._log_reopening.ended(pid, code):
                    for other in self._children.values():
                        other.reopen_pending = True

    def wake(self) -> None:
        """Do nothing: the alarm that `run` set only ends its wait."""

    # Polling.

    def _poll(self, now: float) -> None:
        self._log_reopening.check(now)
        for child in self._children.values():
            self._check_heartbeat(child, now)
            if now >= child.deadline:
                self._kill_unresponsive(child)
        if not self._stopping and self._service.is_complete(self.messages):
            self.drain()
        if not self._stopping:
            self._check_start()
        if not self._stopping:
            self._check_reload(now)
        for slot in self._vacant_slots():
            if slot.start_at <= now and self._has_free_row():
                self._start(slot, now)

    def _seconds_to_next_poll(self, now: float) -> float:
        """Return the seconds until something may be due without a signal; more than 0, which is no alarm."""
        children = self._children.values()
        starting = any(not child.ready_at and not child.stopping for child in children)
        poll = self._timing.poll_starting if starting else self._timing.poll
        moments = [slot.start_at for slot in self._vacant_slots()] + [child.deadline for child in children]
        return max(0.001, min([now + poll, self._reading.deadline, *moments]) - now)

    def _slots(self) -> list[Slot]:
        """Return the slots that are to be filled."""
        generations = () if self._stopping else (self._current, self._next)
        return [slot for generation in generations if generation is not None for slot in generation.slots]

    def _vacant_slots(self) -> list[Slot]:
        return [slot for slot in self._slots() if slot.child is None] if self._has_free_row() else []

    def _has_free_row(self) -> bool:
        """Return whether one child more has a row; a child that is stopping keeps its row to the end."""
        return len(self._children) < self._counters.rows

    def _check_heartbeat(self, child: Child, now: float) -> None:
        last_heartbeat = child.heartbeat.last
        if last_heartbeat and not child.ready_at:
            child.ready_at = now
        if last_heartbeat and not child.stopping:
            child.deadline = max(child.deadline, last_heartbeat + self._timing.heartbeat_timeout)
        if child.ready_at and child.reopen_pending:  # before it is ready, the signal would kill it
            child.reopen_pending = False
            self._service.send_log(child.log_channel)
            os.kill(child.pid, signal.SIGUSR1)

    def _kill_unresponsive(self, child: Child) -> None:
        """Handle a deadline that has passed: SIGABRT for a child that hangs, SIGKILL for one told to stop."""
        if child.stopping:
            log.warning("%s (pid %d) did not stop in time and is killed", child.title, child.pid)
            os.kill(child.pid, signal.SIGKILL)
            child.deadline = math.inf
        else:
            timeout = self._timing.heartbeat_timeout
            log.error("%s (pid %d) has sent no heartbeat for %d s", child.title, child.pid, timeout)
            child.hung = processes.is_computing(child.pid)
            self._tell_to_stop(child, signal.SIGABRT, self._timing.abort_timeout)

    def _extend_deadlines(self, now: float) -> None:
        """Allow for a pause of all processes: Ctrl-Z and `fg`, or a machine that was suspended."""
        for child in self._children.values():
            if not child.stopping:
                child.deadline = max(child.deadline, now + self._timing.heartbeat_timeout)

    # Generations.

    def _check_start(self) -> None:
        """Report the first workers as ready, or give up when no worker can be kept running."""
        workers = self._current.workers
        if all(slot.failures >= (GIVE_UP if self._started else FIRST_TRIES) for slot in workers):
            log.critical("no worker can be kept running")
            self._code = os.EX_SOFTWARE
            self.drain()
            return
        # A child that failed is not waited for: it is tried again while the others serve.
        if not self._started and all(slot.ready or slot.failures for slot in self._current.slots):
            self._started = any(slot.ready for slot in workers)
            if self._started:
                self._service.ready(self._current.failed_jobs())

    def _check_reload(self, now: float) -> None:
        """Finish the reload under way, if its workers are ready or have failed; begin the next one."""
        if self._next is not None:
            self._finish_reload(self._next)
        self._reading.check(now)
        if self._reload_wanted and self._started and self._next is None and not self._reading.is_under_way:
            self._reload_wanted = False
            self._reading.begin(now)

    def _begin_generation(self, plan: ProcessPlan) -> None:
        """Begin the next generation, which takes over once its workers are ready."""
        self._next = Generation(plan)
        missing = len(self._children) + len(self._next.slots) - self._counters.rows
        if missing > 0:
            log.warning("the reload waits for the end of %s", plural(missing, "old process", "old processes"))

    def _finish_reload(self, fresh: Generation) -> None:
        """Let the new generation take over if all its workers are ready; retire it if one has failed.

        Another job that does not start is no reason to fail: mail does not depend on it. The old
        process of that job stays.
        """
        failed = any(slot.failures for slot in fresh.workers)
        if not failed and not all(slot.ready or slot.failures for slot in fresh.slots):
            return
        if failed:
            log.error("reload failed, nothing has changed: a new worker does not start")
        old = fresh if failed else self._current
        self._current, self._next = self._current if failed else fresh, None
        failed_jobs = [] if failed else fresh.failed_jobs()
        if not failed:
            fresh.keep(old, failed_jobs)
        for slot in old.slots:
            self._retire(slot, old.plan)
        self._service.reload_finished(not failed, failed_jobs)

    # Starts and exits of children.

    def _start(self, slot: Slot, now: float) -> None:
        row, channels = self._counters.allocate_row(), ExitStack()
        try:
            heartbeat = Heartbeat()
            ours, theirs = map(channels.enter_context, socketpair(AF_UNIX, SOCK_SEQPACKET))
            for end in (ours, theirs):
                end.setblocking(False)  # send_fds and recv_fds of CPython ignore MSG_DONTWAIT
            pid = os.fork()
        except OSError as error:
            channels.close()
            self._counters.free_row(row)
            count_failed_fork(slot)
            reason = f"cannot fork {slot.job.title}: {error.strerror}"
            schedule_start(slot, now, self._timing.backoff, reason)
            return
        if pid == 0:
            os.close(self._master_fd)
            for other in (ours, *(child.log_channel for child in self._children.values())):
                other.close()
            context = ChildContext(row, self._master_alive_fd, heartbeat, theirs)
            run_child(slot.job, context, MASTER_SIGNALS)
        heartbeat.hide()
        theirs.close()
        deadline = now + self._timing.heartbeat_timeout
        slot.child = self._children[pid] = Child(pid, row, slot.job.title, heartbeat, ours, deadline)
        self._service.child_started(pid)

    def _handle_exit(self, child: Child, code: int, now: float) -> None:
        """Free the row of a child that has exited, and schedule the next start if its slot is still needed.

        `code` is an exit status, or the negative number of the signal that killed the child.
        """
        if not child.ready_at and child.heartbeat.last:
            child.ready_at = now
        self._earlier_messages += child.heartbeat.messages
        self._service.check_order(child.row, child.hung)
        self._counters.free_row(child.row)
        self._service.child_exited(child.row)
        child.log_channel.close()
        what = f"{child.title} (pid {child.pid}) {_describe_exit(code)}"
        slot = next((slot for slot in self._slots() if slot.child is child), None)
        if slot is None:
            if code not in EXPECTED_EXITS:
                log.warning("%s after it was told to stop", what)
            return
        slot.child = None
        count_exit(slot, child, now, self._timing.early_death)
        schedule_start(slot, now, self._timing.backoff, what)

    def _begin_stop(self) -> None:
        if not self._stopping:
            self._stopping = True
            self._reading.cancel()
            self._service.stop_listening()

    def _retire(self, slot: Slot, plan: ProcessPlan) -> None:
        """Tell the child of a slot that another has replaced it."""
        if slot.child is not None and not slot.child.stopping:
            timeout = plan.drain_timeout + self._timing.drain_grace
            self._tell_to_stop(slot.child, slot.job.retire_signal, timeout)

    def _tell_to_stop(self, child: Child, number: signal.Signals, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        child.deadline = min(child.deadline, deadline) if child.stopping else deadline
        child.stopping = True
        os.kill(child.pid, number)


def _describe_exit(code: int) -> str:
    if code < 0:
        return f"was killed by signal {-code} ({signal.strsignal(-code)})"
    return f"exited with status {code}"


MASTER_SIGNALS: Final[dict[signal.Signals, Callable[[Supervisor], None]]] = {
    signal.SIGTERM: Supervisor.drain,
    signal.SIGINT: Supervisor.stop,
    signal.SIGQUIT: Supervisor.stop,
    signal.SIGHUP: Supervisor.reload,
    signal.SIGUSR1: Supervisor.reopen_log,
    signal.SIGTTIN: Supervisor.add_worker,
    signal.SIGTTOU: Supervisor.remove_worker,
    signal.SIGCHLD: Supervisor.reap,
    signal.SIGALRM: Supervisor.wake,
    signal.SIGUSR2: Supervisor.wake,
}
"""The signals of the master, and what each does. SIGUSR2 is meant for workers, and would end it."""
