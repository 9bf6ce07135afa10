"""Files with secrets: the auth file, a line `user:password` for each user, and the dashboard's token."""

from __future__ import annotations

import codecs
import re
import stat
from collections.abc import Iterable, Mapping
from typing import Final

from blackhole import input_file
from blackhole.settings import OperatorError

TOKEN_SYNTAX: Final = r"[A-Za-z0-9._~+/-]{16,512}=*"  # noqa: S105 - it is a pattern
"""The syntax of a bearer token (RFC 6750 section 2.1), too long to be guessed."""


def load(path: str) -> tuple[Mapping[bytes, bytes], str]:
    """Return the password of each user, and a warning if other users of the machine can read them.

    Blank lines and lines that begin with # are skipped. Raises OperatorError, which names a line
    but never shows it.
    """
    try:
        file = input_file.read(path)
    except OSError as error:
        raise OperatorError(f"auth {path}: {error.strerror}") from None
    users = _parse(file.octets.removeprefix(codecs.BOM_UTF8).split(b"\n"), path)
    if not users:
        raise OperatorError(f"auth {path}: it contains no user")
    exposed = file.status.st_mode & stat.S_IROTH
    return users, f"auth {path}: it is world-readable; chmod o-r {path}" if exposed else ""


def load_token(path: str) -> tuple[str, str]:
    """Return the token in a file, and a warning if other users of the machine can read it.

    Raises OperatorError, which never shows the token.
    """
    try:
        file = input_file.read(path)
    except OSError as error:
        raise OperatorError(f"dashboard: token {path}: {error.strerror}") from None
    token = file.octets.strip().decode("latin-1")
    if not re.fullmatch(TOKEN_SYNTAX, token):
        raise OperatorError(f"dashboard: token {path}: expected one line of 16 to 512 characters of a token")
    exposed = file.status.st_mode & stat.S_IROTH
    return token, f"dashboard: token {path}: it is world-readable; chmod o-r {path}" if exposed else ""


def _parse(lines: Iterable[bytes], path: str) -> dict[bytes, bytes]:
    users: dict[bytes, bytes] = {}
    for number, line in enumerate(lines, 1):
        text = line.rstrip(b"\r")
        if not text.strip() or text.startswith(b"#"):
            continue
        user, colon, password = text.partition(b":")
        if not (user and colon and password):
            raise OperatorError(f"auth {path}:{number}: expected user:password")
        if user in users:
            raise OperatorError(f"auth {path}:{number}: the user has an earlier line")
        users[user] = password
    return users
