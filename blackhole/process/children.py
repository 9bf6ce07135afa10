"""Child processes as the master knows them: one child, the slot it fills, the slots of one plan."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from socket import socket
from typing import Final, NoReturn

from setproctitle import setproctitle

from blackhole.process.heartbeat import Heartbeat
from blackhole.process.plan import ChildContext, Job, ProcessPlan
from blackhole.settings import OperatorError

log = logging.getLogger(__name__)

IGNORED_IN_CHILDREN: Final = frozenset((signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU))
"""Signals meant for the master alone: `pkill -HUP blackhole` sends them to all its processes."""


@dataclass(slots=True, eq=False)
class Child:
    """One process that was forked and has not been waited for yet. Times are of the monotonic clock."""

    pid: int
    row: int
    """Its row of the shared counters."""
    title: str
    heartbeat: Heartbeat
    log_channel: socket
    """The master's end of the child's log channel."""
    deadline: float
    """When it is killed: unless a heartbeat comes before, or, once told to stop, unless it exits before."""
    ready_at: float = 0.0
    """When its first heartbeat was seen; 0 until then."""
    stopping: bool = False
    """Whether it was told to stop."""
    hung: bool = False
    """Whether it was computing when its heartbeat was missing for too long."""
    reopen_pending: bool = False
    """Whether it has to be told yet that the log was reopened."""


@dataclass(slots=True, eq=False)
class Slot:
    """A job that is to be done, the child that does it, and how its last starts went."""

    job: Job
    child: Child | None = None
    failures: int = 0
    """Failed starts in a row."""
    start_at: float = 0.0
    """When the next child may be started; infinite once the slot was given up."""

    @property
    def ready(self) -> bool:
        return self.child is not None and self.child.ready_at > 0


class Generation:
    """The slots of one plan. A reload starts the next generation beside the current one."""

    def __init__(self, plan: ProcessPlan) -> None:
        self.plan: Final = plan
        self.others = [Slot(job) for job in plan.others]
        self.workers: Final = [Slot(plan.worker(number)) for number in range(1, plan.workers + 1)]

    @property
    def slots(self) -> list[Slot]:
        return self.workers + self.others

    def failed_jobs(self) -> list[str]:
        """Return the titles of the other jobs that did not start."""
        return [slot.job.title for slot in self.others if not slot.ready]

    def keep(self, old: Generation, titles: Collection[str]) -> None:
        """Take over the slots of other jobs from an old generation, for those that did not start here."""
        kept = [slot for slot in old.others if slot.job.title in titles and slot.ready]
        replaced = {slot.job.title for slot in kept}
        old.others = [slot for slot in old.others if slot not in kept] + [
            slot for slot in self.others if slot.job.title in replaced
        ]
        self.others = kept + [slot for slot in self.others if slot.job.title not in replaced]


def run_child(job: Job, context: ChildContext, signals: Iterable[signal.Signals]) -> NoReturn:
    """Do the job in a process that was just forked, then exit.

    `signals` are those that the master blocks; here they get back their default action.
    """
    code = os.EX_SOFTWARE
    try:
        for number in signals:
            signal.signal(number, signal.SIG_IGN if number in IGNORED_IN_CHILDREN else signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
        setproctitle(job.title)
        job.run(context)
        code = os.EX_OK
    except OperatorError as error:
        code = error.code
        log.error("%s", error)
    except BaseException:
        log.exception("%s failed", job.title)
    finally:
        # _exit: a child must not run the `finally` blocks and atexit functions of the master.
        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            with suppress(AttributeError, OSError, ValueError):  # no stream, no space, already closed
                stream.flush()
        os._exit(code)
