"""The files of the program, which an upgrade replaces while it runs."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Final

import blackhole


class ProgramFiles:
    """The files of the program as they were at its start.

    An installer writes new files, so one of them tells for all.
    """

    def __init__(self) -> None:
        self._path = blackhole.__file__
        while not os.path.exists(self._path):  # inside an archive (zipapp)
            self._path = os.path.dirname(self._path)
        self._at_start: Final = self._identity()

    def changed(self) -> bool:
        """Return whether the program was upgraded or removed since."""
        return self._identity() != self._at_start

    def _identity(self) -> tuple[int, ...]:
        with suppress(OSError):
            status = os.stat(self._path)
            return status.st_dev, status.st_ino, status.st_mtime_ns
        return ()
