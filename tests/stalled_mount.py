"""A file system that answers nothing, as NFS does while its server is gone. It needs root and FUSE."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

MNT_DETACH = 2
"""From linux/mount.h."""

libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def stalled_mount(folder: Path) -> Iterator[None]:
    """Mount it on a folder: whoever opens a file below waits until the end. Skips if that is not possible."""
    try:
        device = os.open("/dev/fuse", os.O_RDWR)
    except OSError as error:
        pytest.skip(f"no FUSE: {error.strerror}")
    try:
        options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
        if libc.mount(b"stalled", bytes(folder), b"fuse", 0, options):
            pytest.skip(f"cannot mount: {os.strerror(ctypes.get_errno())}")
        try:
            yield
        finally:
            libc.umount2(bytes(folder), MNT_DETACH)
    finally:
        os.close(device)  # ends all waits with an error
