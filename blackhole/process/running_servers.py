"""Running servers: the masters of this machine, and which of them the address on a command line means.

A server in the foreground has no pidfile, but it has ports, and no two servers have the same one.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any, Final, NamedTuple

from blackhole import listeners
from blackhole.process import pidfile, processes
from blackhole.process.processes import Process
from blackhole.settings import OperatorError, Settings
from blackhole.store.server_facts import ServerFacts

ADDRESS_OPTIONS: Final = ("host", "port", "listen")
"""The options whose values on the command line choose a server."""

ALL_ADDRESSES: Final = frozenset(("0.0.0.0", "::"))

MAX_SHOWN_ADDRESSES: Final = 3
"""Addresses of a server that an error shows."""

HOW_TO_CHOOSE: Final = "choose one with --port PORT or --listen ADDRESS, or by its pidfile with --pid FILE"


class ListeningAddress(NamedTuple):
    """An address at which a server listens, or one that is looked for."""

    hosts: frozenset[str]
    """Empty, or with an address that stands for all: any."""
    port: int
    """0: any."""
    path: str = ""
    """That of a UNIX socket."""

    def includes(self, other: ListeningAddress) -> bool:
        """Return whether who listens at the other address can be reached at this one."""
        if self.path or other.path:
            return self.path == other.path
        any_host = not self.hosts or ALL_ADDRESSES & (self.hosts | other.hosts)
        return self.port in (0, other.port) and bool(any_host or self.hosts & other.hosts)


class RunningServer(NamedTuple):
    """A master, and where its workers listen."""

    pid: int
    addresses: tuple[str, ...]
    """Empty if this user may not know them, or if the server is just starting."""

    def listens_at(self, wanted: Iterable[ListeningAddress]) -> bool:
        """Return whether it listens at one of these addresses."""
        own = [_read(text) for text in self.addresses]
        return any(one.includes(other) for one in wanted for other in own)

    def __str__(self) -> str:
        if not self.addresses:
            return f"pid {self.pid}"
        further = len(self.addresses) - MAX_SHOWN_ADDRESSES
        shown = " and ".join(self.addresses[:MAX_SHOWN_ADDRESSES])
        return f"pid {self.pid} on {shown}{f' and {further} more' if further > 0 else ''}"


def running_servers() -> list[RunningServer]:
    """Return all servers of this user and of root, also those without a pidfile."""
    found = []
    for pid in pidfile.running_masters():
        try:
            addresses = tuple(_addresses_in(ServerFacts.of(pid)))
        except OperatorError as error:
            if error.code == os.EX_UNAVAILABLE:  # It has just ended.
                continue
            addresses = ()
        found.append(RunningServer(pid, addresses))
    return found


def _addresses_in(facts: Mapping[str, Any]) -> Iterator[str]:
    """Yield the addresses of a server. Its workers could have written anything into its facts."""
    with suppress(AttributeError, KeyError, TypeError, ValueError):
        for one in facts["listeners"]:
            for text in one["address"].split(" and "):
                yield str(listeners.make({}, listeners.read_address(text), "", None))


def chooses_by_address(settings: Settings) -> bool:
    """Return whether the command line chooses a server by an address. A pidfile that was named goes first."""
    return settings.origins.get("pid") == "default" and any(_wanted(settings))


def server_at_address(settings: Settings) -> int | None:
    """Return the pid of the server that listens at an address of the command line; None if none does.

    Raises OperatorError if several do.
    """
    wanted = list(_wanted(settings))
    return _only(one for one in running_servers() if one.listens_at(wanted))


def find(settings: Settings, or_only: bool = True) -> int | None:
    """Return the pid of the server that a command reads from: None without one, 0 if its pid is not known.

    `or_only`: without a pidfile, the only server on this machine will do. Raises OperatorError if there are
    several.
    """
    if chooses_by_address(settings):
        return server_at_address(settings)
    pid = pidfile.pidfile_owner(settings.pid)
    return _only(_candidates(settings)) if or_only and not pid else pid


def not_running(settings: Settings) -> str:
    """Return that the server does not run that a command means, and which others do."""
    by_address = chooses_by_address(settings)
    text = (
        "no server listens at the address that was given" if by_address else f"not running ({settings.pid})"
    )
    return "; ".join(filter(None, (text, others(settings))))


def others(settings: Settings) -> str:
    """Return which servers could be chosen in place of one that does not run; empty if none could."""
    found = _candidates(settings)
    return f"running: {', '.join(map(str, found))}; {HOW_TO_CHOOSE}" if found else ""


def _candidates(settings: Settings) -> list[RunningServer]:
    """Return all running servers; none if a pidfile was named."""
    return running_servers() if settings.origins.get("pid") == "default" else []


def _only(found: Iterable[RunningServer]) -> int | None:
    found = list(found)
    if len(found) > 1:
        servers = ", ".join(map(str, found))
        raise OperatorError(f"{len(found)} servers are running: {servers}; {HOW_TO_CHOOSE}", os.EX_USAGE)
    return found[0].pid if found else None


def _wanted(settings: Settings) -> Iterator[ListeningAddress]:
    """Yield the addresses of the command line. Port 0 is that of no server."""
    given = {
        name: settings.texts[name]
        for name in ADDRESS_OPTIONS
        if settings.origins.get(name, "").startswith("command line")
    }
    port = int(given.get("port", 0))
    if port or "host" in given:
        yield ListeningAddress(_addresses_of(given.get("host", "")), port)
    for text in given.get("listen", "").split():
        address = _read(text.partition(",")[0])
        if address.port or address.path:
            yield address


def _read(text: str) -> ListeningAddress:
    """Return the address of a text as `listen` has it."""
    one = listeners.read_address(text)
    return ListeningAddress(_addresses_of(one.host), one.port, one.path)


def _addresses_of(host: str) -> frozenset[str]:
    """Return the addresses of a host; none for none."""
    found = {host} if host else set()
    with suppress(OSError):
        found |= {str(row[4][0]) for row in socket.getaddrinfo(host, None)} if host else set()
    return frozenset(found)


def stop(pid: int, timeout: float) -> bool:
    """Stop a server with SIGTERM, after `timeout` seconds with SIGKILL; return False if it had just ended.

    Raises OperatorError if this user may not, or if the process survives SIGKILL.
    """
    process = Process.of(pid)
    if process is None or not processes.send_signal(pid, signal.SIGTERM):
        return False
    if not _wait_ended(process, timeout):
        processes.send_signal(pid, signal.SIGKILL)
        if not _wait_ended(process, pidfile.KILL_TIMEOUT):
            raise OperatorError(f"pid {pid} does not end after SIGKILL", os.EX_UNAVAILABLE)
    return True


def _wait_ended(process: Process, timeout: float) -> bool:
    deadline = time.monotonic() + timeout
    while process.is_alive():
        if time.monotonic() > deadline:
            return False
        time.sleep(pidfile.POLL)
    return True
