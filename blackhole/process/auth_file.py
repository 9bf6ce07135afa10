"""The users who may log in: a file with a line `user:password` for each."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from types import MappingProxyType

from blackhole.settings import OperatorError


def load(path: str) -> tuple[Mapping[bytes, bytes], str]:
    """Passwords by user, and a warning where others can read them.

    Blank lines, and those that begin with #, say nothing. Raises OperatorError, which
    names a line but never shows it.
    """
    users: dict[bytes, bytes] = {}
    try:
        with open(path, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            for number, line in enumerate(file, 1):
                text = line.rstrip(b"\r\n")
                if not text.strip() or text.startswith(b"#"):
                    continue
                user, colon, password = text.partition(b":")
                if not (user and colon and password):
                    raise OperatorError(f"auth {path}:{number}: expected user:password")
                if user in users:
                    raise OperatorError(f"auth {path}:{number}: this user has a line before")
                users[user] = password
    except OSError as error:
        raise OperatorError(f"auth {path}: {error.strerror}") from None
    if not users:
        raise OperatorError(f"auth {path}: there is no user in it")
    exposed = mode & stat.S_IROTH
    return MappingProxyType(users), f"auth {path}: everybody can read it; chmod o-r it" if exposed else ""
