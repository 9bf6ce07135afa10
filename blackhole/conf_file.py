"""The syntax of a conf file: a line `name = value` for each option, comments, and quotes around a value.
A section `[listener ADDRESS]` has the settings of one listener.

Blackhole 1.x ran its conf file as Python; files that only assign values still load. `configparser`
is not used, because it would join indented lines to the value above them, cut a comment sign out of
quotes, and forget on which line a value stood.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from typing import Final, NamedTuple

from blackhole import input_file
from blackhole.settings import OperatorError
from blackhole.values import expected

_ASSIGNMENT: Final = re.compile(r"([A-Za-z][A-Za-z0-9_-]*)\s*=\s*(.*)")
_SECTION: Final = re.compile(r"\[\s*(\w+)\s+(.*\S)\s*\]\s*(?:#.*)?")
_VALUE: Final = re.compile(
    r"""(?:"([^"]*)"|'([^']*)')\s*(?:#.*)?"""  # in quotes
    r"""|([^"'#](?:.*?\S)??)?\s*(?:(?<!\S)#.*)?"""  # without; a comment has a blank before it
)
_SECRET: Final = re.compile(r"attempt|pass|secret|://|@|\w:\S", re.IGNORECASE)
"""Matches a line in which there may be a password: of a Redis server, or of an auth file."""
_DEFAULT: Final = "None"
"""How files of 1.x ask for the default, without quotes."""


class Assignment(NamedTuple):
    """One line that assigns a value."""

    where: str
    """The file and the line, as `/etc/blackhole.conf:12`."""
    name: str
    """In lower case, with underscores."""
    value: str | None
    """Without quotes and comment; None asks for the default."""

    def error(self, message: str) -> OperatorError:
        """Return the error for a mistake on this line."""
        return OperatorError(f"{self.where}: {message}")


class SectionHeader(NamedTuple):
    """The line with which the settings of a listener begin."""

    where: str
    """The file and the line."""
    listener: str
    """What was written as its address."""

    def error(self, message: str) -> OperatorError:
        """Return the error for a mistake on this line."""
        return OperatorError(f"{self.where}: {message}")


def read(path: str, where: str) -> Iterator[Assignment | SectionHeader]:
    """Yield every assignment and every beginning of a section of the file.

    `where` says who named the file, for errors about the file itself. Raises OperatorError for a file
    that cannot be read or should not be, and for a line that is not an assignment.
    """
    for number, line in _lines(path, where):
        at = f"{path}:{number}"
        section = _SECTION.fullmatch(line)
        if section and section[1].lower() == "listener":
            yield SectionHeader(at, section[2])
            continue
        match = _ASSIGNMENT.fullmatch(line)
        if not match:
            wanted = "[listener ADDRESS:PORT]" if line.startswith("[") else "NAME = VALUE"
            raise OperatorError(f"{at}: {_expected(wanted, line)}")
        name, text = match[1].replace("-", "_").lower(), match[2]
        value = _VALUE.fullmatch(text)
        if not value:
            raise OperatorError(f"{at}: {name}: {_expected('a value with matching quotes', text, name)}")
        yield Assignment(at, name, None if value[3] == _DEFAULT else next(filter(None, value.groups()), ""))


def _expected(what: str, text: str, name: str = "") -> str:
    """Return what a wrong line was expected to be. The line is not repeated if there may be a password in it.

    Errors are logged at a reload.
    """
    return f"expected {what}" if _SECRET.search(f"{name} {text}") else str(expected(what, text))


def is_exposed(path: str) -> bool:
    """Return whether every user of this machine may read a file."""
    return bool(os.stat(path).st_mode & stat.S_IROTH)


def quoted(text: str) -> str:
    """Return a value as a conf file has to say it, with quotes if it needs them."""
    value = _VALUE.fullmatch(text)
    if value and (value[3] or "") == text != _DEFAULT:
        return text
    return f"'{text}'" if '"' in text else f'"{text}"'


def _lines(path: str, where: str) -> Iterator[tuple[int, str]]:
    """Yield the number and text of every line that is neither empty nor a comment."""
    number = 0
    try:
        octets, status = input_file.read(path)
        if os.geteuid() == 0 and (
            status.st_uid or status.st_mode & (stat.S_IWOTH | (stat.S_IWGRP if status.st_gid else 0))
        ):
            # Whoever can write to it decides which files root opens and creates.
            raise OperatorError(
                f"{where}: {path}: another user than root can write to it; chown it to root and chmod it go-w"
            )
        for number, octets_of_line in enumerate(octets.split(b"\n"), 1):
            line = octets_of_line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            if line and not line.startswith("#"):
                yield number, line
    except OSError as error:
        raise OperatorError(f"{where}: {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise OperatorError(f"{path}:{number}: not UTF-8 text") from None
