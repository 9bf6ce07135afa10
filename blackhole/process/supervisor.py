"""The supervisor: keeps a plan of jobs alive, each in a forked process of its own.

It knows processes and never clients. Its signals stay blocked and are taken one at a
time, an alarm among them, so nothing interrupts anything: look around, wait, handle
what came, look around again. There is no event loop and no thread in here, which is
why it may fork at any time.
"""

from __future__ import annotations

import gc
import logging
import math
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import NoReturn

from setproctitle import setproctitle

from blackhole.metrics.counters import Counters
from blackhole.settings import OperatorError

log = logging.getLogger(__name__)

# Seconds.
HEARTBEAT_TIMEOUT = 10.0
"""A child that said nothing for so long is frozen, or will never be ready."""
ABORT_TIMEOUT = 1.0
"""From SIGABRT, on which a child writes down where it stands, to SIGKILL."""
FAST_STOP_TIMEOUT = 0.8
"""From "stop now" to SIGKILL; Ctrl-C is over within a second."""
DRAIN_GRACE = 0.5
"""Given beyond the drain timeout, so that SIGKILL does not cut a goodbye."""
EARLY_DEATH = 1.0
"""A child that dies so soon after it was ready did not start well."""
BACKOFF = (0.0, 0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
"""The wait before the next start, after so many failures in a row."""
GLANCE, LOOK = 0.02, 1.0
"""How often to look around, at least: while a child is about to be ready, and otherwise."""

# Failures in a row.
FIRST_TRIES = 3
"""Of every worker, when none was ever ready: the program cannot work here."""
GIVE_UP = 10
"""Of one place: it stays empty."""
CRASHES = 3
"""Counted at most for children that were ready before they died: who can crash workers from
outside keeps a place empty for BACKOFF[CRASHES] seconds and not for ever."""

EXPECTED_EXITS = (os.EX_OK, -signal.SIGTERM, -signal.SIGINT, -signal.SIGKILL)
"""How a child may end that was told to go."""


@dataclass(frozen=True, slots=True)
class ChildContext:
    """What a child process gets from the master."""

    row: int
    """The child's row of the shared counters."""
    master_alive_fd: int
    """Read end of a pipe that only the master holds open for writing: end of file when the master is gone."""


@dataclass(frozen=True, slots=True)
class Job:
    """What a process of its own does until it is told to leave."""

    title: str
    run: Callable[[ChildContext], None]
    relief: signal.Signals = signal.SIGTERM
    """What tells its process that another has taken its place, and that there is no hurry."""


@dataclass(frozen=True, slots=True)
class ProcessPlan:
    """All that is to be kept alive."""

    worker: Callable[[int], Job]
    """The job of the worker with that number; they count from 1."""
    workers: int
    others: tuple[Job, ...] = ()
    drain_timeout: float = 30.0
    """Seconds a child may take to leave when it is told to."""


@dataclass(slots=True, eq=False)
class _Child:
    """One process that was forked and not buried yet."""

    pid: int
    row: int
    title: str
    deadline: float
    """Until when it may be silent; once doomed, until when it may live."""
    ready: float = 0.0
    """When it was seen to be ready."""
    doomed: bool = False
    """It was told to go."""
    stale: bool = False
    """It is yet to hear that the log was reopened."""


@dataclass(slots=True, eq=False)
class _Slot:
    """Where one job is to be done, by whom, and how it went so far."""

    job: Job
    child: _Child | None = None
    failures: int = 0
    due: float = 0.0
    """When the next child may be started; never, if it was given up."""

    @property
    def ready(self) -> bool:
        return self.child is not None and self.child.ready > 0


class _Generation:
    """The places of one plan."""

    def __init__(self, plan: ProcessPlan) -> None:
        self.plan = plan
        self.others = [_Slot(job) for job in plan.others]
        self.workers = [_Slot(plan.worker(number)) for number in range(1, plan.workers + 1)]

    @property
    def places(self) -> list[_Slot]:
        return self.workers + self.others


class Supervisor:
    """Keeps the jobs of a plan alive until a signal tells it to stop.

    A child is ready when its row of `stats` has a beat, and alive as long as beats follow.
    `reload` makes the plan to follow this one, or raises OperatorError. `settle` hears whether
    that plan was taken over (True) or given up (False), and once before that when the first plan
    works. `reopen` opens the master's log again. `leave` is called when it all ends, before the
    children hear of it.
    """

    def __init__(
        self,
        plan: ProcessPlan,
        stats: Counters,
        *,
        reload: Callable[[], ProcessPlan],
        settle: Callable[[bool], None],
        reopen: Callable[[], None],
        leave: Callable[[], None],
    ) -> None:
        self._stats = stats
        self._reload, self._settle, self._reopen, self._leave = reload, settle, reopen, leave
        self._crew = _Generation(plan)
        self._next: _Generation | None = None
        """Those who take over as soon as all of them are ready."""
        self._children: dict[int, _Child] = {}
        """By pid: of both crews, and those who were told to go and are not buried yet."""
        self._settled = False
        self._reload_wanted = False
        self._ending = False
        self._code = os.EX_OK
        self._life, self._alive = os.pipe()

    def run(self) -> int:
        """Return when all is over: 0 if somebody wished it so, EX_SOFTWARE if no worker can run."""
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # inherited as ignored, it would hide every death
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        with suppress(AttributeError):  # PyPy has none
            gc.freeze()  # so that a collection in a child does not copy every page it shares with us
        looked = time.monotonic()
        while True:
            now = time.monotonic()
            if now > looked + 3 * LOOK:
                self._forgive(now)
            looked = now
            self._look_around(now)
            if self._ending and not self._children:
                return self._code
            # Not sigtimedwait: when SIGCONT meets its deadline, CPython 3.11 makes up a signal.
            signal.setitimer(signal.ITIMER_REAL, self._patience(now))
            SIGNALS[signal.Signals(signal.sigwait(SIGNALS))](self)

    # What signals ask for.

    def drain(self) -> None:
        """End when the children have finished what they are at; asked twice: stop now."""
        if self._ending:
            self.stop()
        else:
            self._end()
            for child in self._children.values():
                self._tell(child, signal.SIGTERM, self._crew.plan.drain_timeout + DRAIN_GRACE)

    def stop(self) -> None:
        """End now."""
        self._end()
        for child in self._children.values():
            self._tell(child, signal.SIGINT, FAST_STOP_TIMEOUT)

    def reload(self) -> None:
        """Have a new crew take over, as soon as no other is about to."""
        self._reload_wanted = True

    def reopen(self) -> None:
        """Open the log again: the master first, who may create it, then the children."""
        self._reopen()
        for child in self._children.values():
            child.stale = True

    def more(self) -> None:
        """One worker more, until the next reload."""
        workers, plan = self._crew.workers, self._crew.plan
        workers.append(_Slot(plan.worker(len(workers) + 1)))

    def fewer(self) -> None:
        """One worker less, until the next reload; the last one stays."""
        if len(self._crew.workers) > 1:
            self._relieve(self._crew.workers.pop(), self._crew.plan)

    def reap(self) -> None:
        """Bury the dead: one SIGCHLD may stand for many, and to PID 1 strangers are left as well."""
        with suppress(ChildProcessError):
            while (found := os.waitpid(-1, os.WNOHANG)) != (0, 0):
                child = self._children.pop(found[0], None)
                if child is not None:
                    self._bury(child, os.waitstatus_to_exitcode(found[1]), time.monotonic())

    def wake(self) -> None:
        """The alarm that `run` set: time to look around."""

    # What is done in every round.

    def _look_around(self, now: float) -> None:
        for child in self._children.values():
            self._listen(child, now)
            if now >= child.deadline:
                self._strike(child)
        if not self._ending:
            self._take_turns()
        for place in self._vacant():
            if place.due <= now and self._has_room():
                self._start(place, now)

    def _patience(self, now: float) -> float:
        """Seconds until there may be something to do though no signal comes; never 0, which is no alarm."""
        children = self._children.values()
        look = GLANCE if any(not child.ready and not child.doomed for child in children) else LOOK
        moments = [place.due for place in self._vacant()] + [child.deadline for child in children]
        return max(0.001, min([now + look, *moments]) - now)

    def _places(self) -> list[_Slot]:
        """All that are to be filled."""
        crews = () if self._ending else (self._crew, self._next)
        return [place for crew in crews if crew is not None for place in crew.places]

    def _vacant(self) -> list[_Slot]:
        return [place for place in self._places() if place.child is None] if self._has_room() else []

    def _has_room(self) -> bool:
        """Whether there is a row for one child more; those who are leaving have theirs to the end."""
        return len(self._children) < self._stats.rows

    def _listen(self, child: _Child, now: float) -> None:
        last_heartbeat = self._stats.last_heartbeat(child.row)
        if last_heartbeat and not child.ready:
            child.ready = now
        if last_heartbeat and not child.doomed:
            child.deadline = max(child.deadline, last_heartbeat + HEARTBEAT_TIMEOUT)
        if child.ready and child.stale:  # not before it can take a signal
            child.stale = False
            os.kill(child.pid, signal.SIGUSR1)

    def _strike(self, child: _Child) -> None:
        """Its time is up: ask a frozen child where it stands, kill one that was told to go."""
        if child.doomed:
            log.warning("%s (pid %d) does not end and is killed", child.title, child.pid)
            os.kill(child.pid, signal.SIGKILL)
            child.deadline = math.inf
        else:
            log.error("%s (pid %d) has been silent for %d s", child.title, child.pid, HEARTBEAT_TIMEOUT)
            self._tell(child, signal.SIGABRT, ABORT_TIMEOUT)

    def _forgive(self, now: float) -> None:
        """We were stopped, as Ctrl-Z does it, and so were the children; or the whole machine was."""
        for child in self._children.values():
            if not child.doomed:
                child.deadline = max(child.deadline, now + HEARTBEAT_TIMEOUT)

    def _take_turns(self) -> None:
        """See whether a crew has come to be ready, or never will."""
        workers = self._crew.workers
        if all(place.failures >= (GIVE_UP if self._settled else FIRST_TRIES) for place in workers):
            log.critical("no worker can be kept running")
            self._code = os.EX_SOFTWARE
            self.drain()
            return
        # One that failed is not waited for; it has its next chances while the others serve.
        if not self._settled and all(place.ready or place.failures for place in workers):
            self._settled = any(place.ready for place in workers)
            if self._settled:
                self._settle(True)
        if self._next is not None:
            self._take_over(self._next)
        if self._reload_wanted and self._settled and self._next is None:
            self._reload_wanted = False
            try:
                self._next = _Generation(self._reload())
            except OperatorError as error:
                log.error("not reloaded, all stays as it was: %s", error)

    def _take_over(self, crew: _Generation) -> None:
        # What else there is to be kept alive is not waited for: mail does not depend on it.
        failed = any(place.failures for place in crew.workers)
        if not failed and not all(place.ready for place in crew.workers):
            return
        if failed:
            log.error("not reloaded, all stays as it was: the new processes do not start")
        leaving = crew if failed else self._crew
        self._crew, self._next = self._crew if failed else crew, None
        for place in leaving.places:
            self._relieve(place, leaving.plan)
        self._settle(not failed)

    # Births and deaths.

    def _start(self, place: _Slot, now: float) -> None:
        row = self._stats.allocate_row()
        try:
            pid = os.fork()
        except OSError as error:  # the machine's fault, for which no place is given up
            self._stats.free_row(row)
            place.failures = min(place.failures + 1, GIVE_UP - 1)
            self._again(place, now, f"{place.job.title} cannot be forked: {error.strerror}")
            return
        if pid == 0:
            self._live(place.job, row)
        place.child = self._children[pid] = _Child(pid, row, place.job.title, now + HEARTBEAT_TIMEOUT)

    def _live(self, job: Job, row: int) -> NoReturn:
        """The whole life of a child."""
        code = os.EX_SOFTWARE
        try:
            os.close(self._alive)
            for number in SIGNALS:
                signal.signal(number, signal.SIG_IGN if number in IGNORED_IN_CHILDREN else signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            setproctitle(job.title)
            job.run(ChildContext(row, self._life))
            code = os.EX_OK
        except OperatorError as error:
            code = error.code
            log.error("%s", error)
        except BaseException:
            log.exception("%s failed", job.title)
        finally:
            # What the master left on the stack and with atexit is not for a child to undo.
            logging.shutdown()
            for stream in (sys.stdout, sys.stderr):
                with suppress(AttributeError, OSError, ValueError):  # there is none, no room, closed
                    stream.flush()
            os._exit(code)

    def _bury(self, child: _Child, code: int, now: float) -> None:
        if not child.ready and self._stats.last_heartbeat(child.row):
            child.ready = now
        self._stats.free_row(child.row)
        how = (
            f"was killed by signal {-code} ({signal.strsignal(-code)})"
            if code < 0
            else f"ended with exit code {code}"
        )
        what = f"{child.title} (pid {child.pid}) {how}"
        place = next((place for place in self._places() if place.child is child), None)
        if place is None:
            if code not in EXPECTED_EXITS:
                log.warning("%s when it was told to go", what)
            return
        place.child = None
        if not child.ready:
            place.failures += 1
        elif now < child.ready + EARLY_DEATH:
            place.failures = min(place.failures + 1, CRASHES)
        else:
            place.failures = 0
        self._again(place, now, what)

    def _again(self, place: _Slot, now: float, what: str) -> None:
        """Say when the next child is to start in a place, or that none is."""
        if place.failures >= GIVE_UP:
            place.due = math.inf
            log.error("%s; given up until the next reload, after %d failed starts in a row", what, GIVE_UP)
        else:
            wait = BACKOFF[min(place.failures, len(BACKOFF) - 1)]
            place.due = now + wait
            log.warning("%s; the next one starts %s", what, f"in {wait:g} s" if wait else "at once")

    # Farewells.

    def _end(self) -> None:
        if not self._ending:
            self._ending = True
            self._leave()

    def _relieve(self, place: _Slot, plan: ProcessPlan) -> None:
        """Let whoever is in a place go; somebody else does the work."""
        if place.child is not None and not place.child.doomed:
            self._tell(place.child, place.job.relief, plan.drain_timeout + DRAIN_GRACE)

    def _tell(self, child: _Child, number: signal.Signals, patience: float) -> None:
        deadline = time.monotonic() + patience
        child.deadline = min(child.deadline, deadline) if child.doomed else deadline
        child.doomed = True
        os.kill(child.pid, number)


SIGNALS: dict[signal.Signals, Callable[[Supervisor], None]] = {
    signal.SIGTERM: Supervisor.drain,
    signal.SIGINT: Supervisor.stop,
    signal.SIGQUIT: Supervisor.stop,
    signal.SIGHUP: Supervisor.reload,
    signal.SIGUSR1: Supervisor.reopen,
    signal.SIGTTIN: Supervisor.more,
    signal.SIGTTOU: Supervisor.fewer,
    signal.SIGCHLD: Supervisor.reap,
    signal.SIGALRM: Supervisor.wake,
}
"""Every signal the master answers, and how."""

IGNORED_IN_CHILDREN = {signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU}
"""Those that no child answers: `pkill -HUP blackhole` means the master, and hits them all."""
