"""Live rates: a line a second, from another process (`blackhole top`) or beside a foreground server
(`--progress`)."""

from __future__ import annotations

import os
import select
import signal
import sys
from collections.abc import Callable
from typing import Final, TextIO

from blackhole.metrics import status
from blackhole.metrics.counters import Counters
from blackhole.metrics.snapshot import Snapshot
from blackhole.settings import OperatorError

LINE_INTERVAL: Final = 1
"""Seconds between two lines."""

WAKEUP_SIGNALS: Final = frozenset((signal.SIGINT, signal.SIGALRM))
"""Signals that `blackhole top` waits for: the user's Ctrl-C, and its own timer."""


def watch(pid: int, snapshot: Callable[[], Snapshot], more: Callable[[], str] = str) -> int:
    """Write the rates of a running server to standard output until Ctrl-C, and return the exit status.

    `snapshot` reads the counters, and `more` returns what stands behind the rates. Raises OperatorError when
    the server ends.
    """
    # Blocked and waited for, so that no KeyboardInterrupt is raised inside a finalizer, where it would be
    # lost.
    signal.pthread_sigmask(signal.SIG_BLOCK, WAKEUP_SIGNALS)

    def pause() -> bool:
        signal.setitimer(signal.ITIMER_REAL, LINE_INTERVAL)
        if signal.sigwait(WAKEUP_SIGNALS) == signal.SIGINT:
            raise KeyboardInterrupt
        return os.path.exists(f"/proc/{pid}")

    try:
        _write_rates(snapshot, pause, sys.stdout, more)
    except KeyboardInterrupt:
        print()
    except BrokenPipeError:  # the reader has ended, as in `blackhole top | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    else:
        raise OperatorError(f"pid {pid} has ended", os.EX_UNAVAILABLE)
    return os.EX_OK


def progress(counters: Counters, beat: Callable[[], None], master_alive_fd: int) -> None:
    """Write the rates to standard error until the master ends: the process of `--progress`.

    `beat` records a heartbeat. `master_alive_fd` is readable once the master is gone.
    """
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_DFL)

    def pause() -> bool:
        beat()
        return not select.select([master_alive_fd], [], [], LINE_INTERVAL)[0]

    _write_rates(counters.snapshot, pause, sys.stderr)


def _write_rates(
    snapshot: Callable[[], Snapshot], pause: Callable[[], bool], out: TextIO, more: Callable[[], str] = str
) -> None:
    """Write a line after each pause, until `pause` returns False."""
    earlier = snapshot()
    while pause():
        later = snapshot()
        print(status.rate_line(later - earlier) + more(), file=out, flush=True)
        earlier = later
