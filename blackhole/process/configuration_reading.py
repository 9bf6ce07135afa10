"""Reading the configuration for a reload, in the master.

A file system or a resolver may keep whoever reads it waiting, so a child process does.
"""

from __future__ import annotations

import logging
import math
import signal
from collections.abc import Iterable
from typing import Final

from blackhole.process.forked_call import ForkedCall
from blackhole.process.plan import ProcessPlan
from blackhole.process.supervised_service import SupervisedService
from blackhole.settings import OperatorError

log = logging.getLogger(__name__)


class ConfigurationReading:
    """Lets a child process read the configuration, one at a time."""

    def __init__(self, service: SupervisedService, signals: Iterable[signal.Signals], timeout: float) -> None:
        self._service: Final = service
        self._signals: Final = signals
        self._timeout: Final = timeout
        self._call: ForkedCall | None = None
        self.deadline = math.inf
        """When the child is given up; infinite without one."""

    @property
    def is_under_way(self) -> bool:
        return self._call is not None

    def begin(self, now: float) -> None:
        """Fork the child."""
        self._service.reload_began()
        try:
            self._call = ForkedCall("blackhole: reload", self._service.read, self._signals)
        except OSError as error:
            self._failed(f"cannot fork: {error.strerror}")
        else:
            self.deadline = now + self._timeout

    def ended(self, pid: int, code: int) -> ProcessPlan | None:
        """Note the exit of a process. Return the plan that was made of what it has read, if it has."""
        call = self._call
        if call is None or pid != call.pid:
            return None
        self._forget()
        try:
            return self._service.reload(call.result(code))
        except OperatorError as error:
            self._failed(str(error))
            return None

    def check(self, now: float) -> None:
        """Give up a child that takes too long. The master calls this regularly."""
        if now >= self.deadline:
            self.cancel()
            self._failed(f"reading the configuration took over {self._timeout:g} s")

    def cancel(self) -> None:
        """End the child, if there is one."""
        if self._call is not None:
            self._call.cancel()
            self._forget()

    def _forget(self) -> None:
        self._call, self.deadline = None, math.inf

    def _failed(self, reason: str) -> None:
        log.error("reload failed, nothing has changed: %s", reason)
        self._service.reload_failed()
