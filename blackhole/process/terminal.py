"""The terminal in which a server was started."""

from __future__ import annotations

import os
import signal
from typing import Final


class Terminal:
    """The controlling terminal of this process, if it has one and is to end with it."""

    def __init__(self) -> None:
        ends_with_it = signal.getsignal(signal.SIGHUP) != signal.SIG_IGN  # nohup(1)
        self._was_open: Final = ends_with_it and _has_terminal()

    def is_closed(self) -> bool:
        """Return whether it was closed since."""
        return self._was_open and not _has_terminal()


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError:
        return False
    return True
