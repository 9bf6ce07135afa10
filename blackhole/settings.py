"""Settings: what the operator decided, once it is decided, and the error for what cannot be.

After `options.parse` has made a `Settings`, nobody else knows that options, an
environment or a conf file exist.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

Delay = tuple[float, float]
"""Seconds to wait before a reply, drawn evenly from (least, most)."""

MODES = {
    "accept": "take every message",
    "bounce": "refuse every message at its end, with a random code",
    "random": "toss a coin for each message: take it, or refuse it with a random code",
    "greylist": "refuse each client, sender and recipient at first; take a retry after five minutes",
    "unavailable": "421 in place of the greeting, then close",
    "offline": "521 in place of the greeting (RFC 7504), then only QUIT is served",
}
"""Every mode and what it does; help, documents and checks read it here."""


NEWLINES = {
    "normalize": "take it as a line end, but never as part of the end of a message",
    "reject": "550 for a command or a message that has one, then close",
    "count": "as normalize, and count such commands and messages",
}
"""What may be done about a line that ends with LF alone, without a CR before it."""


JUDGING = (
    "client_connections",
    "client_connection_rate",
    "client_message_rate",
    "client_recipient_rate",
    "client_tls_rate",
    "client_byte_rate",
    "soft_errors",
    "max_errors",
    "max_junk",
    "max_recipients",
    "max_messages",
    "min_data_rate",
    "session_timeout",
)
"""The settings that judge clients, 0 where they do not: all off unless they are asked for."""


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
    proxy: bool = False
    """Each connection begins with a PROXY header, which says who the client is."""

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
class Redis:
    """Where several machines keep together what they remember of attempts."""

    host: str = ""
    """Empty: nowhere, each machine has a memory of its own."""
    port: int = 6379
    db: int = 0
    user: str = ""
    password: str = field(default="", repr=False)
    tls: bool = False
    ca: str = ""
    """Who vouches for its certificate, a file; empty: whoever this machine trusts."""
    prefix: str = "blackhole"
    """Of its keys there."""
    timeout: float = 0.05
    """Seconds that anybody waits for an answer."""

    def __str__(self) -> str:
        """Without the password, for this may be logged."""
        if not self.host:
            return "local"
        host = f"[{self.host}]" if ":" in self.host else self.host
        who = f"{self.user}:***@" if self.password else ""
        usual = Redis()
        more = "&".join(
            f"{name}={value}"
            for name in ("prefix", "timeout", "ca")
            if (value := getattr(self, name)) != getattr(usual, name)
        )
        return f"redis{'s' * self.tls}://{who}{host}:{self.port}/{self.db}{more and '?'}{more}"


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
    dynamic_switch: bool = True
    """A message may name its own mode and delay."""
    auth: str = "off"
    """`off`: AUTH is not offered; `any`: anybody may log in; else the file that says who may."""
    auth_plaintext: bool = False
    """AUTH is offered without TLS too."""
    passwords: Mapping[bytes, bytes] | None = field(default=None, repr=False, compare=False)
    """What was read from that file."""
    scenario: tuple[str, ...] = ()
    """Files, absolute paths, and `profile:NAME`s."""
    attempts: Redis = Redis()
    timeout: float = 300.0
    """Seconds a client may take for a command, or between two pieces of a body (RFC 5321 4.5.3.2.7)."""
    drain_timeout: float = 30.0
    """Seconds open sessions are given to finish when the server stops."""
    backlog: int = 1024
    http: Http = Http("127.0.0.1", 8025)
    show_clients: bool = False
    """Addresses of clients are kept, to be shown."""
    progress: bool = False
    """A line a second on standard error, in the foreground."""
    format: str = "text"
    """Of a report."""
    json: bool = False
    fail_on: str = "never"
    bare_newline: str = "normalize"
    """A key of NEWLINES."""

    # These keep the process alive, whoever its clients are.
    max_connections: int = 10000
    """Per worker; fewer where descriptors do not suffice."""
    write_timeout: float = 60.0
    """Seconds a client may take to read what it was answered."""
    tls_timeout: float = 30.0
    """Seconds for a TLS handshake."""
    stress_timeout: float = 10.0
    """Seconds a client may take, for anything, while connections are running out. 0: as at other times."""
    proxy_timeout: float = 5.0
    """Seconds for a PROXY header."""
    proxy_from: tuple[str, ...] = ()
    """Networks whose PROXY headers are believed."""

    # These judge clients. 0 is no limit.
    public: bool = False
    trusted: tuple[str, ...] = ("127.0.0.0/8", "::1/128")
    """Networks that are exempt from all that follows."""
    client_connections: int = 0
    """At once, of one address or IPv6 /64; as the rates that follow, which are per minute."""
    client_connection_rate: int = 0
    client_message_rate: int = 0
    client_recipient_rate: int = 0
    client_tls_rate: int = 0
    client_byte_rate: int = 0
    soft_errors: int = 0
    max_errors: int = 0
    max_junk: int = 0
    max_recipients: int = 0
    max_messages: int = 0
    min_data_rate: int = 0
    """Octets a second of a body, on average."""
    session_timeout: float = 0.0
    """Seconds."""

    @property
    def judges(self) -> bool:
        """Whether any client is judged."""
        return any(getattr(self, name) for name in JUDGING)

    @property
    def counts(self) -> bool:
        """Whether clients are counted over all their connections."""
        return any(getattr(self, name) for name in JUDGING if name.startswith("client_"))

    origins: dict[str, str] = field(default_factory=dict, compare=False)
    """Option name -> where its value came from, for --print-config."""
    texts: dict[str, str] = field(default_factory=dict, compare=False)
    """Option name -> its value as an operator would write it, for --print-config."""
