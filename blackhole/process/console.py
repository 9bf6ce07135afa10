"""Lines on standard output and standard error, for the person who typed the command."""

from __future__ import annotations

import os
import select
import sys
from contextlib import suppress
from typing import Final

MAX_WAIT_MILLISECONDS: Final = 1000
"""Milliseconds that `try_print_stderr` waits, at most."""


def reserve_standard_streams() -> None:
    """Open descriptors 0, 1 and 2 where they are closed, as cron or a supervisor may start a program.

    Otherwise a socket or a file would get such a number, and the lines that are written there.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w" if number else "r", closefd=False))


def visible(text: str, keep: str = "") -> str:
    r"""Return a text in which nothing controls a terminal: names in it may come from another user.

    >>> print(visible("worker \x1b[2J\n"))
    worker \x1b[2J\n
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char in keep else ascii(char)[1:-1] for char in text)


def print_stdout(text: str) -> None:
    """Write to standard output; a reader that stops early, as in `blackhole --help | head`, is no error."""
    with suppress(BrokenPipeError):
        os.write(1, visible(text, keep="\n").encode(errors="backslashreplace"))


def print_stderr(line: str) -> None:
    """Write a line to standard error. A closed standard error is no reason to end."""
    with suppress(OSError):
        os.write(2, f"{visible(line)}\n".encode(errors="backslashreplace"))


def try_print_stderr(line: str) -> bool:
    """Write a line to standard error, unless its reader has stopped; return whether it was written.

    For the end of a server, which waits a second for a terminal or a pipe and not for ever.
    """
    poll = select.poll()
    poll.register(2, select.POLLOUT)
    is_writable = bool(poll.poll(MAX_WAIT_MILLISECONDS))
    if is_writable:
        print_stderr(line)
    return is_writable


def print_warning(message: str) -> None:
    """Write a line to standard error that begins with the name of the program."""
    print_stderr(f"blackhole: {message}")
