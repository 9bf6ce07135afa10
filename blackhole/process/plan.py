"""A process plan: the jobs of a server, and what the process of each job gets from the master."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from socket import socket

from blackhole.process.heartbeat import Heartbeat


@dataclass(frozen=True, slots=True)
class ChildContext:
    """What a child process gets from the master."""

    row: int
    """The child's row of the shared counters."""
    master_alive_fd: int
    """Read end of a pipe that only the master holds open for writing: end of file when the master is gone."""
    heartbeat: Heartbeat = field(default_factory=Heartbeat)
    """Tells the master that the child is ready, and that it is alive."""
    log_channel: socket | None = None
    """From it come descriptors of the log file, which the child may not be able to open after a rotation."""


@dataclass(frozen=True, slots=True)
class Job:
    """What a process of its own does until it is told to stop."""

    title: str
    run: Callable[[ChildContext], None]
    retire_signal: signal.Signals = signal.SIGTERM
    """Tells the process that another one has replaced it, and that it may finish its work first."""


@dataclass(frozen=True, slots=True)
class ProcessPlan:
    """The jobs that the supervisor keeps alive."""

    worker: Callable[[int], Job]
    """Returns the job of the worker with a number; the first has number 1."""
    workers: int
    others: tuple[Job, ...] = ()
    drain_timeout: float = 30.0
    """Seconds a child may take to stop when it is told to."""
