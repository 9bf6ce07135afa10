"""Settings: what the operator decided, once it is decided, and the error for what cannot be.

After `options.parse` has made a `Settings`, nobody else knows that options, an
environment or a conf file exist.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field

Delay = tuple[float, float]
"""Seconds to wait before a reply, drawn evenly from (least, most)."""

MODES = {
    "accept": "take every message",
    "bounce": "refuse every message at its end, with a random code",
    "random": "toss a coin for each message: take it, or refuse it with a random code",
    "unavailable": "421 in place of the greeting, then close",
    "offline": "521 in place of the greeting (RFC 7504), then only QUIT is served",
}
"""Every mode and what it does; help, documents and checks read it here."""


class OperatorError(Exception):
    """What the operator asked for cannot be done: one line for stderr, and how to exit.

    `code` is a value of sysexits.h (`os.EX_USAGE`, `os.EX_CONFIG`, ...).
    """

    def __init__(self, message: str, code: int = os.EX_CONFIG) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Listener:
    """One address to accept connections on, and how its clients are treated."""

    host: str
    port: int
    tls: bool = False
    """TLS from the first byte (RFC 8314), as on port 465."""
    mode: str = "accept"
    delay: Delay | None = None

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Http:
    """Where the dashboard is."""

    host: str = ""
    """Empty: there is none."""
    port: int = 0
    names: tuple[str, ...] = ()
    """What browsers and scrapers may call this host, besides localhost, its addresses and its own name."""

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return ",".join([f"{host}:{self.port}", *(f"name={name}" for name in self.names)]) if host else "off"


@dataclass(frozen=True, slots=True)
class Settings:
    """All that was decided. Paths are absolute, users are still names."""

    listeners: tuple[Listener, ...] = (Listener("0.0.0.0", 25),)
    workers: int = 1
    user: str = ""
    """Empty: `blackhole` where it exists, else `nobody`; not root: stay who we are."""
    group: str = ""
    pid: str = ""
    log: str = ""
    """A file, or empty for standard error."""
    debug: bool = False
    hostname: str = "localhost"
    """What the greeting and EHLO say; looked up before this is made."""
    message_size_limit: int = 52428800
    """Octets; 0 is no limit."""
    strict: bool = False
    ssl_cert: str = ""
    """Empty: no TLS."""
    ssl_key: str = ""
    scenario: tuple[str, ...] = ()
    """Files, absolute paths, and `profile:NAME`s."""
    timeout: float = 300.0
    """Seconds a client may take for a command, or between two pieces of a body (RFC 5321 4.5.3.2.7)."""
    drain_timeout: float = 30.0
    """Seconds open sessions are given to finish when the server stops."""
    backlog: int = 1024
    http: Http = Http("127.0.0.1", 8025)
    origins: dict[str, str] = field(default_factory=dict, compare=False)
    """Option name -> where its value came from, for --print-config."""
    texts: dict[str, str] = field(default_factory=dict, compare=False)
    """Option name -> its value as an operator would write it, for --print-config."""
