"""Capabilities (capabilities(7)): what a process may do beyond the rights of its user."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress
from typing import Final

from blackhole.process.prctl import (
    PR_CAP_AMBIENT,
    PR_CAP_AMBIENT_CLEAR_ALL,
    PR_CAPBSET_DROP,
    PR_CAPBSET_READ,
    prctl,
)

VERSION_3: Final = 0x20080522
"""_LINUX_CAPABILITY_VERSION_3 of linux/capability.h: two times 32 capabilities."""

WORDS: Final = 6
"""Effective, permitted and inheritable set, two words of 32 bits for each."""


def drop_bounding() -> None:
    """Empty the bounding set and the ambient set.

    The bounding set stays as it is where this process lacks CAP_SETPCAP.
    """
    with suppress(OSError):  # a kernel without ambient capabilities has none to drop
        prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
    with suppress(OSError):  # EINVAL behind the last capability of this kernel, or EPERM at the first
        for number in range(64):
            if prctl(PR_CAPBSET_READ, number):
                prctl(PR_CAPBSET_DROP, number)


def drop_all() -> None:
    """Empty the effective, permitted and inheritable sets, and with them the ambient one. Raises OSError."""
    _call("capset", (ctypes.c_uint32 * WORDS)())


def remaining() -> bool:
    """Return whether this process has a capability, or could pass one on. Raises OSError."""
    words = (ctypes.c_uint32 * WORDS)()
    _call("capget", words)
    return any(words)


def _call(function: str, words: ctypes.Array[ctypes.c_uint32]) -> None:
    header = (ctypes.c_uint32 * 2)(VERSION_3, 0)
    if getattr(ctypes.CDLL(None, use_errno=True), function)(header, words):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
