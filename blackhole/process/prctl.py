"""Attributes of this process that only Linux has (prctl(2))."""

from __future__ import annotations

import ctypes
import os
import signal
from typing import Final

PR_SET_PDEATHSIG: Final = 1
PR_CAPBSET_READ: Final = 23
PR_CAPBSET_DROP: Final = 24
PR_SET_NO_NEW_PRIVS: Final = 38
PR_GET_NO_NEW_PRIVS: Final = 39
PR_CAP_AMBIENT: Final = 47
PR_CAP_AMBIENT_CLEAR_ALL: Final = 4
"""Numbers of linux/prctl.h."""


def prctl(option: int, argument: int = 0) -> int:
    """Call prctl(2). Raises OSError."""
    arguments = (ctypes.c_ulong(value) for value in (argument, 0, 0, 0))
    result = int(ctypes.CDLL(None, use_errno=True).prctl(option, *arguments))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def signal_when_parent_dies(number: signal.Signals, parent: int) -> None:
    """Let the kernel send a signal to this process when its parent, which has the pid `parent`, dies.

    A change of the user cancels it.
    """
    prctl(PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:  # it has died before
        os.kill(os.getpid(), number)
