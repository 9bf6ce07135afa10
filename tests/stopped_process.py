"""A child process that stops itself in the middle of some work, as SIGSTOP from elsewhere would stop it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def process_that_stops(work: Callable[[], object]) -> Iterator[int]:
    """Run `work` in a child, which is expected to stop itself; let it go on at the end."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(0)
    try:
        assert os.WIFSTOPPED(os.waitpid(pid, os.WUNTRACED)[1])
        yield pid
    finally:
        os.kill(pid, signal.SIGCONT)
        os.waitpid(pid, 0)


def stop() -> None:
    """Stop the calling process, as SIGSTOP from elsewhere does."""
    os.kill(os.getpid(), signal.SIGSTOP)
