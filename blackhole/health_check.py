"""The health check: whether a listener greets its clients, for supervisors of containers.

It connects as a client does, because a process may be alive, and answer HTTP, while no mail is accepted.
"""

from __future__ import annotations

import socket
import ssl
import time
from contextlib import suppress
from typing import Final

from blackhole.settings import Listener, OperatorError, Settings

HEALTH_CHECK_TIMEOUT: Final = 5.0
"""Seconds for a greeting, beside the delay of the listener."""

RETRY_INTERVAL: Final = 0.1
"""Seconds between two attempts to connect."""

MAX_REPLY: Final = 4096

LOOPBACK: Final = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}
"""Wildcard address of a listener -> where to connect to it."""

GREETINGS: Final = {"unavailable": "421", "offline": "521"}
"""Mode -> the code of its greeting, where that is not 220."""

PROXY_HEADER: Final = b"PROXY UNKNOWN\r\n"
"""What a proxy sends for a connection of its own (PROXY protocol, version 1)."""


def check(settings: Settings, timeout: float = HEALTH_CHECK_TIMEOUT) -> str:
    """Return the greeting of a listener. Raises OperatorError if there is none within `timeout` seconds.

    The connection is closed after the greeting, which counts as a probe and violates no rule.
    """
    listener = choose(settings.listeners)
    address = LOOPBACK.get(listener.host, listener.host), listener.port
    wanted = GREETINGS.get(listener.mode, "220")
    until = time.monotonic() + timeout + (listener.delay[1] if listener.delay else 0.0)
    while True:
        try:
            greeting = _greeting(listener, address, max(RETRY_INTERVAL, until - time.monotonic()))
            problem = f"greets with {greeting!r}" if greeting else "closed the connection"
        except OSError as error:
            greeting, problem = "", str(error.strerror or error)
        if greeting.startswith(wanted):
            return greeting
        if time.monotonic() + RETRY_INTERVAL >= until:
            raise OperatorError(f"{listener} {problem}; expected {wanted}", 1)
        time.sleep(RETRY_INTERVAL)


def choose(listeners: tuple[Listener, ...]) -> Listener:
    """Return the listener to connect to: one without TLS and PROXY header, if there is such a one.

    Raises OperatorError if the kernel chooses the port of every listener.
    """
    fixed = [listener for listener in listeners if listener.port or listener.path]
    if not fixed:
        raise OperatorError("port 0 is any free port: check needs to know the port")
    return min(fixed, key=lambda listener: (listener.proxy, listener.tls))


def _connect(listener: Listener, address: tuple[str, int], timeout: float) -> socket.socket:
    """Return a connection to a listener. Raises OSError."""
    if not listener.path:
        return socket.create_connection(address, timeout)
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.settimeout(timeout)
        connection.connect(listener.path)
    except BaseException:
        connection.close()
        raise
    return connection


def _greeting(listener: Listener, address: tuple[str, int], timeout: float) -> str:
    """Return the first line that a listener sends; empty if it closes the connection. Raises OSError."""
    with _connect(listener, address, timeout) as connection:
        client = connection
        if listener.proxy:
            client.sendall(PROXY_HEADER)
        if listener.tls:
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            client = context.wrap_socket(connection)
        line = b""
        while b"\n" not in line and len(line) < MAX_REPLY and (octets := client.recv(MAX_REPLY)):
            line += octets
        with suppress(OSError):
            client.close()
    return line.split(b"\r\n")[0].decode(errors="replace")
