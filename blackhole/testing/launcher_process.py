"""The launcher process: has everything imported, and forks a server for each request.

To start Python and to import a server takes a third of a second, to fork one takes hundredths.
The process ends with the process that started it, and its servers end with it.
"""

from __future__ import annotations

import ctypes
import fcntl
import gc
import json
import os
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final, NoReturn

# `main` and `service` import these when they need them, which is after the fork.
import blackhole.service
import blackhole.web.dashboard  # noqa: F401
from blackhole import main
from blackhole.process.prctl import signal_when_parent_dies
from blackhole.process.systemd import LISTEN_FDS_START

MAX_REQUEST: Final = 1 << 16
"""Octets of a request."""

MAX_DESCRIPTORS: Final = 16
"""Descriptors that a request can pass."""

PARENT_INTERVAL: Final = 1.0
"""Seconds after which the launcher looks whether the process that started it is alive.

The end of the socket tells so too, unless a child of that process has it open.
"""


def run(parent: int) -> None:
    """Answer requests on standard input, a Unix socket that keeps messages apart, until its other end closes.

    A request has `arguments`, `environ` and `listening`, the number of sockets among its descriptors:
    standard error, the listening sockets, and others that the server inherits. The answer is the pid,
    with a descriptor of the process (pidfd_open(2)).
    """
    gc.freeze()  # what was imported stays, here and in all servers
    gc.enable()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps the servers
    ctypes.CDLL(None)  # loads what `signal_when_parent_dies` needs
    with socket.socket(fileno=0) as requests:
        requests.settimeout(PARENT_INTERVAL)
        while os.getppid() == parent:
            with suppress(TimeoutError):
                data, descriptors, _, _ = socket.recv_fds(requests, MAX_REQUEST, MAX_DESCRIPTORS)
                if not data:
                    return
                _answer(requests, json.loads(data), descriptors)


def _answer(requests: socket.socket, request: dict[str, Any], descriptors: Sequence[int]) -> None:
    launcher = os.getpid()
    pid = os.fork()
    if not pid:
        _serve(launcher, request, descriptors)
    passed = []
    with suppress(ProcessLookupError):  # it has ended already
        passed.append(os.pidfd_open(pid))
    try:
        socket.send_fds(requests, [str(pid).encode()], passed)
    finally:
        for descriptor in (*passed, *descriptors):
            os.close(descriptor)


def _serve(launcher: int, request: dict[str, Any], descriptors: Sequence[int]) -> NoReturn:
    """Run the program in this process, with its descriptors where sd_listen_fds(3) has them."""
    code = os.EX_SOFTWARE
    try:
        os.setsid()  # Ctrl-C in the terminal of the tests is not for the server
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        # A shell starts commands in the background with SIGINT ignored.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal_when_parent_dies(signal.SIGINT, launcher)
        _arrange(descriptors)
        os.environ.update(request["environ"])
        os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(request["listening"])}
        code = main.main(request["arguments"])
    finally:
        with suppress(OSError):
            sys.stderr.flush()
        os._exit(code)


def _arrange(descriptors: Sequence[int]) -> None:
    """Make the first descriptor standard error, and number the others from LISTEN_FDS_START on.

    Standard input becomes /dev/null.
    """
    end = LISTEN_FDS_START + len(descriptors)
    error, *others = (fcntl.fcntl(descriptor, fcntl.F_DUPFD, end) for descriptor in descriptors)
    os.dup2(os.open(os.devnull, os.O_RDWR), 0)
    os.dup2(error, 2)
    for number, descriptor in enumerate(others, LISTEN_FDS_START):
        os.dup2(descriptor, number)
    os.closerange(LISTEN_FDS_START + len(others), max(error, *others, end) + 1)
