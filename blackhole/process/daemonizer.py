"""Detaching from the terminal, while the command that was typed waits until the daemon is ready."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from typing import NoReturn


class LauncherPipe:
    """The daemon's end of a pipe to the launcher, the process that the shell waits for.

    The launcher exits with the code it is sent, or with EX_SOFTWARE when the daemon dies first.
    Without a descriptor there is no launcher, as in the foreground.
    """

    def __init__(self, descriptor: int = -1) -> None:
        self._descriptor = descriptor

    @property
    def is_open(self) -> bool:
        """Whether a launcher waits."""
        return self._descriptor >= 0

    def send_exit_code(self, code: int) -> None:
        """Let the launcher exit with `code`, and stop using its standard error."""
        if self.is_open:
            with suppress(BrokenPipeError):  # Ctrl-C has ended the launcher
                os.write(self._descriptor, bytes((code,)))
            self.close()

    def close(self) -> None:
        """Close the pipe and the launcher's standard error, whose reader may wait for its end."""
        if self.is_open:
            os.close(self._descriptor)
            self._descriptor = -1
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, 2)
            os.close(null)


def detach(keep: list[int]) -> LauncherPipe:
    """Continue as a daemon that has the descriptors of `keep` open. The caller's process does not return.

    Standard error stays the launcher's until `LauncherPipe.close`, so that a failure to start is
    seen. python-daemon only detaches here: it would drop root but not root's groups, lock the
    pidfile as a user who may not, and report no failure.
    """
    # Imported here, since only `start` detaches, and the import takes longer than `status` does.
    from daemon import DaemonContext

    answer, sender = os.pipe()
    pid = os.fork()
    if pid:
        os.close(sender)
        _wait_for_exit_code(pid, answer)
    os.close(answer)
    DaemonContext(
        detach_process=True, umask=0o027, signal_map={}, files_preserve=[*keep, sender], stderr=sys.stderr
    ).open()
    return LauncherPipe(sender)


def _wait_for_exit_code(pid: int, answer: int) -> NoReturn:
    """Wait in the launcher for the daemon's exit code, and exit with it."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT):  # the pidfile is the daemon's
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.waitpid(pid, 0)
    code = os.read(answer, 1)
    if not code:
        os.write(2, b"blackhole: the daemon died before it was ready\n")
    os._exit(code[0] if code else os.EX_SOFTWARE)
