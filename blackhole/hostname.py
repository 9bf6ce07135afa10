"""The name of this machine in mail, as its files tell it.

No resolver is asked, because one that fails takes many seconds.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator

from blackhole import input_file
from blackhole.values import HOSTNAME


def own_hostname(mailname: str = "/etc/mailname", hosts: str = "/etc/hosts") -> str:
    """Return the name in `mailname`, else the full name in `hosts`, else the name of the kernel.

    What is not a host name is passed over; without any, it is localhost.
    """
    name = socket.gethostname()
    for first in _words(mailname):
        if HOSTNAME.fullmatch(" ".join(first)):
            return first[0]
        break
    for _, *names in _words(hosts):
        if name in names and "." in names[0] and not names[0].startswith("localhost."):
            name = names[0]
            break
    return name if HOSTNAME.fullmatch(name) else "localhost"


def _words(path: str) -> Iterator[list[str]]:
    """Yield the words of every line that has any, without comments; nothing of an unreadable file."""
    try:
        text = input_file.read(path).octets.decode(errors="replace")
    except OSError:
        return
    for line in text.splitlines():
        if words := line.partition("#")[0].split():
            yield words
