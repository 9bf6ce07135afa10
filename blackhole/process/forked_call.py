"""A call in a forked process: it may wait for ever, or die, and its caller goes on."""

from __future__ import annotations

import logging
import os
import pickle
import signal
from collections.abc import Callable, Iterable
from typing import Any, Final

from setproctitle import setproctitle

from blackhole.process.prctl import signal_when_parent_dies
from blackhole.settings import OperatorError

log = logging.getLogger(__name__)


class ForkedCall:
    """Calls a function in a child process. The result is there once the child has exited.

    call = ForkedCall("blackhole: reload", read_files, MASTER_SIGNALS)
    _, status = os.waitpid(call.pid, 0)
    files = call.result(os.waitstatus_to_exitcode(status))  # raises OperatorError, as `read_files` does
    """

    def __init__(self, title: str, function: Callable[[], object], signals: Iterable[signal.Signals]) -> None:
        """Fork.

        `title` is the title of the child, in which `signals` get back their default action. Raises
        OSError if the system is short of processes or descriptors.
        """
        self._file: Final = os.memfd_create("blackhole result", os.MFD_CLOEXEC)
        self._title: Final = title
        parent = os.getpid()
        try:
            self.pid: Final = os.fork()
        except OSError:
            os.close(self._file)
            raise
        if self.pid == 0:
            self._run(parent, function, signals)

    def _run(self, parent: int, function: Callable[[], object], signals: Iterable[signal.Signals]) -> None:
        """Write the result, or the error, into the file, and exit."""
        code = os.EX_SOFTWARE
        try:
            for number in signals:
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
            signal_when_parent_dies(signal.SIGKILL, parent)
            setproctitle(self._title)
            try:
                outcome: object = function()
            except OperatorError as error:
                outcome = error
            with open(self._file, "wb", closefd=False) as file:
                pickle.dump(outcome, file)
            code = os.EX_OK
        except BaseException:
            log.exception("%s failed", self._title)
        finally:
            os._exit(code)

    def result(self, code: int) -> Any:
        """Return the result of a call whose process has exited with `code`. Call it once.

        Raises OperatorError, if the function did or if its process died.
        """
        with open(self._file, "rb") as file:
            if code != os.EX_OK:
                raise OperatorError(f"{self._title} died with status {code}", os.EX_SOFTWARE)
            file.seek(0)
            outcome = pickle.load(file)  # noqa: S301 - this program wrote it
        if isinstance(outcome, OperatorError):
            raise outcome
        return outcome

    def cancel(self) -> None:
        """End the process and forget the result."""
        os.kill(self.pid, signal.SIGKILL)
        os.close(self._file)
