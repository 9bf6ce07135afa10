"""Opening the log file again after its rotation, in the master.

A file system may keep whoever opens a file waiting, as NFS does while its server is gone. So a child process
opens the file and sends the descriptor.
"""

from __future__ import annotations

import logging
import math
import signal
import time
from collections.abc import Iterable
from functools import partial
from socket import AF_UNIX, SOCK_SEQPACKET, socket, socketpair
from typing import Final

from blackhole.process.forked_call import ForkedCall
from blackhole.process.supervised_service import SupervisedService
from blackhole.settings import OperatorError

log = logging.getLogger(__name__)


class LogReopening:
    """Lets a child process open the log file each time that a signal asks for it."""

    def __init__(self, service: SupervisedService, signals: Iterable[signal.Signals], timeout: float) -> None:
        self._service: Final = service
        self._signals: Final = signals
        self._timeout: Final = timeout
        self._call: ForkedCall | None = None
        self._deadline = math.inf
        self._asked_again = False
        """A signal came while a child was running, which may have opened the file before a rotation."""
        self._descriptors: socket | None = None
        """Receives the descriptor from the child. No other child may have its other end."""

    def begin(self) -> None:
        """Fork the child, unless one is running."""
        if self._call is not None:
            self._asked_again = True
            return
        try:
            ours, theirs = socketpair(AF_UNIX, SOCK_SEQPACKET)
        except OSError as error:
            self._failed(f"no socket: {error.strerror}")
            return
        ours.setblocking(False)
        theirs.setblocking(False)
        with theirs:
            try:
                work = partial(self._service.open_log, theirs)
                self._call = ForkedCall("blackhole: log", work, self._signals)
            except OSError as error:
                ours.close()
                self._failed(f"cannot fork: {error.strerror}")
            else:
                self._descriptors = ours
                self._deadline = time.monotonic() + self._timeout

    def ended(self, pid: int, code: int) -> bool:
        """Note the exit of a process. Return whether it has opened the log file, which is then in use."""
        call = self._call
        if call is None or pid != call.pid:
            return False
        assert self._descriptors is not None
        with self._descriptors as descriptors:
            self._forget()
            try:
                call.result(code)
            except OperatorError as error:
                self._failed(str(error))
                return False
            self._service.use_log(descriptors)
        log.info("log opened again")
        if self._asked_again:
            self._asked_again = False
            self.begin()
        return True

    def check(self, now: float) -> None:
        """Give up a child that takes too long. The master calls this regularly."""
        if self._call is not None and now >= self._deadline:
            self._call.cancel()
            if self._descriptors is not None:
                self._descriptors.close()
            self._forget()
            self._asked_again = False
            self._failed(f"it took over {self._timeout:g} s")

    def _forget(self) -> None:
        self._call, self._descriptors, self._deadline = None, None, math.inf

    def _failed(self, reason: str) -> None:
        log.error("log file not reopened, the old one stays in use: %s", reason)
