"""The timing of the supervisor: how long it waits for its children, and how long between their starts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Timing:
    """How long the supervisor waits, in seconds."""

    heartbeat_timeout: float = 10.0
    """A child without a heartbeat for so long hangs, or will never be ready."""
    abort_timeout: float = 1.0
    """From SIGABRT, on which a child logs its stack, to SIGKILL."""
    fast_stop_timeout: float = 0.8
    """From "stop now" to SIGKILL, so that Ctrl-C takes less than a second."""
    drain_grace: float = 0.5
    """Added to the drain timeout, so that SIGKILL does not cut off the last reply."""
    early_death: float = 1.0
    """A child that dies so soon after it was ready counts as a failed start."""
    backoff: tuple[float, ...] = (0.0, 0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
    """The wait before the next start, by the number of failures in a row."""
    poll: float = 1.0
    """The longest time between two polls of the children."""
    poll_starting: float = 0.02
    """The same while a child is not ready yet."""
    read_timeout: float = 30.0
    """Seconds that reading the configuration at a reload, or opening the log file again, may take."""
