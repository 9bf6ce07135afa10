"""UNIX sockets to listen on: their files get an owner and a mode, are replaced when stale, and removed."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Collection
from contextlib import suppress
from typing import Final, NamedTuple

from blackhole.net.acceptor import AddressInUseError
from blackhole.process import privileges
from blackhole.process.safe_open import open_directory
from blackhole.settings import Listener, OperatorError

UNCHANGED: Final = -1
"""Stands for an owner or a group that chown(2) leaves as it is."""


class SocketFile(NamedTuple):
    """The file of a socket that this server has bound."""

    path: str
    device: int
    inode: int

    def remove(self) -> None:
        """Remove the file, unless another one is in its place."""
        with suppress(OSError, OperatorError):
            directory, name = open_directory(self.path)
            try:
                found = os.stat(name, dir_fd=directory, follow_symlinks=False)
                if (found.st_dev, found.st_ino) == (self.device, self.inode):
                    os.unlink(name, dir_fd=directory)
            finally:
                os.close(directory)


def file_owner(listener: Listener) -> tuple[int, int]:
    """Return the uid and gid that the file of a listener is given, or UNCHANGED.

    Raises OperatorError (EX_NOUSER) for an unknown name.
    """
    uid = privileges.user_id(listener.socket_user) if listener.socket_user else UNCHANGED
    return uid, privileges.group_id(listener.socket_group) if listener.socket_group else UNCHANGED


def bind(listener: Listener, backlog: int, users: Collection[int]) -> tuple[socket.socket, SocketFile]:
    """Return the listening socket of a listener, and its file.

    A file that a server of one of `users` has left there is replaced. Raises OperatorError: AddressInUseError
    if something listens there, EX_CANTCREAT if the file cannot be made or is not to be replaced.
    """
    directory, name = open_directory(listener.path)
    listening = socket.socket(socket.AF_UNIX)
    try:
        _remove_stale(listener, directory, name, {os.geteuid(), file_owner(listener)[0], *users})
        umask = os.umask(0o777)  # nobody may connect before the owner and the mode are set
        try:
            listening.bind(listener.path)
        finally:
            os.umask(umask)
        file = set_permissions(listener, directory, name)
        listening.listen(backlog)
        listening.setblocking(False)
    except OSError as error:
        listening.close()
        raise _error(listener, error.strerror or str(error)) from None
    except OperatorError:
        listening.close()
        raise
    finally:
        os.close(directory)
    return listening, file


def set_permissions(listener: Listener, directory: int, name: str) -> SocketFile:
    """Give a file of a socket its owner and its mode; return the file. Raises OperatorError and OSError."""
    descriptor = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISSOCK(status.st_mode):
            raise _error(listener, "another file was put in its place")
        place = f"/proc/self/fd/{descriptor}"
        owner = file_owner(listener)
        try:
            if owner != (UNCHANGED, UNCHANGED):
                os.chown(place, *owner)
        except PermissionError:
            os.unlink(name, dir_fd=directory)
            raise _error(listener, "only root may give its file to another user or group") from None
        os.chmod(place, listener.socket_mode)
        return SocketFile(listener.path, status.st_dev, status.st_ino)
    finally:
        os.close(descriptor)


def update_permissions(listener: Listener, file: SocketFile) -> None:
    """Give the file of a socket that stays open the owner and the mode that its listener has now."""
    directory, name = open_directory(listener.path)
    try:
        found = os.stat(name, dir_fd=directory, follow_symlinks=False)
        if (found.st_dev, found.st_ino) == (file.device, file.inode):
            set_permissions(listener, directory, name)
    except OSError as error:
        raise _error(listener, error.strerror or str(error)) from None
    finally:
        os.close(directory)


def _remove_stale(listener: Listener, directory: int, name: str, users: Collection[int]) -> None:
    """Remove a file at which no server listens any more. Raises OperatorError if it is not to be removed."""
    try:
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(status.st_mode):
        raise _error(listener, "there is a file that is no socket; remove it, or choose another path")
    if status.st_uid not in users:
        raise _error(listener, f"the file belongs to another user (uid {status.st_uid}); remove it")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        answer = probe.connect_ex(listener.path)
    if answer == errno.ECONNREFUSED:
        os.unlink(name, dir_fd=directory)
        return
    if answer == errno.EPROTOTYPE:
        raise _error(listener, "the file is a socket of another kind; remove it, or choose another path")
    raise AddressInUseError(f"cannot listen on {listener}: something else does; see `ss -lx`", os.EX_OSERR)


def _error(listener: Listener, reason: str) -> OperatorError:
    return OperatorError(f"cannot listen on {listener}: {reason}", os.EX_CANTCREAT)
